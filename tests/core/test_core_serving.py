"""Answering HTTP GET on a port, and figures in Prometheus' format."""

import asyncio
import socket

import pytest

from tests.support.aio import eventually, run
from tortie.core import exposition, serving
from tortie.core.exposition import Metric

unit = pytest.mark.unit


@unit
def test_answers_over_http() -> None:
    answers = {"/ok": (True, "fine\n"), "/bad": (False, "why\n")}

    def get(line: str) -> bytes:
        return serving.response(line.encode() + b"\r\n\r\n", answers.get)

    assert get("GET /ok?x=1 HTTP/1.1").startswith(b"HTTP/1.1 200 OK\r\n")
    assert get("GET /ok HTTP/1.1").endswith(b"\r\n\r\nfine\n")
    assert get("HEAD /ok HTTP/1.1").endswith(b"\r\n\r\n")
    assert get("GET /bad HTTP/1.1").startswith(b"HTTP/1.1 503 ")
    assert get("GET /none HTTP/1.1").startswith(b"HTTP/1.1 404 ")
    assert get("POST /ok HTTP/1.1").startswith(b"HTTP/1.1 404 ")
    assert get("").startswith(b"HTTP/1.1 404 ")


@pytest.mark.kernel
def test_who_asks_and_does_not_listen_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of them keeps a connection, a task and the whole text for ever."""

    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        text = "x" * 16_000_000  # more than any socket takes
        server = asyncio.create_task(serving.serve(port, "x", lambda _: (True, text), "127.0.0.1"))
        with socket.socket() as client:
            await eventually(lambda: client.connect_ex(("127.0.0.1", port)) == 0, 60, "the server")
            idle = len(asyncio.all_tasks())
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await eventually(lambda: len(asyncio.all_tasks()) > idle, 60, "the answer")
            await eventually(lambda: len(asyncio.all_tasks()) == idle, 60, "its end")
        server.cancel()
        await asyncio.wait([server])

    monkeypatch.setattr(serving, "_PATIENCE", 0.5)
    run(story())


@unit
def test_labels_cannot_break_a_line() -> None:
    told = exposition.text([Metric("m", "Meaning.", [({"a": 'x"\n\\', "b": ""}, 1.5)])])
    assert told == '# HELP m Meaning.\n# TYPE m gauge\nm{a="x\\"\\n\\\\",b=""} 1.5\n'


@unit
def test_a_summary_has_two_parts() -> None:
    told = exposition.text([Metric("s", "h", [({"part": "sum"}, 0.5), ({"part": "count"}, 2.0)], "summary")])
    assert told.endswith("# TYPE s summary\ns_sum 0.5\ns_count 2\n")
