"""Giving up the ownership of blocks, in an order that leaves no address without a way to be released.

The steps: set the affinity to `pendingDeletion`; delete the block if it is empty, else take the affinity
out of it; delete the affinity. Each is a compare-and-swap on what was read, so that an allocation or a
claim in between makes us look again (confirm.py). Addresses still held live on in a block that is
nobody's.
(Reference: Calico IPAM, 2.8 and 2.14.)
"""

import logging
from dataclasses import dataclass

from tortie.core.errors import ResourceDoesNotExist, UpdateConflict, ValidationError
from tortie.core.tasks import best_effort
from tortie.datastore.backend import KV
from tortie.datastore.types.ipam import Block
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner
from tortie.ipam.confirm import confirm_again
from tortie.ipam.errors import BlockChanged, BlockClaimConflict, BlockNotEmpty, IPAMError, TooManyConflicts
from tortie.ipam.store import PENDING_DELETION, RETRIES, Store, cidr_of, is_confirmed, owner_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which conditions to release: only an empty block, only one with this sequence number."""

    cooldown: int  # seconds a released address rests; a block with such addresses is not empty
    empty: bool = False
    sequence_number: int | None = None


class Unclaimer:
    def __init__(self, store: Store) -> None:
        self._store = store

    # --- one block ------------------------------------------------------------------------------

    async def release(self, owner: Owner, cidr: str, terms: Terms) -> None:
        """Release one affinity.

        Raises ResourceDoesNotExist if there is none (any more), BlockClaimConflict if the block is
        another's (the stale affinity is deleted then), BlockNotEmpty, BlockChanged, TooManyConflicts.
        """
        if not owner.host:
            raise IPAMError("Hostname must be specified to release block affinity")
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            try:
                return await self._try_release(owner, cidr, terms)
            except UpdateConflict as err:
                _log.debug("releasing the affinity of %s to %s again: %s", owner, cidr, err)
        raise TooManyConflicts

    async def _try_release(self, owner: Owner, cidr: str, terms: Terms) -> None:
        affinity = await self._store.affinity(owner, cidr)
        kv = await self._store.find_block(cidr)
        block = None if kv is None else blocks.normalise(kv.value, self._store.now(), terms.cooldown)
        # A block that is in use but nobody's stays as it is; only the affinity is left to remove.
        if kv is not None and block is not None and (block.affinity or blocks.is_empty(block)):
            await self._judge(affinity, kv, block, terms)
            affinity = await self._store.set_affinity(affinity, PENDING_DELETION)
            await self._let_go(kv, block)
        await self._finish(affinity)

    async def _judge(self, affinity: KV, kv: KV, block: Block, terms: Terms) -> None:
        """Raise if the block must not be released, and leave the affinity saying what is true."""
        owner = str(owner_of(affinity))
        if block.affinity not in (None, owner):
            await best_effort(f"deleting {affinity.key}", self._store.delete_affinity(affinity))
            raise BlockClaimConflict(block.cidr, block.affinity)
        changed = terms.sequence_number not in (None, block.sequenceNumber)
        if not changed and not (terms.empty and not blocks.is_empty(block)):
            return
        if block.affinity == owner and not is_confirmed(affinity):
            # Marked by our own last try or by a crash, but it stays: routes to it depend on the state.
            await self._restore(affinity, kv)
        raise BlockChanged if changed else BlockNotEmpty(block.cidr)

    async def _restore(self, affinity: KV, kv: KV) -> None:
        try:
            await confirm_again(self._store, affinity, kv)
        except ResourceDoesNotExist as err:  # the block went meanwhile: look again
            raise UpdateConflict(affinity.key) from err

    async def _let_go(self, kv: KV, block: Block) -> None:
        try:
            if blocks.is_empty(block):
                await self._store.delete_block(kv)
            else:
                await self._store.update_block(kv, blocks.disowned(block))
        except ResourceDoesNotExist:
            _log.debug("%s is gone already", kv.key)

    async def _finish(self, affinity: KV) -> None:
        try:
            await self._store.delete_affinity(affinity)
        except (ResourceDoesNotExist, UpdateConflict) as err:
            # Our part is done: the block is not the owner's. Whoever changed the affinity since claims
            # anew, or releases too, and is the one to say what it is now.
            _log.debug("leaving %s to others: %s", affinity.key, err)

    # --- many blocks ----------------------------------------------------------------------------

    async def release_quietly(self, owner: Owner, cidr: str, terms: Terms) -> bool:
        """release(), where "not its block" and "no such affinity" are as good; False if it was stale."""
        try:
            await self.release(owner, cidr, terms)
        except BlockClaimConflict:
            return False
        except ResourceDoesNotExist:
            _log.debug("%s has no affinity to %s", owner, cidr)
        return True

    async def release_host(self, owner: Owner, terms: Terms) -> None:
        """Release all affinities of an owner, as many as can be; then raise the last refusal."""
        refusal: IPAMError | ValidationError | None = None
        for version in (4, 6):
            for affinity in await self._store.affinities(owner, version):
                try:
                    await self.release_quietly(owner, cidr_of(affinity), terms)
                except (IPAMError, ValidationError) as err:
                    refusal = err
        if refusal is not None:
            raise refusal

    async def release_orphans(self, owner: Owner, terms: Terms) -> None:
        """Release blocks that name an owner who has no affinity to them (two crashes can leave that)."""
        for cidr, kv in (await self._store.blocks()).items():
            if kv is None or kv.value.affinity != str(owner):
                continue
            try:
                await self._store.affinity(owner, cidr)
            except ResourceDoesNotExist:
                # A claim that begins now writes the block again, and our write conflicts.
                block = blocks.normalise(kv.value, self._store.now(), terms.cooldown)
                await best_effort(f"releasing {kv.key}", self._let_go(kv, block))

    async def release_pool(self, pool: addresses.Network, terms: Terms) -> None:
        """Release all affinities of all owners inside a pool. Raises at the first refusal."""
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            inside = [
                affinity
                for affinity in await self._store.all_affinities()
                if addresses.contains(pool, addresses.network(cidr_of(affinity)))
            ]
            # A stale affinity hid the block's real owner: look again.
            stale = [
                affinity
                for affinity in inside
                if not await self.release_quietly(owner_of(affinity), cidr_of(affinity), terms)
            ]
            if not stale:
                return
        raise TooManyConflicts
