"""BGPConfiguration and BGPPeer."""

import re
from typing import TypeVar

from msgspec import structs

from tortie.datastore.types.bgp import (
    BGPConfiguration,
    BGPConfigurationSpec,
    BGPPeer,
    BGPPeerSpec,
    CIDRBlock,
    PrefixAdvertisement,
)
from tortie.datastore.validate.addresses import (
    canonical_cidr,
    ip,
    ipv4,
    ipv6,
    net,
    parse_ip,
    parse_peer,
)
from tortie.datastore.validate.addresses import (
    peer as peer_address,
)
from tortie.datastore.validate.fields import (
    Check,
    Problems,
    integer,
    is_empty,
    listing,
    matching,
    one_of,
    struct,
    tested,
    text,
)
from tortie.datastore.validate.formats import (
    canonical_duration,
    duration,
    ignored_interface,
    name,
    selector,
)

B = TypeVar("B", CIDRBlock, PrefixAdvertisement)

MAX_PRIORITY = 2_147_483_646  # of a kernel route; 2^31-1 is no valid metric
_MAX_ITEMS = 500  # communities and advertisements, the schema's limit
_COMMUNITY = re.compile(r"([0-9]{1,10}):([0-9]{1,10})(?::([0-9]{1,10}))?", re.ASCII)


def is_community(value: str) -> bool:
    """`aa:nn` of 16 bits each (RFC 1997), or `aa:nn:mm` of 32 bits each (RFC 8092)."""
    if not (match := _COMMUNITY.fullmatch(value)):
        return False
    largest = 0xFFFF if match[3] is None else 0xFFFFFFFF
    return all(int(part) <= largest for part in match.groups() if part is not None)


community = tested(
    is_community,
    "invalid community value or format used: must be aa:nn of 16 bits or aa:nn:mm of 32 bits each",
    40,
)

# --- BGPConfiguration ---------------------------------------------------------------------------


def configuration_defaults(configuration: BGPConfiguration) -> BGPConfiguration:
    spec = configuration.spec
    spec = structs.replace(
        spec,
        logSeverityScreen=spec.logSeverityScreen or "Info",
        serviceLoadBalancerAggregation=spec.serviceLoadBalancerAggregation or "Enabled",
        nodeMeshMaxRestartTime=canonical_duration(spec.nodeMeshMaxRestartTime),
        serviceLoadBalancerIPs=_canonical(spec.serviceLoadBalancerIPs),
        serviceExternalIPs=_canonical(spec.serviceExternalIPs),
        serviceClusterIPs=_canonical(spec.serviceClusterIPs),
        prefixAdvertisements=_canonical(spec.prefixAdvertisements),
    )
    return structs.replace(configuration, spec=spec)


def _canonical(blocks: tuple[B, ...]) -> tuple[B, ...]:
    return tuple(structs.replace(block, cidr=canonical_cidr(block.cidr)) for block in blocks)


_ONLY_GLOBAL = {  # field that only the resource `default` may have -> its name in Calico's message
    "nodeToNodeMeshEnabled": "nodeToNodeMeshEnabled",
    "asNumber": "ASNumber",
    "serviceLoadBalancerIPs": "ServiceLoadBalancerIPs",
    "serviceExternalIPs": "ServiceExternalIPs",
    "serviceClusterIPs": "ServiceClusterIPs",
    "nodeMeshPassword": "nodeMeshPassword",
    "nodeMeshMaxRestartTime": "nodeMeshMaxRestartTime",
}


def _only_global(problems: Problems, _path: str, configuration: BGPConfiguration) -> None:
    if configuration.name == "default":
        return
    for field, label in _ONLY_GLOBAL.items():
        if not is_empty(getattr(configuration.spec, field)):
            where = f"BGPConfiguration.Spec.{label[0].upper()}{label[1:]}"
            problems.add(where, None, f"Cannot set {label} on a non default BGP Configuration.")


def _mesh_only(problems: Problems, path: str, spec: BGPConfigurationSpec) -> None:
    if spec.nodeToNodeMeshEnabled is not False:
        return
    for field in ("nodeMeshPassword", "nodeMeshMaxRestartTime"):
        if getattr(spec, field) is not None:
            reason = f"{field} cannot be set when nodeToNodeMeshEnabled is false"
            problems.add(f"{path}.{field}", None, reason)


def _communities_used(problems: Problems, path: str, spec: BGPConfigurationSpec) -> None:
    if spec.communities and not spec.prefixAdvertisements:
        reason = "communities are defined but not used in prefixAdvertisements"
        problems.add(f"{path}.communities", None, reason)
    defined = {entry.name for entry in spec.communities}
    for index, advertisement in enumerate(spec.prefixAdvertisements):
        for position, used in enumerate(advertisement.communities):
            if not is_community(used) and used not in defined:
                where = f"{path}.prefixAdvertisements[{index}].communities[{position}]"
                problems.add(where, used, "community used is invalid or not defined.")


