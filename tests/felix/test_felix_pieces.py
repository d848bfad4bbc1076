"""The small machines of the dataplane: interfaces, reachable chains, duties, route wishes, throttle."""

import asyncio
import re
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.felix.fakes import FakeClock, FakeKernel
from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import Members
from tortie.felix.dataplane.chains import ChainGraph, Key
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.interfaces import Interface, Interfaces
from tortie.felix.dataplane.routes import Candidate, Ownership, RouteClass, RouteTable, WorkloadRouteTarget
from tortie.felix.dataplane.sets import SetWriter
from tortie.felix.rules import ir
from tortie.felix.rules.ir import Chain, Goto, Hook, Jump, Rule
from tortie.felix.rules.settings import Settings
from tortie.felix.throttle import Throttle
from tortie.linux.addresses import Address
from tortie.linux.ipsets import IPSet
from tortie.linux.links import IFF_RUNNING, IFF_UP, Link
from tortie.linux.routes import SCOPE_LINK, Route, RouteKey, RouteType, same

pytestmark = pytest.mark.unit


# --- IP sets ------------------------------------------------------------------------------------


def test_no_set_is_ever_too_small_for_its_members() -> None:
    """Half of a set that a rule denies would be an open door."""
    duty: Duty[str, IPSet] = Duty("sets", FakeKernel(), interval=0, clock=FakeClock(), rand=lambda: 0.5)
    writer = SetWriter(4, Settings(), duty, node="node1", maximum=4)
    for count in (3, 4, 5, 100):
        members = Members("net", {f"10.0.0.{number}" for number in range(count)})
        writer.update(State(sets={"s:a": members}), Touched(sets={"s:a"}))
        (found,) = duty.desired.values()
        assert len(found.members) == count
        assert found.maximum == 4 if count <= 4 else count <= found.maximum <= 2 * count


# --- interfaces ---------------------------------------------------------------------------------


def link(name: str, index: int, running: bool = True) -> Link:
    return Link(name, index, IFF_UP | (IFF_RUNNING if running else 0), 1500)


def test_an_interface_is_told_of_once_it_is_there() -> None:
    seen = Interfaces()
    seen.link_changed(link("cali1", 7, running=False), 0)
    assert seen.settle(0) == {"cali1"}
    assert seen.get("cali1") == Interface("cali1", 7, False, 1500)
    seen.link_changed(link("cali1", 7), 0)
    assert seen.settle(0) == {"cali1"}
    assert seen.get("cali1") == Interface("cali1", 7, True, 1500)
    assert seen.settle(0) == set()


def test_going_down_is_believed_after_a_moment_and_a_flap_not_at_all() -> None:
    seen = Interfaces()
    seen.link_changed(link("cali1", 7), 0)
    seen.settle(0)
    seen.link_changed(link("cali1", 7, running=False), 1.0)
    assert seen.settle(1.05) == set()
    assert seen.next_due() == pytest.approx(1.1)
    seen.link_changed(link("cali1", 7), 1.06)
    assert seen.settle(2) == set()
    assert seen.take_flapped() == {"cali1"}, "the kernel has forgotten its routes all the same"
    seen.link_changed(link("cali1", 7, running=False), 3.0)
    assert seen.settle(3.1) == {"cali1"}
    assert seen.get("cali1") == Interface("cali1", 7, False, 1500)


def test_a_deleted_interface_is_gone_at_once() -> None:
    seen = Interfaces()
    seen.link_changed(link("cali1", 7), 0)
    seen.address_changed(Address("10.0.0.1", 24, 7))
    seen.settle(0)
    seen.link_gone(7)
    assert seen.settle(0) == {"cali1"}
    assert (seen.get("cali1"), seen.addresses(), seen.name_of(7)) == (None, frozenset(), "")


def test_a_replaced_interface_is_one_change() -> None:
    seen = Interfaces()
    seen.link_changed(link("cali1", 7), 0)
    seen.settle(0)
    seen.link_gone(7)
    seen.link_changed(link("cali1", 9), 0)
    assert seen.settle(0) == {"cali1"}
    assert seen.get("cali1") == Interface("cali1", 9, True, 1500)


