"""What a runbook does to addresses that are in use: pools change, settings flip, Services come and go."""

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, assert_at_rest, assign, cluster, no_sleep, run, try_assign
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.ippool import IPPool
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.cluster import delete_pool
from tortie.ipam.errors import IPAMError
from tortie.ipam.requests import AutoAssign

pytestmark = pytest.mark.unit


async def disable(world: World, name: str) -> None:
    pool = await world.client.get(IPPool, name)
    await world.client.update(structs.replace(pool, spec=structs.replace(pool.spec, disabled=True)))


def test_pods_move_from_one_pool_to_another() -> None:
    """The documented way: new pool, disable the old one, recreate pod by pod, delete the old one."""

    async def story() -> None:
        world = await cluster("10.0.0.0/28", 30)
        a, b = world.allocator("a"), world.allocator("b")
        for number in range(6):
            await assign((a, b)[number % 2], 1, f"old-{number}")
        await world.pool("new", "10.1.0.0/28", 30)
        await disable(world, "pool")
        before = await world.owners()
        for number in range(6):
            (fresh,) = await assign((a, b)[number % 2], 1, f"new-{number}")
            assert fresh.startswith("10.1.0.")
            assert {old: h for old, h in (await world.owners()).items() if h.startswith("old")} == before
            await a.release_by_handle(f"old-{number}")
            before = {old: h for old, h in before.items() if h != f"old-{number}"}
        await delete_pool(world.client, a, "pool", sleep=no_sleep)
        assert all(cidr.startswith("10.1.") for cidr in await world.blocks())
        await assert_at_rest(world)

    run(story())


def test_a_pool_deleted_before_its_pods_were_moved_leaves_them_their_addresses() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/28", 30)
        a = world.allocator("a")
        (old,) = await assign(a, 1, "old")
        await delete_pool(world.client, a, "pool", sleep=no_sleep)
        await world.pool("new", "10.1.0.0/28", 30)
        (fresh,) = await assign(a, 1, "new")
        assert (await world.owners()) == {old: "old", fresh: "new"}
        await a.release_by_handle("old")
        assert all(cidr.startswith("10.1.") for cidr in await world.blocks())
        await assert_at_rest(world)

    run(story())


def test_what_is_in_blocks_of_an_earlier_size_is_still_found_and_released() -> None:
    """Nothing keeps `kubectl edit ippool` from another blockSize."""

    async def story() -> None:
        world = await cluster("10.0.0.0/28", 30)
        a = world.allocator("a")
        first, second, third = await assign(a, 3, "pod")
        pool = await world.client.get(IPPool, "pool")
        await world.client.backend.apply(
            ResourceKey("IPPool", "pool"),
            structs.replace(pool, spec=structs.replace(pool.spec, blockSize=29)),
        )
        assert (await a.attributes(first)).handle_id == "pod"
        outcome = await a.release_ips([ReleaseRequest(first), ReleaseRequest("10.9.9.9")])
        assert (outcome.unallocated, outcome.done) == (("10.9.9.9",), (ReleaseRequest(first),))
        assert set(await world.owners()) == {second, third}
        await world.client.delete(IPPool, "pool")
        await a.release_ips([ReleaseRequest(second)])
        assert set(await world.owners()) == {third}
        await assert_at_rest(world)

    run(story())


def test_strict_affinity_switched_on_keeps_what_was_borrowed_and_lends_no_more() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/29", 30)
        a, b = world.allocator("a"), world.allocator("b")
        await b.claim_affinity("10.0.0.0/29")
        borrowed = await assign(a, 2, "pod")
        await world.configure(strict_affinity=True)
        refused = await try_assign(a, 1, "more")
        assert refused.v4 and "No more free affine blocks and strict affinity enabled" in refused.v4.notes
        assert "strict affinity keeps from this one" in await a.why_not(AutoAssign(use="Workload"), 4)
        assert set(await world.owners()) == set(borrowed)
        await a.release_by_handle("pod")
        assert await world.owners() == {}
        await world.configure(strict_affinity=False)
        assert len(await assign(a, 1, "again")) == 1
        await assert_at_rest(world)

    run(story())


def test_a_block_limit_below_what_a_node_has_takes_nothing_away() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/28", 30)
        a = world.allocator("a")
        held = await assign(a, 8, "pods")
        await world.configure(strict_affinity=True, maxBlocksPerHost=1)
        assert set(await world.owners()) == set(held)
        assert (await try_assign(a, 1, "more")).error is not None
        await a.release_by_handle("pods")
        assert len(await assign(a, 4, "again")) == 4
        await assert_at_rest(world)

    run(story())


def test_settings_that_contradict_each_other_change_nothing() -> None:
    async def story() -> None:
        world = await cluster()
        before = await world.allocator("a").get_config()
        for wrong in (
            {"strict_affinity": False, "auto_allocate_blocks": False},
            {"maxBlocksPerHost": 3},
            {"ipCooldownSeconds": 1201},
        ):
            with pytest.raises(IPAMError):
                await world.configure(**wrong)
            assert await world.allocator("a").get_config() == before

    run(story())


def test_addresses_of_services_come_from_their_own_pools_and_belong_to_no_node() -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30)
        await world.pool("services", "192.0.2.0/30", 30, allowedUses=("LoadBalancer",))
        a = world.allocator("a")
        (service,) = await assign(a, 1, "lb-web", use="LoadBalancer", host="load-balancer")
        assert service.startswith("192.0.2.")
        pods = await assign(a, 4, "pods")
        assert all(pod.startswith("10.0.0.") for pod in pods)
        late = await try_assign(a, 1, "late")
        assert late.v4 is not None and not late.v4.addresses, "never an address of the Services' pool"
        assert ("virtual:load-balancer", "192.0.2.0/30") in await world.affinities()
        why = await a.why_not(AutoAssign(use="Workload"), 4)
        assert "pool services (192.0.2.0/30) is not for Workload (allowedUses: LoadBalancer)" in why
        await a.release_by_handle("lb-web")
        await a.release_host_affinities(Owner("load-balancer", "virtual"), must_be_empty=True)
        await a.release_by_handle("pods")
        await assert_at_rest(world)

    run(story())
