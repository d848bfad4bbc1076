"""What felix tells others about its endpoints and itself: status files, and keys in the datastore.

CNI and confd watch the files: an endpoint has one while it is up, written after the kernel enforces it.
(Reference: dataplane sheet 7.3; felix/statusrep, libcalico-go/lib/epstatusfile.)
"""

import os
import time
from collections.abc import Callable, Collection, Mapping
from urllib.parse import quote

import msgspec

from tortie.core.errors import DatastoreError, KernelError
from tortie.core.files import write_atomic
from tortie.datastore.backend import Backend
from tortie.datastore.keys import (
    HostEndpointStatusKey,
    HostEndpointStatusList,
    Listing,
    ProcessStatusKey,
    WorkloadStatusKey,
    WorkloadStatusList,
)
from tortie.datastore.types.ipam import EndpointStatus, ProcessStatus
from tortie.felix.calc.model import Workload, WorkloadId

UP, DOWN = "up", "down"
ERROR = "error"  # of a host endpoint that is on no interface
_LEFT_BY_GO = "$&+=:@"  # what Go's url.PathEscape leaves besides letters, digits and -_.~


# --- files --------------------------------------------------------------------------------------


class _Content(msgspec.Struct, omit_defaults=True):
    """One file, with the fields of Calico's."""

    ifaceName: str = ""
    mac: str = ""
    ipv4Nets: tuple[str, ...] = ()
    ipv6Nets: tuple[str, ...] = ()
    bgpPeerName: str = ""


def file_name(ident: WorkloadId) -> str:
    """`k8s default%2Fnginx eth0`"""
    return " ".join(quote(part, safe=_LEFT_BY_GO) for part in ident)


def file_content(workload: Workload, bgp_peer: str = "") -> bytes:
    """`bgp_peer`: the BGPPeer that the workload is one of."""
    nets4, nets6 = workload.nets_of(4), workload.nets_of(6)
    return msgspec.json.encode(_Content(workload.interface, workload.mac, nets4, nets6, bgp_peer))


class StatusFiles:
    """reconcile.Target[str, bytes]: the files of one folder, all of which are ours."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    async def read(self) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            for entry in os.scandir(self._folder):
                if entry.is_file(follow_symlinks=False):
                    with open(entry.path, "rb") as source:
                        found[entry.name] = source.read()
        except OSError as err:
            raise KernelError("read", self._folder, err.errno or 0, err.strerror or str(err)) from err
        return found

    async def apply(self, update: Mapping[str, bytes], delete: Collection[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        for name in delete:
            try:
                os.unlink(os.path.join(self._folder, name))
            except FileNotFoundError:
                continue
            except OSError as err:
                failed[name] = str(err)
        for name, content in update.items():
            try:
                write_atomic(os.path.join(self._folder, name), content)
            except OSError as err:
                failed[name] = str(err)
        return failed

    def same(self, desired: bytes, actual: bytes) -> bool:
        return desired == actual


# --- the datastore ------------------------------------------------------------------------------


StatusKey = WorkloadStatusKey | HostEndpointStatusKey


class StatusKeys:
    """reconcile.Target[StatusKey, str]: the status of each endpoint of this node."""

    def __init__(self, backend: Backend, node: str, region: str) -> None:
        self._backend = backend
        self._lists: tuple[Listing, ...] = (WorkloadStatusList(node, region), HostEndpointStatusList(node))

    async def read(self) -> Mapping[StatusKey, str]:
        found: dict[StatusKey, str] = {}
        try:
            for listing in self._lists:
                for kv in (await self._backend.list(listing)).items:
                    if isinstance(kv.key, WorkloadStatusKey | HostEndpointStatusKey):
                        found[kv.key] = kv.value.status
        except DatastoreError as err:
            raise KernelError("list", "endpoint statuses", text=str(err)) from err
        return found

    async def apply(
        self, update: Mapping[StatusKey, str], delete: Collection[StatusKey]
    ) -> Mapping[StatusKey, str]:
        failed: dict[StatusKey, str] = {}
        for key in [*delete, *update]:
            try:
                if key in update:
                    await self._backend.apply(key, EndpointStatus(status=update[key]))
                else:
                    await self._backend.delete(key)
            except DatastoreError as err:
                failed[key] = str(err)
        return failed

    def same(self, desired: str, actual: str) -> bool:
        return desired == actual


class ProcessReports:
    """Felix's sign of life in the datastore: one key that fades without us, one that stays."""

    def __init__(
        self, backend: Backend, node: str, region: str, ttl: float, now: Callable[[], float] = time.time
    ) -> None:
        self._backend, self._ttl, self._now = backend, ttl, now
        self._keys = [ProcessStatusKey(node, last, region) for last in (False, True)]
        self._started = now()
        self._first = True

    async def report(self) -> None:
        """Raises DatastoreError."""
        now = self._now()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        status = ProcessStatus(time=stamp, uptime=now - self._started, first_update=self._first)
        for key in self._keys:
            await self._backend.apply(key, status, None if key.last else self._ttl)
        self._first = False