def test_while_two_share_a_name_it_keeps_what_it_had() -> None:
    seen = Interfaces()
    seen.link_changed(link("cali1", 7), 0)
    seen.settle(0)
    seen.link_changed(link("cali1", 9), 0)
    assert seen.settle(0) == set()
    assert seen.get("cali1") == Interface("cali1", 7, True, 1500)
    seen.link_changed(link("other", 7), 0)
    assert seen.settle(0) == {"cali1", "other"}
    assert seen.get("cali1") == Interface("cali1", 9, True, 1500)


def test_addresses_leave_after_a_moment_unless_they_come_back() -> None:
    seen = Interfaces([re.compile("^kube")])
    for number, name in ((1, "eth0"), (2, "kube-ipvs0"), (3, "cali1")):
        seen.link_changed(link(name, number), 0)
        seen.address_changed(Address(f"10.0.0.{number}", 24, number))
    seen.settle(0)
    assert seen.addresses() == {"10.0.0.1", "10.0.0.3"}
    assert seen.addresses(besides=("cali",)) == {"10.0.0.1"}
    assert seen.holding("10.0.0.1") == Interface("eth0", 1, True, 1500)
    seen.address_gone(Address("10.0.0.1", 24, 1), 5)
    seen.address_changed(Address("10.0.0.1", 24, 1))
    seen.settle(6)
    assert "10.0.0.1" in seen.addresses()
    seen.address_gone(Address("10.0.0.1", 24, 1), 7)
    seen.settle(7.05)
    assert "10.0.0.1" in seen.addresses()
    seen.settle(7.1)
    assert "10.0.0.1" not in seen.addresses()


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0))
def test_events_and_readings_end_in_the_same_picture(seed: int) -> None:
    """Whatever was seen on the way: a last full reading says all, and every difference was announced."""
    rand = Random(seed)
    seen, told, now = Interfaces(), {}, 0.0
    for _ in range(rand.randint(0, 20)):
        now += rand.choice([0, 0.05, 1])
        name, number = rand.choice("abc"), rand.randint(1, 4)
        match rand.randint(0, 3):
            case 0 | 1:
                seen.link_changed(link(name, number, rand.random() < 0.6), now)
            case 2:
                seen.link_gone(number)
            case 3:
                for changed in seen.settle(now):
                    told[changed] = seen.get(changed)
    final = [link(name, number, rand.random() < 0.5) for number, name in enumerate("ab", 10)]
    seen.reread(final, [], now)
    for changed in seen.settle(now + 1):
        told[changed] = seen.get(changed)
    expected = {one.name: Interface(one.name, one.ifindex, one.running, one.mtu) for one in final}
    assert {name: one for name, one in told.items() if one is not None} == expected


# --- reachable chains ---------------------------------------------------------------------------


def leading(name: str, *targets: str) -> Chain:
    return Chain(name, tuple(Rule(action=Jump(target)) for target in targets))


def brute_force(hooks: Mapping[Key, Hook], offered: Mapping[Key, Chain]) -> set[Key]:
    found: set[Key] = set()
    pending = [(key[0], target) for key, hook in hooks.items() for target in hook.targets]
    while pending:
        key = pending.pop()
        if key not in found:
            found.add(key)
            pending += [(key[0], target) for target in (offered[key].targets if key in offered else ())]
    return found


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0))
def test_what_stands_is_what_something_leads_to(seed: int) -> None:
    rand = Random(seed)
    shown: dict[Key, Chain | Hook] = {}

    def show(key: Key, content: Chain | Hook | None) -> None:
        shown.pop(key, None)
        if content is not None:
            shown[key] = content

    graph = ChainGraph(show)
    hooks: dict[Key, Hook] = {}
    offered: dict[Key, Chain] = {}
    order = "abcdefg"  # chains lead to later ones only, as ours do
    for _ in range(rand.randint(1, 25)):
        index = rand.randrange(len(order))
        later = order[index + 1 :]
        match rand.randint(0, 2):
            case 0:
                chain = leading(order[index], *rand.sample(later, rand.randint(0, min(2, len(later)))))
                graph.offer("filter", [chain])
                offered["filter", chain.name] = chain
            case 1:
                graph.withdraw("filter", [order[index]])
                offered.pop(("filter", order[index]), None)
            case 2:
                hook = Hook(
                    last=tuple(Rule(action=Goto(one)) for one in rand.sample(order, rand.randint(0, 2)))
                )
                graph.hook(("filter", "INPUT"), hook)
                hooks["filter", "INPUT"] = hook
        assert {key for key, one in shown.items() if isinstance(one, Chain)} == brute_force(hooks, offered)
    for key, one in shown.items():
        if isinstance(one, Chain):
            expected = offered[key].rules if key in offered else (Rule((), ir.DROP, ("Chain is missing",)),)
            assert one.rules == expected
    assert graph.ruleset() == shown


