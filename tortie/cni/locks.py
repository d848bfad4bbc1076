"""Who is being worked on: calls for the same container, or the same pod, wait for each other.

A container is always taken before its pod, so that two calls never wait for each other in a circle.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable


class Locks:
    """Locks by key that exist only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, asyncio.Lock] = {}  # key -> its lock
        self._users: dict[Hashable, int] = {}  # key -> who holds or awaits it

    def busy(self, key: Hashable) -> bool:
        return key in self._users

    @contextlib.asynccontextmanager
    async def hold(self, *keys: Hashable) -> AsyncIterator[None]:
        """Hold all of them, taken in the order given."""
        async with contextlib.AsyncExitStack() as held:
            for key in keys:
                await held.enter_async_context(self._one(key))
            yield

    @contextlib.asynccontextmanager
    async def _one(self, key: Hashable) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] = self._users.get(key, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]
