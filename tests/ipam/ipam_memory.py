"""A datastore in a dictionary, with the rules of etcd: one revision for all, compare-and-swap per key.

Values pass through JSON, so that what a test reads is what a datastore would give back.
"""

from collections.abc import AsyncIterator

import msgspec

from tortie.core.errors import ResourceAlreadyExists, ResourceDoesNotExist, UpdateConflict
from tortie.datastore import codec
from tortie.datastore.backend import KV, Listed, WatchEvent
from tortie.datastore.keys import Key, Listing
from tortie.datastore.types.meta import Resource


class MemoryBackend:
    """Implements datastore.backend.Backend, without watches. No operation yields to the loop."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Key, bytes, int]] = {}  # path -> key, JSON, revision of its last write
        self.revision = 0

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        if key.path() in self.entries:
            raise ResourceAlreadyExists(key, current=self._read(key))
        return self._write(key, codec.encode(_bare(value)))

    async def update(self, kv: KV) -> KV:
        self._check(kv.key, kv.revision)
        return self._write(kv.key, codec.encode(_bare(kv.value), kv.origin))

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        return self._write(key, codec.encode(_bare(value)))

    async def delete(self, key: Key, revision: str = "") -> KV:
        self._check(key, revision)
        gone = self._read(key)
        del self.entries[key.path()]
        self.revision += 1
        return gone

    async def get(self, key: Key, revision: str = "") -> KV:
        if key.path() not in self.entries:
            raise ResourceDoesNotExist(key)
        return self._read(key)

    async def list(self, what: Listing, revision: str = "") -> Listed:
        keys = [entry[0] for _, entry in sorted(self.entries.items())]
        return Listed([self._read(key) for key in keys if what.contains(key)], str(self.revision))

    def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        raise TypeError("this datastore has no watches")

    async def close(self) -> None:
        self.entries.clear()

    # --- what tests look at ---------------------------------------------------------------------

    def _check(self, key: Key, revision: str) -> None:
        if key.path() not in self.entries:
            raise ResourceDoesNotExist(key)
        if revision and revision != str(self.entries[key.path()][2]):
            raise UpdateConflict(key, self._read(key))

    def _write(self, key: Key, data: bytes) -> KV:
        self.revision += 1
        self.entries[key.path()] = (key, data, self.revision)
        return self._read(key)

    def _read(self, key: Key) -> KV:
        stored, data, revision = self.entries[key.path()]
        value = codec.decode(stored.type, data)
        if isinstance(value, Resource):
            return KV(stored, value.with_metadata(resourceVersion=str(revision)), str(revision))
        return KV(stored, value, str(revision), msgspec.json.decode(data))


def _bare(value: msgspec.Struct) -> msgspec.Struct:
    return value.with_metadata(resourceVersion="") if isinstance(value, Resource) else value
