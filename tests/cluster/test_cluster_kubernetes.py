"""The whole agent on the Kubernetes datastore: with a node's rights and no more, on a real API server."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.cluster_bgp import apply, await_status, calicoctl
from tests.cluster.cluster_kubernetes import (
    NATIVE,
    OURS,
    ROUTER,
    Router,
    allow,
    ask,
    await_refused,
    clear,
    policies,
    reach,
)
from tests.cluster.cluster_pools import add_pod_of
from tests.support.kubernetes import programs
from tortie.core.speaker import Speaker
from tortie.lab.cluster import UNDERLAY, Lab, LabNode, wait_until
from tortie.lab.pods import Pod
from tortie.lab.probe import Probe, run
from tortie.lab.traffic import Flow

pytestmark = pytest.mark.cluster

SERVICE, OUTSIDE, SERVICES = "10.96.100.1", "203.0.113.7", "/api/v1/namespaces/default/services"


@pytest.fixture(scope="module")
def lab(speaker: Speaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three ready nodes, node-2 with BIRD; four pods that reach each other: a and d on node-1, b on node-2, c
    on node-3."""
    programs("kube-apiserver")
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, speakers=(speaker, "bird", speaker), kubernetes=True)
    try:
        lab.up()
        for name, node in [("a", "node-1"), ("b", "node-2"), ("c", "node-3"), ("d", "node-1")]:
            lab.add_pod(name, node, labels={"app": name}, ports=[{"name": "http", "containerPort": 80}])
        yield lab
    finally:
        lab.down()


@pytest.fixture
def pods(lab: Lab) -> Iterator[Lab]:
    """The lab without policies, which are gone again afterwards."""
    await_refused(lab)
    yield lab
    clear(
        lab, f"{NATIVE}/namespaces/default/networkpolicies", f"{OURS}/namespaces/default/networkpolicies",
        SERVICES, "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices",
    )  # fmt: skip


def shown(lab: Lab, *args: str) -> Any:
    """What calicoctl gives as YAML."""
    answer = lab.calicoctl(*args, "-o", "yaml")
    assert answer.returncode == 0, answer.stderr
    return yaml.safe_load(answer.stdout)


def test_what_is_written_for_nodes_and_pods(pods: Lab) -> None:
    for node in pods.nodes.values():
        for other in pods.nodes.values():
            if other is not node:
                await_status(pods, node, other.ip, "node-to-node mesh", "up", "Established")
    node = ask(pods, "GET", "/api/v1/nodes/node-1")["metadata"]["annotations"]
    assert node["projectcalico.org/IPv4Address"] == f"{pods.nodes['node-1'].ip}/24"
    wait_until(lambda: _network_available(pods, "node-1"), "Kubernetes to be told of the network", 240)
    pod = ask(pods, "GET", "/api/v1/namespaces/default/pods/a")["metadata"]["annotations"]
    address = f"{pods.pods['a'].address()}/32"
    prefix = "cni.projectcalico.org/"
    assert (pod[f"{prefix}podIP"], pod[f"{prefix}podIPs"]) == (address, address)
    assert pod[f"{prefix}containerID"] == pods.pods["a"].container_id
    endpoint = shown(pods, "get", "wep", "node--1-k8s-a-eth0")["spec"]
    assert endpoint["profiles"] == ["kns.default"] and endpoint["ipNetworks"] == [address]
    assert endpoint["ports"] == [{"name": "http", "port": 80, "protocol": "TCP", "hostPort": 0, "hostIP": ""}]
    assert "found 0 problems" in pods.calicoctl("ipam", "check").stdout


def _network_available(lab: Lab, node: str) -> bool:
    conditions = ask(lab, "GET", f"/api/v1/nodes/{node}")["status"].get("conditions", [])
    return ("NetworkUnavailable", "False") in [(one["type"], one["status"]) for one in conditions]


def test_three_tiers_as_plain_kubernetes_policies(pods: Lab) -> None:
    """Only b reaches d and only a reaches b; calicoctl shows the policies as released Calico does."""
    policies(pods, allow("db", "d", "b"), allow("backend", "b", "a"))
    await_refused(pods, ("a", "d"), ("c", "d"), ("c", "b"), ("d", "b"))
    listed = shown(pods, "get", "networkPolicy")["items"]
    assert [one["metadata"]["name"] for one in listed] == ["knp.default.backend", "knp.default.db"]
    assert listed[1]["spec"]["selector"] == "projectcalico.org/orchestrator == 'k8s' && app == 'd'"
    assert listed[1]["spec"]["order"] == 1000
    rules = pods.nodes["node-1"].box.output("iptables-save", "-t", "filter")
    assert "knp.default.db" in rules
    clear(pods, f"{NATIVE}/namespaces/default/networkpolicies")
    await_refused(pods)


