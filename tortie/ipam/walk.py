"""In which order a host looks at the blocks of a pool, and which block it should take next.

A host starts at a block that follows from its name and goes round the pool once: concurrent requests of
one host meet at one block, different hosts rarely do. Pure; what exists is given, what is taken is
decided elsewhere, by compare-and-swap. (Reference: Calico IPAM, 2.3.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from tortie.ipam import addresses, gorand
from tortie.ipam.pools import Pool
from tortie.ipam.ranges import Ranges


def fnv1(text: str) -> int:
    """The 32-bit FNV-1 hash (multiply first, then XOR)."""
    value = 2166136261
    for byte in text.encode():
        value = value * 16777619 & 0xFFFFFFFF ^ byte
    return value


def block_count(pool: Pool) -> int:
    """0 for a pool smaller than one block, which may exist while it is disabled."""
    return 1 << pool.block_size - pool.net.prefixlen if pool.block_size >= pool.net.prefixlen else 0


def start_index(pool: Pool, host: str, chance: Callable[[], float]) -> int:
    """The block a host looks at first: Calico's own choice for this name.

    Where a block is a single address, `chance` (uniform in [0, 1)) decides instead: always the same
    start would mean reading past all the host's own addresses each time.
    """
    count = block_count(pool)
    if count <= 1:
        return 0
    if pool.block_size == addresses.bits(pool.version):
        return int(chance() * count)
    return gorand.draw_below(count, fnv1(host))


def block_at(pool: Pool, index: int) -> addresses.Network:
    first = int(pool.net.network_address) + (index << addresses.bits(pool.version) - pool.block_size)
    kind = IPv4Network if pool.version == 4 else IPv6Network
    return kind((first, pool.block_size))


def index_of(pool: Pool, block: addresses.Network) -> int:
    """Where in its pool a block of the pool's block size is."""
    offset = int(block.network_address) - int(pool.net.network_address)
    return offset >> addresses.bits(pool.version) - pool.block_size


def around(pool: Pool, start: int, reserved: Ranges) -> Iterator[addresses.Network]:
    """All blocks of a pool from `start` and round, without those that are wholly reserved.

    Reserved stretches are jumped over, because one may hold more blocks than can ever be counted.
    """
    count = block_count(pool)
    for index, stop in ((start, count), (0, start)):
        while index < stop:
            block = block_at(pool, index)
            if not reserved.covers(block):
                yield block
                index += 1
                continue
            last = reserved.end_of_run(block.version, int(block.network_address)) or 0
            index += 1 + (last - int(block.broadcast_address)) // block.num_addresses


@dataclass(frozen=True, slots=True)
class Seen:
    """What matters of an existing block; `free` leaves reserved addresses out."""

    owner: str | None
    free: int
    empty: bool
    reclaimable: bool  # its owner has had time enough to use it


@dataclass(frozen=True, slots=True)
class Choice:
    """`take`: the block to claim (or the host's own, with space). Else `reclaim`: whom to ask first."""

    take: str | None
    reclaim: tuple[str, ...] = ()


def choose_block(
    pools: Sequence[tuple[Pool, int]],
    blocks: Mapping[str, Seen | None],
    owner: str,
    reserved: Ranges,
) -> Choice:
    """Where `owner` should claim. `pools` come with start indexes; a block None exists but is unusable.

    A CIDR that overlaps a block of another size is never taken: two blocks would hand out the same
    address. (Possible after a pool was deleted and created anew with another block size.)
    """
    empty = []
    for pool, start in pools:
        misfits = _misfits(pool, blocks)
        for net in around(pool, start, reserved):
            cidr = str(net)
            if cidr not in blocks:
                if not misfits.overlaps(net):
                    return Choice(cidr)
                continue
            seen = blocks[cidr]
            if seen is None or not seen.free:
                continue
            if seen.owner == owner:
                return Choice(cidr)
            if seen.empty and seen.reclaimable:
                empty.append(cidr)
    return Choice(None, tuple(empty))


def overlaps_misfit(pool: Pool, net: addresses.Network, blocks: Mapping[str, Seen | None]) -> bool:
    """Whether a block of another size than the pool's overlaps `net`."""
    return _misfits(pool, blocks).overlaps(net)


def _misfits(pool: Pool, blocks: Mapping[str, Seen | None]) -> Ranges:
    sizes = (addresses.network(cidr) for cidr, seen in blocks.items() if seen is not None)
    return Ranges(net for net in sizes if net.version == pool.version and net.prefixlen != pool.block_size)


def existing(pool: Pool, start: int, blocks: Mapping[str, Seen | None]) -> list[str]:
    """The usable blocks of a pool that exist and have space, in the order of around()."""
    count = block_count(pool)
    found = []
    for cidr, seen in blocks.items():
        net = addresses.network(cidr)
        fits = net.prefixlen == pool.block_size and addresses.contains(pool.net, net)
        if seen is not None and seen.free and fits:
            found.append(((index_of(pool, net) - start) % count, cidr))
    return [cidr for _, cidr in sorted(found)]
