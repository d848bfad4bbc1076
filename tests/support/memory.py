"""A datastore in memory that keeps the Backend contract for reads and fails on command.

It has what makes a watch hard: revisions shared by several keys, history that is compacted away,
connections that end between any two events, lists that fail.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tortie.core.errors import (
    DatastoreError,
    DatastoreUnreachable,
    FieldError,
    ResourceDoesNotExist,
    RevisionGone,
    ValidationError,
)
from tortie.datastore.backend import KV, Broken, Listed, WatchEvent
from tortie.datastore.keys import Key, Listing

BROKEN = object()  # as a value: stored, but unreadable


@dataclass
class MemoryBackend:
    revision: int = 1
    compacted: int = 0  # history up to here is gone
    state: dict[Key, tuple[int, Any]] = field(default_factory=dict)  # key -> revision, value
    history: list[tuple[int, Key, Any]] = field(default_factory=list)  # None as the value: deleted
    fail_lists: list[DatastoreError] = field(default_factory=list)  # raised by the next lists, in turn
    fail_watches: list[DatastoreError] = field(default_factory=list)
    broken_text: str = "wrong"
    lists: int = 0  # how often each was called
    watches: int = 0
    _epoch: int = 0  # watches of an older one are cut off
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    # --- what a test does -----------------------------------------------------------------------

    def write(self, changes: Mapping[Key, Any]) -> None:
        """One transaction: values to store, None to delete, BROKEN to make unreadable."""
        self.revision += 1
        for key, value in changes.items():
            if value is None:
                if self.state.pop(key, None) is None:
                    continue
            else:
                self.state[key] = (self.revision, value)
            self.history.append((self.revision, key, value))
        self._wake()

    def disconnect(self) -> None:
        """Every watch ends at the event it has reached, or in the middle of a transaction."""
        self._epoch += 1
        self._wake()

    def compact(self) -> None:
        self.compacted = self.revision
        self.history = [entry for entry in self.history if entry[0] > self.compacted]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- Backend --------------------------------------------------------------------------------

    async def list(self, what: Listing, revision: str = "") -> Listed:
        self.lists += 1
        await asyncio.sleep(0)
        if self.fail_lists:
            raise self.fail_lists.pop(0)
        listed = Listed([], str(self.revision))
        for key, (at, value) in self.state.items():
            if what.contains(key):
                if value is BROKEN:
                    listed.broken.append(self._broken(key))
                else:
                    listed.items.append(KV(key, value, str(at)))
        return listed

    async def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        self.watches += 1
        await asyncio.sleep(0)
        if self.fail_watches:
            raise self.fail_watches.pop(0)
        epoch, at = self._epoch, int(revision)
        if at < self.compacted:
            raise RevisionGone(f"compacted up to {self.compacted}")
        yield WatchEvent("bookmark", revision)
        while True:
            changed = self._changed
            if at < self.compacted:
                raise RevisionGone(f"compacted up to {self.compacted}")
            news = [entry for entry in self.history if entry[0] > at]
            for index, (number, key, value) in enumerate(news):
                if epoch != self._epoch:
                    raise DatastoreUnreachable("cut off")
                last = index + 1 == len(news) or news[index + 1][0] != number
                if what.contains(key):
                    yield self._event(key, value, number, str(number if last else number - 1))
                if last:
                    at = number
                await asyncio.sleep(0)
            if epoch != self._epoch:
                raise DatastoreUnreachable("cut off")
            if changed is self._changed and not [entry for entry in self.history if entry[0] > at]:
                await changed.wait()

    def _event(self, key: Key, value: Any, number: int, resume: str) -> WatchEvent:
        if value is None:
            return WatchEvent("deleted", resume, KV(key, None, str(number)))
        if value is BROKEN:
            return WatchEvent("broken", resume, broken=self._broken(key))
        return WatchEvent("set", resume, KV(key, value, str(number)))

    def _broken(self, key: Key) -> Broken:
        return Broken(key.path(), key, ValidationError([FieldError("x", self.broken_text, "bad")]))

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        self.write({key: value})
        return KV(key, value, str(self.revision))

    async def update(self, kv: KV) -> KV:
        return await self.create(kv.key, kv.value)

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        return await self.create(key, value)

    async def delete(self, key: Key, revision: str = "") -> KV:
        self.write({key: None})
        return KV(key, None, str(self.revision))

    async def get(self, key: Key, revision: str = "") -> KV:
        if key not in self.state:
            raise ResourceDoesNotExist(key)
        at, value = self.state[key]
        return KV(key, value, str(at))

    async def close(self) -> None:
        pass
