"""Clusters in a few words, and the golden cases made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tortie.confd.snapshot import Snapshot
from tortie.datastore.types.bgp import (
    BGPConfiguration,
    BGPConfigurationSpec,
    BGPPassword,
    BGPPeer,
    BGPPeerSpec,
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
}
