"""A datastore in memory, for tests of everything above the Backend contract.

Faithful to datastore.backend.Backend as etcd keeps it: values pass through the real codec, so nothing is
shared with the caller; one revision counter for the whole store; get and list at old revisions; watches
that replay history and never miss an event; the same errors. What a test can do to it: write bytes past
the codec (`put_raw`), compact, drop all watches, be away (`away = True`), and step in before each operation
(`before`), to play the other writer or to fail it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
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

    def __init__(self) -> None:
        self.before: Before | None = None
        self.away = False  # every call and every watch fails with DatastoreUnreachable
        self._now: dict[str, tuple[bytes, int]] = {}  # path -> bytes, revision of the last write
        self._history: list[_Change] = []
        self._revision = 1  # etcd's first
        self._compacted = 0
        self._epoch = 0  # + 1 each time all watches are dropped
        self._changed = asyncio.Condition()

    # --- what only tests do ---------------------------------------------------------------------

    async def put_raw(self, path: str, data: bytes | str) -> str:
        """Write any bytes under any path, as somebody with etcdctl could; returns the revision."""
        return await self._write(path, data.encode() if isinstance(data, str) else data)

    async def delete_raw(self, path: str) -> None:
        """What an expired lease or etcdctl does."""
        await self._write(path, None)

    def raw(self, path: str) -> bytes | None:
        return self._now[path][0] if path in self._now else None

    def paths(self) -> list[str]:
        return sorted(self._now)

    async def compact(self) -> None:
        """Forget history; watches from before it end with RevisionGone."""
        self._compacted = self._revision
        self._history.clear()
        await self.drop_watches()

    async def drop_watches(self) -> None:
        self._epoch += 1
        async with self._changed:
            self._changed.notify_all()

    # --- single objects -------------------------------------------------------------------------

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        await self._enter("create", key)
        path = _path(key)
        if path in self._now:
            raise ResourceAlreadyExists(key, current=self._current(key, path))
        return _stored(key, value, await self._write(path, _bytes(value)))

    async def update(self, kv: KV) -> KV:
        await self._enter("update", kv.key)
        path = _path(kv.key)
        self._compare(kv.key, path, _number(kv.revision))
        return _stored(kv.key, kv.value, await self._write(path, _bytes(kv.value, kv.origin)), kv.origin)

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        """Leases do not run out by themselves here: use delete_raw."""
        await self._enter("apply", key)
        return _stored(key, value, await self._write(_path(key), _bytes(value)))

    async def delete(self, key: Key, revision: str = "") -> KV:
        await self._enter("delete", key)
        path = _path(key)
        if path not in self._now:
            raise ResourceDoesNotExist(key)
        if revision:
            self._compare(key, path, _number(revision))
        last = self._current(key, path) or KV(key, None, str(self._now[path][1]))
        await self._write(path, None)
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

    async def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        await self._enter("watch", what)
        known, epoch = _number(revision), self._epoch
        if known < self._compacted:
            raise RevisionGone(f"history is compacted up to {self._compacted}")
        yield WatchEvent("bookmark", revision)
        while True:
            for change in [change for change in self._history if change.revision > known]:
                known = change.revision
                if (event := _event(what, change)) is not None:
                    yield event
            async with self._changed:
                while self._revision <= known and self._epoch == epoch and not self.away:
                    await self._changed.wait()
            if self._epoch != epoch or self.away:
                raise DatastoreUnreachable("the watch was dropped")

    async def close(self) -> None:
        self.away = True
        await self.drop_watches()

    # --- inside ---------------------------------------------------------------------------------

    async def _enter(self, operation: str, what: Any) -> None:
        await asyncio.sleep(0)  # as a call to a server would, let others run first
        if self.before is not None:
            await self.before(operation, what)
        if self.away:
            raise DatastoreUnreachable("connection refused")

    async def _write(self, path: str, data: bytes | None) -> str:
        """No await between a comparison and this: as atomic as a transaction."""
        self._revision += 1
        if data is None:
            self._now.pop(path, None)
        else:
            self._now[path] = (data, self._revision)
        self._history.append(_Change(self._revision, path, data))
        revision = str(self._revision)
        async with self._changed:
            self._changed.notify_all()
        return revision

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


def _interpret(what: Listing, path: str, data: bytes, revision: int) -> WatchEvent | None:
    key = parse(path)
    if key is None or not what.contains(key):
        return None
    try:
        return WatchEvent("set", str(revision), _kv(key, data, revision))
    except ValidationError as err:
        return WatchEvent("broken", str(revision), broken=Broken(path, key, err))


def _event(what: Listing, change: _Change) -> WatchEvent | None:
    if change.data is not None:
        return _interpret(what, change.path, change.data, change.revision)
    key = parse(change.path)
    if key is None or not what.contains(key):
        return None
    return WatchEvent("deleted", str(change.revision), KV(key, None, str(change.revision)))
