"""Liveness and readiness: what counts, what is served."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from tortie.node.health import Health, HealthServer, Report

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_life_of_a_component() -> None:
    clock = Clock()
    health = Health(["felix"], clock)
    assert health.judge("liveness")[0] and not health.judge("readiness")[0], "starting is alive, not ready"
    health.take(Report("felix", live=True, ready=False, reason="waiting for the datastore"))
    good, table = health.judge("readiness")
    assert not good and "waiting for the datastore" in table
    health.take(Report("felix", live=True, ready=True))
    assert health.judge("readiness")[0]
    clock.now += 91
    assert not health.judge("liveness")[0] and "timed out" in health.judge("liveness")[1]
    health.take(Report("felix", live=True, ready=True))
    assert health.judge("readiness")[0]
    health.exited("felix")
    assert health.judge("liveness")[0] and not health.judge("readiness")[0]


def test_all_must_be_well() -> None:
    health = Health(["felix", "confd"], Clock())
    for name in ("felix", "confd"):
        health.take(Report(name, live=True, ready=True))
    assert health.judge("readiness")[0]
    health.take(Report("confd", live=False, ready=True, reason="stuck"))
    assert not health.judge("liveness")[0] and not health.judge("readiness")[0]


def test_unknown_reporters_are_ignored() -> None:
    health = Health(["felix"], Clock())
    health.take(Report("stranger", live=False, ready=False))
    assert health.judge("liveness")[0]


async def ask(port: int, request: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer.decode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_reports_by_datagram_and_answers_by_http(tmp_path: Path) -> None:
    async def scenario() -> None:
        health, path, port = Health(["felix"], Clock()), str(tmp_path / "health.sock"), free_port()
        task = asyncio.create_task(HealthServer(health, path, "127.0.0.1", port).run())
        while not Path(path).exists():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        get = b"GET /readiness HTTP/1.1\r\nHost: x\r\n\r\n"
        assert (await ask(port, get)).startswith("HTTP/1.1 503")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"not json", path)
            sender.sendto(json.dumps({"name": "felix", "live": True, "ready": True}).encode(), path)
        async with asyncio.timeout(5):
            while not (answer := await ask(port, get)).startswith("HTTP/1.1 200"):
                await asyncio.sleep(0.01)
        assert "| felix" in answer and "reporting ready" in answer
        assert (await ask(port, b"GET /nothing HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 404")
        assert (await ask(port, b"garbage\r\n\r\n")).startswith("HTTP/1.1 404")
        assert (await ask(port, b"HEAD /liveness HTTP/1.0\r\n\r\n")).endswith("\r\n\r\n")
        task.cancel()

    asyncio.run(scenario())
