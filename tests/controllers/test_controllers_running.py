"""How controllers run: rounds, the Lease, the status file and its probe, ports, the command line."""

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.support.aio import eventually, run
from tests.support.memory_backend import MemoryBackend
from tortie.controllers import health, leader, main, rounds
from tortie.controllers.configuration import settings
from tortie.controllers.feed import Feed
from tortie.controllers.health import Health, check_status
from tortie.controllers.leader import Leader
from tortie.controllers.rounds import Controller, each, keep
from tortie.controllers.settings import NAME
from tortie.core.backoff import Backoff
from tortie.core.errors import DatastoreError, DatastoreUnreachable, ResourceDoesNotExist, UpdateConflict
from tortie.core.tasks import cancel, supervise
from tortie.datastore.backend import KV
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockKey, BlockList, ResourceKey, ResourceList
from tortie.datastore.syncer import Batch, SyncStatus, Update
from tortie.datastore.types.cluster import KubeControllersConfiguration
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_GATHER", 0.0)
    monkeypatch.setattr(rounds, "_RETRY", Backoff(first=0.001, cap=0.001))
    monkeypatch.setattr(leader, "RENEW_EVERY", 0.01)  # also what giving up may take


# --- feeds and rounds ---------------------------------------------------------------------------


def pool(name: str, cidr: str) -> IPPool:
    return IPPool(metadata=ObjectMeta(name=name), spec=IPPoolSpec(cidr=cidr))


def test_a_feed_begun_again_forgets_what_is_gone() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        client, feed = Client(backend), Feed(backend, [ResourceList("IPPool")])
        await client.create(pool("a", "10.0.0.0/24"))
        for expected in ({"a"}, {"b"}):
            following = asyncio.create_task(feed.run())
            await eventually(lambda: feed.in_sync)
            assert {key.name for key in feed.of("IPPool")} == expected
            await cancel([following])
            if expected == {"a"}:
                await client.delete(IPPool, "a")
                await client.create(pool("b", "10.0.1.0/24"))
                feed.in_sync = True  # as it was left
                again = asyncio.create_task(feed.run())
                await asyncio.sleep(0)
                assert not feed.in_sync
                await cancel([again])

    run(scenario())


def test_a_block_that_lies_counts_as_absent() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        feed = Feed(backend, [BlockList()])
        lies = {"cidr": "10.0.0.0/30", "affinity": "host:n1", "allocations": [9], "attributes": []}
        path = BlockKey("10.0.0.0/30").path()
        await backend.put_raw(path, json.dumps(lies))
        following = asyncio.create_task(feed.run())
        await eventually(lambda: feed.in_sync)
        assert (list(feed.of("BlockKey")), list(feed.unreadable())) == ([], [path])
        await cancel([following])

    run(scenario())


class Counted:
    """A controller's round, counted; `fail` makes the next ones raise."""

    def __init__(self) -> None:
        self.count, self.fail, self.due = 0, 0, None

    async def round(self) -> float | None:
        self.count += 1
        if self.fail:
            self.fail -= 1
            raise DatastoreUnreachable("away")
        return self.due


def told(feed: Feed, name: str, status: SyncStatus = SyncStatus.IN_SYNC) -> None:
    key = ResourceKey("IPPool", name)
    feed.apply(Batch([Update("new", key, pool(name, "10.0.0.0/24"))], status))


def test_rounds_follow_changes_and_repeat_failures() -> None:
    async def scenario() -> None:
        feed, counted = Feed(MemoryBackend(), []), Counted()
        follows = [(feed, ("IPPool",))]
        keeping = asyncio.create_task(keep(Controller("x", counted.round, follows, 0.0), cpu=lambda: 0.0))
        told(feed, "early", SyncStatus.RESYNC_IN_PROGRESS)
        await asyncio.sleep(0.02)
        assert counted.count == 0  # not everything is known
        told(feed, "a")
        await eventually(lambda: counted.count == 1)
        counted.fail = 2
        told(feed, "b")
        await eventually(lambda: counted.count == 4)
        feed.apply(Batch([Update("new", ResourceKey("Node", "n"), object())], SyncStatus.IN_SYNC))
        await asyncio.sleep(0.02)
        assert counted.count == 4  # not its business
        await cancel([keeping])

    run(scenario())


