"""List and watch as one stream: every change exactly once, with a status, across any outage.

One Syncer follows several listings. Each has its own small loop: list, tell the difference to what
was told before, then watch from the list's revision; on a broken watch resume from the last
revision; when the history is gone, list again. What the consumer sees is therefore always a
sequence of new/updated/deleted per key that never loses or invents one, however often etcd
restarts or compacts.

Objects that cannot be parsed or fail validation are reported once with their key and count as
absent, as in Calico's validation filter; they come back as soon as they are repaired.

There is no order between listings; within one, updates precede the status they lead to.
(Reference: Calico data model, section 4.1.)
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any, Literal

from tortie.core import tasks
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import (
    DatastoreError,
    DatastoreUnreachable,
    RevisionGone,
    Unauthorized,
    ValidationError,
    printable,
)
from tortie.datastore.backend import KV, Backend, Broken, WatchEvent
from tortie.datastore.keys import Key, Listing

_log = logging.getLogger(__name__)

_GIVE_UP_AFTER = 600.0  # seconds without contact until the status falls back to waiting, as Calico's
_RETRY = Backoff(first=0.5, cap=5.0)  # Calico spaces its attempts 0.5-1 s; 5 s bounds the recovery
_MAX_BATCH = 1000  # updates merged into one batch, Calico's number
_QUEUE = 2000  # updates waiting for the consumer; the loops then wait, and etcd buffers
_LONGEST_PATH = 400  # characters of an object's path in a log line: prefix, plural, namespace, 253 of name


class SyncStatus(IntEnum):
    WAIT_FOR_DATASTORE = 0
    RESYNC_IN_PROGRESS = 1
    IN_SYNC = 2

    def __str__(self) -> str:
        return {0: "wait-for-ready", 1: "resync", 2: "in-sync"}[self.value]


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one object; `value` is None exactly when it was deleted."""

    type: Literal["new", "updated", "deleted"]
    key: Key
    value: Any
    revision: str = ""


@dataclass(slots=True)
class Batch:
    """Updates in order, and the overall status that holds once they are applied."""

    updates: list[Update]
    status: SyncStatus


@dataclass(frozen=True, slots=True)
class _Turn:
    """A listing's status changed; travels between its updates, so that neither overtakes the other."""

    listing: int  # index
    status: SyncStatus


@dataclass(slots=True)
class _Follow:
    """The state of one listing's loop."""

    index: int
    what: Listing
    out: "asyncio.Queue[Update | _Turn]"  # to the consumer
    status: SyncStatus = SyncStatus.WAIT_FOR_DATASTORE
    told: dict[Key, str] = field(default_factory=dict)  # key -> revision the consumer knows
    broken: dict[str, str] = field(default_factory=dict)  # path -> why its object counts as absent
    revision: str = ""  # where to watch from; '' means list first
    problem: DatastoreError | None = None  # why it is not followed just now ...
    since: float = 0.0  # ... and the clock's reading when that began, or of the last list meanwhile

    @property
    def name(self) -> str:
        return self.what.prefix()


