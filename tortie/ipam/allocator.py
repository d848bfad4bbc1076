"""The allocator: everything a program asks of IPAM, in one place.

It composes the parts and adds nothing but defaults: store (compare-and-swap), view (pools, configuration,
labels), claim and unclaim (blocks), assign, specific, release, held (addresses).
"""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from msgspec import structs

from tortie.core.errors import (
    FieldError,
    OperationNotSupported,
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
    ValidationError,
)
from tortie.core.tasks import together
from tortie.datastore.backend import KV
from tortie.datastore.client import Client
from tortie.datastore.keys import IPAMHostKey
from tortie.datastore.types.ipam import AllocationAttribute, Block, IPAMConfig
from tortie.datastore.types.node import Node
from tortie.ipam import addresses, pools
from tortie.ipam import block as blocks
from tortie.ipam.assign import Assigner, wish_of
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.claim import Claimer
from tortie.ipam.configure import set_config
from tortie.ipam.errors import BlockClaimConflict, InCooldown, IPAMError, StaleAffinity, TooManyConflicts
from tortie.ipam.explain import Situation, explain
from tortie.ipam.handles import Handles
from tortie.ipam.held import HeldAddresses
from tortie.ipam.names import clean_handle
from tortie.ipam.owners import OwnerChange, with_owners
from tortie.ipam.pools import Pool
from tortie.ipam.release import Releaser
from tortie.ipam.requests import AssignAddress, AutoAssign, AutoAssigned, ReleaseOutcome
from tortie.ipam.specific import AddressAssigner, parsed
from tortie.ipam.store import RETRIES, Store
from tortie.ipam.transfer import Missed, Transfer, Transferrer
from tortie.ipam.turns import Turns
from tortie.ipam.unclaim import Terms, Unclaimer
from tortie.ipam.utilisation import PoolUsage, utilisation
from tortie.ipam.view import DirectView, View, read_config
from tortie.ipam.walk import block_count


