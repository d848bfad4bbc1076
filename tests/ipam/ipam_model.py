"""A model of a cluster's addresses: what was promised to whom, and operations that keep or change it.

An operation is made by one of several clients, on one of several hosts. Before one of its writes another
client may carry out a whole operation of its own, so that the write conflicts; the write may be lost, or
carried out without an answer; or the client dies before or after it. What the model then does not know for
certain it calls doubtful; everything else must be in the datastore as promised, after every operation.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from itertools import combinations
from random import Random
from typing import Any

import msgspec
from msgspec import structs

from tests.ipam.ipam_scheduler import Dead
from tests.ipam.ipam_world import World, allocated, breaches, no_sleep, true_counts, try_assign, under_counted
from tortie.calicoctl import ipambooks, ipamrelease, ipamsplit
from tortie.core.errors import (
    DatastoreUnreachable,
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
)
from tortie.datastore.backend import KV, Backend, Listed, WatchEvent
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockList, Key, Listing, ResourceKey
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.ipam import block as blocks
from tortie.ipam.allocator import Allocator
from tortie.ipam.audit import audit
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.cluster import delete_node, delete_pool
from tortie.ipam.names import warm_handle
from tortie.ipam.requests import AssignAddress
from tortie.ipam.transfer import Transfer

POOL, BLOCK_SIZE = "10.0.0.0/28", 30  # four blocks of four addresses: everything collides
ADDRESSES = [str(address) for address in ip_network(POOL)]
HOSTS = ("a", "b", "c")
CLIENTS = ("a", "a'", "b", "c")  # a host may have several
SHARED = {warm_handle(host) for host in HOSTS}  # handles that several use at once; they may count too high

Overtaker = Callable[[], Awaitable[None]]


class Meddled:
    """Implements datastore.backend.Backend; `fate` is what becomes of the write after `calm` more."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.refused = inner.refused
        self.alive = True
        self.calm, self.fate = 0, "done"
        self.overtaker: Overtaker | None = None

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        return await self._write(lambda: self._inner.create(key, value))

    async def update(self, kv: KV) -> KV:
        return await self._write(lambda: self._inner.update(kv))

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        return await self._write(lambda: self._inner.apply(key, value, ttl))

    async def delete(self, key: Key, revision: str = "") -> KV:
        return await self._write(lambda: self._inner.delete(key, revision))

    async def get(self, key: Key, revision: str = "") -> KV:
        self._live()
        return await self._inner.get(key, revision)

    async def list(self, what: Listing, revision: str = "") -> Listed:
        self._live()
        return await self._inner.list(what, revision)

    def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        return self._inner.watch(what, revision)

    def serves(self, what: Listing) -> bool:
        return self._inner.serves(what)

    async def close(self) -> None:
        return None

    async def _write(self, action: Callable[[], Awaitable[KV]]) -> KV:
        self._live()
        fate = "done" if self.calm else self.fate
        self.calm -= 1
        if fate == "done":
            return await action()
        self.fate = "done"  # once
        if fate == "overtaken":
            assert self.overtaker is not None
            await self.overtaker()
            return await action()
        if fate in ("unanswered", "dies after"):
            try:
                await action()
            except TortieError:
                fate = fate.replace("unanswered", "lost")
        if fate in ("dies before", "dies after"):
            self.alive = False
            raise Dead
        raise DatastoreUnreachable("no answer")

    def _live(self) -> None:
        if not self.alive:
            raise Dead


@dataclass
class Caller:
    """One client as an operation sees it; what it picks, `random` decides. `calm`: nothing goes wrong."""

    host: str
    backend: Meddled
    client: Client
    allocator: Allocator
    random: Random = field(default_factory=Random)
    calm: bool = True


Operation = Callable[["Model", Caller], Coroutine[Any, Any, None]]
OPERATIONS: dict[str, Operation] = {}
NAMES: list[str] = []  # of operations, the more often the likelier they are to be made


def operation(weight: int) -> Callable[[Operation], Operation]:
    def register(function: Operation) -> Operation:
        OPERATIONS[function.__name__] = function
        NAMES.extend([function.__name__] * weight)
        return function

    return register


