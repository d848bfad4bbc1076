"""Keeps the addresses of this node's tunnel devices what the pools ask for, in IPAM and in the Node.

Looks again whenever a pool or the own Node changes: a mode is switched on or off, a pool goes, labels no
longer match, or somebody took an address out of the Node. What fails is tried again, later each time.
(Reference: host networking facts, 3.5; node/pkg/allocateip. The decisions are ipam.tunnels'.)
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import aclosing

from tortie.core import log, tasks
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ConfigError, TortieError
from tortie.core.health import INTERVAL, UNREADY_INTERVAL, HealthSender
from tortie.datastore import config, nodename, validate
from tortie.datastore.client import Client
from tortie.datastore.connect import connect
from tortie.datastore.keys import ResourceKey, ResourceList
from tortie.datastore.syncer import Syncer, SyncStatus, Update
from tortie.ipam.allocator import Allocator
from tortie.ipam.tunnels import reconcile_tunnels

_log = logging.getLogger(__name__)

_SETTLE = 0.1  # seconds in which the pools of one `calicoctl apply` become one look
_RETRY = Backoff(first=1.0, cap=60.0)  # a full pool or a conflicting write passes
_TRUE = ("true", "1", "yes", "y", "t")  # as felix reads its parameters


async def allocate(client: Client, node: str, env: Mapping[str, str]) -> None:
    """Once. Raises TortieError; nothing new is assigned then."""
    await reconcile_tunnels(client, Allocator(client, node), node, encrypt_host=_encrypts_host(env))


def _encrypts_host(env: Mapping[str, str]) -> bool:
    return env.get("FELIX_WIREGUARDHOSTENCRYPTIONENABLED", "").lower() in _TRUE


class TunnelAddresses:
    def __init__(self, client: Client, node: str, env: Mapping[str, str]) -> None:
        self._client, self._node, self._env = client, node, env
        self._health = HealthSender("tunnels", env)
        self._dirty = asyncio.Event()
        self._whole = False  # pools and Node were listed: the first look has something to look at
        self._retry = Retry(_RETRY)
        self._trouble = "waiting for the datastore"

    async def watch(self) -> None:
        """For ever: notice what may ask for other addresses."""
        listings = [ResourceList("IPPool"), ResourceList("Node", name=self._node)]
        syncer = Syncer(self._client.backend, listings, check=validate.check_stored)
        async with aclosing(syncer.batches()) as batches:
            async for batch in batches:
                whole = batch.status is SyncStatus.IN_SYNC
                if self._concern(batch.updates) or whole != self._whole:
                    self._whole = whole
                    self._dirty.set()

    def _concern(self, updates: Iterable[Update]) -> bool:
        """Whether any is about a pool or the own Node: names of other nodes may begin like ours."""
        return any(
            isinstance(one.key, ResourceKey) and (one.key.kind == "IPPool" or one.key.name == self._node)
            for one in updates
        )

    async def follow(self) -> None:
        """For ever: bring the addresses up to date after each change."""
        self._dirty.set()  # an earlier run may have failed amid it
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_SETTLE)
            self._dirty.clear()
            if not self._whole:
                continue
            try:
                await allocate(self._client, self._node, self._env)
            except TortieError as err:
                self._trouble = str(err)
                delay = self._retry.wait()
                _log.error("cannot bring tunnel addresses up to date, next try in %.1f s: %s", delay, err)
                asyncio.get_running_loop().call_later(delay, self._dirty.set)
            else:
                self._trouble = ""
                self._retry.reset()

    async def report(self) -> None:
        """For ever: tell the supervisor that we live, and what stands in the way of an address."""
        while True:
            self._health.report(live=True, ready=not self._trouble, reason=self._trouble)
            await asyncio.sleep(UNREADY_INTERVAL if self._trouble else INTERVAL)


def main(env: Mapping[str, str] = os.environ) -> int:
    """The exit code: 0 after a stop, 1 for a configuration to start with that is wrong."""
    log.setup(env.get("CALICO_STARTUP_LOGLEVEL", "info"))

    async def run() -> None:
        node, _ = nodename.read(env)
        client = connect(config.from_env(env))
        part = TunnelAddresses(client, node, env)
        try:
            await tasks.run_until_stopped(
                [("watching", part.watch), ("following", part.follow), ("reporting", part.report)]
            )
        finally:
            await client.close()

    try:
        asyncio.run(run())
    except ConfigError as err:
        _log.critical("%s", err)
        return 1
    return 0
