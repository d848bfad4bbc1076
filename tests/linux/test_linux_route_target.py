"""The reconciler's target for routes against a real kernel: convergence, drift, ownership, traps."""

import asyncio
import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.netns_lab import Namespace
from tests.support.aio import Turns
from tortie.core.errors import KernelError
from tortie.core.reconcile import Outcome, Reconciler, State
from tortie.linux import links, netlink, routes
from tortie.linux.codec import Frame, Message
from tortie.linux.route_target import RouteTarget
from tortie.linux.routes import NextHop, Route, RouteKey, RouteType, delete_message, replace_message

pytestmark = pytest.mark.kernel


def ours(route: Route) -> bool:
    return route.protocol in (80, 186)


class Router:
    """A namespace, a target for protocols 80 and 186, and its reconciler."""

    def __init__(self, ns: Namespace, owns: Callable[[Route], bool] = ours) -> None:
        self.ns = ns
        self.a, _ = ns.veth("a", "a-peer")
        self.b, _ = ns.veth("b", "b-peer")
        self.target = RouteTarget(ns.socket(), owns)
        self.now = 0.0
        self.reconciler = Reconciler("routes", self.target, clock=lambda: self.now)

    def want(self, *wanted: Route) -> None:
        self.reconciler.want({route.key: route for route in wanted})

    def sync(self) -> Outcome:
        return asyncio.run(self.reconciler.sync())

    def resync(self) -> Outcome:
        self.reconciler.forget()
        return self.sync()

    def settle(self) -> None:
        """Let time pass and everything be listed again, until there is nothing to do."""
        for _ in range(10):
            self.now += 100  # beyond any back-off
            outcome = self.resync()
            if outcome.ok and not outcome.updated and not outcome.deleted:
                return
        raise AssertionError(f"still busy: {outcome}")

    def all(self) -> list[Route]:
        """Main table without the kernel's own routes."""
        found = routes.dump(self.ns.netlink, table=routes.TABLE_MAIN)
        return [route for route in found if route.protocol != routes.PROTOCOL_KERNEL]

    def holds(self, *wanted: Route) -> bool:
        """Whether the kernel has exactly these, each once."""
        found = self.all()
        return len(found) == len(wanted) and all(
            any(routes.same(want, route) for route in found) for want in wanted
        )

    def ip(self, *arguments: str) -> None:
        self.ns.run("ip", *arguments)


@pytest.fixture
def router(netns: Namespace) -> Router:
    return Router(netns)


def wishes(router: Router) -> list[Route]:
    """One of each kind, in both families."""
    return [
        Route("10.2.0.5/32", ifindex=router.a, scope=253, metric=1024, protocol=80),
        Route("10.5.0.0/26", gateway="192.0.2.1", ifindex=router.b, onlink=True, protocol=186),
        Route("10.3.0.0/26", type=RouteType.BLACKHOLE, protocol=80),
        Route(
            "10.6.0.0/26",
            nexthops=(NextHop("192.0.2.1", router.a, onlink=True), NextHop("192.0.2.2", router.b, 2, True)),
            protocol=186,
        ),
        Route("fd02::5/128", ifindex=router.a, scope=253, protocol=80),
        Route("fd05::/122", gateway="2001:db8::1", ifindex=router.b, onlink=True, protocol=186, mtu=1400),
        Route("fd03::/122", type=RouteType.BLACKHOLE, protocol=80),
        Route(
            "fd06::/122",
            nexthops=(NextHop("fe80::1", router.a), NextHop("fe80::2", router.b, 2)),
            protocol=186,
        ),
    ]


def test_from_nothing_to_all_and_back(router: Router) -> None:
    wanted = wishes(router)
    router.want(*wanted)
    outcome = router.sync()
    assert outcome.ok and outcome.updated == len(wanted) and router.holds(*wanted)
    assert router.resync().updated == 0, "what was written reads back as the same"
    router.want()
    assert router.sync().deleted == len(wanted) and router.holds()


