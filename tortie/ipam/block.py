"""The arithmetic of one block of addresses: pure functions from a Block to a new Block.

An ordinal is an address minus the block's first. Every ordinal is in exactly one place: it has an
allocation (an index into `attributes`), or it is in `unallocated`, whose head is handed out next.
Invariants (reference: Calico IPAM, 1.10):

- Ordinals enter `unallocated` only in normalise(), at the end: addresses are reused first in, first out.
- Equal owners share one attribute; an attribute nobody refers to is dropped by normalise().
- An ordinal's recorded sequence number is the block's before the write that assigned or released it;
  the block's own number is advanced by advanced(), once per write. Numbers are unsigned 64-bit and
  are only ever tested for equality.
- A released address points to an attribute that holds nothing but the time until its cooldown is over.

Nothing here knows a datastore, a clock or a pool. What a block read from a datastore must fulfil
before these functions may be used is in soundness.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Self

from msgspec import UNSET, structs

from tortie.core.errors import ResourceAlreadyExists
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.ipam import addresses, gotime
from tortie.ipam.errors import BadHandle, BadSequenceNumber, ForeignBlock, IPAMError
from tortie.ipam.names import WINDOWS_RESERVED_HANDLE, clean_handle

_SEQUENCE_NUMBERS = 2**64  # Go's uint64: the number after the last is 0
_SECOND = 1_000_000_000  # in nanoseconds


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a block is: a node (`host`), or something that is no machine (`virtual`)."""

    host: str
    type: str = "host"

    def __str__(self) -> str:
        return f"{self.type}:{self.host}"

    @classmethod
    def parse(cls, affinity: str | None) -> Self | None:
        """The owner an affinity names; None if it names none in a way we know."""
        kind, _, host = (affinity or "").partition(":")
        return cls(host, kind) if kind in ("host", "virtual") and host else None


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """One address to give back, if it still has this handle and sequence number ('' / None: any)."""

    address: str
    handle: str = ""
    sequence_number: int | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """`block` is the very block that was given if nothing had to change."""

    block: Block
    unallocated: tuple[str, ...]  # asked for, but free or cooling already
    handles: tuple[str, ...]  # whose addresses were released


# --- whole blocks -------------------------------------------------------------------------------


def new_block(cidr: str, owner: Owner, now: int) -> Block:
    """A block just claimed by `owner`, all free; `now` is Unix time in ns.

    The sequence number starts from the clock, so that a number remembered from an earlier block of
    this CIDR never matches.
    """
    size = addresses.network(cidr).num_addresses
    return Block(
        cidr=cidr,
        affinity=str(owner),
        affinity_claim_time=gotime.rfc3339(now),
        allocations=(None,) * size,
        unallocated=tuple(range(size)),
        sequenceNumber=now % _SEQUENCE_NUMBERS,
    )


def advanced(block: Block) -> Block:
    """The block with its number for the next write."""
    return structs.replace(block, sequenceNumber=(block.sequenceNumber + 1) % _SEQUENCE_NUMBERS)


def disowned(block: Block) -> Block:
    return structs.replace(block, affinity=None, affinity_claim_time=UNSET)


def is_empty(block: Block) -> bool:
    """Whether nobody holds an address; those reserved for Windows do not count, cooling ones do."""
    return all(
        clean_handle(block.attributes[index].handle_id).lower() == WINDOWS_RESERVED_HANDLE
        for index in set(block.allocations)
        if index is not None
    )


def free_count(block: Block, skip: tuple[range, ...] = ()) -> int:
    """How many addresses could be handed out, those in `skip` (reserved ordinals) left alone."""
    if not skip:
        return len(block.unallocated)
    return sum(1 for _ in _usable(block, skip))


def claimed_before(block: Block, moment: int) -> bool:
    """Whether the present owner has had the block since before `moment` (ns); old data has no time."""
    if not isinstance(block.affinity_claim_time, str):
        return True
    return gotime.parse(block.affinity_claim_time) < moment


