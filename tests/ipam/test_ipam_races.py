"""Each race of the reference (Calico IPAM, 2.14), told step by step, with the resolution it must have."""

import asyncio

import pytest

from tests.ipam.ipam_race import BLOCK, Race, maybe_one, one, world_of
from tests.ipam.ipam_world import assert_at_rest, assign
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import BadSequenceNumber, BlockNotEmpty

pytestmark = pytest.mark.unit


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