def test_drift_is_repaired_and_nothing_else_is_touched(router: Router) -> None:
    wanted = wishes(router)
    router.want(*wanted)
    router.sync()
    router.ip("route", "add", "10.99.0.0/24", "dev", "a", "proto", "static")
    foreign = router.all()[-1] if router.all()[-1].dst == "10.99.0.0/24" else None
    router.ip("route", "del", "10.2.0.5/32", "metric", "1024")
    router.ip("route", "change", "10.5.0.0/26", "via", "192.0.2.9", "dev", "a", "onlink", "proto", "186")
    router.ip("-6", "route", "del", "fd06::/122", "via", "fe80::2")
    router.ip("-6", "route", "change", "fd05::/122", "dev", "a", "proto", "186")
    router.ip("route", "add", "blackhole", "10.98.0.0/24", "proto", "80")
    outcome = router.resync()
    assert outcome.ok and (outcome.updated, outcome.deleted) == (4, 1)
    static = Route("10.99.0.0/24", ifindex=router.a, scope=253, protocol=4)
    assert router.holds(*wanted, static) and (foreign is None or foreign == static)


def test_flushing_everything_is_repaired(router: Router) -> None:
    wanted = wishes(router)
    router.want(*wanted)
    router.sync()
    router.ip("route", "flush", "table", "main")
    router.ip("-6", "route", "flush", "proto", "80")
    assert router.resync().ok and router.holds(*wanted)


def test_foreign_routes_are_neither_listed_nor_deleted(router: Router) -> None:
    router.ip("route", "add", "10.99.0.0/24", "dev", "a", "proto", "bird")
    router.ip("-6", "route", "add", "fd99::/64", "dev", "a", "proto", "static")
    router.ip("route", "add", "10.98.0.0/24", "dev", "a", "proto", "80", "table", "77")
    router.want()
    assert router.sync().deleted == 0
    assert {route.dst for route in router.all()} == {"10.99.0.0/24", "fd99::/64"}
    assert routes.dump(router.ns.netlink, table=77), "another table is not ours"


def test_a_foreign_route_under_our_key_is_taken_over(router: Router) -> None:
    router.ip("route", "add", "blackhole", "10.5.0.0/26", "proto", "bird")
    router.ip("-6", "route", "add", "blackhole", "fd05::/122", "proto", "bird")
    wanted = [wish for wish in wishes(router) if wish.dst in ("10.5.0.0/26", "fd05::/122")]
    router.want(*wanted)
    assert router.sync().ok and router.holds(*wanted)


def test_a_foreign_route_that_took_our_key_is_not_deleted(router: Router) -> None:
    wanted = [wish for wish in wishes(router) if wish.dst in ("10.5.0.0/26", "fd05::/122")]
    router.want(*wanted)
    router.sync()
    router.ip("route", "replace", "10.5.0.0/26", "dev", "a", "proto", "bird")
    router.ip("-6", "route", "replace", "fd05::/122", "via", "fe80::77", "dev", "a", "proto", "bird")
    router.want()
    assert router.sync().ok, "gone is gone"
    assert {(route.dst, route.protocol) for route in router.all()} == {
        ("10.5.0.0/26", 12),
        ("fd05::/122", 12),
    }


def test_only_the_wished_tables_and_protocols_are_read(router: Router) -> None:
    for table in ("254", "77"):
        router.ip("route", "add", "blackhole", "10.9.0.0/24", "proto", "80", "table", table)
        router.ip("-6", "route", "add", "blackhole", "fd09::/64", "proto", "186", "table", table)

    def read(**options: object) -> set[tuple[str, int]]:
        target = RouteTarget(router.ns.netlink, ours, **options)  # type: ignore[arg-type]
        return {(key.dst, key.table) for key in asyncio.run(target.read())}

    assert read() == {("10.9.0.0/24", 254), ("fd09::/64", 254)}
    assert read(table=77, families=(AF_INET6,)) == {("fd09::/64", 77)}
    assert read(table=None, protocol=80) == {("10.9.0.0/24", 254), ("10.9.0.0/24", 77)}
    assert read(table=78) == set()


