"""What is wrong with a cluster's addresses: who holds what, compared with who uses what. Pure.

Leaked: allocated, but nobody uses it. Missing: used, but not allocated, so that it may be given to a
second pod. Double: used by two. Around these the books themselves: handles, blocks, affinities, nodes.
(Reference: Calico IPAM, section 6, `check`.) Nothing here decides what to do about it: see reports.py.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.addresses import Network
from tortie.ipam.block import Owner
from tortie.ipam.names import (
    NAMESPACE,
    NODE,
    POD,
    TIMESTAMP,
    TYPE,
    WINDOWS_RESERVED_HANDLE,
    clean_handle,
    is_warm,
)
from tortie.ipam.owners import is_machines
from tortie.ipam.soundness import violations

RESERVED_FOR_WINDOWS = "Reserved for Windows"


@dataclass(frozen=True, slots=True)
class Use:
    """Somebody who says that an address is his: `Node(a)`, `Workload(shop/web)`, a Service's name."""

    address: str
    owner: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """One allocated address. `node` is who uses it, or else whose block it is in; '' if nobody knows."""

    address: str
    block: str
    handle: str
    sequence_number: int
    node: str
    borrowed: bool
    cooling: bool
    attribute: AllocationAttribute
    owners: tuple[str, ...] = ()  # those who use it

    @property
    def in_use(self) -> bool:
        return bool(self.owners)

    def known(self, key: str) -> str:
        """An attribute of the active owner, '' if there is none."""
        return self.attribute.secondary.get(key, "")


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block as it was read; `block` None: it cannot be understood, `error` says why."""

    path: str
    block: Block | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Books:
    """All that an audit compares. `handles` is ID -> revision; `pools` are the enabled ones' networks."""

    blocks: Sequence[StoredBlock]
    uses: Sequence[Use]
    pools: Sequence[Network]
    handles: Mapping[str, str]
    affinities: Collection[tuple[Owner, str]]  # confirmed ones: whose, of which block
    nodes: Collection[str]
    unsettled: Collection[tuple[Owner, str]] = ()  # affinities that are being made or given up


@dataclass(slots=True)
class Audit:
    """The findings, each in the order of addresses or names."""

    blocks: Sequence[StoredBlock]
    allocations: dict[str, list[Allocation]]  # address -> its allocations; two if blocks overlap
    uses: dict[str, list[str]]  # address -> who uses it
    by_node: list[tuple[str, int]]  # node and number of its allocations, most first
    leaked: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)  # in use, and in no enabled pool
    missing: list[str] = field(default_factory=list)  # in use and in a pool, but not allocated
    double: list[str] = field(default_factory=list)
    leaked_handles: dict[str, str] = field(default_factory=dict)  # ID -> revision: no address has it
    good_handles: int = 0
    missing_handles: list[str] = field(default_factory=list)  # an address has it, but it does not exist
    invalid: list[tuple[str, str]] = field(default_factory=list)  # path of a block, what is wrong
    orphaned: list[tuple[str, str]] = field(default_factory=list)  # block, its node that is no more
    inconsistent: list[str] = field(default_factory=list)  # affinities and blocks that disagree

    @property
    def problems(self) -> int:
        """Calico's count, and what Calico does not look for."""
        calicos = (self.leaked, self.outside, self.missing, self.leaked_handles, self.invalid)
        ours = (self.double, self.orphaned, self.inconsistent)
        return sum(len(found) for found in (*calicos, *ours))


