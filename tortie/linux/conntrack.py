"""Forgets tracked connections of an address, so that its next owner does not inherit them.

Follows Calico's felix/conntrack/conntrack.go: entries of a local workload have its address as the
original source if it opened the connection, and as the reply's source if it was called; both kinds
are deleted by the `conntrack` program, which fails at random and is therefore tried again.
"""

import asyncio
import ipaddress

from tortie.core import children
from tortie.core.errors import KernelError

_DIRECTIONS = ("--orig-src", "--reply-src")
_TRIES = 4  # Calico: one try and three more
_DEADLINE = 30.0  # seconds for one run; a table of a million entries takes about two
_NOTHING_FOUND = b"0 flow entries"  # said with exit status 1, yet it is success
_COMPLAINT = 200  # characters of the program's complaint that go into the error


async def flush(address: str) -> None:
    """Delete the tracked connections that `address` opened or answered, in this process's namespace.

    Raises KernelError if that failed four times, if the program is missing, or for a bad address.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as err:
        raise KernelError("flush", f"connections of {address!r}", text="not an IP address") from err
    for direction in _DIRECTIONS:
        await _delete(f"ipv{parsed.version}", direction, str(parsed))


async def _delete(family: str, direction: str, address: str) -> None:
    complaint = ""
    for _ in range(_TRIES):
        status, output = await _run("conntrack", "--family", family, "--delete", direction, address)
        if status == 0 or _NOTHING_FOUND in output:
            return
        complaint = output.decode("utf-8", "replace").strip()[:_COMPLAINT] or f"exit status {status}"
    raise KernelError("flush", f"connections of {address} ({direction})", text=complaint)


async def _run(*command: str) -> tuple[int, bytes]:
    """Exit status and standard error; a run past the deadline is killed and counts as failed."""
    null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=null, stderr=pipe)
    except OSError as err:
        raise KernelError("run", command[0], err.errno or 0, err.strerror or str(err)) from err
    try:
        async with asyncio.timeout(_DEADLINE):
            _, output = await process.communicate()
            return await process.wait(), output
    except TimeoutError:
        return -1, f"no answer within {_DEADLINE:.0f} s".encode()
    finally:
        await children.end(process)  # it may be late, or our caller was cancelled
