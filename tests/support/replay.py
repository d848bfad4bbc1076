"""Consumers of watches. A Syncer's believes nothing: it checks every batch that it applies."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from tests.support.aio import eventually
from tortie.datastore.backend import WatchEvent
from tortie.datastore.keys import Key
from tortie.datastore.syncer import Batch, Syncer, SyncStatus


class Replay:
    """`state` is the world according to the batches so far."""

    def __init__(self, read: Callable[[Any], Any] = lambda value: value) -> None:
        """`read` gives what `state` is to hold of a value."""
        self._read = read
        self.state: dict[Key, Any] = {}  # key -> value
        self.revisions: dict[Key, str] = {}
        self.statuses: list[SyncStatus] = []  # each change
        self.batches: list[Batch] = []
        self.reading = asyncio.Event()  # cleared: the consumer is busy with something else
        self.reading.set()

    @property
    def status(self) -> SyncStatus:
        return self.statuses[-1]

    @property
    def in_sync(self) -> bool:
        return bool(self.statuses) and self.status is SyncStatus.IN_SYNC

    async def consume(self, syncer: Syncer) -> None:
        async with aclosing(syncer.batches()) as batches:
            async for batch in batches:
                self.take(batch)
                await self.reading.wait()

    def take(self, batch: Batch) -> None:
        if not self.batches:
            assert batch == Batch([], SyncStatus.WAIT_FOR_DATASTORE)
        else:
            assert batch.updates or batch.status is not self.status, "an empty batch without news"
            assert not (batch.updates and batch.status is SyncStatus.WAIT_FOR_DATASTORE)
        self.batches.append(batch)
        for update in batch.updates:
            known = update.key in self.state
            assert update.type == {
                (False, False): "new",
                (True, False): "updated",
                (True, True): "deleted",
            }.get((known, update.value is None)), f"{update} although known is {known}"
            if update.value is None:
                del self.state[update.key], self.revisions[update.key]
            else:
                assert self.revisions.get(update.key) != update.revision, f"{update} came twice"
                self.state[update.key] = self._read(update.value)
                self.revisions[update.key] = update.revision
        if not self.statuses or batch.status is not self.status:
            self.statuses.append(batch.status)


@asynccontextmanager
async def consuming(syncer: Syncer, replay: Replay, *, synced: bool = True) -> AsyncIterator[None]:
    """A syncer at work and its consumer; in sync to begin with. What ends either of them is raised."""
    task = asyncio.create_task(replay.consume(syncer))
    try:
        if synced:
            await eventually(lambda: replay.in_sync or task.done())
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def next_events(watch: Any, count: int) -> list[WatchEvent]:
    """The first `count` events of a watch that are not bookmarks; the watch ends then."""
    found: list[WatchEvent] = []
    async with aclosing(watch):
        async for event in watch:
            if event.type != "bookmark":
                found.append(event)
            if len(found) == count:
                break
    return found
