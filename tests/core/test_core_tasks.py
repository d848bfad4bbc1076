"""Cancelling tasks: whose cancellation is whose."""

import asyncio

import pytest

from tortie.core import tasks
from tortie.core.backoff import Backoff
from tortie.core.errors import TortieError

pytestmark = pytest.mark.unit


def test_cancel_waits_for_each_tasks_clean_up() -> None:
    cleaned: list[str] = []

    async def worker(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(name)

    async def scenario() -> None:
        started = [asyncio.create_task(worker(name)) for name in "ab"]
        await asyncio.sleep(0)
        await tasks.cancel(started)
        assert cleaned == ["a", "b"] and all(task.cancelled() for task in started)
        await tasks.cancel([])

    asyncio.run(scenario())


def test_who_is_cancelled_while_cancelling_is_cancelled() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        worker = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        canceller = asyncio.create_task(tasks.cancel([worker]))
        await asyncio.sleep(0.01)
        canceller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await canceller
        await asyncio.wait([worker])

    asyncio.run(scenario())


def test_what_we_raised_on_purpose_is_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    raised = iter([TortieError("no datastore"), KeyError("a mistake")])

    async def loop() -> None:
        if (err := next(raised, None)) is not None:
            raise err

    asyncio.run(tasks.supervise("a loop", loop, Backoff(first=0.0, cap=0.0)))
    expected, mistake = caplog.records
    assert "a loop failed" in expected.getMessage() and "no datastore" in expected.getMessage()
    assert expected.exc_info is None and mistake.exc_info is not None
