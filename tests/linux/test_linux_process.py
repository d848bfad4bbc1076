"""Running programs: input, output, deadlines, and nothing left behind."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tortie.core.errors import KernelError
from tortie.linux.process import ran, run

pytestmark = pytest.mark.unit


def test_input_goes_in_and_both_outputs_come_out() -> None:
    done = asyncio.run(run("sh", "-c", "cat; echo oops >&2; exit 3", given="données"))
    assert (done.status, done.output, done.complaint, done.reason) == (3, "données", "oops", "oops")


def test_a_silent_failure_still_has_a_reason() -> None:
    assert asyncio.run(run("false")).reason == "exit status 1"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(KernelError, match="no-such-program"):
        asyncio.run(run("no-such-program"))


def test_a_late_program_is_killed() -> None:
    def children() -> set[str]:
        with open(f"/proc/self/task/{os.getpid()}/children") as ours:
            return set(ours.read().split())

    before = children()
    with pytest.raises(KernelError, match="no answer within"):
        asyncio.run(run("sh", "-c", "exec sleep 60", deadline=0.05))
    assert children() <= before


@pytest.mark.parametrize("left", [0, 100_000, 1_000_000])
@pytest.mark.parametrize(
    "script", ["<&3 sleep 300 3<&- & echo $! >$0; exec sleep 300", "<&3 sleep 300 3<&- & echo $! >$0"]
)
def test_what_a_late_program_has_started_is_not_waited_for(tmp_path: Path, script: str, left: int) -> None:
    """It holds the output open, and the input, of which there may be some left."""
    began = time.monotonic()
    with pytest.raises(KernelError, match="no answer within"):
        command = ("sh", "-c", f"exec 3<&0; {script}", f"{tmp_path}/pid")
        asyncio.run(run(*command, given="x" * left, deadline=1.0))
    assert time.monotonic() - began < 200
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_program_that_does_not_read_its_input_is_no_trouble() -> None:
    assert asyncio.run(run("true", given="x" * 1_000_000)).status == 0


def test_runs_are_counted_whatever_became_of_them() -> None:
    ran.clear()
    for shell in ("sh", "/bin/sh"):
        asyncio.run(run(shell, "-c", ":"))
    asyncio.run(run("false"))
    for command, deadline in ((("sleep", "60"), 0.05), (("no-such-program",), 60.0)):
        with pytest.raises(KernelError):
            asyncio.run(run(*command, deadline=deadline))
    assert {command: (one.calls, one.failures) for command, one in ran.items()} == {
        ("sh", "-c", ":"): (2, 0),
        ("false",): (1, 1),
        ("sleep", "60"): (1, 1),
        ("no-such-program",): (1, 1),
    }
    assert ran["sleep", "60"].seconds >= 0.05


@pytest.mark.parametrize("deadline", [0.1, 600.0])
def test_a_program_that_is_stopped_amid_its_output_is_gone(deadline: float) -> None:
    """Nobody reads what it has written into the pipe: before Python 3.12 its end was waited for for ever."""

    async def scenario() -> None:
        running = asyncio.create_task(run("yes", deadline=deadline))
        await asyncio.sleep(0.1)
        if deadline > 1:
            running.cancel()
        ended, _ = await asyncio.wait([running], timeout=60)
        assert ended, "it is waited for"
        assert running.cancelled() or isinstance(running.exception(), KernelError)

    for _ in range(3):
        asyncio.run(scenario())
