"""Kernel routes as values: what a route is, its wire form, and when two are the same.

IPv4 and IPv6 go one way through this file. The kernel's differences between them are all in
normalise(); route_target.py makes a set of routes so.

What the kernel does (seen on Linux 6.18; shared wording with Calico's felix/routetable/defs.go):
- IPv6 has no metric 0: it is stored as 1024. Every IPv6 route is reported with scope global.
- Blackhole, unreachable, prohibit and throw routes have no interface in IPv4 and `lo` in IPv6.
- A multipath route with one next hop is reported as a plain route; an MTU above 65520 as 65520.
- Deleting metric 0 in IPv4 matches any metric: the lowest goes. Elsewhere the metric is exact.
"""

import errno
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from tortie.core.errors import KernelError
from tortie.linux import codec
from tortie.linux.codec import (
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    Message,
    attribute,
    attribute_u32,
    attributes,
    nested,
    pack_address,
    read_u32,
    unpack_address,
)
from tortie.linux.netlink import NetlinkSocket

TABLE_MAIN, TABLE_LOCAL = 254, 255
SCOPE_GLOBAL, SCOPE_LINK, SCOPE_HOST, SCOPE_NOWHERE = 0, 253, 254, 255
PROTOCOL_KERNEL, PROTOCOL_BOOT, PROTOCOL_STATIC = 2, 3, 4
PROTOCOL_BIRD, PROTOCOL_CALICO, PROTOCOL_BGP = 12, 80, 186
IPV6_DEFAULT_METRIC = 1024  # what the kernel makes of 0 (IP6_RT_PRIO_USER)


class RouteType(IntEnum):
    """RTN_* of linux/rtnetlink.h."""

    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8
    THROW = 9


_TYPES = {int(kind): kind for kind in RouteType}  # number -> RouteType
_WITHOUT_INTERFACE = frozenset(
    (RouteType.BLACKHOLE, RouteType.UNREACHABLE, RouteType.PROHIBIT, RouteType.THROW)
)

_RTMSG = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEXTHOP = Struct("=HBBi")  # length, flags, weight - 1, interface
_ONLINK = 4  # RTNH_F_ONLINK
_CLONED = 0x200  # RTM_F_CLONED: a cache entry, not configuration
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH, _TABLE, _VIA = 1, 4, 5, 6, 7, 8, 9, 15, 18
_METRIC_MTU = 2  # RTAX_MTU
_MTU_MAX = 65520  # ip_metrics_convert() in net/ipv4/metrics.c cuts down to this
_VIA_FAMILY = Struct("=H")
_LENGTHS = {  # family -> prefix length as written, without leading zeros -> its number, bits of hosts in it
    family: {str(length): (length, (1 << (bits - length)) - 1) for length in range(bits + 1)}
    for family, bits in ((AF_INET, 32), (AF_INET6, 128))
}
_NO_LENGTH = -1, 0
_REPLACE = codec.NLM_F_CREATE | codec.NLM_F_REPLACE
_ALIKE = 1024  # encoded next hops remembered: a cluster's nodes, twice as many as Calico advises for a mesh


class RouteKey(NamedTuple):
    """What makes a route one of a kind; `metric` as the kernel stores it (never 0 in IPv6)."""

    dst: str
    table: int
    metric: int
    tos: int


class NextHop(msgspec.Struct, frozen=True, gc=False):
    """One way of a multipath route; `weight` is 1 to 256."""

    gateway: str | None = None
    ifindex: int | None = None
    weight: int = 1
    onlink: bool = False


class _To(msgspec.Struct, frozen=True):
    dst: str  # the one field that may be given without its name


class Route(_To, frozen=True, kw_only=True, gc=False):
    """A route as wished for or as read. `dst` is a canonical CIDR: `10.0.0.0/26`, `fd00::/8`, `::/0`.

    `ifindex` None: no interface, or for a wish with a gateway: whichever the kernel finds.
    `gateway` may be of the other family (IPv4 over IPv6, RFC 8950). `mtu` 0: none set.
    Two or more `nexthops` make it multipath; gateway, ifindex and onlink are then unused.
    """

    ifindex: int | None = None
    gateway: str | None = None
    onlink: bool = False
    type: RouteType = RouteType.UNICAST
    scope: int = SCOPE_GLOBAL
    protocol: int = PROTOCOL_BOOT
    metric: int = 0
    table: int = TABLE_MAIN
    tos: int = 0
    src: str | None = None
    mtu: int = 0
    nexthops: tuple[NextHop, ...] = ()

    @property
    def family(self) -> int:
        return codec.family_of(self.dst)

    @property
    def key(self) -> RouteKey:
        metric = self.metric
        if not metric and ":" in self.dst:
            metric = IPV6_DEFAULT_METRIC
        return RouteKey(self.dst, self.table, metric, self.tos)

    @property
    def hops(self) -> tuple[NextHop, ...]:
        """The next hops, whether one or many; none for a route without interface."""
        if self.nexthops:
            return self.nexthops
        if self.type in _WITHOUT_INTERFACE:
            return ()
        return (NextHop(self.gateway, self.ifindex, onlink=self.onlink),)


