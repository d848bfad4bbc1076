"""Killing every part of a node and the datastore while traffic runs: nothing is lost."""

import time
from collections.abc import Callable

import pytest

from tests.cluster.cluster_bgp import Peers, hold_times
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.traffic import Flow, Stream

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# part of a node -> words of its command line
PARTS = {
    "felix": ["calico-node", "-felix"],
    "confd": ["calico-node", "-confd"],
    "bgp": ["tortie.bgp.agent"],
    "exabgp": ["tortie.bgp.exabgp"],
    "cni": ["calico-node", "-cni-server"],
}


def settled(node: LabNode) -> Callable[[], bool]:
    return lambda: all(node.box.pids(*words) for words in PARTS.values()) and node.ready()


def test_the_measurement_notices_a_gap(pods: Lab) -> None:
    """The control: a route taken away for 20 packets must show as loss, or the tests below prove nothing."""
    node, target = pods.nodes["node-1"], pods.pods["b"]
    with Flow(pods.pods["a"], target) as flow, Stream(pods.pods["a"], target) as stream:

        def more() -> None:
            following = flow.sent + 20
            wait_until(lambda: flow.sent >= following, "packets to be sent", 30)

        more()
        earliest = flow.sent
        node.box.run("ip", "route", "add", "blackhole", target.address())
        began = flow.sent + 1  # one may be on its way
        more()
        ended = flow.sent
        node.box.run("ip", "route", "del", "blackhole", target.address())
        latest = flow.sent + 1
        more()
    assert set(range(began, ended)) <= set(flow.lost) <= set(range(earliest, latest))
    assert stream.retransmitted > 0 and stream.failure == ""


@pytest.mark.parametrize("part", PARTS)
def test_a_killed_part_comes_back_and_nothing_is_lost(pods: Lab, part: str) -> None:
    node = pods.nodes["node-1"]
    before = sorted(map(str, node.routes()))
    with (
        Flow(pods.pods["a"], pods.pods["b"]) as out,
        Flow(pods.pods["c"], pods.pods["a"]) as back,
        Stream(pods.pods["a"], pods.pods["b"]) as stream,
    ):
        killed = node.box.kill(*PARTS[part])
        assert killed, f"no {part} is running"
        node.wait_until(lambda: not set(killed) & set(node.box.pids(*PARTS[part])), f"{part} to die")
        node.wait_until(settled(node), f"everything to be ready after the death of {part}", 60)
        time.sleep(1.0)  # whatever it does after it is ready must not disturb either
    assert (out.lost, back.lost) == ([], []), f"of {out.sent}"
    assert (stream.failure, stream.retransmitted) == ("", 0)
    assert sorted(map(str, node.routes())) == before


def test_a_killed_datastore_comes_back_and_nothing_is_lost(pods: Lab) -> None:
    with Flow(pods.pods["a"], pods.pods["b"]) as flow, Stream(pods.pods["a"], pods.pods["c"]) as stream:
        pods.etcd.kill()
        time.sleep(3.0)
        pods.etcd.start()
        time.sleep(1.0)
    assert flow.lost == [] and stream.failure == ""
    pods.add_pod("late", "node-2")  # and the cluster works again
    wait_until(lambda: all(a.ok for a in pods.matrix().values()), "the late pod to be reachable", 60)


def test_a_frozen_datastore_stops_no_traffic(pods: Lab) -> None:
    with Flow(pods.pods["a"], pods.pods["b"]) as flow:
        pods.etcd.freeze()
        time.sleep(3.0)
        pods.etcd.thaw()
        time.sleep(0.5)
    assert flow.lost == []


def test_a_whole_agent_killed_and_started_again_loses_nothing(pods: Lab) -> None:
    node = pods.nodes["node-1"]
    with Flow(pods.pods["a"], pods.pods["b"]) as flow, Stream(pods.pods["c"], pods.pods["a"]) as stream:
        node.kill_agent()
        time.sleep(2.0)
        node.start_agent()
        node.wait_until(settled(node), "the new agent to be ready", 60)
        time.sleep(1.0)
    assert flow.lost == [] and stream.failure == ""


def test_a_stopped_agent_leaves_the_dataplane_alone(pods: Lab) -> None:
    node = pods.nodes["node-1"]
    before = (node.routes(), node.box.output("iptables-save", "-t", "filter").count("cali-tw-"))
    node.stop_agent()
    assert not node.node_pids(), "every process of the node ended with it"
    after = (node.routes(), node.box.output("iptables-save", "-t", "filter").count("cali-tw-"))
    assert after == before
    assert all(a.ok for a in pods.matrix().values())
    node.start_agent()
    node.wait_until(settled(node), "the agent to be ready", 60)


def test_a_dead_machines_routes_go_within_the_hold_time_and_return_with_it(pods: Lab, peers: Peers) -> None:
    """Power off: no FIN, no NOTIFICATION. Only the hold timer can tell; keep-alives every 2 s make it 6 s."""
    other, dead = pods.nodes["node-1"], pods.nodes["node-3"]

    def routes_to_dead() -> list[object]:
        return [r for r in other.routes() if r.get("gateway") == dead.ip]

    peers.apply("quick", nodeSelector="all()", peerSelector="all()", keepaliveTime="2s")
    wait_until(lambda: hold_times(pods) == {6}, "all sessions to have the short hold time", 60)
    assert routes_to_dead()
    dead.box.run("ip", "link", "set", "eth0", "down")
    other.wait_until(lambda: not routes_to_dead(), "the dead node's routes to go", 6 + 9)
    dead.box.run("ip", "link", "set", "eth0", "up")
    dead.box.run("ip", "route", "replace", "default", "via", "172.18.0.1")
    other.wait_until(lambda: bool(routes_to_dead()), "the routes to return", 60)
    wait_until(lambda: all(a.ok for a in pods.matrix().values()), "the pods to reach each other", 60)
