"""Addresses and CIDRs as text and as numbers: the few conversions the allocator needs.

Everything is Python's `ipaddress`. Text in canonical form (compressed, lower case) is what keys, blocks
and handles contain. An IPv4-mapped IPv6 address is the IPv4 address, as in Go.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@lru_cache(maxsize=8192)  # the same blocks and pools come again and again; parsing costs as much as assigning
def network(cidr: str) -> Network:
    """A CIDR without host bits. Raises ValueError."""
    return ip_network(cidr)


def address(text: str) -> Address:
    """Raises ValueError."""
    parsed = ip_address(text)
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            raise ValueError(f"{text!r} has a zone")
        return parsed.ipv4_mapped or parsed
    return parsed


def bits(version: int) -> int:
    """The length of an address: also the prefix length of a single one."""
    return 32 if version == 4 else 128


def block_around(of: Address, block_size: int) -> str:
    """The CIDR of the block that holds an address; `block_size` is a prefix length."""
    kind = IPv4Network if of.version == 4 else IPv6Network
    return str(kind((int(of), block_size), strict=False))


def contains(net: Network, part: Network) -> bool:
    """Whether all of `part` is inside `net`; never across IP versions."""
    return net.version == part.version and net.prefixlen <= part.prefixlen and part.network_address in net


def holder(cidrs: Iterable[str], of: Address) -> str | None:
    """The first of these CIDRs that an address is in."""
    return next((cidr for cidr in cidrs if of in network(cidr)), None)
