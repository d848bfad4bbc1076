"""Liveness and readiness: what counts, what is served."""

import asyncio
import json
import logging
import socket
from pathlib import Path

import pytest

from tortie.core.backoff import Backoff
from tortie.node import run
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


async def until_served(port: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                await ask(port, b"GET /liveness HTTP/1.0\r\n\r\n")
                return
            except OSError:
                await asyncio.sleep(0.01)


def test_reports_by_datagram_and_answers_by_http(tmp_path: Path) -> None:
    async def scenario() -> None:
        health, path, port = Health(["felix"], Clock()), str(tmp_path / "health.sock"), free_port()
        server = HealthServer(health, path, str(tmp_path / "probe.sock"))
        tasks = [asyncio.create_task(server.run()), asyncio.create_task(server.serve_port("localhost", port))]
        await until_served(port)
        get = b"GET /readiness HTTP/1.1\r\nHost: x\r\n\r\n"
        assert (await ask(port, get)).startswith("HTTP/1.1 503")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"not json", path)
            sender.sendto(json.dumps({"name": "felix", "live": True, "ready": True}).encode(), path)
        async with asyncio.timeout(120):
            while not (answer := await ask(port, get)).startswith("HTTP/1.1 200"):
                await asyncio.sleep(0.01)
        assert "| felix" in answer and "reporting ready" in answer
        assert (await ask(port, b"GET /nothing HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 404")
        assert (await ask(port, b"garbage\r\n\r\n")).startswith("HTTP/1.1 404")
        assert (await ask(port, b"HEAD /liveness HTTP/1.0\r\n\r\n")).endswith("\r\n\r\n")
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())


def test_a_port_that_somebody_else_has_is_taken_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tortie.node.health._PORT_RETRY", Backoff(first=0.05, cap=0.05))

    async def scenario() -> None:
        server = HealthServer(Health(["felix"], Clock()), str(tmp_path / "h"), str(tmp_path / "p"))
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = int(other.getsockname()[1])
            task = asyncio.create_task(server.serve_port("127.0.0.1", port))
            async with asyncio.timeout(120):
                while not caplog.records:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
        await until_served(port)
        task.cancel()

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    failed, better = [record.getMessage() for record in caplog.records if record.name.endswith("health")]
    assert "FELIX_HEALTHPORT" in failed and "address already in use" in failed, "said once"
    assert "is served" in better


def test_without_a_host_health_is_not_served_to_the_world() -> None:
    """An empty host would mean all interfaces."""
    assert run._address({}) == run._address({"FELIX_HEALTHHOST": ""}) == ("localhost", 9099)
    assert run._address({"FELIX_HEALTHHOST": "::1", "FELIX_HEALTHPORT": "1"}) == ("::1", 1)
