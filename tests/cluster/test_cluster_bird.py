"""Nodes whose BGP speaker is BIRD, in one mesh with a node whose is ExaBGP."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.cluster.cluster_bgp import (
    Peers,
    apply,
    await_heard,
    await_status,
    bgp_status,
    calicoctl,
    check_routes,
)
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.traffic import Flow

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """BIRD on node-1 and node-2, ExaBGP on node-3; both IP versions."""
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, ipv6=True, speakers=("bird", "bird", "exabgp"))
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


def test_the_tables_are_the_same_with_either(pods: Lab) -> None:
    """The kernel's, `node status`, `bgp peers`, `bgp routes`, CalicoNodeStatus."""
    _all_told(pods)
    for node in pods.nodes.values():
        others = [other for other in pods.nodes.values() if other is not node]
        for address in (address for other in others for address in (other.ip, other.ip6)):
            await_status(pods, node, address, "node-to-node mesh", "up", "Established")
        check_routes(pods, node)
        ways = r"node-to-node mesh \| up +\| [\d:]+ \| +1 \| +0 \| +1 \| Established \|$"
        await_rows(pods, node, "peers", *(rf"\| {other.ip} +\| {ways}" for other in others))
        block = r"\| \* \| 192\.168\.\S+/26 +\|"
        learned = [rf"{block} {other.ip} +\| eth0 +\| {other.ip} " for other in others]
        await_rows(pods, node, "routes", *learned, rf"{block} N/A +\| blackhole +\| static ")
        _report(pods, node)
        peers = pods.calicoctl("bgp", "peers", node.name).stdout
        assert peers.count("Established") == 4, peers


def await_rows(lab: Lab, node: LabNode, what: str, *rows: str) -> None:
    """Wait until `calicoctl bgp WHAT` on a node shows these patterns."""

    def shown() -> str:
        return lab.calicoctl("bgp", what, "--local", node=node.name).stdout

    def so() -> bool:
        text = shown()
        return all(re.search(f"^{row}", text, re.M) for row in rows)

    wait_until(so, f"{rows} on {node.name}", 240, shown)


def _report(lab: Lab, node: LabNode) -> None:
    """Have the node keep a CalicoNodeStatus, and wait for the first."""
    classes = ["Agent", "BGP", "Routes"]
    spec = {"node": node.name, "classes": classes, "updatePeriodSeconds": 1}
    apply(lab, "CalicoNodeStatus", node.name, spec)

    def stored() -> str:
        return lab.calicoctl("get", "caliconodestatus", node.name, "-o", "json").stdout

    def so() -> bool:
        found = json.loads(stored()).get("status") or {}
        bgp = found.get("bgp") or {}
        return (bgp.get("numberEstablishedV4"), bgp.get("numberEstablishedV6")) == (2, 2)

    wait_until(so, f"{node.name}'s CalicoNodeStatus", 240, stored)
    found = json.loads(stored())["status"]
    assert found["agent"]["birdV4"]["state"] == "Ready" and found["agent"]["birdV4"]["routerID"] == node.ip
    learned = {route["learnedFrom"]["sourceType"] for route in found["routes"]["routesV4"]}
    assert {"NodeMesh", "Static"} <= learned


# part of a node -> words of its command line
_PARTS = {"IPv4": ["bird", "bird.ctl"], "IPv6": ["bird", "bird6.ctl"], "confd": ["calico-node", "-confd"]}


@pytest.mark.parametrize("part", _PARTS)
def test_a_killed_part_comes_back_and_nothing_is_lost(pods: Lab, part: str) -> None:
    node, words = pods.nodes["node-1"], _PARTS[part]
    _all_told(pods)
    before = [pods.nodes[name].routes() for name in pods.nodes]
    with Flow(pods.pods["a"], pods.pods["b"]) as out, Flow(pods.pods["c"], pods.pods["a"]) as back:
        killed = node.box.kill(*words)
        assert killed, f"{part} is not running"
        wait_until(lambda: bool(set(node.box.pids(*words)) - set(killed)), f"{part} to come back", 240)
        _all_told(pods)
    assert (out.lost, back.lost) == ([], []), f"of {out.sent}"
    wait_until(
        lambda: [pods.nodes[name].routes() for name in pods.nodes] == before,
        "the routes to be those before",
        240,
    )