def test_a_round_that_is_due_comes_without_a_change() -> None:
    async def scenario() -> None:
        feed, counted = Feed(MemoryBackend(), []), Counted()
        told(feed, "a")
        counted.due = asyncio.get_running_loop().time() + 0.01  # type: ignore[assignment]
        controller = Controller("x", counted.round, [(feed, ("IPPool",))], 0.0)
        keeping = asyncio.create_task(keep(controller, cpu=lambda: 0.0))
        await eventually(lambda: counted.count >= 2)
        await cancel([keeping])

    run(scenario())


def test_one_failed_write_does_not_hinder_the_others() -> None:
    async def scenario() -> None:
        done = []

        async def write(n: int) -> None:
            if n in failures:
                raise failures[n]
            done.append(n)

        failures: dict[int, DatastoreError] = {1: UpdateConflict("x")}
        with pytest.raises(UpdateConflict):
            await each((f"written {n}", partial(write, n)) for n in range(4))
        assert sorted(done) == [0, 2, 3]
        failures[2] = ResourceDoesNotExist("y")
        with pytest.raises(
            DatastoreError, match=r"^not written 2: resource does not exist: y .*\(and 1 more\)"
        ):
            await each((f"written {n}", partial(write, n)) for n in range(4))

    run(scenario())


# --- the configuration --------------------------------------------------------------------------


def test_the_configuration_is_created_followed_and_answered() -> None:
    async def scenario() -> None:
        client = Client(MemoryBackend())
        followed = settings(client, {"RECONCILER_PERIOD": "1m"}, "etcdv3")
        first = await anext(followed)
        assert dict(first.periods)["policy"] == 60.0
        stored = await client.get(KubeControllersConfiguration, NAME)
        assert stored.status["environmentVars"] == {"RECONCILER_PERIOD": "1m"}
        spec = structs.replace(stored.spec, prometheusMetricsPort=1234)
        await client.update(structs.replace(stored, spec=spec))
        assert (await anext(followed)).metrics_port == 1234
        await client.delete(KubeControllersConfiguration, NAME)
        assert (await anext(followed)) == first
        await followed.aclose()

    run(scenario())


def test_a_status_of_which_a_part_is_dropped_is_told_once() -> None:
    """As an API server does whose definition of the resource is older than we are."""

    class Dropping(MemoryBackend):
        written = 0

        async def update(self, kv: KV) -> KV:
            self.written += 1
            running = {**kv.value.status["runningConfig"]}
            running.pop("prometheusMetricsPort")
            status = {**kv.value.status, "runningConfig": running}
            return await super().update(KV(kv.key, structs.replace(kv.value, status=status), kv.revision))

    async def scenario() -> None:
        backend = Dropping()
        followed = settings(Client(backend), {}, "kubernetes")
        await anext(followed)
        nothing_more = asyncio.ensure_future(anext(followed))
        await asyncio.sleep(0.05)
        assert backend.written == 1
        nothing_more.cancel()
        await asyncio.wait([nothing_more])
        await followed.aclose()

    run(scenario())


# --- the Lease ----------------------------------------------------------------------------------


