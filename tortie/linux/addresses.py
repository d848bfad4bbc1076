"""Addresses of interfaces: reading them, and the messages that add and delete them."""

import errno
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, AF_UNSPEC
from struct import Struct

from tortie.core.errors import KernelError
from tortie.linux import codec
from tortie.linux.codec import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_NEWADDR,
    Message,
    attribute,
    attribute_u32,
    attributes,
    pack_address,
    read_u32,
    unpack_address,
)
from tortie.linux.netlink import NetlinkSocket

SCOPE_GLOBAL, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
FLAG_SECONDARY, FLAG_NODAD, FLAG_DADFAILED = 0x01, 0x02, 0x08
FLAG_DEPRECATED, FLAG_TENTATIVE, FLAG_PERMANENT = 0x20, 0x40, 0x80

_IFADDRMSG = Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_ADDRESS, _LOCAL, _FLAGS = 1, 2, 8


@dataclass(frozen=True, slots=True)
class Address:
    """One address of an interface; `peer` is the far end of a point-to-point address, else None."""

    address: str
    prefix: int
    ifindex: int
    scope: int = SCOPE_GLOBAL
    flags: int = 0
    peer: str | None = None

    @property
    def family(self) -> int:
        return codec.family_of(self.address)

    @property
    def cidr(self) -> str:
        return f"{self.address}/{self.prefix}"


@codec.encoder("address")
def add(ifindex: int, cidr: str, *, scope: int = SCOPE_GLOBAL, nodad: bool = False) -> Message:
    """Add `10.0.0.1/32`; adding what is there succeeds.

    `nodad` skips IPv6's duplicate address detection: the address can be used at once.
    """
    body = _body(ifindex, cidr, scope)
    if nodad:
        body += attribute_u32(_FLAGS, FLAG_NODAD)
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, "add", f"address {cidr}")


@codec.encoder("address")
def delete(ifindex: int, cidr: str) -> Message:
    """EADDRNOTAVAIL means that it was gone."""
    return Message(RTM_DELADDR, 0, _body(ifindex, cidr, SCOPE_GLOBAL), "delete", f"address {cidr}")


def dump(netlink: NetlinkSocket, family: int = AF_UNSPEC, ifindex: int = 0) -> list[Address]:
    """Addresses of the namespace, filtered by the kernel; an interface that is gone has none."""
    body = _IFADDRMSG.pack(family, 0, 0, 0, ifindex)
    try:
        answers = netlink.dump(Message(RTM_GETADDR, 0, body, "dump", "addresses"))
    except KernelError as err:
        if ifindex and err.errno == errno.ENODEV:
            return []
        raise
    found = [decode(answer.body) for answer in answers]
    return [one for one in found if one is not None and ifindex in (0, one.ifindex)]


@codec.decoder("address")
def decode(body: bytes) -> Address | None:
    """An address from an RTM_NEWADDR or RTM_DELADDR body; None for families other than IP."""
    family, prefix, flags, scope, ifindex = _IFADDRMSG.unpack_from(body)
    if family not in (AF_INET, AF_INET6):
        return None
    found = attributes(body, _IFADDRMSG.size)
    remote = found.get(_ADDRESS)
    local = found.get(_LOCAL, remote)  # absent in IPv6 unless there is a peer
    if local is None:
        return None
    return Address(
        address=unpack_address(local),
        prefix=prefix,
        ifindex=ifindex,
        scope=scope,
        flags=read_u32(found[_FLAGS]) if _FLAGS in found else flags,
        peer=unpack_address(remote) if remote is not None and remote != local else None,
    )


def _body(ifindex: int, cidr: str, scope: int) -> bytes:
    address, _, length = cidr.partition("/")
    packed = pack_address(address)
    if not length.isdecimal() or int(length) > len(packed) * 8:
        raise KernelError("encode", f"address {cidr!r}", errno.EINVAL, "not an address with a prefix length")
    head = _IFADDRMSG.pack(AF_INET if len(packed) == 4 else AF_INET6, int(length), 0, scope, ifindex)
    return head + attribute(_LOCAL, packed) + attribute(_ADDRESS, packed)
