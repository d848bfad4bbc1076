"""What a plugin answers to ADD, in every version of the CNI format. Pure.

Inside there is one form (that of 1.0.0); encode() and decode() translate at the border. Field order
and indentation are those of the CNI library. (CNI specification, section "Result types".)
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import msgspec

from tortie.cni.protocol import Code, at_least
from tortie.core.errors import CniError

_LISTS = ("interfaces", "ips", "routes")  # of a result since 0.3.0


@dataclass(frozen=True, slots=True)
class Interface:
    """`sandbox` is the path of the namespace it is in, '' for the host."""

    name: str
    mac: str = ""
    mtu: int = 0  # 0: not told
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class IP:
    """`address` has a prefix length; `interface` is an index into the result's interfaces."""

    address: str
    interface: int | None = None
    gateway: str = ""

    @property
    def bare(self) -> str:
        return self.address.partition("/")[0]

    @property
    def version(self) -> int:
        return 6 if ":" in self.address else 4


@dataclass(frozen=True, slots=True)
class Route:
    dst: str
    gw: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: tuple[tuple[str, Any], ...] = ()  # passed through: nameservers, domain, search, options

    def of_interface(self, name: str) -> "Result":
        """Only what concerns the container's interface `name`; addresses without an index count as its."""
        index = next((i for i, one in enumerate(self.interfaces) if one.name == name and one.sandbox), None)
        ips = tuple(ip for ip in self.ips if ip.interface in (None, index))
        return replace(self, ips=ips)


# --- writing ------------------------------------------------------------------------------------


def encode(result: Result, version: str, previous: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    """JSON text for a runtime. Raises CniError if the old format cannot hold it.

    `previous` is the plain result of the plugin before us, which must be passed on (specification, ADD):
    it comes first, unchanged, fields that we do not know included. The old formats know no chains.
    """
    if at_least(version, "0.3.0"):
        plain = _behind(previous, _encode_lists(result, version))
    else:
        plain = _encode_families(result, version)
    return msgspec.json.format(msgspec.json.encode(plain), indent=4) + b"\n"


def _encode_lists(result: Result, version: str) -> dict[str, Any]:
    modern = at_least(version, "1.0.0")
    plain: dict[str, Any] = {"cniVersion": version}
    if result.interfaces:
        plain["interfaces"] = [_encode_interface(one, modern) for one in result.interfaces]
    if result.ips:
        plain["ips"] = [_encode_ip(ip, modern) for ip in result.ips]
    if result.routes:
        plain["routes"] = [_encode_route(route) for route in result.routes]
    if result.dns or not modern:
        plain["dns"] = dict(result.dns)
    return plain


def _behind(previous: Mapping[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Our own lists behind the previous ones; our addresses then name interfaces so much further on."""
    shift = len(previous.get("interfaces") or ())
    for ip in plain.get("ips", ()):
        if "interface" in ip:
            ip["interface"] += shift
    for name in _LISTS:
        if before := previous.get(name):
            plain[name] = [*before, *plain.get(name, ())]
    others = {key: value for key, value in previous.items() if key not in (*_LISTS, "cniVersion", "dns")}
    if (dns := previous.get("dns")) and not plain.get("dns"):
        others["dns"] = dns
    return plain | others


def check_previous(previous: Mapping[str, Any]) -> None:
    """Raises CniError if another plugin's result cannot be passed on."""
    for name in _LISTS:
        if not isinstance(previous.get(name) or [], list):
            raise CniError(Code.DECODING_FAILURE, f"could not parse prevResult: {name} is no list")


def _encode_interface(one: Interface, modern: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": one.name}
    if one.mac:
        plain["mac"] = one.mac
    if one.mtu and modern:
        plain["mtu"] = one.mtu
    if one.sandbox:
        plain["sandbox"] = one.sandbox
    return plain


def _encode_ip(ip: IP, modern: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {} if modern else {"version": str(ip.version)}
    if ip.interface is not None:
        plain["interface"] = ip.interface
    plain["address"] = ip.address
    if ip.gateway:
        plain["gateway"] = ip.gateway
    return plain


def _encode_route(route: Route) -> dict[str, Any]:
    return {"dst": route.dst} | ({"gw": route.gw} if route.gw else {})


def _encode_families(result: Result, version: str) -> dict[str, Any]:
    """0.1.0 and 0.2.0 know one address per family; the first counts."""
    plain: dict[str, Any] = {"cniVersion": version}
    for family, key in ((4, "ip4"), (6, "ip6")):
        ip = next((ip for ip in result.ips if ip.version == family), None)
        if ip is None:
            continue
        plain[key] = {"ip": ip.address} | ({"gateway": ip.gateway} if ip.gateway else {})
        routes = [route for route in result.routes if (":" in route.dst) == (family == 6)]
        if routes:
            plain[key]["routes"] = [_encode_route(route) for route in routes]
    if not plain.keys() & {"ip4", "ip6"}:
        raise CniError(Code.INTERNAL, f"cannot convert: no valid IP addresses for a result of {version}")
    return plain | {"dns": dict(result.dns)}


# --- reading ------------------------------------------------------------------------------------


class _Route(msgspec.Struct):
    dst: str
    gw: str = ""


class _Interface(msgspec.Struct):
    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""


class _IP(msgspec.Struct):
    address: str
    interface: int | None = None
    gateway: str = ""


class _Family(msgspec.Struct):
    ip: str
    gateway: str = ""
    routes: tuple[_Route, ...] = ()


class _Any(msgspec.Struct):
    """The fields of all versions at once: which are there tells the version better than its number."""

    interfaces: tuple[_Interface, ...] = ()
    ips: tuple[_IP, ...] = ()
    routes: tuple[_Route, ...] = ()
    ip4: _Family | None = None
    ip6: _Family | None = None
    dns: dict[str, Any] = {}


def decode(data: bytes, where: str) -> Result:
    """A result of any version, from another plugin or a runtime; `where` names it in errors.

    Raises CniError if it is not one, or names something that is no address.
    """
    try:
        found = msgspec.json.decode(data, type=_Any)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise CniError(Code.DECODING_FAILURE, f"cannot read the result of {where}: {err}") from err
    ips = [IP(_cidr(ip.address, where), ip.interface, _address(ip.gateway, where)) for ip in found.ips]
    routes = list(found.routes)  # of no consequence to us, and host-local writes "<nil>" where it has no dst
    for family in filter(None, (found.ip4, found.ip6)):
        ips.append(IP(_cidr(family.ip, where), None, _address(family.gateway, where)))
        routes.extend(family.routes)
    return Result(
        interfaces=tuple(Interface(one.name, one.mac, one.mtu, one.sandbox) for one in found.interfaces),
        ips=tuple(ips),
        routes=tuple(Route(_cidr(r.dst, where), r.gw) for r in routes if "/" in r.dst),
        dns=tuple(found.dns.items()),
    )


def _cidr(text: str, where: str) -> str:
    """Canonical text; host bits stay, a missing prefix length is that of one address."""
    try:
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise CniError(
            Code.DECODING_FAILURE, f"the result of {where} names no address: {text[:60]!r}"
        ) from None


def _address(text: str, where: str) -> str:
    return _cidr(text, where).partition("/")[0] if text else ""
