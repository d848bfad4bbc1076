"""Handing out addresses of the allocator's choice.

In this order: blocks the host owns, new blocks, empty blocks taken from others, and, unless affinity is
strict, single addresses borrowed from blocks of others. (Reference: Calico IPAM, 2.2 and 2.4.)

Per block: count the addresses on the handle, then write the block. A conflict brings the block as it is
now, and the choice in it is made anew. If the datastore does not answer the block's write, the count
stays: the write may have happened, and the addresses must be found by whoever releases the handle.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from tortie.core.errors import ResourceDoesNotExist, TortieError, UpdateConflict, ValidationError
from tortie.core.tasks import together
from tortie.datastore.backend import KV
from tortie.datastore.keys import BlockKey
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.ipam import addresses, pools, walk
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner
from tortie.ipam.claim import Claimer
from tortie.ipam.errors import (
    BlockClaimConflict,
    BlockLimitReached,
    BlockNotEmpty,
    HandleFull,
    IPAMError,
    NoBlockToUse,
    NoFreeBlocks,
    StaleAffinity,
    TooManyConflicts,
)
from tortie.ipam.handles import Handles, Holding
from tortie.ipam.held import HeldAddresses
from tortie.ipam.names import clean_handle
from tortie.ipam.pools import LOAD_BALANCER, Pool, Wish
from tortie.ipam.requests import Assigned, AutoAssign, AutoAssigned
from tortie.ipam.store import RETRIES, Store, cidr_of, owner_of
from tortie.ipam.turns import Turns
from tortie.ipam.unclaim import Terms, Unclaimer
from tortie.ipam.view import Facts, View

_log = logging.getLogger(__name__)

_DEFAULT_BLOCK_LIMIT = 20  # Calico's safeguard against runaway allocation when nobody set a limit


@dataclass(slots=True)
class _Round:
    """The assignment of one IP version, as far as it has come."""

    wish: Wish
    owner: Owner
    requested: int
    attribute: AllocationAttribute
    handle: str
    cap: int
    max_blocks: int
    addresses: list[str] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)  # in order, once each
    pools: tuple[Pool, ...] = ()  # those that may be used
    counted: int = 0  # addresses that the handle counts since it was last written

    @property
    def missing(self) -> int:
        return self.requested - len(self.addresses)

    def note(self, text: str) -> None:
        self.notes[text] = None

    def result(self) -> Assigned:
        return Assigned(
            self.wish.version,
            self.requested,
            tuple(self.addresses),
            tuple(self.notes),
            self.counted,
        )


class Assigner:
    def __init__(
        self,
        store: Store,
        view: View,
        claimer: Claimer,
        unclaimer: Unclaimer,
        handles: Handles,
        held: HeldAddresses,
        turns: Turns,
    ) -> None:
        self._store = store
        self._view = view
        self._claimer = claimer
        self._unclaimer = unclaimer
        self._handles = handles
        self._held = held
        self._turns = turns
        # (owner, IP version) -> the own block that gave an address the last time. It is tried first, so
        # that a host with many full blocks does not read them all for each address.
        self._recent: dict[tuple[Owner, int], str] = {}

    async def assign(self, request: AutoAssign, host: str) -> AutoAssigned:
        """Never raises for what the allocator or the datastore refuses: that is in the answer."""
        done: dict[int, Assigned] = {}
        try:
            if not request.use:
                raise IPAMError("must specify the intended use when assigning an IP")
            for version, count in ((4, request.num4), (6, request.num6)):
                if count > 0:
                    one = _round(request, host, version, count)
                    try:
                        await self._run(one)
                    finally:
                        done[version] = one.result()
        except TortieError as err:
            _log.info("assigning for %s stopped: %s", request.handle or "no handle", err)
            return AutoAssigned(done.get(4), done.get(6), err)
        return AutoAssigned(done.get(4), done.get(6))

    # --- one IP version -------------------------------------------------------------------------

    async def _run(self, one: _Round) -> None:
        kept, facts, seen = await self._own_blocks(one)
        owned = {cidr_of(affinity) for affinity in kept}
        for affinity in kept:
            if facts.reserved.covers(addresses.network(cidr_of(affinity))):
                continue
            kv = await self._reused(one, affinity, seen)
            if kv is None:
                owned.discard(cidr_of(affinity))
            else:
                await self._take(one, kv, facts, own=True)
            if not one.missing:
                return
        await self._run_beyond(one, facts, owned)

    async def _run_beyond(self, one: _Round, facts: Facts, owned: set[str]) -> None:
        """New blocks, then those of others."""
        limit = _block_limit(one.max_blocks, facts.config.maxBlocksPerHost)
        for _ in range(RETRIES):
            if not one.missing:
                return
            if len(owned) >= limit:
                one.note(
                    "Need to allocate an IPAM block but could not - "
                    f"limit of {limit} blocks reached for this node"
                )
                raise BlockLimitReached
            if not facts.config.auto_allocate_blocks:
                raise NoBlockToUse
            try:
                kv = await self._claimed(one)
            except NoFreeBlocks:
                break
            owned.add(cidr_of(kv))
            await self._take(one, kv, facts, own=True)
        if facts.config.strict_affinity:
            one.note("No more free affine blocks and strict affinity enabled")
        else:
            await self._borrow(one, facts)

    async def _own_blocks(self, one: _Round) -> tuple[list[KV], Facts, KV | None]:
        """The host's affinities inside the pools to use, what is known, and a block read on the way."""
        recent = self._recent.get((one.owner, one.wish.version), "")
        (facts, labels), affinities, seen = await together(
            together(self._view.facts(), self._labels(one.owner)),
            self._store.affinities(one.owner, one.wish.version),
            self._readable(recent),
        )
        try:
            one.pools = pools.choose(facts.pools, one.wish, labels)
        except IPAMError:  # a pool that has just been made may be there and not known yet
            facts = await self._view.facts(fresh=True)
            one.pools = pools.choose(facts.pools, one.wish, labels)
        kept: list[KV] = []
        others: list[KV] = []
        for affinity in affinities:
            inside = pools.containing(one.pools, addresses.network(cidr_of(affinity)))
            (kept if inside else others).append(affinity)
        for affinity in others:
            await self._release_deselected(affinity, facts, labels)
        kept.sort(key=lambda affinity: cidr_of(affinity) != recent)
        return kept, facts, seen

    async def _labels(self, owner: Owner) -> Mapping[str, str]:
        # What is virtual is no machine: there is no Node to ask.
        return {} if owner.type == "virtual" else await self._view.labels(owner.host)

    async def _readable(self, cidr: str) -> KV | None:
        try:
            return await self._store.find_block(cidr) if cidr else None
        except ValidationError:
            return None  # said when the block is really needed

    async def _release_deselected(self, affinity: KV, facts: Facts, labels: Mapping[str, str]) -> None:
        """Give up an empty block whose pool no longer selects this node."""
        cidr = cidr_of(affinity)
        net = addresses.network(cidr)
        pool = pools.containing(pools.enabled(facts.pools, net.version), net)
        try:
            if pool is None or pool.selects_node(labels):
                return
            terms = Terms(facts.cooldown, empty=True)
            await self._unclaimer.release_quietly(owner_of(affinity), cidr, terms)
        except BlockNotEmpty:
            _log.debug("%s is not empty, %s keeps it", cidr, owner_of(affinity))
        except (IPAMError, ValidationError) as err:
            _log.warning("could not release %s, which no longer selects this node: %s", cidr, err)

    # --- getting blocks -------------------------------------------------------------------------

    async def _reused(self, one: _Round, affinity: KV, seen: KV | None) -> KV | None:
        """The block of an own affinity; None if it turned out not to be ours or cannot be used."""
        try:
            matching = seen if seen is not None and cidr_of(seen) == cidr_of(affinity) else None
            return await self._claimer.reuse(affinity, matching)
        except (StaleAffinity, BlockClaimConflict, ResourceDoesNotExist, TooManyConflicts) as err:
            _log.info("no block behind %s: %s", affinity.key, err)
        except ValidationError as err:
            self._store.complain(BlockKey(cidr_of(affinity)).path(), err)
        return None

    async def _claimed(self, one: _Round) -> KV:
        labels = await self._labels(one.owner)
        return await self._claimer.claim_any(
            one.owner,
            one.wish.version,
            lambda facts: pools.choose(facts.pools, one.wish, labels),
        )

    async def _borrow(self, one: _Round, facts: Facts) -> None:
        """Take from blocks of anybody, pool by pool, in the order of the host's walk."""
        stored = await self._store.blocks(one.wish.version)
        seen = self._claimer.survey(stored, facts)
        exhausted = []
        for pool in one.pools:
            for cidr in walk.existing(pool, walk.start_index(pool, one.owner.host, self._store.rand), seen):
                if (kv := stored[cidr]) is not None and one.missing:
                    await self._take(one, kv, facts, own=False)
            if one.missing:
                exhausted.append(pool.cidr)
        if exhausted:
            one.note(f"No IPs available in pools: [{' '.join(exhausted)}]")

    # --- taking from a block --------------------------------------------------------------------

    async def _take(self, one: _Round, kv: KV, facts: Facts, *, own: bool) -> None:
        """Assign what is missing from one block, as far as it goes; `own`: only while it is the owner's."""
        cidr = cidr_of(kv)
        try:
            async with (
                self._turns.take(cidr) as turn,
                self._handles.holding(one.handle, cidr, one.cap) as holding,
            ):
                turn.last = await self._try_take(one, turn.newer(kv), facts, holding, own=own)
        except (ResourceDoesNotExist, ValidationError) as err:
            _log.info("%s cannot be used any more: %s", kv.key, err)

    async def _try_take(self, one: _Round, kv: KV, facts: Facts, holding: Holding, *, own: bool) -> KV | None:
        """Returns the block as it was written, if it was."""
        cidr = cidr_of(kv)
        net = addresses.network(cidr)
        skip = facts.reserved.ordinals(net)
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            block = blocks.normalise(kv.value, self._store.now(), facts.cooldown)
            if own and block.affinity != str(one.owner):
                return None
            written, ordinals = blocks.assign(block, one.missing, one.attribute, skip)
            if not ordinals:
                return None
            try:
                await holding.count(len(ordinals))
                kv = await self._store.update_block(kv, written)
            except UpdateConflict as err:
                kv = await self._store.after_conflict(cidr, err.current)
            except HandleFull:
                if held := await self._held.enough(one.handle, one.wish.version, one.requested, attempt):
                    one.addresses[:] = held
                    return None
                kv = await self._store.block(cidr)
            else:
                one.counted = holding.counted
                holding.keep()
                one.addresses += [f"{net[ordinal]}/{net.prefixlen}" for ordinal in ordinals]
                if own:
                    self._recent[one.owner, one.wish.version] = cidr
                return kv
        return None


