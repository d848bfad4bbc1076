"""One run of felix: follows the datastore and the kernel, and makes the one obey the other.

Three tasks share one thread. One feeds the datastore's changes to the calculation, one the kernel's events
to the picture of interfaces; both only wake the third, which takes what changed and applies it. Any of them
that fails ends the process: a fresh start reads everything anew and costs no packet, where a loop that goes
on with half a picture could.

Losing the datastore changes nothing in the kernel. Stopping does not either.
"""

import asyncio
import errno
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from tortie.core import serving, tasks
from tortie.core.errors import ConfigError, DatastoreError, KernelError
from tortie.core.exposition import Metric
from tortie.core.health import INTERVAL, UNREADY_INTERVAL, HealthSender
from tortie.datastore import validate
from tortie.datastore.backend import Backend
from tortie.datastore.client import Client
from tortie.datastore.felixparams import Resolved
from tortie.datastore.keys import (
    AffinityList,
    BlockList,
    Listing,
    ResourceKey,
    ResourceList,
    WorkloadStatusList,
)
from tortie.datastore.nativekeys import SliceList
from tortie.datastore.rules import as_read
from tortie.datastore.syncer import Batch, Syncer, SyncStatus, Update
from tortie.felix import config as felix_config
from tortie.felix import garbage, metrics, mtu, wgkeys
from tortie.felix.announcements import Listener
from tortie.felix.calc.graph import Calculation
from tortie.felix.calc.model import WorkloadId
from tortie.felix.calc.policies import KINDS as POLICY_KINDS
from tortie.felix.config import RESTART, Config, Sources
from tortie.felix.dataplane.backend import wants_nftables
from tortie.felix.dataplane.driver import Driver
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import Kernel
from tortie.felix.dataplane.options import Options
from tortie.felix.localbgp import LocalBGP
from tortie.felix.reports import EndpointReports, report_process
from tortie.felix.throttle import Throttle
from tortie.felix.watch import InterfaceWatch
from tortie.linux import links, process

_log = logging.getLogger(__name__)

CONFIG_KINDS = ("FelixConfiguration", "Node", "ClusterInformation", "BGPConfiguration", "IPPool")
_KINDS = (
    *CONFIG_KINDS,
    "Tier",
    *POLICY_KINDS,
    "Profile",
    "WorkloadEndpoint",
    "HostEndpoint",
    "LiveMigration",
    "BGPPeer",
    "NetworkSet",
    "GlobalNetworkSet",
)
_RECHECK_DATAPLANE = 15.0  # seconds between looks at kube-proxy's choice, Calico's
_RECHECK_MTU = 30.0  # seconds between looks at the host's MTU, Calico's
_KEYS_AGAIN = 2.0  # seconds, to twice that, until keys that could not be published are tried again, Calico's


