"""Handles that a crash left behind: no address has them any more, so nobody will ever count them down.

A handle is counted up before its address is written and down after it is released, so one without an
address is nothing wrong for a moment. Only one that nobody has written for the whole grace period is
deleted, and only if it is still as it was then: whoever uses it meanwhile has changed it.
(Calico leaves them to `calicoctl ipam check` and `ipam release --from-report`.)
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping

from tortie.controllers.garbage import allocations_of
from tortie.core.errors import ResourceDoesNotExist, UpdateConflict, ValidationError
from tortie.datastore.backend import KV, Backend
from tortie.datastore.keys import BlockList, HandleKey, HandleList
from tortie.ipam.handles import handle_key
from tortie.ipam.soundness import ensure_usable

_log = logging.getLogger(__name__)

Seen = tuple[HandleKey, str]  # with the revision: a handle that was written since is another observation


def orphans(
    stored: Iterable[KV], used: Collection[HandleKey], since: Mapping[Seen, float], now: float, grace: float
) -> tuple[dict[Seen, float], list[KV]]:
    """Handles without an address -> since when (clock time), and those that are to be deleted. Pure."""
    found: dict[Seen, float] = {}
    old = []
    for kv in stored:
        if isinstance(kv.key, HandleKey) and kv.key not in used:
            seen = (kv.key, kv.revision)
            found[seen] = since.get(seen, now)
            if now >= found[seen] + grace:
                old.append(kv)
    return found, old


class HandleCollector:
    """Looks only from time to time: handles are listed, not followed, for there is one for each address."""

    def __init__(self, backend: Backend, grace: float) -> None:
        """`grace` in seconds, more than 0."""
        self._backend = backend
        self._grace = grace
        self._since: dict[Seen, float] = {}

    async def round(self) -> float | None:
        """Handles are read before blocks: an address that is given out meanwhile is seen."""
        stored = (await self._backend.list(HandleList())).items
        used = await self._used()
        if used is None:
            return None
        now = asyncio.get_running_loop().time()
        self._since, old = orphans(stored, used, self._since, now, self._grace)
        for kv in old:
            try:
                await self._backend.delete(kv.key, kv.revision)
                _log.info("deleted %s, which no address has", kv.key)
            except (UpdateConflict, ResourceDoesNotExist) as err:
                _log.debug("%s is used again: %s", kv.key, err)
        return None

    async def _used(self) -> set[HandleKey] | None:
        """Those that addresses have; None if a block cannot be read, whose addresses nobody knows."""
        listed = await self._backend.list(BlockList())
        try:
            for kv in listed.items:
                ensure_usable(kv.value, kv.value.cidr)
        except (ValidationError, ValueError) as err:
            _log.debug("no handle is judged: %s", err)
            return None
        if listed.broken:
            return None
        everything = (one for kv in listed.items for one in allocations_of(kv.value))
        return {handle_key(one.handle) for one in everything if one.handle}