def _round(request: AutoAssign, host: str, version: int, count: int) -> _Round:
    """Raises IPAMError if pools of the other IP version are requested."""
    requested = request.pools4 if version == 4 else request.pools6
    other = 10 - version
    if any((":" in cidr) == (version == 4) for cidr in requested):
        raise IPAMError(f"provided IPv{version} IPPools list contains one or more IPv{other} IPPools")
    handle = clean_handle(request.handle)
    return _Round(
        wish=wish_of(request, host, version),
        owner=Owner(request.host or host, "virtual" if request.use == LOAD_BALANCER else "host"),
        requested=count,
        attribute=AllocationAttribute(handle_id=handle or None, secondary=dict(request.attributes)),
        handle=handle,
        cap=request.cap,
        max_blocks=request.max_blocks,
    )


def wish_of(request: AutoAssign, host: str, version: int) -> Wish:
    """What a request says about pools of one IP version. Raises IPAMError."""
    return Wish(
        version=version,
        use=request.use,
        host=request.host or host,
        requested=request.pools4 if version == 4 else request.pools6,
        namespace_labels=request.namespace_labels,
    )


def _block_limit(requested: int, configured: int) -> int:
    """The smaller of the limits that are set."""
    return min((limit for limit in (requested, configured) if limit > 0), default=_DEFAULT_BLOCK_LIMIT)
