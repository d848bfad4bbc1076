"""The syncer on a real etcd, which is cut off, killed, stopped, compacted and restored under it."""

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from tests.support.aio import eventually, run
from tests.support.etcd import Etcd
from tests.support.links import PATIENT
from tests.support.proxy import Proxy
from tests.support.replay import Replay, consuming
from tortie.core.backoff import Backoff
from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import syncer as syncer_module
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.etcdchannel import Timing
from tortie.datastore.keys import BlockList, ResourceList, parse
from tortie.datastore.syncer import Syncer, SyncStatus

pytestmark = pytest.mark.kernel

PREFIX = "/calico/resources/v3/projectcalico.org/"
POOLS, NODES = ResourceList("IPPool"), ResourceList("Node")
QUICK = Timing(dial=0.8, call=0.8, quiet=0.2, silent=0.8)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncer_module, "_RETRY", Backoff(first=0.02, cap=0.1))


@asynccontextmanager
async def following(
    endpoint: str, *listings: Any, timing: Timing = QUICK, **options: Any
) -> AsyncIterator[tuple[Syncer, Replay]]:
    backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(endpoint,)), timing)
    syncer, replay = Syncer(backend, listings or (POOLS, NODES), **options), Replay()
    try:
        async with consuming(syncer, replay):
            yield syncer, replay
    finally:
        await backend.close()


def body(kind: str, name: str, mark: int) -> str:
    return json.dumps({"kind": kind, "metadata": {"name": name, "labels": {"mark": str(mark)}}})


def pool(name: str, mark: int = 0) -> tuple[str, str]:
    return PREFIX + f"ippools/{name}", body("IPPool", name, mark)


def node(name: str, mark: int = 0) -> tuple[str, str]:
    return PREFIX + f"nodes/{name}", body("Node", name, mark)


def marks(replay: Replay) -> dict[str, str | None]:
    """path -> the mark its object carries, as the consumer knows it."""
    return {key.path(): value.labels.get("mark") for key, value in replay.state.items()}


def stored(etcd: Etcd) -> dict[str, str]:
    """The same, of what is readable in etcd."""
    found = {}
    for path, value in etcd.entries(PREFIX).items():
        try:
            found[path] = json.loads(value)["metadata"]["labels"]["mark"]
        except ValueError:
            continue
    return found


def test_a_day_in_the_life_of_a_syncer(etcd: Etcd) -> None:
    async def scenario() -> None:
        etcd.put(*pool("a"))
        etcd.put(*node("n"))
        async with following(etcd.endpoint) as (syncer, replay):
            assert marks(replay) == stored(etcd)
            etcd.put(*pool("b", 1))
            etcd.put(*pool("a", 2))
            etcd.delete(node("n")[0])
            await eventually(lambda: marks(replay) == stored(etcd))
            etcd.kill()
            await eventually(lambda: len(syncer.problems()) == 2)
            assert replay.status is SyncStatus.IN_SYNC  # and goes on with what it has
            await etcd.restart_async()
            etcd.delete(pool("a")[0])
            await eventually(lambda: marks(replay) == stored(etcd) and not syncer.problems())
            etcd.stop_answering()
            await eventually(lambda: len(syncer.problems()) == 2)
            etcd.resume()
            etcd.put(*pool("c", 3))
            await eventually(lambda: marks(replay) == stored(etcd) and not syncer.problems())

    run(scenario())


