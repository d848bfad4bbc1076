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
