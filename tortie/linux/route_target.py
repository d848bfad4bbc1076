"""Makes the kernel's routes what they should be: the reconciler's target for routes.

One dump per family and read(), whatever the number of interfaces. One difference is carried out as
deletions, then replacements, in batches; between batches the event loop runs, so that 20,000 routes
never hold up a keep-alive for more than a few milliseconds.

Invariants:
- Only routes for which `owns` is true are listed, and only what was listed or written is deleted.
- A wish takes over the route that holds its key, whoever made it: the kernel's replace works so, and
  BIRD's leftovers must be adopted on the way from Calico.
- Deletion is narrowed to the protocol and next hop that were read or written, so a route that another
  daemon has put beside ours, or since in its place, stays.

What the kernel adds to the task (tests/linux/test_linux_route_target.py shows each):
- A key can hold several routes: by append in both families, and in IPv6 because replace looks for a
  route that likewise has, or has not, a gateway and lets the other kind stand. Replace then hits an
  arbitrary one, so all ours are deleted one by one and the wish is created anew.
- Of these the dump leaves out what stands between two ways of an IPv6 multipath route: it goes on behind
  the last way (fib6_dump_node() in net/ipv6/ip6_fib.c). A wish without a gateway could hit just that
  unseen route for ever, so a multipath route in its place is deleted first.
- In IPv6 a gateway within the route's own destination (a VXLAN tunnel's far end) must not be reached by
  another interface: not even by the route that is to be replaced, which therefore goes first.
- Deleting metric 0 in IPv4 matches any metric. If ours with a higher metric stand under the same
  destination, they are written again in the same batch.
"""

import asyncio
import errno
import ipaddress
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from socket import AF_INET, AF_INET6

from tortie.core.errors import KernelError
from tortie.linux import routes
from tortie.linux.codec import Message
from tortie.linux.netlink import BATCH, NetlinkSocket
from tortie.linux.routes import NextHop, Route, RouteKey, delete_message, replace_message

_DECODE_AT_ONCE = 1000  # routes decoded before the loop runs again: about 5 ms

Step = tuple[RouteKey, Message]


