"""From best paths to kernel routes: which prefix gets which route, or why it gets none.

The rules, first match decides (reference: BGP facts, 3.4; the issue narrows Calico's last one):
0. in a range of services: nothing, kube-proxy takes what goes there.
1. own block, or an address of a service: `blackhole`, so that traffic to addresses without a pod ends
   here. Not where felix programs the pool.
2. outside all pools: nothing. What a router announces besides is its business; the kernel's default
   route stays what the host's owner made it.
3. in a pool that is not ours to program (VXLAN, or moved to felix): nothing.
4. next hop reached by WireGuard: nothing, felix has that route.
5. through the tunnel where the pool says so, else by the way to the next hop, `onlink`; paths that
   are equally good share the traffic.

IPv4 routes have metric 0 (IPv6: 1024, the kernel's name for it): they beat leftovers of BIRD (1024) and
look like every Calico user knows them. Pure.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tortie.bgp.bestpath import Choice
from tortie.bgp.config import Config, Pool
from tortie.bgp.nexthop import Resolver
from tortie.bgp.prefix import Network, network, parse, version
from tortie.bgp.route import Path, Source
from tortie.linux.routes import PROTOCOL_BGP, NextHop, Route, RouteType

TUNNEL = "tunl0"
LOCAL_WORKLOAD = "route of a local workload"  # felix has it: the one reason that is no news


class Interfaces(NamedTuple):
    """What fib needs to know of interfaces: name -> index, and own address -> index."""

    by_name: dict[str, int]
    by_address: dict[str, int]


class Fib:
    """The configuration, prepared."""

    def __init__(self, config: Config) -> None:
        pools = [(network(pool.cidr), pool) for pool in config.pools]
        self._pools = sorted(pools, key=lambda one: -one[0].length)  # most specific first
        self._subnets = [network(subnet) for subnet in config.local.subnets]
        self._services = [network(cidr) for cidr in config.service_ranges]
        self._excluded = frozenset(config.excluded_next_hops)
        self._session_address = {peer.address: peer.local_address for peer in config.peers}
        self._config = config

    def routes(
        self, prefixes: Iterable[str], choice: Choice, resolver: Resolver, interfaces: Interfaces
    ) -> Iterator[tuple[str, Route | str]]:
        """The kernel route for each prefix with this choice, or the reason why there is none."""
        ways: dict[str | None, list[NextHop] | str] = {}  # pool -> next hops for the choice, or why none
        for prefix in prefixes:
            net = parse(prefix)
            if self._services and any(one.contains(net) for one in self._services):
                yield prefix, "in a range of services"
                continue
            pool = self._pool(net)
            if choice.best.source is Source.STATIC:
                yield prefix, self._own_block(prefix, pool)
                continue
            name = pool.cidr if pool else None
            if name not in ways:
                ways[name] = self._ways(choice, pool, resolver, interfaces)
            found = ways[name]
            yield prefix, found if isinstance(found, str) else unicast(prefix, found)

    def _ways(
        self, choice: Choice, pool: Pool | None, resolver: Resolver, interfaces: Interfaces
    ) -> list[NextHop] | str:
        if choice.best.source in (Source.WORKLOAD, Source.LEAVING):
            return LOCAL_WORKLOAD
        if choice.best.source is Source.DIRECT:
            return "connected network"
        if pool is None:
            return "outside all pools"
        if not pool.programmed:
            return "not programmed by BGP"
        if choice.best.local:
            return "route of the host's owner"
        hops = sorted(set(self._hops(choice.equal, pool, resolver, interfaces)), key=str)
        return hops or self._no_hop(choice, pool, interfaces)

    def _own_block(self, prefix: str, pool: Pool | None) -> Route | str:
        if pool is not None and not pool.programmed:
            return "not programmed by BGP"
        return Route(prefix, type=RouteType.BLACKHOLE, protocol=PROTOCOL_BGP)

    def _hops(
        self, paths: Iterable[Path], pool: Pool, resolver: Resolver, interfaces: Interfaces
    ) -> Iterable[NextHop]:
        for path in paths:
            if path.next_hop in self._excluded:
                continue
            if self._tunnelled(path.next_hop, pool):
                if (tunnel := interfaces.by_name.get(TUNNEL)) is not None:
                    yield NextHop(path.next_hop, tunnel, onlink=True)
                continue
            link = interfaces.by_address.get(self._session_address.get(path.peer, ""), 0)
            if (way := resolver.way(path.next_hop, link)) is not None:
                yield NextHop(way.gateway, way.ifindex, onlink=True)

    def _tunnelled(self, next_hop: str, pool: Pool) -> bool:
        if pool.tunnel == "never" or version(next_hop) == 6:  # IPIP is IPv4's
            return False
        if pool.tunnel == "always":
            return True
        target = network(next_hop)
        return not any(subnet.contains(target) for subnet in self._subnets)

    def _no_hop(self, choice: Choice, pool: Pool, interfaces: Interfaces) -> str:
        next_hop = choice.best.next_hop
        if next_hop in self._excluded:
            return "next hop reached by WireGuard"
        if self._tunnelled(next_hop, pool) and TUNNEL not in interfaces.by_name:
            return f"no interface {TUNNEL}"
        return f"next hop {next_hop} unreachable"

    def _pool(self, net: Network) -> Pool | None:
        """The most specific pool that holds the prefix."""
        for pool_net, pool in self._pools:
            if pool_net.contains(net):
                return pool
        return None


def unicast(prefix: str, hops: list[NextHop]) -> Route:
    """One way, or several that share the traffic. `onlink`: the kernel need not find the gateway itself."""
    if len(hops) == 1:
        (hop,) = hops
        return Route(
            prefix, gateway=hop.gateway, ifindex=hop.ifindex, onlink=hop.onlink, protocol=PROTOCOL_BGP
        )
    return Route(prefix, nexthops=tuple(hops), protocol=PROTOCOL_BGP)
