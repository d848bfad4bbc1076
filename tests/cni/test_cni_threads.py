"""Work on threads that may outlive the call it was done for."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tortie.cni.operation import in_thread_on
from tortie.core.errors import KernelError

pytestmark = pytest.mark.unit


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_work_that_runs_late_keeps_its_namespace_after_the_call() -> None:
    """Another file has the number by then that the call's descriptor had."""
    read, write = os.pipe()
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    class Begun(ThreadPoolExecutor):
        """The time is up when the work has begun, not before."""

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(*args, **kwargs)
            begun.wait(300)
            return future

    def work(descriptor: int) -> None:
        begun.set()
        go.wait(300)
        os.write(descriptor, b"to the pipe")
        done.set()

    async def call() -> None:
        asyncio.get_running_loop().set_default_executor(Begun(2))
        with pytest.raises(KernelError, match="not done within"):
            await in_thread_on(0.01, "build", work, write)
        with open(os.devnull, "wb") as other:
            os.dup2(other.fileno(), write)
        go.set()
        await asyncio.to_thread(done.wait, 300)
        os.close(write)

    asyncio.run(call())
    assert os.read(read, 100) == b"to the pipe"
    assert os.read(read, 100) == b"", "the thread has closed its own"
    os.close(read)


def test_work_that_never_begins_leaves_no_descriptor() -> None:
    ran: list[int] = []
    go = threading.Event()

    async def call() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        busy = asyncio.ensure_future(asyncio.to_thread(go.wait, 300))
        await asyncio.sleep(0)
        before = descriptors()
        with pytest.raises(KernelError):
            await in_thread_on(0.01, "build", ran.append, 0)
        assert descriptors() <= before  # what others left may go meanwhile
        go.set()
        await busy

    asyncio.run(call())
    assert not ran


def test_work_without_a_namespace() -> None:
    def work(descriptor: int | None) -> str:
        return "gone" if descriptor is None else "there"

    assert asyncio.run(in_thread_on(300.0, "cut", work, None)) == "gone"
    assert asyncio.run(in_thread_on(300.0, "cut", work, 0)) == "there"
