"""A datastore as Calico leaves it, for the machines of calico_node.py: in etcd, or behind an API server.

Written past our code, by etcd's gateway or as an administrator's requests, in Calico's own JSON.
"""

import hashlib
import json
from base64 import b32encode
from collections.abc import Iterator
from typing import Any

from tests.cluster.calico_node import BLOCKS, CLIENTS, PODS, POOL, address, interface, vtep
from tests.support.etcd import Gateway
from tortie.lab.cluster import Lab

_UID, _BORN = "11d5c9a0-7b1c-4c39-a2c2-0c62c0b4f0aa", "2025-03-01T08:00:00Z"
_ALLOWED = [{"podSelector": {"matchLabels": {"app": one}}} for one in CLIENTS]
_POOL = {"cidr": POOL, "ipipMode": "Never", "vxlanMode": "Never", "natOutgoing": True, "blockSize": 26,
         "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"]}  # fmt: skip
_TYPE = "k8s,bgp,kdd"
GUID = "d34db33fd34db33fd34db33fd34db33f"


def container(pod: str) -> str:
    return hashlib.sha256(f"{pod} of Calico".encode()).hexdigest()


def pool(*, vxlan: bool) -> dict[str, Any]:
    return {**_POOL, "vxlanMode": "Always" if vxlan else "Never"}


def block(node: str, *, vxlan: bool) -> dict[str, Any]:
    """The node's block with its pods' addresses, and its tunnel's."""
    cidr, held = BLOCKS[node], dict[int, dict[str, Any]]()
    if vxlan:
        held[0] = {
            "handle_id": f"vxlan-tunnel-addr-{node}",
            "secondary": {"node": node, "type": "vxlanTunnelAddress"},
        }
    for pod, (where, ordinal) in PODS.items():
        if where == node:
            secondary = {"namespace": "default", "node": node, "pod": pod, "timestamp": _BORN}
            held[ordinal] = {"handle_id": f"k8s-pod-network.{container(pod)}", "secondary": secondary}
    order = sorted(held)
    return {
        "cidr": cidr,
        "affinity": f"host:{node}",
        "allocations": [order.index(n) if n in held else None for n in range(64)],
        "unallocated": [n for n in range(64) if n not in held],
        "attributes": [held[n] for n in order],
        "sequenceNumber": 1740816000000000007,
        "sequenceNumberForAllocation": {str(n): 1740816000000000001 for n in order},
        "strictAffinity": False,
        "deleted": False,
    }


def handles(node: str, *, vxlan: bool) -> Iterator[tuple[str, dict[str, int]]]:
    for attribute in block(node, vxlan=vxlan)["attributes"]:
        yield attribute["handle_id"], {BLOCKS[node]: 1}


# --- etcd -----------------------------------------------------------------------------------------


def fill_etcd(lab: Lab) -> None:
    """A cluster with BGP and no tunnel."""
    etcd = Gateway(lab.etcd.endpoint)
    for key, value in _entries(lab):
        etcd.put(key, json.dumps(value))


def _entries(lab: Lab) -> Iterator[tuple[str, Any]]:
    ipam, there = "/calico/ipam/v2", "/calico/resources/v3/projectcalico.org"
    for kind, plural, name, spec in _resources(lab):
        space, _, bare = name.rpartition("/")
        metadata: dict[str, Any] = {"name": bare, "uid": _UID, "creationTimestamp": _BORN}
        metadata |= {"namespace": space} if space else {}
        body = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}
        if kind == "WorkloadEndpoint":
            ours = {"namespace": "default", "orchestrator": "k8s", "serviceaccount": "default"}
            labels = {f"projectcalico.org/{name}": value for name, value in ours.items()}
            metadata["labels"] = labels | {"app": spec["pod"]}
        yield f"{there}/{plural}/{name}", body
    for node, cidr in BLOCKS.items():
        dashed = cidr.replace("/", "-")
        yield f"{ipam}/assignment/ipv4/block/{dashed}", block(node, vxlan=False)
        yield f"{ipam}/host/{node}/ipv4/block/{dashed}", {"state": "confirmed", "deleted": False}
        for handle, blocks in handles(node, vxlan=False):
            yield f"{ipam}/handle/{handle}", {"block": blocks, "deleted": False}
    yield f"{ipam}/config/", {"strict_affinity": False, "auto_allocate_blocks": True}


