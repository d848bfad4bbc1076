"""Pools and nodes deleted with what belongs to them; the addresses of a node's tunnels."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, assert_at_rest, assign, gone, no_sleep
from tests.support.memory_backend import MemoryBackend
from tortie.core.errors import ResourceDoesNotExist, TortieError, UpdateConflict
from tortie.datastore import codec
from tortie.datastore.keys import HandleKey, Key, Listing, ResourceKey
from tortie.datastore.types.bgp import BGPConfiguration, BGPPeer
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.endpoint import HostEndpoint, WorkloadEndpoint
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.meta import Resource
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec, NodeStatus, NodeWireguardSpec
from tortie.ipam.cluster import delete_node, delete_pool, releases_for_node
from tortie.ipam.names import NODE, TUNNEL_HANDLES, TYPE, tunnel_handle
from tortie.ipam.requests import AssignAddress
from tortie.ipam.tunnels import TUNNELS, Tunnel, Verdict, judge, pools_for, reconcile_tunnels

pytestmark = pytest.mark.unit


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def cluster(*hosts: str, **spec: Any) -> World:
    world = World()
    await world.pool("pool", "10.0.0.0/24", 26, **spec)
    await world.nodes(*(hosts or ("a", "b")))
    return world


async def store(
    world: World, kind: type[Resource], name: str, spec: dict[str, Any], namespace: str = ""
) -> None:
    raw = {"kind": kind.KIND, "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    await world.backend.create(ResourceKey(kind.KIND, name, namespace), codec.from_plain(kind, raw))


async def pod(world: World, node: str, name: str, address: str) -> None:
    spec = {
        "orchestrator": "k8s",
        "node": node,
        "pod": name,
        "endpoint": "eth0",
        "ipNetworks": [f"{address}/32"],
    }
    await store(world, WorkloadEndpoint, f"{node}-k8s-{name}-eth0", spec, "ns")


# --- pools --------------------------------------------------------------------------------------


def test_a_pool_deleted_with_an_old_revision_is_left_alone() -> None:
    async def story() -> None:
        world = await cluster()
        a = world.allocator("a")
        old = await world.client.get(IPPool, "pool")
        await world.client.update(structs.replace(old, spec=structs.replace(old.spec, natOutgoing=True)))
        with pytest.raises(UpdateConflict):
            await delete_pool(world.client, a, "pool", revision=old.revision, sleep=no_sleep)
        assert not (await world.client.get(IPPool, "pool")).spec.disabled
        current = await world.client.get(IPPool, "pool")
        await delete_pool(world.client, a, "pool", revision=current.revision, sleep=no_sleep)
        assert await gone(world.client.get(IPPool, "pool"))
        with pytest.raises(ResourceDoesNotExist):
            await delete_pool(world.client, a, "pool", sleep=no_sleep)

    run(story())


def test_a_pool_that_was_disabled_before_loses_its_blocks_too() -> None:
    async def story() -> None:
        world = await cluster(disabled=False)
        await world.pool("other", "10.1.0.0/24", 26)
        for host in ("a", "b"):
            await assign(world.allocator(host), 1, host, pools4=("10.0.0.0/24",))
            await assign(world.allocator(host), 1, f"{host}.other", pools4=("10.1.0.0/24",))
        found = await world.client.get(IPPool, "pool")
        await world.client.update(structs.replace(found, spec=structs.replace(found.spec, disabled=True)))
        await delete_pool(world.client, world.allocator("a"), "pool", sleep=no_sleep)
        assert all(cidr.startswith("10.1.") for _, cidr in await world.affinities())
        assert len(await world.affinities()) == 2 and len(await world.owners()) == 4
        await assert_at_rest(world)

    run(story())


# --- nodes --------------------------------------------------------------------------------------


def test_a_node_is_deleted_with_all_that_is_its_own_and_nothing_else() -> None:
    async def story() -> None:
        world = await cluster("a", "a-b")
        kept = {}
        for host in ("a", "a-b"):
            allocator = world.allocator(host)
            (address,) = await assign(allocator, 1, f"net.{host}")
            await pod(world, host, "web", address)
            kept[host] = address
            peer = {"node": host, "peerIP": "192.0.2.1", "asNumber": 1}
            await store(world, BGPPeer, f"peer-of-{host}", peer)
            await store(world, FelixConfiguration, f"node.{host}", {})
            await store(world, BGPConfiguration, f"node.{host}", {})
            await store(world, HostEndpoint, f"hep-{host}", {"node": host, "interfaceName": "eth0"})
        await store(world, BGPPeer, "global", {"peerIP": "192.0.2.2", "asNumber": 1})
        await delete_node(world.client, world.allocator("a-b"), "a")
        assert await world.owners() == {kept["a-b"]: "net.a-b"}
        assert {owner for owner, _ in await world.affinities()} == {"host:a-b"}
        assert isinstance(world.backend, MemoryBackend)
        left = {path.rpartition("/")[2] for path in world.backend.paths() if "/resources/" in path}
        own = {"peer-of-{}", "node.{}", "hep-{}", "{}", "{}-k8s-web-eth0"}
        assert left.isdisjoint(name.format("a") for name in own)
        assert left >= {name.format("a-b") for name in own} | {"global", "pool"}
        with pytest.raises(ResourceDoesNotExist):
            await delete_node(world.client, world.allocator("a-b"), "a")
        await assert_at_rest(world)

    run(story())


def test_tunnel_addresses_of_both_versions_are_released() -> None:
    """Calico releases only the IPv4 ones."""

    async def story() -> None:
        world = await cluster()
        await world.pool("six", "fd00::/64")
        a = world.allocator("a")
        held = {}
        for tunnel in TUNNELS:
            handle = tunnel_handle(tunnel.type, "a")
            (held[tunnel.type],) = await assign(a, 1, handle, tunnel.version, use="Tunnel")
        node = await world.client.get(Node, "a")
        spec = node.spec
        for tunnel in TUNNELS:
            spec = tunnel.with_address(spec, held[tunnel.type])
        await world.client.update(structs.replace(node, spec=spec))
        await delete_node(world.client, a, "a")
        assert await world.owners() == {} and await world.handles() == {} and await world.blocks() == {}

    run(story())


def test_an_address_in_use_on_another_node_is_never_released() -> None:
    """A stale endpoint names an address that a pod elsewhere has by now; Calico frees it."""

    async def story() -> None:
        world = await cluster()
        (address,) = await assign(world.allocator("b"), 1, "net.pod")
        await pod(world, "a", "stale", address)
        await pod(world, "a", "broken", "not an address")
        await pod(world, "a", "unassigned", "10.0.0.99")
        await delete_node(world.client, world.allocator("b"), "a")
        assert await world.owners() == {address: "net.pod"}

    run(story())


def test_an_allocation_without_a_node_is_released_and_guarded() -> None:
    async def story() -> None:
        world = await cluster()
        await world.allocator("a").assign_ip(AssignAddress("10.0.0.5", "h"))
        stored = list((await world.blocks()).values())
        (request,) = releases_for_node(["10.0.0.5", "10.0.0.6", "x", "192.0.2.1"], stored, "a")
        assert request.handle == "h" and request.sequence_number == stored[0].sequenceNumber - 1

    run(story())


# --- tunnels ------------------------------------------------------------------------------------

IPIP = next(tunnel for tunnel in TUNNELS if tunnel.type == "ipipTunnelAddress")
WIREGUARD = TUNNELS[0]


def node_with(status: dict[str, Any]) -> Node:
    return Node(status=NodeStatus(**status)).with_metadata(name="a", labels={"rack": "1"})


def pool_with(**spec: Any) -> IPPool:
    raw = {"kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/24"} | spec}
    return codec.from_plain(IPPool, raw)


@pytest.mark.parametrize(
    ("tunnel", "spec", "status", "wanted"),
    [
        ("ipipTunnelAddress", {"ipipMode": "Always"}, {}, True),
        ("ipipTunnelAddress", {"ipipMode": "CrossSubnet"}, {}, True),
        ("ipipTunnelAddress", {"ipipMode": "Never"}, {}, False),
        ("ipipTunnelAddress", {"vxlanMode": "Always"}, {}, False),
        ("ipipTunnelAddress", {"ipipMode": "Always", "disabled": True}, {}, False),
        ("ipipTunnelAddress", {"ipipMode": "Always", "allowedUses": ["Workload"]}, {}, False),
        ("ipipTunnelAddress", {"ipipMode": "Always", "nodeSelector": 'rack == "1"'}, {}, True),
        ("ipipTunnelAddress", {"ipipMode": "Always", "nodeSelector": 'rack == "2"'}, {}, False),
        ("ipipTunnelAddress", {"ipipMode": "Always", "nodeSelector": "=="}, {}, False),
        ("ipipTunnelAddress", {"ipipMode": "Always", "cidr": "nonsense"}, {}, False),
        ("vxlanTunnelAddress", {"vxlanMode": "Always"}, {}, True),
        ("vxlanTunnelAddress", {"vxlanMode": "Always", "cidr": "fd00::/64"}, {}, False),
        ("vxlanV6TunnelAddress", {"vxlanMode": "CrossSubnet", "cidr": "fd00::/64"}, {}, True),
        ("wireguardTunnelAddress", {}, {}, False),
        ("wireguardTunnelAddress", {}, {"wireguardPublicKey": "k"}, True),
        ("wireguardTunnelAddress", {}, {"wireguardPublicKeyV6": "k"}, False),
        ("wireguardV6TunnelAddress", {"cidr": "fd00::/64"}, {"wireguardPublicKeyV6": "k"}, True),
    ],
)
def test_which_pools_a_tunnels_address_comes_from(
    tunnel: str, spec: dict[str, Any], status: dict[str, str], wanted: bool
) -> None:
    kind = next(kind for kind in TUNNELS if kind.type == tunnel)
    found = pools_for(kind, node_with(status), [pool_with(**spec)])
    assert bool(found) == wanted
    if kind.key:
        assert pools_for(kind, node_with(status), [pool_with(**spec)], encrypt_host=True) == ()


def test_where_addresses_stand_in_the_node() -> None:
    for tunnel in TUNNELS:
        spec = tunnel.with_address(NodeSpec(), "10.0.0.1")
        assert tunnel.address(spec) == "10.0.0.1"
        assert [other.address(spec) for other in TUNNELS if other is not tunnel] == [""] * 4
        assert tunnel.with_address(spec, "") == NodeSpec(), "no empty parts stay behind"
    other = NodeSpec(bgp=NodeBGPSpec(ipv4Address="192.0.2.1/24"), wireguard=NodeWireguardSpec())
    assert IPIP.with_address(IPIP.with_address(other, "10.0.0.1"), "").bgp == other.bgp
    assert {tunnel.type for tunnel in TUNNELS} == set(TUNNEL_HANDLES)


OURS = {TYPE: "ipipTunnelAddress", NODE: "a"}


@pytest.mark.parametrize(
    ("address", "attribute", "verdict"),
    [
        ("10.0.0.5", AllocationAttribute(handle_id="h", secondary=OURS), Verdict.KEEP),
        ("10.9.0.5", AllocationAttribute(handle_id="h", secondary=OURS), Verdict.RENEW),
        ("10.0.0.5", None, Verdict.RENEW),
        ("10.0.0.5", AllocationAttribute(), Verdict.CONVERT),
        ("10.0.0.5", AllocationAttribute(handle_id="pod"), Verdict.LEAVE),
        ("10.0.0.5", AllocationAttribute(handle_id="h", secondary=OURS | {NODE: "b"}), Verdict.LEAVE),
        ("10.0.0.5", AllocationAttribute(handle_id="h", secondary=OURS | {TYPE: "x"}), Verdict.LEAVE),
    ],
)
def test_what_becomes_of_an_address(
    address: str, attribute: AllocationAttribute | None, verdict: Verdict
) -> None:
    assert judge(IPIP, "a", address, attribute, ["10.0.0.0/24"]) is verdict


async def tunnel_address(world: World, tunnel: Tunnel = IPIP) -> str:
    return tunnel.address((await world.client.get(Node, "a")).spec)


async def set_tunnel_address(world: World, address: str) -> None:
    node = await world.client.get(Node, "a")
    await world.client.update(structs.replace(node, spec=IPIP.with_address(node.spec, address)))


async def set_mode(world: World, mode: str) -> None:
    pool = await world.client.get(IPPool, "pool")
    await world.client.update(structs.replace(pool, spec=structs.replace(pool.spec, ipipMode=mode)))


def test_a_tunnel_address_comes_stays_and_goes_with_its_pool() -> None:
    async def story() -> None:
        world = await cluster(ipipMode="Always")
        a = world.allocator("a")
        await reconcile_tunnels(world.client, a, "a")
        address = await tunnel_address(world)
        assert await world.owners() == {address: "ipip-tunnel-addr-a"}
        assert (await a.attributes(address)).secondary == OURS
        before = (await world.client.get(Node, "a")).revision
        await reconcile_tunnels(world.client, a, "a")
        assert (await world.client.get(Node, "a")).revision == before, "nothing to do, nothing written"
        await set_mode(world, "Never")
        node = await reconcile_tunnels(world.client, a, "a")
        assert node.spec.bgp is None and await world.owners() == {}
        await assert_at_rest(world)

    run(story())


def test_a_node_that_lost_its_address_does_not_leak_it() -> None:
    async def story() -> None:
        world = await cluster(ipipMode="Always")
        a = world.allocator("a")
        await reconcile_tunnels(world.client, a, "a")
        await set_tunnel_address(world, "")
        await reconcile_tunnels(world.client, a, "a")
        assert list(await world.owners()) == [await tunnel_address(world)]
        await assert_at_rest(world)

    run(story())


def test_an_address_that_was_released_and_rests_is_replaced() -> None:
    """As after an update of the Node that failed: it still names what was released for the new address."""

    async def story() -> None:
        world = await cluster(ipipMode="Always")
        a = world.allocator("a")
        await world.configure(ipCooldownSeconds=600)
        await reconcile_tunnels(world.client, a, "a")
        resting = await tunnel_address(world)
        await a.release_by_handle("ipip-tunnel-addr-a")
        await reconcile_tunnels(world.client, a, "a")
        assert (await world.owners()) == {await tunnel_address(world): "ipip-tunnel-addr-a"}
        assert await tunnel_address(world) != resting

    run(story())


@pytest.mark.parametrize("handle", ["", "net.pod"])
def test_an_address_without_attributes_is_taken_over_or_left_to_its_pod(handle: str) -> None:
    async def story() -> None:
        world = await cluster(ipipMode="Always")
        a = world.allocator("a")
        await a.assign_ip(AssignAddress("10.0.0.5", handle))
        await set_tunnel_address(world, "10.0.0.5")
        await reconcile_tunnels(world.client, a, "a")
        owners = await world.owners()
        if handle:
            assert owners == {"10.0.0.5": handle, await tunnel_address(world): "ipip-tunnel-addr-a"}
        else:
            assert owners == {"10.0.0.5": "ipip-tunnel-addr-a"}
            assert await tunnel_address(world) == "10.0.0.5"
        await assert_at_rest(world)

    run(story())


@pytest.mark.parametrize(
    ("handle", "released"), [("", True), ("ipip-tunnel-addr-a", True), ("net.pod", False)]
)
def test_removing_releases_an_old_address_but_never_a_pods(handle: str, released: bool) -> None:
    async def story() -> None:
        world = await cluster(ipipMode="Never")
        a = world.allocator("a")
        await a.assign_ip(AssignAddress("10.0.0.5", handle))
        if handle:  # its handle object was lost
            await world.backend.delete(HandleKey(handle))
        await set_tunnel_address(world, "10.0.0.5")
        await reconcile_tunnels(world.client, a, "a")
        assert (await world.owners() == {}) == released
        assert await tunnel_address(world) == ""

    run(story())


def test_a_failed_update_of_the_node_gives_new_addresses_back() -> None:
    async def story() -> None:
        world = await cluster(ipipMode="Always")

        async def fail(operation: str, what: Key | Listing) -> None:
            if operation == "update" and what == ResourceKey("Node", "a"):
                raise UpdateConflict(what)

        assert isinstance(world.backend, MemoryBackend)
        world.backend.before = fail
        with pytest.raises(TortieError):
            await reconcile_tunnels(world.client, world.allocator("a"), "a")
        assert await world.owners() == {} and await world.handles() == {}

    run(story())
