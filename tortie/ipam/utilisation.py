"""How full pools and blocks are, for `calicoctl ipam show` and the metrics. Pure.

In use includes addresses that are cooling down or kept for Windows; free means neither allocated nor
reserved, and includes space that no block has been made of. An address reserved after it was allocated
counts as both. (Reference: Calico IPAM, section 6.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tortie.datastore.types.ipam import Block
from tortie.ipam import addresses
from tortie.ipam.pools import Pool
from tortie.ipam.ranges import Ranges

_MOST = 2**63 - 1  # Calico counts in int64; larger IPv6 pools show this


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of addresses."""

    cidr: str
    total: int
    in_use: int
    reserved: int
    free: int


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """`pool` is None for blocks that are in no pool any more; `usage` is None then."""

    pool: Pool | None
    usage: Usage | None
    blocks: tuple[Usage, ...]


def utilisation(pools: Sequence[Pool], reserved: Ranges, blocks: Iterable[Block]) -> list[PoolUsage]:
    """One entry per pool in the order given, then one for orphaned blocks if there are any."""
    by_pool: dict[str, list[Usage]] = {pool.name: [] for pool in pools}
    orphans: list[Usage] = []
    for block in blocks:
        net = addresses.network(block.cidr)
        pool = next((pool for pool in pools if net.overlaps(pool.net)), None)
        (orphans if pool is None else by_pool[pool.name]).append(block_usage(block, reserved))
    found = [_pool_usage(pool, reserved, by_pool[pool.name]) for pool in pools]
    return found + ([PoolUsage(None, None, tuple(orphans))] if orphans else [])


def block_usage(block: Block, reserved: Ranges) -> Usage:
    net = addresses.network(block.cidr)
    parts = reserved.ordinals(net)
    unreserved = [o for o in block.unallocated if not any(o in part for part in parts)]
    return Usage(
        cidr=block.cidr,
        total=len(block.allocations),
        in_use=len(block.allocations) - len(block.unallocated),
        reserved=sum(len(part) for part in parts),
        free=len(unreserved),
    )


def _pool_usage(pool: Pool, reserved: Ranges, blocks: list[Usage]) -> PoolUsage:
    total = pool.net.num_addresses
    nets = [addresses.network(usage.cidr) for usage in blocks]
    unblocked = total - reserved.with_networks(nets).count_in(pool.net)
    usage = Usage(
        cidr=pool.cidr,
        total=min(total, _MOST),
        in_use=sum(usage.in_use for usage in blocks),
        reserved=min(reserved.count_in(pool.net), _MOST),
        free=min(unblocked + sum(usage.free for usage in blocks), _MOST),
    )
    return PoolUsage(pool, usage, tuple(blocks))