# --- duties -------------------------------------------------------------------------------------


def a_duty(kernel: FakeKernel[str, int], clock: FakeClock, **more: float) -> Duty[str, int]:
    return Duty("things", kernel, clock=clock, rand=lambda: 0.5, **{"interval": 90, **more})  # type: ignore[arg-type]


def test_a_duty_with_nothing_to_do_does_nothing() -> None:
    kernel, clock = FakeKernel[str, int](), FakeClock()
    duty = a_duty(kernel, clock)
    duty.put("a", 1)
    assert asyncio.run(duty.sync()).updated == 1
    assert duty.next_due() > clock.now
    asyncio.run(duty.sync())
    duty.put("a", 1)
    asyncio.run(duty.sync())
    assert (kernel.reads, kernel.log) == (1, [("update", "a")])


def test_the_kernel_is_read_again_at_intervals_with_jitter() -> None:
    kernel, clock = FakeKernel[str, int](), FakeClock()
    duty = a_duty(kernel, clock)
    duty.put("a", 1)
    asyncio.run(duty.sync())
    kernel.objects.clear()
    assert duty.next_due() == pytest.approx(clock.now + 90 * 1.05)
    clock.now = duty.next_due()
    asyncio.run(duty.sync())
    assert kernel.objects == {"a": 1}


def test_after_a_write_it_is_read_again_soon_and_then_less_and_less() -> None:
    kernel, clock = FakeKernel[str, int](), FakeClock()
    duty = a_duty(kernel, clock, recheck=5)
    duty.put("a", 1)
    pauses = []
    for _ in range(7):
        asyncio.run(duty.sync())
        pauses.append(round((duty.next_due() - clock.now) / 1.05))
        clock.now = duty.next_due()
    assert pauses == [5, 10, 20, 40, 80, 90, 90]


def test_a_failure_is_due_again_and_keeps_its_reason() -> None:
    kernel, clock = FakeKernel[str, int](), FakeClock()
    duty = a_duty(kernel, clock)
    kernel.refuse["a"] = "no room"
    duty.put("a", 1)
    assert not asyncio.run(duty.sync()).ok
    assert duty.reason("a") == "no room" and not duty.settled
    assert clock.now < duty.next_due() < clock.now + 2
    assert not asyncio.run(duty.sync()).ok, "what failed and is not due yet has still failed"
    kernel.refuse.clear()
    clock.now = duty.next_due()
    assert asyncio.run(duty.sync()).ok and duty.settled


def test_echoes_of_what_was_done_cause_no_work() -> None:
    kernel, clock = FakeKernel[str, int](), FakeClock()
    duty = a_duty(kernel, clock)
    duty.put("a", 1)
    asyncio.run(duty.sync())
    duty.observe("a", 1)
    duty.observe("b", None)
    assert duty.next_due() > clock.now
    duty.observe("a", 2)
    assert duty.next_due() < clock.now
    asyncio.run(duty.sync())
    duty.observe("b", 3)
    assert duty.next_due() < clock.now


# --- routes -------------------------------------------------------------------------------------


def workload_route(dst: str, ifindex: int) -> Route:
    return Route(dst, ifindex=ifindex, scope=SCOPE_LINK)


