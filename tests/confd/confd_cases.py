"""Clusters in a few words, and the golden cases made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tortie.confd.snapshot import Snapshot
from tortie.datastore.types.bgp import (
    AddCommunity,
    BGPConfiguration,
    BGPConfigurationSpec,
    BGPFilter,
    BGPFilterSpec,
    BGPPassword,
    BGPPeer,
    BGPPeerSpec,
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
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.ipam import Affinity
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ASNumber, ObjectMeta, SecretKeyRef
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec, NodeWireguardSpec


def node(name: str, v4: str = "", v6: str = "", wireguard: str = "", labels: Any = None, **bgp: Any) -> Node:
    if "asNumber" in bgp:
        bgp["asNumber"] = ASNumber(bgp["asNumber"])
    spec = NodeSpec(
        bgp=NodeBGPSpec(ipv4Address=v4, ipv6Address=v6, **bgp),
        wireguard=NodeWireguardSpec(interfaceIPv4Address=wireguard) if wireguard else None,
    )
    return Node(metadata=ObjectMeta(name=name, labels=labels or {}), spec=spec)


def pool(name: str, cidr: str, **spec: Any) -> IPPool:
    return IPPool(metadata=ObjectMeta(name=name), spec=IPPoolSpec(cidr=cidr, **spec))


def configuration(name: str = "default", **spec: Any) -> BGPConfiguration:
    return BGPConfiguration(metadata=ObjectMeta(name=name), spec=BGPConfigurationSpec(**spec))


def peer(name: str, **spec: Any) -> BGPPeer:
    for number in ("asNumber", "localASNumber"):
        if number in spec:
            spec[number] = ASNumber(spec[number])
    return BGPPeer(metadata=ObjectMeta(name=name), spec=BGPPeerSpec(**spec))


def felix(name: str = "default", **spec: Any) -> FelixConfiguration:
    return FelixConfiguration(metadata=ObjectMeta(name=name), spec=spec)


def password(secret: str = "bgp", key: str = "password") -> BGPPassword:
    return BGPPassword(secretKeyRef=SecretKeyRef(name=secret, key=key))


def cluster(*resources: Any, blocks: Mapping[str, str] | None = None) -> Snapshot:
    """`blocks`: CIDR -> state of this node's claim."""
    tables: dict[type, str] = {
        Node: "nodes",
        IPPool: "pools",
        BGPConfiguration: "bgp",
        BGPPeer: "peers",
        BGPFilter: "filters",
        FelixConfiguration: "felix",
    }
    snapshot = Snapshot()
    for resource in resources:
        getattr(snapshot, tables[type(resource)])[resource.name] = resource
    snapshot.affinities = {cidr: Affinity(state=state) for cidr, state in (blocks or {}).items()}
    return snapshot


MASTER = node("kube-master", "10.192.0.2/16")
NODES = (MASTER, node("kube-node-1", "10.192.0.3/16"), node("kube-node-2", "10.192.0.10/16"))
POOL = pool("default-ipv4-ippool", "192.168.0.0/16")
BLOCKS = {"192.168.1.0/26": "confirmed"}
NO_MESH = configuration(nodeToNodeMeshEnabled=False)


@dataclass(frozen=True)
class Case:
    snapshot: Snapshot
    node: str = "kube-master"
    router_id: str = ""
    secrets: Mapping[tuple[str, str], bytes] = field(default_factory=dict)


def _case(*resources: Any, blocks: Mapping[str, str] = BLOCKS, **options: Any) -> Case:
    return Case(cluster(POOL, *resources, blocks=blocks), **options)


_SECRETS = {("bgp", "password"): b'it\'s "quoted"; }'}
_DUAL = (
    node("kube-master", "10.192.0.2/16", "2001::102/64"),
    node("kube-node-1", "10.192.0.3/16", "2001::103/64"),
    node("kube-node-2", v6="2001::104/64"),
)
_REFLECTOR = node("rr", "10.192.0.9/16", routeReflectorClusterID="224.0.0.1", labels={"rr": "true"})


def _reflector(name: str, v4: str, cluster_id: str) -> Node:
    return node(name, v4, routeReflectorClusterID=cluster_id, labels={"rr": "true"})


def _rule(action: str = "Reject", **rule: Any) -> FilterRule:
    return FilterRule(action=action, **rule)


