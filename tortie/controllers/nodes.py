"""Nodes in step with Kubernetes: those that are gone from it, their labels, and their host endpoints.

The first two are for etcd only: where Kubernetes is the datastore, its nodes are ours.
"""

import asyncio
import logging
from functools import partial

from tortie.controllers import hostendpoints
from tortie.controllers.feed import Feed
from tortie.controllers.hostendpoints import is_ours
from tortie.controllers.labels import copied, kubernetes_name, labelled
from tortie.controllers.rounds import each
from tortie.controllers.settings import HostEndpointSettings
from tortie.core.errors import ResourceDoesNotExist, TortieError
from tortie.datastore.backend import Backend
from tortie.datastore.client import Client
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.endpoint import HostEndpoint
from tortie.datastore.types.node import Node
from tortie.ipam.allocator import Allocator
from tortie.ipam.cluster import delete_node

_log = logging.getLogger(__name__)


class NodeDeleter:
    """Deletes nodes whose Kubernetes node is gone, with all that they had; of others it knows nothing."""

    def __init__(self, client: Client, allocator: Allocator, api: Backend, ours: Feed, native: Feed) -> None:
        self._client = client
        self._allocator = allocator
        self._api = api
        self._ours = ours
        self._native = native

    async def round(self) -> float | None:
        """One that cannot be deleted does not hinder the others. Raises the first failure."""
        failure: TortieError | None = None
        for node in list(self._ours.of("Node").values()):
            name = kubernetes_name(node)
            if name and ResourceKey("Node", name) not in self._native.of("Node"):
                try:
                    await self._delete(node, name)
                except TortieError as err:
                    _log.debug("node %s is not deleted: %s", node.name, err)
                    failure = failure or err
        if failure is not None:
            raise failure
        return None

    async def _delete(self, node: Node, name: str) -> None:
        try:
            await self._api.get(ResourceKey("Node", name))
        except ResourceDoesNotExist:
            try:
                await delete_node(self._client, self._allocator, node.name, revision=node.revision)
            except ResourceDoesNotExist:
                return  # somebody else has done it
            _log.info("deleted node %s: Kubernetes has no node %s any more", node.name, name)


class NodeLabels:
    """Copies the labels of Kubernetes' nodes to ours."""

    def __init__(self, client: Client, ours: Feed, native: Feed) -> None:
        self._client = client
        self._ours = ours
        self._native = native

    async def round(self) -> float | None:
        changed = []
        for node in self._ours.of("Node").values():
            source = self._native.of("Node").get(ResourceKey("Node", kubernetes_name(node)))
            if source is not None and (wanted := labelled(node, copied(source))) is not node:
                changed.append(wanted)
        await each((f"updated the labels of node {n.name}", partial(self._client.update, n)) for n in changed)
        return None


class HostEndpoints:
    """Makes the host endpoints of nodes, and removes those of ours that are not wanted any more."""

    def __init__(self, client: Client, ours: Feed, settings: HostEndpointSettings) -> None:
        self._client = client
        self._ours = ours
        self._settings = settings
        self._taken: set[str] = set()  # names that somebody else has, as it was logged

    async def round(self) -> float | None:
        named: dict[str, HostEndpoint] = {one.name: one for one in self._ours.of("HostEndpoint").values()}
        found = {name: one for name, one in named.items() if is_ours(one)}
        # In a thread: with a thousand nodes and templates this takes longer than a renewal may wait.
        nodes = list(self._ours.of("Node").values())
        wanted = await asyncio.to_thread(hostendpoints.wanted, nodes, self._settings)
        taken = wanted.keys() & (named.keys() - found.keys())
        for name in sorted(taken - self._taken):
            _log.warning("host endpoint %s is not made: somebody else has made one of this name", name)
        self._taken = taken
        create = [one for name, one in wanted.items() if name not in named]
        update = [
            hostendpoints.merged(one, found[name])
            for name, one in wanted.items()
            if name in found and not hostendpoints.same(one, found[name])
        ]
        delete = [one for name, one in found.items() if name not in wanted]
        await each(
            [
                *((f"created host endpoint {h.name}", partial(self._client.create, h)) for h in create),
                *((f"updated host endpoint {h.name}", partial(self._client.update, h)) for h in update),
                *((f"deleted host endpoint {h.name}", partial(self._delete, h)) for h in delete),
            ]
        )
        return None

    async def _delete(self, endpoint: HostEndpoint) -> None:
        try:
            await self._client.delete(HostEndpoint, endpoint.name, revision=endpoint.revision)
        except ResourceDoesNotExist:
            return