def normalise(block: Block, now: int, cooldown: int) -> Block:
    """Free what has cooled down (`cooldown` in seconds; 0 and less: at once), drop unused attributes.

    Runs on every read. Also repairs `unallocated` if it disagrees with `allocations`, which is the
    truth about who holds what: handing out an ordinal that is listed twice, or both allocated and
    free, would give one address to two pods. Returns the same block if there was nothing to do.
    """
    cold = {
        index
        for index, attribute in enumerate(block.attributes)
        if attribute.releasedAt is not None
        and (cooldown <= 0 or gotime.parse(attribute.releasedAt) < now - cooldown * _SECOND)
    }
    freed = [o for o, index in enumerate(block.allocations) if index in cold] if cold else []
    if freed:
        gone = {str(ordinal) for ordinal in freed}
        numbers = block.sequenceNumberForAllocation
        block = structs.replace(
            block,
            allocations=tuple(None if index in cold else index for index in block.allocations),
            sequenceNumberForAllocation={o: number for o, number in numbers.items() if o not in gone},
        )
    return _pruned(_listed(block, freed))


def _listed(block: Block, freed: Iterable[int]) -> Block:
    """The block with `unallocated` naming exactly the free ordinals; newly `freed` ones come last."""
    free = {ordinal for ordinal, index in enumerate(block.allocations) if index is None}
    if len(block.unallocated) == len(free) == len(free.intersection(block.unallocated)):
        return block
    # The first mention of an ordinal counts; one that was never mentioned is added at the very end.
    order = dict.fromkeys([*block.unallocated, *freed, *sorted(free)])
    return structs.replace(block, unallocated=tuple(o for o in order if o in free))


def _pruned(block: Block) -> Block:
    """The block without attributes that no allocation refers to."""
    used = set(block.allocations) - {None}
    if len(used) == len(block.attributes):
        return block
    kept = [index for index in range(len(block.attributes)) if index in used]
    renumbered: dict[int | None, int | None] = {None: None}
    renumbered.update((old, new) for new, old in enumerate(kept))
    return structs.replace(
        block,
        allocations=tuple(renumbered[index] for index in block.allocations),
        attributes=tuple(block.attributes[index] for index in kept),
    )


# --- assigning ----------------------------------------------------------------------------------


def check_affinity(block: Block, owner: Owner, strict: bool) -> None:
    """Under strict affinity only the owner of a block may take from it. Raises ForeignBlock."""
    if strict and block.affinity != str(owner):
        raise ForeignBlock(block.cidr, block.affinity)


def assign(
    block: Block, count: int, attribute: AllocationAttribute, skip: tuple[range, ...] = ()
) -> tuple[Block, tuple[int, ...]]:
    """Give up to `count` free ordinals to `attribute`, oldest first; those in `skip` keep their place."""
    return _give(block, tuple(islice(_usable(block, skip), count)), attribute)


def assign_ordinal(block: Block, ordinal: int, attribute: AllocationAttribute) -> Block:
    """Give one particular ordinal, reserved or not. Raises ResourceAlreadyExists if it is taken."""
    if block.allocations[ordinal] is not None:
        raise ResourceAlreadyExists(address_at(block, ordinal), "Address already assigned in block")
    return _give(block, (ordinal,), attribute)[0]


def _usable(block: Block, skip: tuple[range, ...]) -> Iterable[int]:
    return (o for o in block.unallocated if not any(o in part for part in skip))


def _give(
    block: Block, ordinals: tuple[int, ...], attribute: AllocationAttribute
) -> tuple[Block, tuple[int, ...]]:
    if not ordinals:
        return block, ()
    taken = set(ordinals)
    return (
        structs.replace(
            _point(block, ordinals, attribute),
            unallocated=tuple(o for o in block.unallocated if o not in taken),
        ),
        ordinals,
    )


