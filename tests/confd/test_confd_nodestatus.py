"""CalicoNodeStatus: what it says, when it is written, and what keeps it from being written."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.memory_backend import MemoryBackend
from tests.support.peers import PEER
from tortie.bgp.status import Status
from tortie.bgp.table import TableRoute
from tortie.confd import nodestatus
from tortie.confd.statusreporter import StatusReporter
from tortie.core.errors import PeerError
from tortie.core.tasks import cancel
from tortie.datastore.client import Client
from tortie.datastore.types import node as types
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import CalicoNodeStatus, CalicoNodeStatusSpec, LearnedFrom, RouteStatus

pytestmark = pytest.mark.unit

_NOW = 1_800_000_000.0
_MESH = replace(PEER, since=_NOW - 86400 * 3)
_TOR = replace(_MESH, address="10.0.0.9", type="global", state="start", bgp_state="Passive", info="Passive")
_V6 = replace(_MESH, address="fd00::2", type="node specific", family=6)
_AGENT = Status(
    started=_NOW - 100,
    updated=_NOW,
    configured=_NOW - 50,
    router_id="10.0.0.1",
    configuration="loaded",
    peers=(_MESH, _TOR, _V6),
)
_TABLE = [
    TableRoute(prefix="192.168.1.0/26", origin="static", interface="blackhole", used=True),
    TableRoute(prefix="192.168.2.0/26", origin="peer", peer="10.0.0.2", next_hop="10.0.0.2", used=True),
    TableRoute(prefix="192.168.2.0/26", origin="peer", peer="10.0.0.9", next_hop="10.0.0.9"),
    TableRoute(prefix="fd00:1::/122", origin="kernel", interface="cali1", used=True),
]
_ALL = ("Agent", "BGP", "Routes")


def test_all_classes() -> None:
    found = nodestatus.build(_ALL, _AGENT, _TABLE, _NOW)
    assert found.lastUpdated == "2027-01-15T08:00:00Z"
    assert found.agent.birdV4 == found.agent.birdV6
    daemon = found.agent.birdV4
    assert (daemon.state, daemon.routerID) == ("Ready", "10.0.0.1")
    assert daemon.version and len(daemon.lastBootTime) == len("2027-01-15 08:00:00")
    assert daemon.lastReconfigurationTime > daemon.lastBootTime
    bgp = found.bgp
    assert (bgp.numberEstablishedV4, bgp.numberNotEstablishedV4) == (1, 1)
    assert (bgp.numberEstablishedV6, bgp.numberNotEstablishedV6) == (1, 0)
    assert isinstance(bgp.peersV4, tuple) and isinstance(bgp.peersV6, tuple)
    assert [(p.peerIP, p.type, p.state) for p in (*bgp.peersV4, *bgp.peersV6)] == [
        ("10.0.0.2", "NodeMesh", "Established"),
        ("10.0.0.9", "GlobalPeer", ""),
        ("fd00::2", "NodePeer", "Established"),
    ]
    assert bgp.peersV4[0].since == "2027-01-12"
    assert found.routes.routesV4 == (
        RouteStatus(
            type="FIB",
            destination="192.168.1.0/26",
            gateway="N/A",
            interface="blackhole",
            learnedFrom=LearnedFrom(sourceType="Static"),
        ),
        RouteStatus(
            type="FIB",
            destination="192.168.2.0/26",
            gateway="10.0.0.2",
            learnedFrom=LearnedFrom(sourceType="NodeMesh", peerIP="10.0.0.2"),
        ),
        RouteStatus(
            type="RIB",
            destination="192.168.2.0/26",
            gateway="10.0.0.9",
            learnedFrom=LearnedFrom(sourceType="BGPPeer", peerIP="10.0.0.9"),
        ),
    )
    assert [route.interface for route in found.routes.routesV6] == ["cali1"]


def test_only_what_was_asked_for() -> None:
    found = nodestatus.build(("BGP",), _AGENT, _TABLE, _NOW)
    assert found.agent == types.AgentStatus() and found.routes == types.RoutesStatus()
    assert found.bgp.numberEstablishedV4 == 1


def test_without_an_agent() -> None:
    found = nodestatus.build(_ALL, None, (), _NOW)
    assert found.agent.birdV4.state == found.agent.birdV6.state == "NotReady"
    assert found.bgp == types.BGPStatus() and found.routes == types.RoutesStatus()


def test_a_large_table_still_fits_into_the_datastore() -> None:
    table = [replace(_TABLE[1], prefix=f"10.{n >> 8}.{n & 255}.0/24") for n in range(20_000)]
    assert len(nodestatus.build(_ALL, _AGENT, table, _NOW).routes.routesV4) == 4000


# --- the reporter ---------------------------------------------------------------------------------


class World:
    """A reporter for node `one`, whose agent says what `agent` and `routes` are."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.client = Client(self.backend)
        self.agent: Status | None = _AGENT
        self.routes: list[TableRoute] | PeerError = list(_TABLE)
        self.reporter = StatusReporter(self.client, "one", lambda: self.agent, self._routes)
        self.now = 100.0

    async def _routes(self) -> list[TableRoute]:
        if isinstance(self.routes, PeerError):
            raise self.routes
        return self.routes

    def run(self, act: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            watching = asyncio.create_task(self.reporter.watch())
            try:
                async with asyncio.timeout(240):
                    await act()
            finally:
                await cancel([watching])

        asyncio.run(main())

    async def ask_for(self, name: str, node: str = "one", period: int = 10) -> CalicoNodeStatus:
        spec = CalicoNodeStatusSpec(node=node, classes=_ALL, updatePeriodSeconds=period)
        return await self.client.create(CalicoNodeStatus(metadata=ObjectMeta(name=name), spec=spec))

    async def stored(self, name: str) -> CalicoNodeStatus:
        return await self.client.get(CalicoNodeStatus, name)

    async def round(self, seconds: float = 0.0) -> None:
        """Time passes, all that was written is known, what is due is reported."""
        self.now += seconds
        for _ in range(50):
            await asyncio.sleep(0.001)
        await self.reporter.report(self.now, _NOW + self.now)


def test_written_once_for_each_change() -> None:
    world = World()

    async def act() -> None:
        created = await world.ask_for("mine")
        await world.ask_for("theirs", node="two")
        await world.ask_for("never", period=0)
        while (await world.stored("mine")).revision == created.revision:
            await world.round()
        first = await world.stored("mine")
        assert first.status.bgp.numberEstablishedV4 == 1 and len(first.status.routes.routesV4) == 3
        assert first.spec == created.spec and first.metadata.uid == created.metadata.uid
        for name in ("theirs", "never"):
            assert (await world.stored(name)).status.lastUpdated is None

        await world.round(30)
        assert (await world.stored("mine")).revision == first.revision, "nothing has changed"
        world.agent = replace(_AGENT, peers=(replace(_MESH, state="start", bgp_state="Active"),))
        await world.round(5)
        assert (await world.stored("mine")).revision == first.revision, "not yet due"
        await world.round(5)
        second = await world.stored("mine")
        assert second.status.bgp.numberNotEstablishedV4 == 1
        assert second.status.lastUpdated != first.status.lastUpdated

    world.run(act)


def test_trouble_is_said_once_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    world = World()
    world.routes = PeerError("no answer")

    async def act() -> None:
        await world.ask_for("mine")
        while not caplog.messages:
            await world.round()
        await world.round(20)
        assert caplog.messages == ["CalicoNodeStatus mine cannot be brought up to date: no answer"]
        world.routes = list(_TABLE)
        await world.round(20)
        assert (await world.stored("mine")).status.routes.routesV4

    world.run(act)


def test_a_speaker_that_is_slow_to_answer_stops_nobody_else() -> None:
    """BIRD is asked on its socket, and waited for; all of confd runs in one loop."""
    world = World()
    asked, others_ran = threading.Event(), threading.Event()
    waited: list[bool] = []

    def slow() -> None:
        asked.set()
        waited.append(others_ran.wait(60))

    world.reporter = StatusReporter(world.client, "one", slow, world._routes)

    async def report() -> None:
        while not waited:
            await world.round()

    async def act() -> None:
        await world.ask_for("mine")
        reporting = asyncio.create_task(report())
        while not asked.is_set():
            await asyncio.sleep(0.001)
        others_ran.set()
        await reporting
        assert waited == [True]

    world.run(act)


def test_a_deleted_resource_is_forgotten() -> None:
    world = World()

    async def act() -> None:
        created = await world.ask_for("mine")
        while (await world.stored("mine")).revision == created.revision:
            await world.round()
        await world.client.delete(CalicoNodeStatus, "mine")
        world.agent = None
        await world.round(20)
        await world.round(20)
        assert not (await world.client.list(CalicoNodeStatus)).items

    world.run(act)


def test_what_another_wrote_meanwhile_is_kept() -> None:
    world = World()

    async def act() -> None:
        created = await world.ask_for("mine")
        while (await world.stored("mine")).revision == created.revision:
            await world.round()
        stored: Any = await world.stored("mine")
        world.agent = None
        changed = replace(stored, spec=replace(stored.spec, updatePeriodSeconds=20))
        await world.client.update(changed)
        await world.reporter.report(world.now + 100, _NOW)  # before the change has come in
        while (await world.stored("mine")).status.agent.birdV4.state != "NotReady":
            await world.round(30)
        assert (await world.stored("mine")).spec.updatePeriodSeconds == 20

    world.run(act)
