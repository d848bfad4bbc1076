"""When a controller looks: after a change, when something is due, from time to time, after a failure.

A round looks at everything. So that many changes cost few rounds, it waits a moment for more of them, and
rests after itself for a multiple of what it computed: a controller never takes a core for itself.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from tortie.controllers.feed import Feed
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import DatastoreError, TortieError, UpdateConflict
from tortie.core.tasks import together

_log = logging.getLogger(__name__)

_GATHER = 0.2  # seconds for more changes to come: a Deployment's pods are deleted within so much
_SHARE = 10  # a round's rest is so many times what it computed
_RETRY = Backoff(first=0.5, cap=30.0)  # Calico's cap
_AT_ONCE = 16  # writes under way: enough to hide the latency, few enough to leave the datastore to others


@dataclass(frozen=True, slots=True)
class Controller:
    """`round` returns the loop's time at which something is due, or None; it raises TortieError."""

    name: str
    round: Callable[[], Awaitable[float | None]]
    follows: Sequence[tuple[Feed, Sequence[str]]]  # topics of feeds whose changes matter
    period: float = 300.0  # seconds at most between rounds; 0: only after changes


async def keep(controller: Controller, cpu: Callable[[], float] = time.thread_time) -> None:
    """Run rounds until cancelled, none of them before everything it looks at is known.

    `cpu` gives the seconds that this thread has computed: waiting for the datastore needs no rest.
    """
    loop = asyncio.get_running_loop()
    changed, retry, due = asyncio.Event(), Retry(_RETRY), None
    for feed, topics in controller.follows:
        feed.tell(topics, changed)
    changed.set()
    while True:
        await _wait(changed, _seconds(controller.period, due, loop.time()))
        await asyncio.sleep(_GATHER)
        changed.clear()
        if not all(feed.in_sync for feed, _ in controller.follows):
            due = None  # that it is known now will be told
            continue
        began = cpu()
        try:
            due = await controller.round()
        except TortieError as err:
            if not retry.failures:
                # To be overtaken is no trouble: what the other wrote is looked at now.
                level = logging.INFO if isinstance(err, UpdateConflict) else logging.WARNING
                _log.log(level, "%s: trying again: %s", controller.name, err)
            changed.set()
            await asyncio.sleep(retry.wait())
            continue
        if retry.failures:
            _log.info("%s: succeeded after %d failures", controller.name, retry.failures)
        retry.reset()
        await asyncio.sleep(_SHARE * (cpu() - began))


def _seconds(period: float, due: float | None, now: float) -> float | None:
    """How long to wait for a change."""
    waits = [period] if period > 0 else []
    if due is not None:
        waits.append(max(0.0, due - now))
    return min(waits, default=None)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def each(actions: Iterable[tuple[str, Callable[[], Awaitable[object]]]]) -> None:
    """Several writes, some at once; one that fails does not hinder the others. Raises DatastoreError.

    The text says what was done, for the log: `created Profile x`.
    """
    gate = asyncio.Semaphore(_AT_ONCE)
    failures: list[tuple[str, DatastoreError]] = []

    async def attempt(what: str, action: Callable[[], Awaitable[object]]) -> None:
        async with gate:
            try:
                await action()
            except DatastoreError as err:
                failures.append((what, err))
                _log.debug("%s failed: %s", what, err)
            else:
                _log.info("%s", what)

    await together(*(attempt(what, action) for what, action in actions))
    if failures:
        raise _as_one(failures)


def _as_one(failures: Sequence[tuple[str, DatastoreError]]) -> DatastoreError:
    """Named after the first one that more than another look is needed for."""
    serious = [(what, err) for what, err in failures if not isinstance(err, UpdateConflict)]
    if not serious:
        return failures[0][1]
    what, err = serious[0]
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return DatastoreError(f"not {what}: {err}{more}")
