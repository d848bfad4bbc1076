"""Tracked connections are forgotten, by a program that may fail, hang or be missing."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns_lab import Namespace, eventually
from tortie.core.errors import KernelError
from tortie.linux import conntrack

pytestmark = pytest.mark.kernel


TUPLE = "conntrack -I -p udp --timeout 100 --sport 1000 --dport 53 --src {} --dst {}"


SERVICE = (  # a connection to a service address whose answers come from 10.2.0.5
    "conntrack -I -p tcp --state ESTABLISHED --timeout 100 -s 10.9.9.7 -d 10.96.0.1 --sport 1 --dport 2 "
    "--reply-src 10.2.0.5 --reply-dst 10.9.9.7 --reply-port-src 2 --reply-port-dst 1"
)


@pytest.fixture
def tracked(make_netns: Callable[[], Namespace]) -> Namespace:
    """One connection opened by, one answered by, and one that does not concern 10.2.0.5; v6 alike."""
    ns = make_netns()
    for source, destination in [
        ("10.2.0.5", "10.9.9.9"),
        ("10.9.9.8", "10.2.0.5"),
        ("10.9.9.8", "10.2.0.50"),
        ("fd02::5", "fd09::9"),
        ("fd09::8", "fd02::5"),
        ("fd09::8", "fd02::50"),
    ]:
        ns.sh(TUPLE.format(source, destination))
    ns.sh(SERVICE)
    return ns


def entries(ns: Namespace) -> int:
    both = ns.sh("conntrack -L -f ipv4") + ns.sh("conntrack -L -f ipv6")
    return len([line for line in both.splitlines() if "src=" in line])


def flush(ns: Namespace, address: str) -> None:
    ns.call(asyncio.run, conntrack.flush(address))


def test_connections_opened_and_answered_are_forgotten(tracked: Namespace) -> None:
    assert entries(tracked) == 7
    flush(tracked, "10.2.0.5")
    assert entries(tracked) == 4, "also the one behind a service address"
    flush(tracked, "fd02:0::5")
    assert entries(tracked) == 2
    flush(tracked, "10.2.0.5")
    flush(tracked, "fd02::5")
    assert entries(tracked) == 2, "nothing found is success, others are untouched"


@pytest.mark.parametrize(
    "address", ["", "10.2.0.5/32", "--help", "10.2.0.5; reboot", "a.example", "10.2.0.05"]
)
def test_only_addresses_reach_the_command_line(address: str) -> None:
    with pytest.raises(KernelError, match="not an IP address"):
        asyncio.run(conntrack.flush(address))


def shadow(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Put a `conntrack` of our own first on PATH; returns the file it may log its calls in."""
    program = folder / "conntrack"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "calls"


def test_a_random_failure_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"[ $(wc -l < {tmp_path}/calls) -ge 4 ] || {{ echo oops >&2; exit 2; }}"
    calls = shadow(monkeypatch, tmp_path, script)
    asyncio.run(conntrack.flush("10.2.0.5"))
    assert calls.read_text().splitlines() == [
        *["--family ipv4 --delete --orig-src 10.2.0.5"] * 4,
        "--family ipv4 --delete --reply-src 10.2.0.5",
    ]


def test_a_lasting_failure_is_an_error_with_the_programs_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = shadow(monkeypatch, tmp_path, "echo Operation failed: no luck >&2; exit 1")
    with pytest.raises(KernelError, match=r"flush connections of fd02::5 .*no luck"):
        asyncio.run(conntrack.flush("fd02::5"))
    assert len(calls.read_text().splitlines()) == 4


def test_a_failure_without_words_says_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow(monkeypatch, tmp_path, "exit 3")
    with pytest.raises(KernelError, match="exit status 3"):
        asyncio.run(conntrack.flush("10.2.0.5"))


def test_a_program_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of four; how far it came in its time is the machine's affair."""
    monkeypatch.setattr(conntrack, "_DEADLINE", 0.05)
    shadow(monkeypatch, tmp_path, "exec sleep 1000")
    started: list[int] = []
    create = asyncio.create_subprocess_exec

    async def noting(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*args, **options)
        started.append(process.pid)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noting)
    with pytest.raises(KernelError, match="no answer within"):
        asyncio.run(conntrack.flush("10.2.0.5"))
    assert len(started) == 4
    for pid in started:
        assert not os.path.exists(f"/proc/{pid}"), "killed and reaped"


def test_a_cancelled_flush_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    shadow(monkeypatch, tmp_path, f"echo $$ > {pid}; exec sleep 1000")

    async def cancelled() -> None:
        task = asyncio.create_task(conntrack.flush("10.2.0.5"))
        await asyncio.to_thread(eventually, lambda: pid.exists() and pid.read_text().endswith("\n"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert not os.path.exists(f"/proc/{pid.read_text().strip()}")


def test_a_missing_program_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="run conntrack: No such file"):
        asyncio.run(conntrack.flush("10.2.0.5"))
