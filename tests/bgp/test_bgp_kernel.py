"""The agent's kernel edge against a real kernel: holding at start, drift, events, what it must not touch."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.netns_lab import Namespace
from tortie.bgp.kernel import Kernel
from tortie.bgp.nexthop import Way
from tortie.linux.routes import NextHop, Route, RouteType

pytestmark = pytest.mark.kernel


class Watched:
    """A Kernel in a namespace with eth0 10.0.0.1/24, watching; counts what it is told."""

    def __init__(self, ns: Namespace) -> None:
        self.ns = ns
        self.changed = 0
        self.resyncs = 0
        ns.veth("eth0", "far")
        ns.run("ip", "addr", "add", "10.0.0.1/24", "dev", "eth0")
        ns.run("ip", "addr", "add", "fd09::1/64", "dev", "eth0", "nodad")
        self.index = ns.ifindex("eth0")
        self.kernel: Kernel = ns.call(Kernel)
        self.kernel.list_all()

    def run(self, act: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            watching = asyncio.create_task(self.kernel.watch(self._note_change, self._note_resync))
            await asyncio.sleep(0)
            async with asyncio.timeout(120):
                await act()
            watching.cancel()

        try:
            asyncio.run(main())
        finally:
            self.kernel.close()

    def _note_change(self) -> None:
        self.changed += 1

    def _note_resync(self) -> None:
        self.resyncs += 1

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    def via(self, prefix: str, gateway: str) -> Route:
        return Route(prefix, gateway=gateway, ifindex=self.index, onlink=True, protocol=186)

    def want(self, *routes: Route) -> None:
        self.kernel.routes.want({route.key: route for route in routes})

    def bgp_routes(self) -> list[str]:
        lines = self.ns.run("ip", "route", "show", "proto", "bgp").splitlines()
        lines += self.ns.run("ip", "-6", "route", "show", "proto", "bgp").splitlines()
        return sorted(" ".join(line.split()) for line in lines)


@pytest.fixture
def watched(netns: Namespace) -> Watched:
    return Watched(netns)


def test_nothing_of_the_last_run_goes_before_start_up_is_over(watched: Watched) -> None:
    add = ("ip", "route", "add")
    watched.ns.run(*add, "192.168.2.0/26", "via", "10.0.0.2", "proto", "186")
    watched.ns.run(
        *add, "192.168.3.0/26", "proto", "186",
        "nexthop", "via", "10.0.0.2", "dev", "eth0", "onlink",
        "nexthop", "via", "10.0.0.3", "dev", "eth0", "onlink",
    )  # fmt: skip
    watched.ns.run(*add, "192.168.4.0/26", "via", "10.0.0.2", "proto", "static")

    async def act() -> None:
        before = watched.bgp_routes()
        watched.want(watched.via("192.168.3.0/26", "10.0.0.2"))
        assert (await watched.kernel.sync()).ok
        assert watched.bgp_routes() == before, "one of two next hops is known so far"
        watched.want(watched.via("192.168.3.0/26", "10.0.0.9"))
        await watched.kernel.sync()
        assert "192.168.3.0/26 via 10.0.0.9 dev eth0 onlink" in watched.bgp_routes(), "this one is new"
        watched.want(watched.via("192.168.3.0/26", "10.0.0.9"))
        watched.kernel.release()
        await watched.kernel.sync()
        assert watched.bgp_routes() == ["192.168.3.0/26 via 10.0.0.9 dev eth0 onlink"]
        assert "192.168.4.0/26" in watched.ns.run("ip", "route"), "not ours"

    watched.run(act)


def test_what_this_run_has_known_goes_at_once(watched: Watched) -> None:
    """A peer that never comes lengthens start-up; what others take back meanwhile must not stay that long."""
    watched.ns.run("ip", "route", "add", "192.168.2.0/26", "via", "10.0.0.2", "proto", "186")
    two = (NextHop("10.0.0.2", watched.index, onlink=True), NextHop("10.0.0.3", watched.index, onlink=True))

    async def act() -> None:
        both = Route("192.168.3.0/26", nexthops=two, protocol=186)
        watched.kernel.want(
            {"192.168.2.0/26": watched.via("192.168.2.0/26", "10.0.0.2"), "192.168.3.0/26": both}
        )
        await watched.kernel.sync()
        watched.kernel.want(
            {"192.168.2.0/26": None, "192.168.3.0/26": watched.via("192.168.3.0/26", "10.0.0.3")}
        )
        await watched.kernel.sync()
        assert watched.bgp_routes() == ["192.168.3.0/26 via 10.0.0.3 dev eth0 onlink"]

    watched.run(act)


def test_what_is_taken_away_comes_back(watched: Watched) -> None:
    async def act() -> None:
        watched.want(
            watched.via("192.168.2.0/26", "10.0.0.2"),
            watched.via("fd00:168::/122", "fd09::2"),
            Route("192.168.1.0/26", type=RouteType.BLACKHOLE, protocol=186),
        )
        await watched.kernel.sync()
        whole = watched.bgp_routes()
        assert len(whole) == 3
        assert watched.resyncs == 0, "our own writing is no drift"
        for victim in (["192.168.2.0/26"], ["-6", "fd00:168::/122"], ["blackhole", "192.168.1.0/26"]):
            seen = watched.resyncs
            family = [word for word in victim if word == "-6"]
            watched.ns.run("ip", *family, "route", "del", *[w for w in victim if w != "-6"])
            await watched.until(lambda seen=seen: watched.resyncs > seen)  # type: ignore[misc]
            await watched.kernel.sync()
            assert watched.bgp_routes() == whole
        seen = watched.resyncs
        watched.ns.run("ip", "route", "replace", "192.168.2.0/26", "via", "10.0.0.77", "proto", "static")
        await watched.until(lambda: watched.resyncs > seen)
        await watched.kernel.sync()
        assert watched.bgp_routes() == whole

    watched.run(act)


def test_routes_that_vanish_silently_with_their_interface(watched: Watched) -> None:
    async def act() -> None:
        watched.want(watched.via("192.168.2.0/26", "10.0.0.2"))
        await watched.kernel.sync()
        watched.ns.run("ip", "link", "set", "eth0", "down")
        await watched.until(lambda: watched.resyncs > 0)
        assert watched.kernel.resolver.way("10.0.0.2") is None
        outcome = await watched.kernel.sync()
        assert not outcome.ok and outcome.retry_at is not None, "there is no way, and it will be tried again"
        watched.ns.run("ip", "link", "set", "eth0", "up")
        await watched.until(lambda: watched.kernel.resolver.way("10.0.0.2") is not None)
        watched.kernel.routes.drop(watched.via("192.168.2.0/26", "10.0.0.2").key)
        watched.want(watched.via("192.168.2.0/26", "10.0.0.2"))
        assert (await watched.kernel.sync()).ok
        assert watched.bgp_routes() == ["192.168.2.0/26 via 10.0.0.2 dev eth0 onlink"]

    watched.run(act)


def test_the_picture_follows_the_kernel(watched: Watched) -> None:
    async def act() -> None:
        resolver, interfaces = watched.kernel.resolver, watched.kernel.interfaces
        assert interfaces.by_address["10.0.0.1"] == interfaces.by_name["eth0"] == watched.index
        watched.ns.run("ip", "route", "add", "default", "via", "10.0.0.254")
        await watched.until(lambda: resolver.way("8.8.8.8") == Way("10.0.0.254", watched.index, 0))
        assert watched.changed > 0
        watched.ns.run("ip", "addr", "add", "10.5.0.1/24", "dev", "eth0")
        await watched.until(
            lambda: resolver.way("10.5.0.2") is not None and "10.5.0.1" in interfaces.by_address
        )
        watched.ns.run("ip", "addr", "del", "10.5.0.1/24", "dev", "eth0")
        await watched.until(lambda: resolver.way("10.5.0.2") == Way("10.0.0.254", watched.index, 0))
        watched.ns.run("ip", "link", "add", "tunl0", "type", "bridge")
        await watched.until(lambda: "tunl0" in interfaces.by_name)
        watched.ns.run("ip", "addr", "add", "10.0.0.1/24", "dev", "tunl0")  # it moves, as onto a bridge
        watched.ns.run("ip", "addr", "del", "10.0.0.1/24", "dev", "eth0")
        watched.ns.run("ip", "addr", "add", "10.6.0.1/24", "dev", "eth0")
        await watched.until(lambda: "10.6.0.1" in interfaces.by_address)
        assert interfaces.by_address.get("10.0.0.1") == interfaces.by_name["tunl0"]
        watched.ns.run("ip", "link", "del", "tunl0")
        await watched.until(lambda: "tunl0" not in interfaces.by_name)
        watched.ns.run("ip", "link", "set", "eth0", "down")
        await watched.until(lambda: resolver.way("8.8.8.8") is None)

    watched.run(act)


def test_our_own_routes_are_no_way_to_a_next_hop(watched: Watched) -> None:
    async def act() -> None:
        watched.kernel.gateways = frozenset(["172.16.0.9/32"])
        watched.want(watched.via("172.16.0.0/16", "10.0.0.2"), watched.via("172.16.0.9/32", "10.0.0.254"))
        await watched.kernel.sync()
        watched.kernel.list_all()
        resolver = watched.kernel.resolver
        assert resolver.way("172.16.0.1") is None
        assert resolver.way("172.16.0.9") == Way("10.0.0.254", watched.index, 0), "a peer behind a gateway"

    watched.run(act)


def test_several_next_hops_in_both_families(watched: Watched) -> None:
    async def act() -> None:
        for prefix, gateways in (
            ("192.168.2.0/26", ("10.0.0.2", "10.0.0.3")),
            ("fd00:168::/122", ("fd09::2", "fd09::3")),
        ):
            hops = tuple(NextHop(gateway, watched.index, onlink=True) for gateway in gateways)
            watched.want(Route(prefix, nexthops=hops, protocol=186))
            assert (await watched.kernel.sync()).ok
            text = watched.ns.run("ip", *(["-6"] if ":" in prefix else []), "route", "show", prefix)
            assert all(gateway in text for gateway in gateways)
            watched.kernel.routes.forget()
            assert (await watched.kernel.sync()).updated == 0, "read back it is the same"

    watched.run(act)


def test_routes_of_a_pool_that_becomes_felixs_wait_for_felix(watched: Watched) -> None:
    """Felix writes its own in their place; nobody's packets are lost meanwhile, and the others go at once."""
    left, right = "192.168.2.0/26", "10.9.0.0/26"

    async def act() -> None:
        watched.kernel.release()
        watched.want(watched.via(left, "10.0.0.2"), watched.via(right, "10.0.0.2"))
        assert (await watched.kernel.sync()).ok
        watched.kernel.hand_over(["192.168.0.0/16"])
        watched.kernel.hand_over(["fd00::/64"])  # another pool, shortly after
        watched.want()
        outcome = await watched.kernel.sync()
        assert watched.bgp_routes() == [f"{left} via 10.0.0.2 dev eth0 onlink"]
        assert outcome.retry_at is not None, "but not for ever"
        watched.ns.run("ip", "route", "replace", left, "via", "10.0.0.3", "dev", "eth0", "proto", "80")
        watched.kernel.routes.forget()
        assert (await watched.kernel.sync()).retry_at is None, "nothing is waited for any more"
        assert f"{left} via 10.0.0.3 dev eth0 proto 80" in watched.ns.run("ip", "route")

    watched.run(act)


def test_a_pool_that_comes_back_gets_its_routes_anew(watched: Watched) -> None:
    """Though nobody told us that felix took the place of ours, and went."""
    left = "192.168.2.0/26"

    async def act() -> None:
        watched.kernel.release()
        watched.want(watched.via(left, "10.0.0.2"))
        await watched.kernel.sync()
        watched.kernel.hand_over(["192.168.0.0/16"])
        watched.want()
        await watched.kernel.sync()
        watched.ns.run("ip", "route", "del", left)
        watched.kernel.take_back(["192.168.0.0/16"])
        watched.want(watched.via(left, "10.0.0.2"))
        assert (await watched.kernel.sync()).ok
        assert watched.bgp_routes() == [f"{left} via 10.0.0.2 dev eth0 onlink"]
        watched.want()
        assert (await watched.kernel.sync()).ok
        assert watched.bgp_routes() == [], "what goes from now on waits for nobody"

    watched.run(act)
