"""The reference's edge cases (Calico IPAM, section 8) about getting blocks, named by their rows."""

import asyncio
from typing import Any

import pytest

from tests.ipam.ipam_world import assert_at_rest, assign, cluster, gone, run, try_assign
from tortie.core.errors import (
    DatastoreUnreachable,
)
from tortie.datastore.keys import AffinityKey, BlockKey, Key
from tortie.datastore.types.ipam import Affinity
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.errors import (
    AddressShortage,
    BlockLimitReached,
)

pytestmark = pytest.mark.unit


def test_01_exhausted_and_not_strict_borrows_and_then_says_so() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30)
        a, b = world.allocator("a"), world.allocator("b")
        await b.claim_affinity("10.0.0.0/29")
        world.clock.advance(10)  # too young to be reclaimed
        got = await try_assign(a, 8, "all")
        assert got.v4 is not None and len(got.v4.addresses) == 8 and got.v4.shortage == ""
        got = await try_assign(a, 1, "more")
        assert got.error is None and got.v4 is not None and got.v4.addresses == ()
        text = "Assigned 0 out of 1 requested IPv4 addresses; No IPs available in pools: [10.0.0.0/29]"
        with pytest.raises(AddressShortage) as caught:
            got.require_all()
        assert str(caught.value) == text
        assert await gone(a.ips_by_handle("more")), "a request that got nothing leaves nothing"
        await assert_at_rest(world)

    run(story())


def test_02_exhausted_and_strict_does_not_borrow() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30, strict_affinity=True)
        await assign(world.allocator("b"), 1, "b")
        got = await try_assign(world.allocator("a"), 1, "a")
        assert got.v4 is not None and got.v4.addresses == ()
        assert got.v4.notes == ("No more free affine blocks and strict affinity enabled",)

    run(story())


def test_03_257_of_a_24_gives_256_and_one_note() -> None:
    async def story() -> None:
        world = await cluster()
        got = await try_assign(world.allocator("a"), 257, "h")
        assert got.error is None and got.v4 is not None
        assert len(set(got.v4.addresses)) == 256
        assert got.v4.notes == ("No IPs available in pools: [10.0.0.0/24]",)
        assert all(address.endswith("/26") for address in got.v4.addresses)
        await assert_at_rest(world)

    run(story())


@pytest.mark.parametrize("strict", [True, False])
def test_04_at_the_block_limit_with_full_blocks_gives_a_part_and_the_limit_error(strict: bool) -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/24", 30, strict_affinity=strict)
        got = await try_assign(world.allocator("a"), 9, "h", max_blocks=2)
        assert isinstance(got.error, BlockLimitReached)
        assert str(got.error) == "cannot allocate new block due to per host block limit"
        assert got.v4 is not None and len(got.v4.addresses) == 8
        assert got.v4.notes == (
            "Need to allocate an IPAM block but could not - limit of 2 blocks reached for this node",
        )
        with pytest.raises(BlockLimitReached):
            got.require_all()

    run(story())


def test_04_without_any_limit_set_there_are_20_blocks() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/24", 30)
        got = await try_assign(world.allocator("a"), 100, "h")
        assert isinstance(got.error, BlockLimitReached)
        assert got.v4 is not None and len(got.v4.addresses) == 80

    run(story())


def test_05_at_the_limit_a_freed_address_of_an_own_block_is_used() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/24", 30, strict_affinity=True, maxBlocksPerHost=1)
        a = world.allocator("a")
        addresses = await assign(a, 4, "h")
        assert isinstance((await try_assign(a, 1, "x")).error, BlockLimitReached)
        await a.release_ips([ReleaseRequest(addresses[2])])
        assert await assign(a, 1, "x") == (addresses[2],)

    run(story())


@pytest.mark.parametrize(
    ("configured", "requested", "most"), [(3, 2, 2), (2, 3, 2), (0, 2, 2), (2, 0, 2), (0, 0, 20)]
)
def test_06_the_smaller_limit_that_is_set_holds(configured: int, requested: int, most: int) -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/24", 30, strict_affinity=configured > 0, maxBlocksPerHost=configured)
        got = await try_assign(world.allocator("a"), 200, "h", max_blocks=requested)
        assert got.v4 is not None and len(got.v4.addresses) == 4 * most

    run(story())


