"""Objects of the datastore, as short to write as tests want them."""

from typing import Any

import msgspec

from tortie.datastore.keys import Key, ResourceKey
from tortie.datastore.types.endpoint import (
    IPNAT,
    HostEndpoint,
    HostEndpointSpec,
    LiveMigration,
    LiveMigrationSpec,
    QoSControls,
    WorkloadEndpoint,
    WorkloadEndpointPort,
)
from tortie.datastore.types.endpoint import WorkloadEndpointSpec as EndpointSpec
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec
from tortie.datastore.types.policy import (
    GlobalNetworkPolicy,
    GlobalNetworkPolicySpec,
    NetworkPolicy,
    NetworkPolicySpec,
    Profile,
    ProfileSpec,
    Rule,
    StagedGlobalNetworkPolicy,
    StagedGlobalNetworkPolicySpec,
    Tier,
    TierSpec,
)


def allow(**fields: Any) -> Rule:
    return Rule(action="Allow", **fields)


def workload(
    name: str,
    *texts: str,
    node: str = "node1",
    interface: str | None = None,
    profiles: tuple[str, ...] = (),
    labels: dict[str, str] | None = None,
    ports: tuple[tuple[str, int], ...] = (),
    mac: str = "",
    addresses: tuple[str, ...] | None = None,
    spoofing: tuple[str, ...] = (),
    floating: tuple[tuple[str, str], ...] = (),
    qos: QoSControls | None = None,
) -> tuple[Key, Any]:
    """A pod's endpoint; `texts` are its addresses, 10.0.0.1 if none (`addresses` () means none at all)."""
    resource = f"{node}-k8s-{name}-eth0"
    spec = EndpointSpec(
        orchestrator="k8s",
        node=node,
        pod=name,
        endpoint="eth0",
        ipNetworks=(texts or ("10.0.0.1",)) if addresses is None else addresses,
        ipNATs=tuple(IPNAT(externalIP=external, internalIP=internal) for external, internal in floating),
        profiles=profiles,
        interfaceName=f"cali{name}" if interface is None else interface,
        mac=mac,
        ports=tuple(WorkloadEndpointPort(name=one, protocol="TCP", port=port) for one, port in ports),
        allowSpoofedSourcePrefixes=spoofing,
        qosControls=qos,
    )
    metadata = ObjectMeta(name=resource, namespace="default", labels=labels or {})
    return ResourceKey("WorkloadEndpoint", resource, "default"), WorkloadEndpoint(
        metadata=metadata, spec=spec
    )


def migration(
    name: str, *, source: dict[str, Any] | None = None, target: dict[str, Any] | None = None
) -> tuple[Key, Any]:
    spec = msgspec.convert({"source": source, "target": target}, LiveMigrationSpec)
    metadata = ObjectMeta(name=name, namespace="default")
    return ResourceKey("LiveMigration", name, "default"), LiveMigration(metadata=metadata, spec=spec)


def profile(
    name: str, *ingress: Rule, egress: tuple[Rule, ...] = (), labels: dict[str, str] | None = None
) -> tuple[Key, Any]:
    spec = ProfileSpec(ingress=ingress, egress=egress or ingress, labelsToApply=labels or {})
    return ResourceKey("Profile", name), Profile(metadata=ObjectMeta(name=name), spec=spec)


def pool(name: str, cidr: str, *, nat: bool = False, vxlan: str = "", ipip: str = "") -> tuple[Key, Any]:
    spec = IPPoolSpec(cidr=cidr, natOutgoing=nat, vxlanMode=vxlan, ipipMode=ipip)
    return ResourceKey("IPPool", name), IPPool(metadata=ObjectMeta(name=name), spec=spec)


def node(name: str, v4: str = "", v6: str = "") -> tuple[Key, Any]:
    spec = NodeSpec(bgp=NodeBGPSpec(ipv4Address=v4, ipv6Address=v6))
    return ResourceKey("Node", name), Node(metadata=ObjectMeta(name=name), spec=spec)


def tier(name: str, order: float | None = None, action: str | None = None) -> tuple[Key, Any]:
    spec = TierSpec(order=order, defaultAction=action)
    return ResourceKey("Tier", name), Tier(metadata=ObjectMeta(name=name), spec=spec)


def policy(name: str, namespace: str = "default", **fields: Any) -> tuple[Key, Any]:
    metadata = ObjectMeta(name=name, namespace=namespace)
    spec = NetworkPolicySpec(**{"tier": "default", **fields})
    return ResourceKey("NetworkPolicy", name, namespace), NetworkPolicy(metadata=metadata, spec=spec)


def global_policy(name: str, **fields: Any) -> tuple[Key, Any]:
    spec = GlobalNetworkPolicySpec(**{"tier": "default", **fields})
    return ResourceKey("GlobalNetworkPolicy", name), GlobalNetworkPolicy(
        metadata=ObjectMeta(name=name), spec=spec
    )


def staged_policy(name: str, **fields: Any) -> tuple[Key, Any]:
    spec = StagedGlobalNetworkPolicySpec(**{"tier": "default", **fields})
    return ResourceKey("StagedGlobalNetworkPolicy", name), StagedGlobalNetworkPolicy(
        metadata=ObjectMeta(name=name), spec=spec
    )


def host(
    name: str,
    interface: str = "eth0",
    *addresses: str,
    node: str = "node1",
    labels: dict[str, str] | None = None,
    profiles: tuple[str, ...] = (),
) -> tuple[Key, Any]:
    spec = HostEndpointSpec(node=node, interfaceName=interface, expectedIPs=addresses, profiles=profiles)
    metadata = ObjectMeta(name=name, labels=labels or {})
    return ResourceKey("HostEndpoint", name), HostEndpoint(metadata=metadata, spec=spec)
