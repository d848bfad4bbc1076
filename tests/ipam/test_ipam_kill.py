"""Every operation killed at every one of its writes, on a real etcd; then somebody else carries on.

Before each write in turn, and after each, the operation ends as if by SIGKILL. What is then stored must be
safe, the left-overs must be those the reference allows, every address must still be usable, and the
documented clean-up must leave nothing at all. A second test kills real processes at random.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tests.ipam.ipam_world import World, allocated, assert_at_rest, assign, gone, try_assign
from tests.support.aio import run
from tests.support.etcd import Etcd
from tortie.core.errors import ResourceAlreadyExists, TortieError
from tortie.datastore.backend import KV, Backend, Listed, WatchEvent
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import Key, Listing
from tortie.datastore.types.ippool import IPPool
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.cluster import delete_node, delete_pool
from tortie.ipam.names import POD
from tortie.ipam.owners import OwnerChange
from tortie.ipam.requests import AssignAddress
from tortie.ipam.transfer import Transfer

pytestmark = pytest.mark.kernel

POOL = "10.0.0.0/28"  # four blocks of four addresses
ADDRESSES = 16


class Killed(BaseException):
    """Ends the operation without its except and finally clauses having any effect on the datastore."""


class Mortal:
    """A backend that dies before or after its n-th write; afterwards nothing it is asked happens."""

    refused: frozenset[tuple[str, str]] = frozenset()

    def __init__(self, backend: Backend, write: int, *, after: bool) -> None:
        self._backend = backend
        self._left = write
        self._after = after
        self.dead = False

    async def _write(self, action: Callable[[], Awaitable[KV]]) -> KV:
        self._check()
        self._left -= 1
        if self._left:
            return await action()
        if self._after:
            with contextlib.suppress(TortieError):  # refused: then there is nothing to be killed after
                await action()
        self.dead = True
        raise Killed

    def _check(self) -> None:
        if self.dead:
            raise Killed

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        return await self._write(lambda: self._backend.create(key, value))

    async def update(self, kv: KV) -> KV:
        return await self._write(lambda: self._backend.update(kv))

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        return await self._write(lambda: self._backend.apply(key, value, ttl))

    async def delete(self, key: Key, revision: str = "") -> KV:
        return await self._write(lambda: self._backend.delete(key, revision))

    async def get(self, key: Key, revision: str = "") -> KV:
        self._check()
        return await self._backend.get(key, revision)

    async def list(self, what: Listing, revision: str = "") -> Listed:
        self._check()
        return await self._backend.list(what, revision)

    def serves(self, what: Listing) -> bool:
        return self._backend.serves(what)

    def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        return self._backend.watch(what, revision)

    async def close(self) -> None:
        return None


# --- the operations -----------------------------------------------------------------------------

Prepare = Callable[[World], Awaitable[Any]]
Act = Callable[[Allocator, Client], Awaitable[Any]]


@dataclass(frozen=True)
class Case:
    """`act` is killed; host `a` acts. `handles` may hold addresses it did not get to know of."""

    act: Act
    prepare: Prepare
    handles: tuple[str, ...] = ("h",)
    strict: bool = False
    cooldown: int = 0


async def nothing(_world: World) -> None:
    return None


async def used(world: World) -> None:
    await assign(world.allocator("a"), 2, "h")
    await assign(world.allocator("a"), 1, "other")


async def full_elsewhere(world: World) -> None:
    await world.allocator("b").claim_affinity(POOL)


async def old_elsewhere(world: World) -> None:
    await full_elsewhere(world)
    world.clock.advance(61)


async def nobodys(world: World) -> None:
    await assign(world.allocator("a"), 2, "h")
    await world.allocator("a").release_host_affinities(must_be_empty=False)


async def claimed(world: World) -> None:
    await world.allocator("a").claim_affinity("10.0.0.0/29")


async def _no_wait(_seconds: float) -> None:
    return None


CASES: dict[str, Case] = {
    "first address": Case(lambda a, _: assign(a, 1, "h"), nothing),
    "next address": Case(lambda a, _: assign(a, 1, "h"), used),
    "addresses of three blocks": Case(lambda a, _: assign(a, 10, "h"), nothing),
    "both versions": Case(lambda a, _: try_assign(a, 1, "h", num6=1), nothing),
    "borrow": Case(lambda a, _: assign(a, 5, "h"), full_elsewhere),
    "reclaim": Case(lambda a, _: assign(a, 5, "h"), old_elsewhere, strict=True),
    "particular address": Case(lambda a, _: a.assign_ip(AssignAddress("10.0.0.6", "h")), nothing),
    "release by handle": Case(lambda a, _: a.release_by_handle("h"), used),
    "release by handle, cooling": Case(lambda a, _: a.release_by_handle("h"), used, cooldown=60),
    "release the last of a block": Case(lambda a, _: a.release_by_handle("h"), nobodys),
    "release by address": Case(
        lambda a, _: a.release_ips([ReleaseRequest(f"10.0.0.{n}") for n in range(16)]), used, ("h", "other")
    ),
    "claim a range": Case(lambda a, _: a.claim_affinity("10.0.0.0/29"), nothing),
    "release empty blocks": Case(lambda a, _: a.release_host_affinities(must_be_empty=True), claimed),
    "release used blocks": Case(lambda a, _: a.release_host_affinities(must_be_empty=False), used),
    "remove the host": Case(lambda a, _: a.remove_host(), used),
    "change the owner": Case(
        lambda a, _: a.set_owners("10.0.0.12", "h", OwnerChange(active={POD: "p"})), used
    ),
    "hand over": Case(
        lambda a, _: a.transfer("h", [Transfer(f"10.0.0.{n}", "10.0.0.12/30", f"c{n}") for n in (12, 13)]),
        used,
        ("h", "c12", "c13"),
    ),
    "delete the pool": Case(lambda a, client: delete_pool(client, a, "pool", sleep=_no_wait), used),
    "delete the node": Case(lambda a, client: delete_node(client, a, "a"), used),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_at_every_write(etcd: Etcd, name: str) -> None:
    async def story() -> None:
        backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
        deaths = 0
        try:
            for write in range(1, 60):
                survived = [
                    await killed_once(etcd, backend, CASES[name], write, after=a) for a in (False, True)
                ]
                deaths += survived.count(False)
                if all(survived):
                    break
            else:
                raise AssertionError("the operation never ended by itself")
        finally:
            await backend.close()
        assert deaths >= 2, "it must write at least once, else this tests nothing"

    run(story())


async def killed_once(etcd: Etcd, backend: Backend, case: Case, write: int, *, after: bool) -> bool:
    """One operation with one death; whether it ended before it came to that."""
    etcd.wipe()
    world = World(backend)
    await world.pool("pool", POOL, 30)
    await world.pool("six", "fd00::/126", 127)
    await world.nodes("a", "b")
    await world.configure(strict_affinity=case.strict, ipCooldownSeconds=case.cooldown)
    await case.prepare(world)
    before = await world.owners()
    mortal = Mortal(backend, write, after=after)
    client = Client(mortal)
    with contextlib.suppress(Killed):
        await case.act(world.allocator("a", client), client)
    await assert_at_rest(world, exact=not mortal.dead)
    await assert_only_allowed_leftovers(world)
    # Who was not part of it keeps what it had.
    owners = await world.owners()
    for address, handle in before.items():
        assert handle in case.handles or owners.get(address) == handle
    await carry_on(world, case)
    return not mortal.dead


async def assert_only_allowed_leftovers(world: World) -> None:
    """Affinities on their way, with or without a block; nothing else (reference: 1.10 and 2.14)."""
    stored = await world.blocks()
    affinities = await world.affinities()
    for (owner, cidr), state in affinities.items():
        block = stored.get(cidr)
        assert state in ("pending", "pendingDeletion") or (block and block.affinity == owner), (owner, cidr)
    for cidr, block in stored.items():
        assert block.affinity is None or (block.affinity, cidr) in affinities, f"{cidr} has lost its affinity"


async def carry_on(world: World, case: Case) -> None:
    """Others use the whole pool, the runtime deletes the container, and in the end nothing is left."""
    a, b = world.allocator("a"), world.allocator("b")
    for handle in case.handles:
        await gone(a.release_by_handle(handle))
        assert handle not in await world.handles(), "the documented clean-up of a request that failed"
    world.clock.advance(120)  # reclaim and cooldown are over
    await restore(world)
    await world.configure(strict_affinity=False)
    held = await world.owners()
    rest = await assign(b, ADDRESSES - len(held), "rest")
    assert len({*held, *rest}) == ADDRESSES, "an address has become unusable"
    await assert_only_allowed_leftovers(world)
    for handle in {*held.values(), "rest"}:
        await a.release_by_handle(handle)
    for host in (a, b):
        await host.remove_host()
    assert await world.blocks() == {} and await world.affinities() == {} and await world.handles() == {}


async def restore(world: World) -> None:
    """The pool and node again, as far as the operation deleted them."""
    try:
        pool = await world.client.get(IPPool, "pool")
        if pool.spec.disabled:
            await delete_pool(world.client, world.allocator("b"), "pool", sleep=_no_wait)
            await world.pool("pool", POOL, 30)
    except TortieError:
        await world.pool("pool", POOL, 30)
    try:
        await world.node("a")
    except ResourceAlreadyExists:
        return


# --- real processes -----------------------------------------------------------------------------

_WORKER = """
import asyncio, json, sys, time
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.ipam.allocator import Allocator
from tortie.ipam.requests import AutoAssign

