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
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from tortie.core import tasks
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import DatastoreError, RevisionGone, ValidationError
from tortie.datastore.backend import KV, Backend, Broken, WatchEvent
from tortie.datastore.keys import Key, Listing

_log = logging.getLogger(__name__)

_GIVE_UP_AFTER = 600.0  # seconds without contact until the status falls back to waiting, as Calico's
_RETRY = Backoff(first=0.5, cap=5.0)  # Calico spaces its attempts 0.5-1 s; 5 s bounds the recovery
_MAX_BATCH = 1000  # updates merged into one batch, Calico's number
_QUEUE = 2000  # updates waiting for the consumer; the loops then wait, and etcd buffers


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


@dataclass(slots=True)
class _Follow:
    """The state of one listing's loop."""

    what: Listing
    status: SyncStatus = SyncStatus.WAIT_FOR_DATASTORE
    told: dict[Key, str] = field(default_factory=dict)  # key -> revision the consumer knows
    revision: str = ""  # where to watch from; '' means list first
    last_contact: float | None = None  # clock reading; None: never


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
        self._check = check or (lambda _value: None)
        self._clock = clock
        self._follows = [_Follow(what) for what in listings]
        self._queue: asyncio.Queue[Update | None] = asyncio.Queue(_QUEUE)  # None: a status changed
        self._complained_about: dict[str, str] = {}  # path -> text already logged

    @property
    def status(self) -> SyncStatus:
        """In sync when all are; waiting when all wait; otherwise resyncing."""
        states = {follow.status for follow in self._follows}
        return states.pop() if len(states) == 1 else SyncStatus.RESYNC_IN_PROGRESS

    async def batches(self) -> AsyncIterator[Batch]:
        """Everything, for ever; the first batch is empty and says WAIT_FOR_DATASTORE. Close to stop."""
        loops = [
            asyncio.create_task(tasks.supervise(f"sync of {f.what}", lambda f=f: self._loop(f)))  # type: ignore[misc]
            for f in self._follows
        ]
        try:
            yield Batch([], self.status)
            told = self.status
            while True:
                first = await self._queue.get()
                updates = [] if first is None else [first]
                while len(updates) < _MAX_BATCH and not self._queue.empty():
                    if (item := self._queue.get_nowait()) is not None:
                        updates.append(item)
                # Every loop puts its updates before it changes its status: with the queue empty, the
                # status counts; before that the consumer has not seen all that led to it.
                if self._queue.empty():
                    told = self.status
                yield Batch(updates, told)
        finally:
            await tasks.cancel(loops)

    # --- one listing ----------------------------------------------------------------------------

    async def _loop(self, follow: _Follow) -> None:
        retry = Retry(_RETRY)
        while True:
            try:
                if not follow.revision:
                    await self._resync(follow)
                await self._watch(follow, retry)
            except RevisionGone as err:
                _log.info("%s: %s; listing again", follow.what, err)
                follow.revision = ""
            except DatastoreError as err:
                if retry.failures == 0:
                    _log.warning("%s: lost the datastore, retrying: %s", follow.what, err)
                await self._note_outage(follow)
            await asyncio.sleep(retry.wait())

    async def _resync(self, follow: _Follow) -> None:
        listed = await self._backend.list(follow.what)
        follow.last_contact = self._clock()
        await self._set_status(follow, SyncStatus.RESYNC_IN_PROGRESS)
        unseen = set(follow.told)
        for kv in listed.items:
            if await self._tell(follow, kv):
                unseen.discard(kv.key)
        for broken in listed.broken:
            self._complain(broken)
        for key in unseen:
            await self._tell_gone(follow, key)
        follow.revision = listed.revision
        await self._set_status(follow, SyncStatus.IN_SYNC)

    async def _watch(self, follow: _Follow, retry: Retry) -> None:
        async with contextlib.aclosing(self._backend.watch(follow.what, follow.revision)) as events:  # type: ignore[type-var]
            async for event in events:
                if retry.failures:
                    _log.info("%s: the datastore is back", follow.what)
                    retry.reset()
                follow.last_contact = self._clock()
                await self._take(follow, event)
                follow.revision = event.revision

    async def _take(self, follow: _Follow, event: WatchEvent) -> None:
        if event.type == "set" and event.kv is not None:
            if not await self._tell(follow, event.kv):
                await self._tell_gone(follow, event.kv.key)
        elif event.type == "deleted" and event.kv is not None:
            self._complained_about.pop(_where(event.kv.key), None)
            await self._tell_gone(follow, event.kv.key)
        elif event.type == "broken" and event.broken is not None:
            self._complain(event.broken)
            if event.broken.key is not None:
                await self._tell_gone(follow, event.broken.key)

    async def _tell(self, follow: _Follow, kv: KV) -> bool:
        """Pass one state on; False if it is invalid and must count as absent."""
        try:
            self._check(kv.value)
        except ValidationError as err:
            self._complain(Broken(_where(kv.key), kv.key, err))
            return False
        if self._complained_about.pop(_where(kv.key), None):
            _log.info("%s is valid again", kv.key)
        known = follow.told.get(kv.key)
        if known != kv.revision:
            follow.told[kv.key] = kv.revision
            await self._queue.put(Update("updated" if known else "new", kv.key, kv.value, kv.revision))
        return True

    async def _tell_gone(self, follow: _Follow, key: Key) -> None:
        if follow.told.pop(key, None) is not None:
            await self._queue.put(Update("deleted", key, None))

    async def _set_status(self, follow: _Follow, status: SyncStatus) -> None:
        if follow.status is not status:
            follow.status = status
            await self._queue.put(None)

    async def _note_outage(self, follow: _Follow) -> None:
        """After ten minutes without an answer we no longer claim to know the state; the data is kept."""
        if follow.last_contact is None or self._clock() - follow.last_contact > _GIVE_UP_AFTER:
            follow.revision = ""
            await self._set_status(follow, SyncStatus.WAIT_FOR_DATASTORE)

    def _complain(self, broken: Broken) -> None:
        text = str(broken.error)
        if self._complained_about.get(broken.where) != text:
            self._complained_about[broken.where] = text
            _log.warning("ignoring %s, which is invalid: %s", broken.where, text)


def _where(key: Key) -> str:
    return key.path()
