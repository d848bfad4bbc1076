"""How a BGP next hop is reached: recursive resolution through the kernel's other routes (RFC 4271, 5.1.3).

Owns a picture of the routes that are not ours. Longest prefix, then lowest metric; a route through a
gateway leads to that gateway (resolved once more if it has no interface of its own). Our own routes are
left out: a BGP route must not depend on another, or on itself.

Pure; kernel.py feeds it.
"""

from bisect import insort
from collections.abc import Collection, Iterable
from operator import neg
from typing import NamedTuple

from tortie.bgp.prefix import Network, is_link_local, network, number
from tortie.linux.routes import NextHop, Route, RouteKey, RouteType

_DEPTH = 4  # gateways behind gateways before it counts as a loop


class Way(NamedTuple):
    """Send to `gateway` over interface `ifindex`; `metric` of the route that says so."""

    gateway: str
    ifindex: int
    metric: int


class Resolver:
    def __init__(self) -> None:
        self._routes: dict[RouteKey, Route] = {}  # as in the kernel
        self._by_prefix: dict[Network, list[Route]] = {}  # prefix -> its routes, lowest metric first
        self._lengths: dict[int, list[int]] = {
            4: [],
            6: [],
        }  # version -> lengths in use, longest first
        self._known: dict[tuple[str, int], Way | None] = {}  # (next hop, link-local's interface) -> answer

    @property
    def routes(self) -> Collection[Route]:
        return self._routes.values()

    def replace(self, routes: Iterable[Route]) -> bool:
        """All routes at once; whether anything is different now."""
        wanted = {route.key: route for route in routes if _usable(route)}
        different = False
        for key in self._routes.keys() - wanted.keys():
            different |= self.change(self._routes[key], gone=True)
        for route in wanted.values():
            different |= self.change(route)
        return different

    def change(self, route: Route, gone: bool = False) -> bool:
        """One route is there or gone; whether anything is different now."""
        known = self._routes.get(route.key)
        wanted = None if gone or not _usable(route) else route
        if known == wanted:
            return False
        if known is not None:
            self._remove(known)
        if wanted is not None:
            self._add(wanted)
        self._known.clear()
        return True

    def way(self, next_hop: str, ifindex: int = 0) -> Way | None:
        """How to reach it, None if it cannot be; `ifindex` is where a link-local one lives."""
        key = (next_hop, ifindex)
        if key not in self._known:
            self._known[key] = self._find(next_hop, ifindex, _DEPTH)
        return self._known[key]

    def _find(self, next_hop: str, ifindex: int, depth: int) -> Way | None:
        if is_link_local(next_hop):
            return Way(next_hop, ifindex, 0) if ifindex else None
        route = self._lookup(next_hop)
        if route is None or route.type is not RouteType.UNICAST:
            return None
        hop = _first_hop(route)
        if hop.gateway is None:
            return Way(next_hop, hop.ifindex, route.metric) if hop.ifindex is not None else None
        if hop.ifindex is not None:
            return Way(hop.gateway, hop.ifindex, route.metric)
        further = self._find(hop.gateway, ifindex, depth - 1) if depth else None
        return further and further._replace(metric=route.metric)

    def _lookup(self, address: str) -> Route | None:
        version, value = number(address)
        bits = 32 if version == 4 else 128
        for length in self._lengths[version]:
            shift = bits - length
            if found := self._by_prefix.get(Network(version, value >> shift << shift, length)):
                return found[0]
        return None

    def _add(self, route: Route) -> None:
        self._routes[route.key] = route
        net = network(route.dst)
        routes = self._by_prefix.setdefault(net, [])
        if not routes and net.length not in self._lengths[net.version]:
            insort(self._lengths[net.version], net.length, key=neg)
        insort(routes, route, key=_metric)

    def _remove(self, route: Route) -> None:
        """The prefix length stays in use: there are few, and looking for one in vain is cheap."""
        del self._routes[route.key]
        net = network(route.dst)
        self._by_prefix[net].remove(route)
        if not self._by_prefix[net]:
            del self._by_prefix[net]


def _metric(route: Route) -> int:
    return route.metric


def _usable(route: Route) -> bool:
    """Routes of local addresses are no way to a next hop; unreachable ones count, as a refusal."""
    return route.type in (RouteType.UNICAST, RouteType.BLACKHOLE, RouteType.UNREACHABLE, RouteType.PROHIBIT)


def _first_hop(route: Route) -> NextHop:
    return route.hops[0]
