"""Giving addresses back, by address or by handle.

Blocks are written first and handles counted down after, so that a crash in between leaves a count too
high and never too low. (Reference: Calico IPAM, 2.6, 2.7 and 2.10.)

A release by handle also clears counts that no address stands behind, left by crashes. That must not
take the count of an assignment that is just being made: counted on the handle, its block not yet
written. Therefore the block is always written, even if nothing in it changes, and then the handle is
replaced only if it is still as it was read before that. An assignment that counted before our reading
had read its block before, so its write of the block now conflicts; it counts anew before it repeats
(Handles.renew). One that counted later changed the handle, and ours is the write that conflicts.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping

from tortie.core.errors import ResourceDoesNotExist, TortieError, UpdateConflict
from tortie.datastore.backend import KV
from tortie.datastore.types.ipam import Block
from tortie.ipam import addresses, pools
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.errors import BlockNotEmpty, IPAMError, TooManyConflicts
from tortie.ipam.handle import block_cidrs
from tortie.ipam.handles import Handles
from tortie.ipam.requests import ReleaseOutcome
from tortie.ipam.store import RETRIES, Store, best_effort, together
from tortie.ipam.unclaim import Terms, Unclaimer
from tortie.ipam.view import Facts, View

_log = logging.getLogger(__name__)

# From how many addresses on all handles are read at once. Listing 10,000 handles takes as long as
# reading some 200 one by one; Calico's threshold of 2 loads the datastore for every small release.
_MANY = 100
_BLOCKS_AT_ONCE = 16  # blocks released from in parallel; a node's blocks fit in one or two rounds


class Releaser:
    def __init__(self, store: Store, view: View, unclaimer: Unclaimer, handles: Handles) -> None:
        self._store = store
        self._view = view
        self._unclaimer = unclaimer
        self._handles = handles

    # --- by address -----------------------------------------------------------------------------

    async def release(self, requests: Iterable[ReleaseRequest]) -> ReleaseOutcome:
        """Release addresses of any blocks, each block on its own: one that fails stops no other.

        Raises IPAMError if a request names no address; DatastoreUnreachable if nothing was begun.
        """
        requests = [_parsed(request) for request in requests]
        facts = await self._view.facts()
        by_block, unallocated = await self._grouped(requests, facts)
        known = await self._handles.all() if len(requests) > _MANY else {}
        limit = asyncio.Semaphore(_BLOCKS_AT_ONCE)

        async def one(cidr: str, of_block: list[ReleaseRequest]) -> ReleaseOutcome:
            async with limit:
                try:
                    free = await self._release_in(cidr, of_block, known, facts)
                except TortieError as err:
                    return ReleaseOutcome(error=err)
                return ReleaseOutcome(free, tuple(of_block))

        outcomes = await together(*(one(cidr, of_block) for cidr, of_block in by_block.items()))
        return ReleaseOutcome(
            unallocated=(*unallocated, *(a for outcome in outcomes for a in outcome.unallocated)),
            done=tuple(request for outcome in outcomes for request in outcome.done),
            error=next((outcome.error for outcome in outcomes if outcome.error is not None), None),
        )

    async def _grouped(
        self, requests: list[ReleaseRequest], facts: Facts
    ) -> tuple[dict[str, list[ReleaseRequest]], list[str]]:
        """Requests by block CIDR; and the addresses that are in no block."""
        by_block: dict[str, list[ReleaseRequest]] = {}
        unallocated: dict[str, None] = {}
        existing: Mapping[str, KV | None] | None = None  # read at most once, for addresses in no pool
        for request in requests:
            address = addresses.address(request.address)
            if pool := pools.containing(facts.pools, address):
                by_block.setdefault(addresses.block_around(address, pool.block_size), []).append(request)
                continue
            if existing is None:
                existing = await self._store.blocks()
            cidr = next((c for c in existing if _holds(c, address)), None)
            if cidr is None:
                unallocated[request.address] = None
            else:
                by_block.setdefault(cidr, []).append(request)
        return by_block, list(unallocated)

    async def _release_in(
        self, cidr: str, requests: list[ReleaseRequest], known: Mapping[str, KV], facts: Facts
    ) -> tuple[str, ...]:
        """Release addresses of one block, all or none; returns those that were not allocated."""
        kv = await self._store.find_block(cidr)
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            if kv is None:
                return tuple(dict.fromkeys(request.address for request in requests))
            now = self._store.now()
            block = blocks.normalise(kv.value, now, facts.cooldown)
            released = blocks.release(block, requests, now, facts.cooldown)
            if released.block is block:
                return released.unallocated
            try:
                await self._write(kv, released.block)
            except UpdateConflict as err:
                kv = await self._store.after_conflict(cidr, err.current)
                continue
            except ResourceDoesNotExist:
                kv = None
                continue
            for handle, count in released.by_handle.items():
                subtract = self._handles.subtract(handle, cidr, count, known.get(handle))
                await best_effort(f"counting down handle {handle}", subtract)
            await self.keep_consistent(released.block, facts)
            return released.unallocated
        raise TooManyConflicts

    # --- by handle ------------------------------------------------------------------------------

    async def release_handle(self, handle: str) -> None:
        """Release whatever a handle holds, and the handle. Raises ResourceDoesNotExist, TooManyConflicts."""
        kv, facts = await together(self._handles.get(handle), self._view.facts())
        cidrs = block_cidrs(kv.value)
        released = await together(*(self._empty_handle_in(cidr, handle, facts) for cidr in cidrs))
        try:
            await self._handles.lower(kv, dict.fromkeys(kv.value.block, 0))
        except ResourceDoesNotExist:
            return
        except UpdateConflict:
            # Somebody else uses this handle at this moment: only what we released is certain.
            for cidr, count in zip(cidrs, released, strict=True):
                if count:
                    await self._handles.subtract(handle, cidr, count)

    async def _empty_handle_in(self, cidr: str, handle: str, facts: Facts) -> int:
        """Release a handle's addresses in one block; returns how many those were."""
        kv = await self._store.find_block(cidr)
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            if kv is None:
                return 0
            now = self._store.now()
            block = blocks.normalise(kv.value, now, facts.cooldown)
            written, count = blocks.release_handle(block, handle, now, facts.cooldown)
            try:
                await self._write(kv, written)
            except UpdateConflict as err:
                kv = await self._store.after_conflict(cidr, err.current)
                continue
            except ResourceDoesNotExist:
                kv = None
                continue
            await self.keep_consistent(written, facts)
            return count
        raise TooManyConflicts

    async def settle(self, handle: str) -> None:
        """Set a handle's counts to what it really holds, unless somebody changes it meanwhile."""
        kv, facts = await together(self._handles.get(handle), self._view.facts())
        counts = dict.fromkeys(kv.value.block, 0)
        for cidr in block_cidrs(kv.value):
            if (found := await self._store.find_block(cidr)) is not None:
                block = blocks.normalise(found.value, self._store.now(), facts.cooldown)
                counts[cidr] = len(blocks.ordinals_of(block, handle))
                await self._store.update_block(found, block)
        await self._handles.lower(kv, counts)

    # --- what both need -------------------------------------------------------------------------

    async def _write(self, kv: KV, block: Block) -> None:
        """Write a block, or delete it if nobody owns or uses it. Raises as Store.update_block."""
        if block.affinity is None and blocks.is_empty(block):
            await self._store.delete_block(kv)
        else:
            await self._store.update_block(kv, block)

    async def free_cooled(self, kv: KV, cooldown: int) -> None:
        """Free the addresses of a block whose cooldown is over, if there are any.

        Raises UpdateConflict, ResourceDoesNotExist if it is not any more as it was read.
        """
        block = blocks.normalise(kv.value, self._store.now(), cooldown)
        if block is not kv.value:
            await self._write(kv, block)

    async def keep_consistent(self, block: Block, facts: Facts) -> None:
        """Release the block's affinity if it is empty and its pool no longer selects its node."""
        await best_effort(f"checking the affinity of {block.cidr}", self._keep_consistent(block, facts))

    async def _keep_consistent(self, block: Block, facts: Facts) -> None:
        owner = Owner.parse(block.affinity)
        net = addresses.network(block.cidr)
        pool = pools.containing(pools.enabled(facts.pools, net.version), net)
        if owner is None or owner.type != "host" or pool is None or pool.selects_all_nodes:
            return
        if not blocks.is_empty(block):
            return
        try:
            labels = await self._view.labels(owner.host)
        except ResourceDoesNotExist:
            return  # the node is gone: its affinities are the node controller's business
        if pool.selects_node(labels):
            return
        try:
            await self._unclaimer.release_quietly(owner, block.cidr, Terms(facts.cooldown, empty=True))
        except BlockNotEmpty:
            _log.debug("%s is in use again", block.cidr)


def _parsed(request: ReleaseRequest) -> ReleaseRequest:
    if not request.address:
        raise IPAMError(f"No IP address specified in options: {request}")
    try:
        text = str(addresses.address(request.address))
    except ValueError:
        raise IPAMError(f"failed to parse IP: {request.address}") from None
    return ReleaseRequest(text, request.handle, request.sequence_number)


def _holds(cidr: str, address: addresses.Address) -> bool:
    net = addresses.network(cidr)
    return net.version == address.version and address in net
