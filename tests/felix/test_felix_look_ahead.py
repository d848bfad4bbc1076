"""Reading the kernel beside other work: a change does not wait for it, and neither puts the other off."""

import asyncio
from collections.abc import Collection, Mapping

import pytest

from tests.felix.fakes import FakeClock, FakeKernel
from tortie.core.errors import KernelError
from tortie.felix.dataplane.duty import Duty
from tortie.linux.overtaken import Writes

pytestmark = pytest.mark.unit


class SlowKernel(FakeKernel[str, int]):
    """Reading ends when it is let; a write that comes before makes it worthless."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = Writes()
        self.let: asyncio.Event | None = None

    async def read(self) -> Mapping[str, int]:
        mark, found = self.writes.mark(), await super().read()
        if self.let is not None:
            await self.let.wait()
        self.writes.check(mark, "things")
        return found

    async def apply(self, update: Mapping[str, int], delete: Collection[str]) -> Mapping[str, str]:
        with self.writes.under_way():
            return await super().apply(update, delete)


def a_duty(kernel: SlowKernel, clock: FakeClock, recheck: float = 0.0) -> Duty[str, int]:
    duty: Duty[str, int] = Duty(
        "things", kernel, interval=100, recheck=recheck, clock=clock, rand=lambda: 0.0
    )
    duty.put("a", 1)
    asyncio.run(duty.sync())
    return duty


def test_what_was_read_ahead_is_repaired_and_not_read_again() -> None:
    kernel, clock = SlowKernel(), FakeClock()
    duty = a_duty(kernel, clock)
    assert clock.now + 70 < duty.look_ahead_due() < duty.next_due() == clock.now + 100
    clock.now = duty.look_ahead_due()
    kernel.objects["b"] = 2
    asyncio.run(duty.look_ahead())
    assert duty.next_due() < clock.now and kernel.objects == {"a": 1, "b": 2}
    asyncio.run(duty.sync())
    assert kernel.objects == {"a": 1} and kernel.reads == 2
    assert duty.next_due() == clock.now + 100


def test_reading_ahead_that_finds_nothing_leaves_nothing_to_do() -> None:
    kernel, clock = SlowKernel(), FakeClock()
    duty = a_duty(kernel, clock)
    clock.now = duty.look_ahead_due()
    asyncio.run(duty.look_ahead())
    assert duty.next_due() == clock.now + 100 and duty.settled


def test_a_change_does_not_wait_for_what_is_being_read() -> None:
    async def run() -> None:
        clock.now = duty.look_ahead_due()
        kernel.let = asyncio.Event()
        looking = asyncio.create_task(duty.look_ahead())
        await asyncio.sleep(0)
        clock.now += 50  # longer than until it would have to be read
        duty.put("b", 2)
        await duty.sync()
        assert kernel.objects == {"a": 1, "b": 2}
        kernel.let.set()
        await looking

    kernel, clock = SlowKernel(), FakeClock()
    duty = a_duty(kernel, clock)
    asyncio.run(run())
    kernel.let = None
    del kernel.objects["b"]
    assert duty.next_due() < clock.now, "what was read is worthless, and is due"
    asyncio.run(duty.sync())
    assert kernel.objects == {"a": 1, "b": 2}


def test_writing_without_end_does_not_put_the_next_reading_off() -> None:
    kernel, clock = SlowKernel(), FakeClock()
    duty = a_duty(kernel, clock, recheck=5)
    for number in range(60):
        clock.now += 2
        duty.put("a", number + 2)
        asyncio.run(duty.sync())
    assert kernel.reads == 2, "once in an interval"


def test_a_mark_tells_of_writes_that_began_ended_or_went_on() -> None:
    def told(mark: int) -> bool:
        try:
            writes.check(mark, "things")
        except KernelError:
            return True
        return False

    writes = Writes()
    before = writes.mark()
    assert not told(before)
    with writes.under_way():
        during = writes.mark()
        assert told(before) and told(during)
    assert told(before) and told(during) and not told(writes.mark())