def key_of(dst: str) -> RouteKey:
    """The key of a route to `dst` that says no more, without making one: Route(dst).key."""
    return RouteKey(dst, TABLE_MAIN, IPV6_DEFAULT_METRIC if ":" in dst else 0, 0)


# --- sameness -----------------------------------------------------------------------------------


def normalise(route: Route) -> Route:
    """The route as the kernel will report it, as far as that can be said beforehand."""
    if route.type in _WITHOUT_INTERFACE:
        route = replace(route, ifindex=None, gateway=None, onlink=False, nexthops=())
    elif len(route.nexthops) == 1:
        (hop,) = route.nexthops
        route = replace(route, gateway=hop.gateway, ifindex=hop.ifindex, onlink=hop.onlink, nexthops=())
    elif route.nexthops:
        hops = tuple(sorted(route.nexthops, key=_hop_order))
        route = replace(route, gateway=None, ifindex=None, onlink=False, nexthops=hops)
    if route.mtu > _MTU_MAX:
        route = replace(route, mtu=_MTU_MAX)
    if route.family == AF_INET6:
        route = replace(route, metric=route.metric or IPV6_DEFAULT_METRIC, scope=SCOPE_GLOBAL)
    return route


def same(desired: Route, actual: Route) -> bool:
    """Whether `actual`, as read from the kernel, is what `desired` asks for. Order of hops is free."""
    if desired == actual:
        return True
    desired, actual = normalise(desired), normalise(actual)
    if desired == actual:
        return True
    wanted, found = desired.hops, actual.hops
    if len(wanted) != len(found) or not all(map(_same_hop, wanted, found)):
        return False
    plain = {"ifindex": None, "gateway": None, "onlink": False, "nexthops": ()}
    return replace(desired, **plain) == replace(actual, **plain)


def _same_hop(wanted: NextHop, found: NextHop) -> bool:
    """A wish that leaves the interface to the kernel is content with any."""
    if wanted.ifindex is None and wanted.gateway is not None:
        return wanted == replace(found, ifindex=None)
    return wanted == found


def _hop_order(hop: NextHop) -> tuple[str, int, int]:
    return hop.gateway or "", hop.weight, hop.ifindex or 0


# --- wire form ----------------------------------------------------------------------------------


def replace_message(route: Route) -> Message:
    """Create the route or, atomically, replace what holds its (dst, table, metric, tos).

    The holder's protocol does not matter to the kernel: a foreign route with the same key goes.
    Raises KernelError (EINVAL) for a value that has no wire form.
    """
    family, prefix, dst = _pack_dst(route.dst)
    head, rest = _around(
        family, prefix, route.tos, route.table, route.protocol, route.scope, route.type, route.metric,
        route.ifindex, route.gateway, route.onlink, route.nexthops, route.src, route.mtu,
    )  # fmt: skip
    return Message(RTM_NEWROUTE, _REPLACE, head + dst + rest, "replace", f"route {route.dst}")


