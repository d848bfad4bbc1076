"""Reflectors and their clients, without a mesh: each is enough, and losing one moves no route.

Either may be a plain BIRD 2, configured by hand.
"""

import re
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.bgp.bgp_lab import BgpNode, Mesh, RouteEvents, peer_resource
from tests.bgp.bgp_routers import Bird, bird_config
from tests.netns_lab import eventually
from tests.support.speakers import with_both
from tortie.bgp.status import PeerStatus

pytestmark = pytest.mark.cluster

_PATIENCE = 180  # seconds


def _received(node: BgpNode, address: str) -> int:
    found = node.peer(address)
    return found.received if found else -1


class Pings:
    """A hundred numbered packets a second from one node's pod address to another's."""

    def __init__(self, source: BgpNode, target: BgpNode) -> None:
        pod = {node: _pod(node) for node in (source, target)}
        for node, address in pod.items():
            node.ns.run("ip", "addr", "add", address, "dev", "lo", check=False)
        self._told = source.dir / f"pings-{target.name}"
        with self._told.open("wb") as told:  # no pipe, which would be full in a few seconds
            command = ["ping", "-i", "0.01", "-I", pod[source], pod[target]]
            self._process = source.ns.call(subprocess.Popen, command, stdout=told)

    def answered(self) -> set[int]:
        """Their numbers."""
        return {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", self._told.read_text())}

    def lost(self) -> set[int]:
        """Of those sent up to now and a second more, when a hundred later ones could have been answered.

        The last ones do not count: on a busy machine they overtake each other from processor to processor.
        """
        end = max(self.answered(), default=0) + 100
        eventually(lambda: max(self.answered(), default=0) >= end + 100, _PATIENCE)
        self._process.kill()
        self._process.wait()
        return set(range(1, end)) - self.answered()


def _pod(node: BgpNode) -> str:
    return next(iter(node.blocks)).replace(".0/26", ".1")


@with_both
def test_a_pair_of_reflectors_loses_one(make_mesh: Callable[..., Mesh]) -> None:
    """Six clients; not a packet between them is lost."""
    mesh = make_mesh(8, nodeToNodeMeshEnabled=False)
    for number in (1, 2):
        mesh.declare(number, routeReflectorClusterID="244.0.0.1")
    mesh.cluster.peers["rr"] = peer_resource(
        "rr", nodeSelector="all()", peerSelector="name in {'n1', 'n2'}", maxRestartTime="3s"
    )
    mesh.start()
    first, _, client, other, *_ = mesh.nodes
    assert {peer.address for peer in _status(client)} == {"10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"}
    eventually(lambda: len(client.paths("192.168.4.0/26")) == 2, _PATIENCE)
    found = client.paths("192.168.4.0/26")
    assert {path.peer for path in found} == {"10.9.0.1", "10.9.0.2"}
    assert {path.next_hop for path in found} == {"10.9.0.4"}, "reflectors leave it alone"
    assert client.routes()[1] == client.way("192.168.2.0/26", "10.9.0.2")
    assert client.way("192.168.4.0/26", "10.9.0.4") in client.routes(), "one way, told twice"

    for block in ("192.168.5.0/26", "fd00:168::400/122", "fd00:168::500/122"):
        eventually(lambda block=block: len(client.paths(block)) == 2, _PATIENCE)  # type: ignore[misc]
    events = RouteEvents(client.ns)
    flows = [
        Pings(one, two) for one, two in ((client, other), (mesh.nodes[5], client), (other, mesh.nodes[7]))
    ]
    first.kill()
    eventually(lambda: _received(client, "10.9.0.1") == _received(client, "fd09::1") == 0, _PATIENCE)
    assert not events.moved("192.168.4.0", "192.168.5.0", "fd00:168::400", "fd00:168::500")

    other.own("192.168.4.0/26", "192.168.44.0/26")
    other.render()
    eventually(lambda: client.way("192.168.44.0/26", "10.9.0.4") in client.routes(), _PATIENCE)
    assert [flow.lost() for flow in flows] == [set()] * 3

    other.own("192.168.44.0/26")
    other.render()
    eventually(lambda: "192.168.4.0/26" not in client.prefixes(), _PATIENCE)
    first.start()
    eventually(lambda: len(client.paths("192.168.44.0/26")) == 2, _PATIENCE)


def _status(node: BgpNode) -> list[PeerStatus]:
    found = node.status()
    return list(found.peers) if found else []


# --- with BIRD at the other end -------------------------------------------------------------------

_BACKUP, _MAIN = 20, 21  # reflectors at 10.9.0.<number>; the better one has the higher router ID
_TELLER, _LISTENER = 30, 31  # clients
_KEPT, _WITHDRAWN, _LOOPED, _OWN = (f"192.168.{number}.0/26" for number in range(200, 204))


def _address(number: int, version: int) -> str:
    return f"10.9.0.{number}" if version == 4 else f"fd09::{number:x}"


def _session(own: int, other: int, more: str = "", preference: int = 100, source: str = "RTS_BGP") -> str:
    """BIRD's to another machine, in both versions: iBGP."""
    return "".join(
        f"""protocol bgp to{other}v{v} {{
              local {_address(own, v)} as 64512; neighbor {_address(other, v)} as 64512; multihop; {more}
              connect delay time 1; connect retry time 1; error wait time 1, 2;
              ipv{v} {{ preference {preference}; import all; export where source = {source}; }};
            }}
"""
        for v in (4, 6)
    )


def _reflector(own: int, other: int, preference: int) -> str:
    """Of n1 and n2; hears of them from another reflector as well, with the preference 100."""
    clients = "".join(_session(own, client, "rr client;", preference) for client in (1, 2))
    return bird_config(own, f"protocol direct {{ ipv4; ipv6; }}\n{clients}{_session(own, other)}")


def _client(own: int, announced: Mapping[str, str]) -> str:
    """Of n1. `announced`: prefix -> what is done to its attributes."""
    routes = "".join(f" route {prefix} blackhole {{ {change} }};" for prefix, change in announced.items())
    statics = f"protocol static {{ ipv4;{routes} }}\nprotocol direct {{ ipv4; ipv6; }}\n"
    return bird_config(own, statics + _session(own, 1, source="RTS_STATIC"))


def _know(mesh: Mesh, *numbers: int) -> None:
    """Have every node peer with them."""
    for number in numbers:
        for version in (4, 6):
            name = f"bird{number}v{version}"
            mesh.cluster.peers[name] = peer_resource(name, peerIP=_address(number, version), asNumber=64512)


def _end(bird: Bird) -> None:
    bird.process.kill()
    bird.process.wait()


def _hears_both(node: BgpNode, other: int) -> None:
    """Wait until the node has the other's blocks from both; paths with the same originator ID, of which one
    has two clusters in its list. BIRD does not tell that, and uses the way that both are."""
    block, hop = f"192.168.{other}.0/26", f"10.9.0.{other}"
    reason = "shorter cluster list" if node.protocol == "bgp" else ""
    both = {("10.9.0.21", hop, reason), ("10.9.0.20", hop, reason)}
    eventually(lambda: {(p.peer, p.next_hop, p.reason) for p in node.paths(block)} == both, _PATIENCE)
    assert node.way(block, hop) in node.routes()
    block6, learned = f"fd00:168::{other}00/122", f"fd00:168::{other}00/122 via fd09::{other} dev eth0"
    eventually(lambda: {p.peer for p in node.paths(block6)} == {"fd09::15", "fd09::14"}, _PATIENCE)
    assert [route for route in node.routes(6) if route.startswith(learned)], node.routes(6)


def test_reflectors_that_are_plain_birds(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    """The backup hears of the clients through the main one, as long as that is there."""
    mesh = make_mesh(2, nodeToNodeMeshEnabled=False)
    _know(mesh, _MAIN, _BACKUP)
    spot, config = mesh.underlay.attach(_MAIN), _reflector(_MAIN, _BACKUP, 100)
    main = closing(Bird(spot, config))
    backup = closing(Bird(mesh.underlay.attach(_BACKUP), _reflector(_BACKUP, _MAIN, 90)))
    mesh.start()
    _hears_both(mesh.nodes[0], 2)
    _hears_both(mesh.nodes[1], 1)

    one = mesh.nodes[0]
    events = closing(RouteEvents(one.ns))
    _end(main)
    eventually(lambda: _received(one, "10.9.0.21") == _received(one, "fd09::15") == 0, _PATIENCE)
    eventually(lambda: [p.peer for p in one.paths("192.168.2.0/26")] == ["10.9.0.20"], _PATIENCE)
    assert not events.moved("192.168.2.0", "fd00:168::200")

    _end(backup)
    eventually(lambda: all(n.prefixes(4) | n.prefixes(6) == set(n.blocks) for n in mesh.nodes), _PATIENCE)
    closing(Bird(spot, config))
    eventually(mesh.converged, _PATIENCE)
    assert one.way("192.168.2.0/26", "10.9.0.2") in one.routes()


@with_both
def test_clients_that_are_plain_birds(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any], speaker: str
) -> None:
    """We reflect between them, whichever our speaker; what comes back to us in a circle is as withdrawn."""
    mesh = make_mesh(1, nodeToNodeMeshEnabled=False)
    mesh.declare(1, routeReflectorClusterID="244.0.0.1")
    _know(mesh, _TELLER, _LISTENER)
    fine = {_KEPT: "", _WITHDRAWN: "", _LOOPED: "", _OWN: ""}
    teller = closing(Bird(mesh.underlay.attach(_TELLER), _client(_TELLER, fine)))
    listener = closing(Bird(mesh.underlay.attach(_LISTENER), _client(_LISTENER, {})))
    (node,) = mesh.nodes
    mesh.start()

    def heard() -> set[str]:
        found: set[str] = listener.prefixes("to1v4")
        return found - set(node.blocks)

    eventually(lambda: heard() == set(fine), _PATIENCE)
    shown = listener.ask("show", "route", "all", _KEPT)
    clusters = "244.0.0.1" if speaker == "exabgp" else "10.9.0.1 244.0.0.1"  # BIRD adds its router ID
    told = {"BGP.originator_id: 10.9.0.30", f"BGP.cluster_list: {clusters}", "BGP.next_hop: 10.9.0.30"}
    assert told <= {line.strip() for line in shown.splitlines()}, shown
    eventually(lambda: all("via 10.9.0.30" in _kernel(node, prefix) for prefix in fine), _PATIENCE)

    circular = {_LOOPED: "bgp_cluster_list.add(244.0.0.1);", _OWN: "bgp_originator_id = 10.9.0.1;"}
    teller.configure(_client(_TELLER, {_KEPT: "", **circular}))
    eventually(lambda: heard() == {_KEPT}, _PATIENCE)
    eventually(lambda: [prefix for prefix in fine if _kernel(node, prefix)] == [_KEPT], _PATIENCE)
    if speaker == "exabgp":
        reasons = [path.reason for prefix in circular for path in node.paths(prefix)]
        assert reasons == ["own cluster in cluster list", "own route reflected"]
    teller.configure(_client(_TELLER, fine))
    eventually(lambda: heard() == set(fine), _PATIENCE)


def _kernel(node: BgpNode, prefix: str) -> str:
    return node.ns.run("ip", "route", "show", prefix)
