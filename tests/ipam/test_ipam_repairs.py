"""What crashes, lost answers and lost races leave, and how the next one to come along repairs it.

(Reference: Calico IPAM, 2.14; where Calico leaves something behind, the test says so.)
"""

import asyncio

import pytest

from tests.ipam.ipam_race import BLOCK, Race, maybe_one, one, world_of
from tests.ipam.ipam_scheduler import Fate
from tests.ipam.ipam_world import assert_at_rest, assign, gone
from tortie.core.errors import ResourceAlreadyExists, ResourceDoesNotExist
from tortie.datastore.keys import AffinityKey, BlockKey, HandleKey
from tortie.datastore.types.ipam import Affinity, AllocationAttribute
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.requests import AssignAddress

pytestmark = pytest.mark.unit


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


def test_an_own_affinity_that_cannot_be_read_is_made_anew() -> None:
    """It is in the way of the very block that the host would claim, at every assignment."""

    async def story() -> None:
        world = await world_of()
        await assign(world.allocator("a"), 1, "probe")
        await world.allocator("a").release_by_handle("probe")
        ((_, cidr),) = await world.affinities()
        await world.allocator("a").release_host_affinities(must_be_empty=True)
        path = AffinityKey(cidr, "a").path()
        await world.backend.put_raw(path, '{"state": [')  # type: ignore[attr-defined]
        (address,) = await assign(world.allocator("a"), 1, "h")
        assert await world.affinities() == {("host:a", cidr): "confirmed"}, address
        await assert_at_rest(world)

    asyncio.run(story())


def test_a_handle_that_cannot_be_read_is_released_by_what_the_blocks_say() -> None:
    async def story() -> None:
        world = await world_of("10.0.0.0/28")  # four blocks
        allocator = world.allocator("a")
        await assign(allocator, 6, "h")
        (kept,) = await assign(allocator, 1, "other")
        await world.backend.put_raw(HandleKey("h").path(), '{"block": "h"')  # type: ignore[attr-defined]
        await allocator.release_by_handle("h")
        assert await world.owners() == {kept.partition("/")[0]: "other"}
        assert await gone(allocator.release_by_handle("h"))
        await assert_at_rest(world)

    asyncio.run(story())


def test_an_own_block_that_cannot_be_read_is_left_alone_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        world = await world_of("10.0.0.0/28")  # four blocks
        allocator = world.allocator("a")
        await assign(allocator, 1, "first")
        ((cidr, block),) = (await world.blocks()).items()
        path = BlockKey(cidr).path()
        for _ in range(2):
            await world.backend.put_raw(path, "{")  # type: ignore[attr-defined]
            caplog.clear()
            for number in range(6):  # more than one block has
                await assign(allocator, 1, f"h-{number}")
            assert [path in text for text in caplog.messages if "malformed" in text] == [True], caplog.text
            await world.backend.apply(BlockKey(cidr), block)
            for number in range(6):
                await allocator.release_by_handle(f"h-{number}")
            await assign(allocator, 10, "all")  # for which all blocks are looked at
            await allocator.release_by_handle("all")

    asyncio.run(story())
