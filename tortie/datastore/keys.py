"""What is stored where: typed keys, typed lists, and Calico's etcd paths for both.

A key names one object in any datastore; `path()` is its etcd key and `parse()` the inverse
(reference: Calico data model, etcd keys). A Listing names a set of objects; the etcd backend turns
it into a prefix and re-checks each key, because `pod-` is also a prefix of `pod--1`.

What is Kubernetes' own, and only there, has its keys in nativekeys.py.
"""

import ipaddress
import re
from dataclasses import dataclass

from tortie.datastore.kinds import BY_PLURAL, KINDS
from tortie.datastore.nativekeys import (
    NamespaceKey,
    NamespaceList,
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
    parse_native,
)
from tortie.datastore.types import ipam
from tortie.datastore.types.meta import Resource

_RESOURCES = "/calico/resources/v3/projectcalico.org/"
_IPAM = "/calico/ipam/v2/"
_FELIX = "/calico/felix/"
NO_REGION = "no-region"  # the <region> segment unless an OpenStack region is configured


@dataclass(frozen=True, slots=True)
class ResourceKey:
    kind: str
    name: str
    namespace: str = ""

    def path(self) -> str:
        return _RESOURCES + "/".join(filter(None, [KINDS[self.kind].plural, self.namespace, self.name]))

    @property
    def type(self) -> type[Resource]:
        return KINDS[self.kind].type

    def __str__(self) -> str:
        return f"{self.kind}({self.namespace + '/' if self.namespace else ''}{self.name})"


@dataclass(frozen=True, slots=True)
class BlockKey:
    cidr: str  # masked network, compressed lower-case form
    type = ipam.Block

    def path(self) -> str:
        return f"{_IPAM}assignment/ipv{ip_version(self.cidr)}/block/{self.cidr.replace('/', '-')}"

    def __str__(self) -> str:
        return f"IPAMBlock({self.cidr})"


@dataclass(frozen=True, slots=True)
class AffinityKey:
    cidr: str
    host: str
    owner_type: str = "host"  # host | virtual
    type = ipam.Affinity

    def path(self) -> str:
        version = ip_version(self.cidr)
        return f"{_IPAM}{self.owner_type}/{self.host}/ipv{version}/block/{self.cidr.replace('/', '-')}"

    def __str__(self) -> str:
        return f"BlockAffinity({self.owner_type}:{self.host} {self.cidr})"


@dataclass(frozen=True, slots=True)
class HandleKey:
    handle: str
    type = ipam.Handle

    def path(self) -> str:
        return f"{_IPAM}handle/{self.handle}"

    def __str__(self) -> str:
        return f"IPAMHandle({self.handle})"


@dataclass(frozen=True, slots=True)
class IPAMConfigKey:
    type = ipam.IPAMConfig

    def path(self) -> str:
        return f"{_IPAM}config"

    def __str__(self) -> str:
        return "IPAMConfig(default)"


@dataclass(frozen=True, slots=True)
class IPAMHostKey:
    host: str
    type = ipam.IPAMHost

    def path(self) -> str:
        return f"{_IPAM}host/{self.host}"

    def __str__(self) -> str:
        return f"IPAMHost({self.host})"


@dataclass(frozen=True, slots=True)
class WorkloadStatusKey:
    host: str
    orchestrator: str
    workload: str  # <namespace>/<pod>
    endpoint: str
    region: str = NO_REGION
    type = ipam.EndpointStatus

    def path(self) -> str:
        workload, endpoint = escape(self.workload), escape(self.endpoint)
        return (
            f"{_FELIX}v2/{self.region}/host/{self.host}/workload/{escape(self.orchestrator)}/"
            f"{workload}/endpoint/{endpoint}"
        )

    def __str__(self) -> str:
        return f"WorkloadEndpointStatus({self.host} {self.orchestrator} {self.workload} {self.endpoint})"


