"""Why an address could not be assigned, in terms of what a person can change. Pure.

Calico's messages name what the allocator ran out of; this names each pool that it could have used, and
why it did not. It is made only after a failure, from everything there is to know.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tortie.core.errors import printable
from tortie.datastore.types.ipam import Block
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner
from tortie.ipam.pools import Pool, Wish
from tortie.ipam.utilisation import utilisation
from tortie.ipam.view import Facts

_CHECK = "calicoctl ipam check"  # the command that tells more


@dataclass(frozen=True, slots=True)
class Situation:
    """`labels` None: the node does not exist; `nodes` are the names of all that do."""

    facts: Facts
    blocks: Collection[Block]
    labels: Mapping[str, str] | None
    nodes: Collection[str]


def explain(wish: Wish, found: Situation) -> str:
    """One line, its parts separated by `; `."""
    if found.labels is None:
        return f"node {wish.host} does not exist in the datastore"
    pools = [pool for pool in found.facts.pools if pool.version == wish.version]
    if wish.requested:
        pools = [pool for pool in pools if pool.cidr in wish.requested]
    if not pools:
        return _no_pool(wish)
    parts = [*(_pool(pool, wish, found) for pool in pools), *_limits(wish, found), *_orphans(pools, found)]
    return "; ".join(parts)


def _no_pool(wish: Wish) -> str:
    if wish.requested:
        return f"there is no IPv{wish.version} pool with CIDR {', '.join(wish.requested)}"
    return f"there is no IPv{wish.version} pool: create one with calicoctl create -f"


def _pool(pool: Pool, wish: Wish, found: Situation) -> str:
    name = f"pool {printable(pool.name)} ({pool.cidr})"
    return f"{name} {_closed(pool, wish, found) or _room(pool, wish, found)}"


def _closed(pool: Pool, wish: Wish, found: Situation) -> str:
    """Why a pool is not used at all, '' if it is."""
    labels, namespace = found.labels or {}, wish.namespace_labels or {}
    if pool.fault:
        return f"is not usable: {pool.fault}"
    if not pool.enabled:
        return "is disabled"
    if wish.use not in pool.uses:
        return f"is not for {wish.use} (allowedUses: {', '.join(map(printable, pool.uses))})"
    if wish.requested:
        return ""
    if not pool.automatic:
        return "is used only where it is asked for (assignmentMode: Manual)"
    if not pool.selects_node(labels):
        return f"does not select node {wish.host} (nodeSelector: {printable(pool.node_selector)})"
    if not pool.selects_namespace(namespace):
        return (
            f"does not select the pod's namespace (namespaceSelector: {printable(pool.namespace_selector)})"
        )
    return ""


def _room(pool: Pool, wish: Wish, found: Situation) -> str:
    inside = [block for block in found.blocks if addresses.contains(pool.net, addresses.network(block.cidr))]
    (counted,) = utilisation([pool], found.facts.reserved, inside)
    if (usage := counted.usage) is None:
        return "has no addresses"
    text = f"has {usage.free} of {usage.total} addresses free"
    others = [block for block in inside if block.affinity not in (None, str(_owner(wish)))]
    theirs = sum(blocks.free_count(block, _reserved(block, found)) for block in others)
    notes = []
    if found.facts.config.strict_affinity and theirs:
        notes.append(f"{theirs} of them in blocks of other nodes, which strict affinity keeps from this one")
    if cooling := sum(map(_cooling, inside)):
        notes.append(f"{cooling} rest for {found.facts.cooldown} s after their release")
    if usage.reserved:
        notes.append(f"{usage.reserved} are reserved by IPReservations")
    return f"{text} ({', '.join(notes)})" if notes else text


def _owner(wish: Wish) -> Owner:
    return Owner(wish.host)


def _reserved(block: Block, found: Situation) -> tuple[range, ...]:
    return found.facts.reserved.ordinals(addresses.network(block.cidr))


def _cooling(block: Block) -> int:
    resting = {i for i, attribute in enumerate(block.attributes) if attribute.releasedAt is not None}
    return sum(index in resting for index in block.allocations)


def _limits(wish: Wish, found: Situation) -> Iterator[str]:
    config = found.facts.config
    owned = sum(1 for block in _of(found.blocks, wish) if block.affinity == str(_owner(wish)))
    if config.maxBlocksPerHost and owned >= config.maxBlocksPerHost:
        yield f"node {wish.host} owns {owned} blocks, and maxBlocksPerHost is {config.maxBlocksPerHost}"
    if not config.auto_allocate_blocks:
        yield "blocks are not assigned automatically (autoAllocateBlocks: false)"


def _orphans(pools: Iterable[Pool], found: Situation) -> Iterator[str]:
    nets = [pool.net for pool in pools]
    number = 0
    for block in found.blocks:
        owner = Owner.parse(block.affinity)
        gone = owner is not None and owner.type == "host" and owner.host not in found.nodes
        number += gone and any(addresses.contains(net, addresses.network(block.cidr)) for net in nets)
    if number == 1:
        yield f"1 block is affine to a node that no longer exists: {_CHECK}"
    elif number:
        yield f"{number} blocks are affine to nodes that no longer exist: {_CHECK}"


def _of(stored: Iterable[Block], wish: Wish) -> Iterator[Block]:
    return (block for block in stored if addresses.network(block.cidr).version == wish.version)
