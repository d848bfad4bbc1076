"""The reference's edge cases (Calico IPAM, section 8) about pools, nodes and particular addresses."""

import json

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, assert_at_rest, assign, cluster, gone, run, try_assign
from tortie.core.errors import (
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    ValidationError,
)
from tortie.datastore.types.ippool import IPPool, IPReservation
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.cluster import delete_pool
from tortie.ipam.errors import (
    IPAMError,
)
from tortie.ipam.requests import AssignAddress

pytestmark = pytest.mark.unit


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
        assert str(got.error) == "cannot find a qualified ippool"
        got = await try_assign(a, 1, "x", pools4=("10.0.0.0/24",))
        assert str(got.error) == "cannot find a qualified ippool"
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
        assert str(got.error) == f"the given pool ({cidr}) does not exist, or is not enabled"

    run(story())


def test_19_one_bogus_pool_fails_the_whole_request() -> None:
    async def story() -> None:
        world = await cluster()
        got = await try_assign(world.allocator("a"), 1, "h", pools4=("10.0.0.0/24", "10.7.0.0/24"))
        assert str(got.error) == "the given pool (10.7.0.0/24) does not exist, or is not enabled"
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
        assert str(got.error) == (
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
        assert str(got.error) == "no configured Calico pools for node a"
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
            assert str(got.error) == "no configured Calico pools for node a"

    run(story())


@pytest.mark.parametrize(
    ("field", "value"),
    [("nodeSelector", "=="), ("namespaceSelector", "=="), ("ipipMode", "Evil"), ("blockSize", 27.5)],
)
def test_23_an_invalid_pool_is_used_by_nobody_and_named_where_there_is_no_other(
    field: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It would come first, by its name. Others go on: one bad value must not stop a cluster."""

    async def story() -> None:
        world = await cluster()
        path = "/calico/resources/v3/projectcalico.org/ippools/broken"
        pool = {
            "kind": "IPPool",
            "metadata": {"name": "broken"},
            "spec": {"cidr": "10.1.0.0/24", field: value},
        }
        await world.backend.put_raw(path, json.dumps(pool))  # type: ignore[attr-defined]
        allocator = world.allocator("a")
        for handle in ("g", "h"):
            assert (await assign(allocator, 1, handle))[0].startswith("10.0.0.")
        assert [path in text for text in caplog.messages] in ([True], []), "unreadable ones are the Syncer's"
        await world.client.delete(IPPool, "pool")
        got = await try_assign(world.allocator("a"), 1, "i")
        assert isinstance(got.error, IPAMError) and "cannot find a qualified ippool" in str(got.error)
        assert value == 27.5 or f'{field} = "{value}"' in str(got.error).replace("'", '"')

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


def test_71_a_pool_over_live_blocks_of_another_size_is_refused() -> None:
    async def story() -> None:
        world = await cluster()
        await assign(world.allocator("a"), 1, "h")
        await world.client.delete(IPPool, "pool")
        with pytest.raises(ValidationError, match="blocksSize conflicts with existing allocations"):
            await world.pool("again", "10.0.0.0/24", 28)
        await world.pool("again", "10.0.0.0/24", 26)
        assert len(await assign(world.allocator("a"), 1, "h2")) == 1
        await assert_at_rest(world)

    run(story())
