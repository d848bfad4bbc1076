"""Cancelling tasks: whose cancellation is whose."""

import asyncio
import contextlib

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


def test_an_error_of_the_clean_up_does_not_begin_the_loop_again() -> None:
    begun: list[None] = []

    async def loop() -> None:
        begun.append(None)
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError("of the clean-up")

    async def scenario() -> None:
        supervised = asyncio.create_task(tasks.supervise("a loop", loop, Backoff(first=0.0, cap=0.0)))
        await asyncio.sleep(0)
        await tasks.cancel([supervised])
        assert supervised.cancelled() and len(begun) == 1

    asyncio.run(scenario())


def test_what_goes_on_all_the_same_is_cancelled_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def scenario() -> None:
        task = asyncio.create_task(deaf(), name="the deaf one")
        await asyncio.sleep(0)
        await tasks.cancel([task])
        assert task.cancelled()

    monkeypatch.setattr(tasks, "_CLEAN_UP", 0.05)
    asyncio.run(scenario())
    assert "the deaf one goes on" in caplog.text


@pytest.mark.parametrize("turns", range(6))
def test_together_ends_when_cancelled_also_as_one_of_them_fails(turns: int) -> None:
    """asyncio.gather() takes the error for the outcome."""

    async def failing() -> None:
        await away.wait()
        raise TortieError("away")

    async def scenario() -> None:
        both = asyncio.create_task(tasks.best_effort("both", tasks.together(failing(), asyncio.sleep(60))))
        await asyncio.sleep(0.01)
        away.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        both.cancel()
        await asyncio.wait([both])
        assert both.cancelled()

    away = asyncio.Event()
    asyncio.run(scenario())
