"""The reconciler: convergence from any state, status per object, back-off, sparing."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.core.backoff import Backoff
from tortie.core.errors import KernelError
from tortie.core.reconcile import Outcome, Reconciler, State

pytestmark = pytest.mark.unit


class FakeKernel:
    """A dictionary that refuses what it is told to refuse."""

    def __init__(self, objects: dict[str, int] | None = None) -> None:
        self.objects = dict(objects or {})
        self.refuse: dict[str, str] = {}
        self.list_error: KernelError | None = None
        self.apply_error: KernelError | None = None
        self.lists = self.applies = 0

    async def read(self) -> Mapping[str, int]:
        self.lists += 1
        if self.list_error:
            raise self.list_error
        return dict(self.objects)

    async def apply(self, update: Mapping[str, int], delete: Collection[str]) -> Mapping[str, str]:
        self.applies += 1
        if self.apply_error:
            raise self.apply_error
        for key in delete:
            if key not in self.refuse:
                self.objects.pop(key, None)
        for key, value in update.items():
            if key not in self.refuse:
                self.objects[key] = value
        return {key: self.refuse[key] for key in [*update, *delete] if key in self.refuse}

    def same(self, desired: int, actual: int) -> bool:
        return desired == actual


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(
    kernel: FakeKernel, clock: Clock | None = None, spare: Callable[[str, int], float] | None = None
) -> Reconciler[str, int]:
    policy = Backoff(first=1, cap=8)
    return Reconciler("things", kernel, clock=clock or Clock(), rand=lambda: 0.5, backoff=policy, spare=spare)


def sync(reconciler: Reconciler[str, int]) -> Outcome:
    return asyncio.run(reconciler.sync())


sets = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3))


@given(start=sets, wishes=st.lists(sets, min_size=1, max_size=4), mess=sets)
def test_any_history_ends_in_the_last_wish(
    start: dict[str, int], wishes: list[dict[str, int]], mess: dict[str, int]
) -> None:
    kernel = FakeKernel(start)
    reconciler = make(kernel)
    for wish in wishes:
        reconciler.want(wish)
        assert sync(reconciler).ok
        assert kernel.objects == wish
    kernel.objects = dict(mess)
    reconciler.forget()
    assert sync(reconciler).ok
    assert kernel.objects == wishes[-1]
    assert {k: s.state for k, s in reconciler.statuses().items()} == dict.fromkeys(wishes[-1], State.DONE)


def test_nothing_to_do_writes_nothing_and_lists_once() -> None:
    kernel = FakeKernel({"a": 1})
    reconciler = make(kernel)
    reconciler.want({"a": 1})
    for _ in range(3):
        sync(reconciler)
    assert (kernel.lists, kernel.applies) == (1, 0)


def test_a_change_costs_what_changed() -> None:
    compared: list[tuple[int, int]] = []

    class Counting(FakeKernel):
        def same(self, desired: int, actual: int) -> bool:
            compared.append((desired, actual))
            return super().same(desired, actual)

    kernel = Counting({"a": 1, "b": 2, "old": 0})
    reconciler = make(kernel)
    reconciler.want({"a": 1, "b": 2, "c": 3})
    sync(reconciler)
    compared.clear()
    reconciler.put("b", 5)
    assert sync(reconciler).updated == 1
    assert compared == [(5, 2)] and kernel.objects == {"a": 1, "b": 5, "c": 3}


def test_what_was_under_way_when_it_was_cancelled_is_looked_at_again() -> None:
    class Hanging(FakeKernel):
        async def apply(self, update: Mapping[str, int], delete: Collection[str]) -> Mapping[str, str]:
            if not self.applies:
                self.applies += 1
                await asyncio.Event().wait()
            return await super().apply(update, delete)

    async def run() -> None:
        syncing = asyncio.create_task(reconciler.sync())
        await asyncio.sleep(0)
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)
        await reconciler.sync()

    kernel = Hanging({"old": 0})
    reconciler = make(kernel)
    reconciler.want({"a": 1})
    asyncio.run(run())
    assert kernel.objects == {"a": 1}


def test_what_was_under_way_when_it_broke_is_looked_at_again() -> None:
    class Broken(FakeKernel):
        async def apply(self, update: Mapping[str, int], delete: Collection[str]) -> Mapping[str, str]:
            failed = await super().apply(update, delete)
            if self.applies == 1:
                raise RuntimeError("a mistake of ours")
            return failed

    kernel = Broken({"old": 0})
    reconciler = make(kernel)
    reconciler.want({"a": 1})
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        sync(reconciler)
    assert sync(reconciler).ok
    status = reconciler.status("a")
    assert kernel.objects == {"a": 1} and status is not None and status.state is State.DONE


@pytest.mark.parametrize("call", ["read", "apply"])
def test_what_is_forgotten_in_the_middle_of_a_sync_is_listed_again(call: str) -> None:
    """As when an event, or the listing every 90 s, comes while thousands of routes are being written."""

    class Disturbed(FakeKernel):
        async def read(self) -> Mapping[str, int]:
            found = await super().read()
            self.disturb("read")
            return found

        async def apply(self, update: Mapping[str, int], delete: Collection[str]) -> Mapping[str, str]:
            failed = await super().apply(update, delete)
            self.disturb("apply")
            return failed

        def disturb(self, during: str) -> None:
            if during == call and self.lists == 1:
                self.objects.pop("a", None)
                reconciler.forget()

    kernel = Disturbed({"a": 1})
    reconciler = make(kernel)
    reconciler.want({"a": 1, "b": 2})
    doubts = []
    for _ in range(2):
        assert sync(reconciler).ok
        doubts.append(reconciler.in_doubt)
    assert doubts == [True, False]
    assert kernel.objects == {"a": 1, "b": 2}
    assert {status.state for status in reconciler.statuses().values()} == {State.DONE}


def test_a_refused_object_waits_while_others_go_on() -> None:
    kernel, clock = FakeKernel(), Clock()
    kernel.refuse = {"bad": "no such device"}
    reconciler = make(kernel, clock)
    reconciler.want({"bad": 1, "good": 2})
    outcome = sync(reconciler)
    assert kernel.objects == {"good": 2}
    assert outcome.failed == {"bad": "no such device"} and outcome.retry_at == 1001.0
    status = reconciler.status("bad")
    assert status is not None and (status.state, status.reason) == (State.FAILED, "no such device")
    applies = kernel.applies
    clock.now += 0.5
    outcome = sync(reconciler)
    assert outcome.retry_at == 1001.0 and kernel.applies == applies, "still backing off"
    assert outcome.failed == {"bad": "no such device"}, "what waits for its next try has still failed"
    clock.now += 0.6
    assert sync(reconciler).retry_at == pytest.approx(clock.now + 2), "the wait doubles"
    kernel.refuse = {}
    clock.now += 2
    outcome = sync(reconciler)
    assert outcome.ok and outcome.retry_at is None and kernel.objects == {"bad": 1, "good": 2}
    status = reconciler.status("bad")
    assert status is not None and status.state is State.DONE


def test_a_changed_wish_is_tried_at_once() -> None:
    kernel = FakeKernel()
    kernel.refuse = {"a": "busy"}
    reconciler = make(kernel)
    reconciler.put("a", 1)
    sync(reconciler)
    kernel.refuse = {}
    reconciler.put("a", 2)
    assert sync(reconciler).ok and kernel.objects == {"a": 2}


def test_failed_since_is_when_it_began() -> None:
    kernel, clock = FakeKernel(), Clock()
    kernel.refuse = {"a": "busy"}
    reconciler = make(kernel, clock)
    reconciler.put("a", 1)
    sync(reconciler)
    clock.now += 100
    sync(reconciler)
    status = reconciler.status("a")
    assert status is not None and status.since == 1000.0


def test_a_failed_deletion_is_retried_and_forgotten_when_it_vanishes() -> None:
    kernel, clock = FakeKernel({"old": 1}), Clock()
    kernel.refuse = {"old": "busy"}
    reconciler = make(kernel, clock)
    assert sync(reconciler).retry_at == 1001.0
    kernel.objects.clear()
    clock.now += 1
    assert sync(reconciler).retry_at is None


def test_kernel_unreadable_then_back() -> None:
    kernel, clock = FakeKernel({"x": 1}), Clock()
    kernel.list_error = KernelError("dump", "things", 4)
    reconciler = make(kernel, clock)
    reconciler.want({"a": 1})
    outcome = sync(reconciler)
    assert not outcome.ok and outcome.retry_at == 1001.0
    assert sync(reconciler).retry_at == 1001.0 and kernel.lists == 1
    kernel.list_error = None
    clock.now += 1
    assert sync(reconciler).ok and kernel.objects == {"a": 1}


def test_a_wholesale_refusal_names_every_object() -> None:
    kernel, clock = FakeKernel(), Clock()
    kernel.apply_error = KernelError("restore", "tables", 0, "lock held")
    reconciler = make(kernel, clock)
    reconciler.want({"a": 1, "b": 2})
    assert set(sync(reconciler).failed) == {"a", "b"}
    kernel.apply_error = None
    clock.now += 1
    assert sync(reconciler).ok and kernel.objects == {"a": 1, "b": 2}


def test_drift_seen_by_an_event_is_pending_until_repaired() -> None:
    kernel = FakeKernel()
    reconciler = make(kernel)
    reconciler.want({"a": 1})
    sync(reconciler)
    del kernel.objects["a"]
    reconciler.observe("a", None)
    status = reconciler.status("a")
    assert status is not None and status.state is State.PENDING and status.reason == "changed behind our back"
    sync(reconciler)
    assert kernel.objects == {"a": 1}


def test_spared_objects_stay_until_their_time() -> None:
    kernel, clock = FakeKernel({"young": 1, "foreign": 2, "old": 3}), Clock()
    waits = {"young": 10.0, "foreign": inf, "old": 0.0}
    reconciler = make(kernel, clock, spare=lambda key, _value: waits[key])
    outcome = sync(reconciler)
    assert kernel.objects == {"young": 1, "foreign": 2} and outcome.retry_at == 1010.0
    waits["young"] = 0.0
    assert sync(reconciler).retry_at is None and kernel.objects == {"foreign": 2}
