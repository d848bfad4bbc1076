"""What a stored block must fulfil: before the allocator uses it, and when a person asks for a check.

`ensure_usable` refuses what block.py cannot work on. What it lets pass may still break an invariant
that normalise() repairs; `violations` lists every breach, in the words of `calicoctl ipam check`.
"""

from collections.abc import Iterator

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.types.ipam import Block
from tortie.ipam import addresses, gotime

_SMALLEST_PREFIX = {4: 20, 6: 116}  # IP version -> shortest block prefix (4096 addresses) a pool may ask for


def ensure_usable(block: Block, cidr: str) -> None:
    """Raises ValidationError if the block stored under `cidr` is not one that can be worked on."""
    for field, value, reason in _faults(block, cidr):
        raise ValidationError([FieldError(f"IPAMBlock({cidr}).{field}", value, reason)])


def _faults(block: Block, cidr: str) -> Iterator[tuple[str, object, str]]:
    if block.cidr != cidr:
        yield "cidr", block.cidr, "does not match its key"
        return
    net = addresses.network(cidr)
    if net.prefixlen < _SMALLEST_PREFIX[net.version]:
        yield "cidr", cidr, "larger than any block"
    elif len(block.allocations) != net.num_addresses:
        yield "allocations", len(block.allocations), f"expected {net.num_addresses} entries"
    for ordinal, index in enumerate(block.allocations):
        if index is not None and not 0 <= index < len(block.attributes):
            yield "allocations", index, f"allocation {ordinal} indexes a nonexistent attribute {index}"
    for number in (block.sequenceNumber, *block.sequenceNumberForAllocation.values()):
        if not 0 <= number < 2**64:
            yield "sequenceNumber", number, "not an unsigned 64-bit number"
    times = [attribute.releasedAt for attribute in block.attributes]
    for moment in (block.affinity_claim_time, *times):
        if isinstance(moment, str) and not _is_time(moment):
            yield "time", moment, "not an RFC 3339 time"


def _is_time(text: str) -> bool:
    try:
        gotime.parse(text)
    except ValueError:
        return False
    return True


def violations(block: Block, now: int | None = None) -> list[str]:
    """Every breach of the block invariants 1-3 and 7 (reference: Calico IPAM, 1.10), [] if there is none.

    With `now` (Unix time in ns) also releases in the future, a sign of clocks that disagree.
    """
    try:
        ensure_usable(block, block.cidr)
    except (ValidationError, ValueError) as err:
        return [str(err)]
    return [*_attribute_breaches(block, now), *_ordinal_breaches(block)]


def _attribute_breaches(block: Block, now: int | None) -> Iterator[str]:
    used = set(block.allocations)
    for index, attribute in enumerate(block.attributes):
        if index not in used:
            yield f"attribute index {index} exists but is not indexed by an allocation"
        if attribute in block.attributes[:index]:
            yield f"attribute index {index} equals an earlier one"
        if now is not None and attribute.releasedAt and gotime.parse(attribute.releasedAt) > now:
            yield f"attribute index {index} has releasedAt in the future, suggesting clock skew"
    if block.affinity is None and not used - {None}:
        yield "block has neither an affinity nor an allocation"


def _ordinal_breaches(block: Block) -> Iterator[str]:
    size = len(block.allocations)
    allocated = sum(1 for index in block.allocations if index is not None)
    seen: set[int] = set()
    for ordinal in block.unallocated:
        if not 0 <= ordinal < size:
            yield f"ordinal {ordinal} appears in the Unallocated array but is out of the block"
        elif ordinal in seen:
            yield f"ordinal {ordinal} appears more than once in Unallocated array"
        elif block.allocations[ordinal] is not None:
            yield f"ordinal {ordinal} is allocated but appears in Unallocated"
        seen.add(ordinal)
    if len(block.unallocated) + allocated != size:
        yield (
            f"expected {size} addresses in this block, but Unallocated ({len(block.unallocated)}) + "
            f"Allocated ({allocated}) = {len(block.unallocated) + allocated}"
        )
