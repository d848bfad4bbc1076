"""The reference's list of edge cases (Calico IPAM, section 8), one test each, named by its row."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, assert_at_rest, assign, gone, try_assign
from tortie.core.errors import (
    DatastoreUnreachable,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
)
from tortie.datastore.keys import AffinityKey, BlockKey, HandleKey, IPAMHostKey, Key
from tortie.datastore.selector import SelectorError
from tortie.datastore.types.ipam import Affinity, Handle
from tortie.datastore.types.ippool import IPPool, IPReservation
from tortie.datastore.types.node import Node
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.cluster import delete_pool
from tortie.ipam.errors import (
    AddressShortage,
    BadHandle,
    BadSequenceNumber,
    BlockLimitReached,
    InCooldown,
    IPAMError,
)
from tortie.ipam.names import NODE
from tortie.ipam.requests import AssignAddress

pytestmark = pytest.mark.unit


FIRST = "10.0.0.192/26"  # where host `a` starts in 10.0.0.0/24; `b` starts at 10.0.0.64/26


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def cluster(cidr: str = "10.0.0.0/24", block_size: int = 26, *hosts: str, **config: Any) -> World:
    """One pool and some nodes; `a` and `b` unless others are named."""
    world = World()
    await world.pool("pool", cidr, block_size)
    await world.nodes(*(hosts or ("a", "b")))
    await world.configure(**config)
    return world


def text_of(err: TortieError | None) -> str:
    return str(err)


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


# Row 10 is test_a_leftover_pending_affinity_is_removed_when_next_looked_at in test_ipam_races.py.


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


def test_15_a_pool_deleted_while_pods_use_it() -> None:
    async def story() -> None:
        world = await cluster()
        await world.pool("other", "10.1.0.0/24")
        a = world.allocator("a")
        (address,) = await assign(a, 1, "pod", pools4=("10.0.0.0/24",))
        waits: list[float] = []

        async def wait(seconds: float) -> None:
            waits.append(seconds)
            assert (await world.client.get(IPPool, "pool")).spec.disabled

        deleted = await delete_pool(world.client, a, "pool", sleep=wait)
        assert waits == [0.5] and deleted is not None and deleted.name == "pool"
        (block,) = (await world.blocks()).values()
        assert block.affinity is None and await world.owners() == {address: "pod"}
        assert await world.affinities() == {}
        (elsewhere,) = await assign(a, 1, "next")
        assert elsewhere.startswith("10.1.0.")
        await a.release_by_handle("pod")
        assert [b.cidr for b in (await world.blocks()).values()] == ["10.1.0.192/26"]
        await assert_at_rest(world)

    run(story())


@pytest.mark.parametrize("how", ["deleted", "disabled"])
def test_16_release_from_a_pool_that_is_deleted_or_disabled(how: str) -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        addresses = await assign(a, 2, "h")
        if how == "deleted":
            await world.client.delete(IPPool, "pool")
        else:
            await _disable(world, "pool")
        outcome = await a.release_ips([ReleaseRequest(address) for address in (*addresses, "10.9.9.9")])
        assert outcome.error is None and outcome.unallocated == ("10.9.9.9",)
        assert [request.address for request in outcome.done] == list(addresses)
        assert await world.owners() == {} and await world.handles() == {}

    run(story())


async def _disable(world: World, name: str) -> None:
    pool = await world.client.get(IPPool, name)
    await world.client.update(structs.replace(pool, spec=structs.replace(pool.spec, disabled=True)))


def test_17_a_disabled_pool_gives_nothing_new() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        (address,) = await assign(a, 1, "h")
        await _disable(world, "pool")
        got = await try_assign(a, 1, "x")
        assert text_of(got.error) == "cannot find a qualified ippool"
        got = await try_assign(a, 1, "x", pools4=("10.0.0.0/24",))
        assert text_of(got.error) == "cannot find a qualified ippool"
        with pytest.raises(IPAMError, match="The provided IP address is not in a configured pool\n"):
            await a.assign_ip(AssignAddress("10.0.0.77"))
        assert await world.owners() == {address: "h"}
        assert await gone(a.attributes(address)), "what `show --ip` prints as: not assigned"

    run(story())


@pytest.mark.parametrize("cidr", ["10.0.0.0/25", "10.0.0.0/23", "10.0.0.0/26"])
def test_18_a_requested_cidr_must_be_a_pool(cidr: str) -> None:
    async def story() -> None:
        world = await cluster()
        got = await try_assign(world.allocator("a"), 1, "h", pools4=(cidr,))
        assert text_of(got.error) == f"the given pool ({cidr}) does not exist, or is not enabled"

    run(story())


def test_19_one_bogus_pool_fails_the_whole_request() -> None:
    async def story() -> None:
        world = await cluster()
        got = await try_assign(world.allocator("a"), 1, "h", pools4=("10.0.0.0/24", "10.7.0.0/24"))
        assert text_of(got.error) == "the given pool (10.7.0.0/24) does not exist, or is not enabled"
        assert await world.blocks() == {} and await world.handles() == {}

    run(story())


def test_20_requested_pools_need_not_select_the_node_but_must_allow_the_use() -> None:
    async def story() -> None:
        world = await cluster()
        await world.pool("elsewhere", "10.1.0.0/24", nodeSelector="has(rack)")
        await world.pool("manual", "10.2.0.0/24", assignmentMode="Manual")
        await world.pool("spaces", "10.3.0.0/24", namespaceSelector="has(x)", allowedUses=("Workload",))
        await world.pool("tunnels", "10.4.0.0/24", allowedUses=("Tunnel",))
        a = world.allocator("a")
        for net in ("10.1.0", "10.2.0", "10.3.0"):
            (address,) = await assign(a, 1, net, pools4=(f"{net}.0/24",))
            assert address.startswith(net)
        got = await try_assign(a, 1, "t", pools4=("10.4.0.0/24",))
        assert text_of(got.error) == (
            "cannot find a qualified ippool, no pools match the required use (Workload)"
        )
        (address,) = await assign(a, 1, "t", pools4=("10.4.0.0/24",), use="Tunnel")
        assert address.startswith("10.4.0.")

    run(story())


def test_20_requested_pools_are_used_in_the_requested_order() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30)
        await world.pool("zz", "10.1.0.0/30", 30)
        got = await try_assign(world.allocator("a"), 6, "h", pools4=("10.1.0.0/30", "10.0.0.0/30"))
        assert got.v4 is not None
        assert [address[:4] for address in got.v4.addresses] == ["10.1"] * 4 + ["10.0"] * 2

    run(story())


def test_21_a_label_change_takes_the_block_away_once_it_is_empty() -> None:
    async def story() -> None:
        world = World()
        await world.pool("pool", "10.0.0.0/24", 26, nodeSelector='rack == "1"')
        await world.node("a", rack="1")
        a = world.allocator("a")
        (address,) = await assign(a, 1, "h")
        await world.label("a", rack="2")
        got = await try_assign(a, 1, "x")
        assert text_of(got.error) == "no configured Calico pools for node a"
        assert await world.owners() == {address: "h"} and len(await world.affinities()) == 1
        await a.release_by_handle("h")  # now it is empty
        assert await world.affinities() == {} and await world.blocks() == {}

    run(story())


def test_21_or_at_the_next_assignment_from_another_pool() -> None:
    async def story() -> None:
        world = World()
        await world.pool("one", "10.0.0.0/24", 26, nodeSelector='rack == "1"')
        await world.pool("two", "10.1.0.0/24", 26)
        await world.node("a", rack="1")
        a = world.allocator("a")
        await a.claim_affinity("10.0.0.0/26")
        await a.claim_affinity("10.0.0.64/26")
        await a.assign_ip(AssignAddress("10.0.0.70", "keeps"))
        await world.label("a")
        await assign(a, 1, "h")
        assert sorted(cidr for _, cidr in await world.affinities()) == ["10.0.0.64/26", "10.1.0.192/26"]

    run(story())


def test_21_an_explicit_request_or_another_use_releases_nothing() -> None:
    async def story() -> None:
        world = await cluster()
        await world.pool("tunnels", "10.1.0.0/24", allowedUses=("Tunnel",))
        a = world.allocator("a")
        await a.claim_affinity("10.0.0.0/26")
        await a.claim_affinity("10.1.0.0/26")
        await assign(a, 1, "h", use="Tunnel", pools4=("10.1.0.0/24",))
        await assign(a, 1, "h")
        assert len(await world.affinities()) == 2

    run(story())


@pytest.mark.parametrize(
    ("selector", "labels", "chosen"),
    [
        ("has(x)", None, False),
        ("all()", None, True),
        ("!has(x)", None, True),
        ("has(x)", {"x": "1"}, True),
        ('x == "2"', {"x": "1"}, False),
    ],
)
def test_22_namespace_selectors_see_no_labels_where_no_namespace_is_known(
    selector: str, labels: dict[str, str] | None, chosen: bool
) -> None:
    async def story() -> None:
        world = World()
        await world.pool("pool", "10.0.0.0/24", namespaceSelector=selector, allowedUses=("Workload",))
        await world.node("a")
        got = await try_assign(world.allocator("a"), 1, "h", namespace_labels=labels)
        assert (got.error is None) == chosen
        if not chosen:
            assert text_of(got.error) == "no configured Calico pools for node a"

    run(story())


def test_23_an_invalid_selector_fails_with_the_parse_error() -> None:
    async def story() -> None:
        world = await cluster()
        path = "/calico/resources/v3/projectcalico.org/ippools/broken"
        await world.backend.put_raw(  # type: ignore[attr-defined]
            path,
            '{"kind":"IPPool","metadata":{"name":"broken"},"spec":{"cidr":"10.1.0.0/24","nodeSelector":"=="}}',
        )
        got = await try_assign(world.allocator("a"), 1, "h")
        assert isinstance(got.error, SelectorError)
        assert await assign(world.allocator("a"), 1, "h", pools4=("10.0.0.0/24",))

    run(story())


def test_24_without_a_node_only_a_specific_address_is_given() -> None:
    async def story() -> None:
        world = await cluster()
        stranger = world.allocator("stranger")
        got = await try_assign(stranger, 1, "h")
        assert isinstance(got.error, ResourceDoesNotExist) and "Node(stranger)" in str(got.error)
        await stranger.assign_ip(AssignAddress("10.0.0.1", "h"))
        assert (await world.block("10.0.0.0/26")).affinity == "host:stranger"

    run(story())


def test_25_a_renamed_node_claims_its_own_blocks() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30, "old", "new", strict_affinity=True)
        await assign(world.allocator("old"), 1, "pod")
        (address,) = await assign(world.allocator("new"), 1, "pod2")
        owners = {block.affinity for block in (await world.blocks()).values()}
        assert owners == {"host:old", "host:new"} and address in await world.owners()

    run(story())


def test_26_long_hostnames_with_equal_beginnings_have_their_own_affinities() -> None:
    async def story() -> None:
        long = "n" * 240
        names = [f"{long}.a", f"{long}.b"]
        world = await cluster("10.0.0.0/24", 26, *names)
        for name in names:
            await assign(world.allocator(name), 1, name[-1])
        assert {owner for owner, _ in await world.affinities()} == {f"host:{name}" for name in names}
        await world.allocator(names[0]).remove_host()
        assert {owner for owner, _ in await world.affinities()} == {f"host:{names[1]}"}

    run(story())


@pytest.mark.parametrize("number", [2**53 + 1, 2**64 - 2, 2**64 - 1])
def test_27_sequence_numbers_are_exact_up_to_64_bits_and_wrap(number: int) -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30)
        a = world.allocator("a")
        await a.claim_affinity("10.0.0.0/30")
        kv = await world.backend.get(BlockKey("10.0.0.0/30"))
        await world.backend.apply(kv.key, structs.replace(kv.value, sequenceNumber=number))
        (address,) = await assign(a, 1, "h")
        stored = await world.block("10.0.0.0/30")
        assert stored.sequenceNumber == (number + 1) % 2**64
        assert blocks.sequence_number(stored, 0) == number
        near = await a.release_ips([ReleaseRequest(address, "h", number - 1)])
        assert isinstance(near.error, BadSequenceNumber)
        exact = await a.release_ips([ReleaseRequest(address, "h", number)])
        assert exact.error is None and await world.owners() == {}

    run(story())


def test_28_a_stale_sequence_number_keeps_the_address_and_hurts_no_other_block() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/24", 30)
        a = world.allocator("a")
        addresses = await assign(a, 8, "h")
        requests = [ReleaseRequest(addresses[0], "h", 1), *map(ReleaseRequest, addresses[1:])]
        outcome = await a.release_ips(requests)
        assert isinstance(outcome.error, UpdateConflict)
        assert [request.address for request in outcome.done] == list(addresses[4:])
        assert sorted(await world.owners()) == sorted(addresses[:4])
        await assert_at_rest(world)

    run(story())


# Row 29 is test_a_recreated_block_starts_from_the_clock_so_old_numbers_never_match in test_ipam_races.py.


def test_30_a_number_for_a_free_address_is_a_conflict_unless_it_is_zero() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        await assign(a, 1, "h")
        free = "10.0.0.200"
        assert isinstance((await a.release_ips([ReleaseRequest(free, "", 5)])).error, BadSequenceNumber)
        outcome = await a.release_ips([ReleaseRequest(free, "", 0)])
        assert outcome.error is None and outcome.unallocated == (free,)

    run(story())


def test_31_a_wrong_handle_releases_nothing_in_the_block() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        (one,) = await assign(a, 1, "h1")
        (two,) = await assign(a, 1, "h2")
        outcome = await a.release_ips([ReleaseRequest(one, "h1"), ReleaseRequest(two, "h1")])
        assert isinstance(outcome.error, BadHandle) and outcome.done == ()
        assert await world.owners() == {one: "h1", two: "h2"}

    run(story())


def test_32_duplicates_count_once() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        one, two = await assign(a, 2, "h")
        outcome = await a.release_ips([ReleaseRequest(one)] * 5)
        assert outcome.error is None and outcome.unallocated == ()
        assert await world.handles() == {"h": {FIRST: 1}}
        assert await world.owners() == {two: "h"}

    run(story())


def test_33_a_free_or_cooling_address_is_reported_and_nothing_is_written() -> None:
    async def story() -> None:
        world = await cluster(ipCooldownSeconds=60)
        a = world.allocator("a")
        (address,) = await assign(a, 1, "h")
        await a.release_by_handle("h")
        before = await world.block(FIRST)
        outcome = await a.release_ips([ReleaseRequest(address), ReleaseRequest("10.0.0.200")])
        assert outcome.error is None and outcome.unallocated == (address, "10.0.0.200")
        assert await world.block(FIRST) == before
        with pytest.raises(InCooldown, match=f"address {address} is in cooldown"):
            await a.attributes(address)

    run(story())


def test_34_an_unknown_handle_does_not_exist() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        with pytest.raises(ResourceDoesNotExist, match="nobody"):
            await a.release_by_handle("nobody")
        with pytest.raises(ResourceDoesNotExist):
            await a.ips_by_handle("nobody")

    run(story())


def test_35_the_last_address_of_an_ownerless_block_takes_it_along() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        one, two = await assign(a, 2, "h")
        await a.release_host_affinities(must_be_empty=False)
        assert (await world.block(FIRST)).affinity is None
        await a.release_ips([ReleaseRequest(one)])
        conflicts = 0

        async def interfere(operation: str, what: Any) -> None:
            nonlocal conflicts
            if operation == "delete" and what == BlockKey(FIRST) and not conflicts:
                conflicts += 1
                kv = await world.backend.get(what)
                await world.backend.update(kv)

        world.backend.before = interfere  # type: ignore[attr-defined]
        await a.release_ips([ReleaseRequest(two)])
        assert conflicts == 1 and await world.blocks() == {} and await world.handles() == {}

    run(story())


def test_36_addresses_come_back_in_the_order_they_were_freed() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30)
        a = world.allocator("a")
        order: list[str] = []
        for n in range(5):
            order += await assign(a, 1, f"h{n}")
            await a.release_by_handle(f"h{n}")
        assert order == ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.0"]

    run(story())


def test_37_a_block_of_cooling_addresses_is_full_and_not_empty() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30, ipCooldownSeconds=60)
        a = world.allocator("a")
        first = await assign(a, 4, "h")
        await a.release_by_handle("h")
        with pytest.raises(TortieError, match="is not empty"):
            await a.release_host_affinities(must_be_empty=True)
        second = await assign(a, 4, "h")
        assert not set(first) & set(second)
        assert (await try_assign(a, 1, "x")).v4.addresses == ()  # type: ignore[union-attr]
        world.clock.advance(59)
        assert (await try_assign(a, 1, "x")).v4.addresses == ()  # type: ignore[union-attr]
        world.clock.advance(2)
        assert await assign(a, 4, "x") == first
        await assert_at_rest(world)

    run(story())


def test_37_the_collector_frees_what_nobody_touches() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30, ipCooldownSeconds=60)
        a = world.allocator("a")
        await assign(a, 2, "h")
        await a.release_host_affinities(must_be_empty=False)
        await a.release_by_handle("h")
        (cidr,) = await world.blocks()
        await a.free_cooled(await world.backend.get(BlockKey(cidr)))
        assert list(await world.blocks()) == [cidr], "still cooling"
        world.clock.advance(61)
        await a.free_cooled(await world.backend.get(BlockKey(cidr)))
        assert await world.blocks() == {}, "nobody's and empty"

    run(story())


@pytest.mark.parametrize(
    ("reserved", "usable"),
    [
        (["10.0.0.0/30"], 4),  # a whole block
        (["10.0.0.0/31", "10.0.0.2/31"], 4),  # by halves
        (["10.0.0.0", "10.0.0.1/32", " 10.0.0.2 ", "10.0.0.3", ""], 4),  # by single addresses
        (["10.0.0.0/31", "10.0.0.4"], 5),
        (["10.0.0.0/8"], 0),
        (["0.0.0.0/0"], 0),
        (["nonsense", "10.0.0.300", "fd00::/8"], 8),
    ],
)
def test_38_reserved_addresses_are_passed_over(reserved: list[str], usable: int) -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30)
        for n, entry in enumerate(reserved):
            path = f"/calico/resources/v3/projectcalico.org/ipreservations/r{n}"
            await world.backend.put_raw(  # type: ignore[attr-defined]
                path, f'{{"kind":"IPReservation","metadata":{{}},"spec":{{"reservedCIDRs":["{entry}"]}}}}'
            )
        got = await try_assign(world.allocator("a"), 9, "h")
        assert got.v4 is not None and len(got.v4.addresses) == usable
        assert len(await world.blocks()) == -(-usable // 4)
        await assert_at_rest(world)

    run(story())


def test_38_reserved_addresses_keep_their_place_in_the_list() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 29)
        await world.reserve("r", "10.0.0.2/31")
        a = world.allocator("a")
        assert await assign(a, 3, "h") == ("10.0.0.0", "10.0.0.1", "10.0.0.4")
        assert (await world.block("10.0.0.0/29")).unallocated == (2, 3, 5, 6, 7)
        await world.client.delete(IPReservation, "r")
        assert await assign(a, 1, "x") == ("10.0.0.2",)

    run(story())


def test_38_a_block_with_only_reserved_addresses_left_is_not_borrowed_from() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30)
        await world.reserve("r", "10.0.0.2/31")
        await assign(world.allocator("a"), 2, "h")
        got = await try_assign(world.allocator("b"), 1, "x")
        assert got.v4 is not None and got.v4.addresses == ()

    run(story())


def test_39_a_reserved_address_is_given_to_who_names_it() -> None:
    async def story() -> None:
        world = await cluster()
        await world.reserve("r", "10.0.0.0/24")
        await world.allocator("a").assign_ip(AssignAddress("10.0.0.9", "h"))
        assert await world.owners() == {"10.0.0.9": "h"}

    run(story())


def test_40_a_specific_address_has_four_refusals() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/24", 26, strict_affinity=True)
        await world.pool("tunnels", "10.1.0.0/24", allowedUses=("Tunnel",))
        a, b = world.allocator("a"), world.allocator("b")
        await a.assign_ip(AssignAddress("10.0.0.1", "h"))
        with pytest.raises(ResourceAlreadyExists) as taken:
            await a.assign_ip(AssignAddress("10.0.0.1", "other"))
        assert str(taken.value).endswith("10.0.0.1 with error: Address already assigned in block")
        with pytest.raises(IPAMError) as outside:
            await a.assign_ip(AssignAddress("192.0.2.1", "other"))
        assert str(outside.value) == "The provided IP address is not in a configured pool\n"
        with pytest.raises(IPAMError) as use:
            await a.assign_ip(AssignAddress("10.1.0.1", "other", use="Workload"))
        assert str(use.value) == (
            'IP address 10.1.0.1 is in IP pool "tunnels", which is not allowed for use "Workload" '
            "(allowedUses: [Tunnel])"
        )
        with pytest.raises(IPAMError) as foreign:
            await b.assign_ip(AssignAddress("10.0.0.2", "other"))
        assert str(foreign.value) == "Block host affinity does not match"
        assert await gone(a.ips_by_handle("other")), "refusals leave nothing counted"
        await assert_at_rest(world)

    run(story())


def test_40_without_a_use_none_is_checked_and_nonsense_is_refused() -> None:
    async def story() -> None:
        world = await cluster()
        await world.pool("tunnels", "10.1.0.0/24", allowedUses=("Tunnel",))
        await world.allocator("a").assign_ip(AssignAddress("10.1.0.1"))
        for nonsense in ("", "10.1.0", "10.1.0.1/32", "fe80::1%eth0", "localhost"):
            with pytest.raises(IPAMError, match="invalid IP address specified"):
                await world.allocator("a").assign_ip(AssignAddress(nonsense))

    run(story())


def test_41_a_specific_address_claims_its_block_beyond_all_limits() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/24", 30, strict_affinity=True, maxBlocksPerHost=1)
        await world.configure(strict_affinity=True, auto_allocate_blocks=False)
        a = world.allocator("a")
        for n in range(4):
            await a.assign_ip(AssignAddress(f"10.0.0.{n * 4}", f"h{n}"))
        assert len(await world.affinities()) == 4
        await assert_at_rest(world)

    run(story())


def test_42_dual_stack_with_ipv6_full_gives_ipv4_and_names_ipv6() -> None:
    async def story() -> None:
        world = await cluster()
        await world.pool("six", "fd00::/128", 128)
        await world.allocator("b").assign_ip(AssignAddress("fd00::", "b"))
        a = world.allocator("a")
        got = await try_assign(a, 1, "h", num6=1)
        assert got.v4 is not None and len(got.v4.addresses) == 1
        with pytest.raises(AddressShortage) as short:
            got.require_all()
        assert str(short.value) == (
            "Assigned 0 out of 1 requested IPv6 addresses; No IPs available in pools: [fd00::/128]"
        )
        await a.release_by_handle("h")
        assert list((await world.owners()).values()) == ["b"]
        await assert_at_rest(world)

    run(story())


def test_43_dual_stack_without_an_ipv6_pool_returns_ipv4_together_with_the_error() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        got = await try_assign(a, 1, "h", num6=1)
        assert got.v4 is not None and len(got.v4.addresses) == 1
        assert text_of(got.error) == "cannot find a qualified ippool"
        with pytest.raises(IPAMError):
            got.require_all()
        await a.release_by_handle("h")
        assert await world.owners() == {}

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


def test_68_old_data_reads_as_host_confirmed_old_and_empty() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30, strict_affinity=True)
        put = world.backend.put_raw  # type: ignore[attr-defined]
        await put("/calico/ipam/v2/host/a/ipv4/block/10.0.0.0-30", "")
        await put(
            "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30",
            '{"cidr":"10.0.0.0/30","affinity":"host:a","hostAffinity":"a","allocations":[null,null,null,null],'
            '"unallocated":[3,1,2,0],"attributes":null,"strictAffinity":false,"sequenceNumber":0,'
            '"sequenceNumberForAllocation":null,"deleted":false}',
        )
        before = (await world.backend.get(AffinityKey("10.0.0.0/30", "a"))).revision
        a = world.allocator("a")
        assert await assign(a, 1, "h") == ("10.0.0.3",)
        assert (await world.backend.get(AffinityKey("10.0.0.0/30", "a"))).revision == before
        raw = world.backend.raw("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30")  # type: ignore[attr-defined]
        assert b'"hostAffinity":"a"' in raw, "kept, though nobody reads it"
        await a.release_by_handle("h")
        await world.pool("other", "10.1.0.0/24")
        assert len(await assign(world.allocator("b"), 4, "b", pools4=("10.0.0.0/29",))) == 4
        assert len(await assign(world.allocator("b"), 4, "c", pools4=("10.0.0.0/29",))) == 4, "reclaimed"

    run(story())


def test_69_a_handle_that_counts_too_much_is_released_all_the_same() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        (address,) = await assign(a, 1, "h")
        counts = {FIRST: 7, "10.0.0.64/26": 2, "nonsense": 1}
        await world.backend.apply(HandleKey("h"), Handle(block=counts))
        assert await a.ips_by_handle("h") == [address]
        await a.release_by_handle("h")
        assert await world.owners() == {} and await world.handles() == {}

    run(story())


def test_an_address_names_its_node_and_hidden_parts_of_a_handle_do_not_count() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        await a.assign_ip(AssignAddress("10.0.0.1", "h\r\nrest", {NODE: "a"}))
        attribute = await a.attributes("10.0.0.1")
        assert attribute.handle_id == "h" and attribute.secondary == {NODE: "a"}
        await a.release_by_handle("h\rwhatever")
        assert await world.owners() == {}

    run(story())


def test_a_hostile_handle_or_host_reaches_no_other_key() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        got = await try_assign(a, 1, "../config")
        assert "invalid handle ID" in text_of(got.error)
        assert await world.handles() == {} and (await a.get_config()).auto_allocate_blocks
        got = await try_assign(world.allocator("x/../y"), 1, "h")
        assert got.error is not None
        await assert_at_rest(world)

    run(story())


def test_removing_a_host_removes_its_old_directory() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        (address,) = await assign(a, 1, "h")
        await world.backend.put_raw(IPAMHostKey("a").path(), "{}")  # type: ignore[attr-defined]
        await a.remove_host()
        assert await gone(world.backend.get(IPAMHostKey("a")))
        assert await world.owners() == {address: "h"}, "addresses stay"
        await world.client.get(Node, "a")

    run(story())
