"""The kernel as the agent's router needs it: our routes made so, everything else watched.

One Reconciler owns all routes of protocol 186 in the main table, both families. The picture of foreign
routes, interface names and addresses is kept by events and listed again every 90 s.

After start nothing of the last run is deleted, and no route loses a next hop of it, until release(): see
startup.py.
"""

import asyncio
import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from random import Random

from tortie.bgp.fib import Interfaces
from tortie.bgp.nexthop import Resolver
from tortie.bgp.prefix import Network, network
from tortie.core.reconcile import Outcome, Reconciler
from tortie.linux import addresses, links, monitor, routes
from tortie.linux.codec import RTM_DELROUTE, RTM_NEWROUTE
from tortie.linux.monitor import Monitor
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.route_target import RouteTarget
from tortie.linux.routes import PROTOCOL_BGP, TABLE_MAIN, NextHop, Route, RouteKey

_RELIST = (
    90.0  # seconds, Felix's RouteRefreshInterval; up to a tenth more, so that nodes do not march in step
)
_HANDOVER = (
    10.0  # seconds until felix has taken over a pool; it needs a start for that, which takes one or two
)
_PROTOCOL_OFFSET = 5  # of the protocol in an undecoded route (struct rtmsg)
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


class _Target(RouteTarget):
    """While `holding`, what the last run left stays: unwanted routes, and next hops beside the wanted ones.

    What this run has wanted once is its own: it goes as soon as it is not wanted any more. Routes of pools
    that are felix's from now on wait for felix, which writes its own in their place.
    """

    def __init__(self, netlink: NetlinkSocket) -> None:
        super().__init__(netlink, owned, protocol=PROTOCOL_BGP, one_each=True)
        self.holding = True
        self._wanted: dict[RouteKey, set[NextHop]] = {}  # key -> next hops this run has wanted, while holding
        self._handed_over: dict[Network, float] = {}  # pool -> until when its routes wait, monotonic clock

    def note(self, wanted: Mapping[RouteKey, Route]) -> None:
        """These routes are wanted now."""
        if self.holding:
            for key, route in wanted.items():
                self._wanted.setdefault(key, set()).update(route.hops)

    def release(self) -> None:
        self.holding = False
        self._wanted.clear()

    def hand_over(self, pools: Iterable[str], now: float) -> None:
        self._handed_over = {one: until for one, until in self._handed_over.items() if until > now}
        self._handed_over |= dict.fromkeys(map(network, pools), now + _HANDOVER)

    def take_back(self, pools: Iterable[str]) -> None:
        for one in map(network, pools):
            self._handed_over.pop(one, None)

    def spare(self, key: RouteKey, _actual: Route) -> float:
        """For Reconciler."""
        if self.holding and key not in self._wanted:
            return inf
        if not self._handed_over:
            return 0.0
        net, now = network(key.dst), time.monotonic()
        waits = (until - now for one, until in self._handed_over.items() if one.contains(net))
        return max(0.0, max(waits, default=0.0))

    def same(self, desired: Route, actual: Route) -> bool:
        if super().same(desired, actual):
            return True
        if not self.holding or desired.type is not actual.type:
            return False
        wanted, found = set(desired.hops), set(routes.normalise(actual).hops)
        return bool(wanted) and wanted < found and not (found - wanted) & self._wanted.get(desired.key, set())