class Syncer:
    def __init__(
        self,
        backend: Backend,
        listings: Sequence[Listing],
        *,
        check: Callable[[Any], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`check(value)` raises ValidationError for values that must count as absent."""
        self._backend = backend
        self._listings = tuple(listings)
        self._check = check or (lambda _value: None)
        self._clock = clock
        self._follows: list[_Follow] = []
        self._told = [SyncStatus.WAIT_FOR_DATASTORE for _ in self._listings]  # as the consumer knows it

    @property
    def status(self) -> SyncStatus:
        """Of the last batch: in sync when all listings are; waiting when all wait; else resyncing."""
        return _overall(self._told)

    @property
    def refused(self) -> bool:
        """Whether the datastore answers, and says that one of the listings is not for us."""
        return any(isinstance(follow.problem, Unauthorized) for follow in self._follows)

    def problems(self) -> dict[str, str]:
        """What is wrong now, for status pages: path of a listing or of one object -> the reason."""
        found = {f.name: str(f.problem) for f in self._follows if f.problem is not None}
        for follow in self._follows:
            found |= follow.broken
        return found

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Everything, for ever; the first batch is empty and says WAIT_FOR_DATASTORE. Close to stop.

        One consumer at a time; a later call begins anew, with every object as new.
        """
        queue: asyncio.Queue[Update | _Turn] = asyncio.Queue(_QUEUE)
        self._follows = [_Follow(index, what, queue) for index, what in enumerate(self._listings)]
        self._told = [SyncStatus.WAIT_FOR_DATASTORE for _ in self._listings]
        loops = [
            asyncio.create_task(tasks.supervise(f"sync of {f.name}", partial(self._loop, f)))
            for f in self._follows
        ]
        try:
            yield Batch([], self.status)
            held: _Turn | None = None
            while True:
                batch, held = await self._collect(queue, held)
                if batch is not None:
                    yield batch
        finally:
            await tasks.cancel(loops)

    async def _collect(
        self, queue: asyncio.Queue[Update | _Turn], held: _Turn | None
    ) -> tuple[Batch | None, _Turn | None]:
        """What is queued, up to a full batch; None if only statuses came that change nothing overall.

        Updates never share a batch with WAIT_FOR_DATASTORE: a turn to it is held for the next one.
        """
        before = self.status
        updates: list[Update] = []
        item: Update | _Turn = held or await queue.get()
        while True:
            if isinstance(item, Update):
                updates.append(item)
            else:
                told = [*self._told]
                told[item.listing] = item.status
                if updates and _overall(told) is SyncStatus.WAIT_FOR_DATASTORE:
                    return Batch(updates, self.status), item
                self._told = told
            if queue.empty() or len(updates) >= _MAX_BATCH:
                break
            item = queue.get_nowait()
        changed = updates or self.status is not before
        return (Batch(updates, self.status) if changed else None), None

    # --- one listing ----------------------------------------------------------------------------

    async def _loop(self, follow: _Follow) -> None:
        retry = Retry(_RETRY)
        while True:
            try:
                if not follow.revision:
                    await self._resync(follow)
                await self._watch(follow, retry)
            except RevisionGone as err:
                if not retry.failures:
                    _log.info("%s: %s; listing again", follow.name, err)
                follow.revision = ""
            except DatastoreError as err:
                self._note(follow, err)
                await self._give_up(follow)
            await asyncio.sleep(retry.wait())

    async def _resync(self, follow: _Follow) -> None:
        listed = await self._backend.list(follow.what)
        follow.since = self._clock()  # an answer, even if the watch should go on failing
        await self._set_status(follow, SyncStatus.RESYNC_IN_PROGRESS)
        unseen = set(follow.told)
        complaints, follow.broken = follow.broken, {}
        for kv in listed.items:
            if await self._tell(follow, kv, complaints):
                unseen.discard(kv.key)
        for broken in listed.broken:
            self._complain(follow, broken, complaints)
        for key in unseen:
            await self._tell_gone(follow, key)
        follow.revision = listed.revision
        await self._set_status(follow, SyncStatus.IN_SYNC)

    async def _watch(self, follow: _Follow, retry: Retry) -> None:
        async with contextlib.aclosing(self._backend.watch(follow.what, follow.revision)) as events:  # type: ignore[type-var]
            async for event in events:
                retry.reset()
                self._note(follow, None)
                await self._take(follow, event)
                follow.revision = event.revision

    async def _take(self, follow: _Follow, event: WatchEvent) -> None:
        if event.type == "set" and event.kv is not None:
            if not await self._tell(follow, event.kv, follow.broken):
                await self._tell_gone(follow, event.kv.key)
        elif event.type == "deleted" and event.kv is not None:
            follow.broken.pop(event.kv.key.path(), None)
            await self._tell_gone(follow, event.kv.key)
        elif event.type == "broken" and event.broken is not None:
            self._complain(follow, event.broken, follow.broken)
            if event.broken.key is not None:
                await self._tell_gone(follow, event.broken.key)

    async def _tell(self, follow: _Follow, kv: KV, complaints: dict[str, str]) -> bool:
        """Pass one state on; False if it is invalid and must count as absent."""
        where = kv.key.path()
        try:
            self._check(kv.value)
        except ValidationError as err:
            self._complain(follow, Broken(where, kv.key, err), complaints)
            return False
        if complaints.pop(where, None):
            _log.info("%s is valid again", printable(where, _LONGEST_PATH))
        known = follow.told.get(kv.key)
        if known != kv.revision:
            follow.told[kv.key] = kv.revision
            await follow.out.put(Update("updated" if known else "new", kv.key, kv.value, kv.revision))
        return True

    async def _tell_gone(self, follow: _Follow, key: Key) -> None:
        if follow.told.pop(key, None) is not None:
            await follow.out.put(Update("deleted", key, None))

    async def _set_status(self, follow: _Follow, status: SyncStatus) -> None:
        if follow.status is not status:
            follow.status = status
            await follow.out.put(_Turn(follow.index, status))

    # --- what goes wrong ------------------------------------------------------------------------

    def _note(self, follow: _Follow, err: DatastoreError | None) -> None:
        """Keep the state of the link to the datastore; an outage is one warning, not one per listing."""
        before, follow.problem = follow.problem, err
        if type(before) is type(err):
            return
        if before is None:
            follow.since = self._clock()
        shared = isinstance(err or before, DatastoreUnreachable) and any(
            isinstance(other.problem, DatastoreUnreachable) for other in self._follows if other is not follow
        )
        if shared:
            return
        if err is not None:
            _log.warning("%s: cannot follow the datastore, trying again: %s", follow.name, err)
        else:
            _log.info("%s: following the datastore again", follow.name)

    async def _give_up(self, follow: _Follow) -> None:
        """After ten minutes of failures we no longer claim to know the state; the data is kept."""
        if self._clock() - follow.since > _GIVE_UP_AFTER:
            follow.revision = ""
            await self._set_status(follow, SyncStatus.WAIT_FOR_DATASTORE)

    def _complain(self, follow: _Follow, broken: Broken, complaints: dict[str, str]) -> None:
        """Once for each distinct problem of an object, and again after it was repaired meanwhile."""
        text = str(broken.error)
        if complaints.get(broken.where) != text:
            where = printable(broken.where, _LONGEST_PATH)
            _log.warning("ignoring %s, which is invalid: %s", where, text)
        follow.broken[broken.where] = text


def _overall(statuses: Sequence[SyncStatus]) -> SyncStatus:
    return statuses[0] if len(set(statuses)) == 1 else SyncStatus.RESYNC_IN_PROGRESS
