"""Which collections of the API hold what: a key's one place, a listing's one or two queries. Pure.

Profiles are namespaces and service accounts, and policies come from our own resources and from
Kubernetes' policies. Their names tell which: Kubernetes' carry a prefix, as released Calico shows them
(reference: Calico data model, 3.1). What cannot be kept in this datastore is nowhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from tortie.core.errors import FieldError, ValidationError
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
from tortie.datastore.kubernetes import pods, services
from tortie.datastore.kubernetes.customresource import GROUP_VERSION
from tortie.datastore.kubernetes.ipamresource import (
    HOST_LABEL,
    TYPE_LABEL,
    host_hash,
    resource_name,
)
from tortie.datastore.kubernetes.migrations import read_migration
from tortie.datastore.kubernetes.profiles import (
    NAMESPACE_PROFILE,
    SERVICE_ACCOUNT_PROFILE,
)
from tortie.datastore.kubernetes.reading import (
    CLUSTER_POLICY_PREFIX,
    block_key,
    metadata_of,
    named,
    policy_key,
    profile_key,
    read_account_profile,
    read_cluster_policy,
    read_custom,
    read_endpoint,
    read_ipam,
    read_namespace_profile,
    read_network_policy,
    read_node,
)
from tortie.datastore.names import parse_endpoint_name
from tortie.datastore.nativekeys import (
    NamespaceKey,
    NamespaceList,
    NativeKey,
    NativePolicyList,
    PodKey,
    PodList,
    SecretKey,
    SecretList,
    ServiceKey,
    ServiceList,
    SliceKey,
    SliceList,
    VirtualMachineInstanceKey,
    VirtualMachineInstanceList,
    VirtualMachineKey,
    VirtualMachineList,
)
from tortie.datastore.rules import KUBERNETES_POLICY_PREFIX
from tortie.datastore.types import ipam

_HEADLESS = "service.kubernetes.io/headless"  # label that the slices of such a service carry
_KUBEVIRT = "/apis/kubevirt.io/v1"
_ELSEWHERE = {"Node", "WorkloadEndpoint", "Profile", "LiveMigration"}  # without a custom resource of ours


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
        self.nodes = Source(core, "nodes", False, partial(read_node, use_pod_cidr), named("Node"))
        self.pods = Source(core, "pods", True, read_endpoint, lambda _namespace, _name: None)
        self.namespaces = Source(
            core,
            "namespaces",
            False,
            read_namespace_profile,
            lambda _namespace, name: profile_key(NAMESPACE_PROFILE + name),
        )
        self.accounts = Source(
            core,
            "serviceaccounts",
            True,
            read_account_profile,
            lambda namespace, name: profile_key(f"{SERVICE_ACCOUNT_PROFILE}{namespace}.{name}"),
        )
        self.policies = Source(
            "/apis/networking.k8s.io/v1", "networkpolicies", True, read_network_policy, policy_key
        )
        self.cluster_policies = Source(
            "/apis/policy.networking.k8s.io/v1alpha2",
            "clusternetworkpolicies",
            False,
            read_cluster_policy,
            lambda _namespace, _name: None,
        )
        self.raw_pods = Source(core, "pods", True, pods.read_pod, PodKey)
        self.raw_namespaces = Source(
            core, "namespaces", False, pods.read_namespace, lambda _namespace, name: NamespaceKey(name)
        )
        self.machines, self.instances = (
            Source(_KUBEVIRT, key.collection[1], True, partial(pods.read_metadata, key), key)
            for key in (VirtualMachineKey, VirtualMachineInstanceKey)
        )
        self.services = Source(core, "services", True, services.read_service, ServiceKey)
        self.slices = slices_source("v1")
        self.secrets = Source(core, "secrets", True, services.read_secret, SecretKey)
        group = f"/apis/{GROUP_VERSION}"
        self.custom = {
            kind: Source(
                group,
                "ipamconfigs" if kind == "IPAMConfiguration" else row.plural,
                row.namespaced,
                partial(read_custom, kind),
                named(kind),
            )
            for kind, row in KINDS.items()
            if kind not in _ELSEWHERE
        }
        self.custom["LiveMigration"] = Source(
            _KUBEVIRT, "virtualmachineinstancemigrations", True, read_migration, named("LiveMigration")
        )
        self.blocks = Source(group, "ipamblocks", False, partial(read_ipam, ipam.Block), block_key)
        self.affinities = Source(
            group, "blockaffinities", False, partial(read_ipam, ipam.Affinity), lambda _namespace, _name: None
        )
        self.handles = Source(
            group,
            "ipamhandles",
            False,
            partial(read_ipam, ipam.Handle),
            lambda _namespace, name: HandleKey(name),
        )
        self.ipam_config = Source(
            group, "ipamconfigs", False, partial(read_ipam, ipam.IPAMConfig), lambda _namespace, _name: None
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
        return self._kubernetes_place(key)

    def _kubernetes_place(self, key: Key) -> Place | None:
        """Of what is Kubernetes' own and stays so."""
        sources: dict[type[Key], Source] = {
            ServiceKey: self.services,
            SliceKey: self.slices,
            SecretKey: self.secrets,
            PodKey: self.raw_pods,
            NamespaceKey: self.raw_namespaces,
            VirtualMachineKey: self.machines,
            VirtualMachineInstanceKey: self.instances,
        }
        if isinstance(key, NativeKey):
            namespace = "" if isinstance(key, NamespaceKey) else key.namespace
            _check_names(key.name, namespace)
            return Place(sources[type(key)], key.name, namespace)
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
            name = resource_name(BlockKey(what.cidr)) if what.cidr else ""
            return [Query(self.blocks, selectors=_one(name))]
        if isinstance(what, AffinityList):
            return [Query(self.affinities, selectors=_affinity_selectors(what))]
        if isinstance(what, HandleList):
            return [Query(self.handles)]
        if isinstance(what, IPAMConfigList):
            return [Query(self.ipam_config, selectors={"fieldSelector": "metadata.name=default"})]
        return self._kubernetes_queries(what)

    def _kubernetes_queries(self, what: Listing) -> list[Query]:
        if isinstance(what, ServiceList):
            return [Query(self.services)]
        if isinstance(what, SliceList):
            return [Query(self.slices, selectors={} if what.headless else {"labelSelector": f"!{_HEADLESS}"})]
        if isinstance(what, PodList):
            only = {"fieldSelector": f"spec.nodeName={what.node}"} if what.node else {}
            return [Query(self.raw_pods, selectors=only)]
        if isinstance(what, NamespaceList):
            return [Query(self.raw_namespaces)]
        if isinstance(what, NativePolicyList):
            return [Query(self.policies)]
        if isinstance(what, VirtualMachineList):
            return [Query(self.machines)]
        if isinstance(what, VirtualMachineInstanceList):
            return [Query(self.instances)]
        if isinstance(what, SecretList):
            _check_names(what.name, what.namespace)
            return [Query(self.secrets, what.namespace, _one(what.name))]
        return []

    def _resource_queries(self, what: ResourceList) -> list[Query]:
        if what.kind == "Node":
            # A node follows its own: all of them would be a thousand objects that kubelets keep changing.
            return [Query(self.nodes, selectors=_one(what.name))]
        if what.kind == "WorkloadEndpoint":
            return [Query(self.pods, what.namespace, _pod_selectors(what.name_prefix))]
        if what.kind == "Profile":
            return [Query(self.namespaces), Query(self.accounts)]
        source = self.custom.get(what.kind)
        if source is None:
            return []
        own = Query(source, what.namespace, _one(what.name))
        if what.kind == "NetworkPolicy":
            return [own, Query(self.policies, what.namespace)]
        return [own, Query(self.cluster_policies)] if what.kind == "GlobalNetworkPolicy" else [own]