class Model:
    """`connect` gives a client's connection to the datastore of `world`."""

    def __init__(self, world: World, connect: Callable[[], Backend]) -> None:
        self.world = world
        self.exact = True  # no write was ever lost, left unanswered or cut off
        self._connect = connect
        self._callers: dict[str, Caller] = {}
        self._numbers = 0
        self.granted: dict[str, str] = {}  # address -> handle
        self.under_way: set[str] = set()  # handles that are being given something: nobody releases them
        self.doubtful: set[str] = set()  # handles whose holdings are not known for certain
        self.host_of: dict[str, str] = {}  # handle -> host
        self.endpoints: set[str] = set()  # handles of pods that surely have an endpoint in the datastore
        self.report: list[ReleaseRequest] = []  # what the last `ipam check` called leaked
        self.past: list[ReleaseRequest] = []  # guarded requests for allocations that are over

    async def begin(self) -> None:
        await self.world.pool("pool", POOL, BLOCK_SIZE)
        await self.world.nodes(*HOSTS)
        await self.world.configure()

    # --- one step -------------------------------------------------------------------------------

    async def step(
        self, name: str, who: str, seed: int, fate: str = "done", calm: int = 0, overtaker: str = ""
    ) -> None:
        """One operation; `fate` befalls its write after `calm` others, `overtaker` is what another does."""
        caller = self._caller(who)
        caller.random = Random(seed)
        caller.backend.calm, caller.backend.fate = calm, fate
        caller.calm = fate == "done"
        self.exact = self.exact and fate in ("done", "overtaken")
        others = [other for other in CLIENTS if other != who]

        async def overtake() -> None:
            await self.step(overtaker, others[seed % len(others)], seed + 1)

        caller.backend.overtaker = overtake
        under_way = set(self.under_way)
        try:
            await OPERATIONS[name](self, caller)
        except DatastoreUnreachable:
            assert fate in ("lost", "unanswered"), name
        except Dead:
            del self._callers[who]  # the next one of this name is a new process
        finally:
            caller.backend.fate = "done"
            self.under_way = under_way

    def _caller(self, who: str) -> Caller:
        if who not in self._callers:
            host = who.strip("'")
            backend = Meddled(self._connect())
            client = Client(backend)
            self._callers[who] = Caller(host, backend, client, self.world.allocator(host, client))
        return self._callers[who]

    # --- what operations note -------------------------------------------------------------------

    def new_handle(self, host: str) -> str:
        self._numbers += 1
        handle = f"net.pod{self._numbers}"
        self.host_of[handle] = host
        self.doubtful.add(handle)  # until there is an answer
        self.under_way.add(handle)
        return handle

    def grant(self, handle: str, *addresses: str) -> None:
        for text in addresses:
            address = text.partition("/")[0]
            owner = self.granted.get(address)
            assert owner is None or owner in self.doubtful, f"{address} given to {handle}, is {owner}'s"
            self.granted[address] = handle

    def give_up(self, handle: str) -> None:
        self.doubtful.add(handle)
        self.endpoints.discard(handle)
        self.granted = {address: owner for address, owner in self.granted.items() if owner != handle}

    def known(self) -> list[str]:
        """All handles that may hold something, and may be released."""
        return sorted({*self.granted.values(), *self.doubtful} - self.under_way)

    # --- what must be true ----------------------------------------------------------------------

    async def check(self) -> None:
        stored = await self.world.blocks()
        handles = await self.world.handles()
        assert breaches(stored.values()) == []
        assert under_counted(handles, stored.values()) == []
        for one, other in combinations(map(ip_network, stored), 2):
            assert not one.overlaps(other), f"{one} and {other}"
        affinities = await self.world.affinities()
        confirmed = [where for where, state in affinities.items() if state == "confirmed"]
        assert set(confirmed) <= {(block.affinity, cidr) for cidr, block in stored.items()}
        if self.exact:
            assert affinities == {(b.affinity, cidr): "confirmed" for cidr, b in stored.items() if b.affinity}
            counts = true_counts(stored.values())
            assert {h: c for h, c in handles.items() if h not in SHARED} == {
                h: c for h, c in counts.items() if h not in SHARED
            }
        owners = allocated(stored.values())
        for address, handle in self.granted.items():
            if handle not in self.doubtful:
                assert owners.get(address) == handle, f"{address} of {handle} is {owners.get(address)}'s"
        for address, handle in owners.items():
            granted = self.granted.get(address) == handle
            assert granted or handle in self.doubtful, f"{handle} holds {address} that nobody gave it"

    async def end(self) -> None:
        """All stop. What is known goes as a runtime would make it go, and nothing is left."""
        cleaner = self.world.allocator("a")
        for handle in self.known():
            await _released(cleaner, handle)
        self.granted.clear()
        self.doubtful.clear()
        await self.check()
        self.world.clock.advance(3600)
        for host in HOSTS:
            await self.world.allocator(host).remove_host()
        for kv in (await self.world.backend.list(BlockList())).items:
            await cleaner.free_cooled(kv)
        left = (await self.world.blocks(), await self.world.affinities(), await self.world.handles())
        assert left == ({}, {}, {})


async def _released(allocator: Allocator, handle: str) -> None:
    try:
        await allocator.release_by_handle(handle)
    except ResourceDoesNotExist:
        return


# --- addresses -----------------------------------------------------------------------------------


