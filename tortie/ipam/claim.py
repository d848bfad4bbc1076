"""Becoming the owner of a block, step by step so that a crash after any step is repaired by the next user.

The steps: create an affinity that says `pending`; create the block with our affinity in it; set the
affinity to `confirmed`. Which of two hosts owns a block is decided by the creation of the block and by
nothing else; the loser deletes its affinity. (Reference: Calico IPAM, 2.3 and 2.14.)
"""

import contextlib
import logging
from collections.abc import Callable

from tortie.core.errors import (
    DatastoreUnreachable,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
    ValidationError,
)
from tortie.core.tasks import best_effort, together
from tortie.datastore.backend import KV
from tortie.datastore.keys import AffinityKey
from tortie.ipam import addresses, walk
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner
from tortie.ipam.confirm import confirm, confirm_again
from tortie.ipam.errors import BlockClaimConflict, NoFreeBlocks, StaleAffinity, TooManyConflicts
from tortie.ipam.pools import Pool, containing
from tortie.ipam.store import PENDING, RETRIES, Store, cidr_of, is_confirmed, owner_of
from tortie.ipam.turns import Turns
from tortie.ipam.unclaim import Terms, Unclaimer
from tortie.ipam.view import Facts, View

_log = logging.getLogger(__name__)

# An empty block is taken from another host only after it had it this long, else two hosts that both
# need one would take it from each other for ever (Calico's EmptyBlockMinReclaimAge).
_RECLAIM_AGE = 60_000_000_000  # ns

Pools = Callable[[Facts], tuple[Pool, ...]]  # the pools to claim in; raises if there are none


