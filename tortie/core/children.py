"""The end of a child process that nobody waits for any more: it is late, or who ran it was cancelled."""

from asyncio.subprocess import Process
from typing import Any


async def end(process: Process) -> None:
    """Kill it unless it has ended, and collect it; what it has written and nobody has read is lost.

    Its pipes are closed here: until Python 3.12 wait() waits for them, too, but who was cancelled amid a
    long output reads no more, and a process that this one has started may keep them open.
    """
    if process.returncode is None:
        process.kill()
    transport: Any = process._transport  # type: ignore[attr-defined] # there is no other way to the pipes
    for number in (0, 1, 2):
        pipe = transport.get_pipe_transport(number)
        if pipe is not None and not pipe.is_closing():
            pipe.abort() if number == 0 else pipe.close()  # it may have input left that nobody takes
    await process.wait()
