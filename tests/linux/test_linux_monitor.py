"""Kernel events as they come: links, addresses, routes, renames, overruns, and what is not said."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.netns_lab import Namespace
from tests.support.aio import Turns
from tortie.core.errors import KernelError
from tortie.linux import addresses, links, monitor, routes
from tortie.linux.links import VethEnd
from tortie.linux.monitor import (
    ADDRESSES,
    LINKS,
    ROUTES,
    AddressChanged,
    AddressGone,
    Event,
    LinkChanged,
    LinkGone,
    Monitor,
    Overrun,
    RouteChanged,
    RouteGone,
)
from tortie.linux.routes import NextHop, Route, delete_message, replace_message

pytestmark = pytest.mark.kernel


class Watcher:
    """A monitor of a namespace, and waiting for particular events of it."""

    def __init__(self, ns: Namespace, groups: int) -> None:
        self.ns = ns
        self.monitor = Monitor(netlink=ns.socket(groups))
        self.seen: list[Event] = []

    async def until(self, wanted: Callable[[Event], Any], seconds: float = 60.0) -> Event:
        """The next event that is wanted; those before it are kept in `seen`."""
        async with asyncio.timeout(seconds):
            async for event in self.monitor:
                if wanted(event):
                    return event
                self.seen.append(event)
        raise AssertionError("the monitor ended")

    async def drain(self) -> list[Event]:
        """All events up to now: up to that of a link made for the purpose."""
        self.seen = []
        self.ns.netlink.execute(links.create_bridge("marker"))
        await self.until(lambda event: isinstance(event, LinkChanged) and event.link.name == "marker")
        self.ns.netlink.execute(links.delete("marker"))
        await self.until(lambda event: isinstance(event, LinkGone) and event.link.name == "marker")
        return [event for event in self.seen if "marker" not in str(event)]


def of(kind: type[Event], subject: str) -> Callable[[Event], bool]:
    """Events of one kind about one CIDR."""

    def wanted(event: Event) -> bool:
        match event:
            case AddressChanged(address) | AddressGone(address):
                return isinstance(event, kind) and address.cidr == subject
            case RouteChanged(route) | RouteGone(route):
                return isinstance(event, kind) and route.dst == subject
        return False

    return wanted


def watch(ns: Namespace, scenario: Callable[[Watcher], Awaitable[None]], groups: int = LINKS) -> None:
    async def run() -> None:
        watcher = Watcher(ns, groups | LINKS)
        with watcher.monitor:
            await scenario(watcher)

    asyncio.run(run())


def test_links_appear_change_and_go(netns: Namespace) -> None:
    async def scenario(watcher: Watcher) -> None:
        netns.netlink.execute(links.create_veth(VethEnd("a"), VethEnd("b")))
        event = await watcher.until(lambda e: isinstance(e, LinkChanged) and e.link.name == "a")
        assert isinstance(event, LinkChanged) and not event.link.up and event.link.kind == "veth"
        netns.netlink.execute(links.change("a", up=True))
        await watcher.until(lambda e: isinstance(e, LinkChanged) and e.link.name == "a" and e.link.up)
        netns.netlink.execute(links.change("b", up=True))
        event = await watcher.until(
            lambda e: isinstance(e, LinkChanged) and e.link.name == "a" and e.link.running
        )
        assert isinstance(event, LinkChanged) and event.link == links.get(netns.netlink, "a")
        netns.netlink.execute(links.delete("a"))
        await watcher.until(lambda e: isinstance(e, LinkGone) and e.link.name == "a")

    watch(netns, scenario)


def test_a_rename_keeps_the_index(netns: Namespace) -> None:
    async def scenario(watcher: Watcher) -> None:
        netns.netlink.execute(links.create_bridge("old"))
        index = netns.ifindex("old")
        netns.netlink.execute(links.rename(index, "new"), links.create_bridge("old"))
        events = [event for event in await watcher.drain() if isinstance(event, LinkChanged | LinkGone)]
        names = [(event.link.ifindex, event.link.name) for event in events]
        assert (index, "old") in names and (index, "new") in names
        second = netns.ifindex("old")
        assert (second, "old") in names and second != index, "one name, two indices"
        assert not any(isinstance(event, LinkGone) for event in events)

    watch(netns, scenario)


def test_a_port_that_leaves_its_bridge_is_not_gone(netns: Namespace) -> None:
    netns.netlink.execute(links.create_bridge("br"), links.create_veth(VethEnd("a"), VethEnd("b")))
    bridge = netns.ifindex("br")

    async def scenario(watcher: Watcher) -> None:
        netns.netlink.execute(links.change("a", master=bridge))
        netns.netlink.execute(links.change("a", master=0))
        events = await watcher.drain()
        masters = [e.link.master for e in events if isinstance(e, LinkChanged) and e.link.name == "a"]
        assert bridge in masters and masters[-1] == 0
        assert not any(isinstance(event, LinkGone) for event in events)

    watch(netns, scenario)


def test_a_link_that_moves_away_is_gone(make_netns: Callable[[], Namespace]) -> None:
    here, there = make_netns(), make_netns()
    here.veth("a", "b", there)

    async def scenario(watcher: Watcher) -> None:
        here.call(move, "a", there.fd)
        await watcher.until(lambda e: isinstance(e, LinkGone) and e.link.name == "a")

    watch(here, scenario)


def move(name: str, namespace: int) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        ipr.link("set", index=socket.if_nametoindex(name), net_ns_fd=namespace)


def test_addresses_come_and_go(netns: Namespace) -> None:
    index, _ = netns.veth("a", "b")

    async def scenario(watcher: Watcher) -> None:
        for cidr in ("10.0.0.1/32", "fd00::1/64"):
            netns.netlink.execute(addresses.add(index, cidr, nodad=":" in cidr))
            added = await watcher.until(of(AddressChanged, cidr))
            assert isinstance(added, AddressChanged) and added.address.ifindex == index
            netns.netlink.execute(addresses.delete(index, cidr))
            await watcher.until(of(AddressGone, cidr))

    watch(netns, scenario, ADDRESSES)


def test_routes_come_change_and_go(netns: Namespace) -> None:
    index, _ = netns.veth("a", "b")
    one = Route("10.5.0.0/26", ifindex=index, gateway="192.0.2.1", onlink=True, protocol=186)
    wanted = [
        one,
        Route("10.5.0.0/26", ifindex=index, gateway="192.0.2.2", onlink=True, protocol=80),
        Route("fd05::/122", ifindex=index, gateway="fe80::1", protocol=186, metric=1024),
        Route("fd06::/122", nexthops=(NextHop("fe80::1", index), NextHop("fe80::2", index)), metric=1024),
    ]

    async def scenario(watcher: Watcher) -> None:
        for route in wanted:
            netns.netlink.execute(replace_message(route))
            event = await watcher.until(of(RouteChanged, route.dst))
            assert isinstance(event, RouteChanged) and event.route == route
        for route in wanted[1:]:
            netns.netlink.execute(delete_message(route.key))
            event = await watcher.until(of(RouteGone, route.dst))
            assert isinstance(event, RouteGone) and event.route == route

    watch(netns, scenario, ROUTES)


def test_local_addresses_show_as_local_routes(netns: Namespace) -> None:
    """Felix's way to see addresses: entries of type local in table 255."""
    index, _ = netns.veth("a", "b")

    async def scenario(watcher: Watcher) -> None:
        netns.netlink.execute(addresses.add(index, "10.0.0.1/32"))
        event = await watcher.until(lambda e: isinstance(e, RouteChanged) and e.route.dst == "10.0.0.1/32")
        assert isinstance(event, RouteChanged)
        assert (event.route.type, event.route.table) == (routes.RouteType.LOCAL, routes.TABLE_LOCAL)

    watch(netns, scenario, ROUTES)


