"""The allocator's other services: reports, configuration, load balancers, reserves."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, assert_at_rest, assign, gone, run, try_assign
from tests.ipam.ipam_world import cluster as plain_cluster
from tortie.datastore.keys import BlockKey, IPAMConfigKey
from tortie.datastore.types.ipam import DEFAULT_IPAM_CONFIG, IPAMConfig
from tortie.ipam import block as blocks
from tortie.ipam import gotime, names
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.errors import (
    BlockNotEmpty,
    IPAMError,
    NoBlockToUse,
    TooManyConflicts,
)
from tortie.ipam.owners import OwnerChange
from tortie.ipam.requests import AssignAddress, AutoAssign
from tortie.ipam.store import RETRIES
from tortie.ipam.utilisation import PoolUsage, Usage

pytestmark = pytest.mark.unit


async def cluster(cidr: str = "10.0.0.0/24", block_size: int = 26, **config: Any) -> tuple[World, Allocator]:
    world = await plain_cluster(cidr, block_size, **config)
    return world, world.allocator("a")


def test_an_assignment_tells_what_its_handle_counts() -> None:
    """Of both IP versions and all blocks: whoever got as many has nothing else."""

    async def story() -> None:
        world, a = await cluster("10.0.0.0/30", 31)
        await world.pool("six", "fd00::/120")
        one = AutoAssign(use="Workload", num4=1, num6=1, handle="h")
        done = await a.auto_assign(one)
        assert done.v4 is not None and done.v6 is not None
        assert (done.v4.counted, done.v6.counted) == (1, 2)
        again = await a.auto_assign(replace(one, num4=2, num6=0))
        assert again.v4 is not None and again.v4.counted == 4
        nobody = await a.auto_assign(replace(one, handle="", num4=1, num6=0))
        assert nobody.v4 is not None and nobody.v4.counted == 0

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
