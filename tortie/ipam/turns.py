"""Taking turns inside one process: fewer lost races, not correctness.

Eight pods that start at once on a node want an address from the same block. If all try together, each
write of one makes seven others repeat theirs. One after the other they need one write each, and what the
last one wrote spares the next a read. What is right never depends on it: other processes and hosts do
not take part, and who has waited too long goes ahead without a turn (Calico's file lock is as lenient).
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tortie.datastore.backend import KV

_PATIENCE = 1.0  # seconds; some 900 turns pass in it, unless the datastore is silent for the one before


@dataclass(slots=True)
class Turn:
    """`last` is what the turn before has written, if it was left here."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    last: KV | None = None


class Turns:
    def __init__(self) -> None:
        self._turns: dict[Hashable, Turn] = {}  # what it is about -> whose turn it is

    @asynccontextmanager
    async def take(self, about: Hashable) -> AsyncIterator[Turn]:
        """Wait for our turn, or for as long as it is worth."""
        turn = self._turns.setdefault(about, Turn())
        ours = False
        try:
            async with asyncio.timeout(_PATIENCE):
                ours = await turn.lock.acquire()
        except TimeoutError:
            turn.last = None
        try:
            yield turn
        finally:
            if ours:
                turn.lock.release()
