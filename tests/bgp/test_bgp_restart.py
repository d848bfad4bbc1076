"""The speaker or its agent dies and comes back: no route moves, here or elsewhere, and none is left over."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.bgp.bgp_lab import BgpNode, Mesh, RouteEvents, peer_resource
from tests.bgp.bgp_routers import Bird, bird_config
from tests.netns_lab import eventually

pytestmark = pytest.mark.cluster

_STATICS = 300


def _bird(count: int) -> str:
    statics = " ".join(f"route 192.168.{100 + i // 4}.{i % 4 * 64}/26 blackhole;" for i in range(count))
    return bird_config(
        20,
        f"""protocol static blocks {{ ipv4; {statics} }}
protocol bgp n1 {{
  local 10.9.0.20 as 65020; neighbor 10.9.0.1 as 64512; multihop;
  connect delay time 1; error wait time 1, 2; graceful restart on; graceful restart time 300;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}""",
    )


@pytest.fixture
def mesh(make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]) -> Mesh:
    """Two nodes, and a BIRD beside n1 that announces 300 blocks; converged, start-up over."""
    patient = "300s"  # even where a speaker takes long to start, nobody gives up on it
    mesh = make_mesh(2, nodeMeshMaxRestartTime=patient)
    mesh.cluster.peers["bird"] = peer_resource(
        "bird", node="n1", peerIP="10.9.0.20", asNumber=65020, maxRestartTime=patient
    )
    mesh.bird = closing(Bird(mesh.underlay.attach(20), _bird(_STATICS)))
    mesh.start()
    one, two = mesh.nodes
    eventually(lambda: len(two.prefixes()) == _STATICS + 2)
    eventually(lambda: one.settled() and two.settled() and (one.established(), two.established()) == (3, 2))
    eventually(lambda: _bird_hears(mesh) == _BLOCKS)
    return mesh


def _bird_hears(mesh: Mesh) -> set[str]:
    assert mesh.bird is not None
    return mesh.bird.prefixes("n1")


_BLOCKS = {"192.168.1.0/26", "192.168.2.0/26"}


_alone = pytest.mark.only_with("exabgp", "BIRD has no helper that could die alone")


@_alone
def test_the_agent_is_killed(mesh: Mesh, closing: Callable[[Any], Any]) -> None:
    one, two = mesh.nodes
    watches = [closing(RouteEvents(node.ns)) for node in mesh.nodes]
    before = two.peer("10.9.0.1")
    for _ in range(2):
        one.kill_agent()
        eventually(one.settled)
    assert [watch.moved(one.protocol) for watch in watches] == [[], []]
    after = two.peer("10.9.0.1")
    assert before and after and before.since == after.since, "the sessions stayed up"
    assert _bird_hears(mesh) == _BLOCKS
    # It is in command again: what changes arrives, what went while it was dead is withdrawn.
    assert mesh.bird is not None
    mesh.bird.configure(_bird(_STATICS - 1))
    eventually(lambda: len(two.prefixes()) == _STATICS + 1)


@_alone
def test_what_went_while_the_agent_was_dead_is_withdrawn(mesh: Mesh) -> None:
    one, two = mesh.nodes
    one.own("192.168.1.0/26", "192.168.9.0/26")
    one.render()
    eventually(lambda: "192.168.9.0/26" in two.prefixes())
    one.freeze_agent()
    one.own("192.168.1.0/26")
    one.render()
    one.kill_agent()
    eventually(lambda: "192.168.9.0/26" not in two.prefixes())
    eventually(lambda: "192.168.9.0/26" not in one.prefixes())
    eventually(lambda: _bird_hears(mesh) == _BLOCKS)


def test_the_speaker_is_killed(mesh: Mesh, closing: Callable[[Any], Any], speaker: str) -> None:
    """Everybody keeps everything; what did not come back by itself is swept."""
    one, two = mesh.nodes
    expected = ["192.168.66.0/26"]
    if speaker == "bird":
        expected.append("blackhole fd00:168::100/122")  # written anew, under its pods' own routes
    watches = [closing(RouteEvents(node.ns)) for node in mesh.nodes]
    one.kill()
    one.ns.run(
        "ip", "route", "add", "192.168.66.0/26", "via", "10.9.0.66", "dev", "eth0", "proto", one.protocol
    )
    assert len(one.prefixes()) == len(two.prefixes()) + 1 == _STATICS + 3
    one.start()
    eventually(lambda: one.established() == 3)
    eventually(lambda: "192.168.66.0/26" not in one.prefixes())
    eventually(one.settled)
    eventually(lambda: (peer := two.peer("10.9.0.1")) and peer.end_of_rib and not peer.stale)
    for watch in watches:
        assert [
            line for line in watch.moved(one.protocol) if not any(word in line for word in expected)
        ] == []
    assert _bird_hears(mesh) == _BLOCKS


def test_a_clean_stop_leaves_the_routes(mesh: Mesh, closing: Callable[[Any], Any]) -> None:
    one, two = mesh.nodes
    watch = closing(RouteEvents(two.ns))
    one.stop()
    assert len(one.prefixes()) == _STATICS + 2
    one.start()
    eventually(lambda: two.established() == 2 and one.settled())
    assert watch.moved(one.protocol) == []


@_alone
def test_the_agent_dies_in_the_middle_of_a_full_table(mesh: Mesh) -> None:
    """ExaBGP may end itself for want of a reader; supervision starts it again, and all is learned again."""
    one, two = mesh.nodes
    assert mesh.bird is not None
    mesh.bird.configure(_bird(0))
    eventually(lambda: len(one.prefixes()) == 2)
    mesh.bird.configure(_bird(_STATICS))
    for _ in range(3):
        one.kill_agent_if_there()
        _supervise(one)
    eventually(lambda: _supervise(one) and len(one.prefixes()) == len(two.prefixes()) == _STATICS + 2)
    eventually(lambda: _bird_hears(mesh) == _BLOCKS)


def _supervise(node: BgpNode) -> bool:
    if node.process is not None and node.process.poll() is not None:
        node.start()
    return True
