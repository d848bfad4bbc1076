"""Each race of the reference (Calico IPAM, 2.14), told step by step, with the resolution it must have."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.ipam.ipam_scheduler import Fate, ScheduledBackend, Scheduler, stages
from tests.ipam.ipam_world import World, assert_at_rest, assign, try_assign
from tests.support.memory_backend import MemoryBackend
from tortie.core.errors import ResourceAlreadyExists, ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.keys import AffinityKey, BlockKey
from tortie.datastore.types.ipam import Affinity, AllocationAttribute
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.errors import BadSequenceNumber, BlockNotEmpty
from tortie.ipam.requests import AssignAddress
from tortie.ipam.view import DirectView

pytestmark = pytest.mark.unit

BLOCK = "10.0.0.0/30"  # the only block of the pool, unless a test makes it larger
Script = Callable[[Allocator], Coroutine[Any, Any, Any]]


class Race:
    """Actors with one script each; `results` has what the scripts returned or raised."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.actors: dict[str, tuple[str, Script]] = {}
        self.results: dict[str, Any] = {}
        self.history: list[str] = []

    def actor(self, name: str, script: Script, host: str = "") -> None:
        """`name` also names the host unless one is given."""
        self.actors[name] = (host or name, script)

    async def run(self, *steps: tuple[str, str], fates: dict[str, Fate] | None = None) -> None:
        """In the order of `steps`; `fates`: what becomes of the first write that contains the text."""
        pending = dict(fates or {})

        def fate(_number: int) -> Fate:
            text = next((text for text in pending if text in scheduler.current), None)
            return pending.pop(text) if text is not None else "done"

        memory = self.world.backend
        assert isinstance(memory, MemoryBackend)
        scheduler = Scheduler(stages(*steps), fate)
        client = Client(ScheduledBackend(scheduler, memory))
        view = DirectView(self.world.client)  # pools and labels are known, as in a server

        async def act(name: str, host: str, script: Script) -> None:
            allocator = self.world.allocator(host, client, view=view)
            try:
                self.results[name] = await script(allocator)
            except Exception as err:  # noqa: BLE001 - tests look at it
                self.results[name] = err

        await scheduler.run([(name, act(name, *actor)) for name, actor in self.actors.items()])
        self.history = scheduler.history

    def raced(self, *texts: str) -> None:
        """The history has these requests, in this order: the race really took place."""
        lines = iter(self.history)
        for text in texts:
            assert any(text in line for line in lines), f"{text!r} not found in order:\n" + "\n".join(
                self.history
            )


async def world_of(cidr: str = BLOCK, *hosts: str, **config: Any) -> World:
    world = World()
    await world.pool("pool", cidr, 30)
    await world.nodes(*(hosts or ("a", "b")))
    await world.configure(**config)
    return world


async def one(allocator: Allocator) -> tuple[str, ...]:
    return await assign(allocator, 1, f"{allocator.host}.{id(allocator)}")


async def maybe_one(allocator: Allocator) -> tuple[str, ...]:
    got = await try_assign(allocator, 1, f"{allocator.host}.{id(allocator)}")
    assert got.error is None and got.v4 is not None
    return got.v4.addresses


def test_two_hosts_claim_one_cidr() -> None:
    async def story() -> None:
        world = await world_of(strict_affinity=True)
        race = Race(world)
        race.actor("a", maybe_one)
        race.actor("b", maybe_one)
        await race.run(("a", "create IPAMBlock"), ("b", "update BlockAffinity"), ("a", ""))
        race.raced(
            "a: create BlockAffinity", "b: create IPAMBlock", "a: create IPAMBlock", "a: delete BlockAff"
        )
        assert (await world.block(BLOCK)).affinity == "host:b"
        assert race.results["b"] and race.results["a"] == ()
        await assert_at_rest(world)

    asyncio.run(story())


def test_a_leftover_pending_affinity_is_removed_when_next_looked_at() -> None:
    async def story() -> None:
        world = await world_of(strict_affinity=True)
        race = Race(world)
        race.actor("a", maybe_one)
        race.actor("b", maybe_one)
        await race.run(
            ("a", "create IPAMBlock"), ("b", ""), ("a", ""), fates={"a: delete BlockAffinity": "lost"}
        )
        assert race.results["a"] == ()
        assert (await world.affinities())["host:a", BLOCK] == "pending"
        assert await maybe_one(world.allocator("a")) == ()
        await assert_at_rest(world)

    asyncio.run(story())


