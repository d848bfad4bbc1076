"""Handing out one particular address. (Reference: Calico IPAM, 2.5.)

Neither selectors nor reservations, assignment modes or block limits are asked: who names an address
means it. The pool must be enabled and, if a use is given, allow it.
"""

import logging

from tortie.core.errors import ResourceAlreadyExists, ResourceDoesNotExist, UpdateConflict
from tortie.core.tasks import together
from tortie.datastore.backend import KV
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.ipam import addresses, pools, walk
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner
from tortie.ipam.claim import Claimer
from tortie.ipam.errors import BlockClaimConflict, HandleFull, IPAMError, StaleAffinity, TooManyConflicts
from tortie.ipam.handles import Handles, Holding
from tortie.ipam.held import HeldAddresses
from tortie.ipam.names import clean_handle
from tortie.ipam.pools import LOAD_BALANCER, Pool
from tortie.ipam.requests import AssignAddress
from tortie.ipam.store import RETRIES, Store
from tortie.ipam.view import Facts, View

_log = logging.getLogger(__name__)


class AddressAssigner:
    def __init__(
        self, store: Store, view: View, claimer: Claimer, handles: Handles, held: HeldAddresses
    ) -> None:
        self._store = store
        self._view = view
        self._claimer = claimer
        self._handles = handles
        self._held = held

    async def assign(self, request: AssignAddress, host: str) -> None:
        """Raises ResourceAlreadyExists if it is taken, IPAMError if it may not be given, TooManyConflicts."""
        address = parsed(request.address)
        facts = await self._view.facts()
        pool = _allowed_pool(facts, address, request.use)
        cidr = addresses.block_around(address, pool.block_size)
        owner = Owner(request.host or host, "virtual" if request.use == LOAD_BALANCER else "host")
        handle = clean_handle(request.handle)
        kv = await self._store.find_block(cidr)
        async with self._handles.holding(handle, cidr, request.cap) as holding:
            for attempt in range(RETRIES):
                await self._store.pause(attempt)
                if kv is None:
                    kv = await self._claimed(owner, cidr, address, request)
                    continue
                try:
                    if await self._give(kv, address, owner, request, facts, holding):
                        holding.keep()
                    return
                except UpdateConflict as err:
                    kv = await self._store.after_conflict(cidr, err.current)
                except ResourceDoesNotExist:
                    kv = None
                except HandleFull:
                    if await self._is_held(request, address, attempt):
                        return
                    kv = await self._store.find_block(cidr)
        raise TooManyConflicts

    async def _give(
        self,
        kv: KV,
        address: addresses.Address,
        owner: Owner,
        request: AssignAddress,
        facts: Facts,
        holding: Holding,
    ) -> bool:
        """False if there was nothing to do because the same handle has the address already."""
        block = blocks.normalise(kv.value, self._store.now(), facts.cooldown)
        blocks.check_affinity(block, owner, facts.config.strict_affinity)
        ordinal = blocks.ordinal_of(block, address)
        handle = clean_handle(request.handle)
        try:
            written = blocks.assign_ordinal(
                block,
                ordinal,
                AllocationAttribute(handle_id=handle or None, secondary=dict(request.attributes)),
            )
        except ResourceAlreadyExists:
            if request.cap and _holds(block, ordinal, handle):
                return False
            raise
        await holding.count(1)
        await self._store.update_block(kv, written)
        return True

    async def _claimed(
        self, owner: Owner, cidr: str, address: addresses.Address, request: AssignAddress
    ) -> KV | None:
        """The block, claimed; None if somebody else was faster: then it exists, look again."""
        facts, stored = await together(self._view.facts(fresh=True), self._store.blocks(address.version))
        pool = _allowed_pool(facts, address, request.use)
        net = addresses.network(cidr)
        if pool.block_size != net.prefixlen or walk.overlaps_misfit(
            pool, net, self._claimer.survey(stored, facts)
        ):
            raise IPAMError(f"block {cidr} of address {address} overlaps a block of another size")
        try:
            return await self._claimer.claim(owner, cidr)
        except (BlockClaimConflict, StaleAffinity) as err:
            _log.info("somebody else claimed block %s first: %s", cidr, err)
            return await self._store.find_block(cidr)

    async def _is_held(self, request: AssignAddress, address: addresses.Address, attempt: int) -> bool:
        """Whether a full handle already holds this address. Raises IPAMError if it holds another one."""
        held = await self._held.enough(request.handle, address.version, 1, attempt)
        if not held:
            return False
        if any(text.partition("/")[0] == str(address) for text in held):
            return True
        raise IPAMError(
            f"handle {request.handle} already has IP(s) allocated, cannot assign additional IP {address} "
            f"(maxAllocPerIPVersion={request.cap})"
        )


def parsed(text: str) -> addresses.Address:
    try:
        return addresses.address(text)
    except ValueError:
        raise IPAMError(f"invalid IP address specified: {text}") from None


def _allowed_pool(facts: Facts, address: addresses.Address, use: str) -> Pool:
    pool = pools.containing(pools.enabled(facts.pools, address.version), address)
    if pool is None:
        raise IPAMError("The provided IP address is not in a configured pool\n")
    if use and use not in pool.uses:
        raise IPAMError(
            f'IP address {address} is in IP pool "{pool.name}", which is not allowed for use "{use}" '
            f"(allowedUses: [{' '.join(pool.uses)}])"
        )
    return pool


def _holds(block: Block, ordinal: int, handle: str) -> bool:
    attribute = blocks.attribute_at(block, ordinal)
    return attribute is not None and bool(handle) and clean_handle(attribute.handle_id) == handle
