"""A small cluster's IPAM for tests: pools and nodes made in one line, and everything it must keep true."""

import asyncio
import inspect
from collections.abc import Collection, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Protocol

import msgspec
from msgspec import structs

from tests.support.memory_backend import MemoryBackend
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.backend import Backend
from tortie.datastore.client import Client
from tortie.datastore.keys import AffinityList, BlockKey, BlockList, HandleList
from tortie.datastore.types.ipam import DEFAULT_IPAM_CONFIG, AllocationAttribute, Block, Handle
from tortie.datastore.types.ippool import IPPool, IPPoolSpec, IPReservation, IPReservationSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.ipam import block as blocks
from tortie.ipam.allocator import Allocator
from tortie.ipam.names import WINDOWS_RESERVED_HANDLE, clean_handle
from tortie.ipam.requests import AutoAssign, AutoAssigned
from tortie.ipam.soundness import violations

START = 1_800_000_000_000_000_000  # 2027, in ns: sequence numbers beyond 2^53


class Clock:
    """Unix time in ns that passes only when told, and by 1 µs at each look."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        self.now += 1000
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1_000_000_000)


FIRST = "10.0.0.192/26"  # where host `a` starts in 10.0.0.0/24; `b` starts at 10.0.0.64/26


def run(story: Coroutine[Any, Any, None]) -> None:
    async def told() -> None:
        try:
            await story
        finally:
            await _ground[-1].close()

    asyncio.run(told())


async def no_sleep(_seconds: float) -> None:
    return None


class Ground(Protocol):
    """The datastore that worlds are made on."""

    def backend(self) -> Backend:
        """A new client of it; of one that is in memory, a new one."""

    async def node(self, client: Client, name: str, labels: dict[str, str]) -> Node: ...

    async def label(self, client: Client, name: str, labels: dict[str, str]) -> None:
        """These and no others."""

    async def close(self) -> None:
        """All clients that were made of it."""


class InMemory:
    def backend(self) -> Backend:
        return MemoryBackend()

    async def node(self, client: Client, name: str, labels: dict[str, str]) -> Node:
        return await client.create(Node(metadata=ObjectMeta(name=name, labels=labels)))

    async def label(self, client: Client, name: str, labels: dict[str, str]) -> None:
        node = await client.get(Node, name)
        await client.update(node.with_metadata(labels=labels))

    async def close(self) -> None:
        return None


_ground: list[Ground] = [InMemory()]  # the last one counts


@contextmanager
def on(ground: Ground) -> Iterator[None]:
    """Worlds are made on this ground meanwhile: the same stories elsewhere."""
    _ground.append(ground)
    try:
        yield
    finally:
        _ground.pop()


@dataclass
class World:
    backend: Backend = field(default_factory=lambda: _ground[-1].backend())
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.client = Client(self.backend)

    # --- making it ------------------------------------------------------------------------------

    async def pool(self, name: str, cidr: str, block_size: int = 0, **spec: Any) -> IPPool:
        made = IPPool(
            metadata=ObjectMeta(name=name), spec=IPPoolSpec(cidr=cidr, blockSize=block_size, **spec)
        )
        return await self.client.create(made)

    async def node(self, name: str, **labels: str) -> Node:
        return await _ground[-1].node(self.client, name, labels)

    async def nodes(self, *names: str) -> None:
        for name in names:
            await self.node(name)

    async def label(self, name: str, **labels: str) -> None:
        await _ground[-1].label(self.client, name, labels)

    async def reserve(self, name: str, *cidrs: str) -> None:
        spec = IPReservationSpec(reservedCIDRs=cidrs)
        await self.client.create(IPReservation(metadata=ObjectMeta(name=name), spec=spec))

    async def configure(self, **settings: Any) -> None:
        config = msgspec.structs.replace(DEFAULT_IPAM_CONFIG, **settings)
        await self.allocator("setup").set_config(config)

    def allocator(self, host: str, client: Client | None = None, **options: Any) -> Allocator:
        defaults: dict[str, Any] = {"clock": self.clock, "sleep": no_sleep, "rand": lambda: 0.5}
        return Allocator(client or self.client, host, **(defaults | options))

    async def raw(self, path: str) -> bytes:
        """What is stored there, byte for byte as far as the datastore keeps bytes."""
        found: Any = self.backend.raw(path)  # type: ignore[attr-defined]
        data: bytes = await found if inspect.isawaitable(found) else found
        return data

    # --- looking at it --------------------------------------------------------------------------

    async def blocks(self) -> dict[str, Block]:
        return {kv.value.cidr: kv.value for kv in (await self.backend.list(BlockList())).items}

    async def block(self, cidr: str) -> Block:
        value: Block = (await self.backend.get(BlockKey(cidr))).value
        return value

    async def affinities(self) -> dict[tuple[str, str], str]:
        """(owner, CIDR) -> state."""
        found = {}
        for kind in ("host", "virtual"):
            for kv in (await self.backend.list(AffinityList(owner_type=kind))).items:
                key: Any = kv.key
                found[f"{key.owner_type}:{key.host}", key.cidr] = kv.value.state
        return found

    async def handles(self) -> dict[str, dict[str, int]]:
        """Handle ID -> block CIDR -> count."""
        found = {}
        for kv in (await self.backend.list(HandleList())).items:
            key, value = kv.key, kv.value
            assert isinstance(value, Handle)
            found[key.handle] = value.block  # type: ignore[union-attr]
        return found

    async def owners(self) -> dict[str, str]:
        """Address -> handle, of all addresses that are allocated and not cooling down."""
        return allocated((await self.blocks()).values())


async def cluster(cidr: str = "10.0.0.0/24", block_size: int = 26, *hosts: str, **config: Any) -> World:
    """One pool and some nodes; `a` and `b` unless others are named."""
    world = World()
    await world.pool("pool", cidr, block_size)
    await world.nodes(*(hosts or ("a", "b")))
    await world.configure(**config)
    return world


def allocated(of: Iterable[Block]) -> dict[str, str]:
    found: dict[str, str] = {}
    for block in of:
        net = ip_network(block.cidr)
        for ordinal in range(len(block.allocations)):
            attribute = blocks.attribute_at(block, ordinal)
            if attribute is not None and attribute.releasedAt is None:
                address = str(net[ordinal])
                assert address not in found, f"{address} is in two blocks"
                found[address] = clean_handle(attribute.handle_id)
    return found


def true_counts(of: Iterable[Block]) -> dict[str, dict[str, int]]:
    """What handles would say if they were exact: handle -> block CIDR -> count."""
    counts: dict[str, dict[str, int]] = {}
    for block in of:
        for handle in allocated([block]).values():
            if handle and handle != WINDOWS_RESERVED_HANDLE:  # that one is no object
                of_handle = counts.setdefault(handle, {})
                of_handle[block.cidr] = of_handle.get(block.cidr, 0) + 1
    return counts


def breaches(of: Iterable[Block]) -> list[str]:
    return [f"{block.cidr}: {text}" for block in of for text in violations(block)]


def under_counted(handles: Mapping[str, Mapping[str, int]], of: Iterable[Block]) -> list[str]:
    return [
        f"{handle} counts {handles.get(handle, {}).get(cidr, 0)} in {cidr}, holds {count}"
        for handle, counts in true_counts(of).items()
        for cidr, count in counts.items()
        if handles.get(handle, {}).get(cidr, 0) < count
    ]


async def assert_at_rest(world: World, *, exact: bool = True, shared: Collection[str] = ()) -> None:
    """Nothing is under way: every invariant holds.

    `exact`: nobody crashed either. Handles in `shared` were used by several at once and may count too high.
    """
    stored = await world.blocks()
    handles = await world.handles()
    assert breaches(stored.values()) == []
    assert under_counted(handles, stored.values()) == []
    if exact:
        exact_counts = {h: counts for h, counts in true_counts(stored.values()).items() if h not in shared}
        assert {h: counts for h, counts in handles.items() if h not in shared} == exact_counts
        confirmed = {(block.affinity, cidr): "confirmed" for cidr, block in stored.items() if block.affinity}
        assert await world.affinities() == confirmed


def of_windows(block: Block) -> Block:
    """A new block of eight addresses as a Windows node has it: it keeps three and one for itself."""
    attribute = AllocationAttribute(
        handle_id=WINDOWS_RESERVED_HANDLE, secondary={"note": "windows host rsvd"}
    )
    return structs.replace(
        block,
        allocations=(0, 0, 0, None, None, None, None, 0),
        unallocated=(3, 4, 5, 6),
        attributes=(attribute,),
    )


async def assign(
    allocator: Allocator, count: int = 1, handle: str = "", version: int = 4, **options: Any
) -> tuple[str, ...]:
    """Addresses without prefix length, of one version; fails if there are fewer than asked for."""
    got = await try_assign(allocator, count, handle, version, **options)
    got.require_all()
    found = got.v4 if version == 4 else got.v6
    assert found is not None
    return tuple(text.partition("/")[0] for text in found.addresses)


async def assigned_at(number: int) -> tuple["World", Allocator, str]:
    """An address of a block that has this sequence number, the handle h's; the node is a's."""
    world = await cluster("10.0.0.0/30", 30)
    allocator = world.allocator("a")
    await allocator.claim_affinity("10.0.0.0/30")
    kv = await world.backend.get(BlockKey("10.0.0.0/30"))
    await world.backend.apply(kv.key, msgspec.structs.replace(kv.value, sequenceNumber=number))
    (address,) = await assign(allocator, 1, "h")
    return world, allocator, address


async def try_assign(
    allocator: Allocator, count: int = 1, handle: str = "", version: int = 4, **options: Any
) -> AutoAssigned:
    options = {"use": "Workload", "attributes": {"node": allocator.host}} | options
    options["num4" if version == 4 else "num6"] = count
    return await allocator.auto_assign(AutoAssign(handle=handle, **options))


async def gone(action: Any) -> bool:
    """Whether an awaitable ends with ResourceDoesNotExist."""
    try:
        await action
    except ResourceDoesNotExist:
        return True
    return False
