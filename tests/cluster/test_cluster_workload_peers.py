"""A pod that is a BGP peer of its node: what it announces is reachable from the whole cluster."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster_bgp import Peers, apply, await_status, calicoctl
from tests.support import gobgp
from tests.support.speakers import with_both
from tortie.core.speaker import Speaker
from tortie.lab.cluster import Lab, tail, wait_until
from tortie.linux import netns

pytestmark = pytest.mark.cluster

_PEERING, _AS = "10.255.0.1", 65500
_ADDRESS = "192.168.255.250"  # inside the pool, near its end: in nobody's block


@pytest.fixture(scope="module")
def lab(speaker: Speaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two ready nodes."""
    lab = Lab(tmp_path_factory.mktemp("lab"), 2, speakers=(speaker,))
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


@pytest.fixture
def speaking(lab: Lab, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Pod `speaker` on node-1, with a GoBGP that dials the node."""
    speaker = lab.add_pod("speaker", "node-1", labels={"bgp": "yes"})
    config = f"""
[global.config]
  as = {_AS}
  router-id = "{speaker.address()}"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{_PEERING}"
    peer-as = 64512
  [neighbors.timers.config]
    connect-retry = 1
  [neighbors.ebgp-multihop.config]
    enabled = true
"""
    (tmp_path / "conf").write_text(config)
    command = ["gobgpd", "-t", "toml", "-f", str(tmp_path / "conf"), "--pprof-disable"]
    with (tmp_path / "log").open("wb") as log:
        process = netns.call_in(speaker.netns_fd, subprocess.Popen, command, stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()
    lab.delete_pod("speaker")


def _in_pod(lab: Lab, name: str, *command: str) -> subprocess.CompletedProcess[str]:
    pod = lab.pods[name]
    done: subprocess.CompletedProcess[str] = netns.call_in(
        pod.netns_fd, subprocess.run, command, capture_output=True, text=True, check=False
    )
    return done


@with_both
def test_a_pod_announces_an_address(
    lab: Lab, peers: Peers, speaking: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    lab.add_pod("client", "node-2")
    one, two = lab.nodes["node-1"], lab.nodes["node-2"]
    pod = lab.pods["speaker"].address()
    patch = json.dumps({"spec": {"defaultEndpointToHostAction": "Accept"}})
    calicoctl(lab, "patch", "felixconfiguration", "default", "-p", patch)
    apply(lab, "BGPConfiguration", "default", {"localWorkloadPeeringIPV4": _PEERING})
    peers.apply("pods", localWorkloadSelector="bgp == 'yes'", asNumber=_AS)
    await_status(lab, one, pod, "local workload", "up", "Established")
    assert f"inet {_PEERING}/32 scope link" in one.box.output("ip", "addr")
    _in_pod(lab, "speaker", "ip", "addr", "add", f"{_ADDRESS}/32", "dev", "lo")
    gobgp.ask(
        lambda command: _in_pod(lab, "speaker", *command),
        "global", "rib", "add", f"{_ADDRESS}/32", "nexthop", pod,
    )  # fmt: skip

    def routes(node: str) -> str:
        return lab.nodes[node].box.output("ip", "route", "show", _ADDRESS).strip()

    wait_until(
        lambda: f"via {pod} dev cali" in routes("node-1"),
        "the route to the pod",
        240,
        lambda: tail(tmp_path / "log"),
    )
    wait_until(
        lambda: f"via {one.ip} " in routes("node-2"), "the route to the node", 240, lambda: routes("node-1")
    )
    wait_until(
        lambda: _in_pod(lab, "client", "ping", "-c", "1", "-W", "1", _ADDRESS).returncode == 0,
        "the address to answer", 240,
    )  # fmt: skip
    # Felix deletes what others write on a pod's interface, but not this; and starts again without harm.
    felix = one.box.kill("calico-node", "-felix")
    one.wait_until(
        lambda: bool(set(one.box.pids("calico-node", "-felix")) - set(felix)), "felix to be back", 60
    )
    one.wait_until(one.ready, "the node to be ready", 240)
    assert f"via {pod} dev cali" in routes("node-1")
    speaking.kill()
    wait_until(
        lambda: not routes("node-1") and not routes("node-2"),
        "its routes to go",
        240,
        lambda: routes("node-1"),
    )
    peers.clear()
    await_status(lab, one, pod)
    wait_until(lambda: _PEERING not in one.box.output("ip", "addr"), "the address to go", 240)
    two.wait_ready()
