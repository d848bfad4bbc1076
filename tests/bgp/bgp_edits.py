"""Every edit that a person can make to a BGPConfiguration, BGPPeer or BGPFilter: a table.

The base is two nodes with a mesh in both families; n1 has two routers besides: `tor` (AS 65020, with a
filter) and `spine` (AS 65021). An edit replaces a resource of the base by one that differs in the fields
named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.bgp.bgp_lab import POOL, POOL6, configuration, node_resource, peer_resource, pool_resource
from tortie.confd.snapshot import Snapshot
from tortie.datastore.types.bgp import (
    AddCommunity,
    BGPFilter,
    BGPFilterSpec,
    BGPPassword,
    CIDRBlock,
    Community,
    CommunityMatch,
    FilterOperation,
    FilterRule,
    PrefixAdvertisement,
    PrefixLength,
    PrependASPath,
    SetPriority,
)
from tortie.datastore.types.ipam import Affinity
from tortie.datastore.types.meta import ASNumber, ObjectMeta, SecretKeyRef

TOR, SPINE, MESH, MESH6 = "10.9.0.20", "10.9.0.21", "10.9.0.2", "fd09::2"
EVERYBODY = frozenset({TOR, SPINE, MESH, MESH6})
SECRETS: Mapping[tuple[str, str], bytes] = {("s", "k"): b"guessed?"}

_PASSWORD = BGPPassword(secretKeyRef=SecretKeyRef(name="s", key="k"))
_DENY = FilterRule(action="Reject", cidr="192.168.201.0/26", matchOperator="Equal")
_TOR = {"node": "n1", "peerIP": TOR, "asNumber": 65020, "filters": ("tor",)}


@dataclass(frozen=True)
class Edit:
    """`concerned`: sessions of n1 that it is about, which may start anew; `with_bird`: further ones that do
    with BIRD; `lost`: those that cannot be had, because the other side was not told."""

    kind: str
    fields: Mapping[str, Any]
    concerned: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    name: str = ""
    with_bird: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {', '.join(self.fields) or 'base'}"

    def apply(self, cluster: Snapshot) -> None:
        if self.kind == "BGPConfiguration":
            cluster.bgp[self.name or "default"] = configuration(self.name or "default", **self.fields)
        elif self.kind == "BGPPeer":
            spec = {**_TOR, **self.fields}
            cluster.peers["tor"] = peer_resource("tor", **spec)
        else:
            cluster.filters["tor"] = bgp_filter(**self.fields)


def apply(cluster: Snapshot, *edits: Edit) -> None:
    """The base with these."""
    base(cluster)
    for edit in edits:
        edit.apply(cluster)


def base(cluster: Snapshot) -> None:
    cluster.bgp = {"default": configuration()}
    cluster.peers = {
        "tor": peer_resource("tor", **_TOR),
        "spine": peer_resource("spine", node="n1", peerIP=SPINE, asNumber=65021),
    }
    cluster.filters = {"tor": bgp_filter(importV4=(_DENY,))}


def snapshot() -> Snapshot:
    """The base as the datastore has it, n1's view."""
    made = Snapshot()
    for number in (1, 2):
        name = f"n{number}"
        made.nodes[name] = node_resource(name, f"10.9.0.{number}/24", f"fd09::{number:x}/64")
    made.pools = {"v4": pool_resource("v4", POOL), "v6": pool_resource("v6", POOL6)}
    made.affinities = {cidr: Affinity(state="confirmed") for cidr in ("192.168.1.0/26", "fd00:168::100/122")}
    base(made)
    return made


def bgp_filter(**rules: tuple[FilterRule, ...]) -> BGPFilter:
    return BGPFilter(metadata=ObjectMeta(name="tor"), spec=BGPFilterSpec(**rules))


def _configuration(concerned: frozenset[str] = frozenset(), name: str = "", **fields: Any) -> Edit:
    return Edit("BGPConfiguration", fields, concerned, name=name)


def _tor(flaps: bool = False, lost: bool = False, with_bird: bool = False, **fields: Any) -> Edit:
    none, only = frozenset[str](), frozenset({TOR})
    concerned, unreachable = only if flaps or lost else none, only if lost else none
    return Edit("BGPPeer", fields, concerned, unreachable, with_bird=only if with_bird else none)


def _rule(side: str = "importV4", **fields: Any) -> Edit:
    """One rule before that which denies 192.168.201.0/26."""
    return Edit("BGPFilter", {side: (FilterRule(**{"action": "Reject", **fields}),)}, name="tor")


def _operation(side: str, operation: FilterOperation) -> Edit:
    return _rule(side, action="Accept", operations=(operation,))