def test_two_processes_of_one_host_claim_one_cidr() -> None:
    async def story() -> None:
        world = await world_of()
        race = Race(world)
        race.actor("p", one, host="a")
        race.actor("q", one, host="a")
        await race.run(("p", "create IPAMBlock"), ("q", "create IPAMHandle"), ("p", ""))
        race.raced("p: create BlockAffinity", "q: create IPAMBlock", "p: create IPAMBlock")
        assert race.results["p"] != race.results["q"]
        assert list(await world.affinities()) == [("host:a", BLOCK)]
        await assert_at_rest(world)

    asyncio.run(story())


def test_a_failed_confirmation_is_success_if_another_process_confirmed() -> None:
    async def story() -> None:
        world = await world_of()
        race = Race(world)
        race.actor("p", one, host="a")
        race.actor("q", one, host="a")
        await race.run(("p", "update BlockAffinity"), ("q", "create IPAMHandle"), ("p", "create IPAMHandle"))
        race.raced(
            "p: create IPAMBlock", "q: update BlockAffinity", "p: update BlockAffinity", "p: get BlockAff"
        )
        assert race.results["p"] != race.results["q"]
        await assert_at_rest(world)

    asyncio.run(story())


def test_two_processes_of_one_host_pick_different_cidrs() -> None:
    async def story() -> None:
        world = await world_of("10.0.0.0/28", "a", "x")
        race = Race(world)
        race.actor("p", one, host="a")
        race.actor("q", one, host="a")
        race.actor("x", lambda allocator: allocator.claim_affinity("10.0.0.12/30"))
        # q looks for a block after somebody took the first of the host's walk, p before.
        await race.run(("p", "create BlockAffinity"), ("x", ""), ("q", ""), ("p", ""))
        assert race.results["p"] != race.results["q"]
        await assert_at_rest(world)

    asyncio.run(story())


@pytest.mark.parametrize("first", ["allocator", "releaser"])
def test_allocate_while_the_affinity_is_released(first: str) -> None:
    async def story() -> None:
        world = await world_of()
        await world.allocator("a").claim_affinity(BLOCK)
        race = Race(world)
        race.actor("p", one, host="a")
        race.actor("r", lambda allocator: allocator.release_host_affinities(must_be_empty=True), host="a")
        if first == "allocator":
            await race.run(("r", "delete IPAMBlock"), ("p", "create IPAMHandle"), ("p", ""), ("r", ""))
            race.raced("r: update BlockAff", "p: update IPAMBlock", "r: delete IPAMBlock")
            assert isinstance(race.results["r"], BlockNotEmpty)
        else:
            await race.run(("p", "update IPAMBlock"), ("r", ""), ("p", ""))
            race.raced(
                "r: delete IPAMBlock", "r: delete BlockAff", "p: update IPAMBlock", "p: create IPAMBlock"
            )
            assert race.results["r"] is None
        assert len(race.results["p"]) == 1
        assert (await world.block(BLOCK)).affinity == "host:a"
        await assert_at_rest(world)

    asyncio.run(story())


@pytest.mark.parametrize("where", ["delete IPAMBlock", "delete BlockAffinity"])
def test_claim_while_a_releaser_still_works(where: str) -> None:
    async def story() -> None:
        world = await world_of()
        await world.allocator("a").claim_affinity(BLOCK)
        race = Race(world)
        race.actor("p", one, host="a")
        race.actor("r", lambda allocator: allocator.release_affinity(BLOCK, must_be_empty=True), host="a")
        await race.run(("r", where), ("p", ""), ("r", ""))
        race.raced("r: update BlockAff", "p: update BlockAff", f"r: {where}")
        assert len(race.results["p"]) == 1
        assert await world.affinities() == {("host:a", BLOCK): "confirmed"}
        await assert_at_rest(world)

    asyncio.run(story())


