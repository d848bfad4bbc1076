"""The small machines of the dataplane: IP sets, interfaces, reachable chains, duties, throttle."""

import asyncio
import re
from collections.abc import Mapping
from math import inf
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.felix.fakes import FakeClock, FakeKernel
from tortie.felix.agent import Agent
from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import Members
from tortie.felix.dataplane.chains import ChainGraph, Key
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.interfaces import Interface, Interfaces
from tortie.felix.dataplane.sets import SetWriter
from tortie.felix.rules import ir
from tortie.felix.rules.ir import Chain, Goto, Hook, Jump, Rule
from tortie.felix.rules.settings import Settings
from tortie.felix.throttle import Throttle
from tortie.linux.addresses import Address
from tortie.linux.ipsets import IPSet
from tortie.linux.links import IFF_RUNNING, IFF_UP, Link

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


def test_a_set_is_wrong_until_it_was_written_also_while_the_kernel_cannot_be_read() -> None:
    clock, kernel = FakeClock(), FakeKernel[str, IPSet]()
    duty: Duty[str, IPSet] = Duty("sets", kernel, interval=90, clock=clock, rand=lambda: 0.5)
    writer = SetWriter(4, Settings(), duty, node="node1", maximum=4)

    def wrong(*members: str) -> dict[str, str]:
        clock.now += 1000
        writer.update(State(sets={"s:a": Members("ip", set(members))}), Touched(sets={"s:a"}))
        asyncio.run(duty.sync())
        return writer.wrong()

    assert wrong("10.0.0.1") == {}
    kernel.unreadable = True
    assert wrong("10.0.0.1") == {}, "what was written is believed"
    assert wrong("10.0.0.1", "10.0.0.2") == {"s:a": "pending"}
    kernel.unreadable, (name,) = False, duty.desired
    kernel.refuse[name] = "no room"
    assert wrong("10.0.0.1", "10.0.0.2") == {"s:a": "no room"}
    kernel.unreadable = True
    assert wrong("10.0.0.1", "10.0.0.2") == {"s:a": "no room"}
    kernel.unreadable, kernel.refuse = False, {}
    assert wrong("10.0.0.1", "10.0.0.2") == {}


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


# --- throttle -----------------------------------------------------------------------------------


def test_a_flood_is_slowed_to_ten_a_second() -> None:
    throttle = Throttle(0)
    assert [throttle.wait(0) for _ in range(10)] == [0] * 10
    assert throttle.wait(0) == pytest.approx(0.1)
    assert throttle.wait(0.1) == pytest.approx(0.1)
    assert throttle.wait(100) == 0


def test_before_it_may_do_anything_felix_waits_and_does_not_turn() -> None:
    """An address went while the datastore was read: what is due of it is done after that."""
    agent: Any = Agent.__new__(Agent)
    agent._in_sync, agent._watch = False, SimpleNamespace(scanned=True)
    agent._driver = SimpleNamespace(next_due=lambda: inf)
    agent._reports = SimpleNamespace(files_due=lambda: inf)
    agent._interfaces = SimpleNamespace(next_due=lambda: 0.0)
    turns = 0

    async def scenario() -> None:
        nonlocal turns
        agent._woken = asyncio.Event()
        applying = asyncio.create_task(agent._apply_changes())
        wait = agent._wait_for_work

        async def counted() -> None:
            nonlocal turns
            turns += 1
            await wait()

        agent._wait_for_work = counted
        for _ in range(1000):
            await asyncio.sleep(0)
        applying.cancel()
        await asyncio.wait([applying])

    asyncio.run(scenario())
    assert turns == 1