def say(*words):
    sys.stdout.write(json.dumps([time.monotonic_ns(), *words]) + "\\n")
    sys.stdout.flush()

async def release(allocator, handle):
    say("releasing", handle)
    try:
        await allocator.release_by_handle(handle)
    except ResourceDoesNotExist:
        pass
    say("released", handle)

async def main(endpoint, host, start, held, doubtful):
    allocator = Allocator(Client(EtcdBackend(DatastoreConfig(etcdEndpoints=(endpoint,)))), host)
    for handle in doubtful:
        await release(allocator, handle)
    say("ready")
    for number in range(start, start + 100000):
        handle = f"{host}.{number}"
        say("asking", handle)
        got = await allocator.auto_assign(AutoAssign(use="Workload", num4=1, handle=handle))
        got.require_all()
        say("got", handle, got.v4.addresses[0].partition("/")[0])
        held.append(handle)
        if len(held) > 3:
            await release(allocator, held.pop(0))

asyncio.run(main(sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])))
"""


@dataclass
class Hold:
    """From when until when (ns of one clock for all) a handle surely had an address."""

    handle: str
    address: str
    start: int
    end: int | None = None


class Worker:
    """A process that assigns and releases for one host, and the history it has told."""

    def __init__(self, endpoint: str, host: str, first: int) -> None:
        self._endpoint, self._host, self._next = endpoint, host, first
        self._process: subprocess.Popen[str] | None = None
        self.holds: list[Hold] = []
        self.doubtful: set[str] = set()  # handles of requests without an answer

    @property
    def held(self) -> dict[str, str]:
        """Handle -> address, of those told of and not being released."""
        return {hold.handle: hold.address for hold in self.holds if hold.end is None}

    def start(self) -> None:
        """A runtime after a restart: it deletes the containers it has no answer for."""
        arguments = [json.dumps(value) for value in (self._next, list(self.held), sorted(self.doubtful))]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, self._endpoint, self._host, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def listen(self, lines: int) -> None:
        """Take in some lines of the history."""
        assert self._process is not None and self._process.stdout is not None
        for _ in range(lines):
            line = self._process.stdout.readline()
            if not line.endswith("\n"):
                return
            self._take(*json.loads(line))

    def _take(self, when: int, what: str, handle: str = "", address: str = "") -> None:
        match what:
            case "asking":
                self.doubtful.add(handle)
                self._next = int(handle.rpartition(".")[2]) + 1
            case "got":
                self.doubtful.discard(handle)
                self.holds.append(Hold(handle, address, when))
            case "releasing":
                self.doubtful.add(handle)
                for hold in self.holds:
                    if hold.handle == handle and hold.end is None:  # it may be released again after a kill
                        hold.end = when
            case "released":
                self.doubtful.discard(handle)

    def kill(self) -> None:
        """SIGKILL in the middle of whatever it does; then the rest of what it had told."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self.listen(1_000_000)
        self._process.wait()
        assert self._process.returncode == -signal.SIGKILL, "it must not have failed by itself"