class RouteTarget:
    """A reconcile.Target[RouteKey, Route] for the routes that `owns` says are ours.

    `table` None reads all tables; `protocol` lets the kernel filter when all ours have the same one;
    `one_each`: no two of ours have the same destination.
    """

    def __init__(
        self,
        netlink: NetlinkSocket,
        owns: Callable[[Route], bool],
        *,
        families: Iterable[int] = (AF_INET, AF_INET6),
        table: int | None = routes.TABLE_MAIN,
        protocol: int = 0,
        one_each: bool = False,
    ) -> None:
        self._netlink = netlink
        self._owns = owns
        self._families = tuple(families)
        self._table = table
        self._protocol = protocol
        self._one_each = one_each
        self._known: dict[RouteKey, Route] = {}  # key -> ours, as read or written last
        self._crowded: dict[RouteKey, list[Route]] = {}  # key -> all of ours, where there are several

    async def read(self) -> Mapping[RouteKey, Route]:
        """Our routes that are there now. Raises KernelError if they cannot be listed."""
        known: dict[RouteKey, Route] = {}
        crowded: dict[RouteKey, list[Route]] = {}
        for family in self._families:
            bodies = routes.dump_frames(self._netlink, family, self._table, self._protocol)
            for start in range(0, len(bodies), _DECODE_AT_ONCE):
                for route in self._ours(bodies[start : start + _DECODE_AT_ONCE]):
                    if (key := route.key) in known:
                        crowded.setdefault(key, [known[key]]).append(route)
                    else:
                        known[key] = route
                await asyncio.sleep(0)
        self._known, self._crowded = known, crowded
        return dict(known)

    async def apply(
        self, update: Mapping[RouteKey, Route], delete: Collection[RouteKey]
    ) -> Mapping[RouteKey, str]:
        """Deletions, then replacements. Returns the kernel's reason for each key it refused."""
        if not self._known.keys() >= set(delete):
            await self.read()  # keys learned from events: see what stands there before deleting it
        failed: dict[RouteKey, str] = {}
        making_room = [key for key, wish in update.items() if self._must_make_room(key, wish)]
        await self._carry_out(self._deletions(delete, update), failed)
        await self._carry_out(self._deletions(making_room, update), failed)
        await self._carry_out(self._replacements(update, failed), failed)
        if blocked := [key for key in failed if key in update and _leads_to_its_gateway(update[key])]:
            for key in blocked:
                del failed[key]
            await self._carry_out(self._anew(blocked, update), failed)
        for key in delete:
            self._known.pop(key, None)
        self._known.update({key: route for key, route in update.items() if key not in failed})
        for key in self._crowded.keys() & {*delete, *making_room} - failed.keys():
            del self._crowded[key]
        return failed

    def same(self, desired: Route, actual: Route) -> bool:
        """Never so while the key holds several routes, of which `actual` is but one."""
        if self._crowded and desired.key in self._crowded:
            return False
        return desired is actual or routes.same(desired, actual)

    # --- steps ----------------------------------------------------------------------------------

    def _ours(self, bodies: Iterable[bytes]) -> Iterator[Route]:
        for body in bodies:
            route = routes.decode(body)
            if route is not None and self._owns(route):
                yield route

    def _must_make_room(self, key: RouteKey, wish: Route) -> bool:
        """Whether the kernel's replace may let stand what is there, as listed or written."""
        if key in self._crowded:
            return True
        there = self._known.get(key)
        if there is None or not there.nexthops or ":" not in key.dst:
            return False
        return not any(hop.gateway for hop in wish.hops)

    def _deletions(self, keys: Collection[RouteKey], update: Mapping[RouteKey, Route]) -> Iterator[Step]:
        for key in keys:
            if (route := self._known.get(key)) is not None:
                for one in self._crowded.get(key, (route,)):
                    yield key, delete_message(key, one.protocol, _only_hop(one))
        yield from self._collateral(keys, update)

    def _collateral(self, keys: Collection[RouteKey], update: Mapping[RouteKey, Route]) -> Iterator[Step]:
        """Ours that an IPv4 deletion of metric 0 hits when its own target has just gone."""
        if self._one_each:
            return
        endangered = {(key.dst, key.table, key.tos) for key in keys if key.metric == 0}
        if not endangered:
            return
        leaving = {*keys, *update}
        for key, route in self._known.items():
            if (key.dst, key.table, key.tos) in endangered and key not in leaving:
                yield key, replace_message(route)

    def _replacements(self, update: Mapping[RouteKey, Route], failed: dict[RouteKey, str]) -> Iterator[Step]:
        for key, route in update.items():
            try:
                yield key, replace_message(route)
            except KernelError as err:  # a value without wire form concerns nobody else
                failed[key] = str(err)

    def _anew(self, keys: Iterable[RouteKey], update: Mapping[RouteKey, Route]) -> Iterator[Step]:
        for key in keys:
            yield key, delete_message(key)
            yield key, replace_message(update[key])

    async def _carry_out(self, steps: Iterator[Step], failed: dict[RouteKey, str]) -> None:
        while batch := list(islice(steps, BATCH)):
            results = self._netlink.request([message for _, message in batch])
            for (key, message), error in zip(batch, results, strict=True):
                if error is not None and not (message.operation == "delete" and error.errno == errno.ESRCH):
                    failed[key] = str(error)
            await asyncio.sleep(0)


def _only_hop(route: Route) -> NextHop | None:
    """The way that tells this route from others under its key; none for multipath and blackholes.

    Without one the kernel takes a multipath route as a whole, with one it takes that way out of it.
    """
    hops = route.hops
    return hops[0] if len(hops) == 1 else None


def _leads_to_its_gateway(route: Route) -> bool:
    """Whether an IPv6 route's gateway is in its destination."""
    if route.gateway is None or ":" not in route.dst:
        return False
    return ipaddress.IPv6Address(route.gateway) in ipaddress.IPv6Network(route.dst)
