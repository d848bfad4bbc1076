"""Giving addresses back, by address or by handle.

Blocks are written first and handles counted down after, so that a crash in between leaves a count too
high and never too low. (Reference: Calico IPAM, 2.6, 2.7 and 2.10.)

How a count comes down. Subtracting what was released is not safe: a count may be a crash's left-over,
or that of an assignment that is just being made (counted, its block not yet written), and two releases
may each believe that the count is theirs to subtract. Instead the count is set to the truth: how many
addresses the handle has in the block as it has just been written, provided the handle is still as it
was read before that write. That is right for every assignment under way. One that counted before our
reading had read its block even earlier, so our write makes its own conflict, and it counts anew before
it repeats (Handles.renew). One that counted later has changed the handle, and our setting conflicts;
then we look again. For this a release by handle writes a block also when nothing in it changes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from tortie.core.errors import (
    DatastoreError,
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
    ValidationError,
)
from tortie.core.tasks import best_effort, together
from tortie.datastore.backend import KV
from tortie.datastore.types.ipam import Block
from tortie.ipam import addresses, pools
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner, Released, ReleaseRequest
from tortie.ipam.errors import BlockNotEmpty, IPAMError, TooManyConflicts
from tortie.ipam.handle import block_cidrs
from tortie.ipam.handles import Handles, handle_key, handle_of
from tortie.ipam.requests import ReleaseOutcome
from tortie.ipam.store import RETRIES, Store
from tortie.ipam.turns import Turns
from tortie.ipam.unclaim import Terms, Unclaimer
from tortie.ipam.view import Facts, View

_log = logging.getLogger(__name__)

# From how many addresses on all handles are read at once. Listing 10,000 handles takes as long as
# reading some 200 one by one; Calico's threshold of 2 loads the datastore for every small release.
_MANY = 100
_SETTLE_TRIES = 10  # a handle is used by one owner; more than a few at once is somebody's mistake
_BLOCKS_AT_ONCE = 16  # blocks released from in parallel; a node's blocks fit in one or two rounds


class Releaser:
    def __init__(
        self, store: Store, view: View, unclaimer: Unclaimer, handles: Handles, turns: Turns
    ) -> None:
        self._store = store
        self._view = view
        self._unclaimer = unclaimer
        self._handles = handles
        self._turns = turns

    # --- by address -----------------------------------------------------------------------------

    async def release(self, requests: Iterable[ReleaseRequest]) -> ReleaseOutcome:
        """Release addresses of any blocks, each block on its own: one that fails stops no other.

        Raises IPAMError if a request names no address; DatastoreUnreachable if nothing was begun.
        """
        requests = [_parsed(request) for request in requests]
        facts = await self._view.facts()
        by_block, astray = _grouped(requests, partial(pools.block_of, facts.pools))
        known = await self._handles.all() if len(requests) > _MANY else {}
        limit = asyncio.Semaphore(_BLOCKS_AT_ONCE)

        async def one(cidr: str, of_block: list[ReleaseRequest]) -> ReleaseOutcome:
            async with limit:
                try:
                    free = await self._release_in(cidr, of_block, known, facts)
                except ResourceDoesNotExist:
                    astray.extend(of_block)
                    return ReleaseOutcome()
                except TortieError as err:
                    return ReleaseOutcome(error=err)
                return ReleaseOutcome(free, tuple(of_block))

        outcomes = await together(*(one(cidr, of_block) for cidr, of_block in by_block.items()))
        if astray:  # their pool is gone, or makes blocks of another size now
            by_block, astray = _grouped(astray, partial(addresses.holder, await self._store.blocks()))
            outcomes += await together(*(one(cidr, of_block) for cidr, of_block in by_block.items()))
        nowhere = dict.fromkeys(request.address for request in astray)
        return ReleaseOutcome(
            unallocated=(*nowhere, *(a for outcome in outcomes for a in outcome.unallocated)),
            done=tuple(request for outcome in outcomes for request in outcome.done),
            error=next((outcome.error for outcome in outcomes if outcome.error is not None), None),
        )

    async def _release_in(
        self, cidr: str, requests: list[ReleaseRequest], known: Mapping[str, KV], facts: Facts
    ) -> tuple[str, ...]:
        """Release addresses of one block, all or none; returns those that were not allocated.

        Raises ResourceDoesNotExist if there is no such block.
        """
        handles: dict[str, KV | None] = dict(known)
        released: Released  # by the last call of:

        async def change(block: Block) -> Block:
            nonlocal released
            released = blocks.release(block, requests, self._store.now(), facts.cooldown)
            unread = [handle for handle in released.handles if handle not in handles]
            found = await together(*(self._handles.find(handle) for handle in unread))
            handles.update(zip(unread, found, strict=True))
            return released.block

        written = await self._rewrite(cidr, change, facts)
        for handle in released.handles:
            await self.count_down(handles[handle], written)
        await self.keep_consistent(written, facts)
        return released.unallocated

    async def count_down(self, kv: KV | None, block: Block) -> None:
        """Set a handle's count for a block just written. Failures are only logged: the addresses are free."""
        if kv is None:
            return
        handle = handle_of(kv)
        try:
            await self._handles.set_counts(kv, {block.cidr: len(blocks.ordinals_of(block, handle))})
        except ResourceDoesNotExist:
            return
        except UpdateConflict:
            await best_effort(f"counting handle {handle}", self.settle(handle, [block.cidr]))
        except DatastoreError as err:
            _log.warning("%s keeps a count too high for %s: %s", kv.key, block.cidr, err)

    # --- by handle ------------------------------------------------------------------------------

    async def release_handle(self, handle: str) -> None:
        """Release whatever a handle holds, and the handle. Raises ResourceDoesNotExist, TooManyConflicts."""
        try:
            kv, facts = await together(self._handles.get(handle), self._view.facts())
        except ValidationError as err:
            await self._release_unreadable(handle, err)
            return
        cidrs = block_cidrs(kv.value)
        await together(*(self._empty_handle_in(cidr, handle, facts) for cidr in cidrs))
        try:
            await self._handles.set_counts(kv, dict.fromkeys(kv.value.block, 0))
        except ResourceDoesNotExist:
            return
        except UpdateConflict:  # somebody else uses this handle at this moment
            await best_effort(f"counting handle {handle}", self.settle(handle, cidrs))

    async def _release_unreadable(self, handle: str, err: ValidationError) -> None:
        """A handle that is no help: the blocks say what it holds, and the object goes."""
        key = handle_key(handle)
        _log.warning("%s cannot be read, looking through all blocks: %s", key.path(), err)
        facts, stored = await together(self._view.facts(), self._store.blocks())
        held = [
            cidr for cidr, kv in stored.items() if kv is not None and blocks.ordinals_of(kv.value, key.handle)
        ]
        await together(*(self._empty_handle_in(cidr, key.handle, facts) for cidr in held))
        await self._store.backend.delete(key)

    async def _empty_handle_in(self, cidr: str, handle: str, facts: Facts) -> None:
        """Release a handle's addresses in one block; write the block even if there are none."""

        async def change(block: Block) -> Block:
            return blocks.release_handle(block, handle, self._store.now(), facts.cooldown)

        try:
            written = await self._rewrite(cidr, change, facts, always=True)
        except ResourceDoesNotExist:
            return
        await self.keep_consistent(written, facts)

    async def settle(self, handle: str, cidrs: Iterable[str] | None = None) -> None:
        """Set a handle's counts (None: for all its blocks) to what it really holds.

        Raises TooManyConflicts if others keep changing it; the counts are too high at worst then.
        """
        facts = await self._view.facts()
        for attempt in range(_SETTLE_TRIES):
            await self._store.pause(attempt)
            kv = await self._handles.find(handle)
            if kv is None:
                return
            try:
                wanted = block_cidrs(kv.value) if cidrs is None else cidrs
                true = {cidr: await self._true_count(kv, cidr, facts) for cidr in wanted}
                if any(kv.value.block.get(cidr, 0) != count for cidr, count in true.items()):
                    await self._handles.set_counts(kv, true)
                return
            except (UpdateConflict, ResourceDoesNotExist) as err:
                _log.debug("looking at handle %s again: %s", handle, err)
        raise TooManyConflicts

    async def _true_count(self, handle: KV, cidr: str, facts: Facts) -> int:
        """What a handle holds in a block; where the handle says otherwise, the block is written."""
        kv = await self._store.find_block(cidr)
        if kv is None:
            return 0
        block = blocks.normalise(kv.value, self._store.now(), facts.cooldown)
        count = len(blocks.ordinals_of(block, handle_of(handle)))
        if handle.value.block.get(cidr, 0) != count:
            await self._store.update_block(kv, block)
        return count

    # --- what both need -------------------------------------------------------------------------

    async def _rewrite(
        self, cidr: str, change: Callable[[Block], Awaitable[Block]], facts: Facts, *, always: bool = False
    ) -> Block:
        """Write a block as `change` makes it, anew for each state it is found in; `always`: also unchanged.

        Returns it as written. Raises ResourceDoesNotExist, TooManyConflicts, and what `change` raises.
        """
        read = await self._store.block(cidr)
        async with self._turns.take(cidr) as turn:
            kv = turn.newer(read)
            for attempt in range(RETRIES):
                await self._store.pause(attempt)
                block = blocks.normalise(kv.value, self._store.now(), facts.cooldown)
                written = await change(block)
                if written is block and not always:
                    return block
                try:
                    turn.last = await self._write(kv, written)
                except UpdateConflict as err:
                    kv = await self._store.after_conflict(cidr, err.current)
                else:
                    return written
        raise TooManyConflicts

    async def _write(self, kv: KV, block: Block) -> KV | None:
        """Write a block, or delete it if nobody owns or uses it. Raises as Store.update_block."""
        if block.affinity is not None or not blocks.is_empty(block):
            return await self._store.update_block(kv, block)
        await self._store.delete_block(kv)
        return None

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


def _grouped(
    requests: Iterable[ReleaseRequest], block_of: Callable[[addresses.Address], str | None]
) -> tuple[dict[str, list[ReleaseRequest]], list[ReleaseRequest]]:
    """Requests by block CIDR; and those that are in none."""
    by_block: dict[str, list[ReleaseRequest]] = {}
    nowhere: list[ReleaseRequest] = []
    for request in requests:
        cidr = block_of(addresses.address(request.address))
        (nowhere if cidr is None else by_block.setdefault(cidr, [])).append(request)
    return by_block, nowhere
