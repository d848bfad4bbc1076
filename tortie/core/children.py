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
        if pipe is None:
            continue
        if number == 0:
            # communicate() may have closed it with input left, which nobody takes any more.
            if not pipe.is_closing() or pipe.get_write_buffer_size():
                pipe.abort()
        elif not pipe.is_closing():
            pipe.close()
    await process.wait()
