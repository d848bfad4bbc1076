"""`datastore migrate`: a cluster in etcd moves to an API server that has old definitions."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.calicoctl.conftest import Ctl
from tests.netns_lab import eventually
from tests.support.etcd import Etcd
from tests.support.kubernetes import NODE_TOKEN, ApiServer

pytestmark = pytest.mark.kernel

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KINDS = (
    "ippools",
    "bgppeers",
    "tiers",
    "globalnetworkpolicies",
    "networksets",
    "bgpfilters",
    "felixconfigurations",
)
BLOCK = "192.168.84.128/26"
V3 = "projectcalico.org/v3"


def _one(kind: str, name: str, spec: Any, **metadata: str) -> str:
    body = {"apiVersion": V3, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}
    return json.dumps(body)


def _node(name: str, address: str, kubernetes: str) -> str:
    refs = [{"nodeName": kubernetes, "orchestrator": "k8s"}]
    return _one("Node", name, {"bgp": {"ipv4Address": f"{address}/24"}, "orchRefs": refs})


RESOURCES = [
    _one("IPPool", "pool", {"cidr": "192.168.0.0/16", "ipipMode": "CrossSubnet", "natOutgoing": True}),
    _one("BGPFilter", "quiet", {"exportV4": [{"action": "Reject"}]}),
    _one("BGPPeer", "rack", {"peerIP": "192.0.2.9", "asNumber": 65001, "filters": ["quiet"]}),
    _one("Tier", "first", {"order": 10}),
    _one("GlobalNetworkPolicy", "first.deny", {"tier": "first", "selector": "all()", "types": ["Ingress"]}),
    _one("NetworkSet", "few", {"nets": ["192.0.2.0/24"]}, namespace="default"),
    _one("FelixConfiguration", "node.host-1", {"logSeverityScreen": "Warning"}),
    _node("host-1", "192.0.2.1", "kube-1"),
    _node("lost", "192.0.2.2", "lost"),
]


def _fill(etcd: Etcd, ctl: Ctl) -> None:
    ctl.ok("apply", "-f", "-", stdin="\n---\n".join(RESOURCES))
    block = {"cidr": BLOCK, "affinity": "host:host-1", "allocations": [0, *[None] * 63],
             "unallocated": list(range(1, 64)), "sequenceNumber": 7, "deleted": False,
             "attributes": [{"handle_id": "k8s-pod-network.x", "secondary": {"node": "host-1"}}]}  # fmt: skip
    metadata = {"name": "default", "uid": "11d5c9a0-7b1c-4c39-a2c2-0c62c0b4f0aa",
                "creationTimestamp": "2025-03-01T08:00:00Z"}  # fmt: skip
    cluster = {"clusterGUID": "old", "calicoVersion": "v3.33.0", "datastoreReady": True}
    body = {"kind": "ClusterInformation", "apiVersion": V3, "metadata": metadata, "spec": cluster}
    etcd.put("/calico/resources/v3/projectcalico.org/clusterinformations/default", json.dumps(body))
    dashed = BLOCK.replace("/", "-")
    etcd.put(f"/calico/ipam/v2/assignment/ipv4/block/{dashed}", json.dumps(block))
    etcd.put(f"/calico/ipam/v2/host/host-1/ipv4/block/{dashed}", '{"state":"confirmed"}')
    etcd.put("/calico/ipam/v2/handle/k8s-pod-network.x", json.dumps({"block": {BLOCK: 1}, "deleted": False}))


def _specs(ctl: Ctl, kind: str) -> dict[str, Any]:
    shown = yaml.safe_load(ctl.ok("get", kind, *(["-A"] if kind == "networksets" else []), "-o", "yaml"))
    return {one["metadata"]["name"]: one["spec"] for one in shown["items"]}


def _is_gone(server: ApiServer, path: str) -> bool:
    try:
        server.ask("GET", path)
    except RuntimeError as err:
        return "NotFound" in str(err)
    return False


def test_a_cluster_moves_from_etcd_to_kubernetes(
    etcd: Etcd, ctl: Ctl, apiserver: ApiServer, kube_ctl: Ctl, tmp_path: Path
) -> None:
    _fill(etcd, ctl)
    apiserver.ask("POST", "/api/v1/nodes", {"metadata": {"name": "kube-1"}})
    # One definition is missing, one is of another release.
    apiserver.ask("DELETE", f"{DEFINITIONS}/bgpfilters.crd.projectcalico.org")
    eventually(lambda: _is_gone(apiserver, f"{DEFINITIONS}/bgpfilters.crd.projectcalico.org"))
    old = apiserver.ask("GET", f"{DEFINITIONS}/ippools.crd.projectcalico.org")
    columns = old["spec"]["versions"][0]["additionalPrinterColumns"]
    old["spec"]["versions"][0]["additionalPrinterColumns"] = columns[-1:]
    apiserver.ask("PUT", f"{DEFINITIONS}/ippools.crd.projectcalico.org", old)

    refused = ctl.run("datastore", "migrate", "export")
    assert refused.code == 1 and "datastore is not locked" in refused.err
    assert ctl.ok("datastore", "migrate", "lock") == "Datastore locked.\n"
    exported = tmp_path / "datastore.yaml"
    exported.write_text(ctl.ok("datastore", "migrate", "export"))
    said = kube_ctl.ok("datastore", "migrate", "import", "-f", str(exported))
    assert "[WARNING] Attempted to import node lost from etcd" in said and "successfully imported" in said

    now = apiserver.ask("GET", f"{DEFINITIONS}/ippools.crd.projectcalico.org")
    assert now["spec"]["versions"][0]["additionalPrinterColumns"] == columns
    for kind in KINDS:
        wanted = _specs(ctl, kind)
        if kind == "felixconfigurations":
            wanted["node.kube-1"] = wanted.pop("node.host-1")
        found = _specs(kube_ctl, kind)
        assert wanted.items() <= found.items(), kind
    cluster = yaml.safe_load(kube_ctl.ok("get", "clusterinformation", "default", "-o", "yaml"))["spec"]
    assert (cluster["clusterGUID"], cluster["datastoreReady"]) == ("old", False)
    stored = apiserver.custom("ipamblocks", "192-168-84-128-26")["spec"]
    assert stored["affinity"] == "host:kube-1" and stored["allocations"][:2] == [0, None]
    assert apiserver.custom("blockaffinities", "kube-1-192-168-84-128-26")["spec"]["state"] == "confirmed"
    assert apiserver.custom("ipamhandles", "k8s-pod-network.x")["spec"]["block"] == {BLOCK: 1}
    for one in (ctl, kube_ctl):
        assert one.ok("datastore", "migrate", "unlock") == "Datastore unlocked.\n"
    again = kube_ctl.run("datastore", "migrate", "import", "-f", str(exported))
    assert again.code == 1 and "datastore already has Calico resources" in again.err


def test_who_may_not_install_definitions_imports_nothing(
    etcd: Etcd, ctl: Ctl, apiserver: ApiServer, kube_ctl: Ctl, tmp_path: Path
) -> None:
    _fill(etcd, ctl)
    ctl.ok("datastore", "migrate", "lock")
    exported = tmp_path / "datastore.yaml"
    exported.write_text(ctl.ok("datastore", "migrate", "export"))
    kubeconfig = tmp_path / "nobody"
    kubeconfig.write_text(apiserver.kubeconfig(NODE_TOKEN))
    nobody = Ctl({"DATASTORE_TYPE": "kubernetes", "KUBECONFIG": str(kubeconfig)})
    refused = nobody.run("datastore", "migrate", "import", "-f", str(exported))
    assert refused.code == 1
    assert "error applying the CRDs necessary to begin datastore import" in refused.err
    assert _specs(kube_ctl, "ippools") == {}
