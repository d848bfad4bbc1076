"""Which way the kernel would send a packet now, by its routes and rules."""

from struct import Struct
from typing import NamedTuple

from tortie.linux.codec import (
    RTM_GETROUTE,
    Message,
    attribute,
    attributes,
    decoder,
    family_of,
    pack_address,
    read_u32,
)
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.routes import RouteType

_RTMSG = Struct(
    "=8BI"
)  # struct rtmsg: family, length of dst, of src, TOS, table, protocol, scope, type; flags
_DST, _OIF = 1, 4  # RTA_…


class Way(NamedTuple):
    """`local`: to the host itself. `unicast`: to one receiver, elsewhere. `ifindex` 0: by no interface."""

    local: bool
    unicast: bool
    ifindex: int


def lookup(netlink: NetlinkSocket, address: str) -> Way:
    """Raises KernelError where no route leads to the address, with errno as the kernel says."""
    packed = pack_address(address)
    head = _RTMSG.pack(family_of(address), len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    asked = Message(RTM_GETROUTE, 0, head + attribute(_DST, packed), "look up", f"route to {address}")
    return _decode(netlink.get(asked).body)


@decoder("route")
def _decode(body: bytes) -> Way:
    kind = _RTMSG.unpack_from(body)[7]
    found = attributes(body, _RTMSG.size)
    ifindex = read_u32(found[_OIF]) if _OIF in found else 0
    return Way(kind == RouteType.LOCAL, kind == RouteType.UNICAST, ifindex)
