"""How fast addresses are given out and taken back, on a real etcd: `python bench/ipam.py [scale]`.

Beside it, in the same run: a single etcd transaction (an assignment is two writes and one read in
sequence, so three of these are its lower bound), and the `host-local` plugin of the CNI project, which
writes a local file per address and nothing else.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.support.etcd import Etcd
from tortie.core.errors import ResourceAlreadyExists, UpdateConflict
from tortie.datastore.backend import KV
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import HandleKey, Key
from tortie.datastore.types.ipam import Handle
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.ipam.allocator import Allocator
from tortie.ipam.requests import AutoAssign
from tortie.ipam.view import SyncedView

HOST_LOCAL = "/usr/lib/cni/host-local"


class Counting(EtcdBackend):
    """Counts requests and lost races."""

    def __init__(self, config: DatastoreConfig) -> None:
        super().__init__(config)
        self.requests = self.conflicts = 0

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        return await self._counted(super().create(key, value))

    async def update(self, kv: KV) -> KV:
        return await self._counted(super().update(kv))

    async def delete(self, key: Key, revision: str = "") -> KV:
        return await self._counted(super().delete(key, revision))

    async def get(self, key: Key, revision: str = "") -> KV:
        return await self._counted(super().get(key, revision))

    async def list(self, what: Any, revision: str = "") -> Any:
        return await self._counted(super().list(what, revision))

    async def _counted(self, action: Awaitable[Any]) -> Any:
        self.requests += 1
        try:
            return await action
        except (UpdateConflict, ResourceAlreadyExists):
            self.conflicts += 1
            raise


def show(what: str, times: list[float], wall: float, more: str = "") -> float:
    """Prints one line; returns the median in ms."""
    ordered = sorted(times)
    p50, p99 = statistics.median(ordered) * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3
    print(f"{what:<44} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   {len(times) / wall:7.0f}/s   {more}")
    return p50


async def timed(
    jobs: int, at_once: int, action: Callable[[int], Awaitable[object]]
) -> tuple[list[float], float]:
    """Latencies and wall time of `jobs` actions, `at_once` in flight."""
    times: list[float] = []
    numbers = iter(range(jobs))

    async def work() -> None:
        for number in numbers:
            begun = time.perf_counter()
            await action(number)
            times.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return times, time.perf_counter() - begun


async def prepare(etcd: Etcd, cidr: str, hosts: int, **spec: Any) -> None:
    etcd.wipe()
    client = Client(EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,))))
    await client.create(IPPool(metadata=ObjectMeta(name="pool"), spec=IPPoolSpec(cidr=cidr, **spec)))
    for number in range(hosts):
        await client.create(Node(metadata=ObjectMeta(name=f"host-{number}")))
    await client.close()


async def synced(client: Client, host: str) -> tuple[SyncedView, asyncio.Task[None]]:
    view = SyncedView(client, host)
    task = asyncio.create_task(view.run())
    while not view.in_sync:  # noqa: ASYNC110 - it has no event of its own
        await asyncio.sleep(0.01)
    return view, task


async def one_host(etcd: Etcd, count: int) -> dict[str, float]:
    """Sequential and eight at once, with pools kept in memory; then without."""
    found = {}
    backend = Counting(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
    client = Client(backend)
    times, wall = await timed(count, 1, lambda n: backend.create(HandleKey(f"x{n}"), Handle()))
    found["txn"] = show("one etcd transaction", times, wall)
    for at_once in (1, 8):
        await prepare(etcd, "10.0.0.0/16", 1)
        view, task = await synced(client, "host-0")
        allocator = Allocator(client, "host-0", view=view)

        async def add(n: int, allocator: Allocator = allocator) -> None:
            got = await allocator.auto_assign(AutoAssign("Workload", num4=1, handle=f"net.{n}"))
            got.require_all()

        await add(-1)
        backend.requests = backend.conflicts = 0
        times, wall = await timed(count, at_once, add)
        more = f"{backend.requests / count:.1f} requests, {backend.conflicts / count:.2f} conflicts each"
        found[f"add{at_once}"] = show(f"assign, {at_once} at once", times, wall, more)
        backend.requests = 0
        release = allocator.release_by_handle
        times, wall = await timed(count, at_once, lambda n, release=release: release(f"net.{n}"))  # type: ignore[misc]
        show(
            f"release by handle, {at_once} at once",
            times,
            wall,
            f"{backend.requests / count:.1f} requests each",
        )
        task.cancel()
    await prepare(etcd, "10.0.0.0/16", 1)
    direct = Allocator(client, "host-0")
    times, wall = await timed(
        count, 1, lambda n: direct.auto_assign(AutoAssign("Workload", num4=1, handle=f"net.{n}"))
    )
    show("assign, pools read each time", times, wall)
    await client.close()
    return found


async def crowd(etcd: Etcd, hosts: int, each: int, cidr: str, what: str, **spec: Any) -> None:
    """Many hosts at once, a datastore connection each."""
    await prepare(etcd, cidr, hosts, **spec)
    backends = [Counting(DatastoreConfig(etcdEndpoints=(etcd.endpoint,))) for _ in range(hosts)]
    allocators = [Allocator(Client(b), f"host-{n}") for n, b in enumerate(backends)]
    given: list[str] = []

    async def host(allocator: Allocator) -> list[float]:
        times = []
        for n in range(each):
            begun = time.perf_counter()
            request = AutoAssign("Workload", num4=1, handle=f"{allocator.host}.{n}")
            got = await allocator.auto_assign(request)
            got.require_all()
            given.extend(got.v4.addresses if got.v4 else ())
            times.append(time.perf_counter() - begun)
        return times

    begun = time.perf_counter()
    found = await asyncio.gather(*map(host, allocators))
    wall = time.perf_counter() - begun
    if len(set(given)) != hosts * each:
        raise SystemExit(f"{hosts * each - len(set(given))} addresses were given out twice")
    conflicts = sum(backend.conflicts for backend in backends)
    times = [t for of_host in found for t in of_host]
    show(what, times, wall, f"{conflicts / len(times):.2f} conflicts per assignment")
    for backend in backends:
        await backend.close()


def host_local(count: int) -> float | None:
    """The plugin as a runtime calls it: a process per address."""
    if not os.path.exists(HOST_LOCAL):
        print(f"{HOST_LOCAL} is not installed: no comparison")
        return None
    folder = tempfile.mkdtemp(prefix="tortie-bench-")
    config = {
        "cniVersion": "1.0.0",
        "name": "bench",
        "ipam": {"type": "host-local", "dataDir": folder, "ranges": [[{"subnet": "10.0.0.0/16"}]]},
    }
    times = []
    begun = time.perf_counter()
    for number in range(count):
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": f"c{number}",
            "CNI_NETNS": "/proc/self/ns/net",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
        }
        start = time.perf_counter()
        subprocess.run(
            [HOST_LOCAL],
            input=json.dumps(config),
            env=environment,
            text=True,
            check=True,
            capture_output=True,
        )
        times.append(time.perf_counter() - start)
    p50 = show("host-local, a process per address", times, time.perf_counter() - begun)
    shutil.rmtree(folder)
    return p50


async def main(scale: float) -> None:
    count = int(500 * scale)
    etcd = Etcd().start()
    try:
        found = await one_host(etcd, count)
        await crowd(etcd, 50, int(20 * scale), "10.0.0.0/16", "50 hosts on one /16")
        await crowd(etcd, 50, 1, "10.0.0.0/16", "50 hosts, their first address")
        await crowd(etcd, 50, 1, "10.0.0.0/26", "50 hosts in one single block", blockSize=26)
        local = host_local(min(count, 200))
    finally:
        etcd.close()
    print(f"assignment / 3 transactions          {found['add1'] / (3 * found['txn']):.2f}")
    print(f"8 at once / sequential               {found['add8'] / found['add1']:.2f}")
    if local:
        print(f"assignment / host-local              {found['add1'] / local:.2f}")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))
