"""50 nodes fill a /16 to its last address, on a real etcd: `python bench/ipam_fill.py [CIDR [NODES [EACH]]]`.

Each node is an allocator with a connection of its own, and asks for EACH (8) addresses time after time,
until there are none. Then it is checked that every address of the pool was given once and is in the
datastore as given; then all are given back, and nothing must be left.

One process plays all nodes, so the times are those of its one core: when the last addresses are fought
for, each allocation of each node reads every block of the pool. The counts are what would be elsewhere.
"""

import asyncio
import contextlib
import ipaddress
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from ipam import Counting, prepare, show, synced

from tests.support.etcd import Etcd
from tortie.core.errors import DatastoreUnreachable, ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.keys import BlockList, HandleList
from tortie.ipam import block as blocks
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.requests import AutoAssign
from tortie.ipam.soundness import violations
from tortie.ipam.view import SyncedView

_LATE = 0.99  # of the addresses: what comes after is the scramble for the last ones
_MANY_BLOCKS = 1 << 16  # per node: Calico's limit of 20 would keep 50 nodes from filling 1,024 blocks


class Filling:
    """What was given to whom, and what it cost."""

    def __init__(self, size: int, each: int) -> None:
        self.size = size
        self.each = each  # addresses of one request
        self.requests = 0
        self.unanswered = 0  # requests that were done again, since etcd had not answered in time
        self.given: dict[str, str] = {}  # address -> handle
        self.times: list[float] = []
        self.late: list[float] = []  # the part of `times` when nearly all was given

    async def one_node(self, allocator: Allocator) -> None:
        number = 0
        while True:
            number += 1
            handle = f"net.{allocator.host}.{number}"
            begun = time.perf_counter()
            request = AutoAssign("Workload", num4=self.each, handle=handle, max_blocks=_MANY_BLOCKS)
            got = await allocator.auto_assign(request)
            if isinstance(got.error, DatastoreUnreachable):  # as a pod's ADD fails, and is done again
                self.unanswered += 1
                with contextlib.suppress(ResourceDoesNotExist):
                    await allocator.release_by_handle(handle)
                continue
            if got.error is not None:
                raise got.error
            if not got.v4 or not got.v4.addresses:
                return
            self.took(time.perf_counter() - begun)
            for text in got.v4.addresses:
                self.give(text.partition("/")[0], handle)

    def took(self, seconds: float) -> None:
        self.requests += 1
        self.times.append(seconds)
        if len(self.given) > _LATE * self.size:
            self.late.append(seconds)

    def give(self, address: str, handle: str) -> None:
        if address in self.given:
            raise SystemExit(f"{address} was given to {self.given[address]} and to {handle}")
        self.given[address] = handle


class Shared:
    """One view for all nodes: each following the datastore for itself would be more load than the rest."""

    def __init__(self, view: SyncedView) -> None:
        self.facts = view.facts

    async def labels(self, node: str) -> Mapping[str, str]:
        return {}


async def stored(client: Client) -> tuple[dict[str, str], int]:
    """Address -> handle as the datastore has it, and how many handles there are; blocks must be sound."""
    found: dict[str, str] = {}
    for kv in (await client.backend.list(BlockList())).items:
        if wrong := list(violations(kv.value)):
            raise SystemExit(f"{kv.key}: {'; '.join(wrong)}")
        for ordinal in range(len(kv.value.allocations)):
            attribute = blocks.attribute_at(kv.value, ordinal)
            if attribute is not None:
                found[blocks.address_at(kv.value, ordinal)] = attribute.handle_id or ""
    return found, len((await client.backend.list(HandleList())).items)


async def main(cidr: str, nodes: int, each: int) -> None:
    etcd = Etcd().start()
    try:
        await prepare(etcd, cidr, nodes)
        backends = [Counting(DatastoreConfig(etcdEndpoints=(etcd.endpoint,))) for _ in range(nodes)]
        clients = [Client(backend) for backend in backends]
        view, following = await synced(clients[0], "host-0")
        allocators = [Allocator(client, f"host-{n}", view=Shared(view)) for n, client in enumerate(clients)]
        await fill(Filling(ipaddress.ip_network(cidr).num_addresses, each), cidr, backends, allocators)
        following.cancel()
        for backend in backends:
            await backend.close()
    finally:
        etcd.close()


async def fill(filling: Filling, cidr: str, backends: list[Counting], allocators: list[Allocator]) -> None:
    begun = time.perf_counter()
    await asyncio.gather(*map(filling.one_node, allocators))
    wall = time.perf_counter() - begun
    count = len(filling.given)
    costs = {name: sum(getattr(b, name) for b in backends) / count for name in ("conflicts", "requests")}
    more = f"{costs['conflicts']:.3f} conflicts and {costs['requests']:.1f} requests per address"
    show(f"{len(allocators)} nodes fill {cidr}", filling.times, wall, more)
    print(f"{filling.each} addresses a request, {count / wall:,.0f}/s, {filling.unanswered} done again")
    show(f"the last {1 - _LATE:.0%} of it", filling.late, wall)
    if missing := filling.size - count:
        raise SystemExit(f"{missing} of {filling.size} addresses were never given")
    held, handles = await stored(Client(backends[0]))
    if held != filling.given or handles != filling.requests:
        raise SystemExit(f"{len(held)} addresses and {handles} handles are stored, {count} were given")
    print(f"every address of {filling.size:,} given once, and stored as given")
    await give_back(filling, allocators)
    held, handles = await stored(Client(backends[0]))
    if held or handles:
        raise SystemExit(f"{len(held)} addresses and {handles} handles are left")
    print("all given back, no address and no handle left")


async def give_back(filling: Filling, allocators: list[Allocator]) -> None:
    begun = time.perf_counter()

    async def of_node(allocator: Allocator) -> None:
        prefix = f"net.{allocator.host}."
        mine: Any = [ReleaseRequest(a, h) for a, h in filling.given.items() if h.startswith(prefix)]
        outcome = await allocator.release_ips(mine)
        if outcome.error is not None:
            raise outcome.error

    await asyncio.gather(*map(of_node, allocators))
    wall = time.perf_counter() - begun
    print(f"given back at {len(filling.given) / wall:,.0f}/s")


if __name__ == "__main__":
    given = sys.argv[1:] + ["10.0.0.0/16", "50", "8"][len(sys.argv) - 1 :]
    asyncio.run(main(given[0], int(given[1]), int(given[2])))
