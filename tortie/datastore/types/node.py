"""Node and CalicoNodeStatus."""

from msgspec import UNSET, UnsetType

from tortie.datastore.types.meta import ASNumber, Resource, Spec


class NodeBGPSpec(Spec, frozen=True, kw_only=True):
    asNumber: ASNumber | None = None  # None: the cluster's
    ipv4Address: str = ""  # with prefix length; host bits kept
    ipv6Address: str = ""
    ipv4IPIPTunnelAddr: str = ""
    routeReflectorClusterID: str = ""  # IPv4 form; set: this node reflects


class OrchRef(Spec, frozen=True, kw_only=True, omit_defaults=False):
    nodeName: str = ""
    orchestrator: str = ""


class NodeWireguardSpec(Spec, frozen=True, kw_only=True):
    interfaceIPv4Address: str = ""
    interfaceIPv6Address: str = ""


class NodeAddress(Spec, frozen=True, kw_only=True):
    address: str
    type: str = ""  # CalicoNodeIP | InternalIP | ExternalIP


class NodeInterface(Spec, frozen=True, kw_only=True):
    name: str = ""
    addresses: tuple[str, ...] = ()


class NodeSpec(Spec, frozen=True, kw_only=True):
    bgp: NodeBGPSpec | None = None
    ipv4VXLANTunnelAddr: str = ""
    vxlanTunnelMACAddr: str = ""
    ipv6VXLANTunnelAddr: str = ""
    vxlanTunnelMACAddrV6: str = ""
    orchRefs: tuple[OrchRef, ...] = ()
    wireguard: NodeWireguardSpec | None = None
    addresses: tuple[NodeAddress, ...] = ()
    interfaces: tuple[NodeInterface, ...] = ()


class NodeStatus(Spec, frozen=True, kw_only=True):
    wireguardPublicKey: str = ""
    wireguardPublicKeyV6: str = ""
    podCIDRs: tuple[str, ...] = ()


class Node(Resource, frozen=True, kw_only=True, tag="Node"):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class CalicoNodeStatusSpec(Spec, frozen=True, kw_only=True):
    node: str = ""
    classes: tuple[str, ...] = ()  # Agent | BGP | Routes
    updatePeriodSeconds: int | None = None


class BGPDaemonStatus(Spec, frozen=True, kw_only=True):
    state: str = ""  # Ready | NotReady
    version: str = ""
    routerID: str = ""
    lastBootTime: str = ""
    lastReconfigurationTime: str = ""


class AgentStatus(Spec, frozen=True, kw_only=True, omit_defaults=False):
    birdV4: BGPDaemonStatus = BGPDaemonStatus()
    birdV6: BGPDaemonStatus = BGPDaemonStatus()


class PeerStatus(Spec, frozen=True, kw_only=True):
    peerIP: str = ""
    type: str = ""  # NodeMesh | NodePeer | GlobalPeer
    state: str = ""  # Idle Connect Active OpenSent OpenConfirm Established Close
    since: str = ""


class BGPStatus(Spec, frozen=True, kw_only=True, omit_defaults=False):
    numberEstablishedV4: int = 0
    numberNotEstablishedV4: int = 0
    numberEstablishedV6: int = 0
    numberNotEstablishedV6: int = 0
    peersV4: tuple[PeerStatus, ...] | UnsetType = UNSET
    peersV6: tuple[PeerStatus, ...] | UnsetType = UNSET


class LearnedFrom(Spec, frozen=True, kw_only=True):
    sourceType: str = ""  # Kernel Static Direct NodeMesh BGPPeer
    peerIP: str = ""


class RouteStatus(Spec, frozen=True, kw_only=True):
    type: str = ""  # FIB | RIB
    destination: str = ""
    gateway: str = ""
    interface: str = ""
    learnedFrom: LearnedFrom = LearnedFrom()


class RoutesStatus(Spec, frozen=True, kw_only=True):
    routesV4: tuple[RouteStatus, ...] = ()
    routesV6: tuple[RouteStatus, ...] = ()


class CalicoNodeStatusStatus(Spec, frozen=True, kw_only=True, omit_defaults=False):
    lastUpdated: str | None = None
    agent: AgentStatus = AgentStatus()
    bgp: BGPStatus = BGPStatus()
    routes: RoutesStatus = RoutesStatus()


class CalicoNodeStatus(Resource, frozen=True, kw_only=True, tag="CalicoNodeStatus"):
    spec: CalicoNodeStatusSpec = CalicoNodeStatusSpec()
    status: CalicoNodeStatusStatus = CalicoNodeStatusStatus()