def test_release_marks_pending_deletion_while_the_claimer_confirms() -> None:
    async def story() -> None:
        world = await world_of()
        race = Race(world)
        race.actor("p", one, host="a")
        race.actor("r", lambda allocator: allocator.release_affinity(BLOCK), host="a")
        await race.run(("p", "update BlockAffinity"), ("r", "delete IPAMBlock"), ("p", "update IPAMBlock"))
        race.raced("p: create IPAMBlock", "r: update BlockAff", "p: update BlockAff", "r: delete IPAMBlock")
        confirmed = [line for line in race.history if line.startswith("p: update BlockAffinity")]
        assert len(confirmed) > 1, "the first confirmation must have failed"
        assert len(race.results["p"]) == 1
        await assert_at_rest(world)

    asyncio.run(story())


def test_two_hosts_reclaim_one_empty_block() -> None:
    async def story() -> None:
        world = await world_of(BLOCK, "a", "b", "c", strict_affinity=True)
        await world.allocator("c").claim_affinity(BLOCK)
        world.clock.advance(61)
        race = Race(world)
        race.actor("a", maybe_one)
        race.actor("b", maybe_one)
        await race.run(("a", "update BlockAffinity"), ("b", ""), ("a", ""))
        race.raced("a: get BlockAffinity(host:c", "b: create IPAMBlock", "a: update BlockAffinity(host:c")
        assert len(race.results["b"]) == 1 and race.results["a"] == ()
        assert (await world.block(BLOCK)).affinity == "host:b"
        await assert_at_rest(world)

    asyncio.run(story())


def test_a_block_claimed_less_than_a_minute_ago_is_not_reclaimed_so_hosts_do_not_ping_pong() -> None:
    async def story() -> None:
        world = await world_of(strict_affinity=True)
        await world.allocator("a").claim_affinity(BLOCK)
        world.clock.advance(30)
        assert await maybe_one(world.allocator("b")) == ()
        world.clock.advance(31)
        assert len(await maybe_one(world.allocator("b"))) == 1
        await assert_at_rest(world)

    asyncio.run(story())


def test_freed_and_given_out_again_between_scan_and_release() -> None:
    async def story() -> None:
        world = await world_of()
        allocator = world.allocator("a")
        (address,) = await assign(allocator, 1, "first")
        seen = await world.block(BLOCK)
        number = blocks.sequence_number(seen, 0)
        for round_ in range(4):  # a /30: the fifth assignment is the same address again
            await allocator.release_by_handle("first" if round_ == 0 else f"r{round_ - 1}")
            (again,) = await assign(allocator, 1, f"r{round_}")
        assert again == address
        outcome = await allocator.release_ips([ReleaseRequest(address, "", number)])
        assert isinstance(outcome.error, BadSequenceNumber)
        assert (await world.owners())[address] == "r3"

    asyncio.run(story())


def test_a_recreated_block_starts_from_the_clock_so_old_numbers_never_match() -> None:
    async def story() -> None:
        world = await world_of()
        allocator = world.allocator("a")
        (address,) = await assign(allocator, 1, "h")
        number = blocks.sequence_number(await world.block(BLOCK), 0)
        await allocator.release_by_handle("h")
        await allocator.release_affinity(BLOCK)
        assert await world.blocks() == {}
        assert await assign(allocator, 1, "h") == (address,)
        outcome = await allocator.release_ips([ReleaseRequest(address, "h", number)])
        assert isinstance(outcome.error, BadSequenceNumber)

    asyncio.run(story())


def test_concurrent_updates_of_one_handle() -> None:
    async def story() -> None:
        world = await world_of("10.0.0.0/29")
        await world.allocator("a").claim_affinity("10.0.0.0/30")
        await world.allocator("b").claim_affinity("10.0.0.4/30")
        race = Race(world)
        race.actor("a", lambda allocator: assign(allocator, 1, "shared"))
        race.actor("b", lambda allocator: assign(allocator, 1, "shared"))
        await race.run(("a", "create IPAMHandle"), ("b", "update IPAMBlock"), ("a", ""))
        race.raced("b: create IPAMHandle", "a: create IPAMHandle", "a: update IPAMHandle")
        assert await world.handles() == {"shared": {"10.0.0.0/30": 1, "10.0.0.4/30": 1}}
        await assert_at_rest(world)

    asyncio.run(story())


def test_crash_after_counting_on_the_handle() -> None:
    async def story() -> None:
        world = await world_of()
        race = Race(world)
        race.actor("a", lambda allocator: assign(allocator, 1, "h"))
        await race.run(fates={"a: update IPAMBlock": "dies before"})
        assert await world.handles() == {"h": {BLOCK: 1}} and await world.owners() == {}
        await world.allocator("a").release_by_handle("h")  # what the runtime's DEL does
        assert await world.handles() == {}
        await assert_at_rest(world)

    asyncio.run(story())


