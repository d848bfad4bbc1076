"""Running coroutines in tests: with a deadline, and without anything left behind."""

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from tortie.core.errors import DatastoreUnreachable

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T], deadline: float = 400.0) -> T:
    """asyncio.run with a deadline; fails if tasks are left, or asyncio complained about anything.

    What asyncio only logs ("Task was destroyed", "exception was never retrieved") and what Python
    only prints (errors in finalizers, coroutines never awaited) are failures here.
    """
    complaints: list[str] = []

    def complain(context: dict[str, Any]) -> None:
        # gRPC has one event queue per process: it hands us what came too late for a former test's loop.
        if "PollerCompletionQueue" not in str(context) or "loop is closed" not in str(context):
            complaints.append(str(context))

    async def main() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: complain(context))
        async with asyncio.timeout(deadline):
            result = await coroutine
        try:
            await eventually(lambda: not others())  # cancelled calls of gRPC need a few turns to end
        except TimeoutError:
            complaints.append(f"tasks left: {others()}")
        return result

    hook, sys.unraisablehook = sys.unraisablehook, lambda args: complaints.append(str(args.exc_value or args))
    try:
        result = asyncio.run(main())
        gc.collect(1)  # what this run left; a full collection would take longer than most tests
    finally:
        sys.unraisablehook = hook
    if complaints:
        raise AssertionError("left behind: " + "\n".join(complaints))
    return result


async def eventually(condition: Callable[[], object], deadline: float = 120.0, what: str = "") -> None:
    """Wait until `condition()` is true. Raises TimeoutError."""
    try:
        async with asyncio.timeout(deadline):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise TimeoutError(f"waited {deadline:g} s for {what or condition}") from None


async def until(attempt: Callable[[], Awaitable[object]], deadline: float = 120.0) -> None:
    """Make `attempt()` again and again until it does not raise DatastoreUnreachable any more."""
    async with asyncio.timeout(deadline):
        while True:
            try:
                await attempt()
                return
            except DatastoreUnreachable:
                await asyncio.sleep(0.02)


def others() -> list[asyncio.Task[Any]]:
    """All tasks but the one that asks."""
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Turns:
    """Counts how often the loop comes round while this is entered."""

    def __init__(self) -> None:
        self.count = 0

    async def __aenter__(self) -> None:
        self._spinning = asyncio.create_task(self._spin())

    async def __aexit__(self, *_: object) -> None:
        self._spinning.cancel()

    async def _spin(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)
