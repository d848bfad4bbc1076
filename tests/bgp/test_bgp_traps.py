"""ExaBGP's traps (reference: BGP facts, section 8), each sprung on real daemons."""

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest

from tests.bgp.bgp_lab import Bird, Mesh, bird_config, eventually, peer_resource

pytestmark = pytest.mark.cluster


def _bird(more: str = "") -> str:
    return bird_config(
        20,
        f"""protocol static blocks {{ ipv4; route 192.168.200.0/26 blackhole; }}
protocol bgp n1 {{
  local 10.9.0.20 as 65020; neighbor 10.9.0.1 as 64512; multihop; {more}
  connect delay time 1; error wait time 1, 2; graceful restart on;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}""",
    )


@pytest.fixture
def mesh(make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]) -> Mesh:
    """n1 and a BIRD that hears of its blocks."""
    mesh = make_mesh(1)
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP="10.9.0.20", asNumber=65020)
    mesh.bird = closing(Bird(mesh.underlay.attach(20), _bird()))
    mesh.start()
    eventually(lambda: _heard(mesh) == {"192.168.1.0/26"}, 30)
    return mesh


def _heard(mesh: Mesh) -> set[str]:
    assert mesh.bird is not None
    return mesh.bird.prefixes("n1")


def _blocks(count: int) -> list[str]:
    base = int(ipaddress.IPv4Address("192.168.0.0"))
    return [f"{ipaddress.IPv4Address(base + 16 * number)}/28" for number in range(count)]


def test_a_reload_in_the_middle_of_sending_takes_effect(mesh: Mesh, closing: Callable[[Any], Any]) -> None:
    """ExaBGP drops a reload while routes are unsent, and says `done`."""
    node = mesh.nodes[0]
    node.own(*_blocks(3000))
    node.render()
    eventually(lambda: len(_heard(mesh)) > 10)
    before = node.peer("10.9.0.20")
    second = _bird().replace("10.9.0.20", "10.9.0.21")
    closing(Bird(mesh.underlay.attach(21), second))
    mesh.cluster.peers["second"] = peer_resource("second", peerIP="10.9.0.21", asNumber=65020)
    node.render()
    eventually(lambda: node.established() == 2, 20)
    eventually(lambda: len(_heard(mesh)) == 3000, 20)
    after = node.peer("10.9.0.20")
    assert before and after and before.since == after.since


def test_changes_that_overtake_each_other_end_right(mesh: Mesh) -> None:
    """Announce, withdraw, announce: in ExaBGP's hands at once, they would leave in the wrong order."""
    node = mesh.nodes[0]
    flapping = _blocks(40)
    for round_number in range(15):
        node.own("192.168.255.0/26", *(flapping if round_number % 2 == 0 else flapping[::3]))
        node.render()
    eventually(lambda: _heard(mesh) == {"192.168.255.0/26", *flapping})
    node.own("192.168.255.0/26")
    node.render()
    eventually(lambda: _heard(mesh) == {"192.168.255.0/26"})


def test_no_ghost_of_what_went_while_the_peer_was_away(mesh: Mesh) -> None:
    """ExaBGP announces by itself what it was told before the session went down."""
    node = mesh.nodes[0]
    node.own("192.168.1.0/26", "192.168.2.0/26")
    node.render()
    eventually(lambda: _heard(mesh) == {"192.168.1.0/26", "192.168.2.0/26"})
    assert mesh.bird is not None
    mesh.bird.ask("disable", "n1")
    eventually(lambda: node.established() == 0)
    node.own("192.168.1.0/26", "192.168.3.0/26")
    node.render()
    mesh.bird.ask("enable", "n1")
    eventually(lambda: _heard(mesh) == {"192.168.1.0/26", "192.168.3.0/26"}, 30)


def test_a_dead_peer_loses_its_routes_with_the_hold_time(mesh: Mesh) -> None:
    """Its host is gone: that is no graceful restart, however much was negotiated."""
    node = mesh.nodes[0]
    before = node.peer("10.9.0.20")
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP="10.9.0.20", asNumber=65020, keepaliveTime="1s")
    node.render()
    eventually(lambda: before and (peer := node.peer("10.9.0.20")) and peer.since > before.since, 30)
    eventually(lambda: "192.168.200.0/26" in node.prefixes() and node.established() == 1, 30)
    assert mesh.bird is not None
    mesh.bird.ns.run("ip", "link", "set", "eth0", "down")
    eventually(lambda: "192.168.200.0/26" not in node.prefixes(), 30)
    eventually(lambda: (peer := node.peer("10.9.0.20")) and "Hold timer expired (4,0)" in peer.last_error)


def test_a_peer_that_is_back_is_dialled_within_seconds(mesh: Mesh) -> None:
    """ExaBGP would wait up to a minute; BIRD only listens here."""
    assert mesh.bird is not None
    node = mesh.nodes[0]
    mesh.bird.configure(_bird("passive;"))
    mesh.bird.ask("disable", "n1")
    eventually(lambda: node.established() == 0)
    firewall = ("INPUT", "-p", "tcp", "--dport", "179", "-j", "DROP")
    mesh.bird.ns.run("iptables", "-A", *firewall)  # into nothing: the kernel would try for two minutes
    mesh.bird.ask("enable", "n1")
    bird_ns = mesh.bird.ns
    tried = ("iptables", "-L", "INPUT", "-v", "-n", "-x")
    eventually(lambda: int(bird_ns.run(*tried).splitlines()[2].split()[0]) >= 3, 30)
    mesh.bird.ns.run("iptables", "-D", *firewall)
    eventually(lambda: node.established() == 1, 30)
