"""Supervision: restarts, back-off, clean stop, prerequisites."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tortie.node.health import Health
from tortie.node.supervisor import RESTART_ME, Component, Supervisor

pytestmark = pytest.mark.unit


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


async def until(condition: object, timeout: float = 120.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_a_killed_component_is_started_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        component = Component("sleeper", ["sleep", "60"])
        supervisor = Supervisor([component], Health(["sleeper"]))
        task = asyncio.create_task(supervisor.run())
        await until(lambda: supervisor.pid("sleeper"))
        first = supervisor.pid("sleeper")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pid("sleeper") not in (None, first))
        second = supervisor.pid("sleeper")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert second is not None and not Path(f"/proc/{second}").exists(), "stopped with the supervisor"

    asyncio.run(scenario())


def test_a_component_killed_by_a_signal_without_a_name_is_started_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"import os; open({str(log)!r}, 'a').write('x '); os.kill(os.getpid(), 36)"

    async def scenario() -> None:
        supervisor = Supervisor([Component("odd", python(code))], Health(["odd"]))
        task = asyncio.create_task(supervisor.run())
        await until(lambda: len(lines(log)) >= 2 or task.done())
        assert not task.done()
        task.cancel()

    asyncio.run(scenario())


def test_a_configuration_restart_does_not_back_off(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"open({str(log)!r}, 'a').write('x '); raise SystemExit({RESTART_ME})"

    async def scenario() -> None:
        supervisor = Supervisor([Component("eager", python(code))], Health(["eager"]))
        task = asyncio.create_task(supervisor.run())
        await until(lambda: len(lines(log)) >= 24)  # backing off, these would take three minutes
        task.cancel()

    asyncio.run(scenario())


def test_a_stubborn_component_is_killed_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortie.node.supervisor._STOP_TIMEOUT", 0.5)
    ready = tmp_path / "ready"
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(ready)!r}, 'w').write('x')\n"
        "time.sleep(60)\n"
    )

    async def scenario() -> None:
        supervisor = Supervisor([Component("stubborn", python(code))], Health(["stubborn"]))
        task = asyncio.create_task(supervisor.run())
        await until(ready.exists)
        pid = supervisor.pid("stubborn")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not Path(f"/proc/{pid}").exists()

    asyncio.run(scenario())


def test_a_component_waits_for_its_prerequisite(tmp_path: Path) -> None:
    needed, log = tmp_path / "conf", tmp_path / "log"
    code = f"open({str(log)!r}, 'a').write('x '); import time; time.sleep(60)"

    async def scenario() -> None:
        component = Component("late", python(code), prerequisite=str(needed))
        supervisor = Supervisor([component], Health(["late"]))
        task = asyncio.create_task(supervisor.run())
        await asyncio.sleep(0.3)
        assert not log.exists()
        needed.touch()
        await until(log.exists)
        task.cancel()

    asyncio.run(scenario())


def test_what_cannot_be_started_is_tried_again_later() -> None:
    async def scenario() -> None:
        supervisor = Supervisor([Component("ghost", ["/no/such/program"])], Health(["ghost"]))
        task = asyncio.create_task(supervisor.run())
        await asyncio.sleep(0.3)
        assert not task.done()
        task.cancel()

    asyncio.run(scenario())