_secret_key = matching(r"[-._a-zA-Z0-9]+", "invalid key of a Secret", 253)  # Kubernetes' form and limit
_secret = struct({"name": name, "key": _secret_key}, required=("key",))
_password = struct({"secretKeyRef": _secret})
_blocks = listing(struct({"cidr": net}))
_priority = integer(1, MAX_PRIORITY)

configuration: Check = struct(
    {
        "spec": struct(
            {
                "logSeverityScreen": one_of(
                    "Trace", "Debug", "Info", "Warning", "Error", "Fatal", any_case=True
                ),
                "serviceLoadBalancerIPs": _blocks,
                "serviceExternalIPs": _blocks,
                "serviceClusterIPs": _blocks,
                "serviceLoadBalancerAggregation": one_of("Enabled", "Disabled"),
                "communities": listing(
                    struct({"name": name, "value": community}, required=("name", "value")), most=_MAX_ITEMS
                ),
                "prefixAdvertisements": listing(
                    struct(
                        {"cidr": net, "communities": listing(text(), most=50)},
                        required=("cidr", "communities"),
                    ),
                    most=_MAX_ITEMS,
                ),
                "listenPort": integer(0, 65535),
                "nodeMeshPassword": _password,
                "nodeMeshMaxRestartTime": duration,
                "bindMode": one_of("None", "NodeIP"),
                "ignoredInterfaces": listing(ignored_interface, unique=True),
                "localWorkloadPeeringIPV4": ipv4,
                "localWorkloadPeeringIPV6": ipv6,
                "programClusterRoutes": one_of(
                    "Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"
                ),
                "ipv4NormalRoutePriority": _priority,
                "ipv6NormalRoutePriority": _priority,
            },
            _mesh_only,
            _communities_used,
        )
    },
    _only_global,
)

# --- BGPPeer ------------------------------------------------------------------------------------


def peer_defaults(peer: BGPPeer) -> BGPPeer:
    """Calico's client stores a peer as it is; only durations get Go's spelling."""
    spec = structs.replace(
        peer.spec,
        maxRestartTime=canonical_duration(peer.spec.maxRestartTime),
        keepaliveTime=canonical_duration(peer.spec.keepaliveTime),
    )
    return structs.replace(peer, spec=spec)


_EXCLUSIVE = [  # two fields that exclude each other, and the reason given
    ("node", "nodeSelector", "node and nodeSelector cannot both be set"),
    ("peerIP", "peerSelector", "peerIP and peerSelector cannot both be set"),
    ("localWorkloadSelector", "peerIP", "peerIP must be empty when localWorkloadSelector is set"),
    ("localWorkloadSelector", "peerSelector", "peerSelector must be empty when localWorkloadSelector is set"),
    ("peerSelector", "asNumber", "asNumber must be empty when peerSelector is set"),
]


def _exclusive(problems: Problems, path: str, spec: BGPPeerSpec) -> None:
    for first, second, reason in _EXCLUSIVE:
        if getattr(spec, first) and getattr(spec, second):
            problems.add(f"{path}.{second}", getattr(spec, second), reason)
    if spec.localWorkloadSelector and not spec.asNumber:
        reason = "asNumber is required when localWorkloadSelector is set"
        problems.add(f"{path}.asNumber", None, reason)
    if spec.keepOriginalNextHop and spec.nextHopMode is not None:
        problems.add(
            f"{path}.nextHopMode", spec.nextHopMode,
            "keepOriginalNextHop and nextHopMode cannot both be set; keepOriginalNextHop is deprecated, use "
            "nextHopMode instead",
        )  # fmt: skip


def _reachable_by(problems: Problems, path: str, spec: BGPPeerSpec) -> None:
    if not spec.reachableBy:
        return
    where = f"{path}.reachableBy"
    if not spec.peerIP:
        problems.add(where, spec.reachableBy, "reachableBy must be empty when peerIP is empty")
        return
    gateway, target = parse_ip(spec.reachableBy), parse_peer(spec.peerIP)
    if gateway and target and gateway.version != target[0].version:
        reason = "ReachableBy and PeerIP address family mismatched"
        problems.add(where, spec.reachableBy, reason)


peer: Check = struct(
    {
        "spec": struct(
            {
                "node": name,
                "nodeSelector": selector,
                "peerIP": peer_address,
                "peerSelector": selector,
                "nextHopMode": one_of("Auto", "Self", "Keep"),
                "password": _password,
                "sourceAddress": one_of("UseNodeIP", "None"),
                "maxRestartTime": duration,
                "keepaliveTime": duration,
                "numAllowedLocalASNumbers": integer(0, 2**31 - 1),
                "ttlSecurity": integer(0, 255),
                "reachableBy": ip,
                "filters": listing(name),
                "localWorkloadSelector": selector,
                "reversePeering": one_of("Auto", "Manual"),
            },
            _exclusive,
            _reachable_by,
        )
    }
)
