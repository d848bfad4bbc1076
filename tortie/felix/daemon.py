"""Starts felix: finds out who and where it is, then runs the daemon until it stops or wants a fresh start."""

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tortie.core import log, tasks
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ConfigError, DatastoreError, KernelError, ValidationError
from tortie.core.files import read_or_none
from tortie.core.health import INTERVAL, HealthSender
from tortie.datastore import config as datastore_config
from tortie.datastore import nodename, validate
from tortie.datastore.backend import Backend
from tortie.datastore.client import Client
from tortie.datastore.connect import connect
from tortie.datastore.felixparams import DEFAULT_FILE, Resolved
from tortie.datastore.keys import ResourceKey, ResourceList
from tortie.datastore.rules import as_read
from tortie.felix import config as felix_config
from tortie.felix import wgbootstrap
from tortie.felix.agent import CONFIG_KINDS, Agent
from tortie.felix.config import RESTART, Config, Sources
from tortie.felix.dataplane.backend import wants_nftables
from tortie.felix.dataplane.driver import Driver
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import Kernel, open_kernel, usable_versions
from tortie.felix.dataplane.options import Options
from tortie.felix.dataplane.routes import Ownership
from tortie.felix.dataplane.sysctls import default_rp_filter

_log = logging.getLogger(__name__)

_RETRY = Backoff(first=0.5, cap=5.0)  # of the datastore at start; Calico's syncer paces itself so


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Exit code: 0 after a stop, RESTART when a fresh start is wanted, 1 for a failure."""
    log.setup("info")
    try:
        return asyncio.run(_run(environment))
    except (ConfigError, KernelError) as err:
        _log.critical("felix cannot go on: %s", err)
        return 1


async def _run(environment: Mapping[str, str]) -> int:
    stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, RESTART)):
        asyncio.get_running_loop().add_signal_handler(number, _set, stop, code)
    health = HealthSender("felix", environment)
    sources = local_sources(environment)
    config, _ = felix_config.resolve(sources)
    log.setup(config.log_severity)
    await guard(config)
    backend = connect(datastore_config.from_env(datastore_environment(environment))).backend
    try:
        loading = asyncio.create_task(_loading(backend, sources, health))
        waiting: list[asyncio.Future[Any]] = [loading, stop]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            loading.cancel()
            return stop.result()
        config, params = loading.result()
        return await _serve(config, params, sources, backend, health, stop)
    finally:
        await backend.close()


def _set(future: asyncio.Future[int], code: int) -> None:
    if not future.done():
        future.set_result(code)


# --- who and where ------------------------------------------------------------------------------


def local_sources(environment: Mapping[str, str]) -> Sources:
    """What can be known without a datastore."""
    path = environment.get("FELIX_CONFIGFILE") or DEFAULT_FILE
    text = (read_or_none(path) or b"").decode("utf-8", "replace")
    sources = Sources("", environment, text)
    named = felix_config.parameters(sources)["FelixHostname"]
    sources.hostname = named or nodename.read(environment)[0]
    return sources


_ETCD = {  # Felix's own variables -> those that every component reads
    "FELIX_DATASTORETYPE": "DATASTORE_TYPE",
    "FELIX_ETCDENDPOINTS": "ETCD_ENDPOINTS",
    "FELIX_ETCDKEYFILE": "ETCD_KEY_FILE",
    "FELIX_ETCDCERTFILE": "ETCD_CERT_FILE",
    "FELIX_ETCDCAFILE": "ETCD_CA_CERT_FILE",
}


def datastore_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with felix's own variables for the datastore in the place of the general ones."""
    found = dict(environment)
    if address := environment.get("FELIX_ETCDADDR"):
        found["ETCD_ENDPOINTS"] = f"{environment.get('FELIX_ETCDSCHEME') or 'http'}://{address}"
    for own, general in _ETCD.items():
        if value := environment.get(own):
            found.pop(f"CALICO_{general}", None)
            found[general] = value
    return found


# --- before the datastore is known ----------------------------------------------------------------


