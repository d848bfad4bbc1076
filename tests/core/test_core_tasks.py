"""Cancelling tasks: whose cancellation is whose."""

import asyncio

import pytest

from tortie.core import tasks

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