@lru_cache(_ALIKE)
@codec.encoder("route")
def _around(
    family: int, prefix: int, tos: int, table: int, protocol: int, scope: int, kind: RouteType, metric: int,
    ifindex: int | None, gateway: str | None, onlink: bool, nexthops: tuple[NextHop, ...], src: str | None,
    mtu: int,
) -> tuple[bytes, bytes]:  # fmt: skip
    """What comes before a route's destination and what after; thousands have the same."""
    parts = [_attribute_table(table)]
    if metric:
        parts.append(attribute_u32(_PRIORITY, metric))
    flags = 0
    if len(nexthops) > 1:
        parts.append(attribute(_MULTIPATH, b"".join([_pack_hop(hop, family) for hop in nexthops])))
    elif nexthops or kind not in _WITHOUT_INTERFACE:
        (hop,) = nexthops or (NextHop(gateway, ifindex, onlink=onlink),)
        flags = _ONLINK if hop.onlink else 0
        parts.append(_attributes_way(hop, family))
    if src is not None:
        parts.append(attribute(_PREFSRC, pack_address(src)))
    if mtu:
        parts.append(nested(_METRICS, attribute_u32(_METRIC_MTU, mtu)))
    head = _RTMSG.pack(family, prefix, 0, tos, _short_table(table), protocol, scope, kind, flags)
    return head + _head_dst(family, prefix), b"".join(parts)


def delete_message(key: RouteKey, protocol: int = 0, hop: NextHop | None = None) -> Message:
    """Delete by key, whatever else the route is; ESRCH means that it was gone.

    `protocol` and `hop` narrow it down, because the key alone can hit somebody else's route: metric 0
    in IPv4 means any, and a key can hold several routes. Of a multipath route in IPv6, `hop` takes
    away that way only.
    """
    family, prefix, dst = _pack_dst(key.dst)
    head, rest = _around_deleted(family, prefix, key.tos, key.table, key.metric, protocol, hop)
    return Message(RTM_DELROUTE, 0, head + dst + rest, "delete", f"route {key.dst}")


@lru_cache(_ALIKE)
@codec.encoder("route")
def _around_deleted(
    family: int, prefix: int, tos: int, table: int, metric: int, protocol: int, hop: NextHop | None
) -> tuple[bytes, bytes]:
    parts = [_attribute_table(table)]
    if metric:
        parts.append(attribute_u32(_PRIORITY, metric))
    if hop is not None:
        parts.append(_attributes_way(hop, family))
    head = _RTMSG.pack(family, prefix, 0, tos, _short_table(table), protocol, SCOPE_NOWHERE, 0, 0)
    return head + _head_dst(family, prefix), b"".join(parts)


@codec.decoder("route")
def decode(body: bytes) -> Route | None:
    """A route from an RTM_NEWROUTE or RTM_DELROUTE body.

    None for what is no configuration or cannot be expressed here: cache entries, other families,
    unknown types, and IPv6 routes that select by source.
    """
    family, prefix, source, tos, table, protocol, scope, number, flags = _RTMSG.unpack_from(body)
    kind = _TYPES.get(number)
    if kind is None or source or flags & _CLONED or family not in (AF_INET, AF_INET6):
        return None
    found = attributes(body, _RTMSG.size)
    dst = found.get(_DST)
    if dst is None:
        address = "0.0.0.0" if family == AF_INET else "::"
    else:
        address = unpack_address(dst)
    hops: tuple[NextHop, ...] = ()
    ifindex, gateway = _read_way(found)
    if kind in _WITHOUT_INTERFACE:
        ifindex = gateway = None
    elif (multipath := found.get(_MULTIPATH)) is not None:
        hops = _unpack_hops(multipath)
        ifindex = gateway = None
    metrics = found.get(_METRICS)
    mtu = attributes(metrics).get(_METRIC_MTU) if metrics else None
    src = found.get(_PREFSRC)
    return Route(
        f"{address}/{prefix}",
        ifindex=ifindex,
        gateway=gateway,
        onlink=bool(flags & _ONLINK) and not hops,
        type=kind,
        scope=scope,
        protocol=protocol,
        metric=read_u32(found[_PRIORITY]) if _PRIORITY in found else 0,
        table=read_u32(found[_TABLE]) if _TABLE in found else table,
        tos=tos,
        src=unpack_address(src) if src is not None else None,
        mtu=read_u32(mtu) if mtu is not None else 0,
        nexthops=hops,
    )


def _pack_dst(cidr: str) -> tuple[int, int, bytes]:
    """(family, prefix length, address); of a default route nothing is sent.

    Raises KernelError unless `cidr` is in canonical form: IPv6 in the kernel drops host bits without a
    word, and the route would then never be found again.
    """
    address, _, length = cidr.partition("/")
    packed = pack_address(address)
    family = AF_INET6 if ":" in address else AF_INET
    prefix, host_bits = _LENGTHS[family].get(length, _NO_LENGTH)
    if prefix < 0:
        raise KernelError("encode", f"route {cidr!r}", errno.EINVAL, "not a CIDR")
    if int.from_bytes(packed) & host_bits or (family == AF_INET6 and unpack_address(packed) != address):
        raise KernelError("encode", f"route {cidr!r}", errno.EINVAL, "not in canonical form")
    return family, prefix, packed if prefix else b""


