"""The link to etcd: dead and deaf endpoints, connections that break, life in an asyncio program."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.aio import eventually, open_files, others, run, until
from tests.support.etcd import Etcd, wait_until
from tests.support.links import PATIENT, QUICK, READ, WRITE, closed_port, link_to, read, wait_for
from tests.support.proxy import DeafListener, Proxy
from tortie.core.errors import DatastoreUnreachable
from tortie.datastore import etcdproto as proto
from tortie.datastore.etcdlink import EtcdLink

pytestmark = pytest.mark.kernel


def patient_soon(link: EtcdLink) -> None:
    """The attempt that is to fail has the time it was given; the one after it as much as it may need."""
    asyncio.get_running_loop().call_later(0.5, partial(wait_for, link, call=PATIENT.call))


# --- endpoints that do not serve ----------------------------------------------------------------


def test_a_refused_connection_says_so_at_once() -> None:
    async def scenario() -> None:
        link = link_to(closed_port())
        for attempt in (link.call(proto.RANGE, READ), link.call(proto.PUT, WRITE)):
            with pytest.raises(DatastoreUnreachable, match=r"no etcd endpoint answers.*refused"):
                async with asyncio.timeout(PATIENT.dial / 2):
                    await attempt
        with pytest.raises(DatastoreUnreachable, match="refused"):
            await anext(link.watch(proto.watch(b"k", b"", 1)))
        await link.close()

    run(scenario())


@pytest.mark.parametrize("accepting", [True, False], ids=["accepts-and-is-silent", "drops-syns"])
def test_a_black_hole_costs_one_dial_timeout_however_many_wait(accepting: bool) -> None:
    async def scenario() -> None:
        with DeafListener(accepting) as deaf:
            link = link_to(deaf.endpoint, timing=QUICK)
            started = asyncio.get_running_loop().time()
            results = await asyncio.gather(
                *(link.call(proto.RANGE, READ) for _ in range(20)), return_exceptions=True
            )
            took = asyncio.get_running_loop().time() - started
            assert all(isinstance(err, DatastoreUnreachable) for err in results)
            assert "no answer" in str(results[0])
            assert took < len(results) * QUICK.dial  # if one queued behind another, it were more
            await link.close()

    run(scenario())


def test_dead_and_deaf_endpoints_are_passed_over(etcd: Etcd) -> None:
    etcd.put("k", "here")

    async def scenario() -> None:
        with DeafListener() as drops, DeafListener(accepting=True) as silent:
            endpoints = (closed_port(), drops.endpoint, silent.endpoint, etcd.endpoint)
            link = link_to(*endpoints, timing=replace(PATIENT, dial=2.0))  # half a second for each
            await until(lambda: read(link))
            found = link._connection
            assert await read(link) == [b"here"] and link._connection is found  # it is remembered
            await link.close()

    run(scenario())


def test_many_deaf_endpoints_cost_no_more_than_one() -> None:
    async def scenario() -> None:
        with DeafListener() as one, DeafListener() as two, DeafListener(accepting=True) as three:
            deaf = [one.endpoint, two.endpoint, three.endpoint] * 4
            link = link_to(*deaf, timing=QUICK)
            with pytest.raises(DatastoreUnreachable, match=one.endpoint) as caught:
                async with asyncio.timeout(len(deaf) * QUICK.dial):
                    await link.call(proto.PUT, WRITE)
            assert two.endpoint in str(caught.value) and three.endpoint in str(caught.value)
            await link.close()

    run(scenario())


def test_the_first_endpoint_can_be_chosen(etcd: Etcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as one, Proxy(etcd.endpoint) as two:
            for first in (0, 1, 2, 3):
                link = link_to(one.endpoint, two.endpoint, first=first)
                await read(link)
                await link.close()
            assert (one.accepted, two.accepted) == (2, 2)

    run(scenario())


def test_something_else_than_etcd_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(http, "127.0.0.1", 0)
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        link = link_to(endpoint, timing=QUICK)
        with pytest.raises(DatastoreUnreachable, match=endpoint):
            await link.call(proto.RANGE, READ)
        await link.close()
        server.close()

    run(scenario())


# --- connections that break ---------------------------------------------------------------------


def test_a_read_survives_a_reset_a_write_is_never_repeated(etcd: Etcd) -> None:
    etcd.put("k", "v")

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            await read(link)
            proxy.swallow_replies = True
            reading = asyncio.ensure_future(read(link))
            await asyncio.sleep(0.05)
            proxy.swallow_replies = False
            proxy.cut()
            assert await reading == [b"v"]
            before = etcd.revision
            proxy.swallow_replies = True
            writing = asyncio.ensure_future(link.call(proto.PUT, WRITE))
            await eventually(lambda: etcd.revision > before, what="the write to arrive")
            proxy.swallow_replies = False
            proxy.cut()
            with pytest.raises(DatastoreUnreachable):
                await writing
            assert etcd.revision == before + 1
            assert await read(link) == [b"v"]
            await link.close()

    run(scenario())


def test_a_lost_reply_to_a_write_is_ambiguous_and_not_repeated(etcd: Etcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy, Proxy(etcd.endpoint) as other:
            link = link_to(proxy.endpoint, other.endpoint)
            await read(link)
            before = etcd.revision
            proxy.swallow_replies = True
            wait_for(link, call=10.0)
            with pytest.raises(DatastoreUnreachable, match="no answer in time"):
                await link.call(proto.PUT, WRITE)
            wait_for(link, call=PATIENT.call)
            await eventually(lambda: etcd.revision > before, what="the write to arrive")
            assert etcd.revision == before + 1  # it happened, once
            assert await read(link) == [b"v"] and other.accepted == 1
            await link.close()

    run(scenario())


def test_a_read_that_times_out_is_tried_at_another_endpoint(etcd: Etcd) -> None:
    etcd.put("k", "v")

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as deaf, Proxy(etcd.endpoint) as other:
            link = link_to(deaf.endpoint, other.endpoint)
            await read(link)
            deaf.swallow_requests = True
            wait_for(link, call=2.0)
            patient_soon(link)
            assert await read(link) == [b"v"]
            assert other.accepted == 1
            await link.close()

    run(scenario())


def test_a_connection_that_a_firewall_forgot_is_replaced(etcd: Etcd) -> None:
    etcd.put("k", "v")

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            watching = link.watch(proto.watch(b"k", b"", etcd.revision + 1))
            assert (await anext(watching)).created
            proxy.forget()
            wait_for(link, call=2.0)
            patient_soon(link)
            assert await read(link) == [b"v"] and proxy.accepted == 2
            wait_for(link, quiet=QUICK.quiet, silent=QUICK.silent)
            with pytest.raises(DatastoreUnreachable, match="silent"):
                await anext(watching)
            await link.close()

    run(scenario())


def test_one_callers_failure_leaves_the_others_alone(etcd: Etcd) -> None:
    """One call of many on a connection runs into its deadline: nobody else's call or watch ends."""
    etcd.put("k", "v")

    async def scenario() -> None:
        link = link_to(etcd.endpoint)
        watching = link.watch(proto.watch(b"k", b"", etcd.revision + 1))
        assert (await anext(watching)).created
        connection: Any = link._connection
        etcd.stop_answering()
        slow = [asyncio.ensure_future(read(link)) for _ in range(5)]
        await asyncio.sleep(0.05)
        with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
            await connection.call(proto.RANGE, READ, 0.1)
        await link._drop(connection)  # what a deadline leads to
        etcd.resume()
        assert await asyncio.gather(*slow) == [[b"v"]] * 5
        assert await read(link) == [b"v"] and link._connection is not connection
        etcd.put("k", "w")
        assert (await anext(watching)).events[0][1].value == b"w"
        channel = connection._channel
        await watching.aclose()
        assert channel._channel.closed()  # its last user is gone
        await link.close()

    run(scenario())


