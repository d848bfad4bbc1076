"""What a Calico user looks at on a node and in a pod reads as it always has."""

import re

import pytest

from tortie.lab.cluster import Lab

pytestmark = pytest.mark.cluster


def test_a_nodes_routes(pods: Lab) -> None:
    text = pods.nodes["node-1"].box.output("ip", "route")
    own = re.findall(r"^blackhole (192\.168\.\d+\.\d+/26) proto bgp $", text, re.M)
    assert len(own) == 1, text
    for name in ("a", "d"):
        address = pods.pods[name].address()
        assert re.search(rf"^{re.escape(address)} dev cali[0-9a-f]{{11}} scope link $", text, re.M), text
    for other in ("node-2", "node-3"):
        via = re.escape(pods.nodes[other].ip)
        pattern = rf"^192\.168\.\d+\.\d+/26 via {via} dev eth0 proto bgp onlink $"
        assert len(re.findall(pattern, text, re.M)) == 1, text


def test_a_pods_routes_and_gateway(pods: Lab) -> None:
    pod = pods.pods["a"]
    assert pod.output("ip", "route").splitlines() == [
        "default via 169.254.1.1 dev eth0 ",
        "169.254.1.1 dev eth0 scope link ",
    ]
    pod.output("ip", "neigh", "flush", "all")
    pod.output("ping", "-c", "1", "-W", "2", pods.pods["b"].address())
    assert "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee" in pod.output("ip", "neigh")
    link = re.search(rf"^{re.escape(pod.address())} dev (cali\S+)", pod.box.output("ip", "route"), re.M)
    assert link is not None
    assert pod.box.output("cat", f"/proc/sys/net/ipv4/conf/{link[1]}/proxy_arp").strip() == "1"
    assert "ee:ee:ee:ee:ee:ee" in pod.box.output("ip", "link", "show", link[1])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_pod_reaches_every_other_with_its_own_address(pods: Lab, protocol: str) -> None:
    for (client, server), answer in pods.matrix(protocol=protocol).items():
        assert answer.server == server, f"{client} -> {server}: {answer}"
        assert answer.source == pods.pods[client].address(), "no address translation between pods"


def test_calicoctl_sees_the_cluster(pods: Lab) -> None:
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
        server.settimeout(30)
        seen: list[str] = []

        def accept() -> None:
            connection, peer = server.accept()
            seen.append(peer[0])
            connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        client = netns.call_in(pods.pods["a"].netns_fd, socket.socket)
        with client:
            client.settimeout(30)
            client.connect(server.getsockname())
        thread.join()
    assert seen == [pods.nodes["node-1"].ip]


def test_a_deleted_pod_leaves_nothing(lab: Lab) -> None:
    node = lab.nodes["node-2"]
    before = (node.box.output("ip", "-o", "link").count("cali"), len(node.routes()))
    for number in range(5):
        lab.add_pod(f"gone-{number}", "node-2")
    for number in range(5):
        lab.delete_pod(f"gone-{number}")
    assert (node.box.output("ip", "-o", "link").count("cali"), len(node.routes())) == before
    assert "gone-" not in lab.calicoctl("get", "wep", "-A").stdout
    node.wait_until(
        lambda: "cali-tw-" not in node.box.output("iptables-save", "-t", "filter"),
        "the chains of deleted pods to go",
    )
