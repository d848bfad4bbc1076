"""Which collections of the API hold what: a key's one place, a listing's one or two queries. Pure.

Profiles are namespaces and service accounts, and policies come from our own resources and from
Kubernetes' policies. Their names tell which: Kubernetes' carry a prefix, as released Calico shows them
(reference: Calico data model, 3.1). What cannot be kept in this datastore is nowhere.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import structs

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import codec
from tortie.datastore.backend import KV, Broken
from tortie.datastore.keys import (
    AffinityKey,
    AffinityList,
    BlockKey,
    BlockList,
    HandleKey,
    HandleList,
    IPAMConfigKey,
    IPAMConfigList,
    Key,
    Listing,
    ResourceKey,
    ResourceList,
)
from tortie.datastore.kinds import KINDS
from tortie.datastore.kubernetes import nodes, pods
from tortie.datastore.kubernetes import types as kube
from tortie.datastore.kubernetes.clusternetworkpolicy import convert_cluster_network_policy
from tortie.datastore.kubernetes.customresource import GROUP_VERSION, from_custom_resource
from tortie.datastore.kubernetes.ipamresource import (
    HOST_LABEL,
    TYPE_LABEL,
    from_spec,
    host_hash,
    resource_name,
)
from tortie.datastore.kubernetes.networkpolicy import convert_network_policy
from tortie.datastore.kubernetes.profiles import (
    NAMESPACE_PROFILE,
    SERVICE_ACCOUNT_PROFILE,
    namespace_profile,
    service_account_profile,
)
from tortie.datastore.names import parse_endpoint_name
from tortie.datastore.rules import KUBERNETES_POLICY_PREFIX
from tortie.datastore.types import ipam
from tortie.datastore.types.meta import ObjectMeta, Resource

CLUSTER_POLICY_PREFIX = "kcnp."  # of a ClusterNetworkPolicy's name, then its tier: Calico 3.32's
_ELSEWHERE = {"Node", "WorkloadEndpoint", "Profile", "LiveMigration"}  # kinds that have no custom resource
# A block's name as a CIDR: no other separator than the dash is left (ipamresource.resource_name).
_BLOCK_NAME = re.compile(r"(?:([0-9]+)-([0-9]+)-([0-9]+)-([0-9]+)|([0-9a-f-]+?))-([0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """One collection. `read` gives what an object is of ours, with the value None if it counts as gone,
    or None; it raises ValidationError. `key` names an object that cannot be read, if its name tells."""

    group: str  # path of the API group and version
    plural: str
    namespaced: bool
    read: Callable[[bytes], KV | None]
    key: Callable[[str, str], Key | None]  # of namespace and name

    @property
    def ours(self) -> bool:
        """Whether its objects are custom resources of ours: all others can be read only, or patched."""
        return self.group.endswith(GROUP_VERSION)

    def path(self, namespace: str = "", name: str = "") -> str:
        """Of one object, or of the collection: all of it, or a namespace's."""
        where = f"/namespaces/{quote(namespace, safe='')}" if namespace and self.namespaced else ""
        return f"{self.group}{where}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one object is."""

    source: Source
    name: str
    namespace: str = ""

    @property
    def path(self) -> str:
        return self.source.path(self.namespace, self.name)

    @property
    def collection(self) -> str:
        return self.source.path(self.namespace)


@dataclass(frozen=True, slots=True)
class Query:
    """Part of a collection, as the server can select it; more may come than the listing contains."""

    source: Source
    namespace: str = ""
    selectors: Mapping[str, str] = field(default_factory=dict)  # query parameter -> its value

    @property
    def path(self) -> str:
        return self.source.path(self.namespace)


