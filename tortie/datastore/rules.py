"""What the client does around a write or a read beyond one object: rules that look at others.

Hooks before a write are given a valid resource (with defaults); they may refuse by raising, or return a
changed resource. Kinds without an entry have no such rule. Nothing here is atomic with the write that
follows: as in Calico, two writers at the same instant can both pass. (Reference: Calico data model,
sections 1.2, 2.3-2.7; libcalico-go/lib/clientv3.)
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, TypeVar

from msgspec import structs

from tortie.core.errors import (
    FieldError,
    OperationNotSupported,
    ResourceAlreadyExists,
    ValidationError,
)
from tortie.datastore.access import Access
from tortie.datastore.initialize import ensure_initialized
from tortie.datastore.keys import BlockKey, BlockList, ResourceKey
from tortie.datastore.types.bgp import BGPFilter, BGPPeer
from tortie.datastore.types.ippool import BlockAffinity, IPPool
from tortie.datastore.types.meta import ObjectMeta, Resource
from tortie.datastore.types.node import Node
from tortie.datastore.types.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    Profile,
    ProfileSpec,
    Rule,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
)
from tortie.datastore.validate.addresses import parse_cidr
from tortie.datastore.validate.formats import is_resource_name
from tortie.datastore.validate.ippool import CIDR, LOAD_BALANCER, pool_read_defaults
from tortie.datastore.validate.policy import (
    BUILT_IN_TIERS,
    DEFAULT_TIER,
    policy_read_defaults,
    tier_defaults,
)

R = TypeVar("R", bound=Resource)

Hook = Callable[[Access, Any], Awaitable[Any]]
DeleteHook = Callable[[Access, ResourceKey], Awaitable[None]]


async def _unchanged(_client: Access, resource: Any) -> Any:
    return resource


async def _allowed(_client: Access, _key: ResourceKey) -> None:
    return None


@dataclass(frozen=True, slots=True)
class KindRules:
    before_create: Hook = _unchanged
    before_update: Hook = _unchanged  # the resource still carries the revision it is based on
    before_delete: DeleteHook = _allowed  # is given the key only: what is stored may be unreadable
    after_read: Callable[[Any], Any] = lambda resource: resource  # pure: what readers see


def as_read(resource: R) -> R:
    """What readers see of a stored resource; for those who read past the client, such as a syncer's users."""
    return RULES.get(resource.KIND, NO_RULES).after_read(resource)  # type: ignore[no-any-return]


# --- IPPool -------------------------------------------------------------------------------------


async def _create_pool(client: Access, pool: IPPool) -> IPPool:
    wrong = await _overlaps(client, pool)
    if not wrong and await _has_blocks_of_other_size(client, pool):
        reason = "IPPool blocksSize conflicts with existing allocations that use a different blockSize"
        wrong = [FieldError("IPPool.Spec.BlockSize", pool.spec.blockSize, reason)]
    if wrong:
        raise ValidationError(wrong)
    return pool


async def _overlaps(client: Access, pool: IPPool) -> list[FieldError]:
    network = ip_network(pool.spec.cidr)
    wrong = []
    for other in (await client.list(IPPool)).items:
        parsed = parse_cidr(other.spec.cidr)
        # Our own name is left to the write itself, which reports that the pool exists.
        if other.name != pool.name and parsed is not None and network.overlaps(parsed[1]):
            reason = f"IPPool({pool.name}) CIDR overlaps with IPPool({other.name}) CIDR {other.spec.cidr}"
            wrong.append(FieldError(CIDR, pool.spec.cidr, reason))
    return wrong


async def _has_blocks_of_other_size(client: Access, pool: IPPool) -> bool:
    network = ip_network(pool.spec.cidr)
    blocks = await client.backend.list(BlockList(network.version))
    keys = [kv.key for kv in blocks.items] + [broken.key for broken in blocks.broken]
    within = [ip_network(key.cidr) for key in keys if isinstance(key, BlockKey)]
    return any(block.prefixlen != pool.spec.blockSize and block.overlaps(network) for block in within)


async def _update_pool(client: Access, pool: IPPool) -> IPPool:
    old = await client.get(IPPool, pool.name)
    wrong = []
    if not _same_cidr(old.spec.cidr, pool.spec.cidr):
        wrong.append(FieldError(CIDR, pool.spec.cidr, "IPPool CIDR cannot be modified"))
    if old.spec.blockSize != pool.spec.blockSize:
        reason = "IPPool BlockSize cannot be modified"
        wrong.append(FieldError("IPPool.Spec.BlockSize", pool.spec.blockSize, reason))
    if LOAD_BALANCER in old.spec.allowedUses and set(pool.spec.allowedUses) - {LOAD_BALANCER}:
        reason = "IPPool allowed use cannot be changed from LoadBalacer to Workload or Tunnel"
        wrong.append(FieldError("IPPool.Spec.AllowedUses", " ".join(pool.spec.allowedUses), reason))
    if wrong:
        raise ValidationError(wrong)
    return pool


def _same_cidr(old: str, new: str) -> bool:
    """The same network; `new` is in canonical form, an old Calico may have stored another."""
    parsed = parse_cidr(old)
    return old == new or (parsed is not None and str(parsed[1]) == new)


# --- policies and tiers -------------------------------------------------------------------------

_POLICIES = (NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy)
_NAME_ANNOTATION = "projectcalico.org/metadata"
KUBERNETES_POLICY_PREFIX = "knp.default."  # of the copies that kube-controllers make of Kubernetes policies