def test_processes_killed_at_random_never_share_or_lose_an_address(etcd: Etcd) -> None:
    run(_prepare_for_processes(etcd))
    dice = random.Random(7)
    # Two processes on one host; each has handles of its own.
    workers = [Worker(etcd.endpoint, host, n * 1_000_000) for n, host in enumerate(["a", "b", "a"])]
    for worker in workers:
        worker.start()
    try:
        for _ in range(18):
            for worker in workers:
                worker.listen(dice.randrange(1, 60))
            victim = dice.choice(workers)
            victim.kill()
            victim.start()
            victim.listen(1)
    finally:
        for worker in workers:
            worker.kill()
    assert overlaps([hold for worker in workers for hold in worker.holds]) == []
    assert sum(len(worker.holds) for worker in workers) > 100
    run(_check_after_processes(etcd, workers))


def overlaps(holds: list[Hold]) -> list[tuple[Hold, Hold]]:
    """Pairs of holders of one address at one time."""
    by_address: dict[str, list[Hold]] = {}
    for hold in sorted(holds, key=lambda hold: hold.start):
        by_address.setdefault(hold.address, []).append(hold)
    return [
        (first, second)
        for of_address in by_address.values()
        for first, second in itertools.pairwise(of_address)
        if first.end is None or first.end > second.start
    ]


def test_the_judge_of_histories_sees_an_overlap() -> None:
    one, two = Hold("x", "10.0.0.1", 0, 5), Hold("y", "10.0.0.1", 4, 9)
    assert overlaps([two, one]) == [(one, two)]
    assert overlaps([Hold("x", "10.0.0.1", 0, 4), two, Hold("z", "10.0.0.2", 0)]) == []


async def _prepare_for_processes(etcd: Etcd) -> None:
    backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
    world = World(backend)
    await world.pool("pool", "10.0.0.0/26", 29)
    await world.nodes("a", "b")
    await backend.close()


async def _check_after_processes(etcd: Etcd, workers: list[Worker]) -> None:
    backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
    world = World(backend)
    await assert_at_rest(world, exact=False)
    await assert_only_allowed_leftovers(world)
    cleaner = world.allocator("a")
    for worker in workers:
        for handle in worker.doubtful:
            await gone(cleaner.release_by_handle(handle))
    expected = {address: handle for worker in workers for handle, address in worker.held.items()}
    assert allocated((await world.blocks()).values()) == expected
    assert set(await world.handles()) == set(expected.values())
    for handle in expected.values():
        await cleaner.release_by_handle(handle)
    for host in ("a", "b"):
        await world.allocator(host).remove_host()
    assert await world.blocks() == {} and await world.affinities() == {} and await world.handles() == {}
    await backend.close()