@operation(6)
async def add_pod(model: Model, caller: Caller) -> None:
    handle = model.new_handle(caller.host)
    count = caller.random.choice([1, 1, 2, 3])
    got = await try_assign(caller.allocator, count, handle)
    addresses = got.v4.addresses if got.v4 is not None else ()
    model.grant(handle, *addresses)
    if isinstance(got.error, DatastoreUnreachable):
        raise got.error
    model.doubtful.discard(handle)
    if not addresses or got.error is not None:
        return
    name = f"{caller.host}-k8s-{handle}-eth0"
    spec = WorkloadEndpointSpec(
        node=caller.host, orchestrator="k8s", pod=handle, endpoint="eth0", interfaceName="cali0",
        ipNetworks=tuple(f"{text.partition('/')[0]}/32" for text in addresses),
    )  # fmt: skip
    made = WorkloadEndpoint(metadata=ObjectMeta(name=name, namespace="ns"), spec=spec)
    await caller.client.unsafe_create(made)
    model.endpoints.add(handle)


@operation(4)
async def remove_pod(model: Model, caller: Caller) -> None:
    if not (known := model.known()):
        return
    handle = caller.random.choice(known)
    await _note_past(model, handle)
    model.give_up(handle)
    await _released(caller.allocator, handle)
    if caller.calm or handle not in SHARED:
        model.doubtful.discard(handle)
    name = f"{model.host_of.get(handle, '')}-k8s-{handle}-eth0"
    with contextlib.suppress(ResourceDoesNotExist):
        await caller.client.backend.delete(ResourceKey(WorkloadEndpoint.KIND, name, "ns"))


@operation(2)
async def add_at(model: Model, caller: Caller) -> None:
    handle, address = model.new_handle(caller.host), caller.random.choice(ADDRESSES)
    request = AssignAddress(address, handle, {"node": caller.host})
    if await _tolerating(caller.allocator.assign_ip(request)):
        model.grant(handle, address)
    model.doubtful.discard(handle)


@operation(2)
async def release_addresses(model: Model, caller: Caller) -> None:
    certain = sorted(set(model.granted) - {a for a, h in model.granted.items() if h in model.doubtful})
    if not certain:
        return
    chosen = caller.random.sample(certain, min(len(certain), caller.random.choice([1, 1, 4])))
    requests = [ReleaseRequest(address, model.granted[address]) for address in chosen]
    certain_handles = {request.handle for request in requests} - model.doubtful
    for request in requests:
        # A failure to count its handle down is only logged, and an error tells of one block only.
        model.doubtful.add(request.handle)
        del model.granted[request.address]
    outcome = await caller.allocator.release_ips(requests)
    if isinstance(outcome.error, DatastoreUnreachable):
        raise outcome.error
    if caller.calm:
        assert outcome.error is None and not outcome.unallocated
        model.doubtful -= certain_handles


@operation(2)
async def release_what_is_over(model: Model, caller: Caller) -> None:
    """Late, as by an old report: the guards keep whoever has these addresses now."""
    if model.past:
        past = caller.random.choice(model.past)
        unnamed = ReleaseRequest(past.address, "", past.sequence_number)
        await caller.allocator.release_ips([caller.random.choice([past, unnamed])])


@operation(2)
async def make_warm(model: Model, caller: Caller) -> None:
    handle = warm_handle(caller.host)
    was_certain = handle not in model.doubtful
    model.doubtful.add(handle)
    model.under_way.add(handle)
    got = await try_assign(caller.allocator, 2, handle)
    if got.v4 is not None:
        model.grant(handle, *got.v4.addresses)
    if isinstance(got.error, DatastoreUnreachable):
        raise got.error
    if was_certain:
        model.doubtful.discard(handle)


@operation(2)
async def take_warm(model: Model, caller: Caller) -> None:
    source = warm_handle(caller.host)
    mine = sorted(address for address, handle in model.granted.items() if handle == source)
    if not mine or source in model.doubtful:
        return
    handle, address = model.new_handle(caller.host), mine[0]
    block = next(cidr for cidr in await model.world.blocks() if ip_address(address) in ip_network(cidr))
    model.doubtful.add(source)
    del model.granted[address]
    await caller.allocator.transfer(source, [Transfer(address, block, handle, {"node": caller.host})])
    if (await model.world.owners()).get(address) == handle:
        model.granted[address] = handle
        model.doubtful -= {handle, source}


@operation(1)
async def report(model: Model, caller: Caller) -> None:
    """`ipam check -o`."""
    found = audit((await ipambooks.load(caller.client, "")).books, model.world.clock())
    leaked = [one for address in found.leaked for one in found.allocations[address] if not one.cooling]
    model.report = [ReleaseRequest(one.address, one.handle, one.sequence_number) for one in leaked]


