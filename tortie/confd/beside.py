"""Objects that are followed only while something asks for them: Services, and Secrets one by one.

They are Kubernetes' own, and come from its API, whether that is the datastore or stands beside etcd. A
cluster that announces no services costs the API nothing here, and no Secret is read that nobody names.

What is asked for is settled once the API has answered, be it with a refusal: a server that does not answer
must not make sessions lose their passwords, one that refuses must not keep a node from having any.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

from tortie.core import tasks
from tortie.datastore.backend import Backend
from tortie.datastore.keys import Key, Listing
from tortie.datastore.syncer import Syncer, SyncStatus


class Beside:
    """`changed` is called whenever something came, changed or went. Without a backend there is nothing."""

    def __init__(self, backend: Backend | None, changed: Callable[[], None]) -> None:
        self._backend = backend
        self._changed = changed
        self._wanted: frozenset[Listing] = frozenset()
        self._asked = asyncio.Event()  # what is wanted is other than what is followed
        self._found: dict[Listing, dict[Key, Any]] = {}  # listing -> its objects as last known
        self._syncers: dict[Listing, Syncer] = {}
        self._known: set[Listing] = set()  # those that have been in sync

    def want(self, listings: Collection[Listing]) -> None:
        """Follow these and no others."""
        wanted = frozenset() if self._backend is None else frozenset(listings)
        if wanted != self._wanted:
            self._wanted = wanted
            self._asked.set()

    @property
    def awaited(self) -> list[str]:
        """What is wanted, and neither known nor known to be refused."""
        missing = (what for what in self._wanted - self._known if not self._refused(what))
        return sorted(what.prefix() for what in missing)

    def _refused(self, what: Listing) -> bool:
        return what in self._syncers and self._syncers[what].refused

    def objects(self) -> Iterator[tuple[Key, Any]]:
        for what in self._wanted:
            yield from self._found.get(what, {}).items()

    async def run(self) -> None:
        """For ever: follow what is wanted."""
        running: dict[Listing, asyncio.Task[None]] = {}
        try:
            while True:
                for what in running.keys() - self._wanted:
                    await tasks.cancel([running.pop(what)])
                    self._forget(what)
                for what in self._wanted - running.keys():
                    follower = tasks.supervise(f"following {what.prefix()}", partial(self._follow, what))
                    running[what] = asyncio.create_task(follower)
                await self._asked.wait()
                self._asked.clear()
        finally:
            await tasks.cancel(running.values())

    def _forget(self, what: Listing) -> None:
        self._found.pop(what, None)
        self._syncers.pop(what, None)
        self._known.discard(what)

    async def _follow(self, what: Listing) -> None:
        assert self._backend is not None  # else nothing is wanted
        self._known.discard(what)  # the start after a failure knows nothing yet
        found = self._found[what] = {}
        syncer = self._syncers[what] = Syncer(self._backend, [what])
        async with aclosing(syncer.batches()) as batches:
            async for batch in batches:
                for update in batch.updates:
                    if update.value is None:
                        found.pop(update.key, None)
                    else:
                        found[update.key] = update.value
                if batch.status is SyncStatus.IN_SYNC:
                    self._known.add(what)
                self._changed()
