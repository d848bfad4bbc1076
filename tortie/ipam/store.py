"""IPAM's objects in the datastore: typed compare-and-swap access, and patience under contention.

Hardly any method is more than one request; none retries, none decides. What a datastore holds is
checked here, so that above this line a block is one that block.py can work on.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import cast

from msgspec import structs

from tortie.core.errors import ResourceDoesNotExist, ValidationError
from tortie.core.tasks import together
from tortie.datastore.backend import KV, Backend
from tortie.datastore.keys import AffinityKey, AffinityList, BlockKey, BlockList
from tortie.datastore.types.ipam import Affinity, Block
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner
from tortie.ipam.soundness import ensure_usable

_log = logging.getLogger(__name__)

RETRIES = 100  # Calico's bound on every loop that retries a lost compare-and-swap
# Seconds a repetition waits at most: about one round trip at first, then twice as long each time. Of 50
# hosts that all need the one block there is, each loses 13 races so; 20 with a fifth of the longest
# pause, while five times of it saves three races and doubles the time of the slowest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1

PENDING, CONFIRMED, PENDING_DELETION = "pending", "confirmed", "pendingDeletion"


class Store:
    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`clock` gives Unix time in ns, `rand` numbers in [0, 1)."""
        self.backend = backend
        self.now = clock
        self.rand = rand
        self.sleep = sleep
        self._complained: dict[str, str] = {}  # path of an unusable block -> what has been logged of it

    async def pause(self, attempt: int) -> None:
        """Wait a random moment before try number `attempt` (from 0) of a contended write.

        Racers that repeat at once lose again to each other; each write of one costs all the others one.
        """
        if attempt:
            longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempt - 1, 16))
            await self.sleep(self.rand() * longest)

    # --- blocks ---------------------------------------------------------------------------------

    async def block(self, cidr: str) -> KV:
        """Raises ResourceDoesNotExist; ValidationError if what is stored cannot be worked on."""
        kv = _checked(await self.backend.get(BlockKey(cidr)))
        self._complained.pop(kv.key.path(), None)
        return kv

    async def find_block(self, cidr: str) -> KV | None:
        try:
            return await self.block(cidr)
        except ResourceDoesNotExist:
            return None

    async def block_around(self, address: addresses.Address, block_size: int) -> KV:
        """The block that an address is in: one of this size, or one from when its pool had another size.

        Raises as block().
        """
        cidr = addresses.block_around(address, block_size)
        if (kv := await self.find_block(cidr)) is not None:
            return kv
        return await self.block(addresses.holder(await self.blocks(address.version), address) or cidr)

    async def after_conflict(self, cidr: str, current: object) -> KV:
        """The block as it is now; the conflict may have brought it along. Raises as block()."""
        return _checked(current) if isinstance(current, KV) else await self.block(cidr)

    async def blocks(self, version: int = 0) -> dict[str, KV | None]:
        """CIDR -> block, for all blocks; None: it exists but cannot be worked on (logged once)."""
        listed = await self.backend.list(BlockList(version))
        found: dict[str, KV | None] = {}
        for broken in listed.broken:
            if isinstance(broken.key, BlockKey):
                self.complain(broken.where, broken.error)
                found[broken.key.cidr] = None
        for kv in listed.items:
            try:
                found[cidr_of(kv)] = _checked(kv)
            except ValidationError as err:
                self.complain(kv.key.path(), err)
                found[cidr_of(kv)] = None
            else:
                self._complained.pop(kv.key.path(), None)
        return found

    async def create_block(self, block: Block) -> KV:
        """Raises ResourceAlreadyExists."""
        return await self.backend.create(BlockKey(block.cidr), block)

    async def update_block(self, kv: KV, block: Block) -> KV:
        """Write `block` over what was read as `kv`. Raises UpdateConflict, ResourceDoesNotExist."""
        # Attributes have no identity but their index, and the indexes have changed: unknown fields of
        # an old one must not be carried over to another that now has its place.
        origin = {k: v for k, v in kv.origin.items() if k != "attributes"} if kv.origin else None
        return await self.backend.update(KV(kv.key, blocks.advanced(block), kv.revision, origin))

    async def delete_block(self, kv: KV) -> None:
        """Raises UpdateConflict, ResourceDoesNotExist."""
        await self.backend.delete(kv.key, kv.revision)

    def complain(self, where: str, err: ValidationError) -> None:
        """Once for each distinct problem of a block, and again after it was seen to be right meanwhile."""
        if self._complained.get(where) != str(err):
            self._complained[where] = str(err)
            _log.warning("leaving %s alone, which cannot be used: %s", where, err)

    # --- affinities -----------------------------------------------------------------------------

    async def affinity(self, owner: Owner, cidr: str) -> KV:
        """Raises ResourceDoesNotExist."""
        return await self.backend.get(AffinityKey(cidr, owner.host, owner.type))

    async def affinities(self, owner: Owner, version: int) -> list[KV]:
        """An owner's affinities in any state, in the order of their keys."""
        listed = await self.backend.list(AffinityList(owner.host, owner.type, version))
        return [kv for kv in listed.items if not kv.value.deleted]

    async def all_affinities(self) -> list[KV]:
        """Those of every owner, nodes or not."""
        listings = [self.backend.list(AffinityList(owner_type=kind)) for kind in ("host", "virtual")]
        return [kv for listed in await together(*listings) for kv in listed.items if not kv.value.deleted]

    async def create_affinity(self, owner: Owner, cidr: str) -> KV:
        """A new, pending one. Raises ResourceAlreadyExists."""
        key = AffinityKey(cidr, owner.host, owner.type)
        return await self.backend.create(key, Affinity(state=PENDING))

    async def set_affinity(self, kv: KV, state: str) -> KV:
        """Raises UpdateConflict, ResourceDoesNotExist."""
        value = structs.replace(kv.value, state=state)
        return await self.backend.update(KV(kv.key, value, kv.revision, kv.origin))

    async def delete_affinity(self, kv: KV) -> None:
        """Raises UpdateConflict, ResourceDoesNotExist."""
        await self.backend.delete(kv.key, kv.revision)


def cidr_of(kv: KV) -> str:
    """The block that a block or an affinity is of."""
    return cast(BlockKey | AffinityKey, kv.key).cidr


def owner_of(affinity: KV) -> Owner:
    key = cast(AffinityKey, affinity.key)
    return Owner(key.host, key.owner_type)


def is_confirmed(kv: KV) -> bool:
    return kv.value.state in (CONFIRMED, "")  # "" is what old versions wrote


def _checked(kv: KV) -> KV:
    ensure_usable(kv.value, cidr_of(kv))
    return kv
