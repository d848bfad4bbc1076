"""A datastore in memory, for tests of everything above the Backend contract.

Faithful to datastore.backend.Backend as etcd keeps it: values pass through the real codec, so nothing is
shared with the caller; one revision counter for the whole store; get and list at old revisions; watches
that replay history and never miss an event; the same errors. What a test can do to it: write several keys
in one transaction (`write`) or bytes past the codec (`put_raw`), compact, drop all watches, be away
(`away = True`), and step in before each operation (`before`), to play the other writer or to fail it.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tortie.core.errors import (
    DatastoreUnreachable,
    FieldError,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    RevisionGone,
    UpdateConflict,
    ValidationError,
)
from tortie.datastore import codec
from tortie.datastore.backend import KV, Broken, Listed, WatchEvent
from tortie.datastore.keys import Key, Listing, ResourceKey, parse
from tortie.datastore.types.meta import Resource

Before = Callable[[str, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Change:
    revision: int
    path: str
    data: bytes | None  # None: deleted


class MemoryBackend:
    """Implements datastore.backend.Backend. `before(operation, key or listing)` is awaited first, if set."""

    refused: frozenset[tuple[str, str]] = frozenset()

    def __init__(self) -> None:
        self.before: Before | None = None
        self.away = False  # every call and every watch fails with DatastoreUnreachable
        self._now: dict[str, tuple[bytes, int]] = {}  # path -> bytes, revision of the last write
        self._history: list[_Change] = []
        self._revision = 1  # etcd's first
        self._compacted = 0
        self._epoch = 0  # + 1 each time all watches are dropped
        self._changed = asyncio.Event()  # a fresh one after each change

    # --- what only tests do ---------------------------------------------------------------------

    def write(self, changes: Mapping[Key, msgspec.Struct | bytes | None]) -> int:
        """One transaction: objects, bytes as they are, None to delete. Returns its revision."""
        data = {
            _path(key): _bytes(value) if isinstance(value, msgspec.Struct) else value
            for key, value in changes.items()
        }
        return int(self._write(data))

    async def put_raw(self, path: str, data: bytes | str) -> str:
        """Write any bytes under any path, as somebody with etcdctl could; returns the revision."""
        return self._write({path: data.encode() if isinstance(data, str) else data})

    async def delete_raw(self, path: str) -> None:
        """What an expired lease or etcdctl does."""
        self._write({path: None})

    def raw(self, path: str) -> bytes | None:
        return self._now[path][0] if path in self._now else None

    def paths(self) -> list[str]:
        return sorted(self._now)

    @property
    def revision(self) -> int:
        return self._revision

    def compact(self) -> None:
        """Forget history; watches from before it end with RevisionGone."""
        self._compacted = self._revision
        self._history.clear()

    def drop_watches(self) -> None:
        """Every watch ends at the event it has reached, or in the middle of a transaction."""
        self._epoch += 1
        self._wake()

    # --- single objects -------------------------------------------------------------------------

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        await self._enter("create", key)
        path = _path(key)
        if path in self._now:
            raise ResourceAlreadyExists(key, current=self._current(key, path))
        return _stored(key, value, self._write({path: _bytes(value)}))

    async def update(self, kv: KV) -> KV:
        await self._enter("update", kv.key)
        path = _path(kv.key)
        self._compare(kv.key, path, _number(kv.revision))
        return _stored(kv.key, kv.value, self._write({path: _bytes(kv.value, kv.origin)}), kv.origin)

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        """Leases do not run out by themselves here: use delete_raw."""
        await self._enter("apply", key)
        return _stored(key, value, self._write({_path(key): _bytes(value)}))

    async def delete(self, key: Key, revision: str = "") -> KV:
        await self._enter("delete", key)
        path = _path(key)
        if path not in self._now:
            raise ResourceDoesNotExist(key)
        if revision:
            self._compare(key, path, _number(revision))
        last = self._current(key, path) or KV(key, None, str(self._now[path][1]))
        self._write({path: None})
        return last

    async def get(self, key: Key, revision: str = "") -> KV:
        await self._enter("get", key)
        stored = self._at(_number(revision or "0")).get(_path(key))
        if stored is None:
            raise ResourceDoesNotExist(key)
        return _kv(key, *stored)

    # --- sets -----------------------------------------------------------------------------------

    async def list(self, what: Listing, revision: str = "") -> Listed:
        await self._enter("list", what)
        listed = Listed([], str(self._revision))
        for path, (data, written) in sorted(self._at(_number(revision or "0")).items()):
            event = _interpret(what, path, data, written)
            if event is not None and event.kv is not None:
                listed.items.append(event.kv)
            elif event is not None and event.broken is not None:
                listed.broken.append(event.broken)
        return listed

    def serves(self, what: Listing) -> bool:
        return True

    async def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        await self._enter("watch", what)
        at, epoch = _number(revision), self._epoch
        if not self._compacted <= at <= self._revision:
            raise RevisionGone(f"history is compacted up to {self._compacted} and ends at {self._revision}")
        yield WatchEvent("bookmark", revision)
        while True:
            changed = self._changed
            if at < self._compacted:
                raise RevisionGone(f"history is compacted up to {self._compacted}")
            for change, resume in list(self._since(at)):
                if self._epoch != epoch or self.away:
                    break
                if (event := _event(what, change, str(resume))) is not None:
                    yield event
                at = resume
                await asyncio.sleep(0)  # between any two events something may happen
            if self._epoch != epoch or self.away:
                raise DatastoreUnreachable("the watch was dropped")
            await changed.wait()

    def _since(self, revision: int) -> Iterator[tuple[_Change, int]]:
        """Changes after a revision, each with what to resume after: within a transaction the one before."""
        first = bisect_right(self._history, revision, key=lambda change: change.revision)
        news = self._history[first:]
        for index, change in enumerate(news):
            last = index + 1 == len(news) or news[index + 1].revision != change.revision
            yield change, change.revision - (not last)

    async def close(self) -> None:
        self.away = True
        self.drop_watches()

    # --- inside ---------------------------------------------------------------------------------

    async def _enter(self, operation: str, what: Any) -> None:
        await asyncio.sleep(0)  # as a call to a server would, let others run first
        if self.before is not None:
            await self.before(operation, what)
        if self.away:
            raise DatastoreUnreachable("connection refused")

    def _write(self, changes: Mapping[str, bytes | None]) -> str:
        """No await between a comparison and this: as atomic as a transaction."""
        self._revision += 1
        for path, data in changes.items():
            if data is not None:
                self._now[path] = (data, self._revision)
            elif self._now.pop(path, None) is None:
                continue  # deleting what is not there is no event
            self._history.append(_Change(self._revision, path, data))
        self._wake()
        return str(self._revision)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _compare(self, key: Key, path: str, revision: int) -> None:
        if path not in self._now:
            raise ResourceDoesNotExist(key)
        if self._now[path][1] != revision:
            raise UpdateConflict(key, self._current(key, path))

    def _current(self, key: Key, path: str) -> KV | None:
        try:
            return _kv(key, *self._now[path])
        except ValidationError:
            return None

    def _at(self, revision: int) -> dict[str, tuple[bytes, int]]:
        if revision in (0, self._revision):
            return self._now
        if revision <= self._compacted:
            raise RevisionGone(f"history is compacted up to {self._compacted}")
        past: dict[str, tuple[bytes, int]] = {}
        for change in self._history:
            if change.revision <= revision:
                past.pop(change.path, None)
                if change.data is not None:
                    past[change.path] = (change.data, change.revision)
        return past


def _path(key: Key) -> str:
    path = key.path()
    if isinstance(key, ResourceKey) and parse(path) != key:
        raise ValidationError([FieldError("metadata.name", key.name, "invalid resource name")])
    return path


def _bytes(value: msgspec.Struct, origin: dict[str, Any] | None = None) -> bytes:
    if isinstance(value, Resource):
        value = value.with_metadata(resourceVersion="")
    return codec.encode(value, origin)


def _number(revision: str) -> int:
    if not revision.isascii() or not revision.isdecimal():
        raise ValidationError([FieldError("ResourceVersion", revision, "invalid resource version")])
    return int(revision)


def _kv(key: Key, data: bytes, revision: int) -> KV:
    value = codec.decode(key.type, data)
    if isinstance(value, Resource):
        assert isinstance(key, ResourceKey)
        value = value.with_metadata(resourceVersion=str(revision), name=key.name, namespace=key.namespace)
        return KV(key, value, str(revision))
    return KV(key, value, str(revision), msgspec.json.decode(data or b"{}"))


def _stored(key: Key, value: msgspec.Struct, revision: str, origin: dict[str, Any] | None = None) -> KV:
    if isinstance(value, Resource):
        value = value.with_metadata(resourceVersion=revision)
    return KV(key, value, revision, origin)


def _interpret(what: Listing, path: str, data: bytes, revision: int, resume: str = "") -> WatchEvent | None:
    key = parse(path)
    if key is None or not what.contains(key):
        return None
    try:
        return WatchEvent("set", resume, _kv(key, data, revision))
    except ValidationError as err:
        return WatchEvent("broken", resume, broken=Broken(path, key, err))


def _event(what: Listing, change: _Change, resume: str) -> WatchEvent | None:
    if change.data is not None:
        return _interpret(what, change.path, change.data, change.revision, resume)
    key = parse(change.path)
    if key is None or not what.contains(key):
        return None
    return WatchEvent("deleted", resume, KV(key, None, str(change.revision)))
