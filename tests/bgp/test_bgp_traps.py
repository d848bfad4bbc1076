"""ExaBGP's traps (reference: BGP facts, section 8), each sprung on real daemons; BIRD has none of them."""

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest

from tests.bgp.bgp_lab import Mesh, peer_resource
from tests.bgp.bgp_routers import Bird, bird_config
from tests.netns_lab import eventually

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
    eventually(lambda: _heard(mesh) == {"192.168.1.0/26"} and mesh.nodes[0].established() == 1)
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
    eventually(lambda: node.established() == 2)
    eventually(lambda: len(_heard(mesh)) == 3000)
    after = node.peer("10.9.0.20")
    assert before and after and before.since == after.since


def test_a_peer_that_asks_for_all_again_is_told(mesh: Mesh) -> None:
    """ROUTE-REFRESH (RFC 2918): BIRD forgets nothing meanwhile, and hears each block once more."""
    assert mesh.bird is not None

    def updates() -> int:
        lines = mesh.bird.ask("show", "protocols", "all", "n1").splitlines() if mesh.bird else []
        (line,) = [one for one in lines if "Import updates:" in one]
        return int(line.split()[2])

    before = updates()
    mesh.bird.ask("reload", "in", "n1")
    eventually(lambda: updates() > before)
    assert _heard(mesh) == {"192.168.1.0/26"}
    mesh.nodes[0].own("192.168.1.0/26", "192.168.11.0/26")
    mesh.nodes[0].render()
    eventually(lambda: _heard(mesh) == {"192.168.1.0/26", "192.168.11.0/26"})


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
    eventually(lambda: _heard(mesh) == {"192.168.1.0/26", "192.168.3.0/26"})


def test_a_dead_peer_loses_its_routes_with_the_hold_time(mesh: Mesh) -> None:
    """Its host is gone: that is no graceful restart, however much was negotiated."""
    node = mesh.nodes[0]
    before = node.peer("10.9.0.20")
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP="10.9.0.20", asNumber=65020, keepaliveTime="1s")
    node.render()
    eventually(lambda: before and (peer := node.peer("10.9.0.20")) and peer.since > before.since)
    eventually(lambda: "192.168.200.0/26" in node.prefixes() and node.established() == 1)
    assert mesh.bird is not None
    mesh.bird.ns.run("ip", "link", "set", "eth0", "down")
    eventually(lambda: "192.168.200.0/26" not in node.prefixes())
    eventually(lambda: (peer := node.peer("10.9.0.20")) and "Hold timer expired" in peer.last_error)


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
    eventually(lambda: int(bird_ns.run(*tried).splitlines()[2].split()[0]) >= 3)
    mesh.bird.ns.run("iptables", "-D", *firewall)
    eventually(lambda: node.established() == 1, 60)