def test_deletions_during_an_outage_that_history_forgot(etcd: Etcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            for name in "abc":
                etcd.put(*pool(name))
            async with following(proxy.endpoint) as (syncer, replay):
                proxy.refuse = True
                proxy.cut()
                await eventually(lambda: len(syncer.problems()) == 2)
                etcd.delete(pool("a")[0])
                etcd.put(*pool("b", 1))
                etcd.delete(pool("c")[0])
                etcd.put(*pool("c", 2))
                etcd.compact()
                proxy.refuse = False
                await eventually(lambda: marks(replay) == stored(etcd))
                assert replay.status is SyncStatus.IN_SYNC

    run(scenario())


def test_a_store_restored_from_a_backup_is_followed_from_there(make_etcd: Callable[..., Etcd]) -> None:
    """Its revision is behind ours: what is gone must go, and what comes must not be missed."""
    etcd = make_etcd()
    etcd.put(*pool("old", 1))
    etcd.kill()
    backup, data = os.path.join(etcd.folder, "backup"), os.path.join(etcd.folder, "data")
    shutil.copytree(data, backup)
    etcd.start()

    async def scenario() -> None:
        async with following(etcd.endpoint) as (_, replay):
            for n in range(20):
                etcd.put(*pool("new", n))
            await eventually(lambda: marks(replay) == stored(etcd))
            etcd.kill()
            shutil.rmtree(data)
            shutil.copytree(backup, data)
            await etcd.restart_async()
            assert list(stored(etcd)) == [pool("old")[0]]
            await eventually(lambda: marks(replay) == stored(etcd))
            etcd.put(*pool("after"))  # far below the revision that was known before
            await eventually(lambda: marks(replay) == stored(etcd))

    run(scenario())


def test_hostile_entries_stop_nothing(etcd: Etcd, caplog: pytest.LogCaptureFixture) -> None:
    hostile: list[tuple[str | bytes, str | bytes]] = [
        (PREFIX + "ippools/json", "{"),
        (PREFIX + "ippools/type", '{"kind":"IPPool","spec":{"cidr":{}}}'),
        (PREFIX + "ippools/kind", '{"kind":"Node"}'),
        (PREFIX + "ippools/deep", '{"kind":"IPPool","x":' + "[" * 5000 + "]" * 5000 + "}"),
        (PREFIX + "ippools/bytes", b"\xff\xfe\x00"),
        (PREFIX + "ippools/new\nline\x1b[31m", "[]"),
        (PREFIX + "ippools/" + "n" * 10_000, "nonsense" * 1000),
        ((PREFIX + "ippools/").encode() + b"\xff", "{}"),
        (PREFIX + "ippools/empty-is-fine", ""),
        (PREFIX + "ippools/not/ours", "{"),
        ("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-33", "{}"),
        ("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26", '{"cidr":"10.0.0.0/26","allocations":"x"}'),
    ]

    def check(value: Any) -> None:
        if value.labels.get("mark") == "13":
            raise ValidationError([FieldError("metadata.labels.mark", "13", "unlucky")])

    async def scenario() -> None:
        for path, value in hostile[:6]:
            etcd.put(path, value)
        etcd.put(*pool("unlucky", 13))
        async with following(etcd.endpoint, POOLS, BlockList(), timing=PATIENT, check=check) as (
            syncer,
            replay,
        ):
            for path, value in hostile[6:]:
                etcd.put(path, value)
            etcd.put(*pool("last", 1))
            await eventually(lambda: parse(pool("last")[0]) in replay.state)
            await eventually(lambda: len(syncer.problems()) == 10)
            etcd.compact()
            for path, value in hostile:
                etcd.put(path, value)  # written once more, wrong in the same way
            etcd.put(*pool("last", 2))
            await eventually(lambda: marks(replay).get(pool("last")[0]) == "2")
            names = sorted(key.path().removeprefix(PREFIX) for key in replay.state)
            assert names == ["ippools/empty-is-fine", "ippools/last"]

    run(scenario())
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 10 == len(set(said))
    assert all(line.isprintable() and len(line) < 1000 for line in said)
    for path in ("json", "type", "kind", "deep", "bytes", "unlucky", r"\xff", "block/10.0.0.0-26"):
        assert sum(f"/{path}," in line for line in said) == 1, path


@pytest.mark.parametrize("seed", range(3))
def test_chaos_ends_in_the_truth(etcd: Etcd, seed: int) -> None:
    """Random writes while connections are cut, requests and replies vanish, history is compacted and
    the server is killed: at every pause the consumer has exactly what is stored."""
    random = Random(seed)

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy, following(proxy.endpoint) as (_, replay):
            for mark in range(120):
                change(random, mark)
                await fault(random, proxy)
                if mark % 40 == 39:
                    proxy.swallow_requests = proxy.swallow_replies = proxy.refuse = False
                    proxy.cut_every = 0
                    await eventually(
                        lambda: replay.in_sync and marks(replay) == stored(etcd), what="the truth to be known"
                    )

    def change(random: Random, mark: int) -> None:
        entries = dict(random.sample([pool("a", mark), pool("b", mark), node("a", mark), node("b", mark)], 2))
        what = random.randrange(10)
        if what < 5:
            etcd.put_all(entries)
        elif what < 8:
            etcd.delete(next(iter(entries)))
        else:
            etcd.put(next(iter(entries)), "{")

    async def fault(random: Random, proxy: Proxy) -> None:
        what = random.randrange(24)
        if what < 4:
            proxy.cut()
        elif what == 4:
            proxy.swallow_replies = not proxy.swallow_replies
        elif what == 5:
            proxy.swallow_requests = not proxy.swallow_requests
        elif what == 6:
            proxy.refuse = not proxy.refuse
        elif what == 7:
            proxy.cut_every = random.choice([0, 3, 5])
        elif what == 8:
            etcd.compact()
        elif what == 9:
            await etcd.restart_async()
        elif what < 16:
            await asyncio.sleep(random.random() * 0.1)

    run(scenario())