def test_ipv4_routes_of_a_vanishing_interface_are_not_announced(netns: Namespace) -> None:
    """Why the monitor's users list routes again after a link goes; if this fails, they need not."""
    index, _ = netns.veth("a", "b")
    netns.netlink.execute(replace_message(Route("10.5.0.0/26", ifindex=index, scope=253)))
    netns.netlink.execute(replace_message(Route("fd05::/122", ifindex=index)))

    async def scenario(watcher: Watcher) -> None:
        netns.netlink.execute(links.delete("a"))
        gone = {e.route.dst for e in await watcher.drain() if isinstance(e, RouteGone)}
        assert "fd05::/122" in gone and "10.5.0.0/26" not in gone
        assert not routes.dump(netns.netlink, socket.AF_INET, table=254)

    watch(netns, scenario, ROUTES)


def test_only_the_groups_asked_for_are_heard(netns: Namespace) -> None:
    index, _ = netns.veth("a", "b")

    async def scenario(watcher: Watcher) -> None:
        netns.netlink.execute(
            addresses.add(index, "10.0.0.1/32"), replace_message(Route("10.5.0.0/26", ifindex=index))
        )
        assert all(isinstance(event, LinkChanged) for event in await watcher.drain())

    watch(netns, scenario)


def test_dropped_events_are_an_overrun_and_life_goes_on(netns: Namespace) -> None:
    async def scenario(watcher: Watcher) -> None:
        watcher.monitor._netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        netns.netlink.execute(*(links.create_bridge(f"b{n}") for n in range(50)))
        await watcher.until(lambda event: event == Overrun())
        assert len([event for event in watcher.seen if isinstance(event, LinkChanged)]) < 50
        await watcher.drain()
        netns.netlink.execute(links.delete("b7"))
        await watcher.until(lambda e: isinstance(e, LinkGone) and e.link.name == "b7")

    watch(netns, scenario)


