"""Watches on a real etcd: order, resumption, silence, floods, and how they end."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

import grpc
import pytest

from tests.support.aio import eventually, others, run
from tests.support.etcd import Etcd
from tests.support.links import PATIENT, QUICK, wait_for
from tests.support.pools import BROKEN, POOL_PATH, POOLS, PREFIX, backend_on, pool_json, pool_key
from tests.support.proxy import Proxy
from tests.support.replay import next_events
from tortie.core.errors import (
    DatastoreUnreachable,
    RevisionGone,
    ValidationError,
)
from tortie.datastore import etcdchannel
from tortie.datastore.backend import WatchEvent
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import (
    Key,
)

pytestmark = pytest.mark.kernel


async def collect(backend: EtcdBackend, revision: str, count: int) -> list[WatchEvent]:
    """The first `count` events that are not bookmarks."""
    return await next_events(backend.watch(POOLS, revision), count)


def test_a_watch_sees_every_change_of_its_listing_once_in_order(etcd: Etcd, backend: EtcdBackend) -> None:
    start = etcd.revision
    revisions = [
        etcd.put(POOL_PATH + "a", pool_json("a")),
        etcd.put(POOL_PATH + "a", BROKEN),
        etcd.put(POOL_PATH + "a", pool_json("a", "10.1.0.0/24")),
        etcd.delete(POOL_PATH + "a"),
    ]
    etcd.put(PREFIX + "ippools-not/a", "{}")
    etcd.put(POOL_PATH + "a/b", "{}")
    revisions += [etcd.put(POOL_PATH + "b", BROKEN), etcd.delete(POOL_PATH + "b")]
    found = run(collect(backend, str(start), 6))
    assert [event.type for event in found] == ["set", "broken", "set", "deleted", "broken", "deleted"]
    assert [int(event.revision) for event in found] == revisions
    kvs = [event.kv or event.broken for event in found]
    assert [kv.key for kv in kvs if kv is not None] == [pool_key("a")] * 4 + [pool_key("b")] * 2
    assert found[0].kv is not None and found[0].kv.value.revision == str(revisions[0])
    assert found[3].kv is not None and found[3].kv.value is None


def test_a_watch_that_is_resumed_in_the_middle_of_a_transaction_misses_nothing(
    etcd: Etcd, backend: EtcdBackend
) -> None:
    start = etcd.put(POOL_PATH + "before", pool_json("before"))
    revision = etcd.put_all({POOL_PATH + name: pool_json(name) for name in ("a", "b", "c")})
    after = etcd.put(POOL_PATH + "d", pool_json("d"))
    found = run(collect(backend, str(start), 4))
    assert [int(event.revision) for event in found] == [revision - 1, revision - 1, revision, after]
    again = run(collect(backend, found[0].revision, 4))
    assert [event.kv and event.kv.key for event in again] == [pool_key(name) for name in "abcd"]


def test_a_watch_from_compacted_history_says_so(etcd: Etcd, backend: EtcdBackend) -> None:
    start = etcd.put(POOL_PATH + "a", pool_json("a"))
    etcd.put(POOL_PATH + "a", pool_json("a"))
    etcd.put(POOL_PATH + "a", pool_json("a"))
    etcd.compact()
    with pytest.raises(RevisionGone):
        run(collect(backend, str(start), 1))


def test_a_watch_from_the_future_is_refused(etcd: Etcd, backend: EtcdBackend) -> None:
    """A store restored from a backup is behind us: waiting for it to catch up would miss all until then."""
    with pytest.raises(RevisionGone):
        run(collect(backend, str(etcd.revision + 1), 1))
    with pytest.raises(ValidationError):
        run(collect(backend, "", 1))


def test_a_watch_falls_behind_without_filling_memory(make_etcd: Callable[..., Etcd]) -> None:
    """25 MB of changes while the consumer sleeps: etcd keeps them, not we."""
    etcd = make_etcd()
    padding, count = "x" * 25_000, 1_000

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(proxy.endpoint,)))
            async with aclosing(backend.watch(POOLS, str(etcd.revision))) as events:  # type: ignore[type-var]
                await anext(events)
                for at in range(0, count, 20):
                    batch = {f"{POOL_PATH}p{n}": pool_json(padding) for n in range(at, at + 20)}
                    await asyncio.to_thread(etcd.put_all, batch)
                assert proxy.answered < 10_000_000  # gRPC and two sockets on the way hold half of that
                found: list[Key | None] = []
                while len(found) < count:
                    event = await anext(events)
                    found.append(event.kv.key if event.kv else None)
                assert found == [pool_key(f"p{n}") for n in range(count)]
                assert proxy.answered > 25_000_000
            await backend.close()

    run(scenario())


def test_events_in_fragments_arrive_whole(make_etcd: Callable[..., Etcd]) -> None:
    """Catching up, etcd packs many events into one message and cuts it up again."""
    etcd = make_etcd()
    backend = backend_on(etcd)
    start = etcd.revision
    for n in range(60):
        etcd.put(POOL_PATH + f"p{n}", pool_json("x" * 200_000))
    found = run(collect(backend, str(start), 60))
    asyncio.run(backend.close())
    assert [event.kv and int(event.kv.revision) for event in found] == list(range(start + 1, start + 61))
    resumed = [int(event.revision) - int(event.kv.revision) for event in found if event.kv]
    assert set(resumed) == {0, -1}  # at the end of a fragment nobody knows whether the moment is over


def test_a_quiet_watch_lives_on_signs_of_life(etcd: Etcd) -> None:
    async def scenario(silent: float) -> None:
        backend = backend_on(etcd, replace(PATIENT, quiet=0.1, silent=silent))
        async with aclosing(backend.watch(POOLS, str(etcd.revision))) as events:  # type: ignore[type-var]
            await anext(events)
            news = asyncio.ensure_future(anext(events))
            await asyncio.sleep(silent + 0.5)
            assert (
                not news.done()
            )  # nor given up; answers to progress requests are no bookmarks: they may overtake
            etcd.put(POOL_PATH + "a", pool_json("a"))
            assert (await news).type == "set"
        await backend.close()

    try:
        run(scenario(4.0))
    except AssertionError:  # etcd itself may be late for once, on a busy machine
        run(scenario(40.0))


def test_etcds_own_progress_reports_move_the_revision_on(make_etcd: Callable[..., Etcd]) -> None:
    """So that compaction does not cost a list for a listing where nothing ever happens."""
    server = make_etcd("--experimental-watch-progress-notify-interval=100ms")

    async def scenario() -> None:
        backend = backend_on(server)
        start = server.revision
        for n in range(5):
            server.put("/elsewhere", str(n))
        async with aclosing(backend.watch(POOLS, str(start))) as events:  # type: ignore[type-var]
            async for event in events:
                assert event.type == "bookmark"
                if int(event.revision) == start + 5:
                    break
        await backend.close()

    run(scenario())


def test_a_server_that_stops_answering_is_noticed(etcd: Etcd) -> None:
    async def scenario() -> None:
        backend = backend_on(etcd, PATIENT)
        async with aclosing(backend.watch(POOLS, str(etcd.revision))) as events:  # type: ignore[type-var]
            await anext(events)
            etcd.stop_answering()
            wait_for(backend._link, **asdict(QUICK))
            with pytest.raises(DatastoreUnreachable, match="silent"):
                await anext(events)
        with pytest.raises(DatastoreUnreachable, match="no answer"):
            await backend.get(pool_key("a"))
        etcd.resume()
        wait_for(backend._link, **asdict(PATIENT))
        assert (await backend.list(POOLS)).items == []
        await backend.close()

    run(scenario())


def test_a_watch_ends_with_its_server_and_goes_on_after_it(etcd: Etcd, backend: EtcdBackend) -> None:
    async def scenario() -> None:
        listed = await backend.list(POOLS)
        async with aclosing(backend.watch(POOLS, listed.revision)) as events:  # type: ignore[type-var]
            await anext(events)
            etcd.put(POOL_PATH + "a", pool_json("a"))
            last = await anext(events)
            etcd.put(POOL_PATH + "b", pool_json("b"))
            assert (await anext(events)).type == "set"
            etcd.kill()
            with pytest.raises(DatastoreUnreachable):
                await anext(events)
        with pytest.raises(DatastoreUnreachable):
            await anext(backend.watch(POOLS, last.revision))
        await etcd.restart_async()
        etcd.delete(POOL_PATH + "a")
        found = await collect(backend, last.revision, 2)
        assert [(event.type, event.kv and event.kv.key) for event in found] == [
            ("set", pool_key("b")),
            ("deleted", pool_key("a")),
        ]

    run(scenario())


@pytest.mark.parametrize("state", ["unstarted", "standing", "waiting", "in-an-event", "broken"])
def test_a_watch_can_be_ended_in_every_state(etcd: Etcd, backend: EtcdBackend, state: str) -> None:
    async def scenario() -> None:
        start = str(etcd.revision)
        etcd.put_all({POOL_PATH + name: pool_json(name) for name in "abc"})
        events: Any = backend.watch(POOLS, start)
        if state != "unstarted":
            await anext(events)
        if state == "waiting":
            for _ in "abc":
                await anext(events)
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        if state == "in-an-event":
            await anext(events)
        if state == "broken":
            etcd.kill()
            with pytest.raises(DatastoreUnreachable):
                while True:
                    await anext(events)
        await events.aclose()
        await backend.close()

    run(scenario())


def test_a_watch_ends_when_cancelled_also_as_its_stream_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the failure and gRPC's own notice of it: there gRPC takes our cancellation for its stream's."""
    streams: list[Any] = []
    opened = etcdchannel.Connection.watch

    def opening(self: etcdchannel.Connection, requests: Any) -> Any:
        streams.append(opened(self, requests))
        return streams[-1]

    async def answers(_request: bytes, _context: Any) -> bytes:
        return b"\x0a\x02\x18\x05"  # a header with revision 5, as of a status

    async def fails(_requests: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
        yield b""

    class Server(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method.endswith("/Watch"):
                return grpc.stream_stream_rpc_method_handler(fails)
            return grpc.unary_unary_rpc_method_handler(answers)

    async def scenario() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Server(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(f"http://127.0.0.1:{port}",)))
        hit = 0
        async with asyncio.timeout(300):
            while hit < 3:
                streams.clear()
                watching = asyncio.create_task(collect(backend, "5", 1))
                while not watching.done() and not _failing(streams):
                    await asyncio.sleep(0)
                met = not watching.done()  # else it was over before we saw it
                watching.cancel()
                await asyncio.wait([watching])
                assert watching.cancelled() or (not met and watching.exception())
                hit += met
        await backend.close()
        await server.stop(None)

    monkeypatch.setattr(etcdchannel.Connection, "watch", opening)
    run(scenario())


def _failing(streams: list[Any]) -> bool:
    """The stream is over, and who reads it does not know yet."""
    return bool(streams) and streams[-1].done() and not streams[-1]._preparation.done()


def test_a_forgotten_watch_is_cleaned_up(etcd: Etcd, backend: EtcdBackend) -> None:
    """A loop left by an exception does not close its iterator; the garbage collector has to do."""

    async def scenario() -> None:
        async for _event in backend.watch(POOLS, str(etcd.revision)):
            break
        await eventually(lambda: not others(), what="the stream's tasks to end")

    run(scenario())
