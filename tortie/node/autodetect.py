"""Which of the host's addresses is the node's, and why each other one is not.

Pure: the host's addresses come in, a Detection with a verdict for every candidate goes out. Methods
and their order are Calico's (node/pkg/lifecycle/startup/autodetection); saying why is ours.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tortie.core.errors import ConfigError

# Interfaces of container engines, tunnels and ourselves, which never carry the node's own address.
EXCLUDED = (
    r"^docker.*", r"^cbr.*", r"^dummy.*", r"^podman.*", r"^virbr.*", r"^lxcbr.*", r"^veth.*", r"^lo",
    r"^br-.*", r"^cali.*", r"^tunl.*", r"^flannel.*", r"^kube-ipvs.*", r"^cni.*", r"^vxlan\.calico.*",
    r"^vxlan-v6\.calico.*", r"^wireguard\.cali.*", r"^wg-v6\.cali.*", r"^nodelocaldns.*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostAddress:
    """One address of the host: `cidr` keeps the host bits, e.g. 10.0.0.7/24."""

    interface: str
    ifindex: int
    cidr: str

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return ipaddress.ip_interface(self.cidr).ip


@dataclass(frozen=True, slots=True)
class Method:
    """A parsed IP_AUTODETECTION_METHOD; `args` are regexes, CIDRs or the one destination."""

    kind: str  # first-found | interface | skip-interface | cidr | can-reach | kubernetes-internal-ip
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    address: HostAddress
    taken: bool
    reason: str

    def __str__(self) -> str:
        verdict = "taken" if self.taken else "left"
        return f"{self.address.interface} {self.address.cidr}: {verdict}: {self.reason}"


@dataclass(slots=True)
class Detection:
    """`chosen` is an address with its prefix length, '' if none fits; then `failure` says why."""

    chosen: str = ""
    candidates: list[Candidate] = field(default_factory=list)
    failure: str = ""


def parse_method(text: str, variable: str) -> Method:
    """Raises ConfigError for a method that Calico does not know, a bad regex or a bad CIDR."""
    if text in ("", "first-found"):
        return Method("first-found")
    if text.startswith("kubernetes-internal-ip"):
        return Method("kubernetes-internal-ip")
    kind, separator, rest = text.partition("=")
    args = tuple(re.split(r"\s*,\s*", rest))
    if not separator or kind not in ("interface", "skip-interface", "cidr", "can-reach"):
        raise ConfigError(variable, text, f"Invalid IP autodetection method: {text}")
    if kind == "can-reach":
        return Method(kind, (rest,))
    for arg in args:
        try:
            re.compile(arg) if kind != "cidr" else ipaddress.ip_network(arg, strict=False)
        except (re.error, ValueError) as err:
            raise ConfigError(variable, text, f"{arg!r} is not valid: {err}") from err
    return Method(kind, args)


def detect(
    method: Method,
    version: int,
    addresses: Iterable[HostAddress],
    *,
    reached: str = "",
    internal_ips: Sequence[str] | None = None,
    keep: str = "",
) -> Detection:
    """Choose the node's address of IP `version`.

    `reached` is the local address the kernel uses towards the can-reach destination ('': none);
    `internal_ips` are the Kubernetes node's InternalIPs, None without Kubernetes. `keep` is an
    address to prefer while it is still there and fits, so that a running node does not move because
    an interface appeared.
    """
    # Later interfaces first, as Calico has always done: it is what existing nodes were given.
    mine = sorted((a for a in addresses if a.ip.version == version), key=lambda a: -a.ifindex)
    if method.kind in ("can-reach", "kubernetes-internal-ip"):
        return _by_address(method, version, mine, reached, internal_ips)
    found = Detection()
    kept = next((a for a in mine if a.cidr == keep and not _unfit(method, a)), None)
    for address in [kept, *(a for a in mine if a is not kept)] if kept else mine:
        reason = _unfit(method, address)
        if not reason and found.chosen:
            reason = "another address came first"
        why = "is the node's address already" if address is kept else _why(method)
        found.candidates.append(Candidate(address, not reason, reason or why))
        if not reason:
            found.chosen = address.cidr
    if not found.chosen:
        found.failure = f"no valid IPv{version} addresses found on the host interfaces"
    return found


def local_cidr(ip: str, addresses: Iterable[HostAddress]) -> str:
    """The address with the prefix length it has on a local interface; unchanged if it has none."""
    if "/" in ip:
        return ip
    for address in addresses:
        if str(address.ip) == str(ipaddress.ip_address(ip)):
            return address.cidr
    return ip


def _by_address(
    method: Method, version: int, mine: list[HostAddress], reached: str, internal_ips: Sequence[str] | None
) -> Detection:
    if method.kind == "kubernetes-internal-ip":
        if internal_ips is None:
            reason = "Cannot use method 'kubernetes-internal-ip' when not running on a Kubernetes cluster"
            return Detection(failure=reason)
        wanted = next((ip for ip in internal_ips if ipaddress.ip_address(ip).version == version), "")
        source = "the Kubernetes node's InternalIP"
    else:
        wanted, source = reached, f"the source address towards {method.args[0]}"
    if not wanted:
        return Detection(failure=f"there is no IPv{version} address that is {source}")
    found = Detection(chosen=local_cidr(wanted, mine))
    for address in mine:
        taken = address.cidr == found.chosen
        found.candidates.append(Candidate(address, taken, ("is " if taken else "is not ") + source))
    return found


def _unfit(method: Method, address: HostAddress) -> str:
    """Why this address cannot be the node's, '' if it can."""
    name, ip = address.interface, address.ip
    if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return "not a global unicast address"
    if method.kind == "interface":
        return "" if _matches(name, method.args) else "interface name does not match"
    if method.kind == "cidr":
        networks = [ipaddress.ip_network(arg, strict=False) for arg in method.args]
        return "" if any(ip in network for network in networks) else "outside the given CIDRs"
    if _matches(name, EXCLUDED):
        return "interface name is on the default exclusion list"
    if method.kind == "skip-interface" and _matches(name, method.args):
        return "interface name is to be skipped"
    return ""


def _why(method: Method) -> str:
    return {
        "first-found": "first address found",
        "skip-interface": "first address found",
        "interface": "first address on a matching interface",
        "cidr": "first address inside the given CIDRs",
    }[method.kind]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def owners(addresses: Mapping[str, Sequence[str]], mine: str, ips: Iterable[str]) -> dict[str, str]:
    """Address -> other node that already has it. `addresses` maps node name to its addresses (CIDRs)."""
    taken = {}  # bare address -> node
    for node, cidrs in addresses.items():
        if node != mine:
            taken.update({_bare(cidr): node for cidr in cidrs if cidr})
    return {ip: taken[_bare(ip)] for ip in ips if ip and _bare(ip) in taken}


def _bare(cidr: str) -> str:
    return str(ipaddress.ip_interface(cidr).ip)
