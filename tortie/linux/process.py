"""Runs a program to its end with a deadline: for the few kernel interfaces that have no better door.

The program gets its input on stdin and inherits this process's network namespace and environment.
"""

import asyncio
from dataclasses import dataclass

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


async def run(*command: str, given: str = "", deadline: float = 30.0) -> Finished:
    """Raises KernelError if the program is missing or is not done within `deadline` seconds (killed)."""
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
        if process.returncode is None:  # late, or our caller was cancelled
            process.kill()
            await process.wait()
    return Finished(
        process.returncode or 0,
        output.decode("utf-8", "surrogateescape"),
        complaint.decode("utf-8", "replace").strip(),
    )