@operation(1)
async def release_by_report(model: Model, caller: Caller) -> None:
    """`ipam release --from-report --force`, with a report that may be old: who has an endpoint is spared."""
    present = ipamrelease.now((await ipambooks.load(caller.client, "")).books)
    requests, _, _ = ipamrelease.still_leaked(model.report, present)
    handles = {request.handle for request in requests}
    assert not handles & model.endpoints
    certain = handles - model.doubtful
    for request in requests:
        model.doubtful.add(request.handle)
        if model.granted.get(request.address) == request.handle:
            del model.granted[request.address]
    await caller.allocator.release_ips(requests)
    if caller.calm:
        model.doubtful -= certain


# --- blocks --------------------------------------------------------------------------------------


@operation(1)
async def claim(model: Model, caller: Caller) -> None:
    cidr = caller.random.choice(["10.0.0.0/29", "10.0.0.8/29", "10.0.0.4/30"])
    await _tolerating(caller.allocator.claim_affinity(cidr))


@operation(1)
async def give_blocks_back(model: Model, caller: Caller) -> None:
    await _tolerating(caller.allocator.release_host_affinities(must_be_empty=caller.random.random() < 0.5))


@operation(1)
async def abandon(model: Model, caller: Caller) -> None:
    await _tolerating(caller.allocator.remove_host())


@operation(1)
async def collect(model: Model, caller: Caller) -> None:
    """What the garbage collector does about addresses that have cooled down."""
    for kv in (await caller.client.backend.list(BlockList())).items:
        try:
            await caller.allocator.free_cooled(kv)
        except (UpdateConflict, ResourceDoesNotExist):
            continue


# --- the cluster ---------------------------------------------------------------------------------


@operation(1)
async def split(model: Model, caller: Caller) -> None:
    pools = (await caller.client.list(IPPool)).items
    large = [pool for pool in pools if ip_network(pool.spec.cidr).prefixlen < pool.spec.blockSize]
    if large:
        old = caller.random.choice(large)
        await _tolerating(ipamsplit.carry_out(caller.client, old, ipamsplit.pools(old, 2)))


@operation(1)
async def join(model: Model, caller: Caller) -> None:
    """The parts of a split pool are deleted, with pods in them, and the whole made anew."""
    pools = (await caller.client.list(IPPool)).items
    if len(pools) > 1 or (pools and pools[0].spec.disabled) or caller.random.random() < 0.2:
        for pool in pools:
            await _tolerating(delete_pool(caller.client, caller.allocator, pool.name, sleep=no_sleep))
    if not (await caller.client.list(IPPool)).items:
        spec = IPPoolSpec(cidr=POOL, blockSize=caller.random.choice([BLOCK_SIZE, BLOCK_SIZE, 29]))
        await _tolerating(caller.client.create(IPPool(metadata=ObjectMeta(name="pool"), spec=spec)))


@operation(1)
async def configure(model: Model, caller: Caller) -> None:
    config = await caller.allocator.get_config()
    strict = caller.random.random() < 0.4
    changed = structs.replace(
        config,
        strict_affinity=strict,
        maxBlocksPerHost=caller.random.choice([0, 0, 1, 2]) if strict else 0,
        ipCooldownSeconds=caller.random.choice([0, 0, 60]),
    )
    await _tolerating(caller.allocator.set_config(changed))


@operation(1)
async def delete_a_node(model: Model, caller: Caller) -> None:
    name = caller.random.choice([host for host in HOSTS if host != caller.host])
    # Those without an endpoint, too: one of another, that named their address before, may still be there.
    doomed = {handle for handle in model.known() if model.host_of.get(handle) == name}
    for handle in sorted(doomed | {warm_handle(name)}):
        model.give_up(handle)
    await _tolerating(delete_node(caller.client, caller.allocator, name))


@operation(2)
async def register(model: Model, caller: Caller) -> None:
    for host in HOSTS:
        await _tolerating(caller.client.create(Node(metadata=ObjectMeta(name=host))))


@operation(1)
async def wait(model: Model, caller: Caller) -> None:
    model.world.clock.advance(40)  # seconds; twice is longer than a cooldown and than a block's grace


# --- parts ---------------------------------------------------------------------------------------


async def _tolerating(action: Awaitable[object]) -> bool:
    """Whether it was done. A refusal is an answer, too; what it must not do shows in the datastore."""
    try:
        await action
    except DatastoreUnreachable:
        raise
    except TortieError:
        return False
    return True


async def _note_past(model: Model, handle: str) -> None:
    for block in (await model.world.blocks()).values():
        for address, holder in allocated([block]).items():
            if holder == handle:
                number = blocks.sequence_number(block, blocks.ordinal_of(block, ip_address(address)))
                model.past = [*model.past[-20:], ReleaseRequest(address, handle, number)]
