"""`bgp peers` and `bgp routes`: of all nodes from the datastore, of this host from its agent."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.calicoctl.conftest import Ctl
from tests.support.bgp_agent import agent
from tests.support.peers import PEER
from tortie.bgp.status import Status
from tortie.bgp.table import TableRoute
from tortie.calicoctl import bgpshow
from tortie.confd import nodestatus
from tortie.datastore import config
from tortie.datastore.connect import connect
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import CalicoNodeStatus, CalicoNodeStatusSpec

_PEER = replace(
    PEER,
    received=12,
    rejected=3,
    rejected_because={"filter deny, importV4 rule 1": 2, "own AS 64512 in AS path": 1},
    announced=4,
)
_TABLE = [
    TableRoute(prefix="10.1.0.0/26", origin="static", interface="blackhole", used=True, reason="only path"),
    TableRoute(
        prefix="10.2.0.0/26",
        origin="peer",
        peer="10.0.0.2",
        next_hop="10.0.0.2",
        interface="eth0",
        used=True,
        reason="only path",
    ),
    TableRoute(prefix="10.3.0.0/26", origin="peer", peer="10.0.0.2", next_hop="10.0.0.9", reason="not \x1b"),
]


def node_status(name: str, node: str, wall: float, *classes: str, **agent: Any) -> CalicoNodeStatus:
    status = Status(started=0, updated=0, configuration="loaded", peers=(_PEER,))
    found = nodestatus.build(classes, replace(status, **agent), _TABLE, wall)
    spec = CalicoNodeStatusSpec(node=node, classes=classes, updatePeriodSeconds=10)
    return CalicoNodeStatus(metadata=ObjectMeta(name=name), spec=spec, status=found)


@pytest.mark.unit
def test_the_newest_status_with_the_class_counts() -> None:
    old = node_status("a", "one", 1e9, "BGP", "Routes")
    new = node_status("b", "one", 2e9, "BGP", peers=())
    other = node_status("c", "two", 1e9, "Routes")
    silent = CalicoNodeStatus(metadata=ObjectMeta(name="d"), spec=replace(old.spec, node="three"))
    everything = [new, old, other, silent]
    assert bgpshow.choose(everything, "BGP", ["one", "three", "two"]) == [new]
    assert bgpshow.choose(everything, "Routes", ["one", "three", "two"]) == [old, other]
    assert bgpshow.choose(everything, "Routes", ["two"]) == [other]


@pytest.mark.unit
def test_peers_of_this_host() -> None:
    status = Status(started=0, updated=0, peers=(_PEER,))
    assert (
        bgpshow.own_peers(status, 2e9)
        == """\
+--------------+-------------------+-------+------------+----------+----------+-----------+-------------+
| PEER ADDRESS | PEER TYPE         | STATE | SINCE      | RECEIVED | REJECTED | ANNOUNCED | INFO        |
+--------------+-------------------+-------+------------+----------+----------+-----------+-------------+
| 10.0.0.2     | node-to-node mesh | up    | 2001-09-09 |       12 |        3 |         4 | Established |
+--------------+-------------------+-------+------------+----------+----------+-----------+-------------+
10.0.0.2: 2 rejected: filter deny, importV4 rule 1
10.0.0.2: 1 rejected: own AS 64512 in AS path
"""
    )


@pytest.mark.unit
def test_routes_of_this_host() -> None:
    assert (
        bgpshow.own_routes(_TABLE)
        == """\
+---+-------------+----------+-----------+--------------+-----------+
|   | DESTINATION | GATEWAY  | INTERFACE | LEARNED FROM | WHY       |
+---+-------------+----------+-----------+--------------+-----------+
| * | 10.1.0.0/26 | N/A      | blackhole | static       | only path |
| * | 10.2.0.0/26 | 10.0.0.2 | eth0      | 10.0.0.2     | only path |
|   | 10.3.0.0/26 | 10.0.0.9 |           | 10.0.0.2     | not \\x1b  |
+---+-------------+----------+-----------+--------------+-----------+
"""
    )


@pytest.mark.unit
def test_this_host_without_an_agent(offline: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALICO_RUN_DIR", str(tmp_path))
    for words in (("peers", "--local"), ("routes", "--local")):
        result = offline.run("bgp", *words)
        assert result.code == 1 and "The BGP backend process (BIRD) is not running." in result.err
    with agent(tmp_path, Status(started=0, updated=0)):
        assert "RECEIVED" in offline.ok("bgp", "peers", "--local")
        result = offline.run("bgp", "routes", "--local")
    assert result.code == 1 and "the BGP agent does not tell its routes" in result.err


@pytest.mark.kernel
def test_all_nodes_from_the_datastore(ctl: Ctl) -> None:
    node = "{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: %s}}\n---\n"
    ctl.ok("create", "-f", "-", stdin=node % "one" + node % "two")

    async def report() -> None:
        client = connect(config.from_env(ctl.env))
        try:
            await client.create(node_status("all", "one", 1e9, "BGP", "Routes"))
        finally:
            await client.close()

    asyncio.run(report())
    result = ctl.run("bgp", "peers")
    assert result.code == 0 and "| one  | 10.0.0.2     | NodeMesh  | Established |" in result.out
    assert result.err.startswith("Warning: nothing is known of two: it takes a CalicoNodeStatus with")
    found = ctl.ok("bgp", "routes", "one")
    assert "| one  | FIB  | 10.2.0.0/26 | 10.0.0.2 | eth0      | NodeMesh 10.0.0.2 |" in found
    assert "| one  | RIB  | 10.3.0.0/26 | 10.0.0.9 |           | NodeMesh 10.0.0.2 |" in found
    result = ctl.run("bgp", "peers", "three")
    assert result.code == 1 and "there is no node three" in result.err
