"""Confirming that a block is its owner's: the last step of a claim, and of repairing one left half done.

The guarantee, after every single write of anybody: a confirmed affinity has its block, with that
affinity in it. A claimer writes `pending`, then the block, then `confirmed`; a releaser (unclaim.py)
reads both, writes `pendingDeletion`, then the block it read. Whoever comes second finds that the first
changed the affinity or the block, and fails its compare-and-swap.
"""

from tortie.core.errors import UpdateConflict
from tortie.datastore.backend import KV
from tortie.ipam.store import CONFIRMED, PENDING, Store, cidr_of, is_confirmed, owner_of


async def confirm(store: Store, affinity: KV) -> None:
    """Confirm an affinity that says pending, its block just written.

    Another process of the same host may have been faster. Raises UpdateConflict, ResourceDoesNotExist.
    """
    try:
        await store.set_affinity(affinity, CONFIRMED)
    except UpdateConflict:
        current = await store.affinity(owner_of(affinity), cidr_of(affinity))
        if not is_confirmed(current):
            raise


async def confirm_again(store: Store, affinity: KV, block: KV) -> KV:
    """Confirm an affinity in any other state over a block that names its owner; returns the block.

    Raises UpdateConflict, ResourceDoesNotExist.
    """
    pending = await store.set_affinity(affinity, PENDING)
    written = await store.update_block(block, block.value)
    await confirm(store, pending)
    return written
