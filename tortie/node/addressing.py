"""The node's addresses as they will stand in its Node resource: environment, detection, what is stored.

Pure but for the log. Rules (Calico, startup.go): IP=autodetect always detects; an empty IP detects
only when nothing is stored; `none` keeps what is stored; anything else is the address. IP6 is the
same except that an empty IP6 keeps what is stored. A failed detection keeps a stored address with
a warning; with none stored it is fatal.
"""

import ipaddress
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tortie.core.errors import ConfigError
from tortie.datastore.types.node import NodeInterface
from tortie.node.autodetect import EXCLUDED, Detection, HostAddress, Method, local_cidr, parse_method

_log = logging.getLogger(__name__)

VARIABLES = {4: "IP", 6: "IP6"}  # IP version -> the environment variable that sets the address
Detect = Callable[[Method, int], Detection]


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """What the Node resource is to say; '' means no address of that family."""

    ipv4: str
    ipv6: str
    interfaces: tuple[NodeInterface, ...]


class NoAddress(ConfigError):
    """Nothing could be detected and nothing is stored: networking cannot start."""


def decide(
    env: Mapping[str, str], stored: Mapping[int, str], addresses: Sequence[HostAddress], detect: Detect
) -> NodeAddresses:
    """Raises NoAddress or ConfigError naming the variable. `stored` is IP version -> address in the Node."""
    chosen = {version: _decide_one(env, version, stored[version], addresses, detect) for version in (4, 6)}
    if not any(chosen.values()):
        raise NoAddress("IP", env.get("IP", ""), "no IPv4 or IPv6 addresses configured or detected")
    return NodeAddresses(chosen[4], chosen[6], _interfaces(env, addresses))


def _decide_one(
    env: Mapping[str, str], version: int, stored: str, addresses: Sequence[HostAddress], detect: Detect
) -> str:
    variable = VARIABLES[version]
    given = env.get(variable, "")
    if given == "autodetect" or (given == "" and version == 4 and not stored):
        return _detected(env, version, stored, addresses, detect)
    if given in ("", "none"):
        if stored:
            _log.info("keeping the stored IPv%d address %s (%s=%r)", version, stored, variable, given)
            _warn_if_not_local(stored, addresses)
        return stored
    try:
        address = str(ipaddress.ip_interface(local_cidr(given, addresses)))
    except ValueError:
        address = ""
    if not address or ipaddress.ip_interface(address).version != version:
        raise ConfigError(variable, given, f"Environment does not contain a valid IPv{version} address")
    _log.info("Using IPv%d address from environment: %s=%s", version, variable, address)
    _warn_if_not_local(address, addresses)
    return address


def _detected(
    env: Mapping[str, str], version: int, stored: str, addresses: Sequence[HostAddress], detect: Detect
) -> str:
    name = f"{VARIABLES[version]}_AUTODETECTION_METHOD"
    text = env.get(name, "")
    found = detect(parse_method(text, name), version)
    for candidate in found.candidates:
        _log.info("IPv%d candidate %s", version, candidate)
    if found.chosen:
        _log.info("Using autodetected IPv%d address %s (%s)", version, found.chosen, text or "first-found")
        return found.chosen
    _log.warning("Unable to auto-detect an IPv%d address: %s", version, found.failure)
    if stored:
        _log.warning("keeping the stored IPv%d address %s", version, stored)
        _warn_if_not_local(stored, addresses)
        return stored
    raise NoAddress(name, text, f"Couldn't autodetect an IPv{version} address: {found.failure}")


def _warn_if_not_local(cidr: str, addresses: Sequence[HostAddress]) -> None:
    ip = ipaddress.ip_interface(cidr).ip
    if not any(address.ip == ip for address in addresses):
        _log.warning("Unable to confirm IPv%d address %s is assigned to this host", ip.version, ip)


def _interfaces(env: Mapping[str, str], addresses: Sequence[HostAddress]) -> tuple[NodeInterface, ...]:
    """Name and addresses of the host's own interfaces, for the families that are configured."""
    wanted = {version for version, name in VARIABLES.items() if env.get(name, "") not in ("", "none")}
    by_name: dict[str, list[str]] = {}  # interface -> its addresses, without prefix length
    for address in addresses:
        if address.ip.version in wanted and not any(re.search(p, address.interface) for p in EXCLUDED):
            by_name.setdefault(address.interface, []).append(str(address.ip))
    return tuple(NodeInterface(name=name, addresses=tuple(by_name[name])) for name in sorted(by_name))
