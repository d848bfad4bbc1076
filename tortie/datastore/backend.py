"""The contract every datastore keeps: typed keys and values, compare-and-swap, list and watch.

One page, two implementations (etcd; Kubernetes). Everything above it - client, IPAM, syncer - is
written against this and nothing else. Revisions are opaque text: per object for compare-and-swap,
of the whole store (or kind) for lists and watches.

Errors are those of core.errors: DatastoreUnreachable means "try again later, a write may have
happened"; ResourceDoesNotExist, ResourceAlreadyExists and UpdateConflict are definite answers.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from tortie.core.errors import ValidationError
from tortie.datastore.keys import Key, Listing

MANAGED_ELSEWHERE = "it is managed through the Kubernetes API"  # why an operation is in Backend.refused


@dataclass(frozen=True, slots=True)
class KV:
    """One stored object. `origin` is the JSON it was read as, for a later update of the same object."""

    key: Key
    value: Any  # the struct that key.type names
    revision: str
    origin: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry that exists but cannot be understood; `where` is its path, for the person to find it."""

    where: str
    key: Key | None
    error: ValidationError


@dataclass(slots=True)
class Listed:
    """A consistent snapshot: `revision` is where a watch continues without a gap."""

    items: list[KV]
    revision: str
    broken: list[Broken] = field(default_factory=list)


EventType = Literal["set", "deleted", "broken", "bookmark"]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`set`: kv is the new state. `deleted`: kv.key is gone. `broken`: the new state is unreadable.
    `bookmark`: nothing happened up to `revision`.

    A watch that begins after `revision` misses nothing that follows this event; it may repeat events
    of the same transaction, so this is not always the object's own revision, which is kv.revision.
    """

    type: EventType
    revision: str
    kv: KV | None = None
    broken: Broken | None = None


class Backend(Protocol):
    @property
    def refused(self) -> frozenset[tuple[str, str]]:
        """(Create, Update or Delete; kind) that is never supported here: somebody else makes such objects."""

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        """Store a new object. Raises ResourceAlreadyExists (with the current value)."""

    async def update(self, kv: KV) -> KV:
        """Replace an object if it still has kv.revision. Raises UpdateConflict, ResourceDoesNotExist."""

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        """Store unconditionally; with `ttl` (seconds) the object vanishes unless applied again in time."""

    async def delete(self, key: Key, revision: str = "") -> KV:
        """Delete and return the last state; with a revision only if it is still current."""

    async def get(self, key: Key, revision: str = "") -> KV:
        """Raises ResourceDoesNotExist; ValidationError if the stored value cannot be understood."""

    async def list(self, what: Listing, revision: str = "") -> Listed:
        """All objects of a listing, in key order, at one revision. Raises RevisionGone if it was given
        one that is compacted."""

    def serves(self, what: Listing) -> bool:
        """Whether there can be such objects here at all; the list of others is empty for ever."""

    def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        """Every change after `revision`, in order, without gaps, until closed.

        Begins with a bookmark once the watch stands. Raises DatastoreUnreachable when the connection is
        lost or goes silent, RevisionGone when the history was compacted or `revision` lies in the
        future. Close the iterator (aclose) to stop.
        """

    async def close(self) -> None:
        """Release connections; the backend cannot be used afterwards. Calls under way fail with
        DatastoreUnreachable."""
