"""The Kubernetes objects that ours come from, with the fields that are read and no others.

None is not given, which a selector tells apart from one that is there and empty.
"""

import msgspec

from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.service import EndpointPort


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Attribute names are the JSON names, as in the v3 types."""


class Requirement(_Part, frozen=True, kw_only=True):
    key: str
    operator: str  # In | NotIn | Exists | DoesNotExist
    values: tuple[str, ...] = ()


class LabelSelector(_Part, frozen=True, kw_only=True):
    matchLabels: dict[str, str] = {}
    matchExpressions: tuple[Requirement, ...] = ()


# --- networking.k8s.io/v1 -----------------------------------------------------------------------


class IPBlock(_Part, frozen=True, kw_only=True):
    cidr: str = ""
    excepted: tuple[str, ...] = msgspec.field(name="except", default=())


class Peer(_Part, frozen=True, kw_only=True):
    podSelector: LabelSelector | None = None
    namespaceSelector: LabelSelector | None = None
    ipBlock: IPBlock | None = None


class Port(_Part, frozen=True, kw_only=True):
    protocol: str | None = None
    port: int | str | None = None
    endPort: int | None = None


class IngressRule(_Part, frozen=True, kw_only=True):
    ports: tuple[Port, ...] = ()
    peers: tuple[Peer, ...] = msgspec.field(name="from", default=())


class EgressRule(_Part, frozen=True, kw_only=True):
    ports: tuple[Port, ...] = ()
    peers: tuple[Peer, ...] = msgspec.field(name="to", default=())


class NetworkPolicySpec(_Part, frozen=True, kw_only=True):
    podSelector: LabelSelector = LabelSelector()
    ingress: tuple[IngressRule, ...] = ()
    egress: tuple[EgressRule, ...] = ()
    policyTypes: tuple[str, ...] = ()


class KubernetesNetworkPolicy(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: NetworkPolicySpec = NetworkPolicySpec()


# --- policy.networking.k8s.io/v1alpha2 ----------------------------------------------------------


class NamespacedPods(_Part, frozen=True, kw_only=True):
    namespaceSelector: LabelSelector = LabelSelector()
    podSelector: LabelSelector = LabelSelector()


class Subject(_Part, frozen=True, kw_only=True):
    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None


class ClusterPeer(_Part, frozen=True, kw_only=True):
    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None
    networks: tuple[str, ...] = ()  # of an egress rule only


class PortRange(_Part, frozen=True, kw_only=True):
    start: int = 0
    end: int = 0


class DestinationPort(_Part, frozen=True, kw_only=True):
    number: int = 0
    range: PortRange | None = None


class ProtocolPort(_Part, frozen=True, kw_only=True):
    destinationPort: DestinationPort | None = None


class Protocol(_Part, frozen=True, kw_only=True):
    tcp: ProtocolPort | None = None
    udp: ProtocolPort | None = None
    sctp: ProtocolPort | None = None
    destinationNamedPort: str = ""


class ClusterIngressRule(_Part, frozen=True, kw_only=True):
    name: str = ""
    action: str = ""  # Accept | Deny | Pass
    peers: tuple[ClusterPeer, ...] = msgspec.field(name="from", default=())
    protocols: tuple[Protocol, ...] = ()


class ClusterEgressRule(_Part, frozen=True, kw_only=True):
    name: str = ""
    action: str = ""
    peers: tuple[ClusterPeer, ...] = msgspec.field(name="to", default=())
    protocols: tuple[Protocol, ...] = ()


class ClusterNetworkPolicySpec(_Part, frozen=True, kw_only=True):
    tier: str = ""  # Admin | Baseline
    priority: int = 0
    subject: Subject = Subject()
    ingress: tuple[ClusterIngressRule, ...] = ()
    egress: tuple[ClusterEgressRule, ...] = ()


class ClusterNetworkPolicy(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: ClusterNetworkPolicySpec = ClusterNetworkPolicySpec()


# --- v1 Node -----------------------------------------------------------------------------


class NodeSpec(_Part, frozen=True, kw_only=True):
    podCIDRs: tuple[str, ...] = ()


class Address(_Part, frozen=True, kw_only=True):
    type: str = ""
    address: str = ""


class NodeStatus(_Part, frozen=True, kw_only=True):
    addresses: tuple[Address, ...] = ()


class Node(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


# --- v1 Endpoints -------------------------------------------------------------------------------


class SubsetAddress(_Part, frozen=True, kw_only=True):
    ip: str = ""
    nodeName: str = ""


class Subset(_Part, frozen=True, kw_only=True):
    """Each of its addresses has each of its ports."""

    addresses: tuple[SubsetAddress, ...] = ()
    notReadyAddresses: tuple[SubsetAddress, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class Endpoints(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    subsets: tuple[Subset, ...] = ()
