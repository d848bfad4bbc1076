"""Which empty blocks a node can give back: those beside another one that it has not used for a while. Pure.

A block is empty for a moment after each claim, so it must have been seen empty over the grace period. A
node always keeps one block of each IP version: its next pod would have to wait for a claim.
(Reference: kube-controllers/pkg/controllers/node/ipam.go, releaseUnusedBlocks.)
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tortie.datastore.keys import ip_version
from tortie.datastore.types.ipam import Block
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner

Seen = tuple[str, int]  # CIDR and sequence number: a block that was used since is another observation


@dataclass(slots=True)
class Empty:
    """`since` is to be given to the next look: block -> since when it has been empty (clock time)."""

    since: dict[Seen, float] = field(default_factory=dict)
    release: list[Block] = field(default_factory=list)
    next_at: float | None = None  # when the next one is due


def look(stored: Iterable[Block], since: Mapping[Seen, float], now: float, grace: float) -> Empty:
    """`grace` in seconds; 0: all blocks stay."""
    owned = [(owner, block) for block in stored if (owner := Owner.parse(block.affinity)) is not None]
    left = Counter((owner, ip_version(block.cidr)) for owner, block in owned)
    result = Empty()
    for owner, block in sorted(owned, key=lambda item: item[1].cidr):
        if owner.type != "host" or grace <= 0 or not blocks.is_empty(block):
            continue
        of = (owner, ip_version(block.cidr))
        if left[of] < 2:
            continue
        seen = (block.cidr, block.sequenceNumber)
        began = result.since[seen] = since.get(seen, now)
        if now >= began + grace:
            left[of] -= 1
            result.release.append(block)
        else:
            result.next_at = min(result.next_at or began + grace, began + grace)
    return result