class Claimer:
    def __init__(self, store: Store, view: View, unclaimer: Unclaimer) -> None:
        self._store = store
        self._view = view
        self._unclaimer = unclaimer
        self._turns = Turns()  # about (owner, IP version): one new block serves all who need one

    # --- a block of our own ---------------------------------------------------------------------

    async def claim_any(self, owner: Owner, version: int, pools: Pools) -> KV:
        """A block of `owner` with a free address: a new one, or one that just became its own.

        Raises NoFreeBlocks, TooManyConflicts, and whatever `pools` raises.
        """
        async with self._turns.take((owner, version)) as turn:
            if turn.last is not None and (kv := await self._left(turn.last, owner, pools)) is not None:
                return kv
            for attempt in range(RETRIES):
                await self._store.pause(attempt)
                cidr, facts = await self._find(owner, version, pools)
                try:
                    kv = await self.claim(owner, cidr)
                except (BlockClaimConflict, StaleAffinity) as err:
                    _log.info("lost the race for %s, looking for another block: %s", cidr, err)
                    continue
                if self._seen(kv, facts).free:
                    turn.last = kv
                    return kv
            raise TooManyConflicts

    async def _left(self, last: KV, owner: Owner, pools: Pools) -> KV | None:
        """The block that the one before us in the queue claimed, if it has one for us too."""
        facts = await self._view.facts()
        try:
            kv = await self._store.find_block(cidr_of(last))
        except ValidationError:
            return None  # somebody spoilt it; the search finds another
        if kv is None or containing(pools(facts), addresses.network(cidr_of(kv))) is None:
            return None
        seen = self._seen(kv, facts)
        return kv if seen.owner == str(owner) and seen.free else None

    async def _find(self, owner: Owner, version: int, pools: Pools) -> tuple[str, Facts]:
        facts, stored = await together(self._view.facts(fresh=True), self._store.blocks(version))
        seen = self.survey(stored, facts)
        candidates = [(p, walk.start_index(p, owner.host, self._store.rand)) for p in pools(facts)]
        choice = walk.choose_block(candidates, seen, str(owner), facts.reserved)
        if choice.take is not None:
            return choice.take, facts
        for cidr in choice.reclaim:
            kv = stored[cidr]
            if kv is not None and await self._reclaimed(kv, facts):
                return cidr, facts
        raise NoFreeBlocks

    def survey(self, stored: dict[str, KV | None], facts: Facts) -> dict[str, walk.Seen | None]:
        """What matters of each block for choosing one."""
        return {cidr: None if kv is None else self._seen(kv, facts) for cidr, kv in stored.items()}

    def _seen(self, kv: KV, facts: Facts) -> walk.Seen:
        now = self._store.now()
        block = blocks.normalise(kv.value, now, facts.cooldown)
        return walk.Seen(
            owner=block.affinity,
            free=blocks.free_count(block, facts.reserved.ordinals(addresses.network(block.cidr))),
            empty=blocks.is_empty(block),
            reclaimable=blocks.claimed_before(block, now - _RECLAIM_AGE),
        )

    async def _reclaimed(self, kv: KV, facts: Facts) -> bool:
        """Take an empty block away from its owner, if it is still as it was seen."""
        try:
            await self._take_away(kv, facts)
        except DatastoreUnreachable:
            raise
        except TortieError as err:
            _log.info("could not reclaim the empty %s: %s", kv.key, err)
            return False
        _log.info("reclaimed the empty %s", kv.key)
        return True

    async def _take_away(self, kv: KV, facts: Facts) -> None:
        cidr, affinity = cidr_of(kv), kv.value.affinity
        owner = Owner.parse(affinity)
        if owner is None and affinity is not None:  # of a kind we do not know
            raise BlockClaimConflict(cidr, affinity)
        if owner is not None:
            terms = Terms(facts.cooldown, empty=True, sequence_number=kv.value.sequenceNumber)
            try:
                return await self._unclaimer.release(owner, cidr, terms)
            except ResourceDoesNotExist:
                _log.info("%s has no affinity to %s, two crashes can leave that", owner, cidr)
        return await self._store.delete_block(kv)

    # --- one particular block -------------------------------------------------------------------

    async def claim(self, owner: Owner, cidr: str) -> KV:
        """The block of this CIDR with a confirmed affinity to `owner`.

        Raises BlockClaimConflict or StaleAffinity if it is another's, TooManyConflicts.
        """
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            try:
                affinity = await self._store.create_affinity(owner, cidr)
            except ResourceAlreadyExists:
                try:
                    return await self.reuse(await self._own_affinity(owner, cidr))
                except ResourceDoesNotExist:
                    continue
            with contextlib.suppress(UpdateConflict, ResourceDoesNotExist):
                return await self._create(affinity)
        raise TooManyConflicts

    async def _own_affinity(self, owner: Owner, cidr: str) -> KV:
        """Raises ResourceDoesNotExist, also after deleting one that nobody can read.

        All that such an object could say is how far a claim had got, and the block says that better.
        """
        try:
            return await self._store.affinity(owner, cidr)
        except ValidationError as err:
            key = AffinityKey(cidr, owner.host, owner.type)
            _log.warning("deleting %s, which cannot be read: %s", key.path(), err)
            await self._store.backend.delete(key)
            raise ResourceDoesNotExist(key) from err

    async def reuse(self, affinity: KV, seen: KV | None = None) -> KV:
        """The block an existing affinity promises; made so if a crash left it half done.

        `seen` is the block if it was read at the same time. Raises StaleAffinity or BlockClaimConflict if
        the block is another's (the affinity is deleted then), ResourceDoesNotExist if the affinity is
        gone, TooManyConflicts.
        """
        owner, cidr = owner_of(affinity), cidr_of(affinity)
        if seen is not None and is_confirmed(affinity) and seen.value.affinity == str(owner):
            return seen  # anything else that was not read after the affinity proves nothing
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            try:
                return await self._block_of(affinity)
            except (UpdateConflict, ResourceDoesNotExist) as err:
                _log.debug("taking %s again: %s", cidr, err)
            affinity = await self._store.affinity(owner, cidr)
        raise TooManyConflicts

    async def _block_of(self, affinity: KV) -> KV:
        block = await self._store.find_block(cidr_of(affinity))
        if block is None:
            return await self._create(await self._store.set_affinity(affinity, PENDING))
        if block.value.affinity != str(owner_of(affinity)):
            await self._store.delete_affinity(affinity)
            raise StaleAffinity(affinity.key)
        return block if is_confirmed(affinity) else await confirm_again(self._store, affinity, block)

    async def _create(self, affinity: KV) -> KV:
        """Create the block of an affinity that says pending, and confirm."""
        owner, cidr = owner_of(affinity), cidr_of(affinity)
        try:
            kv = await self._store.create_block(blocks.new_block(cidr, owner, self._store.now()))
        except ResourceAlreadyExists as err:
            kv = await self._store.after_conflict(cidr, err.current)
            if kv.value.affinity == str(owner):  # another process of this host was faster
                return await confirm_again(self._store, affinity, kv)
            await best_effort(f"deleting {affinity.key}", self._store.delete_affinity(affinity))
            raise BlockClaimConflict(cidr, kv.value.affinity) from None
        await confirm(self._store, affinity)
        return kv
