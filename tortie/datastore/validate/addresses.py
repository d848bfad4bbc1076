"""Addresses and networks in text, read as strictly as Calico reads them, and the checks made of that.

Python's ipaddress alone is too generous: it takes netmasks for prefix lengths, zones (`fe80::1%eth0`) and
IPv4 inside IPv6 (`::ffff:10.0.0.1`, which Go counts as IPv4 and Python as IPv6). All of these are refused.
"""

import ipaddress
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from tortie.datastore.validate.fields import Check, tested

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAX = 64  # characters, the schema's limit for addresses; the longest IPv6 CIDR has 43
_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)


def parse_ip(text: str) -> Address | None:
    """The address, None if the text is not exactly one."""
    if len(text) > _MAX or "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
    return None if mapped else address


def parse_cidr(text: str) -> tuple[Address, Network] | None:
    """The address before the slash as written, and the network it lies in."""
    left, slash, length = text.partition("/")
    address = parse_ip(left)
    if address is None or not slash or not _LENGTH.fullmatch(length) or int(length) > address.max_prefixlen:
        return None
    return address, _network(address, int(length))


def parse_cidr_or_ip(text: str) -> tuple[Address, Network] | None:
    """The same, where a bare address counts as a network of one."""
    if "/" in text:
        return parse_cidr(text)
    address = parse_ip(text)
    return None if address is None else (address, _network(address, address.max_prefixlen))


def _network(address: Address, length: int) -> Network:
    kind = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
    return kind((int(address), length), strict=False)


def _is_ip(version: int) -> Check:
    def test(value: str) -> bool:
        address = parse_ip(value)
        return address is not None and version in (0, address.version)

    return tested(test, f"invalid {_name(version)} address")


def _is_net(version: int) -> Check:
    """A strictly masked CIDR, or an address."""

    def test(value: str) -> bool:
        found = parse_cidr_or_ip(value)
        return found is not None and found[0] == found[1].network_address and version in (0, found[0].version)

    return tested(test, f"invalid {_name(version)} network: must be an address or a strictly masked CIDR")


def _is_cidr(version: int) -> Check:
    """A CIDR whose host bits do not matter, or an address."""

    def test(value: str) -> bool:
        found = parse_cidr_or_ip(value)
        return found is not None and version in (0, found[0].version)

    return tested(test, f"invalid {_name(version)} CIDR")


def _name(version: int) -> str:
    return f"IPv{version}" if version else "IP"


ip, ipv4, ipv6 = _is_ip(0), _is_ip(4), _is_ip(6)
net, netv4, netv6 = _is_net(0), _is_net(4), _is_net(6)
cidr, cidrv4, cidrv6 = _is_cidr(0), _is_cidr(4), _is_cidr(6)
real_cidr = tested(lambda value: parse_cidr(value) is not None, "must be a valid CIDR, e.g. 10.0.0.0/24")


def canonical_cidr(text: str) -> str:
    """A bare address as the CIDR of one, which the schema wants where older Calicos took either."""
    address = parse_ip(text)
    return text if address is None else str(_network(address, address.max_prefixlen))


def _is_mac(value: str) -> bool:
    """48, 64 or 160 bits, with colons, dashes or dots, as Go's net.ParseMAC reads them."""
    for separator, digits in ((":", 2), ("-", 2), (".", 4)):
        parts = value.split(separator)
        if len(parts) * digits in (12, 16, 40) and all(
            re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", p) for p in parts
        ):
            return True
    return False


mac = tested(_is_mac, "invalid MAC address")


def parse_peer(text: str) -> tuple[Address, int] | None:
    """A peer's `ip`, `v4:port` or `[v6]:port`; the port is 0 if none is given."""
    address, port = text, "0"
    if match := re.fullmatch(r"\[([^]]*)\]:([0-9]{1,5})|([0-9.]+):([0-9]{1,5})", text, re.ASCII):
        address, port = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
        if not 1 <= int(port) <= 65535:
            return None
    parsed = parse_ip(address)
    if parsed is None or text.startswith("[") != (parsed.version == 6 and port != "0"):
        return None
    return parsed, int(port)


peer = tested(lambda value: parse_peer(value) is not None, "must be <IP>, <IPv4>:<port> or [<IPv6>]:<port>")
