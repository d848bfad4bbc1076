"""Who peers with whom, from BGPPeer resources and the mesh, seen from several nodes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.confd.confd_cases import MASTER, NO_MESH, NODES, cluster, configuration, node, password, peer
from tortie.bgp.config import Peer
from tortie.confd import context, localpeers
from tortie.confd.localpeers import LocalPeer
from tortie.confd.sessions import HOLD_TIME, RESTART_TIME, Session
from tortie.core.errors import ConfigError

pytestmark = pytest.mark.unit


def _sessions(*resources: Any, at: str = "kube-master") -> dict[str, Session]:
    """Peer address -> session."""
    made = context.build(cluster(*resources), at)
    return {neighbor.session.peer.address: neighbor.session for neighbor in made.neighbors}


def _peers(*resources: Any, at: str = "kube-master") -> dict[str, Peer]:
    return {address: session.peer for address, session in _sessions(*resources, at=at).items()}


def _problems(*resources: Any, at: str = "kube-master") -> tuple[str, ...]:
    return context.build(cluster(*resources), at).problems


# --- mesh ---------------------------------------------------------------------------------------


def test_exactly_one_side_of_the_mesh_listens() -> None:
    """Addresses compare as strings, as in Calico: 10.192.0.10 is smaller than 10.192.0.2."""
    passive = {
        name: {a for a, p in _peers(*NODES, at=name).items() if p.passive}
        for name in ("kube-master", "kube-node-2")
    }
    assert passive == {"kube-master": {"10.192.0.3"}, "kube-node-2": {"10.192.0.2", "10.192.0.3"}}


def test_a_node_without_an_address_of_the_family_has_no_peers_in_it() -> None:
    both = node("kube-master", "10.0.0.1/24", "fd00::1/64")
    others = node("four", "10.0.0.2/24"), node("six", v6="fd00::2/64"), node("none")
    assert set(_peers(both, *others)) == {"10.0.0.2", "fd00::2"}
    assert set(_peers(both, *others, at="four")) == {"10.0.0.1"}
    assert _peers(both, *others, at="none") == {}


def test_an_unset_as_number_means_ours() -> None:
    """Calico's rule: not the cluster's."""
    me = node("kube-master", "10.0.0.1/24", asNumber=65001)
    found = _peers(me, node("a", "10.0.0.2/24"), node("b", "10.0.0.3/24", asNumber=65003))
    assert {a: (p.local_as, p.peer_as) for a, p in found.items()} == {
        "10.0.0.2": (65001, 65001),
        "10.0.0.3": (65001, 65003),
    }


def test_two_nodes_with_one_address() -> None:
    assert _peers(MASTER, node("twin", "10.192.0.2/16")) == {}


# --- BGPPeer ------------------------------------------------------------------------------------

_RACK = {"rack": "1"}
_RACKED = tuple(node(f"r{number}", f"10.0.0.{number}/24", labels=_RACK) for number in (1, 2))
_SPINE = node("spine", "10.0.0.9/24", labels={"role": "spine"}, asNumber=65009)


def test_workloads_that_are_peers() -> None:
    """Sessions to their first addresses; they dial the address that felix set there."""
    rack = node("r1", "10.0.0.1/24", "fd00::1/64", labels=_RACK)
    wanted = peer(
        "pods",
        localWorkloadSelector="bgp == 'yes'",
        asNumber=65500,
        nodeSelector="rack == '1'",
        filters=("no",),
    )
    peering = configuration(localWorkloadPeeringIPV4="10.255.0.1")
    stored = cluster(rack, _SPINE, wanted, peering)
    found = (LocalPeer("pods", ("192.168.1.7/32", "fd00::7/128")), LocalPeer("others", ("192.168.1.8/32",)))
    made = context.build(stored, "r1", local_peers=found)
    (neighbor,) = [one for one in made.neighbors if one.session.peer.kind == "workload"]
    session = neighbor.session
    assert (session.name, neighbor.listen) == ("Local_Workload_192_168_1_7", 179)
    assert (session.peer.local_address, session.peer.local_as, session.peer.peer_as) == (
        "10.255.0.1",
        64512,
        65500,
    )
    assert session.peer.passive and not session.peer.client
    assert set(made.problems) == {
        "BGPPeer pods: BGPConfiguration has no localWorkloadPeeringIPV6 to peer with",
        "BGPPeer pods: there is no BGPFilter 'no'",
    }
    elsewhere = context.build(stored, "spine", local_peers=found)
    assert not [one for one in elsewhere.neighbors if one.session.peer.kind == "workload"]


def test_files_of_felix_name_the_workloads(tmp_path: Path) -> None:
    plain = {
        "ifaceName": "cali1",
        "mac": "",
        "ipv4Nets": ["192.168.1.7/32", "192.168.1.8/32"],
        "ipv6Nets": [],
    }
    (tmp_path / "a").write_text(json.dumps(plain))
    (tmp_path / "b").write_text(json.dumps({**plain, "bgpPeerName": "pods", "ipv6Nets": ["fd00::7/128"]}))
    (tmp_path / "c").write_text("{")
    (tmp_path / ".b.tmp").write_text(json.dumps({**plain, "bgpPeerName": "pods"}))
    (tmp_path / "d").mkdir()
    assert localpeers.read(str(tmp_path)) == (LocalPeer("pods", ("192.168.1.7/32", "fd00::7/128")),)
    assert localpeers.read(str(tmp_path / "nowhere")) == ()


def test_scopes() -> None:
    resources = (
        *NODES,
        NO_MESH,
        peer("all", peerIP="10.225.0.1", asNumber=65001),
        peer("one", node="kube-master", peerIP="10.225.0.2", asNumber=65002),
        peer("other", node="kube-node-1", peerIP="10.225.0.3", asNumber=65003),
        peer("none", nodeSelector="has(nothing)", peerIP="10.225.0.4", asNumber=65004),
    )
    assert {a: p.kind for a, p in _peers(*resources).items()} == {
        "10.225.0.1": "global",
        "10.225.0.2": "node",
    }


def test_selectors_on_both_sides_give_both_sides_their_sessions() -> None:
    resources = (
        *_RACKED,
        _SPINE,
        NO_MESH,
        peer("up", nodeSelector="rack == '1'", peerSelector="role == 'spine'"),
    )
    (here,) = _peers(*resources, at="r1").values()
    assert (here.address, here.local_as, here.peer_as, here.passive) == ("10.0.0.9", 64512, 65009, True)
    there = _peers(*resources, at="spine")
    assert set(there) == {"10.0.0.1", "10.0.0.2"}
    assert {(p.local_as, p.peer_as, p.passive, p.kind) for p in there.values()} == {
        (65009, 64512, False, "node")
    }


def test_manual_means_no_mirror_image() -> None:
    up = peer("up", nodeSelector="rack == '1'", peerSelector="role == 'spine'", reversePeering="Manual")
    assert set(_peers(*_RACKED, _SPINE, NO_MESH, up, at="r1")) == {"10.0.0.9"}
    assert _peers(*_RACKED, _SPINE, NO_MESH, up, at="spine") == {}


@pytest.mark.parametrize(
    ("address", "number", "mirrored"),
    [
        ("10.0.0.9", 65009, True),
        ("10.0.0.9", 65000, False),
        ("10.0.0.9:179", 65009, True),
        ("10.0.0.9:1790", 65009, False),
    ],
)
def test_a_node_named_by_address_answers_if_it_is_meant(address: str, number: int, mirrored: bool) -> None:
    resources = (
        *_RACKED,
        _SPINE,
        NO_MESH,
        peer("up", nodeSelector="rack == '1'", peerIP=address, asNumber=number),
    )
    assert set(_peers(*resources, at="r1")) == {"10.0.0.9"}
    assert bool(_peers(*resources, at="spine")) == mirrored


def test_the_port_of_a_node_named_by_address() -> None:
    resources = (*_RACKED, _SPINE, configuration(nodeToNodeMeshEnabled=False, listenPort=500))
    found = _peers(*resources, peer("up", node="r1", peerIP="10.0.0.9", asNumber=65009), at="r1")
    assert found["10.0.0.9"].port == 500
    found = _peers(*resources, peer("up", node="r1", peerIP="10.0.0.9", asNumber=1), at="r1")
    assert found["10.0.0.9"].port == 0, "another speaker on that address"


def test_what_a_person_wrote_comes_before_the_mesh() -> None:
    """So the mesh can be switched off beneath it, and no session notices."""
    written = peer("all", peerSelector="all()", password=password())
    with_mesh, without = _sessions(*NODES, written), _sessions(*NODES, NO_MESH, written)
    assert with_mesh == without and all(s.password for s in with_mesh.values())
    assert _problems(*NODES) == ()


def test_two_resources_for_one_address() -> None:
    resources = (
        *NODES,
        NO_MESH,
        peer("b", peerIP="10.225.0.1:2", asNumber=65002),
        peer("a", peerIP="10.225.0.1:1", asNumber=65001),
    )
    assert _peers(*resources)["10.225.0.1"].peer_as == 65001
    assert _problems(*resources) == (
        "Global_10_225_0_1_port_2: there is a session to 10.225.0.1 already, Global_10_225_0_1_port_1",
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"asNumber": 65002}),
        ({"password": password()}, {}),
        ({}, {"node": "kube-master", "keepaliveTime": "10s"}),
    ],
)
def test_a_second_resource_that_says_something_else_is_told(first: Any, second: Any) -> None:
    given = {"peerIP": "10.225.0.1", "asNumber": 65001}
    told = _problems(MASTER, peer("a", **given | first), peer("b", **given | second))
    (problem,) = [one for one in told if "secret" not in one]
    assert problem.endswith(": there is a session to 10.225.0.1 already, Global_10_225_0_1")


def test_a_second_resource_that_says_the_same_is_not_told() -> None:
    given = {"peerIP": "10.225.0.1", "asNumber": 65001}
    assert _problems(MASTER, peer("a", **given), peer("b", node="kube-master", **given)) == ()
    mine = [peer(name, peerIP="10.192.0.2", asNumber=number) for name, number in (("a", 1), ("b", 2))]
    assert _problems(MASTER, *mine) == ()
    up = peer("up", nodeSelector="rack == '1'", peerSelector="role == 'spine'", keepaliveTime="10s")
    down = peer("down", nodeSelector="role == 'spine'", peerSelector="rack == '1'")
    assert _problems(*_RACKED, _SPINE, NO_MESH, up, down, at="r1") == (), "each is its own side's"


def test_nobody_peers_with_itself() -> None:
    assert _peers(MASTER, NO_MESH, peer("self", peerIP="10.192.0.2", asNumber=64512)) == {}
    assert _peers(MASTER, NO_MESH, peer("self", peerSelector="all()")) == {}


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        ({"maxRestartTime": "10s"}, "restart_time", 10),
        ({"maxRestartTime": "2h"}, "restart_time", 4095),
        ({"maxRestartTime": "1.6s"}, "restart_time", 2),
        ({"maxRestartTime": "soon"}, "restart_time", RESTART_TIME),
        ({"keepaliveTime": "10s"}, "hold_time", 30),
        ({"keepaliveTime": "0.2s"}, "hold_time", HOLD_TIME),
        ({"keepaliveTime": "100h"}, "hold_time", 65535),
        ({"ttlSecurity": 1}, "minimum_ttl", 255),
        ({"ttlSecurity": 0}, "minimum_ttl", 0),
        ({"ttlSecurity": 255}, "minimum_ttl", 1),
    ],
)
def test_session_options(spec: dict[str, Any], field: str, value: int) -> None:
    (session,) = _sessions(MASTER, NO_MESH, peer("p", peerIP="10.225.0.1", asNumber=65001, **spec)).values()
    assert getattr(session, field) == value


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        ({}, "auto"),
        ({"nextHopMode": "Auto"}, "auto"),
        ({"nextHopMode": "Self"}, "self"),
        ({"nextHopMode": "Keep"}, "keep"),
        ({"keepOriginalNextHop": True}, "keep"),
        ({"keepOriginalNextHop": True, "asNumber": 64512}, "auto"),
        ({"nextHopMode": "Self", "asNumber": 64512}, "self"),
    ],
)
def test_next_hop_modes(spec: dict[str, Any], mode: str) -> None:
    (found,) = _peers(
        MASTER, NO_MESH, peer("p", **{"peerIP": "10.225.0.1", "asNumber": 65001} | spec)
    ).values()
    assert found.next_hop == mode


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"peerIP": "10.225.0.1"}, "spec.asNumber is missing"),
        ({"peerIP": "10.225.0.256", "asNumber": 1}, "must be <IP>"),
        ({"peerIP": "10.225.0.1:x", "asNumber": 1}, "must be <IP>"),
        ({"peerIP": "fe80::1%eth0; }", "asNumber": 1}, "must be <IP>"),
        ({"peerSelector": "((("}, "selector '((('"),
    ],
)
def test_a_wrong_resource_costs_only_itself(spec: dict[str, Any], problem: str) -> None:
    resources = (*NODES, peer("wrong", **spec))
    assert set(_peers(*resources)) == {"10.192.0.3", "10.192.0.10"}
    (told,) = _problems(*resources)
    assert told.startswith("BGPPeer wrong: ") and problem in told


def test_a_wrong_option_costs_only_the_option() -> None:
    resources = (MASTER, NO_MESH, peer("p", peerIP="10.225.0.1", asNumber=65001, reachableBy="fd00::1"))
    assert _peers(*resources)["10.225.0.1"].gateway == ""
    assert _problems(*resources) == ("BGPPeer p: spec.reachableBy = 'fd00::1': not an IPv4 address",)


# --- the node itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "v4", "expected"),
    [
        ("", "10.0.0.1/24", "10.0.0.1"),
        ("10.10.10.10", "10.0.0.1/24", "10.10.10.10"),
        ("hash", "10.0.0.1/24", "25.79.212.8"),
        ("", "", "25.79.212.8"),
    ],
)
def test_router_id(given: str, v4: str, expected: str) -> None:
    made = context.build(cluster(node("kube-master", v4, "fd00::1/64")), "kube-master", given)
    first = made.config.local.router_id.split(".")[0]
    assert made.config.local.router_id == expected and int(first) < 224


def test_a_hashed_router_id_is_no_multicast_address() -> None:
    made = context.build(cluster(node("n13", "10.0.0.1/24")), "n13", "hash")  # its SHA-256 begins with 244
    assert made.config.local.router_id.startswith("212.")


@pytest.mark.parametrize("given", ["x", "10.0.0.1; }", "fd00::1", "10.0.0.1/24"])
def test_a_router_id_that_is_none(given: str) -> None:
    with pytest.raises(ConfigError, match="CALICO_ROUTER_ID"):
        context.build(cluster(MASTER), "kube-master", given)


def test_a_node_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no such node"):
        context.build(cluster(MASTER), "kube-mister")


def test_wrong_addresses_of_another_node() -> None:
    bad = node("bad", "10.0.0.1/24; }"), node("worse", "fd00::1/64"), node("six", v6="10.0.0.3/24")
    assert _peers(MASTER, *bad) == {}
    assert any("Node bad: spec.bgp" in problem for problem in _problems(MASTER, *bad))


def test_a_password_that_is_too_long_means_no_session() -> None:
    snapshot = cluster(*NODES, configuration(nodeMeshPassword=password()))
    made = context.build(snapshot, "kube-master", secrets={("bgp", "password"): b"x" * 81})
    assert made.neighbors == () and made.config.peers == ()
    assert "81 bytes" in made.problems[0]