def test_a_peer_that_vanished_is_found_by_keepalive(etcd: Etcd) -> None:
    """Without waiting for a watch's own signs of life: so also under calls, and however long those take."""

    async def scenario() -> None:
        link = link_to(etcd.endpoint, timing=replace(PATIENT, keepalive=1, keepalive_timeout=3))
        watching = link.watch(proto.watch(b"k", b"", etcd.revision + 1))
        assert (await anext(watching)).created
        etcd.stop_answering()
        with pytest.raises(DatastoreUnreachable, match=r"ping|keepalive"):
            async with asyncio.timeout(PATIENT.quiet):
                await anext(watching)
        await link.close()

    run(scenario())


def test_etcd_killed_and_restarted_is_found_again(etcd: Etcd) -> None:
    async def scenario() -> None:
        link = link_to(etcd.endpoint)
        for number in range(5):
            await link.call(proto.PUT, proto.put(b"k", str(number).encode()))
            etcd.kill()
            with pytest.raises(DatastoreUnreachable):
                await read(link)
            await etcd.restart_async()
            assert await read(link) == [str(number).encode()]  # at once, without a time of penance
        await link.close()

    run(scenario())


def test_writes_under_fire_are_each_done_at_most_once(etcd: Etcd) -> None:
    """Connections are reset again and again; every acknowledged write is there, none is doubled."""

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            done, lost = [], []

            async def writer(number: int) -> None:
                for turn in range(30):
                    key = f"w/{number}/{turn}"
                    absent = proto.compare_version(key.encode(), 0)
                    request = proto.txn([absent], proto.op_put(key.encode(), b"v"), proto.op_range(b"x"))
                    try:
                        assert (await link.call(proto.TXN, request)).succeeded, f"{key} was written twice"
                        done.append(key)
                    except DatastoreUnreachable:
                        lost.append(key)

            proxy.cut_every = 10
            await asyncio.gather(*(writer(number) for number in range(8)))
            assert len(done) + len(lost) == 240 and done and lost
            assert set(done) <= set(etcd.entries("w/")) <= set(done) | set(lost)
            await link.close()

    run(scenario())


