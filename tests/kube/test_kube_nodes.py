"""What calico-kube-controllers does for nodes, as the Deployment of the manifest."""

import json
from collections.abc import Iterator

import pytest

from tests.kube.kube_pods import quiet, shown
from tortie.lab.cluster import wait_until
from tortie.lab.kube import KubeLab

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]


def test_the_one_that_leads_is_ready(cluster: KubeLab) -> None:
    [pod] = cluster.wait_pods("k8s-app=calico-kube-controllers", 1, "kube-system")
    wait_until(lambda: _leader(cluster).startswith(pod["metadata"]["name"]), "it to lead", 240)
    status = shown(cluster, "get", "kubecontrollersconfiguration", "default")["status"]
    assert {"node", "loadBalancer"} <= status["runningConfig"]["controllers"].keys()


def _leader(cluster: KubeLab) -> str:
    lease = cluster.get("lease", "-n", "kube-system", "calico-kube-controllers")
    return str(lease["spec"]["holderIdentity"])


@pytest.fixture
def host_endpoints(cluster: KubeLab) -> Iterator[None]:
    """A host endpoint for each node."""
    for auto in ("Enabled", "Disabled"):
        controllers = {"node": {"hostEndpoint": {"autoCreate": auto}}}
        change = json.dumps({"spec": {"controllers": controllers}})
        words = (
            "kubecontrollersconfigurations.crd.projectcalico.org",
            "default",
            "--type=merge",
            "-p",
            change,
        )
        cluster.kubectl("patch", *words)
        if auto == "Enabled":
            yield
    wait_until(lambda: _host_labels(cluster) == {}, "them to be gone", 480, cluster.evidence)


def _host_labels(cluster: KubeLab) -> dict[str, dict[str, str]]:
    found = shown(cluster, "get", "hostendpoints")["items"]
    return {one["spec"]["node"]: one["metadata"]["labels"] for one in found}


@pytest.mark.usefixtures("host_endpoints")
def test_host_endpoints_have_their_nodes_labels(cluster: KubeLab) -> None:
    wait_until(lambda: _host_labels(cluster).keys() == cluster.nodes.keys(), "one for each node", 240)
    for change in ("rack=r1", "rack-"):
        cluster.kubectl("label", "node", "node-1", change)
        wanted = "r1" if "=" in change else None
        wait_until(lambda w=wanted: _host_labels(cluster)["node-1"].get("rack") == w, change, 240)  # type: ignore[misc]


def test_a_node_that_is_deleted_gives_its_addresses_back(cluster: KubeLab) -> None:
    """Kubernetes deletes its pods some time later, and their addresses go with its blocks."""
    cluster.apply(json.dumps(quiet("gone", "node-3")))
    cluster.wait_pods("app=quiet", 1)
    assert _blocks(cluster, "node-3")
    cluster.power_off("node-3")
    cluster.kubectl("delete", "node", "node-3")
    wait_until(lambda: not _blocks(cluster, "node-3"), "its blocks to be released", 300, cluster.evidence)
    assert _blocks(cluster, "node-1") and _blocks(cluster, "node-2")
    answer = cluster.calicoctl("ipam", "check", "--show-problem-ips")
    assert "found 0 problems" in answer.stdout
    cluster.add_node("node-3")
    cluster.wait_ready()


def _blocks(cluster: KubeLab, node: str) -> list[str]:
    found = cluster.get("blockaffinities.crd.projectcalico.org")["items"]
    return [one["spec"]["cidr"] for one in found if one["spec"]["node"] == node]