async def guard(config: Config) -> None:
    """Deny all workloads where nothing of ours stands yet, e.g. after a reboot; else change nothing.

    A node's start-up has done so before anything else runs; what stood then may have been flushed since.
    Raises KernelError.
    """
    interfaces = Interfaces()
    nftables = await wants_nftables(config.nft_mode)
    # Only the datastore knows who may send tunnelled packets: the sets that say so do not exist yet.
    settings, nft_settings = (
        replace(one, ipip=False, vxlan=frozenset()) for one in (config.settings, config.nft_settings)
    )
    config = replace(config, settings=settings, nft_settings=nft_settings)
    options = _options(config, nftables)
    kernel = await _open(config, options, interfaces, nftables)
    try:
        driver = Driver(options, kernel, interfaces, clock=time.monotonic, rand=random.random)
        await driver.guard()
    finally:
        await kernel.close()


def _options(config: Config, nftables: bool) -> Options:
    versions = usable_versions(config.ipv6, nftables)
    return config.options(versions, default_rp_filter(), nftables=nftables)


async def _open(config: Config, options: Options, interfaces: Interfaces, nftables: bool) -> Kernel:
    ownership = Ownership(
        interfaces.name_of,
        config.settings.workload_prefixes,
        config.wiring.protocol,
        config.remove_external_routes,
        config.felix_writes_ipip,
    )
    return await open_kernel(
        options.wiring.versions,
        ownership,
        clock=time.monotonic,
        nftables=nftables,
        backend=config.backend,
        append=config.append,
        lock_probe_ms=config.lock_probe_ms,
        offload=config.overlay.offload,
        ipip=config.manages_ipip,
    )


async def _loading(backend: Backend, sources: Sources, health: HealthSender) -> tuple[Config, Resolved]:
    """The configuration with all the datastore has to say about it; waits for as long as that takes."""
    why = ["reading the datastore"]  # as last told
    reporting = asyncio.create_task(_report_waiting(health, why), name="health")
    retry = Retry(_RETRY)
    try:
        while True:
            try:
                await list_configuration(backend, sources)
                config, params = felix_config.resolve(sources)
                if config.datastore_ready:
                    return config, params
                why[0] = "the datastore is not marked ready"
            except DatastoreError as err:
                why[0] = f"the datastore cannot be read: {err}"
            if retry.failures == 0:
                _log.warning("waiting, what is in the kernel stays: %s", why[0])
            await asyncio.sleep(retry.wait())
    finally:
        await tasks.cancel([reporting])


async def _report_waiting(health: HealthSender, why: list[str]) -> None:
    while True:
        health.report(live=True, ready=False, reason=why[0])
        await asyncio.sleep(INTERVAL)


async def list_configuration(backend: Backend, sources: Sources) -> None:
    """All that the datastore adds to what is known locally. Raises DatastoreError."""
    for kind in CONFIG_KINDS:
        listed = await backend.list(ResourceList(kind))
        for kv in listed.items:
            if isinstance(kv.key, ResourceKey) and _is_valid(kv.value):
                sources.take(kind, kv.key.name, as_read(kv.value))


def _is_valid(value: Any) -> bool:
    """As for the agent's syncer, which will say what is wrong."""
    try:
        validate.check_stored(value)
    except ValidationError:
        return False
    return True


# --- with it --------------------------------------------------------------------------------------


async def _serve(
    config: Config,
    params: Resolved,
    sources: Sources,
    backend: Backend,
    health: HealthSender,
    stop: asyncio.Future[int],
) -> int:
    log.setup(config.log_severity)
    for line in params.describe():
        _log.info("%s", line)
    for line in params.ignored:
        _log.warning("%s", line)
    interfaces = Interfaces(config.interface_exclude)
    nftables = await wants_nftables(config.nft_mode)
    _log.info("enforcing with %s", "nftables" if nftables else "iptables")
    options = _options(config, nftables)
    kernel = await _open(config, options, interfaces, nftables)
    agent = Agent(config, params, sources, backend, options, kernel, interfaces, health)
    stop.add_done_callback(lambda done: agent.stop(done.result()))
    try:
        await wgbootstrap.clear_stale(options.wireguard, kernel, Client(backend), sources.node)
        return await agent.run()
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await kernel.close()


if __name__ == "__main__":
    sys.exit(main())
