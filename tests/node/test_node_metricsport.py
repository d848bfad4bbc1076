"""The metrics' port: what it answers, and what is no port."""

import asyncio
import threading
from pathlib import Path

import pytest

from tests.netns_lab import Namespace
from tests.support.bgp_agent import agent
from tortie.bgp import ask
from tortie.bgp.status import Status
from tortie.core.errors import ConfigError
from tortie.core.tasks import cancel
from tortie.node import metricsport


@pytest.mark.unit
@pytest.mark.parametrize("path", ["/", "", "/metrics/x"])
def test_what_is_not_there(path: str) -> None:
    assert metricsport.answer(path) is None


@pytest.mark.unit
def test_which_port() -> None:
    assert metricsport.wanted({}) == metricsport.wanted({"TORTIE_BGP_METRICS_PORT": ""}) == 0
    assert metricsport.wanted({"TORTIE_BGP_METRICS_PORT": "9098"}) == 9098
    for wrong in ("-1", "65536", "http", "٣"):
        with pytest.raises(ConfigError, match="TORTIE_BGP_METRICS_PORT"):
            metricsport.wanted({"TORTIE_BGP_METRICS_PORT": wrong})


@pytest.mark.kernel
def test_over_tcp(netns: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALICO_RUN_DIR", str(tmp_path))
    netns.run("ip", "link", "set", "lo", "up")

    asked, others_ran = threading.Event(), threading.Event()
    waited: list[bool] = []

    def slow() -> None:
        """As BIRD may be; the supervisor runs in the same loop."""
        asked.set()
        waited.append(others_ran.wait(60))

    async def get() -> bytes:
        async with asyncio.timeout(120):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", 9098)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
                    continue
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
                told = await reader.read()
                writer.close()
                return told

    async def act() -> None:
        serving = asyncio.create_task(metricsport.serve("", 9098))
        try:
            assert b"\ntortie_bgp_up 0\n" in await get()
            with agent(tmp_path, Status(started=0, updated=0)) as file:
                assert b"\ntortie_bgp_up 1\n" in await get()
                file.write_text("{")
                assert b"\ntortie_bgp_up 0\n" in await get()
            monkeypatch.setattr(ask, "status", slow)
            asking = asyncio.create_task(get())
            while not asked.is_set():
                await asyncio.sleep(0.001)
            others_ran.set()
            assert b"\ntortie_bgp_up 0\n" in await asking and waited == [True]
        finally:
            await cancel([serving])

    netns.call(asyncio.run, act())