def candidate(dst: str, ifindex: int, kind: RouteClass = RouteClass.LOCAL_WORKLOAD) -> Candidate:
    return Candidate(kind, workload_route(dst, ifindex))


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=0))
def test_of_all_wishes_for_a_destination_the_best_holds(seed: int) -> None:
    rand = Random(seed)
    duty: Duty[RouteKey, Route] = Duty(
        "routes", FakeKernel[RouteKey, Route](), interval=0, clock=FakeClock(), rand=lambda: 0.5
    )
    table = RouteTable(duty)
    wishes: dict[str, list[Candidate]] = {}
    for _ in range(rand.randint(1, 12)):
        who = rand.choice("xyz")
        wishes[who] = [
            candidate(f"10.0.0.{n}/32", rand.randint(1, 4), rand.choice(list(RouteClass)))
            for n in rand.sample(range(3), rand.randint(0, 3))
        ]
        table.want(who, wishes[who])
        table.want(who, wishes[who])
    best: dict[RouteKey, Candidate] = {}
    for one in (one for several in wishes.values() for one in several):
        if one.route.key not in best or one.rank < best[one.route.key].rank:
            best[one.route.key] = one
    assert duty.desired == {key: one.route for key, one in best.items()}


NAMES = {1: "eth0", 2: "cali1", 3: "tunl0"}


@pytest.mark.parametrize(
    ("route", "mine"),
    [
        (Route("10.0.0.0/26", type=RouteType.BLACKHOLE, protocol=80), True),
        (Route("10.0.0.0/26", type=RouteType.BLACKHOLE, protocol=186), False),
        (Route("10.1.0.0/26", ifindex=1, gateway="172.16.0.2", protocol=80), True),
        (Route("10.1.0.0/26", ifindex=1, gateway="172.16.0.2", protocol=186), False),
        (Route("0.0.0.0/0", ifindex=1, protocol=3), False),
        (Route("10.0.0.1/32", ifindex=2, protocol=3), True),
        (Route("10.0.0.1/32", ifindex=2, protocol=4), True),
        (Route("fe80::/64", ifindex=2, protocol=2), False),
        (Route("10.1.0.0/26", ifindex=3, protocol=12), False),
        (Route("10.0.0.1/32", ifindex=99, protocol=3), False),
    ],
)
def test_whose_a_route_is(route: Route, mine: bool) -> None:
    assert Ownership(lambda index: NAMES.get(index, ""), ("cali",)).owns(route) is mine


def test_routes_others_put_on_workload_interfaces_can_be_left_alone() -> None:
    ownership = Ownership(lambda index: NAMES.get(index, ""), ("cali",), remove_external=False)
    assert not ownership.owns(Route("10.0.0.1/32", ifindex=2, protocol=4))
    assert ownership.owns(Route("10.0.0.1/32", ifindex=2, protocol=3))
    own_protocol = Ownership(lambda index: NAMES.get(index, ""), ("cali",), protocol=99)
    assert own_protocol.owns(Route("10.0.0.0/26", type=RouteType.BLACKHOLE, protocol=99))
    assert not own_protocol.owns(Route("10.0.0.0/26", type=RouteType.BLACKHOLE, protocol=80))