def test_07_32_hosts_race_for_16_blocks() -> None:
    async def story() -> None:
        hosts = [f"host-{n}" for n in range(32)]
        world = await cluster("10.0.0.0/26", 30, *hosts)
        got = await asyncio.gather(*(assign(world.allocator(host), 1, host) for host in hosts))
        assert len({address for (address,) in got}) == 32
        affinities = await world.affinities()
        assert len(affinities) == 16 and set(affinities.values()) == {"confirmed"}
        assert len({owner for owner, _ in affinities}) == 16
        await assert_at_rest(world)

    run(story())


def test_08_four_concurrent_first_requests_of_one_host_share_one_block() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        got = await asyncio.gather(*(assign(a, 1, f"h{n}") for n in range(4)))
        assert len({address for (address,) in got}) == 4
        assert len(await world.blocks()) == 1
        await assert_at_rest(world)

    run(story())


def test_08_as_two_processes_they_need_two_blocks_at_most() -> None:
    async def story() -> None:
        world = await cluster()
        allocators = [world.allocator("a") for _ in range(4)]
        got = await asyncio.gather(*(assign(a, 1, f"h{n}") for n, a in enumerate(allocators)))
        assert len({address for (address,) in got}) == 4
        assert len(await world.blocks()) <= 2
        await assert_at_rest(world)

    run(story())


def test_09_the_same_host_claims_one_range_four_times_at_once() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/24", 28)
        got = await asyncio.gather(*(world.allocator("a").claim_affinity("10.0.0.0/26") for _ in range(4)))
        expected = ["10.0.0.0/28", "10.0.0.16/28", "10.0.0.32/28", "10.0.0.48/28"]
        assert got == [(expected, [])] * 4
        await assert_at_rest(world)

    run(story())


def test_10_a_loser_that_cannot_take_its_pending_affinity_back_goes_elsewhere_and_removes_it_later() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30, strict_affinity=True)
        lost: list[str] = []

        async def overtake(operation: str, what: Any) -> None:
            if operation == "create" and isinstance(what, BlockKey) and not lost:
                lost.append(what.cidr)
                await world.allocator("b").claim_affinity(what.cidr)
            if operation == "delete" and isinstance(what, AffinityKey) and what.host == "a":
                raise DatastoreUnreachable("gone")

        world.backend.before = overtake  # type: ignore[attr-defined]
        a = world.allocator("a")
        (address,) = await assign(a, 1, "h")
        affinities = await world.affinities()
        assert affinities["host:a", lost[0]] == "pending" and affinities["host:b", lost[0]] == "confirmed"
        world.backend.before = None  # type: ignore[attr-defined]
        await assign(a, 3, "rest")
        assert (await try_assign(a, 1, "more")).v4.addresses == ()  # type: ignore[union-attr]
        assert ("host:a", lost[0]) not in await world.affinities()
        assert address in await world.owners()
        await assert_at_rest(world)

    run(story())


@pytest.mark.parametrize(("cidr", "size", "version"), [("10.0.0.0/30", 32, 4), ("fd00::/126", 128, 6)])
def test_11_blocks_of_one_address(cidr: str, size: int, version: int) -> None:
    async def story() -> None:
        world = await cluster(cidr, size)
        chances = iter([0.3, 0.9, 0.0, 0.3, 0.6, 0.0, 0.1, 0.2] * 4)
        a = world.allocator("a", rand=lambda: next(chances))
        (first,) = await assign(a, 1, "h1", version)
        assert first.endswith("1"), "the start is chance, not the host's name"
        assert len(await assign(a, 3, "h3", version)) == 3
        for handle in ("h1", "h3"):
            await a.release_by_handle(handle)
        b = world.allocator("b")
        await assign(b, 1, "b", version)  # borrowed, not strict
        await b.release_by_handle("b")
        await world.configure(strict_affinity=True)
        short = await try_assign(b, 1, "b", version)
        assert (short.v4 or short.v6).addresses == ()  # type: ignore[union-attr]
        world.clock.advance(61)
        await assign(b, 1, "b", version)
        assert len([owner for owner, _ in await world.affinities() if owner == "host:b"]) == 1
        await assert_at_rest(world)

    run(story())


