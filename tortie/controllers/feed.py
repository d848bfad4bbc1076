"""What there is in a datastore, kept current, and a word to whoever waits for a change of it."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.backend import Backend
from tortie.datastore.keys import Key, Listing, ResourceKey
from tortie.datastore.syncer import Batch, Syncer, SyncStatus
from tortie.datastore.types.ipam import Block
from tortie.datastore.validate import check_stored
from tortie.ipam.soundness import ensure_usable


def topic_of(key: Key) -> str:
    """The kind of a resource; of what is none, the name of its key's class."""
    return key.kind if isinstance(key, ResourceKey) else type(key).__name__


def _check(value: Any) -> None:
    """Raises ValidationError for what counts as absent: nobody here looks into a block that lies."""
    if not isinstance(value, Block):
        return check_stored(value)
    try:
        ensure_usable(value, value.cidr)
    except ValueError as err:
        raise ValidationError([FieldError("IPAMBlock.cidr", value.cidr, str(err))]) from err


class Feed:
    """Several listings of one backend. Filled by run(); read by everybody else in the same loop."""

    def __init__(self, backend: Backend, listings: Sequence[Listing]) -> None:
        self._syncer = Syncer(backend, listings, check=_check)
        self._objects: dict[str, dict[Key, Any]] = {}  # topic -> key -> value
        self._waiting: list[tuple[frozenset[str], asyncio.Event]] = []
        self.in_sync = False

    def of(self, topic: str) -> Mapping[Any, Any]:
        """Key -> value."""
        return self._objects.get(topic, {})

    def unreadable(self) -> Collection[str]:
        """Paths of objects that are there and cannot be understood, so that they are missing here."""
        return self._syncer.problems().keys()

    def tell(self, topics: Collection[str], event: asyncio.Event) -> None:
        """Set the event whenever something of these topics changed, and when everything is known."""
        self._waiting.append((frozenset(topics), event))

    async def run(self) -> None:
        """Follow the datastore until cancelled; begun again, it learns everything anew."""
        self._objects.clear()
        self.in_sync = False
        async with aclosing(self._syncer.batches()) as batches:
            async for batch in batches:
                self.apply(batch)

    def apply(self, batch: Batch) -> None:
        changed = set()
        for update in batch.updates:
            topic = topic_of(update.key)
            changed.add(topic)
            objects = self._objects.setdefault(topic, {})
            if update.value is None:
                objects.pop(update.key, None)
            else:
                objects[update.key] = update.value
        complete, self.in_sync = self.in_sync, batch.status is SyncStatus.IN_SYNC
        for topics, event in self._waiting:
            if topics & changed or (self.in_sync and not complete):
                event.set()