def _point(block: Block, ordinals: Iterable[int], attribute: AllocationAttribute) -> Block:
    """Let ordinals refer to an attribute, shared with its equals, and record the sequence number."""
    attributes = block.attributes
    if attribute in attributes:
        index = attributes.index(attribute)
    else:
        index, attributes = len(attributes), (*attributes, attribute)
    allocations = list(block.allocations)
    numbers = dict(block.sequenceNumberForAllocation)
    for ordinal in ordinals:
        allocations[ordinal] = index
        numbers[str(ordinal)] = block.sequenceNumber
    return structs.replace(
        block,
        allocations=tuple(allocations),
        attributes=attributes,
        sequenceNumberForAllocation=numbers,
    )


def redirected(block: Block, ordinal: int, attribute: AllocationAttribute) -> Block:
    """The block with an allocated ordinal's attribute replaced; it counts as the same allocation."""
    changed = _point(block, (ordinal,), attribute)
    numbers = block.sequenceNumberForAllocation
    return _pruned(structs.replace(changed, sequenceNumberForAllocation=numbers))


# --- releasing ----------------------------------------------------------------------------------


def release(block: Block, requests: Iterable[ReleaseRequest], now: int, cooldown: int) -> Released:
    """Give addresses of this block back; all of them or, if one guard fails, none.

    Raises BadSequenceNumber, BadHandle; IPAMError if an address is not in the block.
    """
    doomed: dict[int, str] = {}  # ordinal -> its handle
    unallocated: dict[str, None] = {}  # addresses, in order and once each
    for request in requests:
        ordinal = ordinal_of(block, addresses.address(request.address))
        number = sequence_number(block, ordinal)
        if request.sequence_number is not None and request.sequence_number != number:
            raise BadSequenceNumber(request.address, request.sequence_number, number)
        attribute = attribute_at(block, ordinal)
        if attribute is None or attribute.releasedAt is not None:
            unallocated[address_at(block, ordinal)] = None
            continue
        handle = clean_handle(attribute.handle_id)
        if request.handle and clean_handle(request.handle) != handle:
            raise BadHandle(request.address, request.handle, handle)
        doomed[ordinal] = handle
    handles = tuple(dict.fromkeys(filter(None, doomed.values())))
    return Released(_retire(block, doomed, now, cooldown), tuple(unallocated), handles)


def release_handle(block: Block, handle: str, now: int, cooldown: int) -> Block:
    """Give back whatever a handle holds in this block."""
    return _retire(block, ordinals_of(block, handle), now, cooldown)


def _retire(block: Block, ordinals: Iterable[int], now: int, cooldown: int) -> Block:
    ordinals = tuple(ordinals)
    if not ordinals:
        return block
    released = AllocationAttribute(releasedAt=gotime.rfc3339(now))
    return normalise(_point(block, ordinals, released), now, cooldown)


# --- looking ------------------------------------------------------------------------------------


def address_at(block: Block, ordinal: int) -> str:
    return str(addresses.network(block.cidr)[ordinal])


def ordinal_of(block: Block, address: addresses.Address) -> int:
    """Raises IPAMError if the address is not in the block."""
    net = addresses.network(block.cidr)
    if address.version != net.version or address not in net:
        raise IPAMError(f"IP {address} not in block {block.cidr}")
    return int(address) - int(net.network_address)


def attribute_at(block: Block, ordinal: int) -> AllocationAttribute | None:
    index = block.allocations[ordinal]
    return None if index is None else block.attributes[index]


def sequence_number(block: Block, ordinal: int) -> int:
    """The number recorded for an ordinal, 0 if there is none."""
    return block.sequenceNumberForAllocation.get(str(ordinal), 0)


def ordinals_of(block: Block, handle: str) -> tuple[int, ...]:
    """The ordinals a handle holds."""
    wanted = clean_handle(handle)
    indexes = {
        index
        for index, attribute in enumerate(block.attributes)
        if attribute.handle_id is not None and clean_handle(attribute.handle_id) == wanted
    }
    return tuple(o for o, index in enumerate(block.allocations) if index in indexes)