def test_12_an_empty_block_claimed_30_s_ago_is_not_reclaimed() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30, strict_affinity=True)
        await world.allocator("b").claim_affinity("10.0.0.0/30")
        world.clock.advance(30)
        got = await try_assign(world.allocator("a"), 1, "h")
        assert got.error is None and got.v4 is not None and got.v4.addresses == ()

    run(story())


def test_13_a_failing_reclaim_goes_on_with_the_next_block() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30, strict_affinity=True)
        await world.allocator("b").claim_affinity("10.0.0.0/29")
        world.clock.advance(61)
        refused: list[Key] = []

        async def refuse_first(operation: str, what: Any) -> None:
            if operation == "update" and isinstance(what, AffinityKey) and what.host == "b" and not refused:
                refused.append(what)
                world.backend.before = None  # type: ignore[attr-defined]
                await world.allocator("b").release_affinity(what.cidr)
                await world.allocator("b").claim_affinity(what.cidr)

        world.backend.before = refuse_first  # type: ignore[attr-defined]
        assert len(await assign(world.allocator("a"), 1, "h")) == 1
        assert refused
        affinities = await world.affinities()
        assert affinities["host:b", refused[0].cidr] == "confirmed"  # type: ignore[union-attr]
        await assert_at_rest(world)

    run(story())


def test_13_a_silent_datastore_ends_reclaiming_with_its_error() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30, strict_affinity=True)
        await world.allocator("b").claim_affinity("10.0.0.0/29")
        world.clock.advance(61)

        async def fail(operation: str, what: Any) -> None:
            if operation == "update" and isinstance(what, AffinityKey):
                raise DatastoreUnreachable("gone")

        world.backend.before = fail  # type: ignore[attr-defined]
        got = await try_assign(world.allocator("a"), 1, "h")
        assert isinstance(got.error, DatastoreUnreachable)

    run(story())


def test_14_a_block_as_large_as_the_pool_is_shared_by_borrowing() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/26", 26)
        first = await assign(world.allocator("a"), 1, "a")
        second = await assign(world.allocator("b"), 1, "b")
        assert first != second and len(await world.blocks()) == 1
        await assert_at_rest(world)

    run(story())


def test_66_an_affinity_without_a_block_is_completed_by_its_owner_and_tolerated_by_releases() -> None:
    async def story() -> None:
        world = await cluster()
        for state in ("pending", "pendingDeletion", "confirmed", ""):
            await world.backend.create(AffinityKey("10.0.0.64/26", "a"), Affinity(state=state))
            assert await assign(world.allocator("a"), 1, "h") == ("10.0.0.64",)
            await assert_at_rest(world)
            await world.allocator("a").release_by_handle("h")
            await world.allocator("a").release_host_affinities(must_be_empty=True)
            assert await world.affinities() == {}, state
            await world.backend.create(AffinityKey("10.0.0.64/26", "a"), Affinity(state=state))
            await world.allocator("a").release_affinity("10.0.0.0/24")
            assert await world.affinities() == {}, "Calico leaves it behind"

    run(story())


def test_67_a_block_without_an_affinity_object_is_borrowable_and_goes_when_its_host_goes() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30)
        orphan = blocks.new_block("10.0.0.0/30", Owner("a"), world.clock())
        await world.backend.create(BlockKey(orphan.cidr), orphan)
        b = world.allocator("b")
        assert len(await assign(b, 8, "h")) == 8
        await b.release_by_handle("h")
        await world.allocator("a").remove_host()
        assert "10.0.0.0/30" not in await world.blocks()

    run(story())


def test_67_an_empty_one_of_a_host_long_gone_can_be_reclaimed() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30, strict_affinity=True)
        orphan = blocks.new_block("10.0.0.0/30", Owner("gone"), world.clock())
        await world.backend.create(BlockKey(orphan.cidr), orphan)
        world.clock.advance(61)
        assert await assign(world.allocator("a"), 1, "h") == ("10.0.0.0",)
        await assert_at_rest(world)

    run(story())
