"""The host's addresses are followed for as long as the node runs."""

import asyncio

import pytest

from tortie.core.errors import KernelError
from tortie.linux import monitor
from tortie.node.addresswatch import AddressWatch
from tortie.node.autodetect import HostAddress

pytestmark = pytest.mark.unit


def test_the_kernels_events_are_followed_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow poll would find the change as well, but a minute later."""
    begun = 0

    class Breaking(monitor.Monitor):
        def __init__(self, _groups: int) -> None:
            nonlocal begun
            begun += 1

        def close(self) -> None:
            pass

        async def __anext__(self) -> monitor.Event:
            if begun == 1:
                raise KernelError("receive", "netlink messages")
            if begun == 2:
                seen.set()
            return await asyncio.Future()

    async def changed() -> None:
        pass

    async def scenario() -> None:
        watch = asyncio.create_task(AddressWatch(changed, 3600.0, read=list[HostAddress]).run())
        async with asyncio.timeout(120):
            await seen.wait()
        watch.cancel()
        await asyncio.wait([watch])

    seen = asyncio.Event()
    monkeypatch.setattr(monitor, "Monitor", Breaking)
    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(8))
def test_it_ends_also_when_an_address_changes_at_that_moment(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """A pod's link-local address comes while the node is told to stop: asyncio.wait_for() lost the end."""

    class Announcing(monitor.Monitor):
        def __init__(self, _groups: int) -> None:
            pass

        def close(self) -> None:
            pass

        async def __anext__(self) -> monitor.Event:
            await news.wait()
            news.clear()
            return monitor.Overrun()

    async def changed() -> None:
        pass

    async def scenario() -> None:
        watch = asyncio.create_task(AddressWatch(changed, 3600.0, read=list[HostAddress]).run())
        await asyncio.sleep(0.01)  # it waits
        news.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        watch.cancel()
        ended, _ = await asyncio.wait([watch], timeout=60)
        assert ended, "it goes on"

    news = asyncio.Event()
    monkeypatch.setattr(monitor, "Monitor", Announcing)
    asyncio.run(scenario())