class Leases:
    """The API's part; `away` makes it fail."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.revision = 0
        self.away = False

    async def lease(self, namespace: str, name: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.away:
            raise DatastoreUnreachable("away")
        if self.stored is None:
            raise ResourceDoesNotExist(f"{namespace}/{name}")
        return self.stored

    async def write_lease(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.away:
            raise DatastoreUnreachable("away")
        given = lease["metadata"].get("resourceVersion")
        if given != (str(self.revision) if self.stored else None):
            raise UpdateConflict("lease")
        self.revision += 1
        metadata = {**lease["metadata"], "resourceVersion": str(self.revision)}
        self.stored = {**lease, "metadata": metadata}
        return self.stored


def worker(name: str, working: set[str]) -> Callable[[], Any]:
    async def work() -> None:
        working.add(name)
        try:
            await asyncio.Event().wait()
        finally:
            working.discard(name)

    return work


def test_one_leads_and_another_follows_at_once_when_it_stops() -> None:
    async def scenario() -> None:
        leases, working = Leases(), set[str]()
        running = {
            name: asyncio.create_task(Leader(leases, "kube-system", "x", name).run(worker(name, working)))
            for name in "abc"
        }
        await eventually(lambda: working)
        for _ in range(20):
            await asyncio.sleep(0.002)
            assert len(working) == 1
        (first,) = working
        await cancel([running.pop(first)])
        await eventually(lambda: working and working != {first})
        await cancel(running.values())
        assert leases.stored is not None and leases.stored["spec"]["holderIdentity"] == ""

    run(scenario())


def test_who_cannot_renew_stops_working(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "GIVE_UP_AFTER", 0.05)

    async def scenario() -> None:
        leases, working = Leases(), set[str]()
        one = Leader(leases, "ns", "x", "a")
        running = asyncio.create_task(one.run(worker("a", working)))
        await eventually(lambda: working)
        await one.check()
        leases.away = True
        await eventually(lambda: not working and one._problem)
        with pytest.raises(DatastoreUnreachable):
            await one.check()
        leases.away = False
        await eventually(lambda: working)
        await one.check()
        await cancel([running])

    run(scenario())


def test_who_finds_another_in_the_lease_stops_working() -> None:
    async def scenario() -> None:
        leases, working = Leases(), set[str]()
        running = asyncio.create_task(Leader(leases, "ns", "x", "a").run(worker("a", working)))
        await eventually(lambda: working)
        assert leases.stored is not None
        spec = {**leases.stored["spec"], "holderIdentity": "z", "renewTime": "2027-01-01T00:00:00.000000Z"}
        leases.revision += 1
        metadata = {**leases.stored["metadata"], "resourceVersion": str(leases.revision)}
        leases.stored = {**leases.stored, "metadata": metadata, "spec": spec}
        await eventually(lambda: not working)
        await cancel([running])
        assert leases.stored["spec"]["holderIdentity"] == "z"

    run(scenario())


# --- health -------------------------------------------------------------------------------------


def test_the_probe_reads_what_the_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "status" / "status.json")
    assert check_status(["-r", "-f", path]) == 1
    assert "Failed to read status file" in capsys.readouterr().out
    state = Health(path)
    state.set(health.STARTUP, "initialized to false")
    state.set(health.API, "down")
    assert check_status(["-l", f"--file={path}"]) == 1
    assert capsys.readouterr().out == "initialized to false; down\n"
    state.set(health.STARTUP)
    state.set(health.API)
    assert json.loads(Path(path).read_text()) == {
        "Readiness": {
            "Startup": {"Ready": True, "Reason": ""},
            "KubeAPIServer": {"Ready": True, "Reason": ""},
        }
    }
    assert main.main(["component", "kube-controllers", "kube-controllers-health", "-r", "-f", path]) == 0
    assert capsys.readouterr().out == "Ready\n"
    assert check_status(["-f", path]) == 1
    assert capsys.readouterr().out == "No command specified to check-status\n"
    assert check_status(["-x"]) == 1


def test_checks_that_fail_or_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_TIMEOUTS", (0.01,))
    monkeypatch.setattr(health, "_AGAIN", 0.001)
    monkeypatch.setattr(health, "_EVERY", 0.001)

    async def scenario() -> None:
        state, well = Health(str(tmp_path / "s.json")), asyncio.Event()

        async def fails() -> None:
            if not well.is_set():
                raise DatastoreUnreachable("no route")

        watching = asyncio.create_task(state.watch({"a": fails, "b": well.wait}))
        await eventually(lambda: health.reasons(state.conditions) == "no route; no answer within 0.01 s")
        well.set()
        await eventually(lambda: state.ready)
        well.clear()
        await eventually(lambda: not state.ready)
        await cancel([watching])
        state.set(health.STARTUP)
        state.forget({"a", "b"})
        assert state.ready and check_status(["-r", "-f", str(tmp_path / "s.json")]) == 0

    run(scenario())


# --- ports and words ----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--status-file"], ["--health-port=x"], ["--what", "1"]])
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(words) == 2
    assert "usage:" in capsys.readouterr().err


def test_without_a_kubernetes_api_it_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    from tortie.controllers.run import run as run_process

    env = {"ETCD_ENDPOINTS": "http://127.0.0.1:1"}
    assert run_process(env, str(tmp_path / "s.json"), 0) == 1
    assert "need a Kubernetes API" in caplog.text


def test_a_mistake_in_a_write_ends_no_controller() -> None:
    """A failed TaskGroup of Python 3.11 would look like a cancellation."""
    begun: list[None] = []

    async def mistaken() -> None:
        raise KeyError("a mistake")

    async def loop() -> None:
        begun.append(None)
        if len(begun) < 3:
            await each([("created x", mistaken), ("created y", mistaken)])

    asyncio.run(supervise("writing", loop, Backoff(first=0.0, cap=0.0)))
    assert len(begun) == 3
