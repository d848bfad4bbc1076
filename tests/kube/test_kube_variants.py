"""The other manifests, each on a cluster of its own: etcd as the datastore, or VXLAN and no BGP; the end."""

import json
from typing import Any

import pytest

from tests.kube.kube_pods import DENY, shown
from tortie.lab.cluster import wait_until
from tortie.lab.kube import MANIFESTS, KubeLab
from tortie.lab.kubedemo import fetch

etcd = pytest.mark.parametrize("cluster", ["etcd"], indirect=True)
vxlan = pytest.mark.parametrize("cluster", ["vxlan"], indirect=True)
pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]


@etcd
def test_etcd_knows_the_pods(cluster: KubeLab, web: list[dict[str, Any]]) -> None:
    found = {one["spec"]["pod"]: one["spec"] for one in shown(cluster, "get", "workloadendpoints")["items"]}
    for pod in web:
        spec = found[pod["metadata"]["name"]]
        assert (spec["node"], spec["ipNetworks"]) == (
            pod["spec"]["nodeName"],
            [f"{pod['status']['podIP']}/32"],
        )
    answer = cluster.kubectl("get", "crd", "-o", "name")
    assert "projectcalico" not in answer.stdout


@etcd
def test_policies_and_labels_are_copied_to_etcd(cluster: KubeLab, web: list[dict[str, Any]]) -> None:
    cluster.wait_pods("k8s-app=calico-kube-controllers", 1, "kube-system")
    first, second = (pod["metadata"]["name"] for pod in web[:2])
    address = web[1]["status"]["podIP"]
    cluster.apply(json.dumps(DENY))
    wait_until(lambda: fetch(cluster, first, address) == "", "the policy to deny", 240, cluster.evidence)
    names = [one["metadata"]["name"] for one in shown(cluster, "get", "networkPolicy")["items"]]
    assert names == ["knp.default.deny"]
    cluster.kubectl("delete", "networkpolicy", "deny")
    wait_until(lambda: fetch(cluster, first, address) == second, "the policy to be gone", 240)
    cluster.kubectl("label", "node", "node-1", "rack=r1")
    wait_until(lambda: _labels(cluster, "node-1").get("rack") == "r1", "the label to be copied", 240)


def _labels(cluster: KubeLab, node: str) -> dict[str, str]:
    labels: dict[str, str] = shown(cluster, "get", "node", node)["metadata"].get("labels", {})
    return labels


@vxlan
def test_other_nodes_are_behind_the_tunnel(cluster: KubeLab, web: list[dict[str, Any]]) -> None:
    for node in cluster.nodes.values():
        routes = json.loads(node.box.output("ip", "-j", "route", "show", "dev", "vxlan.calico"))
        assert len(routes) >= len(cluster.nodes) - 1, routes
        answer = cluster.calicoctl("node", "status", node=node.name)
        assert "The BGP backend process (BIRD) is not running." in answer.stdout


@vxlan
def test_cni_is_taken_off_the_nodes(cluster: KubeLab) -> None:
    """The last test there: nothing of ours is installed after it."""
    cluster.kubectl("delete", "-f", "-", "--wait=false", stdin=cluster.documents())
    ours = ["get", "pods", "-n", "kube-system", "-l", "k8s-app=calico-node", "-o", "name"]
    wait_until(lambda: cluster.kubectl(*ours).stdout == "", "the agents to end", 120, cluster.evidence)
    uninstall = str(MANIFESTS / "uninstall.yaml")
    cluster.kubectl("apply", "-f", uninstall)
    cluster.wait_pods("k8s-app=calico-uninstall", len(cluster.nodes), "kube-system")
    cluster.kubectl("delete", "-f", uninstall)
    for node in cluster.nodes.values():
        assert list(node.box.path("/etc/cni/net.d").iterdir()) == []
        plugins = {one.name for one in node.box.path("/opt/cni/bin").iterdir()}
        assert "portmap" in plugins and plugins.isdisjoint({"calico", "calico-ipam"})