class Allocator:
    """Safe to use from many tasks at once, and beside other allocators on any host.

    All methods raise DatastoreUnreachable when the datastore does not answer; a write may have
    happened then, and repeating the request, or releasing by handle, puts it right.
    """

    def __init__(
        self,
        client: Client,
        host: str = "",
        *,
        view: View | None = None,
        clock: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`host`: whose blocks to use where a request names none; '' is this machine's name.

        `clock` gives Unix time in ns, `rand` numbers in [0, 1).
        """
        self.host = host or socket.gethostname().strip().lower()
        self._client = client
        self._view = view or DirectView(client)
        self._store = Store(client.backend, clock=clock, sleep=sleep, rand=rand)
        self._handles = Handles(self._store)
        self._unclaimer = Unclaimer(self._store)
        self._claimer = Claimer(self._store, self._view, self._unclaimer)
        turns = Turns()  # about a block, by its CIDR
        self._releaser = Releaser(self._store, self._view, self._unclaimer, self._handles, turns)
        self._held = HeldAddresses(self._store, self._view, self._handles, self._releaser)
        self._transferrer = Transferrer(self._store, self._view, self._handles, self._releaser, turns)
        self._assigner = Assigner(
            self._store, self._view, self._claimer, self._unclaimer, self._handles, self._held, turns
        )
        self._specific = AddressAssigner(self._store, self._view, self._claimer, self._handles, self._held)

    # --- addresses ------------------------------------------------------------------------------

    async def auto_assign(self, request: AutoAssign) -> AutoAssigned:
        """Addresses of any suitable pool. What went wrong is in the answer; see AutoAssigned."""
        return await self._assigner.assign(request, self.host)

    async def why_not(self, request: AutoAssign, version: int) -> str:
        """Why a request found no address of this version, for a person; '' if that cannot be told."""
        wish = wish_of(request, self.host, version)
        try:
            facts, stored, nodes = await together(
                self._view.facts(fresh=True), self.blocks(version), self._client.list(Node)
            )
        except TortieError as err:
            return f"looking for the reason failed: {err}"
        labels = next((node.labels for node in nodes.items if node.name == wish.host), None)
        return explain(wish, Situation(facts, stored, labels, {node.name for node in nodes.items}))

    async def assign_ip(self, request: AssignAddress) -> None:
        """One particular address. Raises ResourceAlreadyExists if it is taken, IPAMError."""
        await self._specific.assign(request, self.host)

    async def release_ips(self, requests: Iterable[ReleaseRequest]) -> ReleaseOutcome:
        """Addresses of any blocks; a guard that does not hold fails the requests of its block only."""
        return await self._releaser.release(requests)

    async def release_by_handle(self, handle: str) -> None:
        """Everything a handle holds. Raises ResourceDoesNotExist if there is no such handle."""
        await self._releaser.release_handle(handle)

    async def ips_by_handle(self, handle: str) -> list[str]:
        """Raises ResourceDoesNotExist if there is no such handle."""
        return await self._held.of(handle)

    async def held_by_block(self, handle: str) -> dict[str, list[str]]:
        """Block CIDR -> the addresses of a handle in it. Raises ResourceDoesNotExist."""
        return await self._held.by_block(handle)

    async def users_by_handle(self, handle: str) -> dict[str, AllocationAttribute]:
        """The addresses of a handle -> who uses each. Raises ResourceDoesNotExist."""
        return await self._held.attributes(handle)

    async def transfer(self, source: str, wanted: Sequence[Transfer]) -> list[Missed]:
        """Give addresses of one handle to others; returns those that neither holds any more."""
        return await self._transferrer.transfer(source, wanted)

    async def attributes(self, address: str) -> AllocationAttribute:
        """Who has an address.

        Raises ResourceDoesNotExist if nobody, or if no enabled pool contains it; InCooldown.
        """
        where = parsed(address)
        facts = await self._view.facts()
        pool = _enabled_pool(facts.pools, where)
        if pool is None:
            raise ResourceDoesNotExist(where, "No valid IPPool")
        kv = await self._store.block_around(where, pool.block_size)
        block = blocks.normalise(kv.value, self._store.now(), facts.cooldown)
        attribute = blocks.attribute_at(block, blocks.ordinal_of(block, where))
        if attribute is None:
            raise ResourceDoesNotExist(where, "IP is unassigned")
        if attribute.releasedAt is not None:
            raise InCooldown(str(where))
        return structs.replace(attribute, handle_id=clean_handle(attribute.handle_id) or None)

    async def set_owners(self, address: str, handle: str, change: OwnerChange) -> None:
        """Change who uses an address, the handle staying its holder. Raises as owners.with_owners."""
        where = parsed(address)
        facts = await self._view.facts()
        kv = await self._block_with(where, handle, facts.pools)
        for attempt in range(RETRIES):
            await self._store.pause(attempt)
            block = blocks.normalise(kv.value, self._store.now(), facts.cooldown)
            written = with_owners(block, blocks.ordinal_of(block, where), handle, change)
            try:
                await self._store.update_block(kv, written)
                return
            except UpdateConflict as err:
                kv = await self._store.after_conflict(block.cidr, err.current)
        raise TooManyConflicts

    async def _block_with(self, where: addresses.Address, handle: str, known: Iterable[Pool]) -> KV:
        """The block of an address that a handle holds; its pool may be disabled or gone by now."""
        if pool := pools.containing(known, where):
            return await self._store.block_around(where, pool.block_size)
        for cidr, held in (await self._held.by_block(handle)).items():
            if str(where) in held:
                return await self._store.block(cidr)
        raise IPAMError(f"the provided IP address {where} is not in a configured pool")

    # --- blocks ---------------------------------------------------------------------------------

    async def claim_affinity(self, cidr: str, owner: Owner | None = None) -> tuple[list[str], list[str]]:
        """Claim all blocks of a CIDR inside a pool: those claimed, and those that are others'.

        Block limits are not asked. Raises IPAMError.
        """
        pool, net = await self._pool_and_net(cidr)
        owner = owner or Owner(self.host)
        claimed, others = [], []
        for block in _blocks_in(pool, net):
            try:
                await self._claimer.claim(owner, block)
                claimed.append(block)
            except (BlockClaimConflict, StaleAffinity):
                others.append(block)
        return claimed, others

    async def release_affinity(self, cidr: str, host: str = "", *, must_be_empty: bool = False) -> None:
        """Release a host's blocks inside a CIDR; others' are passed over. Raises BlockNotEmpty, IPAMError."""
        pool, net = await self._pool_and_net(cidr)
        terms = await self._terms(must_be_empty)
        for block in _blocks_in(pool, net):
            await self._unclaimer.release_quietly(Owner(host or self.host), block, terms)

    async def release_block_affinity(self, block: Block, *, must_be_empty: bool) -> None:
        """Release one block from whomever it belongs to. Raises BlockNotEmpty, IPAMError."""
        if block.affinity is None:
            return
        owner = Owner.parse(block.affinity)
        if owner is None:
            raise IPAMError("could not parse affinity config")
        await self._unclaimer.release_quietly(owner, block.cidr, await self._terms(must_be_empty))

    async def release_host_affinities(self, owner: Owner | None = None, *, must_be_empty: bool) -> None:
        """Release all blocks of an owner, as many as can be. Raises the last refusal."""
        await self._unclaimer.release_host(owner or Owner(self.host), await self._terms(must_be_empty))

    async def release_pool_affinities(self, cidr: str) -> None:
        """Release all blocks inside a pool from all their owners; addresses in use stay.

        Raises ValidationError if the pool, which may be older than any check, has no such CIDR.
        """
        try:
            pool = addresses.network(cidr)
        except ValueError as err:
            raise ValidationError([FieldError("IPPool.Spec.CIDR", cidr, str(err))]) from err
        await self._unclaimer.release_pool(pool, await self._terms(False))

    async def remove_host(self, owner: Owner | None = None) -> None:
        """Release all blocks of an owner that is gone, and its directory; addresses stay."""
        owner = owner or Owner(self.host)
        terms = await self._terms(False)
        await self._unclaimer.release_host(owner, terms)
        await self._unclaimer.release_orphans(owner, terms)
        # Only old versions made such a directory, and only in etcd.
        with contextlib.suppress(ResourceDoesNotExist, OperationNotSupported):
            await self._client.backend.delete(IPAMHostKey(owner.host))

    async def free_cooled(self, kv: KV) -> None:
        """Free the addresses of a stored block whose cooldown is over.

        Raises UpdateConflict, ResourceDoesNotExist if the block is not any more as it was read.
        """
        await self._releaser.free_cooled(kv, (await self._view.facts()).cooldown)

    # --- configuration and reports --------------------------------------------------------------

    async def get_config(self) -> IPAMConfig:
        return await read_config(self._client)

    async def set_config(self, config: IPAMConfig) -> None:
        """Raises IPAMError if the settings contradict each other."""
        await set_config(self._client.backend, config)

    async def utilisation(self) -> list[PoolUsage]:
        """All pools with their blocks, and blocks that are in no pool."""
        facts, stored = await together(self._view.facts(fresh=True), self.blocks())
        return utilisation(facts.pools, facts.reserved, stored)

    async def blocks(self, version: int = 0) -> list[Block]:
        """All blocks as they are stored, without those that cannot be worked on."""
        return [kv.value for kv in (await self._store.blocks(version)).values() if kv is not None]

    # --- what several need ----------------------------------------------------------------------

    async def _terms(self, must_be_empty: bool) -> Terms:
        return Terms((await self._view.facts()).cooldown, empty=must_be_empty)

    async def _pool_and_net(self, cidr: str) -> tuple[Pool, addresses.Network]:
        try:
            net = addresses.network(cidr)
        except ValueError as err:
            raise IPAMError(f"invalid CIDR {cidr}: {err}") from None
        facts = await self._view.facts(fresh=True)
        pool = pools.containing(pools.enabled(facts.pools, net.version), net)
        if pool is None:
            raise IPAMError(f"The requested CIDR ({net}) is not within any configured pools.")
        if net.prefixlen > pool.block_size:
            raise IPAMError(f"The requested CIDR ({net}) is smaller than the minimum.")
        return pool, net


def _enabled_pool(of: Iterable[Pool], address: addresses.Address) -> Pool | None:
    return pools.containing(pools.enabled(of, address.version), address)


def _blocks_in(pool: Pool, net: addresses.Network) -> Iterable[str]:
    return (str(block) for block in net.subnets(new_prefix=pool.block_size)) if block_count(pool) else ()
