"""The allocator's other services: owners of VMs, reports, configuration, load balancers, reserves."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, assert_at_rest, assign, gone, try_assign
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.keys import BlockKey, IPAMConfigKey
from tortie.datastore.types.ipam import DEFAULT_IPAM_CONFIG, AllocationAttribute, Block, IPAMConfig
from tortie.ipam import addresses, gotime, names
from tortie.ipam import block as blocks
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import HostReserve, Owner, ReleaseRequest
from tortie.ipam.errors import (
    BlockNotEmpty,
    IPAMError,
    NoBlockToUse,
    OwnerMismatch,
    TooManyConflicts,
)
from tortie.ipam.names import NAMESPACE, POD
from tortie.ipam.owners import NOBODY, OwnerChange, PodOwner
from tortie.ipam.requests import AssignAddress
from tortie.ipam.store import RETRIES
from tortie.ipam.utilisation import PoolUsage, Usage

pytestmark = pytest.mark.unit

WINDOWS = HostReserve(3, 1, names.WINDOWS_RESERVED_HANDLE, "windows host rsvd")


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def cluster(cidr: str = "10.0.0.0/24", block_size: int = 26, **config: Any) -> tuple[World, Allocator]:
    world = World()
    await world.pool("pool", cidr, block_size)
    await world.nodes("a", "b")
    await world.configure(**config)
    return world, world.allocator("a")


# --- owners of a VM's address -------------------------------------------------------------------

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


# --- other owners, reserves, ranges -------------------------------------------------------------


def test_load_balancer_addresses_belong_to_a_virtual_owner_without_a_node() -> None:
    async def story() -> None:
        world = World()
        await world.pool("lb", "10.9.0.0/24", allowedUses=("LoadBalancer",), disableBGPExport=False)
        lb = world.allocator(names.LOAD_BALANCER_HOST)
        handle = names.load_balancer_handle("web", "shop", "1234")
        (address,) = await assign(lb, 1, handle, use="LoadBalancer")
        (block,) = (await world.blocks()).values()
        assert block.affinity == "virtual:load-balancer"
        assert await world.affinities() == {("virtual:load-balancer", block.cidr): "confirmed"}
        await lb.release_pool_affinities("10.9.0.0/24")
        assert await world.affinities() == {}, "Calico's list misses these in etcd"
        assert await world.owners() == {address: handle}

    run(story())


def test_a_windows_host_gets_its_block_ahead_with_the_reserve_in_it() -> None:
    async def story() -> None:
        world, a = await cluster("10.0.0.0/24", 28, strict_affinity=True)
        cidr, none = await a.ensure_block(reserve4=WINDOWS)
        assert none is None and cidr is not None
        assert await a.ensure_block(reserve4=WINDOWS) == (cidr, None)
        given = await assign(a, 12, "h", reserve4=WINDOWS)
        everything = [str(address) for address in addresses.network(cidr)]
        assert list(given) == everything[3:15]
        await a.release_by_handle("h")
        await a.release_host_affinities(must_be_empty=True)
        assert await world.blocks() == {}, "the reserve does not make a block used"

    run(story())


def test_blocks_too_small_for_the_reserve_do_not_qualify() -> None:
    async def story() -> None:
        _world, a = await cluster("10.0.0.0/24", 30)
        got = await try_assign(a, 1, "h", reserve4=WINDOWS)
        assert str(got.error) == "cannot find a qualified ippool"
        got = await try_assign(a, 1, "h", reserve4=HostReserve(0, 0, "x", ""))
        assert str(got.error) == "HostReservedAttr has wrong parameters"

    run(story())


def test_a_shortage_names_the_reserve() -> None:
    async def story() -> None:
        world, a = await cluster("10.0.0.0/28", 28)
        got = await try_assign(a, 13, "h", reserve4=WINDOWS)
        assert got.v4 is not None and got.v4.shortage == (
            "Assigned 12 out of 13 requested IPv4 addresses; No IPs available in pools: [10.0.0.0/28]; "
            "HostReservedAttr: windows-reserved-ipam-handle"
        )
        await assert_at_rest(world)

    run(story())


def test_claiming_a_range_tells_ours_from_others() -> None:
    async def story() -> None:
        world, a = await cluster("10.0.0.0/24", 28)
        await world.allocator("b").claim_affinity("10.0.0.16/28")
        assert await a.claim_affinity("10.0.0.0/27") == (["10.0.0.0/28"], ["10.0.0.16/28"])
        for cidr, text in [
            ("10.0.0.0/29", "The requested CIDR (10.0.0.0/29) is smaller than the minimum."),
            ("10.8.0.0/26", "The requested CIDR (10.8.0.0/26) is not within any configured pools."),
            ("10.0.0.0/23", "The requested CIDR (10.0.0.0/23) is not within any configured pools."),
        ]:
            with pytest.raises(IPAMError) as caught:
                await a.claim_affinity(cidr)
            assert str(caught.value) == text
            with pytest.raises(IPAMError):
                await a.release_affinity(cidr)
        with pytest.raises(IPAMError, match="invalid CIDR"):
            await a.claim_affinity("10.0.0.1/24")
        await assert_at_rest(world)

    run(story())


def test_releasing_goes_on_after_a_refusal_and_tells_it_at_the_end() -> None:
    async def story() -> None:
        world, a = await cluster("10.0.0.0/24", 28)
        await a.claim_affinity("10.0.0.0/26")
        await a.assign_ip(AssignAddress("10.0.0.1", "h"))
        with pytest.raises(BlockNotEmpty, match=r"block '10\.0\.0\.0/28' is not empty"):
            await a.release_host_affinities(must_be_empty=True)
        assert list(await world.affinities()) == [("host:a", "10.0.0.0/28")]
        with pytest.raises(BlockNotEmpty):
            await a.release_affinity("10.0.0.0/26", must_be_empty=True)
        await a.release_block_affinity(await world.block("10.0.0.0/28"), must_be_empty=False)
        await a.release_block_affinity(await world.block("10.0.0.0/28"), must_be_empty=False)
        assert await world.affinities() == {} and await world.owners() == {"10.0.0.1": "h"}

    run(story())


def test_without_automatic_blocks_only_own_ones_are_used() -> None:
    async def story() -> None:
        world, a = await cluster("10.0.0.0/24", 30, strict_affinity=True, auto_allocate_blocks=False)
        got = await try_assign(a, 1, "h")
        assert isinstance(got.error, NoBlockToUse)
        assert str(got.error) == "failed to find or claim a block"
        await a.claim_affinity("10.0.0.0/30")
        got = await try_assign(a, 5, "h")
        assert got.v4 is not None and len(got.v4.addresses) == 4 and isinstance(got.error, NoBlockToUse)
        await assert_at_rest(world)

    run(story())


def test_the_use_must_be_said_and_versions_not_mixed() -> None:
    async def story() -> None:
        _world, a = await cluster()
        got = await try_assign(a, 1, "h", use="")
        assert str(got.error) == "must specify the intended use when assigning an IP"
        got = await try_assign(a, 1, "h", pools4=("fd00::/64",))
        assert str(got.error) == "provided IPv4 IPPools list contains one or more IPv6 IPPools"
        got = await try_assign(a, 1, "h", 6, pools6=("10.0.0.0/24",))
        assert str(got.error) == "provided IPv6 IPPools list contains one or more IPv4 IPPools"

    run(story())


def test_endless_conflicts_end() -> None:
    async def story() -> None:
        world, a = await cluster()
        await assign(a, 1, "h")
        key = BlockKey("10.0.0.192/26")
        tries = 0

        async def interfere(operation: str, what: Any) -> None:
            nonlocal tries
            if operation == "update" and what == key:
                tries += 1
                await world.backend.apply(key, (await world.backend.get(key)).value)

        world.backend.before = interfere  # type: ignore[attr-defined]
        with pytest.raises(TooManyConflicts) as caught:
            await a.set_owners("10.0.0.192", "h", OwnerChange(active={}))
        assert str(caught.value) == "Max retries hit - excessive concurrent IPAM requests"
        assert tries == RETRIES
        outcome = await a.release_ips([ReleaseRequest("10.0.0.192")])
        assert isinstance(outcome.error, TooManyConflicts)

    run(story())


def test_repeated_conflicts_are_spread_out_by_chance() -> None:
    async def story() -> None:
        world, a = await cluster()
        await assign(a, 1, "h")
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        patient = world.allocator("a", sleep=sleep, rand=lambda: 1.0)
        key = BlockKey("10.0.0.192/26")

        async def interfere(operation: str, what: Any) -> None:
            if operation == "update" and what == key and len(waits) < 12:
                await world.backend.apply(key, (await world.backend.get(key)).value)

        world.backend.before = interfere  # type: ignore[attr-defined]
        await assign(patient, 1, "x")
        assert len(waits) == 12 and waits == sorted(waits) and waits[-1] == waits[-2] < 0.2

    run(story())


# --- configuration ------------------------------------------------------------------------------


def test_reading_the_configuration_never_writes_it() -> None:
    async def story() -> None:
        world = World()
        a = world.allocator("a")
        assert await a.get_config() == DEFAULT_IPAM_CONFIG
        await a.set_config(DEFAULT_IPAM_CONFIG)
        assert await gone(world.backend.get(IPAMConfigKey())), "equal to what holds: nothing to write"

    run(story())


def test_a_stored_configuration_without_automatic_blocks_has_none() -> None:
    async def story() -> None:
        world = World()
        await world.backend.put_raw(  # type: ignore[attr-defined]
            IPAMConfigKey().path(), '{"strict_affinity":true,"unknown":1}'
        )
        a = world.allocator("a")
        config = await a.get_config()
        assert config == IPAMConfig(strict_affinity=True)
        await a.set_config(structs.replace(config, maxBlocksPerHost=3))
        assert world.backend.raw(IPAMConfigKey().path()) == (  # type: ignore[attr-defined]
            b'{"strict_affinity":true,"maxBlocksPerHost":3,"unknown":1}'
        )

    run(story())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"auto_allocate_blocks": False},
            "Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time",
        ),
        ({"maxBlocksPerHost": 2}, "MaxBlocksPerHost requires StrictAffinity to be enabled"),
        ({"strict_affinity": True, "maxBlocksPerHost": -1}, "MaxBlocksPerHost = -1: must not be negative"),
        ({"ipCooldownSeconds": 1201}, "IPCooldownSeconds = 1201: must be 0-1200"),
        (
            {"kubeVirtVMAddressPersistence": "maybe"},
            "KubeVirtVMAddressPersistence = maybe: must be Enabled or Disabled",
        ),
    ],
)
def test_a_contradictory_configuration_is_refused_and_changes_nothing(
    changes: dict[str, Any], text: str
) -> None:
    async def story() -> None:
        world = World()
        a = world.allocator("a")
        with pytest.raises(IPAMError) as caught:
            await a.set_config(structs.replace(DEFAULT_IPAM_CONFIG, **changes))
        assert str(caught.value) == text
        assert await gone(world.backend.get(IPAMConfigKey()))

    run(story())


# --- reports ------------------------------------------------------------------------------------


def test_utilisation() -> None:
    async def story() -> None:
        world, a = await cluster("10.0.0.0/24", 26, ipCooldownSeconds=60)
        await world.pool("six", "fd00::/60")
        await world.pool("off", "10.1.0.0/26", disabled=True)
        await world.reserve("r", "10.0.0.192/30", "10.0.0.0/30", "10.1.0.0/28")
        await assign(a, 2, "h")
        await assign(a, 1, "cooling")
        await a.release_by_handle("cooling")
        await a.assign_ip(AssignAddress("10.0.0.192", "reserved but held"))
        orphan = blocks.new_block("fd99::/122", Owner("x"), 1)
        await world.backend.create(BlockKey(orphan.cidr), orphan)
        off, pool, six, orphans = await a.utilisation()
        assert [u.pool and u.pool.name for u in (off, pool, six, orphans)] == ["off", "pool", "six", None]
        assert pool.usage == Usage("10.0.0.0/24", 256, 4, 8, 256 - 4 - 8 + 1)
        assert pool.blocks == (Usage("10.0.0.192/26", 64, 4, 4, 64 - 3 - 4),)
        assert off.usage == Usage("10.1.0.0/26", 64, 0, 16, 48)
        assert six.usage == Usage("fd00::/60", 2**63 - 1, 0, 0, 2**63 - 1)
        assert orphans == PoolUsage(None, None, (Usage("fd99::/122", 64, 0, 0, 64),))

    run(story())


def test_many_addresses_are_released_with_their_handles_read_at_once() -> None:
    async def story() -> None:
        world, a = await cluster("10.0.0.0/23", 26)
        given = [(await assign(a, 1, f"h{n}"))[0] for n in range(150)]
        await assign(a, 1, "stays")
        asked: list[str] = []

        async def note(operation: str, what: Any) -> None:
            asked.append(f"{operation} {type(what).__name__}")

        world.backend.before = note  # type: ignore[attr-defined]
        outcome = await a.release_ips(map(ReleaseRequest, given))
        assert outcome.error is None and len(outcome.done) == 150
        assert asked.count("list HandleList") == 1 and "get HandleKey" not in asked
        assert list(await world.handles()) == ["stays"]
        await assert_at_rest(world)

    run(story())


# --- names --------------------------------------------------------------------------------------


def test_handles_have_calicos_names() -> None:
    assert names.cni_handle("k8s-pod-network", "c0ffee") == "k8s-pod-network.c0ffee"
    assert names.legacy_cni_handle("c0ffee") == "c0ffee"
    assert names.legacy_cni_handle("c0ffee", "ns", "pod") == "ns.pod"
    assert names.tunnel_handle("vxlanV6TunnelAddress", "n1") == "vxlan-v6-tunnel-addr-n1"
    assert names.vm_handle("", "default", "vm1") == "k8s-pod-network.vmi.default.vm1"
    long = names.vm_handle("net", "ns", "v" * 130)
    assert long.startswith("net.vmi._") and len(long) <= 128
    exact = "x" * (128 - len("net.vmi.") - len("ns."))
    assert names.vm_handle("net", "ns", exact) == f"net.vmi.ns.{exact}"
    balancer = names.load_balancer_handle("Web", "shop", "UID")
    assert balancer == names.load_balancer_handle("web", "SHOP", "uid")
    assert balancer.startswith("lb-") and not set("-_.") & set(balancer[3:])


def test_times_are_gos() -> None:
    ns = 1_795_241_571_721_858_553
    assert gotime.plain(ns) == "2026-11-21 06:12:51.721858553 +0000 UTC"
    assert gotime.plain(ns // 10**9 * 10**9) == "2026-11-21 06:12:51 +0000 UTC"
    assert gotime.plain(1_772_352_360_250_000_000) == "2026-03-01 08:06:00.25 +0000 UTC"
    assert gotime.rfc3339(ns) == "2026-11-21T06:12:51Z"
    assert gotime.parse("2026-11-21T08:12:51.5+02:00") == 1_795_241_571_500_000_000
    for nonsense in ("", "2026-11-21", "2026-11-21T06:12:51", "x", "2026-13-01T00:00:00Z"):
        with pytest.raises(ValueError):
            gotime.parse(nonsense)