class Agent:
    """From a known configuration to the next reason to start again."""

    def __init__(
        self,
        config: Config,
        params: Resolved,
        sources: Sources,
        backend: Backend,
        options: Options,
        kernel: Kernel,
        interfaces: Interfaces,
        health: HealthSender,
    ) -> None:
        self._config, self._params, self._sources = config, params, sources
        self._backend, self._interfaces, self._health = backend, interfaces, health
        self._nftables, self._netlink = kernel.nftables, kernel.netlink
        self._calc = Calculation(config.inputs())
        self._driver = Driver(options, kernel, interfaces, clock=time.monotonic, rand=random.random)
        self._watch = InterfaceWatch(
            interfaces,
            kernel.netlink,
            interval=config.interface_interval,
            noticed=self._wake,
            link_gone=self._driver.interface_gone,
            route_seen=self._driver.route_seen,
            lost=self._driver.forget,
        )
        self._listener = Listener(self._announced)
        self._keys_doubted = asyncio.Event()  # the Node, or what is in the kernel, may say something else
        self._local_bgp = LocalBGP(config.node, kernel.ownership.bgp_peers, config.settings.workload_prefixes)
        self._reports = EndpointReports(config)
        self._woken = asyncio.Event()
        self._passed = asyncio.Event()  # a pass over the dataplane ended
        self._in_sync = False  # once is enough: what was known stays enforced through an outage
        self._started = self._applied = False
        self._began_at = self._pass_began = time.monotonic()
        self._passing = False
        self._problems: dict[str, str] = {}  # object -> why it is not enforced as written, as last told
        self._meter = None if config.metrics_port is None else metrics.Meter()
        self._routes = kernel.routes
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def _wake(self) -> None:
        self._woken.set()

    async def run(self) -> int:
        """Until stop() or a task's failure, which is raised. Returns the exit code."""
        garbage.start()
        loops = {
            "datastore": self._follow_datastore(),
            "interfaces": self._watch.run(),
            "dataplane": self._apply_changes(),
            "look ahead": self._look_ahead(),
            "health": self._report_health(),
            "WireGuard keys": self._publish_keys(),
        }
        if self._config.pod_mtu is not None:
            loops["MTU"] = self._publish_mtu(self._config.pod_mtu)
        reports = self._backend.serves(WorkloadStatusList(self._config.node))  # no place for them, no reports
        if reports and self._config.endpoint_reports:
            loops["endpoint reports"] = self._reports.write_keys(self._backend)
        if self._config.nft_mode.lower() == "auto":
            loops["choice of dataplane"] = self._follow_kube_proxy()
        if reports and self._config.report_interval > 0:
            loops["process reports"] = report_process(self._config, self._backend)
        if (port := self._config.metrics_port) is not None:
            answer = metrics.answers(port, self._figures)
            secured = partial(metrics.tls, port)
            loops["metrics"] = serving.serve(port.number, "metrics", answer, port.host, secured)
        running = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        waiting: list[asyncio.Future[Any]] = [*running, self._exit]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in running if task.done()]
        await tasks.cancel(task for task in running if not task.done())
        self._listener.close()
        for task in failed:
            task.result()  # raises what ended it
        return self._exit.result()

    def stop(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)

    # --- the datastore --------------------------------------------------------------------------

    async def _follow_datastore(self) -> None:
        async for batch in Syncer(self._backend, self._listings(), check=validate.check_stored).batches():
            began = time.monotonic()
            if self._take(batch):
                self._review_configuration()
            if self._meter is not None:
                self._meter.batch(batch, time.monotonic() - began)
            if batch.status is SyncStatus.IN_SYNC and not self._in_sync:
                self._in_sync = True
                _log.info("the datastore is in sync after %.2f s", time.monotonic() - self._began_at)
            self._wake()

    def _listings(self) -> list[Listing]:
        listings: list[Listing] = [ResourceList(kind) for kind in _KINDS]
        listings.append(AffinityList(self._config.node))
        if self._config.needs_blocks:
            listings.append(BlockList())
        listings.append(SliceList())
        return [what for what in listings if self._backend.serves(what)]

    def _take(self, batch: Batch) -> bool:
        """Pass a batch on; whether it touches the configuration."""
        touches = False
        for update in map(_as_read, batch.updates):
            if isinstance(update.key, ResourceKey):
                touches |= self._sources.take(update.key.kind, update.key.name, update.value)
                self._keys_doubted.set()
            self._calc.update(update)
            self._local_bgp.take(update)
        return touches

    def _review_configuration(self) -> None:
        """A configuration that felix would behave differently under means a fresh start."""
        try:
            config, params = felix_config.resolve(self._sources)
        except ConfigError as err:
            _log.error("keeping the configuration as it was: %s", err)
            return
        for line in params.ignored:
            if line not in self._params.ignored:
                _log.warning("%s", line)
        if config == self._config:
            self._params = params
            return
        changed = sorted(params.changed(self._params)) or ["IP pools or BGP configuration"]
        _log.info("the configuration changed (%s), starting again", ", ".join(changed))
        self.stop(RESTART)

    # --- the kernel -----------------------------------------------------------------------------

    async def _apply_changes(self) -> None:
        throttle = Throttle(time.monotonic())
        while True:
            await self._wait_for_work()
            if not (self._in_sync and self._watch.scanned):
                continue
            await asyncio.sleep(throttle.wait(time.monotonic()))
            self._pass_began, self._passing = time.monotonic(), True
            self._take_changes()
            done = await self._driver.apply()
            if self._meter is not None:
                self._meter.applied(time.monotonic() - self._pass_began, done, first=not self._applied)
            if done and not self._applied:
                self._applied = True
                _log.info("first apply done %.2f s after the start", time.monotonic() - self._began_at)
                garbage.settled()
            await self._publish()
            self._keys_doubted.set()
            self._passing = False
            self._passed.set()

    async def _look_ahead(self) -> None:
        """Rules and sets are read again beside the passes: a change must not wait for that."""
        while True:
            await _until(self._passed, self._driver.look_ahead_due())
            if time.monotonic() >= self._driver.look_ahead_due():
                await self._driver.look_ahead()
                self._wake()

    async def _wait_for_work(self) -> None:
        due = inf
        if self._in_sync and self._watch.scanned:  # before, there is nothing that could be done in time
            due = min(self._driver.next_due(), self._interfaces.next_due(), self._reports.files_due())
        await _until(self._woken, due)

    def _take_changes(self) -> None:
        """Synchronous, so that what is rendered is one moment's state."""
        names = self._interfaces.settle(time.monotonic())
        touched = self._calc.flush()
        self._local_bgp.note(self._calc.state.workloads.values(), self._sources.node)
        self._tell_problems()
        if not self._started:
            self._started = True
            self._driver.start(self._calc.state)
        else:
            if touched:
                self._driver.update(touched)
            self._driver.interfaces_changed(names)
        self._listener.follow(self._driver.migration_targets())

    def _announced(self, ident: WorkloadId) -> None:
        self._driver.announced(ident)
        self._wake()

    def _tell_problems(self) -> None:
        """Each problem once, and that it is gone."""
        now = self._calc.state.problems
        for where in self._problems.keys() - now.keys():
            _log.info("%s is all right again", where)
        for where, why in now.items():
            if self._problems.get(where) != why:
                _log.warning("%s: %s", where, why)
        self._problems = dict(now)

    async def _follow_kube_proxy(self) -> None:
        """When it changes over to nftables, or back, so do we: by a fresh start."""
        while True:
            await asyncio.sleep(_RECHECK_DATAPLANE)
            try:
                nftables = await wants_nftables(self._config.nft_mode)
            except KernelError as err:
                _log.warning("cannot see what kube-proxy uses, keeping the dataplane: %s", err)
                continue
            if nftables != self._nftables:
                _log.info("kube-proxy uses %s now, starting again", "nftables" if nftables else "iptables")
                self.stop(RESTART)

    async def _publish_mtu(self, wanted: mtu.Wanted) -> None:
        while True:
            try:
                mtu.publish(wanted, links.dump(self._netlink))
            except KernelError as err:
                if err.errno != errno.EINTR:  # else interfaces come and go: the next look will do
                    raise
            await asyncio.sleep(_RECHECK_MTU)

    # --- status ---------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Say which endpoints are up, once the kernel has been written for the first time."""
        troubles = self._driver.endpoint_troubles()
        self._reports.tell(troubles, self._driver.host_troubles(), enforced=self._applied)
        if not self._applied or not self._config.status_folder:
            return
        workloads = self._calc.state.workloads
        up = {ident: workloads[ident] for ident, why in troubles.items() if not why and ident in workloads}
        self._local_bgp.set_addresses(self._netlink, self._interfaces, up.values())
        await self._reports.write_files(up, self._local_bgp.peers)

    async def _publish_keys(self) -> None:
        """Keep this node's public keys in its Node, where they may also be lost."""
        client, complained = Client(self._backend), False
        while True:
            await _until(self._keys_doubted, inf)
            node, keys = self._sources.node, self._driver.wireguard.keys()
            if node is None or wgkeys.with_keys(node.status, keys) == node.status:
                continue
            try:
                await wgkeys.publish(client, self._config.node, keys)
                complained = False
            except DatastoreError as err:
                if not complained:
                    _log.warning("cannot publish WireGuard keys, trying again: %s", err)
                complained = True
                await asyncio.sleep(_KEYS_AGAIN * (1 + random.random()))
                self._keys_doubted.set()

    def _figures(self) -> Iterator[Metric]:
        if self._meter is not None:
            yield from self._meter.metrics(self._calc.state)
        routes = len(self._routes.wanted)
        yield from metrics.dataplane(self._driver.written(), routes, nftables=self._nftables)
        yield from metrics.commands(process.ran)

    async def _report_health(self) -> None:
        while True:
            stuck = self._passing and time.monotonic() - self._pass_began > self._config.watchdog
            reason = "one pass over the dataplane does not end" if stuck else self._unready()
            self._health.report(live=not stuck, ready=not reason, reason=reason)
            await asyncio.sleep(INTERVAL if self._applied else UNREADY_INTERVAL)

    def _unready(self) -> str:
        """Why felix is not ready, '' if it is."""
        if not self._in_sync:
            return "waiting for the datastore"
        if not self._watch.scanned:
            return "waiting for the first scan of interfaces"
        if not self._applied:
            failures = self._driver.failures()
            first = next(iter(failures.items()), None)
            return f"first apply not done: {first[0]}: {first[1]}" if first else "first apply under way"
        return self._driver.tunnel_trouble()


async def _until(event: asyncio.Event, due: float) -> None:
    """Until the event, which is over then, or the clock's reading; inf: only the event."""
    try:
        async with asyncio.timeout(None if due == inf else max(0.0, due - time.monotonic())):
            await event.wait()
    except TimeoutError:
        pass  # that the time has come is as good as the event
    event.clear()


def _as_read(update: Update) -> Update:
    """What clients would be given: data of old releases looks different where it is stored."""
    if update.value is None or not isinstance(update.key, ResourceKey):
        return update
    return replace(update, value=as_read(update.value))
