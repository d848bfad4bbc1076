"""The API client against a server that plays every trick: over real sockets, with answers by hand."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.aio import run
from tortie.core import tasks
from tortie.core.errors import ConfigError, DatastoreUnreachable, RevisionGone, Unauthorized, ValidationError
from tortie.datastore.kubernetes import api as api_module
from tortie.datastore.kubernetes.api import Api, Refused
from tortie.datastore.kubernetes.http import Timing
from tortie.datastore.kubernetes.kubeconfig import Server

pytestmark = pytest.mark.kernel

PATIENT = Timing(dial=90.0, call=90.0, quiet=0.05)
QUICK = Timing(dial=1.0, call=1.0)  # for what is never answered
Play = Callable[[str, dict[str, str], bytes], Awaitable[bytes | None]]  # request -> bytes; None hangs up


class Stage:
    """A server whose answers are `play`'s; it counts connections and requests."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self.connections = 0
        self.requests: list[str] = []
        self.serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if (task := asyncio.current_task()) is not None:
            self.serving.add(task)
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append(first.removesuffix(" HTTP/1.1"))
                answer = await self._play(self.requests[-1], headers, body)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def staged(play: Play, timing: Timing = PATIENT, **server: Any) -> AsyncIterator[tuple[Api, Stage]]:
    stage = Stage(play)
    listening = await asyncio.start_server(stage.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    api = Api(Server(url, **server), timing=timing)
    try:
        yield api, stage
    finally:
        await api.close()
        listening.close()
        await tasks.cancel(stage.serving)


def answer(body: Any, status: int = 200, *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(head).encode() + data


def refusal(status: int, reason: str, **more: Any) -> bytes:
    return answer({"kind": "Status", "code": status, "reason": reason, "message": reason, **more}, status)


def chunked(*parts: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def always(reply: bytes | None) -> Play:
    async def play(*_: object) -> bytes | None:
        return reply

    return play


def in_turn(*replies: bytes | None) -> Play:
    left = list(replies)

    async def play(*_: object) -> bytes | None:
        return left.pop(0)

    return play


# --- answers ------------------------------------------------------------------------------------


def test_a_long_answer_comes_zipped() -> None:
    whole = gzip.compress(json.dumps({"items": ["x" * 1000]}).encode())
    bodies = {"/whole": whole, "/cut": whole[:-9], "/none": b"not gzip"}

    async def play(request: str, headers: dict[str, str], _body: bytes) -> bytes:
        assert headers["accept-encoding"] == "gzip"
        return answer(bodies[request.removeprefix("GET ")], 200, "Content-Encoding: gzip")

    async def scenario() -> None:
        async with staged(play) as (api, _):
            assert json.loads(await api.get("/whole")) == {"items": ["x" * 1000]}
            for path, reason in (("/cut", "cut off"), ("/none", "unzipped")):
                with pytest.raises(DatastoreUnreachable, match=reason):
                    await api.get(path)

    run(scenario())


@pytest.mark.parametrize(
    "reply",
    [
        answer({"a": 1}),
        chunked(b'{"a"', b": 1}") + b"0\r\n\r\n",
        chunked(b'{"a": 1}') + b"0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer({"a": 1}),
    ],
)
def test_an_answer_of_any_form_and_the_connection_is_kept(reply: bytes) -> None:
    async def scenario() -> None:
        async with staged(always(reply)) as (api, stage):
            for _ in range(3):
                assert json.loads(await api.get("/x", {"limit": "1"})) == {"a": 1}
            assert (stage.connections, stage.requests[0]) == (1, "GET /x?limit=1")

    run(scenario())


def test_a_read_is_repeated_on_a_new_connection_a_write_is_not() -> None:
    async def scenario() -> None:
        async with staged(in_turn(answer({}), None, answer({"b": 2}), None)) as (api, stage):
            await api.get("/x")
            assert json.loads(await api.get("/x")) == {"b": 2}
            assert stage.connections == 2
            with pytest.raises(DatastoreUnreachable, match="lost"):
                await api.create("/x", {})
            assert [request.split()[0] for request in stage.requests] == ["GET", "GET", "GET", "POST"]

    run(scenario())


@pytest.mark.parametrize(
    "reply",
    [
        None,
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"x" * (1 << 21),
    ],
)
def test_what_is_no_answer(reply: bytes | None) -> None:
    async def scenario() -> None:
        async with staged(always(reply)) as (api, _stage):
            with pytest.raises(DatastoreUnreachable):
                await api.get("/x")

    run(scenario())


def test_a_server_that_hangs_is_given_up() -> None:
    async def scenario() -> None:
        async def hang(*_: object) -> bytes | None:
            await asyncio.Event().wait()
            return None

        async with staged(hang, QUICK) as (api, _stage):
            with pytest.raises(DatastoreUnreachable, match="no answer in time"):
                await api.get("/x")

    run(scenario())


def test_close_ends_what_is_under_way() -> None:
    async def scenario() -> None:
        asked = asyncio.Event()

        async def hang(*_: object) -> bytes | None:
            asked.set()
            await asyncio.Event().wait()
            return None

        async with staged(hang) as (api, _stage):
            call = asyncio.create_task(api.get("/x"))
            await asked.wait()
            await api.close()
            for ended in (call, api.get("/x")):
                with pytest.raises(DatastoreUnreachable):
                    await ended

    run(scenario())


# --- refusals -----------------------------------------------------------------------------------

TOO_NEW = {"details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}}
WRONG = {"details": {"causes": [{"field": "spec.cidr", "message": "must be a CIDR"}]}}


@pytest.mark.parametrize(
    "reply, kind, text",
    [
        (refusal(404, "NotFound"), Refused, "NotFound"),
        (refusal(409, "Conflict"), Refused, "Conflict"),
        (refusal(403, "Forbidden"), Unauthorized, "Forbidden"),
        (refusal(401, "Unauthorized"), Unauthorized, "Unauthorized"),
        (refusal(410, "Expired"), RevisionGone, "Expired"),
        (refusal(504, "Timeout", **TOO_NEW), RevisionGone, "Timeout"),
        (refusal(422, "Invalid", **WRONG), ValidationError, "spec.cidr"),
        (refusal(500, "InternalError"), DatastoreUnreachable, "InternalError"),
        (answer(b"<html>Bad gateway</html>", 502), DatastoreUnreachable, "Bad gateway"),
    ],
)
def test_refusals(reply: bytes, kind: type[Exception], text: str) -> None:
    async def scenario() -> None:
        async with staged(always(reply)) as (api, _stage):
            with pytest.raises(kind, match=text):
                await api.get("/x")

    run(scenario())


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    async def scenario() -> None:
        busy = answer({}, 429, "Retry-After: 0")
        async with staged(in_turn(busy, busy, answer({"a": 1}))) as (api, stage):
            assert json.loads(await api.create("/x", {})) == {"a": 1}
            assert len(stage.requests) == 3
        async with staged(always(busy)) as (api, stage):
            with pytest.raises(DatastoreUnreachable):
                await api.get("/x")
            assert len(stage.requests) == 5

    run(scenario())


def test_a_rotated_token_is_read_again(tmp_path: Path) -> None:
    token = tmp_path / "token"

    async def play(_request: str, headers: dict[str, str], _body: bytes) -> bytes:
        return answer({}) if headers["authorization"] == "bearer new" else refusal(401, "Unauthorized")

    async def scenario() -> None:
        token.write_text("old\n")
        async with staged(play, token_file=str(token)) as (api, stage):
            with pytest.raises(Unauthorized):
                await api.get("/x")
            token.write_text("new\n")
            await api.get("/x")
            assert len(stage.requests) >= 3
        token.unlink()
        async with staged(play, token_file=str(token)) as (api, _stage):
            with pytest.raises(DatastoreUnreachable, match="token"):
                await api.get("/x")

    run(scenario())


def test_a_certificate_that_is_missing_for_a_moment_is_no_end(tmp_path: Path) -> None:
    """Who follows the datastore for good tries again after every failure, of this class alone."""

    async def story() -> None:
        api = Api(Server("https://127.0.0.1:1", ca_file=str(tmp_path / "ca.crt")))
        with pytest.raises(DatastoreUnreachable, match="k8sCAFile"):
            await api.get("/x")
        with pytest.raises(DatastoreUnreachable, match="k8sCAFile"):
            await watched(api)

    run(story())


def test_only_http_addresses() -> None:
    for url in ("127.0.0.1:6443", "ftp://x", "https://", "https://x:99999999"):
        with pytest.raises(ConfigError):
            Api(Server(url))


# --- watches ------------------------------------------------------------------------------------

ADDED = b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}\n'
GONE = b'{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}\n'


async def watched(api: Api) -> list[Any]:
    """What one watch tells until it ends."""
    found: list[Any] = []
    async with aclosing(api.watch("/x", {}, "5")) as changes:
        async for change in changes:
            found.append(change and change.type)
    return found


def test_a_watch_is_lines_in_chunks_of_any_size() -> None:
    async def scenario() -> None:
        lines = ADDED * 2
        for cut in (1, 10, len(ADDED) - 1, len(ADDED), len(ADDED) + 1):
            reply = chunked(lines[:cut], lines[cut:]) + b"0\r\n\r\n"
            async with staged(always(reply)) as (api, stage):
                assert await watched(api) == [None, "ADDED", "ADDED"]
                assert "resourceVersion=5" in stage.requests[0] and "allowWatchBookmarks" in stage.requests[0]

    run(scenario())


@pytest.mark.parametrize(
    "reply, kind",
    [
        (chunked(ADDED, GONE), RevisionGone),
        (refusal(410, "Expired"), RevisionGone),
        (refusal(403, "Forbidden"), Unauthorized),
        (chunked(b"not json\n"), DatastoreUnreachable),
        (chunked() + b"0\r\n\r\n", DatastoreUnreachable),  # over at once, without a word
    ],
)
def test_how_a_watch_fails(reply: bytes, kind: type[Exception]) -> None:
    async def scenario() -> None:
        async with staged(always(reply)) as (api, _stage):
            with pytest.raises(kind):
                await watched(api)

    run(scenario())


def test_closing_ends_a_watch() -> None:
    async def scenario() -> None:
        async with (
            staged(always(chunked(ADDED))) as (api, _stage),
            aclosing(api.watch("/x", {}, "5")) as changes,
        ):
            assert [change and change.type for change in [await anext(changes), await anext(changes)]] == [
                None,
                "ADDED",
            ]
            await api.close()
            with pytest.raises(DatastoreUnreachable):
                await anext(changes)

    run(scenario())


def test_a_silent_watch_asks_for_a_sign_of_life() -> None:
    async def scenario() -> None:
        alive = True

        async def play(request: str, _headers: dict[str, str], _body: bytes) -> bytes | None:
            if "watch" in request:
                return chunked(ADDED)  # and then nothing
            return answer({}) if alive else None

        async with staged(play) as (api, stage), aclosing(api.watch("/x", {}, "5")) as changes:
            assert await anext(changes) is None
            await anext(changes)
            waiting = asyncio.ensure_future(_next(changes))
            while stage.requests.count("GET /version") < 3:
                await asyncio.sleep(0.01)
            assert not waiting.done()
            alive = False
            with pytest.raises(DatastoreUnreachable, match="silent"):
                await waiting

    run(scenario())


def test_a_watch_whose_end_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server lives, this connection does not: a balancer has forgotten it."""

    async def play(request: str, _headers: dict[str, str], _body: bytes) -> bytes | None:
        return chunked(ADDED) if "watch" in request else answer({})

    async def scenario() -> None:
        async with staged(play) as (api, _), aclosing(api.watch("/x", {}, "5")) as changes:
            assert await anext(changes) is None
            await anext(changes)
            async with asyncio.timeout(60):
                with pytest.raises(DatastoreUnreachable, match="did not end it in its time"):
                    await anext(changes)

    monkeypatch.setattr(api_module, "_WATCH_SPAN", (1, 1))
    run(scenario())


async def _next(changes: Any) -> Any:
    return await anext(changes)