def _head_dst(family: int, prefix: int) -> bytes:
    """Of the attribute that the address completes."""
    return codec.attribute_head(_DST, 4 if family == AF_INET else 16) if prefix else b""


def _short_table(table: int) -> int:
    return table if table < 256 else 0


def _attribute_table(table: int) -> bytes:
    return attribute_u32(_TABLE, table) if table > 255 else b""


@lru_cache(_ALIKE)
def _attributes_way(hop: NextHop, family: int) -> bytes:
    out = attribute_u32(_OIF, hop.ifindex) if hop.ifindex is not None else b""
    return out + _attribute_gateway(hop.gateway, family)


def _attribute_gateway(gateway: str | None, family: int) -> bytes:
    if gateway is None:
        return b""
    packed, gateway_family = pack_address(gateway), codec.family_of(gateway)
    if gateway_family == family:
        return attribute(_GATEWAY, packed)
    return attribute(_VIA, _VIA_FAMILY.pack(gateway_family) + packed)


def _pack_hop(hop: NextHop, family: int) -> bytes:
    if not 1 <= hop.weight <= 256:
        raise KernelError("encode", f"next hop {hop.gateway}", errno.EINVAL, f"weight {hop.weight}")
    gateway = _attribute_gateway(hop.gateway, family)
    size = _NEXTHOP.size + len(gateway)
    return _NEXTHOP.pack(size, _ONLINK if hop.onlink else 0, hop.weight - 1, hop.ifindex or 0) + gateway


def _unpack_hops(data: bytes) -> tuple[NextHop, ...]:
    hops: list[NextHop] = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        size, flags, weight, ifindex = _NEXTHOP.unpack_from(data, offset)
        if size < _NEXTHOP.size or offset + size > len(data):
            raise ValueError(f"next hop of {size} bytes at {offset} of {len(data)}")
        _, gateway = _read_way(attributes(data[offset : offset + size], _NEXTHOP.size))
        hops.append(NextHop(gateway, ifindex or None, weight + 1, bool(flags & _ONLINK)))
        offset += (size + 3) & ~3
    return tuple(hops)


def _read_way(found: dict[int, bytes]) -> tuple[int | None, str | None]:
    """(interface, gateway) among the attributes of a route or a next hop."""
    ifindex = read_u32(found[_OIF]) if _OIF in found else None
    if (gateway := found.get(_GATEWAY)) is not None:
        return ifindex, unpack_address(gateway)
    if (via := found.get(_VIA)) is not None:
        return ifindex, unpack_address(via[_VIA_FAMILY.size :])
    return ifindex, None


# --- reading ------------------------------------------------------------------------------------


def dump_frames(
    netlink: NetlinkSocket, family: int, table: int | None = None, protocol: int = 0, ifindex: int = 0
) -> list[bytes]:
    """The undecoded routes of one family, filtered by the kernel; see dump()."""
    head = _RTMSG.pack(family, 0, 0, 0, _short_table(table or 0), protocol, 0, 0, 0)
    body = head + _attribute_table(table or 0)
    if ifindex:
        body += attribute_u32(_OIF, ifindex)
    try:
        answers = netlink.dump(Message(RTM_GETROUTE, 0, body, "dump", "routes"))
    except KernelError as err:
        if err.errno in (errno.ENOENT, errno.ENODEV):  # no such table, no such interface: no routes
            return []
        raise
    return [answer.body for answer in answers if answer.kind == RTM_NEWROUTE]


def dump(
    netlink: NetlinkSocket,
    family: int | None = None,
    table: int | None = None,
    protocol: int = 0,
    ifindex: int = 0,
) -> list[Route]:
    """Routes of one family (AF_INET, AF_INET6) or both, in the kernel's order.

    Filters left out match everything; `ifindex` also finds multipath routes that use the interface.
    One dump per family whatever the filters: never call this once per interface.
    """
    families: Iterable[int] = (AF_INET, AF_INET6) if family is None else (family,)
    routes: list[Route] = []
    for one in families:
        for body in dump_frames(netlink, one, table, protocol, ifindex):
            route = decode(body)
            if route is not None:
                routes.append(route)
    return routes
