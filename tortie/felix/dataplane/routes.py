"""The routes felix wants, which of the kernel's routes are its own, and what else a route's end means.

Several objects may want a route to the same destination (two endpoints that claim one address, a block and
what it was borrowed from); RouteTable says who gets it. The target below makes one more promise: when a
single address leaves an interface, connections tracked for it are forgotten before anybody else gets a
route to it, so that no new owner inherits them.
(Reference: dataplane sheet 1.4, 2.1, 2.5, 5; felix/routetable.)
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from tortie.core.errors import KernelError
from tortie.felix.calc import canonical
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.tunnels import IPIP, VXLAN
from tortie.linux.route_target import RouteTarget
from tortie.linux.routes import (
    PROTOCOL_BGP,
    PROTOCOL_BIRD,
    PROTOCOL_BOOT,
    PROTOCOL_CALICO,
    PROTOCOL_KERNEL,
    Route,
    RouteKey,
    RouteType,
)

_log = logging.getLogger(__name__)

Routes = Duty[RouteKey, Route]
_PATIENCE = 1.0  # seconds one address's clean-up may hold up the routes of others; it takes milliseconds
_CLEANING_AT_ONCE = 8  # each is a program that reads the table of connections: a drained node has a thousand
GRACE = 10.0  # seconds an unexpected route of a workload's interface is left alone: CNI may have just made it


class RouteClass(IntEnum):
    """Who wins a destination: the lowest (Calico's order, as far as felix writes such routes)."""

    LOCAL_WORKLOAD = 0
    VXLAN_SAME_SUBNET = 3
    VXLAN_TUNNEL = 4
    IPIP_SAME_SUBNET = 5
    IPIP_TUNNEL = 6
    NO_ENCAP = 7
    BLACKHOLE = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    route_class: RouteClass
    route: Route

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller is better; of one class the newest interface wins."""
        return self.route_class, -(self.route.ifindex or 0)


class RouteTable:
    """All wishes for routes, by who wishes; the best for each key goes to the duty."""

    def __init__(self, duty: Routes, claim: Callable[[RouteKey], None] = lambda _key: None) -> None:
        """`claim(key)` is told of every key that is wished for."""
        self._duty, self._claim = duty, claim
        self._wishes: dict[Hashable, tuple[Candidate, ...]] = {}  # who -> what they want
        self._candidates: dict[RouteKey, dict[Hashable, Candidate]] = {}  # key -> who -> candidate

    def want(self, who: Hashable, candidates: Iterable[Candidate]) -> None:
        """Replace everything `who` wants."""
        wishes = tuple(candidates)
        before = self._wishes.get(who, ())
        if wishes == before:
            return
        if wishes:
            self._wishes[who] = wishes
        else:
            del self._wishes[who]
        for candidate in before:
            self._candidates[candidate.route.key].pop(who, None)
        for candidate in wishes:
            self._candidates.setdefault(candidate.route.key, {})[who] = candidate
        for key in {candidate.route.key for candidate in (*before, *wishes)}:
            self._settle(key)

    def refuse(self, keys: Iterable[RouteKey]) -> None:
        """Nobody wants these: what the kernel has there goes at once, whoever made it."""
        for key in keys:
            self._claim(key)
        self._duty.touch()

    def wanted_by(self, who: Hashable) -> tuple[Candidate, ...]:
        return self._wishes.get(who, ())

    def _settle(self, key: RouteKey) -> None:
        found = self._candidates[key]
        if not found:
            del self._candidates[key]
            self._duty.drop(key)
        else:
            self._claim(key)
            self._duty.put(key, min(found.values(), key=lambda one: one.rank).route)


# --- whose is a route of the kernel -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ownership:
    """Which routes in the main table are felix's to delete; all others are never touched."""

    name_of: Callable[[int], str]  # ifindex -> interface name, '' if unknown
    prefixes: tuple[str, ...]
    protocol: int = PROTOCOL_BOOT  # of device routes
    remove_external: bool = True
    ipip: bool = False  # felix writes the routes over tunl0: BIRD's there are leftovers
    bgp_peers: dict[str, str] = field(default_factory=dict)  # interfaces over which BGP learns -> BGPPeer

    def owns(self, route: Route) -> bool:
        exclusive = PROTOCOL_CALICO if self.protocol == PROTOCOL_BOOT else self.protocol
        if route.protocol == exclusive:
            return True
        if route.ifindex is None or route.dst == "fe80::/64":  # the kernel's own, on every interface
            return False
        name = self.name_of(route.ifindex)
        if name in VXLAN.values():  # but the kernel's, to the device's own address
            return route.protocol != PROTOCOL_KERNEL
        if name == IPIP:
            return self.ipip and route.protocol == PROTOCOL_BIRD
        if not name.startswith(self.prefixes):
            return False
        if name in self.bgp_peers and route.protocol in (PROTOCOL_BGP, PROTOCOL_BIRD):
            return False
        return self.remove_external or route.protocol in (self.protocol, PROTOCOL_CALICO)

    def on_workload(self, route: Route) -> bool:
        return route.ifindex is not None and self.is_workload(route.ifindex)

    def is_workload(self, ifindex: int) -> bool:
        return self.name_of(ifindex).startswith(self.prefixes)


# --- the target ---------------------------------------------------------------------------------


class WorkloadRouteTarget:
    """reconcile.Target for felix's routes: the kernel's, plus forgetting connections of what moved away.

    `forget(address)` deletes tracked connections. It runs in the background after a deletion; a new route
    to that address waits until it is done.
    """

    def __init__(
        self,
        kernel: RouteTarget,
        ownership: Ownership,
        forget: Callable[[str], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._kernel, self._ownership = kernel, ownership
        self._forget, self._clock = forget, clock
        self.wanted: Mapping[RouteKey, Route] = {}  # set once the duty exists
        self._known: dict[RouteKey, Route] = {}
        self._first_seen: dict[RouteKey, float] = {}
        self._mine: set[RouteKey] = set()  # those that were wished for once: no grace for them
        self._metrics: set[int] = set()  # of those, and of all before: a handful
        self._forgetting: dict[str, asyncio.Task[None]] = {}  # address -> its clean-up
        self._room = asyncio.Semaphore(_CLEANING_AT_ONCE)

    async def read(self) -> Mapping[RouteKey, Route]:
        before, self._known = self._known, dict(await self._kernel.read())
        now = self._clock()
        self._first_seen = {key: self._first_seen.get(key, now) for key in self._known}
        self._mine &= self._known.keys() | self.wanted.keys()
        for key, route in before.items():  # the kernel says nothing when an interface takes its routes along
            self._left(key, route, self._known.get(key))
        return dict(self._known)

    async def apply(
        self, update: Mapping[RouteKey, Route], delete: Collection[RouteKey]
    ) -> Mapping[RouteKey, str]:
        """Deletions and removals from old interfaces first, then clean-ups, then what is new.

        A route that only gets another metric goes last: its address is never without one.
        """
        moving = [key for key, route in update.items() if self._moves(key, route)]
        known = {key: self._known[key] for key in delete if key in self._known}
        replaced = {key: new for key, route in known.items() if (new := self._successor(key, route))}
        ending = [*(key for key in delete if key not in replaced), *moving]
        failed = dict(await self._kernel.apply({}, ending))
        for key in ending:
            route = self._known.pop(key, None)
            if key not in failed and route is not None:
                self._left(key, route, None)
        for key in await self._still_forgetting(update):
            failed[key] = "waits until the connections of the address's last owner are forgotten"
        ready = {key: route for key, route in update.items() if key not in failed}
        failed.update(await self._kernel.apply(ready, ()))
        self._known.update({key: route for key, route in ready.items() if key not in failed})
        failed.update({key: failed[new] for key, new in replaced.items() if new in failed})
        if late := replaced.keys() - failed.keys():
            failed.update(await self._kernel.apply({}, late))
            for key in late - failed.keys():
                del self._known[key]
        return failed

    def same(self, desired: Route, actual: Route) -> bool:
        return self._kernel.same(desired, actual)

    def claim(self, key: RouteKey) -> None:
        """From now on a route under this key is felix's own business."""
        self._mine.add(key)
        self._metrics.add(key.metric)

    def spare(self, key: RouteKey, actual: Route) -> float:
        """How long an unexpected route may stay: CNI makes its route before we hear of the endpoint."""
        if key in self._mine or not self._ownership.on_workload(actual):
            return 0.0
        if any(route.ifindex == actual.ifindex for route in self.wanted.values()):
            return 0.0  # its endpoint is known, and with it all routes it is to have
        seen = self._first_seen.setdefault(key, self._clock())
        return max(0.0, seen + GRACE - self._clock())

    def noticed(self, key: RouteKey, route: Route | None) -> None:
        """An event told of a route of ours."""
        before = self._known.pop(key, None)
        if route is None:
            self._first_seen.pop(key, None)
        else:
            self._known[key] = route
            self._first_seen.setdefault(key, self._clock())
        if before is not None:
            self._left(key, before, route)

    def interface_lost(self, ifindex: int) -> list[RouteKey]:
        """An interface is gone or down, and its IPv4 routes with it, which the kernel does not tell."""
        lost = [key for key, route in self._known.items() if route.ifindex == ifindex]
        for key in lost:
            self.noticed(key, None)
        return lost

    async def close(self) -> None:
        """Stop clean-ups that are under way."""
        for task in list(self._forgetting.values()):
            task.cancel()
        await asyncio.gather(*self._forgetting.values(), return_exceptions=True)

    # --- connections ----------------------------------------------------------------------------

    def _moves(self, key: RouteKey, route: Route) -> bool:
        known = self._known.get(key)
        return known is not None and self._is_workload_address(known) and known.ifindex != route.ifindex

    def _is_workload_address(self, route: Route) -> bool:
        """Only addresses that a workload had here; a change of way between nodes cuts nothing off."""
        single = canonical.is_single(route.dst) and route.type is RouteType.UNICAST
        return single and route.gateway is None

    def _successor(self, key: RouteKey, route: Route) -> RouteKey | None:
        """What a workload's address is to have on the same interface instead: a route with another metric."""
        if self._is_workload_address(route):
            for other in (key._replace(metric=metric) for metric in self._metrics - {key.metric}):
                if (wish := self.wanted.get(other)) is not None and wish.ifindex == route.ifindex:
                    return other
        return None

    def _start_forgetting(self, address: str) -> None:
        if address not in self._forgetting:
            task = asyncio.create_task(self._forget_connections(address), name=f"forget {address}")
            self._forgetting[address] = task
            task.add_done_callback(lambda _: self._forgetting.pop(address, None))

    async def _forget_connections(self, address: str) -> None:
        try:
            async with self._room:
                await self._forget(address)
        except KernelError as err:
            _log.warning("connections of %s, which left this node, stay tracked: %s", address, err)

    def _left(self, key: RouteKey, before: Route, now: Route | None) -> None:
        """Look after the connections of an address that is no longer where it was."""
        here = now is not None and now.ifindex == before.ifindex
        if self._is_workload_address(before) and not here and not self._successor(key, before):
            self._start_forgetting(canonical.address_of(key.dst))

    async def _still_forgetting(self, keys: Collection[RouteKey]) -> list[RouteKey]:
        """Those of `keys` whose address is not cleaned up even after a moment's patience."""
        busy = [key for key in keys if canonical.address_of(key.dst) in self._forgetting]
        if busy:
            tasks = [self._forgetting[canonical.address_of(key.dst)] for key in busy]
            await asyncio.wait(tasks, timeout=_PATIENCE)
        return [key for key in busy if canonical.address_of(key.dst) in self._forgetting]
