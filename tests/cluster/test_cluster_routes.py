"""What a Calico user looks at on a node and in a pod reads as it always has."""

import json
import re

import pytest

from tests.cluster.cluster_bgp import apply, await_status, calicoctl, check_routes
from tortie.lab import probe
from tortie.lab.box import LabError
from tortie.lab.cluster import Lab, wait_until

pytestmark = pytest.mark.cluster


def test_a_nodes_routes(pods: Lab) -> None:
    check_routes(pods, pods.nodes["node-1"])


def test_a_pods_routes_and_gateway(pods: Lab) -> None:
    pod = pods.pods["a"]
    assert pod.output("ip", "route").splitlines() == [
        "default via 169.254.1.1 dev eth0 ",
        "169.254.1.1 dev eth0 scope link ",
    ]
    pod.output("ip", "neigh", "flush", "all")
    pod.output("ping", "-c", "1", "-W", "60", pods.pods["b"].address())
    assert "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee" in pod.output("ip", "neigh")
    link = re.search(rf"^{re.escape(pod.address())} dev (cali\S+)", pod.box.output("ip", "route"), re.M)
    assert link is not None
    assert pod.box.output("cat", f"/proc/sys/net/ipv4/conf/{link[1]}/proxy_arp").strip() == "1"
    assert "ee:ee:ee:ee:ee:ee" in pod.box.output("ip", "link", "show", link[1])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_pod_reaches_every_other_with_its_own_address(pods: Lab, protocol: str) -> None:
    for (client, server), answer in pods.matrix(protocol=protocol, refused=()).items():
        assert answer.server == server, f"{client} -> {server}: {answer}"
        assert answer.source == pods.pods[client].address(), "no address translation between pods"


def test_packets_of_just_the_underlays_size_pass_whole(pods: Lab) -> None:
    """Without encapsulation nothing is taken off."""
    assert pods.nodes["node-1"].box.path("/var/lib/calico/mtu").read_text().strip() == "1500"
    ping = ["ping", "-M", "do", "-c", "1", "-W", "60", pods.pods["b"].address(), "-s"]
    assert " 0% packet loss" in pods.pods["a"].output(*ping, str(1500 - 28))
    with pytest.raises(LabError, match="essage too long"):
        pods.pods["a"].output(*ping, str(1500 - 28 + 1))


def test_calicoctl_sees_the_cluster(pods: Lab) -> None:
    for other in ("node-2", "node-3"):  # its routes come first
        await_status(
            pods, pods.nodes["node-1"], pods.nodes[other].ip, "node-to-node mesh", "up", "Established"
        )
    status = pods.calicoctl("node", "status", node="node-1")
    assert status.returncode == 0
    assert status.stdout.startswith("Calico process is running.\n\nIPv4 BGP status\n")
    for other in ("node-2", "node-3"):
        cells = [re.escape(pods.nodes[other].ip), "node-to-node mesh", "up", r"[\d:]{8}", "Established"]
        row = r"^\| " + r" +\| ".join(cells) + r" +\|$"
        assert re.search(row, status.stdout, re.M), status.stdout
    endpoints = pods.calicoctl("get", "workloadendpoints").stdout
    assert endpoints.splitlines()[0].split() == ["WORKLOAD", "NODE", "NETWORKS", "INTERFACE"]
    assert re.search(rf"^a +node-1 +{re.escape(pods.pods['a'].address())}/32 +cali", endpoints, re.M)
    nodes = pods.calicoctl("get", "nodes", "-o", "wide").stdout
    assert re.search(r"^node-2 +\(64512\) +172\.18\.0\.12/24", nodes, re.M)


def test_packets_to_the_outside_are_masqueraded(pods: Lab) -> None:
    import socket
    import threading

    from tortie.linux import netns

    with socket.create_server((f"{pods.nodes['node-1'].ip.rpartition('.')[0]}.1", 8080)) as server:
        server.settimeout(120)
        seen: list[str] = []

        def accept() -> None:
            connection, peer = server.accept()
            seen.append(peer[0])
            connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        client = netns.call_in(pods.pods["a"].netns_fd, socket.socket)
        with client:
            client.settimeout(120)
            client.connect(server.getsockname())
        thread.join()
    assert seen == [pods.nodes["node-1"].ip]


def test_what_a_pods_annotations_ask_for_stands_until_it_is_taken_back(pods: Lab) -> None:
    """An external address in a pool is announced, like every address that is not in a block of its node."""
    permitted = json.dumps({"spec": {"floatingIPs": "Enabled", "workloadSourceSpoofing": "Any"}})
    calicoctl(pods, "patch", "felixconfiguration", "node.node-1", "-p", permitted)
    apply(pods, "IPPool", "external", {"cidr": "10.77.0.0/24", "nodeSelector": "!all()"})
    pods.add_pod("wishing", "node-1", annotations={
        "cni.projectcalico.org/floatingIPs": '["10.77.0.7"]',
        "cni.projectcalico.org/allowedSourcePrefixes": '["10.88.0.0/16"]',
        "qos.projectcalico.org/egressBandwidth": "100M",
        "qos.projectcalico.org/ingressPacketRate": "500",
        "qos.projectcalico.org/egressMaxConnections": "77",
    })  # fmt: skip
    near, far = pods.nodes["node-1"].box, pods.nodes["node-2"].box
    commands = ("iptables-save", "ip route", "tc qdisc")
    signs = ("-s 10.88.0.0/16", "10.77.0.7", "rate 100Mbit", "500/sec", "connlimit-above 77")

    def standing() -> list[str]:
        text = "".join(near.output(*command.split()) for command in commands)
        return [sign for sign in signs if sign in text]

    def announced() -> bool:
        return f"10.77.0.7 via {pods.nodes['node-1'].ip} " in far.output("ip", "route")

    def answer() -> str:
        return probe.run([probe.Probe(pods.pods["b"].netns_fd, "10.77.0.7", 80)])[0].server

    wait_until(lambda: standing() == list(signs) and announced(), "all of it", 240, lambda: str(standing()))
    wait_until(lambda: answer() == "wishing", "an answer from the external address", 240)
    nothing = json.dumps({"spec": {"ipNATs": None, "allowSpoofedSourcePrefixes": None, "qosControls": None}})
    calicoctl(pods, "patch", "workloadendpoint", "node--1-k8s-wishing-eth0", "-p", nothing)
    wait_until(lambda: not (standing() or announced()), "none of it", 240, lambda: str(standing()))
    assert all(each.ok for each in pods.matrix(refused=()).values())


def test_a_deleted_pod_leaves_nothing(lab: Lab) -> None:
    node = lab.nodes["node-2"]

    def there() -> tuple[int, list[object]]:
        """Not the blocks: whether the node has one already depends on what was before."""
        routes = [route["dst"] for route in node.routes() if not str(route["dst"]).endswith("/26")]
        return node.box.output("ip", "-o", "link").count("cali"), routes

    before = there()
    for number in range(5):
        lab.add_pod(f"gone-{number}", "node-2")
    for number in range(5):
        lab.delete_pod(f"gone-{number}")
    assert there() == before
    assert "gone-" not in lab.calicoctl("get", "wep", "-A").stdout
    node.wait_until(
        lambda: "cali-tw-" not in node.box.output("iptables-save", "-t", "filter"),
        "the chains of deleted pods to go",
    )
