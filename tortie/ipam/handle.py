"""Arithmetic of a handle: how many addresses it may hold in each block. Pure.

A count is never less than the truth, so that whoever releases by handle finds every address.
"""

from msgspec import structs

from tortie.datastore.types.ipam import Handle
from tortie.ipam.addresses import Network, network


def with_count(handle: Handle, cidr: str, count: int) -> Handle:
    """The handle with its count for one block replaced; 0 removes the entry."""
    counts = {block: number for block, number in handle.block.items() if block != cidr}
    return structs.replace(handle, block=counts | ({cidr: count} if count > 0 else {}))


def total(handle: Handle, version: int) -> int:
    """All its addresses of one IP version."""
    return sum(count for block, count in handle.block.items() if (":" in block) == (version == 6))


def block_cidrs(handle: Handle) -> list[str]:
    """The blocks it names, without entries that are no CIDR (which can hold nothing)."""
    return [cidr for cidr in handle.block if _parsed(cidr) is not None]


def _parsed(cidr: str) -> Network | None:
    try:
        net = network(cidr)
    except ValueError:
        return None
    return net if str(net) == cidr else None
