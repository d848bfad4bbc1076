"""Allocators on several hosts, interleaved at every request, with lost answers and crashes anywhere.

Checked after every single write: block invariants, sequence numbers, no handle that counts too low, no
address in two blocks. Checked at each answer: the address belongs to nobody else. Checked at rest:
nothing is left but what a crash may leave, and the documented clean-up removes that too.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.ipam.ipam_memory import MemoryBackend
from tests.ipam.ipam_scheduler import Fate, ScheduledBackend, Scheduler
from tests.ipam.ipam_world import (
    Clock,
    World,
    allocated,
    assert_at_rest,
    breaches,
    try_assign,
    under_counted,
)
from tortie.core.errors import DatastoreUnreachable, ResourceAlreadyExists, ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockKey, BlockList, HandleKey
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import ReleaseRequest, is_empty
from tortie.ipam.errors import BlockNotEmpty, IPAMError
from tortie.ipam.requests import AssignAddress
from tortie.ipam.view import DirectView

pytestmark = pytest.mark.unit

POOL = "10.0.0.0/28"  # four blocks of four addresses: everything collides
VM = "net.vmi.ns.vm"  # a handle that several actors use at once


@dataclass
class Story:
    """What has been promised to whom; the judge of every answer."""

    memory: MemoryBackend
    granted: dict[str, str] = field(default_factory=dict)  # address -> handle
    doubtful: set[str] = field(default_factory=set)  # handles of requests that did not fully succeed
    numbers: dict[str, int] = field(default_factory=dict)  # block CIDR -> its last sequence number
    clock: Clock = field(default_factory=Clock)
    handle_numbers: Any = field(default_factory=itertools.count)

    def new_handle(self, host: str) -> str:
        return f"{host}.{next(self.handle_numbers)}"

    def grant(self, handle: str, addresses: tuple[str, ...]) -> None:
        for text in addresses:
            address = text.partition("/")[0]
            assert address not in self.granted, f"{address} given to {handle}, is {self.granted[address]}'s"
            self.granted[address] = handle

    def give_up(self, handle: str) -> None:
        self.granted = {address: owner for address, owner in self.granted.items() if owner != handle}

    def check_write(self, what: str) -> None:
        entries = [(key, self.memory._read(key).value) for key, _, _ in self.memory.entries.values()]
        stored = [value for key, value in entries if isinstance(key, BlockKey)]
        handles = {key.handle: value.block for key, value in entries if isinstance(key, HandleKey)}
        assert breaches(stored) == [], what
        assert under_counted(handles, stored) == [], what
        assert list(allocated(stored).values()).count(VM) <= 1, what
        for block in stored:
            before = self.numbers.get(block.cidr)
            assert before is None or block.sequenceNumber >= before, what
        self.numbers = {block.cidr: block.sequenceNumber for block in stored}


Operation = Callable[[Allocator, Story], Coroutine[Any, Any, None]]


async def assign_one(allocator: Allocator, story: Story) -> None:
    await _assign(allocator, story, 1)


async def assign_many(allocator: Allocator, story: Story) -> None:
    await _assign(allocator, story, 3)


async def _assign(allocator: Allocator, story: Story, count: int) -> None:
    handle = story.new_handle(allocator.host)
    story.doubtful.add(handle)  # until there is an answer
    got = await try_assign(allocator, count, handle)
    assert got.v4 is not None
    story.grant(handle, got.v4.addresses)
    if got.error is None and len(got.v4.addresses) == count:
        story.doubtful.discard(handle)


async def assign_specific(allocator: Allocator, story: Story) -> None:
    handle = story.new_handle(allocator.host)
    story.doubtful.add(handle)
    address = "10.0.0.5"
    try:
        await allocator.assign_ip(AssignAddress(address, handle, {"node": allocator.host}))
    except (ResourceAlreadyExists, DatastoreUnreachable):
        return
    except IPAMError as err:  # under strict affinity, from another's block
        assert "affinity" in str(err)
        return
    story.grant(handle, (address,))
    story.doubtful.discard(handle)


async def release_own(allocator: Allocator, story: Story) -> None:
    mine = [handle for handle in story.granted.values() if handle.startswith(allocator.host + ".")]
    if not mine:
        return
    story.give_up(mine[0])
    story.doubtful.add(mine[0])
    try:
        await allocator.release_by_handle(mine[0])
    except ResourceDoesNotExist:
        pass
    except DatastoreUnreachable:
        return
    story.doubtful.discard(mine[0])


async def release_address(allocator: Allocator, story: Story) -> None:
    mine = {a: h for a, h in story.granted.items() if h.startswith(allocator.host + ".")}
    if not mine:
        return
    address, handle = next(iter(mine.items()))
    del story.granted[address]
    # Stays doubtful: a failure to count the handle down afterwards is only logged.
    story.doubtful.add(handle)
    try:
        await allocator.release_ips([ReleaseRequest(address, handle)])
    except DatastoreUnreachable:
        return


async def assign_to_vm(allocator: Allocator, story: Story) -> None:
    """Several pods of one VM at once: together they may have one address."""
    got = await try_assign(allocator, 1, VM, cap=1)
    assert got.v4 is not None and len(got.v4.addresses) <= 1


async def release_vm(allocator: Allocator, story: Story) -> None:
    try:
        await allocator.release_by_handle(VM)
    except (ResourceDoesNotExist, DatastoreUnreachable):
        return


async def wait(allocator: Allocator, story: Story) -> None:
    story.clock.advance(40)  # seconds; twice is longer than a cooldown and than a block's grace


async def release_blocks(allocator: Allocator, story: Story) -> None:
    try:
        await allocator.release_host_affinities(must_be_empty=True)
    except (BlockNotEmpty, DatastoreUnreachable):
        return


async def abandon_blocks(allocator: Allocator, story: Story) -> None:
    try:
        await allocator.remove_host()
    except DatastoreUnreachable:
        return


async def claim_range(allocator: Allocator, story: Story) -> None:
    try:
        await allocator.claim_affinity("10.0.0.0/29")
    except (IPAMError, DatastoreUnreachable):  # IPAMError: smaller than a block of this pool
        return


async def release_pool(allocator: Allocator, story: Story) -> None:
    try:
        await allocator.release_pool_affinities(POOL)
    except DatastoreUnreachable:
        return


# Themes: operations that race for the same objects meet far more often when there are few of them.
THEMES: dict[str, list[Operation]] = {
    "everything": [
        assign_one,
        assign_many,
        assign_specific,
        release_own,
        release_address,
        release_blocks,
        abandon_blocks,
        claim_range,
        release_pool,
        assign_to_vm,
        release_vm,
        wait,
    ],
    "one handle": [assign_to_vm, release_vm],
    "blocks come and go": [assign_one, release_own, release_blocks, abandon_blocks, claim_range],
    "addresses": [assign_one, assign_specific, release_own, release_address],
}


def casts(theme: str) -> st.SearchStrategy[list[tuple[str, list[Operation]]]]:
    scripts = st.lists(st.sampled_from(THEMES[theme]), min_size=1, max_size=4)
    hosts = st.sampled_from("abc" if theme == "everything" else "aab")
    return st.lists(st.tuples(hosts, scripts), min_size=2, max_size=5)


orders = st.lists(st.integers(0, 9), max_size=250)
FATES: list[Fate] = ["lost", "unanswered", "dies before", "dies after"]


async def play(
    cast: list[tuple[str, list[Operation]]],
    order: list[int],
    fates: dict[int, Fate],
    config: dict[str, Any],
) -> None:
    config = dict(config)
    known = config.pop("known")
    world = World()
    await world.pool("pool", POOL, config.pop("block_size"))
    await world.nodes("a", "b", "c")
    await world.configure(**config)
    memory = world.backend
    assert isinstance(memory, MemoryBackend)
    story = Story(memory, clock=world.clock)
    turns = iter(order)
    scheduler = Scheduler(
        choose=lambda n: next(turns, 0) % n,
        fate=lambda number: fates.get(number, "done"),
        after_write=story.check_write,
    )
    client = Client(ScheduledBackend(scheduler, memory))
    # Half of the time pools and labels are known without asking, as in a server: fewer requests lie
    # between those that race.
    view = DirectView(world.client if known else client)

    async def act(host: str, script: list[Operation]) -> None:
        allocator = world.allocator(host, client, view=view)
        for operation in script:
            await operation(allocator, story)
            if len(scheduler.history) > 3000:
                raise AssertionError("no end in sight")

    try:
        await scheduler.run([(f"{host}{n}", act(host, script)) for n, (host, script) in enumerate(cast)])
        await check_rest(world, story, calm=not any(int(n) < len(scheduler.history) for n in fates))
    except BaseException:
        for line in scheduler.history:
            note(line)
        raise


async def check_rest(world: World, story: Story, *, calm: bool) -> None:
    """Everybody has stopped. What is promised is stored; the rest can be cleared away, down to nothing."""
    await assert_at_rest(world, exact=calm, shared={VM})
    owners = await world.owners()
    story.doubtful.add(VM)
    assert {a: h for a, h in owners.items() if h not in story.doubtful} == {
        a: h for a, h in story.granted.items() if h not in story.doubtful
    }
    # What a runtime does about a request that failed: delete the container.
    cleaner = world.allocator("a")
    for handle in sorted(story.doubtful):
        story.give_up(handle)
        try:
            await cleaner.release_by_handle(handle)
        except ResourceDoesNotExist:
            continue
    assert await world.owners() == story.granted
    handles = await world.handles()
    assert {h: c for h, c in handles.items() if h in story.doubtful} == {}
    stored = await world.blocks()
    assert breaches(stored.values()) == []
    # Each host can go on: what it finds half done it completes or removes.
    world.clock.advance(61)
    for host in ("a", "b", "c"):
        got = await try_assign(world.allocator(host), 1, f"{host}.after")
        assert got.error is None and got.v4 is not None
        if not got.v4.addresses:  # all is full, or strict affinity keeps everybody out of others' blocks
            strict = (await cleaner.get_config()).strict_affinity
            for block in (await world.blocks()).values():
                assert not block.unallocated or (strict and not is_empty(block)), got
    world.clock.advance(61)
    for handle in {*story.granted.values(), "a.after", "b.after", "c.after"}:
        try:
            await cleaner.release_by_handle(handle)
        except ResourceDoesNotExist:
            continue
    world.clock.advance(61)
    for host in ("a", "b", "c"):
        await world.allocator(host).remove_host()
    for kv in (await world.backend.list(BlockList())).items:  # nobody's, with addresses that cooled down
        await cleaner.free_cooled(kv)
    assert await world.blocks() == {} and await world.affinities() == {} and await world.handles() == {}


configs = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([30, 30, 32, 28]),
        "strict_affinity": st.booleans(),
        "ipCooldownSeconds": st.sampled_from([0, 0, 60]),
        "known": st.booleans(),
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(THEMES)).flatmap(casts), orders, configs)
def test_interleaved_at_every_request(
    cast: list[tuple[str, list[Operation]]], order: list[int], config: dict[str, Any]
) -> None:
    asyncio.run(play(cast, order, {}, config))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(list(THEMES)).flatmap(casts),
    orders,
    st.dictionaries(st.integers(0, 100), st.sampled_from(FATES), max_size=4),
    configs,
)
def test_interleaved_with_lost_answers_and_crashes(
    cast: list[tuple[str, list[Operation]]], order: list[int], fates: dict[int, Fate], config: dict[str, Any]
) -> None:
    asyncio.run(play(cast, order, fates, config))