@pytest.mark.parametrize("killed", [True, False])
def test_a_restarted_agent_loses_nothing(pods: Lab, killed: bool) -> None:
    node = pods.nodes["node-1"]
    _all_told(pods)
    with Flow(pods.pods["a"], pods.pods["b"]) as out, Flow(pods.pods["c"], pods.pods["a"]) as back:
        if killed:
            node.kill_agent()
        else:
            node.stop_agent()
        node.start_agent()
        node.wait_ready()
        _all_told(pods)
    assert (out.lost, back.lost) == ([], []), f"of {out.sent}"


def test_an_edit_touches_no_session_that_it_does_not_concern(pods: Lab, peers: Peers) -> None:
    """A filter, a peer that is nowhere, a pool: established sessions keep their uptime."""
    _all_told(pods)
    before = {node.name: _since(node) for node in pods.nodes.values()}
    apply(
        pods,
        "BGPFilter",
        "quiet",
        {"exportV4": [{"action": "Reject", "cidr": "203.0.113.0/24", "matchOperator": "In"}]},
    )
    peers.apply("nowhere", peerIP="172.18.0.250", asNumber=65099, filters=["quiet"])
    for node in pods.nodes.values():
        wait_until(lambda n=node: "172.18.0.250" in _since(n), "the new session", 240)  # type: ignore[misc]
    apply(pods, "BGPFilter", "quiet", {"importV4": [{"action": "Reject"}]})
    peers.clear()
    calicoctl(pods, "delete", "bgpfilter", "quiet")
    for node in pods.nodes.values():
        wait_until(lambda n=node: "172.18.0.250" not in _since(n), "the session to go", 240)  # type: ignore[misc]
    assert {node.name: _since(node) for node in pods.nodes.values()} == before


def test_a_node_changes_its_speaker_and_back_and_nothing_is_lost(pods: Lab) -> None:
    """What one left in the kernel carries the traffic until the other knows better, and goes then."""
    node = pods.nodes["node-2"]
    _all_told(pods)
    with Flow(pods.pods["a"], pods.pods["b"]) as into, Flow(pods.pods["b"], pods.pods["c"]) as out:
        for speaker, left in (("exabgp", "bird"), ("bird", "bgp")):
            node.stop_agent()
            node.start_agent(CALICO_NETWORKING_BACKEND=speaker)
            node.wait_ready()
            _all_told(pods)
            for version in ("-4", "-6"):
                node.wait_until(
                    lambda v=version, x=left: node.box.output("ip", v, "route", "show", "proto", x) == "",  # type: ignore[misc]
                    f"the routes of {left} to go",
                )
    assert (into.lost, out.lost) == ([], []), f"of {into.sent}"


def test_passwords_of_the_mesh_are_set_changed_and_taken_away(pods: Lab) -> None:
    """By file, as with etcd alone; with a wrong one there is no session."""
    _password(pods, *pods.nodes, text="first")
    apply(
        pods,
        "BGPConfiguration",
        "default",
        {"nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}}},
    )
    one, two, three = pods.nodes.values()
    _until_secured(pods)
    _password(pods, "node-1", text="second")
    for other in (two, three):
        await_status(pods, one, other.ip, "node-to-node mesh", "start")
    _password(pods, "node-2", "node-3", text="second")
    _until_secured(pods)
    calicoctl(pods, "delete", "bgpconfiguration", "default")
    _all_told(pods)
    _until_secured(pods, keys=0)


def _password(lab: Lab, *nodes: str, text: str) -> None:
    for name in nodes:
        folder = lab.nodes[name].box.path("/etc/calico/secrets/bgp")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mesh").write_text(text)


def _until_secured(lab: Lab, keys: int = 4) -> None:
    """Wait until each node has so many sessions with a password, and all its sessions are up."""

    def so() -> bool:
        return all(_sockets(node).count("md5keys:") == keys for node in lab.nodes.values())

    _all_told(lab)
    wait_until(so, f"{keys} sessions with a password", 90, lambda: "".join(map(_sockets, lab.nodes.values())))
    _all_told(lab)


def _sockets(node: LabNode) -> str:
    """Established BGP sessions in the kernel's words."""
    return node.box.output("ss", "-tniO", "state", "established", "( sport = :179 or dport = :179 )")


def _all_told(lab: Lab) -> None:
    """All sessions are up, and each has told its node's one block."""
    for node in lab.nodes.values():
        others = [other for other in lab.nodes.values() if other is not node]
        await_heard(node, [address for other in others for address in (other.ip, other.ip6)], 1)


def _since(node: LabNode) -> dict[str, float]:
    said = bgp_status(node)
    return {peer.address: peer.since for peer in said.peers} if said else {}
