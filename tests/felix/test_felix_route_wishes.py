"""Routes that several parts of felix wish for, and who owns one: the best wish holds."""

import asyncio
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.felix.fakes import FakeClock, FakeKernel
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.routes import Candidate, Ownership, RouteClass, RouteTable, WorkloadRouteTarget
from tortie.linux.routes import SCOPE_LINK, Route, RouteKey, RouteType, same

pytestmark = pytest.mark.unit


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


def test_an_address_whose_metric_changes_is_never_without_a_route_and_keeps_its_connections() -> None:
    async def scenario() -> None:
        old = workload_route("10.0.0.1/32", 1)
        new, elsewhere = structs.replace(old, metric=512), workload_route("10.0.0.2/32", 1)
        kernel = FakeRoutes({old.key: old, elsewhere.key: elsewhere})
        target, forget = a_target(kernel, FakeClock())
        target.wanted = {new.key: new}
        target.claim(new.key)
        await target.read()
        assert await target.apply({new.key: new}, [old.key, elsewhere.key]) == {}
        assert kernel.log == [("delete", elsewhere.key), ("update", new.key), ("delete", old.key)]
        target.noticed(old.key, None)  # the echo
        await asyncio.sleep(0)
        assert forget.addresses == ["10.0.0.2"]
        target.wanted = {}
        assert await target.apply({}, [new.key]) == {}
        await asyncio.sleep(0)
        assert forget.addresses == ["10.0.0.2", "10.0.0.1"]

    asyncio.run(scenario())


def test_an_address_keeps_the_route_it_has_until_the_one_with_another_metric_stands() -> None:
    async def scenario() -> None:
        old = workload_route("10.0.0.1/32", 1)
        new = structs.replace(old, metric=512)
        kernel = FakeRoutes({old.key: old})
        target, forget = a_target(kernel, FakeClock())
        target.wanted = {new.key: new}
        target.claim(new.key)
        await target.read()
        kernel.refuse[new.key] = "out of memory"
        failed = await target.apply({new.key: new}, [old.key])
        assert failed.keys() == {old.key, new.key} and kernel.objects == {old.key: old}
        del kernel.refuse[new.key]
        assert await target.apply({new.key: new}, [old.key]) == {}
        assert kernel.objects == {new.key: new} and forget.addresses == []

    asyncio.run(scenario())


def test_connections_are_forgotten_also_where_the_kernel_made_a_metric_of_none() -> None:
    async def scenario() -> None:
        wish = workload_route("fd00::1/128", 1)
        there = structs.replace(wish, metric=1024)  # in IPv6 no route is without
        target, forget = a_target(FakeRoutes({there.key: there}), FakeClock())
        target.wanted = {wish.key: wish}
        target.claim(wish.key)
        await target.read()
        target.interface_lost(1)
        await asyncio.sleep(0)
        assert forget.addresses == ["fd00::1"]

    asyncio.run(scenario())


def test_the_end_of_a_route_costs_the_same_however_many_are_wanted() -> None:
    class Counted(dict[RouteKey, Route]):
        def values(self) -> Any:
            raise AssertionError("looked at all of them")

    async def scenario() -> None:
        going = workload_route("10.0.0.1/32", 1)
        target, forget = a_target(FakeRoutes({going.key: going}), FakeClock())
        target.wanted = Counted()
        await target.read()
        assert await target.apply({}, [going.key]) == {}
        await asyncio.sleep(0)
        assert forget.addresses == ["10.0.0.1"]

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
        async with asyncio.timeout(60):
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
