"""Tells what has become of endpoints, and that felix lives: in the log, in files, in the datastore."""

import asyncio
import logging
import time
from collections.abc import Mapping
from math import inf

from tortie.core.errors import DatastoreError
from tortie.core.reconcile import Reconciler
from tortie.datastore.backend import Backend
from tortie.datastore.keys import NO_REGION, HostEndpointStatusKey, WorkloadStatusKey
from tortie.felix.calc.model import Workload, WorkloadId
from tortie.felix.config import Config
from tortie.felix.dataplane.driver import ON_NO_INTERFACE
from tortie.felix.status import (
    DOWN,
    ERROR,
    UP,
    ProcessReports,
    StatusFiles,
    StatusKey,
    StatusKeys,
    file_content,
    file_name,
)

_log = logging.getLogger(__name__)

_RECHECK_FILES = 10.0  # seconds between looks at the status files, Calico's
_FULL_REPORT = 180  # status keys are listed again after so many delays, Calico's
_FIRST_REPORT = 10.0  # seconds from the start to the first report about the process


class EndpointReports:
    """Whether each endpoint is up. A trouble is why one is not, '' if it is."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._workloads: Mapping[WorkloadId, str] = {}  # endpoint -> its trouble, as last told
        self._hosts: Mapping[str, str] = {}  # host endpoint -> the same
        self._enforced = False
        self._files = Reconciler("endpoint status files", StatusFiles(config.status_folder))
        self._files_at = -inf  # when the files were last compared with the folder

    def tell(self, workloads: Mapping[WorkloadId, str], hosts: Mapping[str, str], *, enforced: bool) -> None:
        """All troubles as they are now; `enforced` once the kernel has been written for the first time."""
        for ident, why in workloads.items():
            if self._workloads.get(ident) != why:
                _log.info("endpoint %s is %s", ident, f"not up: {why}" if why else "up")
        for name, why in hosts.items():
            if self._hosts.get(name) != why:
                _log.info("host endpoint %s is %s", name, f"not up: {why}" if why else "up")
        self._workloads, self._hosts, self._enforced = workloads, hosts, enforced

    def files_due(self) -> float:
        """When the status files are to be compared with their folder again."""
        return self._files_at + _RECHECK_FILES if self._enforced and self._config.status_folder else inf

    async def write_files(self, up: Mapping[WorkloadId, Workload], peers: Mapping[str, str]) -> None:
        """For these endpoints, and no others; `peers` is interface -> BGPPeer."""
        self._files.want(
            {file_name(ident): file_content(one, peers.get(one.interface, "")) for ident, one in up.items()}
        )
        if time.monotonic() >= self._files_at + _RECHECK_FILES:
            self._files_at = time.monotonic()
            self._files.forget()
        await self._files.sync()

    async def write_keys(self, backend: Backend) -> None:
        """Status keys in the datastore, at most one pass per delay."""
        config = self._config
        region = _region(config)
        keys = Reconciler("endpoint status keys", StatusKeys(backend, config.node, region))
        delay = max(config.endpoint_report_delay, 0.1)
        passes = 0
        while True:
            await asyncio.sleep(delay)
            if not self._enforced:
                continue
            passes += 1
            if passes % _FULL_REPORT == 0:
                keys.forget()
            wanted: dict[StatusKey, str] = {
                WorkloadStatusKey(config.node, *ident, region): DOWN if why else UP
                for ident, why in self._workloads.items()
            }
            for name, why in self._hosts.items():
                status = ERROR if why == ON_NO_INTERFACE else DOWN if why else UP
                wanted[HostEndpointStatusKey(config.node, name)] = status
            keys.want(wanted)
            await keys.sync()


async def report_process(config: Config, backend: Backend) -> None:
    """Keep saying in the datastore that felix lives."""
    reports = ProcessReports(backend, config.node, _region(config), config.report_ttl)
    await asyncio.sleep(min(_FIRST_REPORT, config.report_interval))
    complained = False
    while True:
        try:
            await reports.report()
            complained = False
        except DatastoreError as err:
            if not complained:
                _log.warning("cannot report to the datastore, trying again: %s", err)
            complained = True
        await asyncio.sleep(config.report_interval)


def _region(config: Config) -> str:
    return f"region-{config.region}" if config.region else NO_REGION