class Sources:
    def __init__(self, use_pod_cidr: bool = False) -> None:
        core = "/api/v1"
        self.nodes = Source(core, "nodes", False, partial(_node, use_pod_cidr), _named("Node"))
        self.pods = Source(core, "pods", True, _pod, lambda _namespace, _name: None)
        self.namespaces = Source(
            core, "namespaces", False, _namespace, lambda _namespace, name: _profile(NAMESPACE_PROFILE + name)
        )
        self.accounts = Source(
            core,
            "serviceaccounts",
            True,
            _service_account,
            lambda namespace, name: _profile(f"{SERVICE_ACCOUNT_PROFILE}{namespace}.{name}"),
        )
        self.policies = Source(
            "/apis/networking.k8s.io/v1", "networkpolicies", True, _network_policy, _policy_key
        )
        self.cluster_policies = Source(
            "/apis/policy.networking.k8s.io/v1alpha2",
            "clusternetworkpolicies",
            False,
            _cluster_policy,
            lambda _namespace, _name: None,
        )
        group = f"/apis/{GROUP_VERSION}"
        self.custom = {
            kind: Source(
                group,
                "ipamconfigs" if kind == "IPAMConfiguration" else row.plural,
                row.namespaced,
                partial(_custom, kind),
                _named(kind),
            )
            for kind, row in KINDS.items()
            if kind not in _ELSEWHERE
        }
        self.blocks = Source(group, "ipamblocks", False, partial(_ipam, ipam.Block), _block_key)
        self.affinities = Source(
            group, "blockaffinities", False, partial(_ipam, ipam.Affinity), lambda _namespace, _name: None
        )
        self.handles = Source(
            group,
            "ipamhandles",
            False,
            partial(_ipam, ipam.Handle),
            lambda _namespace, name: HandleKey(name),
        )
        self.ipam_config = Source(
            group, "ipamconfigs", False, partial(_ipam, ipam.IPAMConfig), lambda _namespace, _name: None
        )

    # --- a key's place --------------------------------------------------------------------------

    def place(self, key: Key) -> Place | None:
        """None for what this datastore cannot hold. Raises ValidationError for an impossible name."""
        if isinstance(key, ResourceKey):
            return _valid(key, self._resource_place(key))
        if isinstance(key, BlockKey):
            return Place(self.blocks, resource_name(key))
        if isinstance(key, AffinityKey):
            return Place(self.affinities, resource_name(key))
        if isinstance(key, HandleKey):
            return Place(self.handles, resource_name(key))
        if isinstance(key, IPAMConfigKey):
            return Place(self.ipam_config, resource_name(key))
        return None

    def _resource_place(self, key: ResourceKey) -> Place | None:
        name = key.name
        if key.kind == "Node":
            return Place(self.nodes, name)
        if key.kind == "WorkloadEndpoint":
            ids = parse_endpoint_name(name)
            return Place(self.pods, ids.pod, key.namespace) if ids and ids.pod else None
        if key.kind == "Profile":
            return self._profile_place(name)
        if key.kind == "NetworkPolicy" and name.startswith(KUBERNETES_POLICY_PREFIX):
            return Place(self.policies, name.removeprefix(KUBERNETES_POLICY_PREFIX), key.namespace)
        if key.kind == "GlobalNetworkPolicy" and name.startswith(CLUSTER_POLICY_PREFIX):
            own = name.removeprefix(CLUSTER_POLICY_PREFIX).partition(".")[2]
            return Place(self.cluster_policies, own) if own else None
        source = self.custom.get(key.kind)
        return Place(source, name, key.namespace) if source else None

    def _profile_place(self, name: str) -> Place | None:
        if name.startswith(NAMESPACE_PROFILE):
            return Place(self.namespaces, name.removeprefix(NAMESPACE_PROFILE))
        # A namespace has no dot in its name, a service account may.
        namespace, _, account = name.removeprefix(SERVICE_ACCOUNT_PROFILE).partition(".")
        is_account = name.startswith(SERVICE_ACCOUNT_PROFILE) and namespace and account
        return Place(self.accounts, account, namespace) if is_account else None

    # --- a listing's queries --------------------------------------------------------------------

    def queries(self, what: Listing) -> list[Query]:
        """Empty for what this datastore cannot hold."""
        if isinstance(what, ResourceList):
            return self._resource_queries(what)
        if isinstance(what, BlockList):
            return [Query(self.blocks)]
        if isinstance(what, AffinityList):
            return [Query(self.affinities, selectors=_affinity_selectors(what))]
        if isinstance(what, HandleList):
            return [Query(self.handles)]
        if isinstance(what, IPAMConfigList):
            return [Query(self.ipam_config, selectors={"fieldSelector": "metadata.name=default"})]
        return []

    def _resource_queries(self, what: ResourceList) -> list[Query]:
        if what.kind == "Node":
            return [Query(self.nodes)]
        if what.kind == "WorkloadEndpoint":
            return [Query(self.pods, what.namespace, _pod_selectors(what.name_prefix))]
        if what.kind == "Profile":
            return [Query(self.namespaces), Query(self.accounts)]
        source = self.custom.get(what.kind)
        if source is None:
            return []
        own = Query(source, what.namespace)
        if what.kind == "NetworkPolicy":
            return [own, Query(self.policies, what.namespace)]
        return [own, Query(self.cluster_policies)] if what.kind == "GlobalNetworkPolicy" else [own]


def _affinity_selectors(what: AffinityList) -> dict[str, str]:
    """By host only, the others are few. backend.py sees to it that the objects have these labels."""
    if not what.host:
        return {}
    labels = {HOST_LABEL: host_hash(what.host)} | ({TYPE_LABEL: what.owner_type} if what.owner_type else {})
    return {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items())}


def _pod_selectors(name_prefix: str) -> dict[str, str]:
    """CNI looks for the endpoints of one pod, which must not cost a list of its whole namespace."""
    ids = parse_endpoint_name(name_prefix + "x") if name_prefix.endswith("-") else None
    if ids is None or not ids.pod:
        return {}
    return {"fieldSelector": f"metadata.name={ids.pod},spec.nodeName={ids.node}"}