_BETWEEN_NODES = frozenset({MESH, MESH6})

CONFIGURATIONS = (
    _configuration(logSeverityScreen="Debug"),
    Edit("BGPConfiguration", {"nodeToNodeMeshEnabled": False}, _BETWEEN_NODES, lost=_BETWEEN_NODES),
    Edit("BGPConfiguration", {"asNumber": ASNumber(64999)}, EVERYBODY, lost=frozenset({TOR, SPINE})),
    _configuration(serviceClusterIPs=(CIDRBlock(cidr="10.96.0.0/16"),)),
    _configuration(serviceExternalIPs=(CIDRBlock(cidr="198.51.100.0/24"),)),
    _configuration(
        serviceLoadBalancerIPs=(CIDRBlock(cidr="198.18.0.0/24"),), serviceLoadBalancerAggregation="Enabled"
    ),
    _configuration(
        serviceLoadBalancerIPs=(CIDRBlock(cidr="198.18.0.0/24"),), serviceLoadBalancerAggregation="Disabled"
    ),
    _configuration(
        communities=(Community(name="rack", value="64512:77"),),
        prefixAdvertisements=(PrefixAdvertisement(cidr=POOL, communities=("rack", "64512:1:2")),),
    ),
    _configuration(EVERYBODY, listenPort=1179),
    _configuration(_BETWEEN_NODES, nodeMeshPassword=_PASSWORD),
    _configuration(_BETWEEN_NODES, nodeMeshMaxRestartTime="33s"),
    _configuration(ignoredInterfaces=("eth0",)),
    _configuration(programClusterRoutes="Disabled"),
    Edit("BGPConfiguration", {"bindMode": "NodeIP"}, with_bird=EVERYBODY),
    _configuration(localWorkloadPeeringIPV4="10.255.0.1", localWorkloadPeeringIPV6="fd00:255::1"),
    _configuration(ipv4NormalRoutePriority=900),
    _configuration(ipv6NormalRoutePriority=900),
    _configuration(EVERYBODY, "node.n1", listenPort=1180),
    _configuration(name="node.n1", logSeverityScreen="Warning"),
    _configuration(
        name="node.n1", prefixAdvertisements=(PrefixAdvertisement(cidr=POOL, communities=("64512:5",)),)
    ),
)

PEERS = (
    _tor(asNumber=65099, lost=True),
    _tor(localASNumber=ASNumber(64998), lost=True),
    _tor(peerIP=f"{TOR}:1790", flaps=True),
    _tor(peerIP="10.9.0.99", lost=True),
    _tor(nextHopMode="Self"),
    _tor(nextHopMode="Keep"),
    _tor(keepOriginalNextHop=True),
    _tor(password=_PASSWORD, lost=True),
    _tor(maxRestartTime="20s", flaps=True),
    _tor(keepaliveTime="20s", flaps=True),
    _tor(numAllowedLocalASNumbers=2, with_bird=True),
    _tor(ttlSecurity=1, lost=True),
    _tor(sourceAddress="None", flaps=True),
    _tor(reachableBy=TOR),
    _tor(filters=()),
    _tor(filters=("missing",)),
    _tor(node="", nodeSelector="name == 'n1'"),
    _tor(node="n2", lost=True),
    _tor(reversePeering="Manual"),
    _tor(peerIP="", localWorkloadSelector="has(bgp)", lost=True),
    _tor(node="", nodeSelector="all()", peerIP="", peerSelector="name == 'n2'", asNumber=0, lost=True),
)

FILTERS = (
    _rule(cidr="192.168.200.0/26", matchOperator="Equal"),
    _rule(cidr="192.168.200.0/26", matchOperator="NotEqual"),
    _rule(cidr=POOL, matchOperator="In"),
    _rule(cidr=POOL, matchOperator="NotIn"),
    _rule(cidr=POOL, matchOperator="In", prefixLength=PrefixLength(min=27, max=32)),
    _rule(source="RemotePeers"),
    _rule(interface="eth*"),
    _rule(communities=CommunityMatch(values=("65020:7",))),
    _rule(asPathPrefix=(ASNumber(65020), ASNumber(65030))),
    _rule(priority=2147483547),
    _rule(peerType="eBGP"),
    _operation("importV4", FilterOperation(setPriority=SetPriority(value=300))),
    _operation("exportV4", FilterOperation(addCommunity=AddCommunity(value="64512:9"))),
    _operation("exportV4", FilterOperation(prependASPath=PrependASPath(prefix=(ASNumber(7), ASNumber(8))))),
    _rule("exportV4", cidr="192.168.2.0/26", matchOperator="Equal"),
    _rule("importV6"),
    _rule("exportV6"),
)