def audit(books: Books, now: int) -> Audit:
    """`now` is Unix time in ns."""
    uses = _uses(books)
    allocations = _allocations(books.blocks, uses)
    counts = Counter(one.node for found in allocations.values() for one in found)
    result = Audit(
        books.blocks, allocations, uses, sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    _compare_addresses(result, books.pools)
    _compare_handles(result, books.handles)
    result.invalid = [found for stored in books.blocks for found in _faults(stored, now)]
    result.orphaned = list(_orphaned(books))
    result.inconsistent = [*_overlaps(books), *_affinity_faults(books)]
    return result


# --- who has what, who uses what ------------------------------------------------------------------


def _uses(books: Books) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for use in (*_windows(books.blocks), *_warm(books), *_machines(books), *books.uses):
        found.setdefault(use.address, []).append(use.owner)
    return found


def _windows(stored: Iterable[StoredBlock]) -> Iterator[Use]:
    for block, ordinal, attribute in _allocated(stored):
        if clean_handle(attribute.handle_id).lower() == WINDOWS_RESERVED_HANDLE:
            yield Use(blocks.address_at(block, ordinal), RESERVED_FOR_WINDOWS)


def _warm(books: Books) -> Iterator[Use]:
    """What nodes keep ready for their next pods; a node that is gone needs nothing.

    One that an endpoint names is on its way to that endpoint: its allocation tells last.
    """
    used = {use.address for use in books.uses}
    for block, ordinal, attribute in _allocated(books.blocks):
        if not is_warm(attribute.handle_id):
            continue
        node, address = attribute.secondary.get(NODE, ""), blocks.address_at(block, ordinal)
        if node in books.nodes and address not in used:
            yield Use(address, f"Warm pool of Node({node})")


def _machines(books: Books) -> Iterator[Use]:
    """What KubeVirt's VMs have, with a pod or without: controllers see whether there is such a VM."""
    used = {use.address for use in books.uses}
    for block, ordinal, attribute in _allocated(books.blocks):
        address = blocks.address_at(block, ordinal)
        if is_machines(attribute) and address not in used:
            yield Use(address, f"VM of {clean_handle(attribute.handle_id)}")


def _allocated(stored: Iterable[StoredBlock]) -> Iterator[tuple[Block, int, AllocationAttribute]]:
    for one in stored:
        if one.block is None:
            continue
        for ordinal in range(len(one.block.allocations)):
            attribute = blocks.attribute_at(one.block, ordinal)
            if attribute is not None:
                yield one.block, ordinal, attribute


def _allocations(
    stored: Iterable[StoredBlock], uses: Mapping[str, Sequence[str]]
) -> dict[str, list[Allocation]]:
    found: dict[str, list[Allocation]] = {}
    for block, ordinal, attribute in _allocated(stored):
        address = blocks.address_at(block, ordinal)
        one = allocation(block, ordinal, attribute, tuple(uses.get(address, ())))
        found.setdefault(address, []).append(one)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def allocation(
    block: Block, ordinal: int, attribute: AllocationAttribute, owners: tuple[str, ...]
) -> Allocation:
    owner = Owner.parse(block.affinity)
    home = owner.host if owner is not None and owner.type == "host" else ""
    node = attribute.secondary.get(NODE) or home
    handle = clean_handle(attribute.handle_id)
    return Allocation(
        address=blocks.address_at(block, ordinal),
        block=block.cidr,
        handle="" if handle.lower() == WINDOWS_RESERVED_HANDLE else handle,
        sequence_number=blocks.sequence_number(block, ordinal),
        node=node,
        borrowed=node != home,
        cooling=attribute.releasedAt is not None,
        attribute=attribute,
        owners=owners,
    )


def _order(address: str) -> tuple[int, int]:
    parsed = addresses.address(address)
    return parsed.version, int(parsed)


# --- comparing ------------------------------------------------------------------------------------


def _compare_addresses(result: Audit, pools: Sequence[Network]) -> None:
    for address, found in result.allocations.items():
        if address not in result.uses and not any(one.cooling for one in found):
            result.leaked.append(address)
    for address in sorted(result.uses, key=_order):
        if len(set(result.uses[address])) > 1 or len(result.allocations.get(address, ())) > 1:
            result.double.append(address)
        if address in result.allocations:
            continue
        parsed = addresses.address(address)
        inside = any(pool.version == parsed.version and parsed in pool for pool in pools)
        (result.missing if inside else result.outside).append(address)


def _compare_handles(result: Audit, handles: Mapping[str, str]) -> None:
    mentioned = {one.handle for found in result.allocations.values() for one in found} - {""}
    for handle in sorted(handles):
        if handle in mentioned:
            result.good_handles += 1
        else:
            result.leaked_handles[handle] = handles[handle]
    result.missing_handles = sorted(mentioned - set(handles))


def _faults(stored: StoredBlock, now: int) -> Iterator[tuple[str, str]]:
    """The first fault of a block: the others are mostly its consequences."""
    found = [stored.error] if stored.block is None else violations(stored.block, now)
    if found:
        yield stored.path, found[0]


# --- blocks and their owners ----------------------------------------------------------------------


def _orphaned(books: Books) -> Iterator[tuple[str, str]]:
    for block in _readable(books):
        owner = Owner.parse(block.affinity)
        if owner is not None and owner.type == "host" and owner.host not in books.nodes:
            yield block.cidr, owner.host


def _overlaps(books: Books) -> Iterator[str]:
    """Blocks of different sizes that contain the same address, which both may then hand out."""
    nets = sorted(
        (addresses.network(block.cidr) for block in _readable(books)),
        key=lambda net: (net.version, int(net.network_address), net.prefixlen),
    )
    widest: Network | None = None  # the one that reaches furthest so far
    for net in nets:
        if widest is not None and net.overlaps(widest):
            yield f"block {net} overlaps block {widest}"
        else:
            widest = net


def _affinity_faults(books: Books) -> Iterator[str]:
    existing = {block.cidr: block.affinity for block in _readable(books)}
    unreadable = {one.path for one in books.blocks if one.block is None}
    confirmed = set(books.affinities)
    for owner, cidr in sorted(confirmed, key=lambda item: (item[1], str(item[0]))):
        if any(_is_of(path, cidr) for path in unreadable):
            continue
        if cidr not in existing:
            yield f"{owner} has an affinity for block {cidr}, which does not exist"
        elif existing[cidr] != str(owner):
            yield f"{owner} has an affinity for block {cidr}, which belongs to {existing[cidr] or '<none>'}"
    known = confirmed | set(books.unsettled)
    for cidr, affinity in existing.items():
        claimed = Owner.parse(affinity)
        if claimed is not None and (claimed, cidr) not in known:
            yield f"block {cidr} belongs to {affinity}, which has no affinity for it"


def _readable(books: Books) -> list[Block]:
    return [stored.block for stored in books.blocks if stored.block is not None]


def _is_of(path: str, cidr: str) -> bool:
    return path.endswith("/" + cidr.replace("/", "-"))


def user_of(one: Allocation) -> dict[str, str]:
    """What a report tells of an allocation's user: report field -> value, without what is not known."""
    named = {"pod": POD, "namespace": NAMESPACE, "type": TYPE, "creationTimestamp": TIMESTAMP}
    found = {name: one.known(key) for name, key in named.items()} | {"node": one.node}
    return {name: value for name, value in found.items() if value}
