"""The syncer on a datastore in memory: whatever goes wrong, replaying its batches gives the store."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.aio import eventually, others, run
from tests.support.memory_backend import MemoryBackend
from tests.support.replay import Replay, consuming
from tortie.core.backoff import Backoff
from tortie.core.errors import (
    DatastoreError,
    DatastoreUnreachable,
    FieldError,
    RevisionGone,
    Unauthorized,
    ValidationError,
)
from tortie.datastore import codec
from tortie.datastore import syncer as syncer_module
from tortie.datastore.backend import Listed, WatchEvent
from tortie.datastore.keys import Key, Listing, ResourceKey, ResourceList, parse
from tortie.datastore.syncer import Batch, Syncer, SyncStatus
from tortie.datastore.types.meta import ObjectMeta

pytestmark = pytest.mark.unit

WAIT, RESYNC, IN_SYNC = SyncStatus.WAIT_FOR_DATASTORE, SyncStatus.RESYNC_IN_PROGRESS, SyncStatus.IN_SYNC
POOLS, NODES = ResourceList("IPPool"), ResourceList("Node")
AWAY = DatastoreUnreachable("away")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncer_module, "_RETRY", Backoff(first=0.0005, cap=0.002))


def pool(name: str) -> Key:
    return ResourceKey("IPPool", name)


def node(name: str) -> Key:
    return ResourceKey("Node", name)


BROKEN = b"{not json"


class Store(MemoryBackend):
    """Numbers are written as resources that carry them; lists and watches are counted and fail on command."""

    def __init__(self, fail_lists: Sequence[DatastoreError] = ()) -> None:
        super().__init__()
        self.before = self._count_and_fail
        self.lists = self.watches = 0
        self.fail_lists = list(fail_lists)  # raised by the next lists, in turn
        self.fail_watches: list[DatastoreError] = []

    def write(self, changes: Mapping[Key, Any]) -> int:
        return super().write({key: _numbered(key, value) for key, value in changes.items()})

    async def _count_and_fail(self, operation: str, _what: Any) -> None:
        self.lists += operation == "list"
        self.watches += operation == "watch"
        failures = {"list": self.fail_lists, "watch": self.fail_watches}.get(operation)
        if failures:
            raise failures.pop(0)


def _numbered(key: Key, value: Any) -> Any:
    if not isinstance(value, int):
        return value
    assert isinstance(key, ResourceKey)
    return key.type(metadata=ObjectMeta(name=key.name, labels={"number": str(value)}))


def number(resource: Any) -> int:
    return int(resource.labels["number"])


@asynccontextmanager
async def following(
    backend: Store, *listings: Listing, synced: bool = True, **options: Any
) -> AsyncIterator[tuple[Syncer, Replay]]:
    """A syncer at work and what its consumer knows; in sync to begin with."""
    syncer, replay = Syncer(backend, listings or (POOLS,), **options), Replay(number)
    async with consuming(syncer, replay, synced=synced):
        yield syncer, replay


def truth(backend: Store) -> dict[Key, Any]:
    """The number of each readable object."""
    stored = {parse(path): backend.raw(path) for path in backend.paths()}
    return {
        key: number(codec.decode(key.type, data))
        for key, data in stored.items()
        if key and data not in (None, BROKEN)
    }


# --- the ordinary course ------------------------------------------------------------------------


def test_statuses_and_updates_of_an_ordinary_day() -> None:
    async def scenario() -> None:
        backend = Store()
        backend.write({pool("a"): 1, pool("b"): 2, node("n"): 3})
        async with following(backend, POOLS, NODES) as (syncer, replay):
            assert replay.state == {pool("a"): 1, pool("b"): 2, node("n"): 3}
            assert replay.statuses[0] is WAIT and syncer.status is IN_SYNC
            backend.write({pool("a"): 10})
            backend.write({pool("b"): None})
            backend.write({node("m"): 4})
            await eventually(lambda: replay.state == truth(backend))
            assert replay.statuses[-1] is IN_SYNC and syncer.problems() == {}

    run(scenario())


def test_an_empty_store_is_in_sync_too() -> None:
    async def scenario() -> None:
        async with following(Store(), POOLS, NODES) as (_, replay):
            assert replay.state == {} and replay.status is IN_SYNC

    run(scenario())


def test_a_large_listing_comes_in_bounded_batches_and_not_while_waiting() -> None:
    async def scenario() -> None:
        backend = Store()
        backend.write({pool(f"p{n}"): n for n in range(5500)})
        async with following(backend) as (_, replay):
            assert replay.state == truth(backend)
            sizes = [len(batch.updates) for batch in replay.batches]
            assert max(sizes) == 1000 and len(sizes) >= 6
            assert replay.statuses == [WAIT, RESYNC, IN_SYNC]

    run(scenario())


def test_the_status_in_sync_comes_with_the_last_update_not_before() -> None:
    """One listing is long and its consumer slow; the other, empty one is done at once."""

    async def scenario() -> None:
        backend = Store()
        backend.write({pool(f"p{n}"): n for n in range(3000)})
        syncer = Syncer(backend, [NODES, POOLS])
        seen = 0
        async with aclosing(syncer.batches()) as batches:
            async for batch in batches:
                seen += len(batch.updates)
                if batch.status is IN_SYNC:
                    assert seen == 3000
                    break
                await asyncio.sleep(0.01)

    run(scenario())


def test_a_slow_consumer_holds_the_watch_back() -> None:
    async def scenario() -> None:
        backend = Store()
        async with following(backend) as (syncer, replay):
            replay.reading.clear()
            for n in range(10_000):
                backend.write({pool(f"p{n % 50}"): n})
            await asyncio.sleep(0.05)
            waiting = syncer._follows[0].out.qsize()
            assert waiting <= syncer_module._QUEUE
            replay.reading.set()
            await eventually(lambda: replay.state == truth(backend))

    run(scenario())


def test_iterating_again_begins_anew() -> None:
    """As a supervised consumer does after it failed, without having closed the first iterator."""

    async def scenario() -> None:
        backend = Store()
        backend.write({pool("a"): 1})
        syncer = Syncer(backend, [POOLS])
        kept = []
        for _ in range(3):
            replay, batches = Replay(number), syncer.batches()
            kept.append(batches)
            async for batch in batches:
                replay.take(batch)
                if replay.in_sync:
                    break
            assert replay.state == {pool("a"): 1}
            backend.write({pool("a"): 1})
        for batches in kept:
            await batches.aclose()

    run(scenario())


@pytest.mark.parametrize("moment", ["unstarted", "first", "synced", "blocked", "outage"])
def test_closing_leaves_nothing_behind(moment: str) -> None:
    async def scenario() -> None:
        backend = Store()
        backend.write({pool(f"p{n}"): n for n in range(5000 if moment == "blocked" else 5)})
        if moment == "outage":
            backend.fail_lists = [AWAY] * 1000
        batches = Syncer(backend, [POOLS, NODES]).batches()
        if moment != "unstarted":
            await anext(batches)
        if moment == "synced":
            while (await anext(batches)).status is not IN_SYNC:
                pass
        if moment in ("blocked", "outage"):
            await asyncio.sleep(0.01)
        await batches.aclose()
        assert not others()

    run(scenario())


def test_a_cancelled_consumer_is_cancelled() -> None:
    async def scenario() -> None:
        task = asyncio.create_task(Replay(number).consume(Syncer(Store(), [POOLS])))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())


# --- outages ------------------------------------------------------------------------------------


def test_what_happens_during_an_outage_is_told_afterwards() -> None:
    async def scenario() -> None:
        backend = Store()
        backend.write({pool("kept"): 1, pool("changed"): 2, pool("gone"): 3, pool("remade"): 4})
        async with following(backend) as (_, replay):
            backend.fail_watches = [AWAY] * 3
            backend.drop_watches()
            backend.write({pool("changed"): 20, pool("gone"): None, pool("remade"): None, pool("made"): 5})
            backend.write({pool("remade"): 40, pool("fleeting"): 6})
            backend.write({pool("fleeting"): None})
            await eventually(lambda: replay.state == truth(backend))
            assert backend.lists == 1  # the watch went on where it had stopped
            assert replay.statuses[-1] is IN_SYNC

    run(scenario())


def test_compaction_during_an_outage_costs_a_list_and_no_event() -> None:
    async def scenario() -> None:
        backend = Store()
        backend.write({pool("kept"): 1, pool("changed"): 2, pool("gone"): 3})
        async with following(backend) as (_, replay):
            backend.fail_watches = [AWAY] * 3
            backend.drop_watches()
            backend.write({pool("changed"): 20, pool("gone"): None, pool("made"): 5})
            backend.compact()
            before = len(replay.batches)
            await eventually(lambda: replay.state == truth(backend))
            told = [u.key for batch in replay.batches[before:] for u in batch.updates]
            assert sorted(map(str, told)) == ["IPPool(changed)", "IPPool(gone)", "IPPool(made)"]
            assert backend.lists == 2

    run(scenario())


def test_what_became_invalid_during_an_outage_is_gone() -> None:
    async def scenario() -> None:
        backend = Store()
        backend.write({pool("kept"): 1, pool("unreadable"): 2, pool("refused"): 3})
        async with following(backend, check=refuse_negative) as (syncer, replay):
            backend.fail_watches = [AWAY] * 3
            backend.drop_watches()
            backend.write({pool("unreadable"): BROKEN, pool("refused"): -1})
            backend.compact()
            await eventually(lambda: replay.state == {pool("kept"): 1})
            await eventually(lambda: len(syncer.problems()) == 2)
            assert backend.lists == 2

    run(scenario())


def test_a_watch_cut_off_within_a_transaction_loses_nothing() -> None:
    async def scenario() -> None:
        backend = Store()
        syncer, replay = Syncer(backend, [POOLS]), Replay(number)
        async with aclosing(syncer.batches()) as batches:
            async for batch in batches:
                replay.take(batch)
                if backend.revision == 1 and replay.in_sync:
                    backend.write({pool(name): 1 for name in "abcd"})
                elif 0 < len(replay.state) < 4 and backend.watches == 1:
                    backend.drop_watches()
                if len(replay.state) == 4:
                    break
        assert backend.watches == 2

    run(scenario())


def test_a_list_that_fails_is_tried_again() -> None:
    async def scenario() -> None:
        backend = Store(fail_lists=[AWAY, RevisionGone("gone"), Unauthorized("no"), AWAY])
        backend.write({pool("a"): 1})
        async with following(backend) as (_, replay):
            assert replay.state == {pool("a"): 1} and backend.lists == 5

    run(scenario())


def test_a_forbidden_listing_does_not_starve_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Forbidding(Store):
        forbidden = True

        async def list(self, what: Listing, revision: str = "") -> Listed:
            if what == NODES and self.forbidden:
                raise Unauthorized("permission denied")
            return await Store.list(self, what, revision)

    async def scenario() -> None:
        backend = Forbidding()
        backend.write({pool("a"): 1})
        async with following(backend, POOLS, NODES, synced=False) as (syncer, replay):
            await eventually(lambda: replay.state == truth(backend))
            backend.write({pool("a"): 2})
            await eventually(lambda: replay.state == truth(backend))
            assert replay.status is RESYNC
            assert syncer.problems() == {NODES.prefix(): "connection is unauthorized: permission denied"}
            backend.forbidden = False
            await eventually(lambda: replay.in_sync and syncer.problems() == {})

    run(scenario())
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1 and NODES.prefix() in said[0] and "unauthorized" in said[0]


def test_one_outage_is_one_warning_and_one_all_clear(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kinds = ["IPPool", "Node", "BGPPeer", "Tier", "Profile"]

    async def scenario() -> None:
        backend = Store()
        async with following(backend, *(ResourceList(kind) for kind in kinds)) as (syncer, replay):
            caplog.clear()
            backend.fail_watches = [AWAY] * 100_000
            backend.drop_watches()
            await eventually(lambda: len(syncer.problems()) == 5)
            backend.fail_watches = []
            await eventually(lambda: not syncer.problems())
            assert replay.statuses[-1] is IN_SYNC

    run(scenario())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


# --- ten minutes --------------------------------------------------------------------------------


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_after_ten_minutes_of_outage_we_wait_and_keep_the_data() -> None:
    async def scenario() -> None:
        backend, clock = Store(), Clock()
        backend.write({pool("a"): 1, pool("b"): 2})
        async with following(backend, POOLS, NODES, clock=clock) as (syncer, replay):
            clock.now += 5000  # a quiet watch is no outage
            backend.fail_watches, backend.fail_lists = [AWAY] * 100_000, [AWAY] * 100_000
            backend.drop_watches()
            await eventually(lambda: len(syncer.problems()) == 2)
            clock.now += 599
            before = backend.watches
            await eventually(lambda: backend.watches > before + 4)
            assert replay.status is IN_SYNC
            clock.now += 10
            await eventually(lambda: replay.status is WAIT)
            assert replay.state == {pool("a"): 1, pool("b"): 2}
            backend.write({pool("a"): None})
            backend.fail_watches, backend.fail_lists = [], []
            await eventually(lambda: replay.in_sync and replay.state == {pool("b"): 2})
            assert replay.statuses.count(WAIT) == 2
            told = [u.type for b in replay.batches for u in b.updates if u.key == pool("b")]
            assert told == ["new"]  # not told again: it had not changed
            lists = backend.lists
            backend.drop_watches()  # the clock of the next outage starts at zero
            await asyncio.sleep(0.02)
            assert replay.in_sync and backend.lists == lists

    run(scenario())


def test_updates_do_not_come_while_waiting_even_if_the_consumer_was_late() -> None:
    """All at once in the queue: the last updates, ten minutes of outage. Replay refuses them in one."""

    async def scenario() -> None:
        backend, clock = Store(), Clock()
        async with following(backend, clock=clock) as (syncer, replay):
            replay.reading.clear()
            backend.write({pool("first"): 0})
            await eventually(lambda: len(replay.batches[-1].updates) == 1)  # with this one he is busy
            backend.write({pool("a"): 1})
            await eventually(lambda: not syncer._follows[0].out.empty())
            backend.fail_watches, backend.fail_lists = [AWAY] * 100_000, [AWAY] * 100_000
            backend.drop_watches()
            await eventually(lambda: syncer.problems())
            clock.now += 601
            await eventually(lambda: syncer._follows[0].status is WAIT)
            replay.reading.set()
            await eventually(lambda: replay.status is WAIT)
            assert replay.state == {pool("first"): 0, pool("a"): 1}

    run(scenario())


def test_changing_reasons_do_not_prolong_an_outage() -> None:
    async def scenario() -> None:
        backend, clock = Store(), Clock()
        async with following(backend, clock=clock) as (syncer, replay):
            backend.fail_watches = [AWAY, Unauthorized("no")] * 10_000
            backend.fail_lists = list(backend.fail_watches)
            backend.drop_watches()
            await eventually(lambda: syncer.problems())
            for _ in range(4):
                clock.now += 200
                seen = backend.watches
                await eventually(lambda: backend.watches > seen + 1 or replay.status is WAIT)  # noqa: B023
            await eventually(lambda: replay.status is WAIT)

    run(scenario())


def test_one_listing_away_for_ten_minutes_is_a_resync_of_the_whole() -> None:
    class Partial(Store):
        cut_off = False

        def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
            if what == NODES and self.cut_off:
                raise AWAY
            return Store.watch(self, what, revision)

        async def list(self, what: Listing, revision: str = "") -> Listed:
            if what == NODES and self.cut_off:
                raise AWAY
            return await Store.list(self, what, revision)

    async def scenario() -> None:
        backend, clock = Partial(), Clock()
        async with following(backend, POOLS, NODES, clock=clock) as (syncer, replay):
            backend.cut_off = True
            backend.drop_watches()
            await eventually(lambda: NODES.prefix() in syncer.problems())
            clock.now += 601
            await eventually(lambda: replay.status is RESYNC)
            backend.cut_off = False
            await eventually(lambda: replay.in_sync)

    run(scenario())


def test_never_reached_is_waiting() -> None:
    async def scenario() -> None:
        backend = Store(fail_lists=[AWAY] * 1_000_000)
        async with following(backend, synced=False) as (_, replay):
            await eventually(lambda: backend.lists > 5)
            assert replay.batches == [Batch([], WAIT)]

    run(scenario())


# --- what cannot be understood ------------------------------------------------------------------


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if "ignoring" in record.getMessage()]
    caplog.clear()
    return found


def refuse_negative(value: Any) -> None:
    if number(value) < 0:
        raise ValidationError([FieldError("IPPool.spec", number(value), "negative")])


def test_a_broken_object_is_absent_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        backend = Store()
        backend.write({pool("a"): 1, pool("bad"): BROKEN, pool("low"): -1})
        async with following(backend, check=refuse_negative) as (syncer, replay):
            said = complaints(caplog)
            assert len(said) == 2 and any(pool("bad").path() in line for line in said)
            assert any("negative" in line and pool("low").path() in line for line in said)
            assert set(syncer.problems()) == {pool("bad").path(), pool("low").path()}

            backend.write({pool("a"): BROKEN, pool("low"): -1, pool("bad"): BROKEN})  # the same again
            await eventually(lambda: replay.state == {})  # what became unreadable is gone
            assert [pool("a").path() in line for line in complaints(caplog)] == [True]

            backend.drop_watches()
            backend.compact()
            backend.write({pool("x"): 1})
            backend.compact()  # a list, which finds them all once more
            await eventually(lambda: replay.state == {pool("x"): 1})
            assert complaints(caplog) == []

            backend.write({pool("low"): -2})  # another problem of the same object
            await eventually(lambda: "-2" in syncer.problems()[pool("low").path()])
            assert len(complaints(caplog)) == 1

            backend.write({pool("a"): 5, pool("low"): 6})  # repaired ...
            await eventually(lambda: replay.state == {pool("x"): 1, pool("a"): 5, pool("low"): 6})
            assert set(syncer.problems()) == {pool("bad").path()}
            assert sum("valid again" in record.getMessage() for record in caplog.records) == 2
            backend.write({pool("a"): BROKEN, pool("low"): -1})  # ... and broken again
            await eventually(lambda: replay.state == {pool("x"): 1})
            assert len(complaints(caplog)) == 2

            backend.write({pool("bad"): None, pool("a"): None, pool("low"): None})
            await eventually(lambda: syncer.problems() == {})
            backend.write({pool("bad"): BROKEN})
            await eventually(lambda: bool(syncer.problems()))
            assert len(complaints(caplog)) == 1

    run(scenario())


def test_what_was_broken_is_forgotten_if_it_went_during_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        backend = Store()
        backend.write({pool("bad"): BROKEN})
        async with following(backend) as (syncer, replay):
            assert len(complaints(caplog)) == 1
            backend.fail_watches = [AWAY]
            backend.drop_watches()
            backend.write({pool("bad"): None})
            backend.compact()
            await eventually(lambda: backend.lists == 2 and replay.in_sync and not syncer.problems())
            backend.write({pool("bad"): BROKEN})
            await eventually(lambda: syncer.problems())
            assert len(complaints(caplog)) == 1

    run(scenario())


# --- everything at once -------------------------------------------------------------------------

keys = st.sampled_from([pool("a"), pool("b"), pool("c"), node("n"), node("m")])
values = st.integers(-1, 3) | st.none() | st.just(BROKEN)  # -1 fails the check
faults: st.SearchStrategy[DatastoreError] = st.sampled_from(
    [AWAY, Unauthorized("no"), RevisionGone("gone"), DatastoreError("other")]
)
steps = st.one_of(
    st.tuples(st.just("write"), st.dictionaries(keys, values, min_size=1, max_size=4)),
    st.tuples(st.just("gap"), st.dictionaries(keys, values, min_size=1, max_size=4)),
    st.tuples(st.just("disconnect"), st.none()),
    st.tuples(st.just("compact"), st.none()),
    st.tuples(st.just("fail-lists"), st.lists(faults, min_size=1, max_size=3)),
    st.tuples(st.just("fail-watches"), st.lists(faults, min_size=1, max_size=3)),
    st.tuples(st.just("consumer"), st.booleans()),
    st.tuples(st.just("turns"), st.integers(1, 12)),
    st.tuples(st.just("rest"), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(plan=st.lists(steps, max_size=40))
def test_replaying_the_batches_gives_the_store_whatever_goes_wrong(plan: list[tuple[str, Any]]) -> None:
    async def scenario() -> None:
        backend = Store()
        async with following(backend, POOLS, NODES, synced=False, check=refuse_negative) as (_, replay):
            for what, how in plan:
                await perform(backend, replay, what, how)
            backend.fail_lists, backend.fail_watches = [], []
            replay.reading.set()

            def settled() -> bool:
                expected = {key: value for key, value in truth(backend).items() if value >= 0}
                return replay.in_sync and replay.state == expected

            await eventually(settled)
            await asyncio.sleep(0.003)
            assert settled()
            for batch in replay.batches:
                for update in batch.updates:
                    if update.value is not None:  # nothing was invented
                        assert everything[update.revision, update.key] == number(update.value)

    everything: dict[tuple[str, Key], Any] = {}  # revision, key -> what was written

    async def perform(backend: Store, replay: Replay, what: str, how: Any) -> None:
        if what in ("write", "gap"):
            if what == "gap":  # nobody watches, and history forgets what happened
                backend.fail_watches = [AWAY]
                backend.drop_watches()
            revision = str(backend.write(how))
            everything.update({(revision, key): value for key, value in how.items()})
            if what == "gap":
                backend.compact()
        elif what == "disconnect":
            backend.drop_watches()
        elif what == "compact":
            backend.compact()
        elif what == "fail-lists":
            backend.fail_lists = list(how)
        elif what == "fail-watches":
            backend.fail_watches = list(how)
        elif what == "rest":
            await asyncio.sleep(0.003)  # longer than the pauses between attempts
        elif what == "consumer":
            (replay.reading.set if how else replay.reading.clear)()
        else:
            for _ in range(how):
                await asyncio.sleep(0)

    run(scenario())
