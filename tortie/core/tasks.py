"""Supervised asyncio tasks: the one place where an unexpected exception is caught and survived.

A process is a handful of long-lived loops. Each runs under `supervise`: if it ends by an
exception, that is logged - with its traceback, unless we raised it on purpose - and the loop starts
again after a back-off; cancellation ends it for good. Anything that must not be restarted is a
plain task instead. For what is done together, or need not succeed, see together() and best_effort().
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar, overload

from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import TortieError

_log = logging.getLogger(__name__)

_CLEAN_UP = 40.0  # seconds; the longest, the supervisor's, ends its components one by one in 30
_HEALTHY_AFTER = 60.0  # seconds a loop must have run before a new failure counts as its first

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


async def supervise(name: str, loop: Callable[[], Awaitable[None]], policy: Backoff | None = None) -> None:
    """Run `loop()` for ever; it may return (ends) or raise (is run again, later each time).

    Unless it is being cancelled: then an error is one of its clean-up, raised in the cancellation's place.
    """
    retry = Retry(policy or Backoff(first=0.5, cap=30))
    while True:
        started = asyncio.get_running_loop().time()
        try:
            await loop()
            return
        except Exception as err:  # this is the supervisor
            if (task := asyncio.current_task()) is not None and task.cancelling():
                shown = None if isinstance(err, TortieError) else err
                _log.error("%s failed at its end: %s", name, err, exc_info=shown)
                raise asyncio.CancelledError from err
            if asyncio.get_running_loop().time() - started > _HEALTHY_AFTER:
                retry.reset()
            delay = retry.wait()
            if isinstance(err, TortieError):
                _log.error("%s failed, starting it again in %.1f s: %s", name, delay, err)
            else:
                _log.exception("%s failed; starting it again in %.1f s", name, delay)
        await asyncio.sleep(delay)


async def run_until_stopped(loops: Iterable[tuple[str, Callable[[], Awaitable[None]]]]) -> None:
    """Supervise all `loops` until SIGTERM or SIGINT, then cancel them and wait for their clean-up."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(supervise(name, loop), name=name) for name, loop in loops]
    await stop.wait()
    await cancel(tasks)


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until each has finished its own clean-up.

    Who is cancelled while waiting here stops waiting: awaiting the tasks one by one could not tell
    their cancellation from his own, and would swallow it. A task that goes on all the same, because
    something in it swallowed the cancellation, is cancelled again.
    """
    pending = list(tasks)
    while pending:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_CLEAN_UP)
        pending = [task for task in pending if not task.done()]
        for task in pending:
            _log.error("%s goes on %.0f s after it was to end", task.get_name(), _CLEAN_UP)


def spawn(coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
    """A task whose failure is never silent: it is logged when it happens."""
    task = asyncio.create_task(coroutine, name=name)
    task.add_done_callback(_report)
    return task


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (err := task.exception()) is not None:
        _log.error("%s failed", task.get_name(), exc_info=err)


@overload
async def together(a: Coroutine[Any, Any, A], b: Coroutine[Any, Any, B], /) -> tuple[A, B]: ...


@overload
async def together(
    a: Coroutine[Any, Any, A], b: Coroutine[Any, Any, B], c: Coroutine[Any, Any, C], /
) -> tuple[A, B, C]: ...


@overload
async def together(*coroutines: Coroutine[Any, Any, A]) -> tuple[A, ...]: ...


async def together(*coroutines: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """Run all at once and wait for all; the first error in the order given is raised."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return tuple(results)


async def best_effort(what: str, action: Awaitable[object]) -> None:
    """Do something whose failure must not hide the outcome of what was done before; it is only logged."""
    try:
        await action
    except TortieError as err:
        _log.warning("%s failed: %s", what, err)