def test_reading_is_one_dump_per_family(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps: list[int] = []
    dump = netlink.NetlinkSocket.dump

    def counted(self: netlink.NetlinkSocket, message: Message) -> list[Frame]:
        dumps.append(message.body[0])
        return dump(self, message)

    monkeypatch.setattr(netlink.NetlinkSocket, "dump", counted)
    router.want(*wishes(router))
    router.sync()
    router.want()
    router.sync()
    assert dumps == [AF_INET, AF_INET6]


# --- the kernel's traps ----------------------------------------------------------------------------


def test_deleting_metric_0_spares_ours_with_a_higher_metric(router: Router) -> None:
    """CNI writes 10.2.0.5 without a metric, felix with 1024; somebody removes the former first."""
    cni = Route("10.2.0.5/32", ifindex=router.a, scope=253, protocol=80)
    felix = replace(cni, metric=1024)
    router.want(felix, cni)
    router.sync()
    router.ip("route", "del", "10.2.0.5/32", "metric", "0")
    assert router.holds(felix)
    router.want(felix)
    assert router.sync().ok and router.holds(felix)


def test_deleting_metric_0_spares_what_is_not_ours(router: Router) -> None:
    cni = Route("10.2.0.5/32", ifindex=router.a, scope=253, protocol=80)
    router.want(cni)
    router.sync()
    router.ip("route", "replace", "10.2.0.5/32", "dev", "a", "proto", "bird", "metric", "1024")
    router.ip("route", "del", "10.2.0.5/32", "proto", "80")
    router.want()
    assert router.sync().ok
    assert [route.protocol for route in router.all()] == [12]


def test_a_foreign_route_beside_ours_stays(netns: Namespace) -> None:
    """The same key and protocol, told apart by the interface only, as felix does."""
    router = Router(netns, owns=lambda route: route.ifindex == links_of(netns)["b"])
    for device in ("a", "b"):
        router.ip("route", "append", "10.2.0.5/32", "dev", device, "metric", "1024")
        router.ip("-6", "route", "append", "fd02::5/128", "dev", device)
    router.want()
    assert router.sync().deleted >= 2
    assert {(route.dst, route.ifindex) for route in router.all()} == {
        ("10.2.0.5/32", router.a),
        ("fd02::5/128", router.a),
    }


def links_of(ns: Namespace) -> dict[str, int]:
    return {link.name: link.ifindex for link in links.dump(ns.netlink)}


def crowd(router: Router) -> None:
    """Several of our routes under one key, as only append can make them."""
    for device, protocol in (("a", "80"), ("b", "80"), ("b", "186")):
        router.ip("route", "append", "10.2.0.5/32", "dev", device, "proto", protocol, "metric", "1024")
    for device in ("a", "b"):
        router.ip("-6", "route", "append", "fd02::5/128", "dev", device, "proto", "80")
    router.ip("-6", "route", "append", "fd02::5/128", "via", "fe80::1", "dev", "a", "proto", "80")


def test_a_crowded_key_is_cleared(router: Router) -> None:
    crowd(router)
    assert len(router.all()) == 6
    router.want()
    assert router.sync().ok and router.resync().ok and router.holds()


@pytest.mark.parametrize("kind", ["device", "gateway", "multipath"])
def test_a_crowded_key_becomes_what_is_wished(router: Router, kind: str) -> None:
    crowd(router)
    v4 = Route("10.2.0.5/32", ifindex=router.b, scope=253, metric=1024, protocol=80)
    v6 = {
        "device": Route("fd02::5/128", ifindex=router.b, protocol=80),
        "gateway": Route("fd02::5/128", ifindex=router.b, gateway="fe80::9", protocol=80),
        "multipath": Route(
            "fd02::5/128",
            nexthops=(NextHop("fe80::8", router.a), NextHop("fe80::9", router.b)),
            protocol=186,
        ),
    }[kind]
    router.want(v4, v6)
    assert router.sync().ok
    assert router.resync().ok and router.holds(v4, v6)
    assert router.resync().updated == 0


def test_a_crowd_is_never_taken_for_the_wish(router: Router) -> None:
    """Even if the one that is listed first is exactly what is wished."""
    crowd(router)
    first = next(route for route in router.all() if route.dst == "10.2.0.5/32")
    router.want(first)
    assert router.sync().ok
    assert router.sync().updated == 0, "and once it is alone, it is"
    assert [route for route in router.all() if route.dst == "10.2.0.5/32"] == [first]


@pytest.mark.parametrize("form", [0, 3], ids=["device", "blackhole"])
def test_a_route_among_the_ways_of_another_is_found(router: Router, form: int) -> None:
    """The kernel lists a multipath route and goes on behind its last way: what is between stays unseen."""
    ways = forms("fd01::/65", router.a, router.b)
    hidden, another_way, multipath = ways[form], ways[2], ways[4]
    router.want(multipath)
    router.sync()
    append(router, hidden, another_way)
    (listed,) = router.all()
    assert len(listed.nexthops) == 3, "and nothing beside it"
    assert len(router.ns.run("grep", "^fd010000", "/proc/thread-self/net/ipv6_route").splitlines()) == 4
    router.want(hidden)
    assert router.sync().ok and router.holds(hidden)
    assert router.resync().updated == 0


# --- refusals -----------------------------------------------------------------------------------


def test_refused_routes_are_named_and_the_others_stand(router: Router) -> None:
    good = wishes(router)
    gone = Route("10.7.0.1/32", ifindex=9999, protocol=80)
    unreachable = Route("10.7.0.0/26", gateway="198.51.100.1", protocol=186)
    unwritable = Route("10.7.0.9/26", ifindex=router.a, protocol=80)
    router.want(*good, gone, unreachable, unwritable)
    outcome = router.sync()
    assert outcome.failed.keys() == {gone.key, unreachable.key, unwritable.key}
    assert "No such device" in outcome.failed[gone.key]
    assert "Nexthop has invalid gateway" in outcome.failed[unreachable.key]
    assert "not in canonical form" in outcome.failed[unwritable.key]
    assert router.holds(*good)
    status = router.reconciler.status(gone.key)
    assert status is not None and status.state is State.FAILED


def test_an_interface_that_disappears_and_returns(router: Router) -> None:
    wanted = [wish for wish in wishes(router) if wish.ifindex == router.b or wish.nexthops]
    router.want(*wanted)
    router.sync()
    router.ns.netlink.execute(links.delete("b"))
    outcome = router.resync()
    assert not outcome.ok and all(
        "10.6" in key.dst or ":" in key.dst or "10.5" in key.dst for key in outcome.failed
    )
    router.want()
    assert router.resync().ok and router.holds()


class Breaking(RouteTarget):
    """Loses an interface after reading, before writing."""

    def __init__(self, router: Router) -> None:
        super().__init__(router.ns.netlink, ours)
        self._router = router

    async def apply(
        self, update: Mapping[RouteKey, Route], delete: Collection[RouteKey]
    ) -> Mapping[RouteKey, str]:
        self._router.ns.netlink.execute(links.delete("b"))
        return await super().apply(update, delete)


def test_an_interface_that_disappears_in_the_middle(router: Router) -> None:
    on_a = [wish for wish in wishes(router) if wish.ifindex == router.a]
    going = Route("10.2.0.9/32", ifindex=router.b, protocol=80)
    router.ns.netlink.execute(replace_message(going), replace_message(replace(going, dst="fd02::9/128")))
    coming = Route("10.2.0.8/32", ifindex=router.b, protocol=80)
    reconciler = Reconciler("routes", Breaking(router))
    reconciler.want({route.key: route for route in [*on_a, coming]})
    outcome = asyncio.run(reconciler.sync())
    assert outcome.failed.keys() == {coming.key} and outcome.deleted == 2
    assert router.holds(*on_a)


def test_an_unreadable_kernel_is_an_error(router: Router) -> None:
    router.target._netlink.close()
    with pytest.raises(KernelError) as caught:
        asyncio.run(router.target.read())
    assert caught.value.errno == errno.EBADF
    assert not router.sync().ok


# --- events, size, fairness -------------------------------------------------------------------------


def test_a_route_learned_from_an_event_is_deleted_if_it_is_ours(router: Router) -> None:
    wanted = wishes(router)
    router.want(*wanted)
    router.sync()
    extra = Route("10.2.0.5/32", ifindex=router.a, scope=253, protocol=80)
    vanished = Route("10.2.0.6/32", ifindex=router.a, scope=253, protocol=80)
    router.ns.netlink.execute(replace_message(extra))
    router.reconciler.observe(extra.key, extra)
    router.reconciler.observe(vanished.key, vanished)
    outcome = router.sync()
    assert outcome.ok and outcome.deleted == 2 and router.holds(*wanted)


def test_twenty_thousand_routes_and_the_loop_keeps_running(router: Router) -> None:
    wanted = [
        Route(f"10.{64 + n // 2560}.{n // 256 % 10}.{n % 256}/32", ifindex=router.a, scope=253, protocol=80)
        for n in range(10_000)
    ]
    wanted += [Route(f"fd00::{n:x}/128", ifindex=router.a, protocol=80) for n in range(1, 10_001)]
    turns = Turns()

    async def measured() -> Outcome:
        async with turns:
            return await router.reconciler.sync()

    router.want(*wanted)
    assert asyncio.run(measured()).updated == 20_000
    assert turns.count > 70, "the loop ran between batches"
    router.reconciler.forget()
    outcome = asyncio.run(measured())
    assert (outcome.updated, outcome.deleted) == (0, 0)
    router.want(*wanted[:10])
    assert asyncio.run(measured()).deleted == 19_990 and router.holds(*wanted[:10])


# --- any history ---------------------------------------------------------------------------------

DESTINATIONS = ("10.1.0.0/24", "10.1.0.0/25", "fd01::/64", "fd01::/65")


def forms(dst: str, a: int, b: int) -> list[Route]:
    """Ways to route `dst`, some ours, all valid for both families."""
    v6 = ":" in dst
    gateways = ("fe80::1", "fe80::2") if v6 else ("192.0.2.1", "192.0.2.2")
    ways = [
        Route(dst, ifindex=a, protocol=80),
        Route(dst, ifindex=b, protocol=80, metric=1024),
        Route(dst, gateway=gateways[0], ifindex=b, onlink=True, protocol=186),
        Route(dst, type=RouteType.BLACKHOLE, protocol=80),
        Route(
            dst,
            nexthops=(NextHop(gateways[0], a, onlink=True), NextHop(gateways[1], b, 2, True)),
            protocol=186,
        ),
    ]
    return ways + [replace(way, metric=9) for way in ways[2:4]]


def append(router: Router, *written: Route) -> None:
    """Write with NLM_F_CREATE | NLM_F_APPEND, the way to several routes under one key."""
    router.ns.netlink.request([replace_message(route)._replace(flags=0x400 | 0x800) for route in written])


choices = st.lists(st.tuples(st.sampled_from(DESTINATIONS), st.integers(0, 6)), max_size=8)
steps = st.lists(st.tuples(st.sampled_from(["want", "write", "delete"]), choices), min_size=1, max_size=6)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=steps)
@example(  # a blackhole between the ways of a multipath route, where the kernel does not list it
    history=[
        ("want", [("fd01::/65", 4)]),
        ("write", [("fd01::/65", 3), ("fd01::/65", 2)]),
        ("want", [("fd01::/65", 3)]),
    ]
)
def test_any_history_ends_in_the_last_wish(
    router: Router, history: Iterable[tuple[str, list[tuple[str, int]]]]
) -> None:
    """Whatever others write, append or delete of ours in between."""
    a, b = router.a, router.b
    wish: dict[RouteKey, Route] = {}
    for action, chosen in history:
        picked = [forms(dst, a, b)[form] for dst, form in chosen]
        if action == "want":
            wish = {route.key: route for route in picked}
            router.reconciler.want(wish)
            router.sync()
        elif action == "write":
            append(router, *picked)
        else:
            router.ns.netlink.request([delete_message(route.key) for route in picked])
    router.settle()
    assert router.holds(*wish.values())
    router.want()
    router.settle()
    assert router.holds()


