"""Killing every part of a node and the datastore while traffic runs: nothing is lost."""

import time
from collections.abc import Callable

import pytest

from tests.cluster.cluster_bgp import Peers, hold_times
from tests.support.gap import cut
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.traffic import Flow, Stream

pytestmark = pytest.mark.cluster

# part of a node -> words of its command line
_ALWAYS = {
    "felix": ["calico-node", "-felix"],
    "confd": ["calico-node", "-confd"],
    "cni": ["calico-node", "-cni-server"],
}
PARTS = {  # speaker -> the parts of its nodes
    "exabgp": {**_ALWAYS, "speaker": ["tortie.bgp.exabgp"], "other": ["tortie.bgp.agent"]},
    "bird": {**_ALWAYS, "speaker": ["bird", "bird.ctl"], "other": ["bird", "bird6.ctl"]},
}


def settled(node: LabNode) -> Callable[[], bool]:
    return lambda: all(node.box.pids(*words) for words in PARTS[node.speaker].values()) and node.ready()


def test_the_measurement_notices_a_gap(pods: Lab) -> None:
    """The control: a way taken away for 20 packets must show as loss, or the tests below prove nothing."""
    target = pods.pods["b"]
    with Flow(pods.pods["a"], target) as flow, Stream(pods.pods["a"], target) as stream:
        machine = pods.nodes["node-1"].box
        gap = cut(machine, flow, target.address(), until=lambda: stream.retransmitted > 0)
    assert gap.certain <= set(flow.lost) <= gap.possible
    assert stream.retransmitted > 0 and stream.failure == ""


@pytest.mark.parametrize("part", [*_ALWAYS, "speaker", "other"])
def test_a_killed_part_comes_back_and_nothing_is_lost(pods: Lab, part: str) -> None:
    node = pods.nodes["node-1"]
    words = PARTS[node.speaker][part]
    before = sorted(map(str, node.routes()))
    with (
        Flow(pods.pods["a"], pods.pods["b"]) as out,
        Flow(pods.pods["c"], pods.pods["a"]) as back,
        Stream(pods.pods["a"], pods.pods["b"]) as stream,
    ):
        killed = node.box.kill(*words)
        assert killed, f"no {part} is running"
        node.wait_until(lambda: not set(killed) & set(node.box.pids(*words)), f"{part} to die")
        node.wait_until(settled(node), f"everything to be ready after the death of {part}", 240)
        time.sleep(1.0)  # whatever it does after it is ready must not disturb either
    assert (out.lost, back.lost) == ([], []), f"of {out.sent}"
    assert (stream.failure, stream.retransmitted) == ("", 0)
    node.wait_until(lambda: sorted(map(str, node.routes())) == before, "the routes to be those before")


def test_a_killed_datastore_comes_back_and_nothing_is_lost(pods: Lab) -> None:
    with Flow(pods.pods["a"], pods.pods["b"]) as flow, Stream(pods.pods["a"], pods.pods["c"]) as stream:
        pods.etcd.kill()
        time.sleep(3.0)
        pods.etcd.start()
        time.sleep(1.0)
    assert (flow.lost, stream.failure, stream.retransmitted) == ([], "", 0)
    pods.add_pod("late", "node-2")  # and the cluster works again
    wait_until(lambda: all(a.ok for a in pods.matrix().values()), "the late pod to be reachable", 240)


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
        node.wait_until(settled(node), "the new agent to be ready", 240)
        time.sleep(1.0)
    assert (flow.lost, stream.failure, stream.retransmitted) == ([], "", 0)


def test_a_stopped_agent_leaves_the_dataplane_alone(pods: Lab) -> None:
    node = pods.nodes["node-1"]
    before = (node.routes(), node.box.output("iptables-save", "-t", "filter").count("cali-tw-"))
    node.stop_agent()
    # What felix had just started, such as iptables, may be at its end still.
    node.wait_until(lambda: not node.node_pids(), "every process of the node to end with it")
    after = (node.routes(), node.box.output("iptables-save", "-t", "filter").count("cali-tw-"))
    assert after == before
    assert all(a.ok for a in pods.matrix(refused=()).values())
    node.start_agent()
    node.wait_until(settled(node), "the agent to be ready", 240)


def test_a_dead_machines_routes_go_within_the_hold_time_and_return_with_it(pods: Lab, peers: Peers) -> None:
    """Power off: no FIN, no NOTIFICATION. Only the hold timer can tell; keep-alives every 2 s make it 6 s."""
    other, dead = pods.nodes["node-1"], pods.nodes["node-3"]

    def routes_to_dead() -> list[object]:
        return [r for r in other.routes() if r.get("gateway") == dead.ip]

    peers.apply("quick", nodeSelector="all()", peerSelector="all()", keepaliveTime="2s")
    wait_until(lambda: hold_times(pods) == {6}, "all sessions to have the short hold time", 240)
    other.wait_until(lambda: bool(routes_to_dead()), "the routes to the node that will be dead")
    dead.box.run("ip", "link", "set", "eth0", "down")
    # A busy machine may be late, but with the usual hold time not even an idle one would be in time.
    other.wait_until(lambda: not routes_to_dead(), "the dead node's routes to go", 60)
    dead.box.run("ip", "link", "set", "eth0", "up")
    dead.box.run("ip", "route", "replace", "default", "via", "172.18.0.1")
    other.wait_until(lambda: bool(routes_to_dead()), "the routes to return", 240)
    wait_until(lambda: all(a.ok for a in pods.matrix().values()), "the pods to reach each other", 240)
