"""A real Kubernetes goes on: agents are rolled, the control plane restarts, pods come and go in bursts."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kube.kube_pods import quiet, shown, start
from tests.support.gap import cut
from tortie.lab.cluster import wait_until
from tortie.lab.kube import BUSYBOX, IMAGE, KubeLab
from tortie.lab.pods import Pod
from tortie.lab.traffic import Flow, Stream

pytestmark = [pytest.mark.kube, pytest.mark.timeout(900)]

BURSTS, SIZE = 5, 60  # 300 pods in all, twenty at a time on each node
BURST = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "burst"},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "burst"}},
        "template": {
            "metadata": {"labels": {"app": "burst"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "one", "image": BUSYBOX, "command": ["sleep", "2147483647"]}],
            },
        },
    },
}


@pytest.fixture(scope="module")
def pods(cluster: KubeLab) -> Iterator[dict[str, Pod]]:
    """a on node-1, b on node-2."""
    pods = start(cluster, a="node-1", b="node-2")
    yield pods
    for pod in pods.values():
        os.close(pod.netns_fd)
    cluster.kubectl("delete", "pod", "-l", "app=quiet", "--wait")


@contextlib.contextmanager
def nothing_lost(cluster: KubeLab, pods: dict[str, Pod]) -> Iterator[tuple[Flow, Stream]]:
    """Not a packet between a and b meanwhile, nor an address in the end."""
    with Flow(pods["a"], pods["b"]) as flow, Stream(pods["b"], pods["a"]) as stream:
        yield flow, stream
    assert (flow.lost, stream.failure, stream.retransmitted) == ([], "", 0)
    assert flow.sent > 100 and stream.exchanged > 100
    wait_until(lambda: _clean(cluster), "no address to be lost", 240, lambda: _check(cluster))


def test_what_is_lost_is_noticed(cluster: KubeLab, pods: dict[str, Pod]) -> None:
    """The control: a way taken away for 20 packets fails the watch that the tests below keep."""
    with pytest.raises(AssertionError), nothing_lost(cluster, pods) as (flow, stream):
        to, machine = pods["b"].address(), cluster.nodes["node-1"].box
        gap = cut(machine, flow, to, until=lambda: stream.retransmitted > 0)
    assert gap.certain <= set(flow.lost) <= gap.possible
    assert stream.retransmitted > 0 and stream.failure == ""


def test_a_pools_mode_is_shown_and_edited(cluster: KubeLab, pods: dict[str, Pod]) -> None:
    """To a tunnel between subnets, of which there is one: no route changes, even if no kernel has IPIP."""
    agents = cluster.agents()
    with nothing_lost(cluster, pods):
        for mode, in_use in (("CrossSubnet", True), ("Never", False)):
            pool = shown(cluster, "get", "ippool", "default-ipv4-ippool")
            assert pool["spec"]["ipipMode"] != mode
            pool["spec"]["ipipMode"] = mode
            answer = cluster.calicoctl("apply", "-f", "-", stdin=json.dumps(pool))
            assert answer.stdout == "Successfully applied 1 'IPPool' resource(s)\n", answer.stderr
            assert shown(cluster, "get", "ippool", "default-ipv4-ippool")["spec"] == pool["spec"]
            wait_until(lambda wanted=in_use: _tunnels(cluster) == [wanted] * 3, "nodes to follow", 120)  # type: ignore[misc]
            if in_use:
                wait_until(
                    lambda: all(_has_tunl0_or_says_why_not(cluster, one) for one in agents),
                    "felix to make tunl0", 120, cluster.evidence,
                )  # fmt: skip
        cluster.wait_ready()


def _tunnels(cluster: KubeLab) -> list[bool]:
    """Whether each node has an address for an end of IPIP tunnels."""
    name = "projectcalico.org/IPv4IPIPTunnelAddr"
    return [name in one["metadata"]["annotations"] for one in cluster.get("nodes")["items"]]


def _has_tunl0_or_says_why_not(cluster: KubeLab, agent: dict[str, Any]) -> bool:
    node = cluster.nodes[agent["spec"]["nodeName"]]
    if "inet" in node.box.run("ip", "addr", "show", "tunl0", check=False).stdout:
        return True
    logs = cluster.kubectl("-n", "kube-system", "logs", agent["metadata"]["name"], "-c", "calico-node")
    return "this kernel has no IPIP tunnels (kernel module ipip)" in logs.stdout


def test_another_image_for_the_agents_loses_nothing(cluster: KubeLab, pods: dict[str, Pod]) -> None:
    image = f"{IMAGE}-1"
    for node in cluster.nodes.values():
        node.tag(IMAGE, image)
    with nothing_lost(cluster, pods):
        change = ("daemonset/calico-node", f"calico-node={image}", f"install-cni={image}")
        cluster.kubectl("-n", "kube-system", "set", "image", *change)
        wait_until(lambda: _rolled(cluster), "the agents to be rolled", 600, cluster.evidence)
    used = {one["image"] for pod in cluster.agents() for one in pod["spec"]["containers"]}
    assert used == {image}


def test_an_agent_that_is_deleted_loses_nothing(cluster: KubeLab, pods: dict[str, Pod]) -> None:
    [agent] = [one for one in cluster.agents() if one["spec"]["nodeName"] == "node-1"]
    with nothing_lost(cluster, pods):
        cluster.kubectl("-n", "kube-system", "delete", "pod", agent["metadata"]["name"], "--wait")
        cluster.wait_ready()


def _rolled(cluster: KubeLab) -> bool:
    found = cluster.get("-n", "kube-system", "daemonset", "calico-node")
    status, count = found["status"], len(cluster.nodes)
    states = (status.get("updatedNumberScheduled", 0), status.get("numberAvailable", 0))
    seen: bool = status["observedGeneration"] == found["metadata"]["generation"]
    return seen and states == (count, count)


def test_a_restart_of_the_control_plane_loses_nothing(cluster: KubeLab, pods: dict[str, Pod]) -> None:
    with nothing_lost(cluster, pods):
        cluster.api.stop_server()
        cluster.etcd.kill()
        cluster.etcd.start()
        cluster.api.start_server()
        cluster.wait_ready()


def test_a_reboot_costs_others_nothing_and_leaks_no_address(cluster: KubeLab, pods: dict[str, Pod]) -> None:
    """A machine is switched off without a word, and comes back with its disk."""
    cluster.apply(json.dumps(quiet("c", "node-3")))
    cluster.wait_pods("app=quiet", 3)
    with nothing_lost(cluster, pods):
        cluster.reboot("node-3")
        wait_until(lambda: _restarted(cluster, "c"), "the pod to run again", 400, cluster.evidence)
        cluster.wait_ready()
    cluster.kubectl("delete", "pod", "c", "--wait")


def _restarted(cluster: KubeLab, pod: str) -> bool:
    [state] = cluster.get("pod", pod)["status"]["containerStatuses"]
    return bool(state["ready"]) and int(state["restartCount"]) > 0


def test_bursts_of_pods_leave_no_address_behind(cluster: KubeLab) -> None:
    cluster.apply(json.dumps(BURST))
    for _ in range(BURSTS):
        cluster.kubectl("scale", "deployment/burst", f"--replicas={SIZE}")
        found = cluster.wait_pods("app=burst", SIZE)
        addresses = [one["status"]["podIP"] for one in found]
        assert len(set(addresses)) == SIZE
        cluster.kubectl("scale", "deployment/burst", "--replicas=0")
        wait_until(lambda: not cluster.get("pods", "-l", "app=burst")["items"], "them to be gone", 480)
    cluster.kubectl("delete", "deployment/burst")
    wait_until(lambda: _clean(cluster), "all addresses to be given back", 240, lambda: _check(cluster))


def _clean(cluster: KubeLab) -> bool:
    return "found 0 problems" in _check(cluster)


def _check(cluster: KubeLab) -> str:
    answer = cluster.calicoctl("ipam", "check", "--show-problem-ips")
    return answer.stdout + answer.stderr
