"""What a handle holds at present, for reports and for owners that must not hold more than so much.

All pods of one KubeVirt VM share a handle with a cap of one address per IP version: a second request
gets the addresses the first one got.
"""

import logging

from tortie.core.errors import DatastoreUnreachable, ResourceDoesNotExist, TortieError, UpdateConflict
from tortie.core.tasks import together
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.handle import block_cidrs
from tortie.ipam.handles import Handles
from tortie.ipam.release import Releaser
from tortie.ipam.store import Store
from tortie.ipam.view import View

_log = logging.getLogger(__name__)

# After so many looks at a full handle without its addresses, its count is a crash's left-over and not
# somebody's assignment under way, which takes two round trips.
_PATIENCE = 8


class HeldAddresses:
    def __init__(self, store: Store, view: View, handles: Handles, releaser: Releaser) -> None:
        self._store = store
        self._view = view
        self._handles = handles
        self._releaser = releaser

    async def of(self, handle: str) -> list[str]:
        """The addresses a handle holds; blocks that cannot be read are left out.

        Raises ResourceDoesNotExist if there is no such handle.
        """
        return [address for of_block in (await self.by_block(handle)).values() for address in of_block]

    async def by_block(self, handle: str) -> dict[str, list[str]]:
        """Block CIDR -> the addresses a handle holds in it. Raises as of()."""
        return {cidr: list(found) for cidr, found in (await self._by_block(handle)).items()}

    async def attributes(self, handle: str) -> dict[str, AllocationAttribute]:
        """The addresses a handle holds -> who uses each. Raises as of()."""
        found = await self._by_block(handle)
        return {address: one for of_block in found.values() for address, one in of_block.items()}

    async def _by_block(self, handle: str) -> dict[str, dict[str, AllocationAttribute]]:
        kv, facts = await together(self._handles.get(handle), self._view.facts())
        cidrs = sorted(block_cidrs(kv.value))
        found = await together(*(self._in_block(cidr, handle, facts.cooldown) for cidr in cidrs))
        return dict(zip(cidrs, found, strict=True))

    async def _in_block(self, cidr: str, handle: str, cooldown: int) -> dict[str, AllocationAttribute]:
        try:
            kv = await self._store.block(cidr)
        except DatastoreUnreachable:
            raise
        except TortieError as err:
            _log.warning("cannot read block %s that handle %s names: %s", cidr, handle, err)
            return {}
        block = blocks.normalise(kv.value, self._store.now(), cooldown)
        found = ((one, blocks.attribute_at(block, one)) for one in blocks.ordinals_of(block, handle))
        return {blocks.address_at(block, one): attribute for one, attribute in found if attribute is not None}

    async def enough(self, handle: str, version: int, wanted: int, attempt: int) -> list[str]:
        """`wanted` addresses that a full handle holds, as /32 or /128; [] if it holds fewer: try again.

        The handle counts before it holds, so somebody may be about to get them. If that takes too
        long, the count is corrected.
        """
        try:
            found = [a for a in await self.of(handle) if addresses.address(a).version == version]
            if len(found) < wanted and attempt >= _PATIENCE:
                await self._releaser.settle(handle)
        except (ResourceDoesNotExist, UpdateConflict) as err:
            _log.debug("handle %s is changing: %s", handle, err)
            return []
        length = addresses.bits(version)
        return [f"{a}/{length}" for a in found[:wanted]] if len(found) >= wanted else []