def bgp_filter(name: str, **rules: tuple[FilterRule, ...]) -> BGPFilter:
    return BGPFilter(metadata=ObjectMeta(name=name), spec=BGPFilterSpec(**rules))


def _filtered(**rules: tuple[FilterRule, ...]) -> Case:
    tor = peer("tor", peerIP="10.225.0.5", asNumber=65500, filters=("only",))
    return _case(*NODES, NO_MESH, bgp_filter("only", **rules), tor)


CASES: dict[str, Case] = {  # name of the golden files -> what they are made from
    "mesh": _case(*NODES),
    "mesh-alone": _case(MASTER),
    "mesh-disabled": _case(*NODES, NO_MESH),
    "mesh-dual-stack": _case(
        *_DUAL, pool("v6", "fd00:192:168::/48"), blocks=BLOCKS | {"fd00:192:168:1::/122": "confirmed"}
    ),
    "mesh-router-id-hash": _case(*NODES, router_id="hash"),
    "mesh-router-id-given": _case(*NODES, router_id="10.10.10.10"),
    "mesh-ipv6-only": _case(node("kube-master", v6="2001::102/64"), node("other", v6="2001::103/64")),
    "mesh-as-numbers": _case(
        MASTER,
        node("a", "10.192.0.3/16", asNumber="1.10"),
        node("b", "10.192.0.4/16", asNumber=4294967295),
        configuration(asNumber=ASNumber(64567)),
    ),
    "mesh-ports": _case(
        *NODES,
        configuration(listenPort=1790),
        configuration("node.kube-node-1", listenPort=500),
        configuration("node.kube-master", listenPort=600, logSeverityScreen="Debug"),
    ),
    "service-ranges": _case(
        *NODES,
        configuration(
            serviceClusterIPs=(CIDRBlock(cidr="10.96.0.0/12"), CIDRBlock(cidr="fd00:96::/112")),
            serviceExternalIPs=(CIDRBlock(cidr="203.0.113.0/24"), CIDRBlock(cidr="203.0.114.1/32")),
            serviceLoadBalancerIPs=(CIDRBlock(cidr="198.51.100.0/24"),),
        ),
    ),
    "mesh-password": _case(*NODES, configuration(nodeMeshPassword=password()), secrets=_SECRETS),
    "mesh-password-missing": _case(*NODES, configuration(nodeMeshPassword=password())),
    "mesh-restart-time": _case(*NODES, configuration(nodeMeshMaxRestartTime="3m1.4s")),
    "mesh-without-graceful-restart": _case(*NODES, configuration(nodeMeshMaxRestartTime="0s")),
    "mesh-reflectors-stay-out": _case(*NODES, _REFLECTOR),
    "blocks-in-every-state": _case(
        *NODES,
        blocks={
            "192.168.1.0/26": "confirmed",
            "192.168.2.0/26": "",
            "192.168.3.0/26": "pending",
            "192.168.4.0/26": "pendingDeletion",
            "192.168.5.1/32": "confirmed",
        },
    ),
    "pools-of-every-kind": _case(
        MASTER,
        pool("ipip", "10.1.0.0/16", ipipMode="Always"),
        pool("ipip-cross", "10.2.0.0/16", ipipMode="CrossSubnet"),
        pool("vxlan", "10.3.0.0/16", vxlanMode="Always"),
        pool("vxlan-cross", "10.4.0.0/16", vxlanMode="CrossSubnet"),
        pool("disabled", "10.5.0.0/16", disabled=True),
        pool("hidden", "10.6.0.0/16", disableBGPExport=True),
        pool("services", "10.7.0.0/16", allowedUses=("LoadBalancer",)),
    ),
    "pools-moved-to-felix": _case(
        MASTER, pool("ipip", "10.1.0.0/16", ipipMode="Always"), felix(programClusterRoutes="Enabled")
    ),
    "wireguard": _case(
        node("kube-master", "10.192.0.2/16", wireguard="10.9.0.1"),
        node("a", "10.192.0.3/16", wireguard="10.9.0.2"),
        node("b", "10.192.0.4/16"),
    ),
    "peer-global": _case(*NODES, NO_MESH, peer("tor", peerIP="10.225.0.5", asNumber=65500)),
    "peer-global-port": _case(*NODES, NO_MESH, peer("tor", peerIP="10.225.0.5:1700", asNumber=65500)),
    "peer-global-ipv6": _case(
        *_DUAL,
        NO_MESH,
        peer("tor", peerIP="[2001:db8::5]:1700", asNumber="1.10"),
    ),
    "peer-every-option": _case(
        *NODES,
        NO_MESH,
        peer(
            "tor",
            node="kube-master",
            peerIP="10.225.0.5",
            asNumber=65500,
            localASNumber=65001,
            ttlSecurity=2,
            password=password(),
            maxRestartTime="20s",
            keepaliveTime="5s",
            numAllowedLocalASNumbers=2,
            nextHopMode="Keep",
            reachableBy="10.192.0.1",
        ),
        secrets=_SECRETS,
    ),
    "peer-any-source-address": _case(
        *NODES, NO_MESH, peer("tor", peerIP="10.225.0.5", asNumber=65500, sourceAddress="None")
    ),
    "peer-original-next-hop": _case(
        *NODES,
        NO_MESH,
        peer("ebgp", peerIP="10.225.0.5", asNumber=65500, keepOriginalNextHop=True),
        peer("ibgp", peerIP="10.225.0.6", asNumber=64512, keepOriginalNextHop=True),
    ),
    "peer-of-another-node": _case(
        *NODES, NO_MESH, peer("tor", node="kube-node-1", peerIP="10.225.0.5", asNumber=65500)
    ),
    "reflector-from-a-client": _case(
        *NODES, _REFLECTOR, NO_MESH, peer("rr", nodeSelector="!has(rr)", peerSelector="rr == 'true'")
    ),
    "reflector-itself": _case(
        *NODES,
        _REFLECTOR,
        NO_MESH,
        peer("rr", nodeSelector="!has(rr)", peerSelector="rr == 'true'"),
        node="rr",
        blocks={},
    ),
    "reflector-of-a-pair": _case(
        *NODES,
        _REFLECTOR,
        _reflector("rr2", "10.192.0.8/16", "224.0.0.1"),
        _reflector("far", "10.192.0.7/16", "224.0.0.2"),
        NO_MESH,
        peer("clients", nodeSelector="!has(rr)", peerSelector="rr == 'true'"),
        peer("pair", nodeSelector="has(rr)", peerSelector="has(rr)"),
        node="rr",
        blocks={},
    ),
    "reflector-in-a-mesh": _case(
        *NODES, _REFLECTOR, peer("rr", nodeSelector="!has(rr)", peerSelector="rr == 'true'"), node="rr"
    ),
    "filter-operators": _filtered(
        importV4=tuple(
            _rule(cidr="10.1.0.0/16", matchOperator=operator)
            for operator in ("Equal", "NotEqual", "In", "NotIn")
        ),
    ),
    "filter-lengths": _filtered(
        importV4=(
            _rule(cidr="10.1.0.0/16", matchOperator="In", prefixLength=PrefixLength(min=24, max=26)),
            _rule(cidr="10.1.0.0/16", matchOperator="NotIn", prefixLength=PrefixLength(min=8)),
            _rule(cidr="10.1.0.0/16", matchOperator="In", prefixLength=PrefixLength(max=20)),
        ),
    ),
    "filter-every-condition": _filtered(
        exportV4=(
            _rule(
                cidr="10.1.0.0/16",
                matchOperator="In",
                source="RemotePeers",
                interface="eth*",
                communities=CommunityMatch(values=("65000:100",)),
                asPathPrefix=(ASNumber(65001), ASNumber(65002)),
                priority=512,
                peerType="eBGP",
            ),
            _rule(communities=CommunityMatch(values=("65000:100:200",)), peerType="iBGP"),
        ),
    ),
    "filter-operations": _filtered(
        importV4=(
            _rule(
                "Accept",
                operations=(
                    FilterOperation(addCommunity=AddCommunity(value="65000:1")),
                    FilterOperation(addCommunity=AddCommunity(value="65000:1:2")),
                    FilterOperation(prependASPath=PrependASPath(prefix=(ASNumber(65001), ASNumber(65002)))),
                    FilterOperation(setPriority=SetPriority(value=512)),
                ),
            ),
        ),
    ),
    "filter-of-both-families": Case(
        cluster(
            POOL,
            *_DUAL,
            NO_MESH,
            bgp_filter(
                "both",
                exportV4=(_rule(),),
                exportV6=(_rule(cidr="fd00::/8", matchOperator="In"),),
                importV6=(
                    *(
                        _rule(cidr="fd00:1::/32", matchOperator=operator)
                        for operator in ("Equal", "NotEqual", "In", "NotIn")
                    ),
                    _rule(cidr="fd00::/8", matchOperator="In", prefixLength=PrefixLength(min=48, max=122)),
                    _rule("Accept", operations=(FilterOperation(setPriority=SetPriority(value=512)),)),
                ),
            ),
            peer("four", peerIP="10.225.0.5", asNumber=65500, filters=("both",)),
            peer("six", peerIP="2001:db8::5", asNumber=65500, filters=("both",)),
        )
    ),
    "filter-several-and-one-missing": _case(
        *NODES,
        NO_MESH,
        bgp_filter("b", importV4=(_rule(),)),
        bgp_filter("a", exportV4=(_rule("Accept"),)),
        bgp_filter("unused", exportV4=(_rule(),)),
        peer("tor", peerIP="10.225.0.5", asNumber=65500, filters=("b", "missing", "a")),
    ),
    "filter-with-a-wrong-rule": _filtered(importV4=(_rule(cidr="fd00::/8", matchOperator="In"),)),
    "communities": _case(
        *NODES,
        configuration(
            communities=(
                Community(name="site", value="65000:7"),
                Community(name="big", value="65000:1:2"),
            ),
            prefixAdvertisements=(
                PrefixAdvertisement(cidr="192.168.0.0/16", communities=("site", "65000:3", "65000:03")),
                PrefixAdvertisement(cidr="192.168.1.0/26", communities=("big",)),
                PrefixAdvertisement(cidr="fd00::/8", communities=("site",)),
            ),
        ),
    ),
    "communities-of-the-node": _case(
        *NODES,
        configuration(
            prefixAdvertisements=(PrefixAdvertisement(cidr="10.0.0.0/8", communities=("65000:1",)),)
        ),
        configuration(
            "node.kube-master",
            prefixAdvertisements=(PrefixAdvertisement(cidr="192.168.0.0/16", communities=("65000:2",)),),
        ),
    ),
    "communities-wrong": _case(
        *NODES,
        configuration(
            prefixAdvertisements=(
                PrefixAdvertisement(cidr="10.0.0.0/8", communities=("no-such-name",)),
                PrefixAdvertisement(cidr="not a prefix", communities=("65000:1",)),
                PrefixAdvertisement(cidr="10.0.0.0/8", communities=("65000:9",)),
            )
        ),
    ),
    "bind-to-the-node": _case(
        *NODES,
        configuration(bindMode="NodeIP", logSeverityScreen="Warning"),
        peer("tor", peerIP="10.225.0.5", asNumber=65500, sourceAddress="None"),
    ),
    "peer-password": _case(
        *NODES,
        peer("tor", peerIP="10.225.0.5", asNumber=65500, password=password()),
        secrets={("bgp", "password"): b"it's {secret}; \xff\\"},
    ),
    "reflector-of-services": _case(
        *NODES,
        _REFLECTOR,
        configuration(
            nodeToNodeMeshEnabled=False,
            serviceLoadBalancerIPs=(CIDRBlock(cidr="198.51.100.0/24"),),
            serviceExternalIPs=(CIDRBlock(cidr="203.0.113.7/32"),),
            serviceLoadBalancerAggregation="Disabled",
        ),
        peer("rr", peerSelector="has(rr)"),
        node="rr",
        blocks={},
    ),
    "pools-inside-pools": _case(
        MASTER,
        pool("wide", "10.0.0.0/8"),
        pool("vxlan-inside", "10.3.0.0/16", vxlanMode="Always"),
        pool("hidden-inside", "10.4.0.0/16", disableBGPExport=True),
        pool("plain-inside-vxlan", "10.3.9.0/24"),
        blocks={"10.3.9.0/26": "confirmed", "10.3.1.0/26": "confirmed"},
    ),
    "route-priorities": _case(
        *_DUAL, configuration(ipv4NormalRoutePriority=900, ipv6NormalRoutePriority=901)
    ),
    "interfaces-ignored": _case(*NODES, configuration(ignoredInterfaces=("eth1", "vlan*"))),
}
