"""BGPConfiguration, BGPPeer and BGPFilter."""

from tortie.datastore.types.meta import ASNumber, Resource, SecretKeyRef, Spec


class BGPPassword(Spec, frozen=True, kw_only=True):
    secretKeyRef: SecretKeyRef | None = None


class CIDRBlock(Spec, frozen=True, kw_only=True):
    cidr: str = ""


class Community(Spec, frozen=True, kw_only=True):
    name: str = ""
    value: str = ""  # aa:nn or aa:nn:mm


class PrefixAdvertisement(Spec, frozen=True, kw_only=True):
    cidr: str = ""
    communities: tuple[str, ...] = ()  # values, or names of `communities`


class BGPConfigurationSpec(Spec, frozen=True, kw_only=True):
    logSeverityScreen: str = ""
    nodeToNodeMeshEnabled: bool | None = None  # None: enabled
    asNumber: ASNumber | None = None  # None: 64512
    serviceLoadBalancerIPs: tuple[CIDRBlock, ...] = ()
    serviceExternalIPs: tuple[CIDRBlock, ...] = ()
    serviceClusterIPs: tuple[CIDRBlock, ...] = ()
    serviceLoadBalancerAggregation: str | None = None  # Enabled | Disabled
    communities: tuple[Community, ...] = ()
    prefixAdvertisements: tuple[PrefixAdvertisement, ...] = ()
    listenPort: int = 0  # 0: 179
    nodeMeshPassword: BGPPassword | None = None
    nodeMeshMaxRestartTime: str | None = None  # Go duration
    bindMode: str | None = None  # None | NodeIP
    ignoredInterfaces: tuple[str, ...] = ()
    localWorkloadPeeringIPV4: str = ""
    localWorkloadPeeringIPV6: str = ""
    programClusterRoutes: str | None = None
    ipv4NormalRoutePriority: int | None = None
    ipv6NormalRoutePriority: int | None = None


class BGPConfiguration(Resource, frozen=True, kw_only=True, tag="BGPConfiguration"):
    spec: BGPConfigurationSpec = BGPConfigurationSpec()


class BGPPeerSpec(Spec, frozen=True, kw_only=True):
    node: str = ""
    nodeSelector: str = ""
    peerIP: str = ""  # ip, v4:port or [v6]:port
    asNumber: ASNumber = ASNumber(0)
    localASNumber: ASNumber | None = None
    peerSelector: str = ""
    keepOriginalNextHop: bool = False
    nextHopMode: str | None = None  # Auto | Self | Keep
    password: BGPPassword | None = None
    sourceAddress: str = ""  # UseNodeIP | None; "" reads as UseNodeIP
    maxRestartTime: str | None = None
    keepaliveTime: str | None = None
    numAllowedLocalASNumbers: int | None = None
    ttlSecurity: int | None = None  # hops
    reachableBy: str = ""
    filters: tuple[str, ...] = ()
    localWorkloadSelector: str = ""
    reversePeering: str | None = None  # Auto | Manual


class BGPPeer(Resource, frozen=True, kw_only=True, tag="BGPPeer"):
    spec: BGPPeerSpec = BGPPeerSpec()


class PrefixLength(Spec, frozen=True, kw_only=True):
    min: int | None = None
    max: int | None = None


class CommunityMatch(Spec, frozen=True, kw_only=True):
    values: tuple[str, ...] = ()


class AddCommunity(Spec, frozen=True, kw_only=True):
    value: str | None = None


class PrependASPath(Spec, frozen=True, kw_only=True):
    prefix: tuple[ASNumber, ...] = ()


class SetPriority(Spec, frozen=True, kw_only=True):
    value: int | None = None


class FilterOperation(Spec, frozen=True, kw_only=True):
    addCommunity: AddCommunity | None = None
    prependASPath: PrependASPath | None = None
    setPriority: SetPriority | None = None


class FilterRule(Spec, frozen=True, kw_only=True):
    cidr: str = ""
    prefixLength: PrefixLength | None = None
    source: str = ""  # RemotePeers
    interface: str = ""
    matchOperator: str = ""  # Equal | NotEqual | In | NotIn
    peerType: str = ""  # eBGP | iBGP
    communities: CommunityMatch | None = None
    asPathPrefix: tuple[ASNumber, ...] = ()
    priority: int | None = None
    action: str = ""  # Accept | Reject
    operations: tuple[FilterOperation, ...] = ()


class BGPFilterSpec(Spec, frozen=True, kw_only=True):
    exportV4: tuple[FilterRule, ...] = ()
    importV4: tuple[FilterRule, ...] = ()
    exportV6: tuple[FilterRule, ...] = ()
    importV6: tuple[FilterRule, ...] = ()


class BGPFilter(Resource, frozen=True, kw_only=True, tag="BGPFilter"):
    spec: BGPFilterSpec = BGPFilterSpec()