class Kernel:
    """`gateways`: prefixes of our own routes that lead to next hops (reachableBy), set by the agent."""

    def __init__(self) -> None:
        self.resolver = Resolver()
        self.interfaces = Interfaces({}, {})
        self.gateways: frozenset[str] = frozenset()
        self._netlink = NetlinkSocket()
        watching = NetlinkSocket(monitor.LINKS | monitor.ADDRESSES | monitor.ROUTES)
        _mute_own_routes(watching, self._netlink.port)
        self._monitor = Monitor(netlink=watching)  # before the first listing: no change is missed
        self._target = _Target(self._netlink)
        self._reconciler: Reconciler[RouteKey, Route] = Reconciler(
            "BGP routes", self._target, spare=self._target.spare
        )
        self._random = Random()

    def close(self) -> None:
        self._monitor.close()
        self._netlink.close()

    # --- our routes -----------------------------------------------------------------------------

    @property
    def routes(self) -> Reconciler[RouteKey, Route]:
        """Desired and actual routes with their status; want(), then sync()."""
        return self._reconciler

    def want(self, changed: Mapping[str, Route | None]) -> None:
        """These prefixes should have these routes from now on; None: none."""
        wanted = {route.key: route for route in changed.values() if route is not None}
        self._target.note(wanted)
        self._reconciler.put_all(wanted)
        self._reconciler.drop_all(
            [routes.key_of(prefix) for prefix, route in changed.items() if route is None]
        )

    def hand_over(self, pools: Iterable[str]) -> None:
        """These pools (CIDRs) are not ours to program any more: packets are not to be lost meanwhile."""
        self._target.hand_over(pools, time.monotonic())

    def take_back(self, pools: Iterable[str]) -> None:
        """Pools are ours again: what felix did meanwhile to routes that we did not want is not known."""
        self._target.take_back(pools)
        self._reconciler.forget()

    async def sync(self) -> Outcome:
        """Make the kernel's routes what they should be, as far as the kernel lets us."""
        return await self._reconciler.sync()

    def release(self) -> None:
        """Start-up is over: what is not wanted goes with the next sync."""
        self._target.release()

    # --- everybody's ----------------------------------------------------------------------------

    def list_all(self) -> bool:
        """Read interfaces, addresses and foreign routes; whether anything is different now."""
        names = {link.name: link.ifindex for link in links.dump(self._netlink)}
        owners = {one.address: one.ifindex for one in addresses.dump(self._netlink)}
        different = names != self.interfaces.by_name or owners != self.interfaces.by_address
        _replace(self.interfaces.by_name, names)
        _replace(self.interfaces.by_address, owners)
        return self.resolver.replace(self._foreign()) or different

    def _foreign(self) -> list[Route]:
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in routes.dump_frames(self._netlink, family, TABLE_MAIN):
                if body[_PROTOCOL_OFFSET] == PROTOCOL_BGP and not self.gateways:
                    continue  # ours may be very many, and need not be decoded
                route = routes.decode(body)
                if route is not None and self._is_foreign(route):
                    found.append(route)
        return found

    def _is_foreign(self, route: Route) -> bool:
        return not owned(route) or route.dst in self.gateways

    async def watch(self, changed: Callable[[], None], resync: Callable[[], None]) -> None:
        """For ever: keep the picture; `changed()` when it is different, `resync()` when ours may be.

        Raises KernelError if watching fails for good.
        """
        if self.list_all():  # we may have been watching before, and failed
            changed()
        async for event in self._monitor:
            if self._take(event, resync):
                changed()

    async def relist(self, changed: Callable[[], None], resync: Callable[[], None]) -> None:
        """For ever: trust nothing but a fresh listing, every 90 s."""
        while True:
            await asyncio.sleep(_RELIST * (1 + self._random.random() / 10))
            self._reconciler.forget()
            resync()
            if self.list_all():
                changed()

    def _take(self, event: monitor.Event, resync: Callable[[], None]) -> bool:
        """Take over one event; whether the picture is different now."""
        match event:
            case monitor.LinkChanged(link):
                lost = not link.up and self._lose_link(link.ifindex, resync)
                return _set(self.interfaces.by_name, link.name, link.ifindex) or lost
            case monitor.LinkGone(link):
                lost = self._lose_link(link.ifindex, resync)
                return _unset(self.interfaces.by_name, link.name, link.ifindex) or lost
            case monitor.AddressChanged(address):
                return _set(self.interfaces.by_address, address.address, address.ifindex)
            case monitor.AddressGone(address):
                return _unset(self.interfaces.by_address, address.address, address.ifindex)
            case monitor.RouteChanged(route):
                return self._route(route, False, resync)
            case monitor.RouteGone(route):
                return self._route(route, True, resync)
            case monitor.Overrun():
                self._reconciler.forget()
                resync()
                return self.list_all()

    def _lose_link(self, ifindex: int, resync: Callable[[], None]) -> bool:
        """The kernel deletes IPv4 routes over an interface that goes down or away without a word."""
        if any(_uses(route, ifindex) for route in self._reconciler.desired.values()):
            self._reconciler.forget()
            resync()
        lost = [route for route in self.resolver.routes if _uses(route, ifindex)]
        for route in lost:
            self.resolver.change(route, gone=True)
        return bool(lost)

    def _route(self, route: Route, gone: bool, resync: Callable[[], None]) -> bool:
        if route.table != TABLE_MAIN:
            return False
        wanted = self._reconciler.desired.get(route.key)
        if wanted is not None and (gone if owned(route) else not gone):
            self._reconciler.forget()  # deleted behind our back, or taken over by somebody else
            resync()
        return self._is_foreign(route) and self.resolver.change(route, gone)


def _mute_own_routes(netlink: NetlinkSocket, writer: int) -> None:
    """Have the kernel not report what we do to routes ourselves: it is very much, and known.

    A classic BPF program on the socket drops new routes of our protocol, and what the socket `writer`
    deleted. That others delete ours is still reported, and that somebody else's takes the place of one.
    """
    load_type, load_protocol = (0x28, 0, 0, 4), (0x30, 0, 0, 16 + _PROTOCOL_OFFSET)
    load_port = (0x20, 0, 0, 12)  # nlmsg_pid
    accept, drop = (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)
    program = (  # netlink is in host order, BPF reads in network order; jumps count the steps left out
        load_type,
        (0x15, 0, 2, socket.htons(RTM_NEWROUTE)),
        load_protocol,
        (0x15, 3, 4, PROTOCOL_BGP),
        (0x15, 0, 3, socket.htons(RTM_DELROUTE)),
        load_port,
        (0x15, 0, 1, socket.htonl(writer)),
        drop,
        accept,
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with socket.socket(fileno=os.dup(netlink.fileno())) as same:
        same.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
        )


def _uses(route: Route, ifindex: int) -> bool:
    return any(hop.ifindex == ifindex for hop in route.hops)


def owned(route: Route) -> bool:
    """Routes that are ours alone to write and delete."""
    return route.protocol == PROTOCOL_BGP and route.table == TABLE_MAIN


def _replace(target: dict[str, int], content: dict[str, int]) -> None:
    target.clear()
    target.update(content)


def _set(target: dict[str, int], key: str, value: int) -> bool:
    different = target.get(key) != value
    target[key] = value
    return different


def _unset(target: dict[str, int], key: str, value: int) -> bool:
    """An address that moves is on its new interface before it leaves the old one."""
    if target.get(key) != value:
        return False
    del target[key]
    return True
