"""confd: watches the datastore and keeps exabgp.conf and bgp.json what they should be.

`python -m tortie.confd.daemon`, started by node supervision. What it cannot render or ExaBGP would
not accept leaves the files as they are, and is said once. When the datastore is away, the files stay.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from tortie.bgp.config import prefix_limit
from tortie.confd import context, files, render, secrets
from tortie.confd.snapshot import Snapshot, listings
from tortie.confd.statusreporter import StatusReporter
from tortie.core import log, tasks
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ConfigError
from tortie.core.files import read_or_none
from tortie.core.health import INTERVAL, UNREADY_INTERVAL, HealthSender
from tortie.core.paths import Paths
from tortie.datastore import config, felixparams, nodename, validate
from tortie.datastore.backend import Backend
from tortie.datastore.connect import connect
from tortie.datastore.syncer import Syncer, SyncStatus

_log = logging.getLogger(__name__)

_SETTLE = 0.05  # seconds in which a burst of changes becomes one rendering
_SECRETS = 5.0  # seconds between looks at passwords; kubelet takes a minute to bring a new one
_RETRY = Backoff(first=1.0, cap=60.0)  # a full disk or a busy machine passes


class Confd:
    """One node's rendering; `environment` gives CALICO_ROUTER_ID and the folder of passwords."""

    def __init__(self, backend: Backend, node: str, environment: Mapping[str, str]) -> None:
        self._backend = backend
        self._node = node
        self._router_id = environment.get("CALICO_ROUTER_ID", "")
        self._prefix_limit = prefix_limit(environment)
        self._cluster_ips = environment.get("CALICO_ADVERTISE_CLUSTER_IPS", "")
        self._felix_local = {
            felixparams.Source.ENVIRONMENT: felixparams.from_environment(environment),
            felixparams.Source.FILE: felixparams.from_file(_felix_file(environment)),
        }
        self._secrets_folder = secrets.folder(environment)
        self._secrets: dict[tuple[str, str], bytes] = {}  # (Secret, key) -> password, as last rendered
        self._health = HealthSender("confd", environment)
        self._rendered = False  # once at least
        self._snapshot = Snapshot()
        self._whole = False  # the snapshot is all there is; half of one would take sessions and routes away
        self._dirty = asyncio.Event()
        self._told: set[str] = set()  # problems that were logged and still hold
        self._retry = Retry(_RETRY)

    async def watch(self) -> None:
        """For ever: keep the snapshot; have it rendered whenever it is whole and has changed."""
        self._snapshot, self._whole = Snapshot(), False
        syncer = Syncer(self._backend, listings(self._node), check=validate.check_stored)
        async with aclosing(syncer.batches()) as batches:
            async for batch in batches:
                self._snapshot.apply(batch.updates)
                self._whole = batch.status is SyncStatus.IN_SYNC
                self._dirty.set()

    async def render(self) -> None:
        """For ever: bring the files up to date with the snapshot."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_SETTLE)
            self._dirty.clear()
            if not self._whole:
                continue
            if not await self.render_once():
                asyncio.get_running_loop().call_later(self._retry.wait(), self._dirty.set)
            else:
                self._retry.reset()

    async def render_once(self) -> bool:
        """Whether the files are what they should be now."""
        try:
            unreadable: list[str] = []
            self._secrets = secrets.read(self._snapshot, self._secrets_folder, unreadable)
            made = context.build(
                self._snapshot,
                self._node,
                self._router_id,
                self._secrets,
                self._felix_local,
                self._cluster_ips,
                self._prefix_limit,
            )
            conf, digest = render.exabgp_conf(made)
            changed = await files.install(conf, render.bgp_json(made, digest))
        except (ConfigError, OSError) as err:
            self._tell([f"keeping the files as they are: {err}"])
            return False
        self._rendered = True
        self._tell([*unreadable, *made.problems])
        if changed:
            _log.info("%d sessions, %d blocks, %d pools", *map(len, (made.neighbors, *_parts(made))))
        return True

    async def watch_secrets(self) -> None:
        """For ever: have the files rendered when a password has changed, appeared or gone."""
        while True:
            await asyncio.sleep(_SECRETS)
            self.look_at_secrets()

    def look_at_secrets(self) -> None:
        if secrets.read(self._snapshot, self._secrets_folder, []) != self._secrets:
            self._dirty.set()

    async def report(self) -> None:
        """For ever: tell the supervisor that we live, and whether there are files."""
        while True:
            reason = "" if self._rendered else "nothing was rendered yet"
            self._health.report(live=True, ready=self._rendered, reason=reason)
            await asyncio.sleep(INTERVAL if self._rendered else UNREADY_INTERVAL)

    def _tell(self, problems: Any) -> None:
        """Log each problem once, and again only after it was gone."""
        for problem in problems:
            if problem not in self._told:
                _log.warning("%s", problem)
        for problem in self._told - set(problems):
            _log.info("no longer: %s", problem)
        self._told = set(problems)


def _parts(made: context.Context) -> tuple[Any, Any]:
    return made.config.blocks, made.config.pools


def _felix_file(environment: Mapping[str, str]) -> str:
    path = environment.get("FELIX_CONFIGFILE") or felixparams.DEFAULT_FILE
    return (read_or_none(path) or b"").decode("utf-8", "replace")


def main() -> int:
    """CALICO_ROUTER_ID gives the router ID; datastore as in config.from_env(), name as in nodename.

    The exit code: 0 after a stop, 1 for a configuration to start with that is wrong.
    """
    log.setup()

    async def run() -> None:
        Paths.from_env().create()
        node, _ = nodename.read()
        client = connect(config.from_env())
        confd = Confd(client.backend, node, os.environ)
        loops = [("watching", confd.watch), ("rendering", confd.render)]
        loops += [("reporting", confd.report), ("watching secrets", confd.watch_secrets)]
        reporter = StatusReporter(client, node)
        loops += [("watching node statuses", reporter.watch), ("reporting node status", reporter.run)]
        try:
            await tasks.run_until_stopped(loops)
        finally:
            await client.close()

    try:
        asyncio.run(run())
    except ConfigError as err:
        _log.critical("confd cannot start: %s", err)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