# --- life in an asyncio program -----------------------------------------------------------------


def test_many_callers_share_one_connection(etcd: Etcd) -> None:
    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            keys = [f"k{number}".encode() for number in range(200)]
            await asyncio.gather(*(link.call(proto.PUT, proto.put(key, key)) for key in keys))
            assert await asyncio.gather(*(read(link, key) for key in keys)) == [[key] for key in keys]
            assert proxy.accepted == 1
            await link.close()

    run(scenario())


def test_a_cancelled_caller_stops_and_harms_nobody(etcd: Etcd) -> None:
    etcd.put("k", "v")

    async def scenario() -> None:
        link = link_to(etcd.endpoint)
        etcd.stop_answering()
        dialing = [asyncio.ensure_future(read(link)) for _ in range(3)]
        await asyncio.sleep(0.05)
        dialing[0].cancel()  # who happened to start the dialling
        await asyncio.sleep(0.05)
        etcd.resume()
        assert await asyncio.gather(*dialing[1:]) == [[b"v"]] * 2
        etcd.stop_answering()
        calling = [asyncio.ensure_future(read(link)) for _ in range(3)]
        await asyncio.sleep(0.05)
        calling[0].cancel()
        await asyncio.sleep(0.05)
        etcd.resume()
        assert await asyncio.gather(*calling[1:]) == [[b"v"]] * 2
        assert dialing[0].cancelled() and calling[0].cancelled()
        await link.close()

    run(scenario())


@pytest.mark.parametrize("moment", ["dialing", "calling", "watching"])
def test_close_ends_what_is_under_way_with_an_error_not_a_cancellation(etcd: Etcd, moment: str) -> None:
    async def scenario() -> None:
        link = link_to(etcd.endpoint)
        watching = link.watch(proto.watch(b"k", b"", etcd.revision + 1))
        waiting: list[asyncio.Future[Any]]
        if moment == "dialing":
            etcd.stop_answering()
            waiting = [asyncio.ensure_future(read(link)) for _ in range(3)]
        elif moment == "calling":
            await read(link)
            etcd.stop_answering()
            waiting = [asyncio.ensure_future(read(link)) for _ in range(3)]
        else:
            await anext(watching)
            waiting = [asyncio.ensure_future(anext(watching))]
        await asyncio.sleep(0.05)
        await link.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [DatastoreUnreachable] * len(waiting)
        with pytest.raises(DatastoreUnreachable, match="closed"):
            await read(link)
        await watching.aclose()
        await link.close()

    run(scenario())


def test_nothing_leaks_over_many_outages(etcd: Etcd) -> None:
    """Files, tasks, gRPC calls: the same after a hundred broken connections as after three."""

    async def outages(proxy: Proxy, link: EtcdLink, count: int) -> None:
        for _ in range(count):
            watching = link.watch(proto.watch(b"k", b"", etcd.revision + 1))
            await anext(watching)
            reading = asyncio.ensure_future(read(link))
            await asyncio.sleep(0)
            proxy.cut()
            with pytest.raises(DatastoreUnreachable):
                while True:
                    await anext(watching)
            await asyncio.gather(reading, return_exceptions=True)
        # Whether that read found a connection again is chance: end each time with one.
        await until(lambda: read(link))
        await eventually(lambda: proxy.connections == 1)

    async def scenario() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            link = link_to(proxy.endpoint)
            await outages(proxy, link, 3)
            files, tasks = open_files(), len(others())
            await outages(proxy, link, 100)
            await eventually(lambda: open_files() <= files and len(others()) <= tasks)
            await link.close()

    run(scenario())


def test_one_link_serves_one_event_loop_after_another(etcd: Etcd) -> None:
    """As a command line that calls asyncio.run more than once does."""
    etcd.put("k", "v")
    link = link_to(etcd.endpoint)
    assert [asyncio.run(read(link)) for _ in range(3)] == [[b"v"]] * 3
    asyncio.run(link.close())

    async def fresh() -> list[bytes]:
        own = link_to(etcd.endpoint)
        try:
            return await read(own)
        finally:
            await own.close()

    assert asyncio.run(fresh()) == [b"v"]
    before = open_files()
    assert [asyncio.run(fresh()) for _ in range(10)] == [[b"v"]] * 10
    wait_until(lambda: open_files() <= before, what="gRPC to close its files")


def test_etcd_is_reached_in_spite_of_a_proxy_setting(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", closed_port())
    monkeypatch.setenv("https_proxy", closed_port())

    async def scenario() -> None:
        link = link_to(etcd.endpoint)
        assert await read(link) == []
        await link.close()

    run(scenario())
