"""Processes whose parent ended before them: adopted, reaped when they end, and ended with the node.

ExaBGP's helper when ExaBGP is killed, a program that felix was running when it was killed. In a
container they would become children of its first process, which is the supervisor; anywhere else the
supervisor asks the kernel for the same (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Callable

_log = logging.getLogger(__name__)

_TIMEOUT = 2.0  # seconds they may take to end by themselves when the node is stopped
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def adopt() -> None:
    """From now on this process inherits its descendants' orphans."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


async def reap(others: Callable[[], set[int]]) -> None:
    """For ever: collect dead children that nobody else waits for; `others` are waited for elsewhere."""
    woken = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, woken.set)
    while True:
        await woken.wait()
        woken.clear()
        await asyncio.sleep(0.5)  # asyncio collects its own children meanwhile
        for pid in filter(_dead, _children() - others()):
            _collect(pid)


async def end() -> None:
    """End all children there are, in bounded time. Nothing that is still needed may run then."""
    deadline = asyncio.get_running_loop().time() + _TIMEOUT
    while left := _children():
        if asyncio.get_running_loop().time() > deadline:
            _log.warning("killing what components left behind: %s", ", ".join(map(str, sorted(left))))
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pid in left:
            _collect(pid)
        await asyncio.sleep(0.02)


def _dead(pid: int) -> bool:
    """By a look at this child alone: waiting for any would steal asyncio's."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _collect(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _children() -> set[int]:
    """All children, also those that became ours when their parent ended."""
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/children") as source:
            found.update(map(int, source.read().split()))
    return found
