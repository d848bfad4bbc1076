"""The reference's edge cases (Calico IPAM, section 8) about releases, old data and both versions."""

from typing import Any

import pytest

from tests.ipam.ipam_world import FIRST, assert_at_rest, assign, assigned_at, cluster, gone, run, try_assign
from tortie.core.errors import (
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
)
from tortie.datastore.keys import BlockKey, HandleKey, IPAMHostKey
from tortie.datastore.types.ipam import Handle
from tortie.datastore.types.node import Node
from tortie.ipam import block as blocks
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import (
    AddressShortage,
    BadHandle,
    BadSequenceNumber,
    InCooldown,
    IPAMError,
)
from tortie.ipam.names import NODE
from tortie.ipam.requests import AssignAddress

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("number", [2**53 + 1, 2**64 - 2, 2**64 - 1])
def test_27_sequence_numbers_are_exact_up_to_64_bits_and_wrap(number: int) -> None:
    async def story() -> None:
        world, a, address = await assigned_at(number)
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


def test_29_a_block_made_anew_refuses_the_numbers_of_the_old_one() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        (address,) = await assign(a, 1, "h")
        number = blocks.sequence_number(await world.block(FIRST), 0)
        await a.release_by_handle("h")
        await a.release_affinity(FIRST)
        assert await world.blocks() == {}
        assert await assign(a, 1, "h") == (address,)
        outcome = await a.release_ips([ReleaseRequest(address, "h", number)])
        assert isinstance(outcome.error, BadSequenceNumber)
        assert await world.owners() == {address: "h"}

    run(story())


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
        assert str(got.error) == "cannot find a qualified ippool"
        with pytest.raises(IPAMError):
            got.require_all()
        await a.release_by_handle("h")
        assert await world.owners() == {}

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
        written: list[Any] = []

        async def note(operation: str, what: Any) -> None:
            if operation not in ("get", "list"):
                written.append(what)

        world.backend.before = note  # type: ignore[attr-defined]
        a = world.allocator("a")
        assert await assign(a, 1, "h") == ("10.0.0.3",)
        assert written == [HandleKey("h"), BlockKey("10.0.0.0/30")], "the affinity is as it should be"
        raw = await world.raw("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30")
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
        assert "invalid handle ID" in str(got.error)
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
