"""The address a KubeVirt VM keeps: its two owners while it migrates, and the cap on its handle."""

from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, assert_at_rest, assign, run, try_assign
from tests.ipam.ipam_world import cluster as plain_cluster
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.keys import BlockKey
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.datastore.types.ippool import IPPool
from tortie.ipam import block as blocks
from tortie.ipam.allocator import Allocator
from tortie.ipam.errors import (
    IPAMError,
    OwnerMismatch,
)
from tortie.ipam.names import NAMESPACE, POD
from tortie.ipam.owners import NOBODY, OwnerChange, PodOwner
from tortie.ipam.requests import AssignAddress

pytestmark = pytest.mark.unit


async def cluster(cidr: str = "10.0.0.0/24", block_size: int = 26, **config: Any) -> tuple[World, Allocator]:
    world = await plain_cluster(cidr, block_size, **config)
    return world, world.allocator("a")


SOURCE = {POD: "virt-launcher-vm-1", NAMESPACE: "ns"}
TARGET = {POD: "virt-launcher-vm-2", NAMESPACE: "ns"}
SOURCE_POD, TARGET_POD = PodOwner("ns", SOURCE[POD]), PodOwner("ns", TARGET[POD])


async def vm(attributes: dict[str, str]) -> tuple[World, Allocator]:
    world, a = await cluster()
    await a.assign_ip(AssignAddress("10.0.0.5", "vm", attributes))
    return world, a


def test_a_migration_swaps_the_owners() -> None:
    async def story() -> None:
        world, a = await vm(SOURCE)
        number = blocks.sequence_number(await world.block("10.0.0.0/26"), 5)
        await a.set_owners("10.0.0.5", "vm", OwnerChange(alternate=TARGET, expect_alternate=NOBODY))
        found = await a.attributes("10.0.0.5")
        assert (found.secondary, found.alternateOwnerAttrs) == (SOURCE, TARGET)
        swap = OwnerChange(TARGET, SOURCE, expect_active=SOURCE_POD, expect_alternate=TARGET_POD)
        await a.set_owners("10.0.0.5", "vm", swap)
        found = await a.attributes("10.0.0.5")
        assert (found.secondary, found.alternateOwnerAttrs) == (TARGET, SOURCE)
        with pytest.raises(OwnerMismatch) as caught:
            await a.set_owners("10.0.0.5", "vm", swap)
        assert "expected pod=virt-launcher-vm-1 namespace=ns but found pod=virt-launcher-vm-2" in str(
            caught.value
        )
        assert blocks.sequence_number(await world.block("10.0.0.0/26"), 5) == number, "the same allocation"

    run(story())


def test_74_a_migration_target_deleted_midway_leaves_the_source_alone() -> None:
    async def story() -> None:
        world, a = await vm(SOURCE)
        await a.set_owners("10.0.0.5", "vm", OwnerChange(alternate=TARGET))
        await a.set_owners("10.0.0.5", "vm", OwnerChange(alternate={}, expect_alternate=TARGET_POD))
        assert await a.attributes("10.0.0.5") == AllocationAttribute(handle_id="vm", secondary=SOURCE)
        assert await world.owners() == {"10.0.0.5": "vm"}

    run(story())


def test_demands_are_checked_before_anything_changes() -> None:
    async def story() -> None:
        world, a = await vm(SOURCE)
        before = await world.block("10.0.0.0/26")
        wrong = OwnerChange(active={}, alternate=TARGET, expect_alternate=SOURCE_POD)
        with pytest.raises(OwnerMismatch, match="cannot set AlternateOwnerAttrs"):
            await a.set_owners("10.0.0.5", "vm", wrong)
        with pytest.raises(OwnerMismatch, match="cannot set ActiveOwnerAttrs"):
            await a.set_owners("10.0.0.5", "vm", OwnerChange(active=TARGET, expect_active=NOBODY))
        with pytest.raises(IPAMError, match=r"IP 10\.0\.0\.5 is not assigned to handle other"):
            await a.set_owners("10.0.0.5", "other", OwnerChange(active=TARGET))
        with pytest.raises(ResourceDoesNotExist, match="IP is unassigned"):
            await a.set_owners("10.0.0.6", "vm", OwnerChange(active=TARGET))
        with pytest.raises(IPAMError, match="is not in a configured pool"):
            await a.set_owners("192.0.2.1", "vm", OwnerChange(active=TARGET))
        assert await world.block("10.0.0.0/26") == before

    run(story())