def slices_source(version: str) -> Source:
    """Where what is behind services is: EndpointSlices of a version, or ('') Endpoints."""
    if version:
        group = f"{services.DISCOVERY}/{version}"
        return Source(group, "endpointslices", True, services.read_slice, SliceKey)
    return Source("/api/v1", "endpoints", True, services.read_endpoints, SliceKey)


def _one(name: str) -> dict[str, str]:
    """By name; '': all."""
    return {"fieldSelector": f"metadata.name={name}"} if name else {}


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
        return {"fieldSelector": "spec.nodeName!="}  # a pod without a node has no endpoint
    return {"fieldSelector": f"metadata.name={ids.pod},spec.nodeName={ids.node}"}


def _check_names(*names: str) -> None:
    """They become part of a path: these would be another object's, or a collection's."""
    for name in names:
        if name in (".", "..") or "/" in name or "%" in name:
            raise ValidationError([FieldError("metadata.name", name, "invalid resource name")])


def _valid(key: ResourceKey, place: Place | None) -> Place | None:
    _check_names(key.name, key.namespace)
    if place is not None and place.source.namespaced and not place.namespace:
        raise ValidationError([FieldError("metadata.namespace", "", "field must be set")])
    return place


# --- reading ------------------------------------------------------------------------------------


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
