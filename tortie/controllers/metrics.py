"""What IPAM's metrics say. Pure.

(Reference: Calico command line and Kubernetes, 5.2; kube-controllers/pkg/controllers/node/ipam.go.)
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tortie.controllers.leaks import Id, id_of
from tortie.core.exposition import Labels, Metric
from tortie.datastore.types.ipam import Block
from tortie.ipam import addresses, pools
from tortie.ipam.audit import Allocation
from tortie.ipam.block import Owner
from tortie.ipam.pools import Pool
from tortie.ipam.ranges import Ranges

NO_POOL, NO_NODE = "no_ippool", "unknown_node"  # Calico's labels for what is in no pool, or says no node

_PER_NODE = {  # metric by pool and node -> its help
    "ipam_allocations_in_use": "IPs currently allocated in IPAM to a workload or tunnel endpoint.",
    "ipam_allocations_borrowed": "IPs currently allocated in IPAM to a workload or tunnel endpoint, where "
    "the allocation was borrowed from a block affine to another node.",
    "ipam_blocks": "IPAM blocks currently allocated for the IP pool.",
    "ipam_allocations_gc_candidates": "Allocations that are currently marked by the garbage collector as "
    "potential candidates to reclaim.",
}
_LEGACY = {  # the same without pools, under their old names -> help
    "ipam_allocations_in_use": ("ipam_allocations_per_node", "Number of IPs allocated"),
    "ipam_allocations_borrowed": (
        "ipam_allocations_borrowed_per_node",
        "Number of allocated IPs that are from non-affine blocks.",
    ),
    "ipam_blocks": ("ipam_blocks_per_node", "Number of blocks in IPAM"),
}
_RECLAIMED = "ipam_allocations_gc_reclamations"


@dataclass(slots=True)
class Counts:
    """`gauges` is metric -> (pool, node) -> value; `size` and `reserved` are by pool."""

    gauges: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)


def count(
    stored: Iterable[tuple[Block, Sequence[Allocation]]],
    known: Sequence[Pool],
    nodes: Collection[str],
    suspects: Collection[Id],
    reserved: Ranges,
) -> Counts:
    """Every pool has a value for every node, so that a rate over an empty one is zero and not missing."""
    zero = {(pool.name, node): 0 for pool in known for node in nodes}
    counts = Counts({name: Counter(zero) for name in _PER_NODE})
    for block, allocations in stored:
        pool = pool_name(block, known)
        owner = Owner.parse(block.affinity)
        if owner is not None and owner.type == "host":
            counts.gauges["ipam_blocks"][pool, owner.host] += 1
        for one in allocations:
            where = (pool, one.node or NO_NODE)
            counts.gauges["ipam_allocations_in_use"][where] += 1
            counts.gauges["ipam_allocations_borrowed"][where] += one.borrowed
            counts.gauges["ipam_allocations_gc_candidates"][where] += id_of(one) in suspects
    counts.size = {pool.name: pool.net.num_addresses for pool in known}
    counts.reserved = {pool.name: reserved.count_in(pool.net) for pool in known}
    return counts


def pool_name(block: Block, known: Sequence[Pool]) -> str:
    pool = pools.containing(known, addresses.network(block.cidr))
    return NO_POOL if pool is None else pool.name


def figures(counts: Counts, reclaimed: Mapping[tuple[str, str], int]) -> list[Metric]:
    """`reclaimed` is (pool, node) -> addresses given back since the start."""
    found = [Metric(name, text, _by_pool(counts.gauges.get(name, {}))) for name, text in _PER_NODE.items()]
    text = "The total allocations that have been reclaimed by the garbage collector over time."
    found.append(Metric(_RECLAIMED, text, _by_pool(reclaimed), "counter"))
    text = "Total number of addresses in the IP Pool"
    found.append(Metric("ipam_ippool_size", text, _by("ippool", counts.size)))
    text = "Number of addresses in the IP Pool that an IPReservation covers, and so cannot be assigned."
    found.append(Metric("ipam_ippool_reserved", text, _by("ippool", counts.reserved)))
    for name, (legacy, text) in _LEGACY.items():
        per_node: Counter[str] = Counter()
        for (_, node), value in counts.gauges.get(name, {}).items():
            per_node[node] += value
        found.append(Metric(legacy, text, _by("node", per_node)))
    return found


def _by_pool(values: Mapping[tuple[str, str], int]) -> list[tuple[Labels, float]]:
    return [({"ippool": pool, "node": node}, value) for (pool, node), value in sorted(values.items())]


def _by(label: str, values: Mapping[str, int]) -> list[tuple[Labels, float]]:
    return [({label: name}, value) for name, value in sorted(values.items())]
