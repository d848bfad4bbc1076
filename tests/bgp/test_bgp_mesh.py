"""Nodes of ours among themselves: the mesh, its changes, and what must not break it."""

import stat
import time
from collections.abc import Callable

import pytest

from tests.bgp.bgp_lab import Mesh, RouteEvents, configuration
from tests.netns_lab import eventually
from tests.support.speakers import with_both
from tortie.bgp.table import TableRoute
from tortie.datastore.types.bgp import BGPPassword
from tortie.datastore.types.meta import SecretKeyRef

pytestmark = pytest.mark.cluster


@with_both
def test_three_nodes_mesh_in_both_families(make_mesh: Callable[..., Mesh], speaker: str) -> None:
    mesh = make_mesh(3)
    mesh.start()
    first = mesh.nodes[0]
    assert first.routes() == [
        first.way("192.168.2.0/26", "10.9.0.2"),
        first.way("192.168.3.0/26", "10.9.0.3"),
        "blackhole 192.168.1.0/26",
    ]
    assert first.routes(6) == [
        "blackhole fd00:168::100/122 dev lo metric 1024 pref medium",
        first.way("fd00:168::200/122", "fd09::2"),
        first.way("fd00:168::300/122", "fd09::3"),
    ]
    shown = first.ns.run("ip", "route")
    assert f"192.168.2.0/26 via 10.9.0.2 dev eth0 proto {first.protocol} {first.endings[0]}" in shown
    assert f"blackhole 192.168.1.0/26 proto {first.protocol}" in shown
    eventually(lambda: first.settled() and first.established() == 4)
    # what ExaBGP has sent it reports after the peer has it
    eventually(lambda: (peer := first.peer("10.9.0.2")) and (peer.received, peer.announced) == (1, 1))
    peer = first.peer("10.9.0.2")
    assert peer is not None and peer.end_of_rib
    assert (peer.type, peer.state, peer.info) == ("node-to-node mesh", "up", "Established")

    socket = first.dir / "run" / {"exabgp": "bgp-routes.sock", "bird": "bird.ctl"}[speaker]
    assert not stat.S_IMODE(socket.stat().st_mode) & 0o007
    blocks = [cidr for node in mesh.nodes for cidr in node.blocks]
    assert all(path.used for block in blocks for path in first.paths(block))
    reason = "only path" if speaker == "exabgp" else ""
    (own,), (learned,) = first.paths("192.168.1.0/26"), first.paths("fd00:168::200/122")
    assert own == TableRoute(
        prefix="192.168.1.0/26", origin="static", interface="blackhole", used=True, reason=reason
    )
    assert (learned.origin, learned.peer, learned.next_hop) == ("peer", "fd09::2", "fd09::2")
    assert (learned.interface, learned.reason) == ("eth0", reason)


def test_blocks_come_and_go_without_a_reload(make_mesh: Callable[..., Mesh], speaker: str) -> None:
    mesh = make_mesh(2)
    mesh.start()
    one, two = mesh.nodes
    conf, *_ = one.contents()
    eventually(lambda: two.established() == 2)  # the status comes after the routes
    since = two.peer("10.9.0.1")
    one.own("192.168.1.0/26", "192.168.7.0/26")
    one.render()
    eventually(lambda: "192.168.7.0/26" in two.prefixes())
    assert "blackhole 192.168.7.0/26" in one.routes()
    one.own("192.168.7.0/26")
    one.render()
    eventually(lambda: two.prefixes() == {"192.168.2.0/26", "192.168.7.0/26"})
    eventually(lambda: one.prefixes() == {"192.168.2.0/26", "192.168.7.0/26"})  # withdrawals leave first
    assert speaker == "bird" or one.contents()[0] == conf, "BIRD reloads, and no session is touched"
    after = two.peer("10.9.0.1")
    assert since and after and since.since == after.since


def test_a_new_node_does_not_disturb_the_others(make_mesh: Callable[..., Mesh]) -> None:
    mesh = make_mesh(2)
    mesh.start()
    eventually(lambda: mesh.nodes[0].established() == 2)  # the status comes after the routes
    before = mesh.nodes[0].peer("10.9.0.2")
    mesh.declare(3)
    mesh.add(3).render()
    mesh.nodes[2].start()
    mesh.render()
    eventually(mesh.converged)
    after = mesh.nodes[0].peer("10.9.0.2")
    assert before and after and before.since == after.since