def test_owners_change_in_a_pool_that_is_disabled_or_gone() -> None:
    """A VM is restarted in it, and its pods must be deletable."""

    async def story() -> None:
        world, a = await vm(SOURCE)
        pool = await world.client.get(IPPool, "pool")
        disabled = structs.replace(pool.spec, disabled=True)
        pool = await world.client.update(structs.replace(pool, spec=disabled))
        await a.set_owners("10.0.0.5", "vm", OwnerChange(alternate=TARGET))
        await world.client.delete(IPPool, "pool")
        await a.set_owners("10.0.0.5", "vm", OwnerChange(active={}))
        (found,) = (await a.users_by_handle("vm")).values()
        assert (found.secondary, found.alternateOwnerAttrs) == ({}, TARGET)

    run(story())


def test_changing_one_owner_leaves_addresses_alone_that_shared_its_attributes() -> None:
    async def story() -> None:
        world, a = await cluster()
        one, two = await assign(a, 2, "vm", attributes=SOURCE)
        await a.set_owners(one, "vm", OwnerChange(active={}))
        assert (await a.attributes(one)).secondary == {} and (await a.attributes(two)).secondary == SOURCE
        await assert_at_rest(world)

    run(story())


def test_75_the_cap_lets_all_pods_of_a_vm_share_one_address_per_version() -> None:
    async def story() -> None:
        world, a = await cluster()
        await world.pool("six", "fd00::/64")
        first = await try_assign(a, 1, "vm", num6=1, cap=1)
        again = await try_assign(world.allocator("b"), 1, "vm", num6=1, cap=1)
        for before, after in ((first.v4, again.v4), (first.v6, again.v6)):
            assert before is not None and after is not None
            (address,) = before.addresses
            bits = 32 if before.version == 4 else 128
            assert after.addresses == (f"{address.partition('/')[0]}/{bits}",)
        assert len(await world.owners()) == 2
        await assert_at_rest(world)

    run(story())


def test_a_capped_handle_that_counts_too_much_is_corrected() -> None:
    """A crash between counting and writing; with Calico this VM never gets an address again."""

    async def story() -> None:
        world, a = await cluster()
        await a.assign_ip(AssignAddress("10.0.0.5", "vm"))
        (kv,) = [await world.backend.get(BlockKey("10.0.0.0/26"))]
        await world.backend.update(structs_replace(kv, blocks.release_handle(kv.value, "vm", 0, 0)))
        assert await world.handles() == {"vm": {"10.0.0.0/26": 1}} and await world.owners() == {}
        (address,) = await assign(a, 1, "vm", cap=1)
        assert await world.owners() == {address: "vm"}
        await assert_at_rest(world)

    run(story())


def structs_replace(kv: Any, value: Block) -> Any:
    return type(kv)(kv.key, value, kv.revision, kv.origin)


def test_a_capped_specific_address() -> None:
    async def story() -> None:
        world, a = await cluster()
        request = AssignAddress("10.0.0.5", "vm", cap=1)
        await a.assign_ip(request)
        await a.assign_ip(request)
        with pytest.raises(IPAMError) as caught:
            await a.assign_ip(AssignAddress("10.0.0.6", "vm", cap=1))
        assert str(caught.value) == (
            "handle vm already has IP(s) allocated, cannot assign additional IP 10.0.0.6 "
            "(maxAllocPerIPVersion=1)"
        )
        await assert_at_rest(world)

    run(story())
