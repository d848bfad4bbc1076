"""A datastore for `--dry-run`: it reads from the real one and keeps what is written to itself.

So everything is checked that a real run checks, also against what the same run would have written
before, and nothing is changed. Revisions of what it keeps are words that no datastore gives.
"""

from collections.abc import AsyncIterator, Iterator

import msgspec

from tortie.core.errors import (
    OperationNotSupported,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    UpdateConflict,
)
from tortie.datastore.backend import KV, MANAGED_ELSEWHERE, Backend, Listed, WatchEvent
from tortie.datastore.keys import Key, Listing, ResourceKey


class Rehearsal:
    """See Backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.refused = backend.refused
        self._changed: dict[str, tuple[Key, KV | None]] = {}  # path -> its key, what it would be; None: gone
        self._writes = 0

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        self._check("Create", key)
        try:
            present = await self.get(key)
        except ResourceDoesNotExist:
            return self._keep(key, value)
        raise ResourceAlreadyExists(key, current=present)

    async def update(self, kv: KV) -> KV:
        self._check("Update", kv.key)
        present = await self.get(kv.key)
        if present.revision != kv.revision:
            raise UpdateConflict(kv.key, current=present)
        return self._keep(kv.key, kv.value)

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        return self._keep(key, value)

    async def delete(self, key: Key, revision: str = "") -> KV:
        self._check("Delete", key)
        present = await self.get(key)
        if revision and present.revision != revision:
            raise UpdateConflict(key, current=present)
        self._changed[key.path()] = (key, None)
        return present

    async def get(self, key: Key, revision: str = "") -> KV:
        if key.path() not in self._changed:
            return await self._backend.get(key, revision)
        _, kept = self._changed[key.path()]
        if kept is None:
            raise ResourceDoesNotExist(key)
        return kept

    async def list(self, what: Listing, revision: str = "") -> Listed:
        listed = await self._backend.list(what, revision)
        items = {kv.key.path(): kv for kv in listed.items if kv.key.path() not in self._changed}
        items |= {kv.key.path(): kv for kv in self._kept(what)}
        broken = [one for one in listed.broken if one.where not in self._changed]
        return Listed([items[path] for path in sorted(items)], listed.revision, broken)

    def serves(self, what: Listing) -> bool:
        return self._backend.serves(what)

    def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        return self._backend.watch(what, revision)

    async def close(self) -> None:
        await self._backend.close()

    def _check(self, operation: str, key: Key) -> None:
        if isinstance(key, ResourceKey) and (operation, key.kind) in self.refused:
            raise OperationNotSupported(operation, key, MANAGED_ELSEWHERE)

    def _keep(self, key: Key, value: msgspec.Struct) -> KV:
        self._writes += 1
        kv = KV(key, value, f"dry-run-{self._writes}")
        self._changed[key.path()] = (key, kv)
        return kv

    def _kept(self, what: Listing) -> Iterator[KV]:
        return (kv for key, kv in self._changed.values() if kv is not None and what.contains(key))