def test_a_removed_node_is_forgotten_at_once(make_mesh: Callable[..., Mesh]) -> None:
    """Its routes are withdrawn before the session goes: graceful restart must not keep them."""
    mesh = make_mesh(3)
    mesh.start()
    one, two, _ = mesh.nodes
    del mesh.cluster.nodes["n3"]
    one.render()
    two.render()
    eventually(lambda: "192.168.3.0/26" not in one.prefixes() | two.prefixes())
    eventually(lambda: one.loaded() and one.peer("10.9.0.3") is None)
    # What the removed node had from the others is gone there too, though it still has the sessions.
    third = mesh.nodes[2]
    eventually(lambda: third.prefixes() == {"192.168.3.0/26"})


def test_as_numbers_per_node_and_another_port(make_mesh: Callable[..., Mesh], speaker: str) -> None:
    mesh = make_mesh(2, listenPort=1790)
    mesh.declare(2, asn=65002)
    mesh.declare(1, asn=4200000001)
    mesh.start()
    one, two = mesh.nodes
    listening = one.ns.run("ss", "-ltnH")
    address = {"exabgp": "10.9.0.1", "bird": "0.0.0.0"}[speaker]  # BIRD's unless `bindMode` says otherwise
    assert f" {address}:1790 " in listening and ":179 " not in listening
    eventually(lambda: one.established() == two.established() == 2)


def test_the_mesh_password(make_mesh: Callable[..., Mesh], speaker: str) -> None:
    mesh = make_mesh(2)
    mesh.cluster.bgp["default"] = configuration(
        nodeMeshPassword=BGPPassword(secretKeyRef=SecretKeyRef(name="s", key="k")),
    )
    secret = {"exabgp": b"\"'; }\nprocess evil { run /bin/false; }", "bird": b"'; } protocol evil { }"}[
        speaker
    ]
    for node in mesh.nodes:
        node.secrets = {("s", "k"): secret}
    mesh.start()
    one, two = mesh.nodes
    assert "process evil" not in one.contents()[0]
    one.secrets = {("s", "k"): b"another"}
    one.render()
    eventually(lambda: one.established() == 0 and two.established() == 0)
    two.secrets = {("s", "k"): b"another"}
    two.render()
    eventually(lambda: one.established() == 2)


def test_foreign_routes_stay_and_ours_come_back(make_mesh: Callable[..., Mesh]) -> None:
    mesh = make_mesh(2)
    mesh.start()
    node = mesh.nodes[0]
    node.ns.run("ip", "route", "add", "192.168.99.0/24", "via", "10.9.0.77", "proto", "static")
    node.ns.run("ip", "route", "del", "192.168.2.0/26", "proto", node.protocol)
    eventually(lambda: "192.168.2.0/26" in node.prefixes())
    node.ns.run("ip", "link", "set", "eth0", "down")
    eventually(lambda: "192.168.2.0/26" not in node.prefixes())
    node.ns.run("ip", "link", "set", "eth0", "up")
    node.ns.run("ip", "addr", "replace", "fd09::1/64", "dev", "eth0", "nodad")
    eventually(lambda: "192.168.2.0/26" in node.prefixes() and "fd00:168::200/122" in node.prefixes(6))
    eventually(lambda: "192.168.99.0/24" not in mesh.nodes[1].prefixes())


def test_a_stopped_node_keeps_its_routes_and_loses_them_in_time(
    make_mesh: Callable[..., Mesh], closing: Callable[[RouteEvents], RouteEvents]
) -> None:
    """The process gone: kept for the restart time. Back in time: nobody noticed. Not back: gone."""
    mesh = make_mesh(2, nodeMeshMaxRestartTime="300s")
    mesh.start()
    one, two = mesh.nodes
    eventually(lambda: one.established() == 2)  # the status comes after the routes
    watch = closing(RouteEvents(one.ns))
    two.kill()
    eventually(lambda: one.established() == 0)
    assert "192.168.2.0/26" in one.prefixes()
    two.start()
    eventually(lambda: one.established() == 2)
    eventually(lambda: (peer := one.peer("10.9.0.2")) and peer.end_of_rib and not peer.stale)
    assert watch.about("192.168.2.0/26", "fd00:168::200/122") == []
    began = time.time()
    mesh.cluster.bgp["default"] = configuration(nodeMeshMaxRestartTime="2s")
    mesh.render()

    def renewed() -> bool:
        """Both run with that, and their sessions are younger than the later one's configuration."""
        said = [found for node in mesh.nodes if (found := node.status()) and found.configuration == "loaded"]
        latest = max((found.configured for found in said), default=0.0)
        peers = [peer for found in said for peer in found.peers]
        both = len(said) == 2 and all(found.configured > began for found in said)
        return both and all(peer.state == "up" and peer.since > latest for peer in peers)

    eventually(renewed)
    eventually(mesh.converged)
    two.kill()
    eventually(lambda: "192.168.2.0/26" not in one.prefixes() | one.prefixes(6))
    assert watch.about("192.168.2.0/26") != []
    two.start()
    eventually(mesh.converged)