def test_a_burst_does_not_starve_the_loop_nor_lose_events(netns: Namespace) -> None:
    index, _ = netns.veth("a", "b")
    wanted = [Route(f"10.5.{n // 256}.{n % 256}/32", ifindex=index, scope=253) for n in range(2000)]

    async def scenario(watcher: Watcher) -> None:
        turns = Turns()
        async with turns:
            netns.netlink.execute(*map(replace_message, wanted))
            events = await watcher.drain()
        routes = [event.route for event in events if isinstance(event, RouteChanged)]
        assert [route for route in routes if route.dst.startswith("10.5.")] == wanted  # fe80's come any time
        assert turns.count >= 2000 // monitor._AT_ONCE

    watch(netns, scenario, ROUTES)


def test_a_cancelled_consumer_leaves_the_monitor_usable(netns: Namespace) -> None:
    async def scenario(watcher: Watcher) -> None:
        await watcher.drain()
        with pytest.raises(TimeoutError):
            await watcher.until(lambda _event: True, seconds=0.01)
        loop, fd = asyncio.get_running_loop(), watcher.monitor._netlink.fileno()
        assert not loop.remove_reader(fd), "nothing calls back while nobody waits"
        netns.netlink.execute(links.create_bridge("br"))
        await watcher.until(lambda e: isinstance(e, LinkChanged) and e.link.name == "br")

    watch(netns, scenario)


def test_a_closed_monitor_is_an_error(netns: Namespace) -> None:
    async def scenario(watcher: Watcher) -> None:
        netns.netlink.execute(links.create_bridge("br"))
        watcher.monitor._netlink.receive = broken  # type: ignore[method-assign]
        with pytest.raises(KernelError):
            await watcher.until(lambda _event: True)

    def broken() -> list[Any]:
        raise KernelError("receive", "netlink answer", errno.EBADF)

    watch(netns, scenario)


def test_a_monitor_of_the_callers_own_namespace(netns: Namespace) -> None:
    def here() -> None:
        with Monitor() as own:
            netns.netlink.execute(links.create_bridge("br"))

            async def first() -> Event:
                return await anext(own)

            event = asyncio.run(first())
            assert isinstance(event, LinkChanged) and event.link.name == "br"

    netns.call(here)