def _resources(lab: Lab) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(kind, plural, [namespace/]name, spec)."""
    cluster = {"clusterGUID": GUID, "clusterType": _TYPE, "calicoVersion": "v3.27.0", "datastoreReady": True}
    yield "ClusterInformation", "clusterinformations", "default", cluster
    yield (
        "FelixConfiguration",
        "felixconfigurations",
        "default",
        {"logSeverityScreen": "Info", "reportingInterval": "0s"},
    )
    yield "IPPool", "ippools", "default-ipv4-ippool", pool(vxlan=False)
    yield "Tier", "tiers", "default", {"order": 1000000, "defaultAction": "Deny"}
    allow = [{"action": "Allow", "source": {}, "destination": {}}]
    for name, labels in (("kns.default", {"pcns.projectcalico.org/name": "default"}),
                         ("ksa.default.default", {"pcsa.projectcalico.org/name": "default"})):  # fmt: skip
        both = {"ingress": allow, "egress": allow} if name.startswith("kns") else {}
        yield "Profile", "profiles", name, {**both, "labelsToApply": labels}
    for node in lab.nodes.values():
        refs = [{"nodeName": node.name, "orchestrator": "k8s"}]
        spec = {"addresses": [{"address": f"{node.ip}/24", "type": "CalicoNodeIP"}],
                "bgp": {"ipv4Address": f"{node.ip}/24"}, "orchRefs": refs}  # fmt: skip
        yield "Node", "nodes", node.name, spec
    pods = "projectcalico.org/orchestrator == 'k8s' && app"
    source = {"selector": f"{pods} in {{ '{CLIENTS[0]}', '{CLIENTS[1]}' }}"}
    rules = {"ingress": [{"action": "Allow", "source": source, "destination": {}}]}
    policy = {"order": 1000, "selector": f"{pods} == 'b'", "types": ["Ingress"], **rules}
    yield "NetworkPolicy", "networkpolicies", "default/knp.default.db", policy
    for pod, (node_name, _) in PODS.items():
        name = f"default/{node_name.replace('-', '--')}-k8s-{pod}-eth0"
        yield (
            "WorkloadEndpoint",
            "workloadendpoints",
            name,
            {
                "orchestrator": "k8s",
                "workload": "",
                "node": node_name,
                "containerID": container(pod),
                "pod": pod,
                "endpoint": "eth0",
                "serviceAccountName": "default",
                "ipNetworks": [f"{address(pod)}/32"],
                "ipNATs": None,
                "ipv4Gateway": "",
                "ipv6Gateway": "",
                "profiles": ["kns.default", "ksa.default.default"],
                "interfaceName": interface(pod),
                "mac": "",
                "ports": None,
                "allowSpoofedSourcePrefixes": [],
            },
        )


# --- Kubernetes -----------------------------------------------------------------------------------

_OURS = "/apis/crd.projectcalico.org/v1"
_MERGE = "application/merge-patch+json"


def fill_kubernetes(lab: Lab) -> None:
    """A cluster with VXLAN; nodes, pods and policies are Kubernetes' own."""
    assert lab.kubernetes is not None
    ask = lab.kubernetes.ask
    for kind, plural, name, spec, labels in _customs():
        body = {"apiVersion": "crd.projectcalico.org/v1", "kind": kind, "spec": spec}
        ask("POST", f"{_OURS}/{plural}", {**body, "metadata": {"name": name, "labels": labels}})
    for node in lab.nodes.values():
        annotations = {
            "projectcalico.org/IPv4Address": f"{node.ip}/24",
            "projectcalico.org/IPv4VXLANTunnelAddr": vtep(node.name),
        }
        ask("PATCH", f"/api/v1/nodes/{node.name}", {"metadata": {"annotations": annotations}}, _MERGE)
    spec = {
        "podSelector": {"matchLabels": {"app": "b"}},
        "ingress": [{"from": _ALLOWED}],
        "policyTypes": ["Ingress"],
    }
    there = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
    ask("POST", there, {"metadata": {"name": "db"}, "spec": spec})
    for pod, (node_name, _) in PODS.items():
        lab.kubernetes.create_pod(pod, "default", node_name, {"labels": {"app": pod}})
        said = {"podIP": f"{address(pod)}/32", "podIPs": f"{address(pod)}/32", "containerID": container(pod)}
        annotations = {f"cni.projectcalico.org/{name}": value for name, value in said.items()}
        ask(
            "PATCH",
            f"/api/v1/namespaces/default/pods/{pod}",
            {"metadata": {"annotations": annotations}},
            _MERGE,
        )
        lab.kubernetes.report_pod(pod, "default", [address(pod)])


def _customs() -> Iterator[tuple[str, str, str, dict[str, Any], dict[str, str]]]:
    """(kind, plural, name, spec, labels)."""
    cluster = {"clusterGUID": GUID, "clusterType": _TYPE, "calicoVersion": "v3.27.0", "datastoreReady": True}
    yield "ClusterInformation", "clusterinformations", "default", cluster, {}
    felix = {"logSeverityScreen": "Info", "reportingInterval": "0s", "vxlanEnabled": True}
    yield "FelixConfiguration", "felixconfigurations", "default", felix, {}
    yield "IPPool", "ippools", "default-ipv4-ippool", pool(vxlan=True), {}
    yield "IPAMConfig", "ipamconfigs", "default", {"strictAffinity": False, "autoAllocateBlocks": True}, {}
    for node, cidr in BLOCKS.items():
        name = cidr.replace(".", "-").replace("/", "-")
        yield "IPAMBlock", "ipamblocks", name, block(node, vxlan=True), {}
        labels = {
            "projectcalico.org/affinity-type": "host",
            "projectcalico.org/hostname-hash": b32encode(hashlib.sha3_256(node.encode()).digest())
            .decode()
            .rstrip("="),
            "projectcalico.org/ip-version": "4",
        }
        affinity = {"cidr": cidr, "node": node, "state": "confirmed", "type": "host", "deleted": "false"}
        # Releases before 3.30 wrote no labels; of one node they are not there.
        yield (
            "BlockAffinity",
            "blockaffinities",
            f"{node}-{name}",
            affinity,
            labels if node != "node-2" else {},
        )
        for handle, blocks in handles(node, vxlan=True):
            yield (
                "IPAMHandle",
                "ipamhandles",
                handle,
                {"handleID": handle, "block": blocks, "deleted": False},
                {},
            )
