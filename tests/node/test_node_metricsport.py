"""The metrics' port: what it answers, and what is no port."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.netns_lab import Namespace
from tortie.bgp.status import Status, encode
from tortie.core.errors import ConfigError
from tortie.core.tasks import cancel
from tortie.node import metricsport


@pytest.mark.unit
@pytest.mark.parametrize("request_line", ["GET / HTTP/1.1", "POST /metrics HTTP/1.1", "nonsense", ""])
def test_what_is_not_there(request_line: str) -> None:
    assert metricsport.answer(f"{request_line}\r\n\r\n".encode(), None).startswith(b"HTTP/1.1 404 ")


@pytest.mark.unit
def test_a_head_has_no_body() -> None:
    told = metricsport.answer(b"HEAD /metrics HTTP/1.1\r\n\r\n", None)
    assert told.startswith(b"HTTP/1.1 200 OK\r\n") and told.endswith(b"\r\n\r\n")


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

    async def ask() -> bytes:
        async with asyncio.timeout(30):
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
            assert b"\ntortie_bgp_up 0\n" in await ask()
            (tmp_path / "bgp-status.json").write_bytes(encode(Status(pid=os.getpid(), started=0, updated=0)))
            assert b"\ntortie_bgp_up 1\n" in await ask()
            (tmp_path / "bgp-status.json").write_text("{")
            assert b"\ntortie_bgp_up 0\n" in await ask()
        finally:
            await cancel([serving])

    netns.call(asyncio.run, act())