def test_both_families_are_read_by_default(router: Router) -> None:
    router.want(*wishes(router))
    router.sync()
    families = {route.family for route in asyncio.run(router.target.read()).values()}
    assert families == {AF_INET, AF_INET6}


# --- far ends of tunnels ------------------------------------------------------------------------


def test_a_way_over_an_address_within_goes_to_another_interface(router: Router) -> None:
    """From a direct route to one whose gateway the direct one leads to, as on the way to VXLAN; and back."""
    for net, inside, outside in (
        ("fd00:5::/122", "fd00:5::1", "fd00::2"),
        ("10.5.0.0/26", "10.5.0.1", "192.0.2.2"),
    ):
        direct = Route(net, ifindex=router.a, gateway=outside, onlink=True, protocol=80)
        tunnelled = Route(net, ifindex=router.b, gateway=inside, onlink=True, protocol=80)
        for wanted in (direct, tunnelled, direct):
            router.want(wanted)
            assert router.sync().ok and router.holds(wanted)
        router.ip("-6" if ":" in net else "-4", "route", "replace", net, "via", outside, "dev", "a",
                  "onlink", "proto", "bgp", "metric", "1024" if ":" in net else "0")  # fmt: skip
        router.want(tunnelled)
        assert router.sync().ok and router.holds(tunnelled), "whoever made the route in the way"
        router.want()
        assert router.sync().ok and router.holds()
