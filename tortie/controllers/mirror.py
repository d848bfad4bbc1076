"""Copies of Kubernetes' policies, namespaces and service accounts, and of pods' labels, in etcd."""

from collections.abc import Collection
from functools import partial

from tortie.controllers import copies
from tortie.controllers.feed import Feed
from tortie.controllers.rounds import each
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.keys import Key
from tortie.datastore.types.meta import Resource


class Mirror:
    """One set of copies; `controller` is a key of copies.SETS."""

    def __init__(self, controller: str, client: Client, ours: Feed, native: Feed) -> None:
        self._kind = copies.SETS[controller][0]
        self._is_of = copies.is_of(controller)
        self._client = client
        self._ours = ours
        self._native = native

    async def round(self) -> float | None:
        wanted = self._set(self._native)
        stored = self._set(self._ours)
        changes = copies.changes(wanted, stored, self._unreadable(stored))
        await each(
            [
                *((f"created {_named(r)}", partial(self._client.create, r)) for r in changes.create),
                *((f"updated {_named(r)}", partial(self._client.update, r)) for r in changes.update),
                *((f"deleted {_named(r)}", partial(self._delete, r)) for r in changes.delete),
            ]
        )
        return None

    def _set(self, feed: Feed) -> dict[Key, Resource]:
        return {key: value for key, value in feed.of(self._kind).items() if self._is_of(key)}

    def _unreadable(self, stored: Collection[Key]) -> set[Key]:
        """A policy that cannot be understood just now still protects: its copy stays as it was."""
        paths = self._native.unreadable()
        return {key for key in stored if key.path() in paths}

    async def _delete(self, resource: Resource) -> None:
        """As it was seen: one that somebody changed meanwhile is looked at again."""
        try:
            await self._client.delete(
                type(resource), resource.name, resource.namespace, revision=resource.revision
            )
        except ResourceDoesNotExist:
            return


class EndpointLabels:
    """Brings the labels of endpoints in etcd up to date with those of their pods."""

    def __init__(self, client: Client, ours: Feed, native: Feed) -> None:
        self._client = client
        self._ours = ours
        self._native = native

    async def round(self) -> float | None:
        pods = {(one.namespace, one.spec.pod): one for one in self._native.of("WorkloadEndpoint").values()}
        changed = copies.relabelled(self._ours.of("WorkloadEndpoint").values(), pods)
        await each((f"updated the labels of {_named(e)}", partial(self._client.update, e)) for e in changed)
        return None


def _named(resource: Resource) -> str:
    return f"{resource.KIND} {resource.namespace + '/' if resource.namespace else ''}{resource.name}"
