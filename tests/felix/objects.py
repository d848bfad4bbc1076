"""Objects of the datastore, as short to write as tests want them."""

from typing import Any

from tortie.datastore.keys import Key, ResourceKey
from tortie.datastore.types.endpoint import IPNAT, QoSControls, WorkloadEndpoint, WorkloadEndpointPort
from tortie.datastore.types.endpoint import WorkloadEndpointSpec as EndpointSpec
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec
from tortie.datastore.types.policy import Profile, ProfileSpec, Rule


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