class Forgetful:
    """Remembers whose connections were forgotten, and can be made to take its time."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.may_end: asyncio.Event | None = None

    async def __call__(self, address: str) -> None:
        self.addresses.append(address)
        if self.may_end is not None:
            await self.may_end.wait()


class FakeRoutes(FakeKernel[RouteKey, Route]):
    def same(self, desired: Route, actual: Route) -> bool:
        return same(desired, actual)


def a_target(kernel: FakeRoutes, clock: FakeClock) -> tuple[WorkloadRouteTarget, Forgetful]:
    forget = Forgetful()
    ownership = Ownership(lambda index: f"cali{index}", ("cali",))
    return WorkloadRouteTarget(kernel, ownership, forget, clock), forget  # type: ignore[arg-type]


def test_an_address_that_moves_leaves_its_connections_before_it_arrives() -> None:
    async def scenario() -> None:
        old, new = workload_route("10.0.0.1/32", 1), workload_route("10.0.0.1/32", 2)
        kernel = FakeRoutes({old.key: old})
        target, forget = a_target(kernel, FakeClock())
        await target.read()
        forget.may_end = asyncio.Event()
        moving = asyncio.create_task(target.apply({new.key: new}, ()))
        for _ in range(5):
            await asyncio.sleep(0)
        assert (kernel.objects, forget.addresses) == ({}, ["10.0.0.1"])
        forget.may_end.set()
        assert await moving == {}
        assert kernel.objects == {new.key: new}

    asyncio.run(scenario())


def test_a_node_that_is_drained_starts_a_few_programs_at_a_time() -> None:
    async def scenario() -> None:
        routes = [workload_route(f"10.0.0.{number}/32", number) for number in range(1, 101)]
        kernel = FakeRoutes({one.key: one for one in routes})
        target, forget = a_target(kernel, FakeClock())
        await target.read()
        forget.may_end = asyncio.Event()
        assert await target.apply({}, [one.key for one in routes]) == {}
        for _ in range(5):
            await asyncio.sleep(0)
        assert 0 < len(forget.addresses) < 20
        forget.may_end.set()
        async with asyncio.timeout(30):
            while len(forget.addresses) < 100:
                await asyncio.sleep(0)
        await target.close()

    asyncio.run(scenario())


def test_a_deleted_address_is_cleaned_up_in_the_background() -> None:
    async def scenario() -> None:
        old = workload_route("10.0.0.1/32", 1)
        block = Route("10.0.0.64/26", ifindex=1, gateway="172.16.0.2", protocol=80)
        kernel = FakeRoutes({old.key: old, block.key: block})
        target, forget = a_target(kernel, FakeClock())
        await target.read()
        forget.may_end = asyncio.Event()
        assert await target.apply({}, [old.key, block.key]) == {}
        await asyncio.sleep(0)
        assert forget.addresses == ["10.0.0.1"], "a block is nobody's address"
        forget.may_end.set()
        await target.close()

    asyncio.run(scenario())


def test_an_interface_that_vanishes_takes_its_addresses_connections() -> None:
    async def scenario() -> None:
        one, other = workload_route("10.0.0.1/32", 1), workload_route("10.0.0.2/32", 2)
        kernel = FakeRoutes({one.key: one, other.key: other})
        target, forget = a_target(kernel, FakeClock())
        await target.read()
        assert target.interface_lost(1) == [one.key]
        del kernel.objects[other.key]  # the kernel said nothing about this one
        await target.read()
        await asyncio.sleep(0)
        assert sorted(forget.addresses) == ["10.0.0.1", "10.0.0.2"]

    asyncio.run(scenario())


def test_what_cni_made_is_spared_until_its_endpoint_is_known() -> None:
    async def scenario() -> None:
        mine = workload_route("10.0.0.1/32", 1)
        clock = FakeClock(100)
        target, _ = a_target(FakeRoutes({mine.key: mine}), clock)
        await target.read()
        assert target.spare(mine.key, mine) == 10
        clock.now = 107
        await target.read()
        assert target.spare(mine.key, mine) == 3
        target.wanted = {RouteKey("10.0.0.2/32", 254, 0, 0): workload_route("10.0.0.2/32", 1)}
        assert target.spare(mine.key, mine) == 0
        blackhole = Route("10.0.0.0/26", type=RouteType.BLACKHOLE, protocol=80)
        assert target.spare(blackhole.key, blackhole) == 0

    asyncio.run(scenario())


# --- throttle -----------------------------------------------------------------------------------


def test_a_flood_is_slowed_to_ten_a_second() -> None:
    throttle = Throttle(0)
    assert [throttle.wait(0) for _ in range(10)] == [0] * 10
    assert throttle.wait(0) == pytest.approx(0.1)
    assert throttle.wait(0.1) == pytest.approx(0.1)
    assert throttle.wait(100) == 0
