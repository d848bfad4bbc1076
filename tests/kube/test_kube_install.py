"""What a user sees after `kubectl apply -f manifests/calico-node.yaml`, on a real Kubernetes."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.kube.kube_pods import DENY, shown
from tortie.lab.cluster import wait_until
from tortie.lab.kube import BUSYBOX, KubeLab
from tortie.lab.kubedemo import fetch

pytestmark = [pytest.mark.kube, pytest.mark.timeout(900)]

API = "10.96.0.1"
LOCAL = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "local"},
    "spec": {
        "type": "NodePort",
        "externalTrafficPolicy": "Local",
        "selector": {"app": "one"},
        "ports": [{"port": 80, "nodePort": 30081}],
    },
}
WHO = "#!/bin/sh\necho; echo $REMOTE_ADDR\n"
SERVE = 'mkdir -p /www/cgi-bin; cd /www/cgi-bin; echo "$WHO" >who; chmod +x who'
ONE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "one", "labels": {"app": "one"}},
    "spec": {
        "nodeName": "node-1",
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "one",
                "image": BUSYBOX,
                "env": [{"name": "WHO", "value": WHO}],
                "command": ["sh", "-c", f"{SERVE}; exec httpd -f -p 0.0.0.0:80 -h /www"],
            }
        ],
    },
}  # answers with the address that asks


def from_outside(url: str) -> str:
    """What somebody in front of the cluster gets, '' if nothing."""
    done = subprocess.run(
        ["curl", "-s", "-m", "3", url], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture
def one(cluster: KubeLab) -> Iterator[str]:
    """The address of a pod on node-1 behind a service that stays on its node."""
    cluster.apply(json.dumps(ONE))
    cluster.apply(json.dumps(LOCAL))
    [pod] = cluster.wait_pods("app=one", 1)
    yield pod["status"]["podIP"]
    cluster.kubectl("delete", "service/local", "pod/one", "--wait")


def test_all_nodes_and_agents_are_ready(cluster: KubeLab) -> None:
    cluster.wait_ready()
    wait_until(lambda: _network_reasons(cluster) == {"CalicoIsUp"}, "nodes to be told of the network", 240)
    files = [path.name for path in cluster.nodes["node-1"].box.path("/etc/cni/net.d").iterdir()]
    assert sorted(files) == ["10-calico.conflist", "calico-kubeconfig"]


def _network_reasons(cluster: KubeLab) -> set[str]:
    return {
        one["reason"]
        for node in cluster.get("nodes")["items"]
        for one in node["status"]["conditions"]
        if one["type"] == "NetworkUnavailable"
    }


def test_pods_reach_each_other_across_nodes(cluster: KubeLab, web: list[dict[str, Any]]) -> None:
    assert {pod["spec"]["nodeName"] for pod in web} == cluster.nodes.keys()
    for pod in web:
        for other in web:
            got = fetch(cluster, pod["metadata"]["name"], other["status"]["podIP"])
            assert got == other["metadata"]["name"]


def test_pods_reach_the_api_server_by_its_service(cluster: KubeLab, web: list[dict[str, Any]]) -> None:
    for pod in web:
        ask = (pod["metadata"]["name"], "sh", "-c", f"nc -w 3 {API} 443 </dev/null")
        wait_until(lambda ask=ask: cluster.run_in(*ask).returncode == 0, "an answer", 240, cluster.evidence)  # type: ignore[misc]


def test_a_node_port_is_served_by_every_node(cluster: KubeLab, web: list[dict[str, Any]]) -> None:
    names = {pod["metadata"]["name"] for pod in web}
    for node in cluster.nodes.values():
        wait_until(lambda node=node: from_outside(f"http://{node.ip}:30080/") in names, node.name, 240)  # type: ignore[misc]


def test_a_local_service_is_served_where_its_pod_is_and_knows_who_asks(cluster: KubeLab, one: str) -> None:
    first, *others = cluster.nodes.values()
    wait_until(
        lambda: from_outside(f"http://{first.ip}:30081/cgi-bin/who") == "172.18.0.1",
        "the asking address to be kept", 240, cluster.evidence,
    )  # fmt: skip
    for node in others:
        assert from_outside(f"http://{node.ip}:30081/cgi-bin/who") == ""


def test_calicoctl_shows_what_there_is(cluster: KubeLab, web: list[dict[str, Any]]) -> None:
    table = cluster.calicoctl("get", "workloadendpoints").stdout
    assert table.split("\n")[0].split() == ["WORKLOAD", "NODE", "NETWORKS", "INTERFACE"]
    for pod in web:
        [line] = [one for one in table.splitlines() if one.startswith(f"{pod['metadata']['name']} ")]
        assert line.split()[1:3] == [pod["spec"]["nodeName"], f"{pod['status']['podIP']}/32"]
    for node in cluster.nodes:  # on the machine itself, whose processes the agent's container does not see
        status = cluster.calicoctl("node", "status", node=node).stdout
        assert status.startswith("Calico process is running.")
        assert status.count("| node-to-node mesh | up ") == len(cluster.nodes) - 1


def test_a_policy_of_kubernetes_is_enforced_and_shown(cluster: KubeLab, web: list[dict[str, Any]]) -> None:
    first, second = (pod["metadata"]["name"] for pod in web[:2])
    address = web[1]["status"]["podIP"]
    cluster.apply(json.dumps(DENY))
    try:
        wait_until(lambda: fetch(cluster, first, address) == "", "the policy to deny", 240)
        names = [one["metadata"]["name"] for one in shown(cluster, "get", "networkPolicy")["items"]]
        assert names == ["knp.default.deny"]
    finally:
        cluster.kubectl("delete", "networkpolicy", "deny")
    wait_until(lambda: fetch(cluster, first, address) == second, "the policy to be gone", 240)


def test_the_credential_is_the_plugins_own(cluster: KubeLab) -> None:
    path = cluster.nodes["node-1"].box.path("/etc/cni/net.d/calico-kubeconfig")
    token = yaml.safe_load(path.read_text())["users"][0]["user"]["token"]
    for words, allowed in (
        (["get", "ippools"], "yes"),
        (["get", "secrets"], "no"),
        (["list", "services"], "no"),
    ):
        answer = cluster.kubectl("--token", token, "auth", "can-i", *words, check=False)
        assert answer.stdout.strip() == allowed, words
