"""Lists the kernel's tracked connections, and deletes single ones, by netlink in the caller's namespace.

Format: linux/netfilter/nfnetlink_conntrack.h. An entry holds two tuples: packets as the one who opened the
connection sends them, and as the answers come back. They differ by more than their direction where
addresses are translated.
"""

import socket
from collections.abc import Collection, Iterator
from struct import Struct
from typing import NamedTuple

from tortie.linux.codec import Message, attribute, attributes, decoder, unpack_address
from tortie.linux.netlink import NetlinkSocket, gone

NETLINK_NETFILTER = 12
_CONNTRACK = 1  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = _CONNTRACK << 8, _CONNTRACK << 8 | 1, _CONNTRACK << 8 | 2  # IPCTNL_MSG_CT_…
_ORIGINAL, _REPLY, _STATUS, _ID, _ZONE = 1, 2, 3, 12, 18  # CTA_…
_ADDRESSES, _PROTOCOL = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_SOURCES, _TARGETS = (1, 3), (2, 4)  # CTA_IP_V4_SRC, V6_SRC; CTA_IP_V4_DST, V6_DST
_NUMBER, _SPORT, _DPORT = 1, 2, 3  # CTA_PROTO_…
_ICMP_TYPES = {1: (5, 6), 58: (8, 9)}  # protocol -> CTA_PROTO_ICMP_TYPE, _CODE; of ICMPv6
_EXPECTED = 1  # IPS_EXPECTED: announced by another connection
_NESTED = 0x8000
_FAMILY = Struct(">BBH")  # struct nfgenmsg
_PORT = Struct(">H")
_WORD = Struct(">I")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Ends(NamedTuple):
    """From whom to whom a packet goes. Ports are 0, and `icmp` None, where the protocol has no such thing."""

    src: str
    dst: str
    sport: int = 0
    dport: int = 0
    icmp: tuple[int, int] | None = None


class Connection(NamedTuple):
    """`expected`: another connection announced it, as FTP does. `handle` is what names it to the kernel."""

    version: int
    protocol: int
    original: Ends
    reply: Ends
    expected: bool
    handle: bytes


def open_socket() -> NetlinkSocket:
    """One socket serves for any number of lists and deletions. Raises KernelError."""
    return NetlinkSocket(protocol=NETLINK_NETFILTER)


def dump(door: NetlinkSocket, version: int) -> Iterator[Connection]:
    """All connections of one IP version; each is decoded when it is asked for. Raises KernelError."""
    head = _FAMILY.pack(_FAMILIES[version], 0, 0)
    for found in door.dump(Message(_GET, 0, head, "list", "connections")):
        if found.kind == _NEW and (connection := decode(found.body)) is not None:
            yield connection


@decoder("connection")
def decode(body: bytes) -> Connection | None:
    """None for one that is of no IP version."""
    version = next((one for one, family in _FAMILIES.items() if body[0] == family), 0)
    parts = attributes(body, _FAMILY.size)
    if not version or _ORIGINAL not in parts or _REPLY not in parts:
        return None
    protocol, original = _ends(parts[_ORIGINAL])
    status = _WORD.unpack(parts[_STATUS])[0] if _STATUS in parts else 0
    names = {_ORIGINAL: _NESTED, _ID: 0, _ZONE: 0}
    handle = body[: _FAMILY.size] + b"".join(
        attribute(kind | flag, parts[kind]) for kind, flag in names.items() if kind in parts
    )
    return Connection(version, protocol, original, _ends(parts[_REPLY])[1], bool(status & _EXPECTED), handle)


def _ends(data: bytes) -> tuple[int, Ends]:
    parts = attributes(data)
    addresses, about = attributes(parts.get(_ADDRESSES, b"")), attributes(parts.get(_PROTOCOL, b""))
    src, dst = (
        next((addresses[kind] for kind in kinds if kind in addresses), b"") for kinds in (_SOURCES, _TARGETS)
    )
    protocol = about.get(_NUMBER, b"")[0]
    kinds = _ICMP_TYPES.get(protocol)
    icmp = (about[kinds[0]][0], about[kinds[1]][0]) if kinds and kinds[0] in about else None
    sport, dport = (_PORT.unpack(about[kind])[0] if kind in about else 0 for kind in (_SPORT, _DPORT))
    return protocol, Ends(unpack_address(src), unpack_address(dst), sport, dport, icmp)


def delete(door: NetlinkSocket, connections: Collection[Connection]) -> None:
    """Forget connections; one that has ended by itself is as good. Raises the first KernelError of others."""
    messages = [
        Message(_DELETE, 0, one.handle, "delete", f"connection {one.original}") for one in connections
    ]
    for error in door.request(messages):
        if error is not None and not gone(error):
            raise error