@dataclass(frozen=True, slots=True)
class HostEndpointStatusKey:
    host: str
    endpoint: str
    type = ipam.EndpointStatus

    def path(self) -> str:
        return f"{_FELIX}v1/host/{self.host}/endpoint/{escape(self.endpoint)}"

    def __str__(self) -> str:
        return f"HostEndpointStatus({self.host} {self.endpoint})"


@dataclass(frozen=True, slots=True)
class ProcessStatusKey:
    host: str
    last: bool = False  # the report without a lease, which outlives the process
    region: str = NO_REGION
    type = ipam.ProcessStatus

    def path(self) -> str:
        return (
            f"{_FELIX}v2/{self.region}/host/{self.host}/{'last_reported_status' if self.last else 'status'}"
        )

    def __str__(self) -> str:
        return f"ProcessStatus({self.host})"


Key = (
    ResourceKey
    | BlockKey
    | AffinityKey
    | HandleKey
    | IPAMConfigKey
    | IPAMHostKey
    | WorkloadStatusKey
    | HostEndpointStatusKey
    | ProcessStatusKey
    | ServiceKey
    | SliceKey
    | SecretKey
    | PodKey
    | NamespaceKey
    | VirtualMachineKey
    | VirtualMachineInstanceKey
)


# --- sets of objects ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResourceList:
    """All resources of a kind, or those of a namespace, or those whose name starts with a prefix, or one.

    `name_prefix` and `name` need the namespace of a namespaced kind, as in Calico.
    """

    kind: str
    namespace: str = ""
    name_prefix: str = ""
    name: str = ""  # of the one that is wanted

    def prefix(self) -> str:
        path = f"{_RESOURCES}{KINDS[self.kind].plural}/"
        if self.namespace:
            path += f"{self.namespace}/"
        return path + (self.name or self.name_prefix)

    def contains(self, key: Key) -> bool:
        return (
            isinstance(key, ResourceKey)
            and key.kind == self.kind
            and self.namespace in ("", key.namespace)
            and key.name.startswith(self.name_prefix)
            and self.name in ("", key.name)
        )


@dataclass(frozen=True, slots=True)
class BlockList:
    version: int = 0  # 4, 6 or 0 for both
    cidr: str = ""  # of the one that is wanted

    def prefix(self) -> str:
        if self.cidr:
            return BlockKey(self.cidr).path()
        return f"{_IPAM}assignment/ipv{self.version}/block/" if self.version else f"{_IPAM}assignment/"

    def contains(self, key: Key) -> bool:
        return (
            isinstance(key, BlockKey)
            and self.version in (0, ip_version(key.cidr))
            and self.cidr in ("", key.cidr)
        )


@dataclass(frozen=True, slots=True)
class AffinityList:
    """Affinities of one owner, of one owner type, or (owner_type '') of both types."""

    host: str = ""
    owner_type: str = "host"
    version: int = 0

    def prefix(self) -> str:
        if not self.owner_type:
            return _IPAM
        path = f"{_IPAM}{self.owner_type}/"
        if self.host:
            path += f"{self.host}/"
            if self.version:
                path += f"ipv{self.version}/block/"
        return path

    def contains(self, key: Key) -> bool:
        return (
            isinstance(key, AffinityKey)
            and self.owner_type in ("", key.owner_type)
            and self.host in ("", key.host)
            and self.version in (0, ip_version(key.cidr))
        )


@dataclass(frozen=True, slots=True)
class HandleList:
    def prefix(self) -> str:
        return f"{_IPAM}handle/"

    def contains(self, key: Key) -> bool:
        return isinstance(key, HandleKey)


@dataclass(frozen=True, slots=True)
class IPAMConfigList:
    """The one configuration object of IPAM, as something that can be watched."""

    def prefix(self) -> str:
        return f"{_IPAM}config"

    def contains(self, key: Key) -> bool:
        return isinstance(key, IPAMConfigKey)


@dataclass(frozen=True, slots=True)
class WorkloadStatusList:
    host: str
    region: str = NO_REGION

    def prefix(self) -> str:
        return f"{_FELIX}v2/{self.region}/host/{self.host}/workload/"

    def contains(self, key: Key) -> bool:
        return isinstance(key, WorkloadStatusKey) and key.host == self.host