def test_a_label_and_a_namespace_decide_as_they_change(pods: Lab) -> None:
    spec: dict[str, Any] = {"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"]}
    peer = {
        "podSelector": {"matchLabels": {"role": "client"}},
        "namespaceSelector": {"matchLabels": {"team": "x"}},
    }
    spec["ingress"] = [{"from": [peer], "ports": [{"port": "http"}]}]
    policies(pods, {"metadata": {"name": "clients"}, "spec": spec})
    await_refused(pods, ("a", "b"), ("c", "b"), ("d", "b"))
    assert pods.kubernetes is not None
    pods.kubernetes.add_namespace("default", {"team": "x"})
    merge = "application/merge-patch+json"
    path = "/api/v1/namespaces/default/pods/c"
    pods.kubernetes.ask("PATCH", path, {"metadata": {"labels": {"role": "client"}}}, merge)
    await_refused(pods, ("a", "b"), ("d", "b"))
    pods.kubernetes.ask("PATCH", path, {"metadata": {"labels": {"role": None}}}, merge)
    await_refused(pods, ("a", "b"), ("c", "b"), ("d", "b"))


def test_a_service_in_a_rule_is_what_stands_behind_it(pods: Lab) -> None:
    services = {"name": "web", "namespace": "default"}
    rule = {"action": "Allow", "protocol": "TCP", "destination": {"services": services}}
    spec = {"selector": "app == 'a'", "types": ["Egress"], "egress": [rule]}
    body = {"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "spec": spec,
            "metadata": {"name": "only-web", "namespace": "default"}}  # fmt: skip
    rule.pop("protocol")  # a service's ports say it
    calicoctl(pods, "apply", "-f", "-", stdin=json.dumps(body))
    assert pods.kubernetes is not None
    await_refused(pods, ("a", "b"), ("a", "c"), ("a", "d"))
    pods.kubernetes.put_slice("web", "default", [(pods.pods["b"].address(), "node-2")], 80)
    await_refused(pods, ("a", "c"), ("a", "d"))
    pods.kubernetes.put_slice("web", "default", [(pods.pods["c"].address(), "node-3")], 80)
    await_refused(pods, ("a", "b"), ("a", "d"))
    assert not reach(pods, "a", pods.pods["c"].address(), 5432).ok  # not its port


@pytest.fixture
def router(lab: Lab) -> Iterator[Router]:
    router = Router(lab)
    router.start()
    apply(lab, "BGPPeer", "router", {"peerIP": f"{UNDERLAY}.{ROUTER}", "asNumber": 64512})
    yield router
    calicoctl(lab, "delete", "bgppeer", "router")
    router.stop()


def _announce(lab: Lab, **ranges: str) -> None:
    names = ("serviceClusterIPs", "serviceExternalIPs")
    apply(lab, "BGPConfiguration", "default", {n: [{"cidr": ranges[n]}] for n in names if n in ranges})


def test_a_service_reached_from_outside_and_withdrawn_with_its_last_endpoint(
    pods: Lab, router: Router
) -> None:
    first, second = (pods.nodes[name] for name in ("node-1", "node-2"))
    assert pods.kubernetes is not None
    spec = {
        "type": "NodePort",
        "clusterIP": SERVICE,
        "externalIPs": [OUTSIDE],
        "externalTrafficPolicy": "Local",
        "ports": [{"port": 80}],
    }
    ask(pods, "POST", SERVICES, {"metadata": {"name": "web"}, "spec": spec})
    _announce(pods, serviceClusterIPs="10.96.0.0/16", serviceExternalIPs="203.0.113.0/24")
    try:
        everywhere = [node.ip for node in pods.nodes.values()]
        router.await_route("10.96.0.0/16", *everywhere)
        router.await_route("203.0.113.0/24", *everywhere)
        ends = {name: (pods.pods[name].address(), pods.pods[name].box.name) for name in ("a", "b")}
        pods.kubernetes.put_slice("web", "default", [ends["a"]], 80)
        router.await_route(f"{SERVICE}/32", first.ip)
        router.await_route(f"{OUTSIDE}/32", first.ip)

        assert _answers(router, first, pods.pods["a"]) == ["a", "a"]

        pods.kubernetes.put_slice("web", "default", [ends["a"], ends["b"]], 80)
        router.await_route(f"{OUTSIDE}/32", first.ip, second.ip)
        pods.kubernetes.put_slice("web", "default", [ends["b"]], 80)
        router.await_route(f"{SERVICE}/32", second.ip)
        router.await_route(f"{OUTSIDE}/32", second.ip)
        assert _answers(router, second, pods.pods["b"]) == ["b", "b"]
        _label_node(pods, "node-2", "true")
        router.await_route(f"{OUTSIDE}/32")
        router.await_route("203.0.113.0/24", *(ip for ip in everywhere if ip != second.ip))
        _label_node(pods, "node-2", None)
        router.await_route(f"{OUTSIDE}/32", second.ip)
        pods.kubernetes.put_slice("web", "default", [], 80)
        router.await_route(f"{OUTSIDE}/32")
        router.await_route(f"{SERVICE}/32")
        router.await_route("10.96.0.0/16", *everywhere)
    finally:
        _announce(pods)
        for node in (first, second):
            node.box.run("iptables", "-t", "nat", "-F", "PREROUTING", check=False)
    router.await_route("10.96.0.0/16")