def refuse_kubernetes_policy(operation: str, policy: NetworkPolicy) -> None:
    """For tools that people use: copies of Kubernetes policies are not theirs to change.

    The client itself must let them pass, because kube-controllers write them with it.
    """
    if policy.name.startswith(KUBERNETES_POLICY_PREFIX):
        reason = "kubernetes network policies must be managed through the kubernetes API"
        raise OperationNotSupported(operation, f"NetworkPolicy({policy.namespace}/{policy.name})", reason)


async def _create_policy(client: Access, policy: Any) -> Any:
    await client.get(Tier, policy.spec.tier or DEFAULT_TIER)
    return with_name_annotation(policy)


async def _update_policy(_client: Access, policy: Any) -> Any:
    return with_name_annotation(policy)


def with_name_annotation(policy: R) -> R:
    """The name as the object has it: keys of older data carry a prefix."""
    name = json.dumps({"name": policy.name}, separators=(",", ":"))
    return policy.with_metadata(annotations=policy.metadata.annotations | {_NAME_ANNOTATION: name})


def _policy_as_read(policy: Any) -> Any:
    """Under its own name, without the annotation that holds it, with the tier's label."""
    annotations = dict(policy.metadata.annotations)
    given = annotations.pop(_NAME_ANNOTATION, "")
    name = policy.name
    if given:
        # Only a name is taken from it: anything else would put hostile text where names are trusted.
        name = _annotated_name(given) or name
    elif policy.spec.tier in ("", DEFAULT_TIER):
        name = name.removeprefix(DEFAULT_TIER + ".")  # Calico's key for it before 3.32
    return policy_read_defaults(policy.with_metadata(name=name, annotations=annotations))


def _annotated_name(text: str) -> str:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) and is_resource_name(name) else ""


async def _delete_tier(client: Access, key: ResourceKey) -> None:
    if key.name in BUILT_IN_TIERS:
        raise OperationNotSupported("Delete", key.name, f"Cannot delete {key.name} tier")
    for kind in _POLICIES:
        policies: list[Any] = list((await client.list(kind)).items)
        if any(policy.spec.tier == key.name for policy in policies):
            raise OperationNotSupported("delete", key.name, "Cannot delete a non-empty tier")


# --- Profile projectcalico-default-allow --------------------------------------------------------

DEFAULT_ALLOW = "projectcalico-default-allow"
DEFAULT_ALLOW_PROFILE = Profile(  # never stored, there for every reader; the revision is Calico's
    metadata=ObjectMeta(name=DEFAULT_ALLOW, resourceVersion="1"),
    spec=ProfileSpec(ingress=(Rule(action="Allow"),), egress=(Rule(action="Allow"),)),
)


async def _create_profile(_client: Access, profile: Profile) -> Profile:
    if profile.name == DEFAULT_ALLOW:
        reason = (
            f'{DEFAULT_ALLOW} already exists. The profile "{DEFAULT_ALLOW}" is default provided by Calico'
        )
        raise ResourceAlreadyExists(DEFAULT_ALLOW, reason, current=DEFAULT_ALLOW_PROFILE)
    return profile


async def _update_profile(_client: Access, profile: Profile) -> Profile:
    if profile.name == DEFAULT_ALLOW:
        raise _provided_by_calico("Update", "updated")
    return profile


async def _delete_profile(_client: Access, key: ResourceKey) -> None:
    if key.name == DEFAULT_ALLOW:
        raise _provided_by_calico("Delete", "deleted")


def _provided_by_calico(operation: str, done: str) -> OperationNotSupported:
    reason = f'The profile "{DEFAULT_ALLOW}" is a default provided by Calico and cannot be {done}'
    return OperationNotSupported(operation, DEFAULT_ALLOW, reason)


# --- the others ---------------------------------------------------------------------------------


async def _check_filters(client: Access, peer: BGPPeer) -> BGPPeer:
    if not peer.spec.filters:
        return peer
    known = {found.name for found in (await client.list(BGPFilter)).items}
    if missing := [name for name in peer.spec.filters if name not in known]:
        value = "[" + " ".join(missing) + "]"
        raise ValidationError([FieldError("BGPPeer.Spec.Filters", value, "BGPFilter(s) not found")])
    return peer


async def _create_node(client: Access, node: Node) -> Node:
    """The first thing a host-protection cluster creates is a Node: make the datastore usable with it."""
    await ensure_initialized(client, "", "")
    return node


async def _write_affinity(_client: Access, affinity: BlockAffinity) -> BlockAffinity:
    """Stored with the text "false", for historical reasons of Calico's."""
    return structs.replace(affinity, spec=structs.replace(affinity.spec, deleted="false"))


def _affinity_as_read(affinity: BlockAffinity) -> BlockAffinity:
    deleted = affinity.spec.deleted in (True, "true")
    return structs.replace(affinity, spec=structs.replace(affinity.spec, deleted=deleted))


_POLICY_RULES = KindRules(_create_policy, _update_policy, after_read=_policy_as_read)

RULES: dict[str, KindRules] = {  # kind name -> its rules
    "BGPPeer": KindRules(_check_filters, _check_filters),
    "BlockAffinity": KindRules(_write_affinity, _write_affinity, after_read=_affinity_as_read),
    "IPPool": KindRules(_create_pool, _update_pool, after_read=pool_read_defaults),
    "Node": KindRules(before_create=_create_node),
    "Profile": KindRules(_create_profile, _update_profile, _delete_profile),
    "Tier": KindRules(before_delete=_delete_tier, after_read=tier_defaults),
    **{kind.KIND: _POLICY_RULES for kind in _POLICIES},
}
NO_RULES = KindRules()
