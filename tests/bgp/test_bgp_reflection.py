"""Two reflectors and their clients, without a mesh: each is enough, and losing one moves no route."""

import asyncio
from collections.abc import Callable

import pytest

from tests.bgp.bgp_lab import BgpNode, Mesh, RouteEvents, eventually, peer_resource
from tortie.bgp.status import PeerStatus
from tortie.bgp.table import TableRoute
from tortie.bgp.table import read as read_table

pytestmark = pytest.mark.cluster

_PATIENCE = 60  # seconds


def _paths(node: BgpNode, prefix: str) -> list[TableRoute]:
    table = asyncio.run(read_table(str(node.dir / "run" / "bgp-routes.sock")))
    return [route for route in table if route.prefix == prefix]


def _received(node: BgpNode, address: str) -> int:
    found = node.peer(address)
    return found.received if found else -1


def test_a_pair_of_reflectors_loses_one(make_mesh: Callable[..., Mesh]) -> None:
    mesh = make_mesh(5, nodeToNodeMeshEnabled=False)
    for number in (1, 2):
        mesh.declare(number, routeReflectorClusterID="244.0.0.1")
    mesh.cluster.peers["rr"] = peer_resource(
        "rr", nodeSelector="all()", peerSelector="name in {'n1', 'n2'}", maxRestartTime="3s"
    )
    mesh.start()
    first, _, client, other, _ = mesh.nodes
    assert {peer.address for peer in _status(client)} == {"10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"}
    eventually(lambda: len(_paths(client, "192.168.4.0/26")) == 2, _PATIENCE)
    found = _paths(client, "192.168.4.0/26")
    assert {path.peer for path in found} == {"10.9.0.1", "10.9.0.2"}
    assert {path.next_hop for path in found} == {"10.9.0.4"}, "reflectors leave it alone"
    assert client.routes()[1] == "192.168.2.0/26 via 10.9.0.2 dev eth0 onlink"
    assert "192.168.4.0/26 via 10.9.0.4 dev eth0 onlink" in client.routes(), "one way, told twice"

    events = RouteEvents(client.ns)
    first.kill()
    eventually(lambda: _received(client, "10.9.0.1") == _received(client, "fd09::1") == 0, _PATIENCE)
    assert not events.about("192.168.4.0", "192.168.5.0", "fd00:168::400", "fd00:168::500")

    other.own("192.168.44.0/26")
    other.render()
    eventually(lambda: "192.168.44.0/26 via 10.9.0.4 dev eth0 onlink" in client.routes(), _PATIENCE)
    eventually(lambda: "192.168.4.0/26" not in client.prefixes(), _PATIENCE)
    first.start()
    eventually(lambda: len(_paths(client, "192.168.44.0/26")) == 2, _PATIENCE)


def _status(node: BgpNode) -> list[PeerStatus]:
    found = node.status()
    return list(found.peers) if found else []
