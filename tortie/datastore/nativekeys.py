"""Keys and lists of what is Kubernetes' own: Services and what is behind them, Secrets, Pods, Namespaces;
and of KubeVirt's machines, which is beside it.

Only a Kubernetes API has them; their paths are the API's.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, get_args

from tortie.datastore.types import pod, service

_CORE = "/api/v1/"
_SLICES = "/apis/discovery.k8s.io/v1/"
_KUBEVIRT = "/apis/kubevirt.io/v1/"


@dataclass(frozen=True, slots=True)
class _Namespaced:
    """An object of `collection`; keys of two kinds are never equal."""

    namespace: str
    name: str
    collection: ClassVar[tuple[str, str]]  # the API's path, and the plural

    def path(self) -> str:
        api, plural = self.collection
        return f"{api}namespaces/{self.namespace}/{plural}/{self.name}"

    def __str__(self) -> str:
        return f"{type(self).__name__.removesuffix('Key')}({self.namespace}/{self.name})"


@dataclass(frozen=True, slots=True)
class ServiceKey(_Namespaced):
    type = service.Service
    collection = (_CORE, "services")


@dataclass(frozen=True, slots=True)
class SliceKey(_Namespaced):
    """An EndpointSlice; of a cluster without slices, the Endpoints of the service `name`."""

    type = service.EndpointSlice
    collection = (_SLICES, "endpointslices")

    def __str__(self) -> str:
        return f"EndpointSlice({self.namespace}/{self.name})"


@dataclass(frozen=True, slots=True)
class SecretKey(_Namespaced):
    type = service.Secret
    collection = (_CORE, "secrets")


@dataclass(frozen=True, slots=True)
class PodKey(_Namespaced):
    """A pod as such; as a workload it is a WorkloadEndpoint."""

    type = pod.Pod
    collection = (_CORE, "pods")


@dataclass(frozen=True, slots=True)
class NamespaceKey:
    """A namespace as such; its labels are those of a Profile."""

    name: str
    type = pod.Metadata

    def path(self) -> str:
        return f"{_CORE}namespaces/{self.name}"

    def __str__(self) -> str:
        return f"Namespace({self.name})"


@dataclass(frozen=True, slots=True)
class VirtualMachineKey(_Namespaced):
    """KubeVirt's VM, running or not; only what every object has is read of it."""

    type = pod.Metadata
    collection = (_KUBEVIRT, "virtualmachines")


@dataclass(frozen=True, slots=True)
class VirtualMachineInstanceKey(_Namespaced):
    """A VM while it runs; it has the VM's name, and is its own where there is no VM."""

    type = pod.Metadata
    collection = (_KUBEVIRT, "virtualmachineinstances")


# --- sets of objects ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServiceList:
    def prefix(self) -> str:
        return f"{_CORE}services"

    def contains(self, key: object) -> bool:
        return isinstance(key, ServiceKey)


@dataclass(frozen=True, slots=True)
class SliceList:
    headless: bool = True  # with those of services without an address of their own

    def prefix(self) -> str:
        return f"{_SLICES}endpointslices"

    def contains(self, key: object) -> bool:
        return isinstance(key, SliceKey)


@dataclass(frozen=True, slots=True)
class SecretList:
    """One Secret, as something that can be watched with the right to this one alone."""

    namespace: str
    name: str

    def prefix(self) -> str:
        return SecretKey(self.namespace, self.name).path()

    def contains(self, key: object) -> bool:
        return key == SecretKey(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class PodList:
    """All pods as such, also those that have no node yet; or those of one node."""

    node: str = ""  # its name in Kubernetes

    def prefix(self) -> str:
        return f"{_CORE}pods"

    def contains(self, key: object) -> bool:
        return isinstance(key, PodKey)


@dataclass(frozen=True, slots=True)
class NamespaceList:
    """All namespaces as such."""

    def prefix(self) -> str:
        return f"{_CORE}namespaces"

    def contains(self, key: object) -> bool:
        return isinstance(key, NamespaceKey)


@dataclass(frozen=True, slots=True)
class NativePolicyList:
    """Kubernetes' own NetworkPolicies as ours, without any of ours: these are there with etcd, too."""

    def prefix(self) -> str:
        return "/apis/networking.k8s.io/v1/networkpolicies"

    def contains(self, key: object) -> bool:
        return getattr(key, "kind", "") == "NetworkPolicy"


@dataclass(frozen=True, slots=True)
class VirtualMachineList:
    """All of KubeVirt's VMs; none where there is no KubeVirt."""

    def prefix(self) -> str:
        return f"{_KUBEVIRT}virtualmachines"

    def contains(self, key: object) -> bool:
        return isinstance(key, VirtualMachineKey)


@dataclass(frozen=True, slots=True)
class VirtualMachineInstanceList:
    def prefix(self) -> str:
        return f"{_KUBEVIRT}virtualmachineinstances"

    def contains(self, key: object) -> bool:
        return isinstance(key, VirtualMachineInstanceKey)


KUBERNETES_ONLY = (
    ServiceList,
    SliceList,
    SecretList,
    PodList,
    NamespaceList,
    NativePolicyList,
    VirtualMachineList,
    VirtualMachineInstanceList,
)


# --- from a path --------------------------------------------------------------------------------

_NamespacedKey = ServiceKey | SliceKey | SecretKey | PodKey | VirtualMachineKey | VirtualMachineInstanceKey
NativeKey = _NamespacedKey | NamespaceKey
_OBJECT = re.compile(r"/api(?:s/[.a-z0-9]+)?/v1/namespaces/([^/]+)/[a-z]+/([^/]+)")
_NAMESPACE = re.compile(rf"{_CORE}namespaces/([^/]+)")


def parse_native(path: str) -> NativeKey | None:
    """The key of a path, or None if it is none of these."""
    if match := _NAMESPACE.fullmatch(path):
        return NamespaceKey(match[1])
    if match := _OBJECT.fullmatch(path):
        candidates = (kind(*match.groups()) for kind in get_args(_NamespacedKey))
        return next((key for key in candidates if key.path() == path), None)
    return None
