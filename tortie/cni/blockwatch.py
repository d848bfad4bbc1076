"""Follows the blocks that ready addresses are of, so that what others do to those is known at once."""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from functools import partial

from tortie.core import tasks
from tortie.datastore.backend import Backend
from tortie.datastore.keys import BlockList
from tortie.datastore.syncer import Syncer
from tortie.datastore.types.ipam import Block


class BlockWatch:
    """`tell(cidr, block)` is called with each state of each block, None when there is none."""

    def __init__(self, backend: Backend, tell: Callable[[str, Block | None], None]) -> None:
        self._backend = backend
        self._tell = tell
        self._following: dict[str, asyncio.Task[None]] = {}  # CIDR -> its loop
        self._ending: set[asyncio.Task[None]] = set()

    def follow(self, cidrs: Collection[str]) -> None:
        """These blocks from now on, and no others."""
        for cidr in self._following.keys() - set(cidrs):
            ending = self._following.pop(cidr)
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            ending.cancel()
        for cidr in set(cidrs) - self._following.keys():
            loop = tasks.supervise(f"following block {cidr}", partial(self._loop, cidr))
            self._following[cidr] = asyncio.create_task(loop)

    async def close(self) -> None:
        self.follow(())
        await tasks.cancel(self._ending)

    async def _loop(self, cidr: str) -> None:
        async with contextlib.aclosing(Syncer(self._backend, [BlockList(cidr=cidr)]).batches()) as batches:
            async for batch in batches:
                for update in batch.updates:
                    self._tell(cidr, update.value)
