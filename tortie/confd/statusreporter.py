"""Keeps the CalicoNodeStatus resources of this node current, each at its own period.

It lives in confd's process because that has both a datastore and BGP; Calico runs a process for it,
and another Python would cost each node 30 MB. Nothing is written that has not changed; a conflict, or
a datastore that is away, is left to the next round.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from tortie.bgp import ask
from tortie.bgp.status import Status
from tortie.bgp.table import TableRoute
from tortie.confd import nodestatus
from tortie.core.errors import ConfigError, DatastoreError, PeerError, ResourceDoesNotExist, UpdateConflict
from tortie.datastore import validate
from tortie.datastore.client import Client
from tortie.datastore.keys import ResourceKey, ResourceList
from tortie.datastore.syncer import Syncer, Update
from tortie.datastore.types.node import CalicoNodeStatus, CalicoNodeStatusStatus

_log = logging.getLogger(__name__)

_TICK = 1.0  # seconds; periods are whole ones


class StatusReporter:
    def __init__(
        self,
        client: Client,
        node: str,
        agent: Callable[[], Status | None] | None = None,
        routes: Callable[[], Awaitable[Sequence[TableRoute]]] | None = None,
    ) -> None:
        """`agent` (which may block) and `routes` tell what the BGP speaker does; by default they ask it."""
        self._client = client
        self._node = node
        self._agent = agent or ask.status
        self._routes = routes or _ask_routes
        self._resources: dict[str, CalicoNodeStatus] = {}  # name -> as stored; this node's only
        self._due: dict[str, float] = {}  # name -> when to report next, by time.monotonic()
        self._told: set[str] = set()  # names of those whose trouble was logged

    async def watch(self) -> None:
        """For ever: know the resources that ask for this node's status."""
        self._resources.clear()
        self._due.clear()
        what = [ResourceList(CalicoNodeStatus.KIND)]
        async with aclosing(
            Syncer(self._client.backend, what, check=validate.check_stored).batches()
        ) as batches:
            async for batch in batches:
                for update in batch.updates:
                    self._take(update)

    def _take(self, update: Update) -> None:
        assert isinstance(update.key, ResourceKey)  # by what was listed
        name, value = update.key.name, update.value
        if not isinstance(value, CalicoNodeStatus) or value.spec.node != self._node:
            self._resources.pop(name, None)
            self._due.pop(name, None)
            return
        known = self._resources.get(name)
        self._resources[name] = value.with_metadata(resourceVersion=update.revision)
        if known is None or known.spec != value.spec:
            self._due[name] = 0.0

    async def run(self) -> None:
        """For ever: report what is due."""
        while True:
            await self.report(time.monotonic(), time.time())
            await asyncio.sleep(_TICK)

    async def report(self, now: float, wall: float) -> None:
        for name in [one for one, due in self._due.items() if due <= now]:
            resource = self._resources.get(name)
            if resource is None:
                continue  # deleted while another was written
            period = resource.spec.updatePeriodSeconds
            self._due[name] = now + period if period else float("inf")
            if period:
                await self._report(resource, wall)

    async def _report(self, resource: CalicoNodeStatus, wall: float) -> None:
        name = resource.name
        try:
            new = await self._build(resource.spec.classes, wall)
            if replace(new, lastUpdated=resource.status.lastUpdated) != resource.status:
                await self._client.update(replace(resource, status=new))
        except (UpdateConflict, ResourceDoesNotExist):
            return  # somebody changed or deleted it: that comes in, and the next round knows
        except (ConfigError, PeerError, DatastoreError) as err:
            if name not in self._told:
                _log.warning("CalicoNodeStatus %s cannot be brought up to date: %s", name, err)
                self._told.add(name)
            return
        self._told.discard(name)

    async def _build(self, classes: Sequence[str], wall: float) -> CalicoNodeStatusStatus:
        agent = await asyncio.to_thread(self._agent)
        routes = await self._routes() if agent is not None and "Routes" in classes else ()
        return nodestatus.build(classes, agent, routes, wall)


async def _ask_routes() -> Sequence[TableRoute]:
    return await ask.routes()