def _answers(router: Router, node: LabNode, pod: Pod) -> list[str]:
    """Who answers the router on the service's addresses, with what kube-proxy would write on that node."""
    for address in (SERVICE, OUTSIDE):
        rule = ["-d", address, "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to", f"{pod.address()}:80"]
        node.box.run("iptables", "-t", "nat", "-I", "PREROUTING", *rule)
    outside = os.open(router.box.netns, os.O_RDONLY)
    try:
        return [one.server for one in run([Probe(outside, to, 80) for to in (SERVICE, OUTSIDE)], 60.0)]
    finally:
        os.close(outside)


def _label_node(lab: Lab, node: str, value: str | None) -> None:
    assert lab.kubernetes is not None
    labels = {"node.kubernetes.io/exclude-from-external-load-balancers": value}
    path = f"/api/v1/nodes/{node}"
    lab.kubernetes.ask("PATCH", path, {"metadata": {"labels": labels}}, "application/merge-patch+json")


def test_an_api_server_that_is_away_costs_no_packet_and_no_change(pods: Lab) -> None:
    assert pods.kubernetes is not None
    with Flow(pods.pods["a"], pods.pods["b"]) as flow, Flow(pods.pods["c"], pods.pods["d"]) as other:
        pods.kubernetes.api.stop_server()
        for node in pods.nodes.values():
            node.box.kill("calico-node", "-felix")  # which finds no API server when it comes back
        pods.kubernetes.api.start_server()
        for node in pods.nodes.values():
            node.wait_ready()
    assert (flow.lost, other.lost) == ([], [])
    policies(pods, allow("late", "d", "b"))
    await_refused(pods, ("a", "d"), ("c", "d"))
    late = pods.add_pod("late", "node-2", labels={"app": "b"})
    wait_until(lambda: reach(pods, "late", pods.pods["d"].address()).ok, "the late pod to reach d", 240)
    assert late.address() in pods.calicoctl("get", "wep", "-o", "wide").stdout
    pods.delete_pod("late")
    assert "found 0 problems" in pods.calicoctl("ipam", "check").stdout


def test_a_pool_changes_to_vxlan_and_back(pods: Lab) -> None:
    """Tunnel addresses are annotations of the nodes."""
    name = "default-ipv4-ippool"

    def addresses() -> set[str]:
        nodes = ask(pods, "GET", "/api/v1/nodes")["items"]
        return {
            one["metadata"]["annotations"].get("projectcalico.org/IPv4VXLANTunnelAddr", "") for one in nodes
        }

    calicoctl(pods, "patch", "ippool", name, "-p", '{"spec":{"vxlanMode":"Always"}}')
    wait_until(lambda: len(addresses() - {""}) == 3, "tunnel addresses", 240, lambda: str(addresses()))
    await_refused(pods)

    def tunnelled() -> list[str]:
        shown = pods.nodes["node-1"].box.output("ip", "route")
        return [line for line in shown.splitlines() if "vxlan.calico" in line]

    wait_until(lambda: len(tunnelled()) == 2, "the tunnel to have the blocks", 240, lambda: str(tunnelled()))
    await_refused(pods)
    calicoctl(pods, "patch", "ippool", name, "-p", '{"spec":{"vxlanMode":"Never"}}')
    wait_until(lambda: addresses() == {""}, "the tunnel addresses to go", 240, lambda: str(addresses()))
    await_refused(pods)


def test_a_namespace_chooses_its_pool(pods: Lab) -> None:
    spec = {"cidr": "10.99.0.0/24", "nodeSelector": "!all()"}
    apply(pods, "IPPool", "special", spec)
    assert pods.kubernetes is not None
    pods.kubernetes.add_namespace("other", {}, {"cni.projectcalico.org/ipv4pools": '["special"]'})
    pod = add_pod_of("special", pods, "o", "node-3", "other", serving=False)
    assert pod.address().startswith("10.99.0.")
    pods.delete_pod("o")
    calicoctl(pods, "delete", "ippool", "special")


def test_a_node_reports_itself_as_asked(pods: Lab) -> None:
    spec = {"node": "node-1", "classes": ["Agent", "BGP"], "updatePeriodSeconds": 10}
    apply(pods, "CalicoNodeStatus", "first", spec)

    def established() -> int:
        found = shown(pods, "get", "caliconodestatus", "first").get("status", {})
        return found.get("bgp", {}).get("numberEstablishedV4", 0)  # type: ignore[no-any-return]

    wait_until(lambda: established() == 2, "the status of node-1", 240)
    calicoctl(pods, "delete", "caliconodestatus", "first")
