"""Routes that the other back-end left in the kernel when the node's speaker was changed.

They carry the traffic until the new speaker has heard its peers. ExaBGP's agent has routes that come
before BIRD's (IPv4), or takes them over (IPv6), and removes the rest when its start-up is over. BIRD does
neither: what it finds must look as if an earlier run of its own had left it.

What a routing daemon has outside the pools is not ours to judge: FRR, too, writes protocol 186.
"""

import logging
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from tortie.bgp.config import Config
from tortie.bgp.prefix import canonical, network
from tortie.bgp.route import NORMAL_METRIC
from tortie.core.errors import KernelError
from tortie.core.reconcile import Reconciler
from tortie.linux import routes
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.route_target import RouteTarget
from tortie.linux.routes import PROTOCOL_BGP, PROTOCOL_BIRD, TABLE_MAIN, Route, RouteKey

_log = logging.getLogger(__name__)


async def remove(protocol: int, pools: Iterable[str]) -> int:
    """How many of the protocol's routes inside the pools were there. Raises KernelError."""
    inside = [network(pool) for pool in pools]

    def theirs(route: Route) -> bool:
        return route.protocol == protocol and any(one.contains(network(route.dst)) for one in inside)

    with NetlinkSocket() as netlink:
        target = RouteTarget(netlink, theirs, protocol=protocol)
        found = len(await target.read())
        if found:
            await Reconciler[RouteKey, Route]("leftover routes", target).sync()
        return found


def agents(config: Config) -> Callable[[str], bool]:
    """Whether the agent can have made the route to a prefix, with this configuration."""
    pools = [network(one.cidr) for one in config.pools]
    others = {one.cidr for one in config.blocks} | set(config.services)
    others |= {canonical(one.address) for one in config.peers if one.gateway}
    return lambda prefix: prefix in others or any(one.contains(network(prefix)) for one in pools)


def give_to_bird(netlink: NetlinkSocket, family: int, ours: Callable[[str], bool]) -> int:
    """Make the agent's routes of a family BIRD's, and tell how many; at no moment is there none.

    `ours`: of a prefix. They get the metric that BIRD would give them, if it gives them the ordinary one:
    then it has nothing to change. What the kernel refuses stays as it is, and is logged. Raises KernelError
    if the routes cannot be read.
    """
    given = 0
    for route in routes.dump(netlink, family, TABLE_MAIN, PROTOCOL_BGP):
        if not ours(route.dst):
            continue
        try:
            _give(netlink, route)
        except KernelError as err:
            _log.error("the route to %s does not become BIRD's: %s", route.dst, err)
        else:
            given += 1
    return given


def _give(netlink: NetlinkSocket, route: Route) -> None:
    """`onlink` goes where the kernel finds the gateway without it, because BIRD does not set it."""
    new = as_birds(route)
    plain = replace(new, onlink=False, nexthops=tuple(replace(h, onlink=False) for h in new.nexthops))
    if netlink.request([routes.replace_message(plain)]) != [None]:
        netlink.execute(routes.replace_message(new))
    if new.key != route.key:
        netlink.execute(routes.delete_message(route.key, PROTOCOL_BGP))


def as_birds(route: Route) -> Route:
    """Blackholes, which stand for our own blocks, have no metric with BIRD either."""
    metric = NORMAL_METRIC if route.hops else route.metric
    return replace(route, protocol=PROTOCOL_BIRD, metric=metric)