@dataclass(frozen=True, slots=True)
class HostEndpointStatusList:
    host: str

    def prefix(self) -> str:
        return f"{_FELIX}v1/host/{self.host}/endpoint/"

    def contains(self, key: Key) -> bool:
        return isinstance(key, HostEndpointStatusKey) and key.host == self.host


Listing = (
    ResourceList
    | BlockList
    | AffinityList
    | HandleList
    | IPAMConfigList
    | WorkloadStatusList
    | HostEndpointStatusList
    | ServiceList
    | SliceList
    | SecretList
    | PodList
    | NamespaceList
    | NativePolicyList
    | VirtualMachineList
    | VirtualMachineInstanceList
)


# --- from a path --------------------------------------------------------------------------------

_NAME = r"([^/]+)"
_BLOCK = r"ipv([46])/block/([^/]+)"
_PATTERNS = {  # what the path is of -> its pattern
    "resource": re.compile(rf"{_RESOURCES}([a-z]+)/(?:{_NAME}/)?{_NAME}"),
    "block": re.compile(rf"{_IPAM}assignment/{_BLOCK}"),
    "affinity": re.compile(rf"{_IPAM}(host|virtual)/{_NAME}/{_BLOCK}"),
    "handle": re.compile(rf"{_IPAM}handle/{_NAME}"),
    "host": re.compile(rf"{_FELIX}v1/host/{_NAME}/endpoint/{_NAME}"),
    "workload": re.compile(rf"{_FELIX}v2/{_NAME}/host/{_NAME}/workload/{_NAME}/{_NAME}/endpoint/{_NAME}"),
}


def parse(path: str) -> Key | None:
    """The key of a path, or None if the path is not one of ours (or not well-formed)."""
    if path == IPAMConfigKey().path():
        return IPAMConfigKey()
    if match := _PATTERNS["resource"].fullmatch(path):
        plural, namespace, name = match[1], match[2] or "", match[3]
        kind = BY_PLURAL.get(plural)
        return (
            ResourceKey(kind.name, name, namespace) if kind and kind.namespaced == bool(namespace) else None
        )
    if match := _PATTERNS["block"].fullmatch(path):
        cidr = _cidr(match[1], match[2])
        return BlockKey(cidr) if cidr else None
    if match := _PATTERNS["affinity"].fullmatch(path):
        cidr = _cidr(match[3], match[4])
        return AffinityKey(cidr, match[2], match[1]) if cidr else None
    if match := _PATTERNS["handle"].fullmatch(path):
        return HandleKey(match[1])
    if match := _PATTERNS["host"].fullmatch(path):
        return HostEndpointStatusKey(match[1], unescape(match[2]))
    if match := _PATTERNS["workload"].fullmatch(path):
        region, host, orchestrator, workload, endpoint = match.groups()
        return WorkloadStatusKey(host, unescape(orchestrator), unescape(workload), unescape(endpoint), region)
    return parse_native(path)


def _cidr(version: str, segment: str) -> str:
    """`10.0.0.0-26` as a canonical CIDR of that version, or ''."""
    address, _, length = segment.rpartition("-")
    try:
        network = ipaddress.ip_network(f"{address}/{length}")
    except ValueError:
        return ""
    return str(network) if str(network.version) == version and length.isdecimal() else ""


def ip_version(cidr: str) -> int:
    """4 or 6, of a CIDR or address already known to be valid."""
    return 6 if ":" in cidr else 4


def escape(segment: str) -> str:
    """Felix's escaping of one path segment of a status key."""
    return segment.replace("%", "%25").replace("/", "%2f")


def unescape(segment: str) -> str:
    return segment.replace("%2f", "/").replace("%25", "%")


def key_of(resource: Resource) -> ResourceKey:
    return ResourceKey(resource.KIND, resource.metadata.name, resource.metadata.namespace)
