"""Runs a program to its end with a deadline: for the few kernel interfaces that have no better door.

The program gets its input on stdin and inherits this process's network namespace and environment. How
often each was run, and for how long, is counted in `ran`.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from tortie.core import children
from tortie.core.errors import KernelError

_COMPLAINT = 400  # characters of a program's complaint that go into an error


@dataclass(frozen=True, slots=True)
class Finished:
    status: int
    output: str
    complaint: str  # what it said on stderr, stripped

    @property
    def reason(self) -> str:
        """Why it failed, in one bounded piece of text."""
        return self.complaint[:_COMPLAINT] or f"exit status {self.status}"


@dataclass(slots=True)
class Ran:
    """What the runs of one program came to so far."""

    calls: int = 0
    failures: int = 0  # it was missing, late, or its status was not 0
    seconds: float = 0.0


ran: dict[tuple[str, ...], Ran] = {}  # program without its path, and its first three arguments


async def run(*command: str, given: str = "", deadline: float = 30.0) -> Finished:
    """Raises KernelError if the program is missing or is not done within `deadline` seconds (killed)."""
    counted = ran.setdefault((Path(command[0]).name, *command[1:4]), Ran())
    counted.calls += 1
    counted.failures += 1  # until it has proved the contrary
    began = time.monotonic()
    try:
        done = await _run(command, given, deadline)
    finally:
        counted.seconds += time.monotonic() - began
    counted.failures -= done.status == 0
    return done


async def _run(command: tuple[str, ...], given: str, deadline: float) -> Finished:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as err:
        raise KernelError("run", command[0], err.errno or 0, err.strerror or str(err)) from err
    try:
        async with asyncio.timeout(deadline):
            output, complaint = await process.communicate(given.encode("utf-8", "surrogateescape"))
    except TimeoutError as err:
        raise KernelError("run", command[0], text=f"no answer within {deadline:.0f} s") from err
    finally:
        await children.end(process)  # it may be late, or our caller was cancelled
    return Finished(
        process.returncode or 0,
        output.decode("utf-8", "surrogateescape"),
        complaint.decode("utf-8", "replace").strip(),
    )
