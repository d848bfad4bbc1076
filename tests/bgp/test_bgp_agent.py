"""When the agent comes back to the kernel's routes."""

import asyncio
from typing import Any

import pytest

from tortie.bgp.agent import Agent
from tortie.bgp.fib import Interfaces
from tortie.bgp.nexthop import Resolver
from tortie.bgp.speaker import Speaker
from tortie.core.reconcile import Outcome

pytestmark = pytest.mark.unit


class BusyKernel:
    """Refuses a route, to be tried again in a minute; an interface goes down while it is at it."""

    def __init__(self) -> None:
        self.resolver, self.interfaces = Resolver(), Interfaces({}, {})
        self.syncs = 0
        self.ask: Any = None  # called in the middle of the first sync

    def want(self, changed: object) -> None:
        pass

    async def sync(self) -> Outcome:
        self.syncs += 1
        if self.syncs == 1:
            self.ask()
        return Outcome(retry_at=60.0)


def test_a_resync_that_is_asked_for_during_another_does_not_wait_for_the_back_off() -> None:
    kernel: Any = BusyKernel()
    agent = Agent(Speaker(), kernel)
    kernel.ask = agent._resync
    agent._resync()

    async def decide() -> list[int]:
        found = []
        for now in (1.0, 2.0, 3.0, 61.0):
            await agent._decide(now)
            found.append(kernel.syncs)
        return found

    assert asyncio.run(decide()) == [1, 2, 2, 3]