def _valid(key: ResourceKey, place: Place | None) -> Place | None:
    for name in (key.name, key.namespace):
        # Both become part of a path: these would be another object's, or a collection's.
        if name in (".", "..") or "/" in name or "%" in name:
            raise ValidationError([FieldError("metadata.name", name, "invalid resource name")])
    if place is not None and place.source.namespaced and not place.namespace:
        raise ValidationError([FieldError("metadata.namespace", "", "field must be set")])
    return place


# --- reading ------------------------------------------------------------------------------------


class _Meta(msgspec.Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


def metadata_of(raw: bytes) -> ObjectMeta:
    """Raises ValidationError."""
    return codec.decode(_Meta, raw).metadata


def interpret(source: Source, raw: bytes) -> KV | Broken | None:
    """What one object is of ours; never raises for what is in it."""
    try:
        return source.read(raw)
    except ValidationError as err:
        return _broken(source, raw, err)


def _broken(source: Source, raw: bytes, err: ValidationError) -> Broken:
    try:
        meta = metadata_of(raw)
    except ValidationError:
        return Broken(source.path(), None, err)
    key = source.key(meta.namespace, meta.name)
    return Broken(key.path() if key else source.path(meta.namespace, meta.name), key, err)


def _kv(key: ResourceKey, value: Resource | None, revision: str) -> KV:
    return KV(key, value and value.with_metadata(resourceVersion=revision), revision)


def _plain(raw: bytes) -> dict[str, Any]:
    try:
        plain = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ValidationError([FieldError("JSON", None, f"malformed: {err}")]) from err
    if not isinstance(plain, dict):
        raise ValidationError([FieldError("JSON", None, "expected an object")])
    return plain


def _custom(kind: str, raw: bytes) -> KV:
    plain = _plain(raw)
    meta = codec.from_plain(_Meta, {"metadata": plain.get("metadata")}).metadata
    key = ResourceKey(kind, meta.name, meta.namespace)
    return _kv(key, from_custom_resource(key, plain), meta.resourceVersion)


def _ipam(kind: type[Any], raw: bytes) -> KV:
    plain = _plain(raw)
    meta = codec.from_plain(_Meta, {"metadata": plain.get("metadata")}).metadata
    spec = plain.get("spec") or {}
    if not isinstance(spec, dict):
        raise ValidationError([FieldError(f"{kind.__name__}.spec", spec, "expected an object")])
    key, value, origin = from_spec(kind, spec)
    gone = getattr(value, "deleted", False)
    return KV(key, None if gone else value, meta.resourceVersion, origin)


def _node(use_pod_cidr: bool, raw: bytes) -> KV:
    found = codec.decode(kube.Node, raw)
    key = ResourceKey("Node", found.metadata.name)
    node = nodes.calico_node(found, use_pod_cidr)
    # What it was read as tells later whether somebody else has changed it (see backend.py).
    return _kv(key, structs.replace(node, origin=codec.to_plain(node)), found.metadata.resourceVersion)


def _pod(raw: bytes) -> KV | None:
    pod = pods.decode_pod(raw)
    key = pods.endpoint_key(pod)
    if key is None:
        return None
    return _kv(key, pods.pod_endpoint(key, pod), pod.metadata.resourceVersion)


def _namespace(raw: bytes) -> KV:
    return _of_profile(namespace_profile(_plain(raw)))


def _service_account(raw: bytes) -> KV:
    return _of_profile(service_account_profile(_plain(raw)))


def _of_profile(profile: Any) -> KV:
    key = ResourceKey("Profile", profile.name)
    return KV(key, profile, profile.revision)


def _network_policy(raw: bytes) -> KV:
    plain = _plain(raw)
    found = convert_network_policy(plain)
    meta = metadata_of(raw)
    key = ResourceKey("NetworkPolicy", KUBERNETES_POLICY_PREFIX + meta.name, meta.namespace)
    policy = found.policy and found.policy.with_metadata(name=key.name)
    return _kv(key, policy, meta.resourceVersion)


def _cluster_policy(raw: bytes) -> KV | None:
    found = convert_cluster_network_policy(_plain(raw))
    if found.policy is None:
        return None
    meta = metadata_of(raw)
    key = ResourceKey("GlobalNetworkPolicy", f"{CLUSTER_POLICY_PREFIX}{found.policy.spec.tier}.{meta.name}")
    return _kv(key, found.policy.with_metadata(name=key.name), meta.resourceVersion)


# --- keys of what cannot be read ----------------------------------------------------------------


def _named(kind: str) -> Callable[[str, str], Key | None]:
    return lambda namespace, name: ResourceKey(kind, name, namespace)


def _profile(name: str) -> Key:
    return ResourceKey("Profile", name)


def _policy_key(namespace: str, name: str) -> Key:
    return ResourceKey("NetworkPolicy", KUBERNETES_POLICY_PREFIX + name, namespace)


def _block_key(_namespace: str, name: str) -> Key | None:
    match = _BLOCK_NAME.fullmatch(name)
    if match is None:
        return None
    address = ".".join(match.group(1, 2, 3, 4)) if match[1] else match[5].replace("-", ":")
    return BlockKey(f"{address}/{match[6]}")