@pytest.mark.parametrize(
    "write", ["update BlockAffinity", "delete IPAMBlock", "update IPAMBlock", "delete BlockAffinity"]
)
@pytest.mark.parametrize("fate", ["dies before", "dies after"])
def test_crash_in_a_release_of_an_affinity(write: str, fate: Fate) -> None:
    async def story() -> None:
        world = await world_of()
        allocator = world.allocator("a")
        await allocator.claim_affinity(BLOCK)
        if write == "update IPAMBlock":  # taken when the block is in use
            await assign(allocator, 1, "used")
        race = Race(world)
        race.actor("a", lambda allocator: allocator.remove_host())
        await race.run(fates={f"a: {write}": fate})
        assert "a" not in race.results, "it was to die"
        await assert_at_rest(world, exact=False)
        # The owner goes on: its next allocation completes or removes what was left half done.
        assert len(await one(world.allocator("a"))) == 1
        await assert_at_rest(world)

    asyncio.run(story())


def test_block_with_a_foreign_or_no_owner_has_its_stale_affinity_deleted() -> None:
    async def story() -> None:
        world = await world_of("10.0.0.0/29")
        await world.allocator("b").claim_affinity("10.0.0.0/30")
        used, _ = blocks.assign(blocks.new_block("10.0.0.4/30", Owner("x"), 1), 1, AllocationAttribute())
        disowned = blocks.disowned(used)
        await world.backend.create(BlockKey("10.0.0.4/30"), disowned)
        for cidr in ("10.0.0.0/30", "10.0.0.4/30"):
            await world.backend.create(AffinityKey(cidr, "a"), Affinity(state="confirmed"))
        await maybe_one(world.allocator("a"))
        assert {owner for owner, _ in await world.affinities()} == {"host:b"}

    asyncio.run(story())


@pytest.mark.parametrize("state", ["pending", "pendingDeletion"])
def test_an_allocator_that_knows_its_block_still_repairs_the_affinity(state: str) -> None:
    async def story() -> None:
        world = await world_of()
        allocator = world.allocator("a")
        await assign(allocator, 1, "first")
        await world.backend.apply(AffinityKey(BLOCK, "a"), Affinity(state=state))
        await assign(allocator, 1, "second")
        await assert_at_rest(world)

    asyncio.run(story())


def test_a_block_lost_while_writing_is_not_taken_from_under_strict_affinity() -> None:
    async def story() -> None:
        world = await world_of("10.0.0.0/29", strict_affinity=True)
        await assign(world.allocator("a"), 1, "used")
        (cidr,) = await world.blocks()
        race = Race(world)
        race.actor("a", one)
        race.actor("r", lambda allocator: allocator.release_affinity(cidr), host="a")
        await race.run(("a", "update IPAMBlock"), ("r", ""), ("a", ""))
        race.raced("a: create IPAMHandle", "r: update IPAMBlock", "a: update IPAMBlock")
        (address,) = race.results["a"]
        assert address not in map(str, addresses.network(cidr))
        await assert_at_rest(world)

    asyncio.run(story())


@pytest.mark.parametrize("state", ["confirmed", "pending", "pendingDeletion"])
def test_affinity_to_a_used_block_that_is_nobodys_is_removed_without_touching_the_block(state: str) -> None:
    async def story() -> None:
        world = await world_of()
        used, _ = blocks.assign(blocks.new_block(BLOCK, Owner("x"), 1), 1, AllocationAttribute(handle_id="h"))
        kv = await world.backend.create(BlockKey(BLOCK), blocks.disowned(used))
        await world.backend.create(AffinityKey(BLOCK, "a"), Affinity(state=state))
        await world.allocator("a").release_host_affinities(must_be_empty=True)
        assert await world.affinities() == {}
        assert (await world.backend.get(BlockKey(BLOCK))).revision == kv.revision

    asyncio.run(story())


