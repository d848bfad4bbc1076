"""Handles in the datastore: counting up before a block is written, and down after.

The order is the guarantee: at any moment, also after a crash, a handle counts at least what it holds.
What was counted for a write that then did not happen is taken back, but only from the very state that
was written (compare-and-swap on its revision). If somebody else touched the handle since, it stays:
too high a count costs a left-over entry, which the next release with this handle clears; one too low
would hide an address from its release. For the same reason nothing is ever subtracted from a count
that was read anew: see release.py for how counts come down.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, cast

from tortie.core.errors import (
    DatastoreError,
    DatastoreUnreachable,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
)
from tortie.datastore.backend import KV
from tortie.datastore.keys import HandleKey, HandleList, ip_version
from tortie.datastore.types.ipam import Handle
from tortie.ipam.errors import HandleFull, IPAMError, TooManyConflicts
from tortie.ipam.handle import total, with_count
from tortie.ipam.names import clean_handle
from tortie.ipam.store import RETRIES, Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hold:
    """Addresses counted on a handle ahead of the block write that assigns them."""

    kv: KV  # the handle as it was written
    cidr: str
    count: int


def handle_key(handle: str) -> HandleKey:
    """Raises IPAMError for an ID that would address something else in the datastore."""
    handle = clean_handle(handle)
    if not handle or "/" in handle:
        raise IPAMError(f"invalid handle ID {handle!r}: must not be empty or contain '/'")
    return HandleKey(handle)


def handle_of(kv: KV) -> str:
    return cast(HandleKey, kv.key).handle


class Holding:
    """A hold around the write of one block; use as `async with`.

    count() before each try, keep() after the write that succeeded. On the way out an unneeded hold is
    dropped, except when nobody knows whether the block was written: then it must stand.
    """

    def __init__(self, handles: "Handles", handle: str, cidr: str, cap: int) -> None:
        self._handles, self._handle, self._cidr, self._cap = handles, handle, cidr, cap
        self._hold: Hold | None = None

    async def count(self, count: int) -> None:
        """Have `count` addresses counted. Without a handle there is nothing to do. Raises HandleFull."""
        if not self._handle:
            return
        if self._hold is None:
            self._hold = await self._handles.add(self._handle, self._cidr, count, self._cap)
            return
        held, self._hold = self._hold, None
        self._hold = await self._handles.renew(held, count, self._cap)

    @property
    def counted(self) -> int:
        """How many addresses the handle counts now, of all blocks; 0 without a handle."""
        return sum(self._hold.kv.value.block.values()) if self._hold is not None else 0

    def keep(self) -> None:
        self._hold = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _kind: object, err: BaseException | None, _trace: object) -> None:
        refused = isinstance(err, TortieError) and not isinstance(err, DatastoreUnreachable)
        if self._hold is not None and (err is None or refused):
            await self._handles.drop(self._hold)


class Handles:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._backend = store.backend

    async def get(self, handle: str) -> KV:
        """Raises ResourceDoesNotExist."""
        return await self._backend.get(handle_key(handle))

    async def find(self, handle: str) -> KV | None:
        try:
            return await self.get(handle)
        except ResourceDoesNotExist:
            return None

    async def all(self) -> dict[str, KV]:
        """Handle ID -> handle."""
        return {clean_handle(handle_of(kv)): kv for kv in (await self._backend.list(HandleList())).items}

    def holding(self, handle: str, cidr: str, cap: int) -> Holding:
        return Holding(self, handle, cidr, cap)

    async def add(self, handle: str, cidr: str, count: int, cap: int = 0) -> Hold:
        """Count `count` more addresses of one block; `cap` (0: none) bounds all of one IP version.

        Raises HandleFull, TooManyConflicts.
        """
        key = handle_key(handle)
        kv: KV | None = None  # most handles are new: try to create first, that saves reading
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            try:
                return Hold(await self._counted(key, kv, cidr, count, cap), cidr, count)
            except (ResourceAlreadyExists, UpdateConflict) as err:
                kv = err.current if isinstance(err.current, KV) else await self.find(handle)
            except ResourceDoesNotExist:
                kv = None
        raise TooManyConflicts

    async def _counted(self, key: HandleKey, kv: KV | None, cidr: str, count: int, cap: int) -> KV:
        present: Handle = kv.value if kv is not None else Handle()
        version = ip_version(cidr)
        if cap and total(present, version) + count > cap:
            raise HandleFull(key.handle, total(present, version), cap)
        value = with_count(present, cidr, present.block.get(cidr, 0) + count)
        if kv is None:
            return await self._backend.create(key, value)
        return await self._backend.update(KV(key, value, kv.revision, kv.origin))

    async def renew(self, hold: Hold, count: int, cap: int = 0) -> Hold:
        """Make a hold count `count` for a repeated block write, after the block has been read again.

        This writes even when the number stays: the new revision tells a concurrent release by handle
        that it must not take the hold for a left-over (see release.py).
        """
        value = with_count(hold.kv.value, hold.cidr, hold.kv.value.block[hold.cidr] - hold.count + count)
        try:
            kv = await self._backend.update(KV(hold.kv.key, value, hold.kv.revision, hold.kv.origin))
        except (UpdateConflict, ResourceDoesNotExist):
            return await self.add(handle_of(hold.kv), hold.cidr, count, cap)
        return Hold(kv, hold.cidr, count)

    async def drop(self, hold: Hold) -> None:
        """Take a hold back whose block write did not happen. Never raises a datastore's error."""
        try:
            await self.set_counts(hold.kv, {hold.cidr: hold.kv.value.block[hold.cidr] - hold.count})
        except DatastoreError as err:
            _log.info("%s keeps a count too high for %s: %s", hold.kv.key, hold.cidr, err)

    async def set_counts(self, kv: KV, counts: Mapping[str, int]) -> None:
        """Replace the counts of some blocks, if the handle is still as read. Without any left it is deleted.

        Raises UpdateConflict, ResourceDoesNotExist.
        """
        value: Handle = kv.value
        for cidr, count in counts.items():
            value = with_count(value, cidr, count)
        if value.block:
            await self._backend.update(KV(kv.key, value, kv.revision, kv.origin))
        else:
            await self._backend.delete(kv.key, kv.revision)
