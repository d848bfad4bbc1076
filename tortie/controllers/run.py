"""The process: connects, waits to lead, and runs the controllers that the settings name.

A change of the settings stops all of them and starts those that are wanted now: a controller has nothing
in memory that its first round does not find again, but since when it has suspected an address.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tortie.controllers import configuration, health
from tortie.controllers.assembly import Assembly, assemble
from tortie.controllers.compaction import keep_compacting
from tortie.controllers.health import Health
from tortie.controllers.leader import Leader
from tortie.controllers.rounds import keep
from tortie.controllers.settings import Settings
from tortie.core import log, serving, tasks
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ConfigError, DatastoreError
from tortie.datastore import config
from tortie.datastore.client import Client
from tortie.datastore.connect import connect, kubernetes_beside
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.initialize import ensure_initialized
from tortie.datastore.types.cluster import ClusterInformation

if TYPE_CHECKING:
    from tortie.datastore.kubernetes.backend import KubernetesBackend

_log = logging.getLogger(__name__)

_LEASE = "calico-kube-controllers"
_NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"  # where a pod finds its own
_FOLLOW = Backoff(first=0.5, cap=10.0)  # an API server that restarts is back within so much
_QPS = 500.0  # requests a second to the API, Calico's: there is one of us, and it works for all nodes
_INITIALIZE = Backoff(first=1.0, cap=5.0)  # Calico tries every five seconds


def run(env: Mapping[str, str], status_file: str, health_port: int) -> int:
    """Until SIGTERM. Exit code: 0 after a clean stop, 1 if the configuration is wrong."""
    try:
        return asyncio.run(Process(env, status_file).run(health_port))
    except ConfigError as err:
        _log.critical("%s", err)
        return 1


class Process:
    def __init__(self, env: Mapping[str, str], status_file: str) -> None:
        """Raises ConfigError."""
        self._env = env
        self._health = Health(status_file)
        found = config.from_env(env)
        found = replace(
            found,
            k8sClientQPS=found.k8sClientQPS or _QPS,
            k8sClientBurst=found.k8sClientBurst or int(2 * _QPS),
        )
        self._datastore = found.type
        self._client = connect(found)
        api: object = self._client.backend if found.type == "kubernetes" else kubernetes_beside(found, env)
        if api is None:
            raise ConfigError("KUBECONFIG", "", "kube-controllers need a Kubernetes API beside etcd")
        self._api: KubernetesBackend = api  # type: ignore[assignment]
        me = f"{socket.gethostname()}_{uuid.uuid4()}"
        self._leader = Leader(self._api, _namespace(env), _LEASE, me) if _election(env) else None
        self._watching: list[asyncio.Task[None]] = []  # the task that watches health, if it is wanted

    async def run(self, health_port: int) -> int:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        working = asyncio.create_task(self._work(health_port))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()  # only a wrong configuration ends it
        finally:
            await tasks.cancel([working])
            stopping.cancel()
            await self._client.close()
            await self._api.close()
        return 0

    async def _work(self, health_port: int) -> None:
        self._health.set(health.STARTUP, "initialized to false")
        served = (
            [tasks.spawn(serving.serve(health_port, "health", self._answer), "health port")]
            if health_port
            else []
        )
        try:
            await self._initialize()
            self._health.set(health.STARTUP)
            await self._watch_health(True)
            await (self._leader.run(self._lead) if self._leader else self._lead())
        finally:
            await tasks.cancel([*served, *self._watching])

    async def _watch_health(self, on: bool) -> None:
        """Also while another leads: whether we could."""
        if on == bool(self._watching):
            return
        await tasks.cancel(self._watching)
        checks: dict[str, Callable[[], Awaitable[object]]] = {
            health.DATASTORE: partial(_read, self._client),
            health.API: self._api.ready,
        }
        if self._leader:
            checks[health.LEASE] = self._leader.check
        self._watching = [tasks.spawn(self._health.watch(checks), "health")] if on else []
        if not on:
            self._health.forget(checks)

    async def _initialize(self) -> None:
        """What every datastore holds; asked for until it answers."""
        retry = Retry(_INITIALIZE)
        while True:
            try:
                return await ensure_initialized(self._client, "", "k8s")
            except DatastoreError as err:
                if not retry.failures:
                    _log.warning("Failed to initialize datastore, trying again: %s", err)
                self._health.set(health.STARTUP, f"Error initializing datastore: {err}")
            await asyncio.sleep(retry.wait())

    # --- while leading --------------------------------------------------------------------------

    async def _lead(self) -> None:
        """Run what the settings name; if these cannot be followed or answered, begin again."""
        retry = Retry(_FOLLOW)
        while True:
            try:
                return await self._follow()
            except DatastoreError as err:
                if not retry.failures:
                    _log.warning("the configuration cannot be followed, trying again: %s", err)
            await asyncio.sleep(retry.wait())

    async def _follow(self) -> None:
        """Run what the settings name, anew after each change of them."""
        running: list[asyncio.Task[None]] = []
        followed = configuration.settings(self._client, self._env, self._datastore)
        try:
            async with contextlib.aclosing(followed) as changes:
                async for settings in changes:
                    await tasks.cancel(running)
                    await self._watch_health(settings.health)
                    logging.getLogger().setLevel(log.level(settings.log_level))
                    _log.info("running with %s", settings)
                    running = self._start(settings)
        finally:
            await tasks.cancel(running)

    def _start(self, settings: Settings) -> list[asyncio.Task[None]]:
        assembly = assemble(settings, self._client, self._api, self._datastore)
        loops: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            *((f"feed {number}", feed.run) for number, feed in enumerate(assembly.feeds)),
            *((one.name, partial(keep, one)) for one in assembly.controllers),
        ]
        if settings.compaction and isinstance(self._client.backend, EtcdBackend):
            compacting = partial(keep_compacting, self._client.backend, settings.compaction)
            loops.append(("compaction", compacting))
        if settings.metrics_port:
            answer = partial(_metrics, assembly)
            loops.append(("metrics", partial(serving.serve, settings.metrics_port, "metrics", answer)))
        return [asyncio.create_task(tasks.supervise(name, loop), name=name) for name, loop in loops]

    def _answer(self, path: str) -> tuple[bool, str] | None:
        """Alive is who answers; ready is what the status file says."""
        if path == "/liveness":
            return True, "Ready\n"
        if path == "/readiness":
            ready = self._health.ready
            return ready, "Ready\n" if ready else health.reasons(self._health.conditions) + "\n"
        return None


async def _read(client: Client) -> None:
    await client.get(ClusterInformation, "default")


def _metrics(assembly: Assembly, path: str) -> tuple[bool, str] | None:
    return (True, assembly.metrics()) if path == "/metrics" else None


def _namespace(env: Mapping[str, str]) -> str:
    """Where the Lease is: beside the pod, or where Calico's manifests put the controllers."""
    if given := env.get("POD_NAMESPACE"):
        return given
    if os.path.exists(_NAMESPACE_FILE):
        with open(_NAMESPACE_FILE, encoding="utf-8") as source:
            return source.read().strip()
    return "kube-system"


def _election(env: Mapping[str, str]) -> bool:
    """Off, it is for whoever runs a single controller without the right to Leases."""
    given = env.get("TORTIE_LEADER_ELECTION", "enabled").lower()
    if given not in ("enabled", "disabled"):
        raise ConfigError("TORTIE_LEADER_ELECTION", given, "must be enabled or disabled")
    return given == "enabled"
