"""confd: watches the datastore and keeps the files of the node's BGP speaker what they should be.

`python -m tortie.confd.daemon`, started by node supervision. What it cannot render or the speaker would
not accept leaves the files as they are, and is said once. When the datastore is away, the files stay.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from tortie.bgp.config import prefix_limit
from tortie.confd import context, files, localpeers, secrets
from tortie.confd.beside import Beside
from tortie.confd.bird import Bird
from tortie.confd.localpeers import LocalPeer
from tortie.confd.snapshot import Snapshot, listings, service_listings
from tortie.confd.statusreporter import StatusReporter
from tortie.core import log, tasks
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ConfigError, PeerError
from tortie.core.files import read_or_none
from tortie.core.health import INTERVAL, UNREADY_INTERVAL, HealthSender
from tortie.core.paths import Paths
from tortie.core.speaker import speaker
from tortie.datastore import config, felixparams, nodename, validate
from tortie.datastore.backend import Backend
from tortie.datastore.connect import connect, kubernetes_beside
from tortie.datastore.syncer import Syncer, SyncStatus

_log = logging.getLogger(__name__)

_SETTLE = 0.05  # seconds in which a burst of changes becomes one rendering
_SECRETS = 5.0  # seconds between looks at passwords; kubelet takes a minute to bring a new one
_LOCAL_PEERS = 1.0  # seconds between looks for workloads that are BGP peers, where a BGPPeer asks for them
_UNSETTLED = 0.2  # seconds between looks whether the API has answered
_RETRY = Backoff(first=1.0, cap=60.0)  # a full disk or a busy machine passes


class Speaker(Protocol):
    """What runs from the files: ExaBGP with our agent, or BIRD."""

    async def install(self, made: context.Context) -> tuple[bool, Sequence[str]]:
        """Make the files be those of the context and have the speaker follow; idempotent.

        Returns whether anything changed, and what could not be said in the speaker's language. Raises
        ConfigError or OSError, and the files are as they were, or whole and new; PeerError if they are
        new and the speaker does not answer.
        """

    async def look_after(self) -> None:
        """For ever: what the speaker does not do itself."""


class Confd:
    """One node's rendering; `environment` gives CALICO_ROUTER_ID and the folder of passwords.

    `kubernetes` has Services and Secrets, if anything has.
    """

    def __init__(
        self, backend: Backend, node: str, environment: Mapping[str, str], kubernetes: Backend | None = None
    ) -> None:
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
        self._secrets_namespace = secrets.namespace(environment)
        self._kube_node = environment.get("CALICO_K8S_NODE_REF", "")
        self._secrets: dict[tuple[str, str], bytes] = {}  # (Secret, key) -> password, as last rendered
        self._statuses = Paths.from_env(environment).endpoint_status
        self._local_peers: tuple[LocalPeer, ...] = ()  # as last rendered
        self._speaking = speaker(environment)
        self._speaker: Speaker = Bird(environment) if self._speaking == "bird" else files.ExaBgp()
        self._health = HealthSender("confd", environment)
        self._rendered = False  # once at least
        self._snapshot = Snapshot()
        self._whole = False  # the snapshot is all there is; half of one would take sessions and routes away
        self._dirty = asyncio.Event()
        self.beside = Beside(kubernetes, self._dirty.set)
        self._told: set[str] = set()  # problems that were logged and still hold
        self._retry = Retry(_RETRY)
        self._waiting = False  # for the API

    async def watch(self) -> None:
        """For ever: keep the snapshot; have it rendered whenever it is whole and has changed."""
        self._snapshot, self._whole = Snapshot(), False
        syncer = Syncer(self._backend, listings(self._node), check=validate.check_stored)
        async with aclosing(syncer.batches()) as batches:
            async for batch in batches:
                self._snapshot.apply(batch.updates)
                self._whole = batch.status is SyncStatus.IN_SYNC
                if self._whole:
                    self._ask()
                self._dirty.set()

    def _ask(self) -> None:
        """Have that followed which the snapshot names."""
        files = secrets.read(self._snapshot, self._secrets_folder, [])
        asked = secrets.wanted(self._snapshot, files, self._secrets_namespace)
        self.beside.want([*service_listings(self._snapshot, self._cluster_ips), *asked])

    async def render(self) -> None:
        """For ever: bring the files up to date with the snapshot."""
        self._dirty.set()  # an earlier run may have failed amid it
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_SETTLE)
            self._dirty.clear()
            if not self._whole:
                continue
            if self._waits():  # that it is refused is no event
                asyncio.get_running_loop().call_later(_UNSETTLED, self._dirty.set)
                continue
            if not await self.render_once():
                asyncio.get_running_loop().call_later(self._retry.wait(), self._dirty.set)
            else:
                self._retry.reset()

    def _waits(self) -> bool:
        """Whether the files must wait for the API; said when it begins."""
        awaited = self.beside.awaited
        if awaited and not self._waiting:
            told = ", ".join(awaited)
            _log.info("the files stay as they are until the Kubernetes API has told of %s", told)
        self._waiting = bool(awaited)
        return self._waiting

    async def render_once(self) -> bool:
        """Whether the files are what they should be now."""
        try:
            unreadable: list[str] = []
            self._secrets = self._passwords(unreadable)
            self._local_peers = localpeers.read(self._statuses)
            made = context.build(
                self._snapshot.with_services(self.beside.objects()),
                self._node,
                self._router_id,
                self._secrets,
                self._felix_local,
                self._cluster_ips,
                self._prefix_limit,
                self._kube_node,
                self._speaking,
                self._local_peers,
            )
            changed, unsaid = await self._speaker.install(made)
        except PeerError as err:  # the files are new
            self._tell([str(err)])
            return False
        except (ConfigError, OSError) as err:
            self._tell([f"keeping the files as they are: {err}"])
            return False
        self._rendered = True
        self._tell([*unreadable, *made.problems, *unsaid])
        if changed:
            _log.info("%d sessions, %d blocks, %d pools", *map(len, (made.neighbors, *_parts(made))))
        return True

    def _passwords(self, problems: list[str]) -> dict[tuple[str, str], bytes]:
        files = secrets.read(self._snapshot, self._secrets_folder, problems)
        return secrets.of_api(self.beside.objects()) | files

    async def watch_secrets(self) -> None:
        """For ever: have the files rendered when a file with a password has changed, appeared or gone."""
        while True:
            await asyncio.sleep(_SECRETS)
            self.look_at_secrets()

    def look_at_secrets(self) -> None:
        if self._whole:
            self._ask()
        if self._passwords([]) != self._secrets:
            self._dirty.set()

    async def watch_local_peers(self) -> None:
        """For ever: have the files rendered when a workload that is a BGP peer came, went or moved."""
        while True:
            await asyncio.sleep(_LOCAL_PEERS)
            wanted = any(one.spec.localWorkloadSelector for one in self._snapshot.peers.values())
            if wanted and localpeers.read(self._statuses) != self._local_peers:
                self._dirty.set()

    async def look_after_speaker(self) -> None:
        """For ever."""
        await self._speaker.look_after()

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
        settings = config.from_env()
        client = connect(settings)
        kubernetes = client.backend if settings.type == "kubernetes" else kubernetes_beside(settings)
        confd = Confd(client.backend, node, os.environ, kubernetes)
        loops = [("watching", confd.watch), ("rendering", confd.render), ("following", confd.beside.run)]
        loops += [
            ("reporting", confd.report),
            ("watching secrets", confd.watch_secrets),
            ("watching workloads", confd.watch_local_peers),
        ]
        loops += [("looking after the speaker", confd.look_after_speaker)]
        reporter = StatusReporter(client, node)
        loops += [("watching node statuses", reporter.watch), ("reporting node status", reporter.run)]
        try:
            await tasks.run_until_stopped(loops)
        finally:
            await client.close()
            if kubernetes is not None:
                await kubernetes.close()

    try:
        asyncio.run(run())
    except ConfigError as err:
        _log.critical("confd cannot start: %s", err)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
