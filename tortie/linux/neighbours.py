"""Neighbour entries: permanent ARP and ND entries, and bridge forwarding entries."""

import errno
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, AF_UNSPEC
from struct import Struct

from tortie.core.errors import KernelError
from tortie.linux import codec
from tortie.linux.codec import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    Message,
    attribute,
    attribute_u32,
    attributes,
    pack_address,
    pack_mac,
    read_u16,
    unpack_address,
    unpack_mac,
)
from tortie.linux.netlink import NetlinkSocket

AF_BRIDGE = 7
STATE_STALE, STATE_PERMANENT = 0x04, 0x80
FLAG_SELF = 0x02

_NDMSG = Struct("=BxxxiHBB")  # family, interface, state, flags, type
_DST, _LLADDR, _VLAN, _IFINDEX = 1, 2, 5, 8


@dataclass(frozen=True, slots=True)
class Neighbour:
    """`address` is at `mac` on the interface; `mac` is "" while unresolved."""

    address: str
    ifindex: int
    mac: str = ""
    state: int = STATE_PERMANENT
    flags: int = 0

    @property
    def family(self) -> int:
        return codec.family_of(self.address)

    @property
    def permanent(self) -> bool:
        return bool(self.state & STATE_PERMANENT)


@dataclass(frozen=True, slots=True)
class ForwardingEntry:
    """A bridge or VXLAN forwarding entry: frames for `mac` leave by `ifindex`, to `dst` if a tunnel."""

    mac: str
    ifindex: int
    dst: str | None = None
    state: int = STATE_PERMANENT
    flags: int = FLAG_SELF
    vlan: int = 0

    @property
    def permanent(self) -> bool:
        return bool(self.state & STATE_PERMANENT)


# --- ARP and neighbour discovery ----------------------------------------------------------------


@codec.encoder("neighbour")
def replace(ifindex: int, address: str, mac: str) -> Message:
    """A permanent entry, in place of whatever the kernel has learned."""
    body = _head(ifindex, address, STATE_PERMANENT) + attribute(_LLADDR, pack_mac(mac))
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, "replace", f"neighbour {address}")


@codec.encoder("neighbour")
def delete(ifindex: int, address: str) -> Message:
    """ENOENT means that it was gone."""
    return Message(RTM_DELNEIGH, 0, _head(ifindex, address), "delete", f"neighbour {address}")


def dump(netlink: NetlinkSocket, family: int = AF_UNSPEC, ifindex: int = 0) -> list[Neighbour]:
    """ARP and ND entries; filtered by the kernel."""
    body = _NDMSG.pack(family, 0, 0, 0, 0)
    found = [decode(one) for one in _dump(netlink, body, ifindex)]
    return [one for one in found if isinstance(one, Neighbour) and ifindex in (0, one.ifindex)]


# --- bridges and VXLAN devices ------------------------------------------------------------------


@codec.encoder("neighbour")
def replace_forwarding(ifindex: int, mac: str, dst: str | None = None) -> Message:
    """A permanent entry in the device's own table; `dst` is the remote VTEP of a VXLAN device."""
    body = _forwarding_body(ifindex, mac, dst, STATE_PERMANENT)
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, "replace", f"forwarding entry {mac}")


@codec.encoder("neighbour")
def delete_forwarding(ifindex: int, mac: str, dst: str | None = None) -> Message:
    """ENOENT means that it was gone."""
    body = _forwarding_body(ifindex, mac, dst, 0)
    return Message(RTM_DELNEIGH, 0, body, "delete", f"forwarding entry {mac}")


def dump_forwarding(netlink: NetlinkSocket, ifindex: int = 0) -> list[ForwardingEntry]:
    """Forwarding entries of one device, or of all."""
    body = _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0)
    found = [decode(one) for one in _dump(netlink, body, ifindex)]
    return [one for one in found if isinstance(one, ForwardingEntry) and ifindex in (0, one.ifindex)]


# --- wire form ----------------------------------------------------------------------------------


@codec.decoder("neighbour")
def decode(body: bytes) -> Neighbour | ForwardingEntry | None:
    """An entry from an RTM_NEWNEIGH or RTM_DELNEIGH body; None for other families."""
    family, ifindex, state, flags, _ = _NDMSG.unpack_from(body)
    found = attributes(body, _NDMSG.size)
    dst = unpack_address(found[_DST]) if _DST in found else None
    mac = unpack_mac(found.get(_LLADDR, b""))
    if family == AF_BRIDGE:
        vlan = read_u16(found[_VLAN]) if _VLAN in found else 0
        return ForwardingEntry(mac, ifindex, dst, state, flags, vlan)
    if family not in (AF_INET, AF_INET6) or dst is None:
        return None
    return Neighbour(dst, ifindex, mac, state, flags)


def _head(ifindex: int, address: str, state: int = 0) -> bytes:
    packed = pack_address(address)
    family = AF_INET if len(packed) == 4 else AF_INET6
    return _NDMSG.pack(family, ifindex, state, 0, 0) + attribute(_DST, packed)


def _forwarding_body(ifindex: int, mac: str, dst: str | None, state: int) -> bytes:
    body = _NDMSG.pack(AF_BRIDGE, ifindex, state, FLAG_SELF, 0) + attribute(_LLADDR, pack_mac(mac))
    return body + (attribute(_DST, pack_address(dst)) if dst is not None else b"")


def _dump(netlink: NetlinkSocket, head: bytes, ifindex: int) -> list[bytes]:
    body = head + (attribute_u32(_IFINDEX, ifindex) if ifindex else b"")
    try:
        answers = netlink.dump(Message(RTM_GETNEIGH, 0, body, "dump", "neighbours"))
    except KernelError as err:
        if ifindex and err.errno == errno.ENODEV:  # an interface that is gone has none
            return []
        raise
    return [answer.body for answer in answers]