def test_lost_race_for_the_block_of_a_specific_address_is_not_an_error() -> None:
    """Calico returns the claim conflict here, because it tests for the wrong error type."""

    async def story() -> None:
        world = await world_of()
        race = Race(world)
        race.actor("a", lambda allocator: allocator.assign_ip(AssignAddress("10.0.0.1", "h")))
        race.actor("b", lambda allocator: allocator.claim_affinity(BLOCK))
        await race.run(("a", "create IPAMBlock"), ("b", ""), ("a", ""))
        race.raced("a: create BlockAff", "b: create IPAMBlock", "a: create IPAMBlock", "a: update IPAMBlock")
        assert race.results["a"] is None
        assert await world.owners() == {"10.0.0.1": "h"}
        await assert_at_rest(world)

    asyncio.run(story())


def test_conflicts_do_not_inflate_the_handle_of_a_specific_address() -> None:
    """Calico's retry counts again without taking the first count back."""

    async def story() -> None:
        world = await world_of()
        race = Race(world)
        race.actor("a", lambda allocator: allocator.assign_ip(AssignAddress("10.0.0.1", "h")))
        race.actor("b", lambda allocator: assign(allocator, 1, "other"))
        await world.allocator("a").claim_affinity(BLOCK)
        await race.run(("a", "update IPAMBlock"), ("b", ""), ("a", ""))
        race.raced(
            "a: create IPAMHandle", "b: update IPAMBlock", "a: update IPAMBlock", "a: update IPAMHandle"
        )
        assert await world.handles() == {"h": {BLOCK: 1}, "other": {BLOCK: 1}}
        await assert_at_rest(world)

    asyncio.run(story())


def test_loser_of_a_specific_address_takes_its_count_back() -> None:
    async def story() -> None:
        world = await world_of()
        race = Race(world)
        for name in ("a", "b"):
            race.actor(name, lambda allocator: allocator.assign_ip(AssignAddress("10.0.0.1", allocator.host)))
        await world.allocator("a").claim_affinity(BLOCK)
        await race.run(("a", "update IPAMBlock"), ("b", ""), ("a", ""))
        assert isinstance(race.results["a"], ResourceAlreadyExists) and race.results["b"] is None
        await assert_at_rest(world)

    asyncio.run(story())


def test_release_by_handle_spares_an_assignment_that_is_just_being_made() -> None:
    async def story() -> None:
        world = await world_of()
        await world.allocator("a").claim_affinity(BLOCK)
        race = Race(world)
        race.actor("p", lambda allocator: assign(allocator, 1, "h"), host="a")
        race.actor("r", lambda allocator: allocator.release_by_handle("h"), host="a")
        await race.run(("p", "update IPAMBlock"), ("r", ""), ("p", ""))
        race.raced(
            "p: create IPAMHandle", "r: update IPAMBlock", "r: delete IPAMHandle", "p: update IPAMBlock"
        )
        assert race.results["r"] is None
        assert await world.owners() == {race.results["p"][0]: "h"}
        await assert_at_rest(world)  # above all: the handle counts it, so a later release finds it

    asyncio.run(story())


def test_release_by_handle_clears_counts_that_nothing_stands_behind() -> None:
    """Calico leaves such a handle behind for `ipam check`."""

    async def story() -> None:
        world = await world_of()
        allocator = world.allocator("a")
        await assign(allocator, 2, "h")
        await world.allocator("a").release_ips([ReleaseRequest("10.0.0.0"), ReleaseRequest("10.0.0.1")])
        race = Race(world)
        race.actor("a", lambda allocator: assign(allocator, 2, "h"))
        await race.run(fates={"a: update IPAMBlock": "dies before"})
        assert await world.handles() == {"h": {BLOCK: 2}}
        await allocator.release_by_handle("h")
        assert await world.handles() == {}
        with pytest.raises(ResourceDoesNotExist):
            await allocator.release_by_handle("h")

    asyncio.run(story())


def test_an_unanswered_block_write_leaves_the_address_findable_by_its_handle() -> None:
    """Calico takes the count back here, and nobody finds the address by its handle any more."""

    async def story() -> None:
        world = await world_of()
        race = Race(world)
        race.actor("a", lambda allocator: assign(allocator, 1, "h"))
        await race.run(fates={"a: update IPAMBlock": "unanswered"})
        assert await world.owners() == {"10.0.0.0": "h"}
        await world.allocator("a").release_by_handle("h")
        assert await world.owners() == {}
        await assert_at_rest(world)

    asyncio.run(story())
