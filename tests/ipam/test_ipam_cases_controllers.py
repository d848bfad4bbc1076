"""The edge cases of garbage collection and of services' addresses (Calico IPAM, section 8), by their numbers.

IPAM's objects are in the datastore under test; Kubernetes' own are what the controllers are told of them.
"""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, cluster, run
from tests.support.aio import eventually
from tests.support.seen import Seen, pod, service
from tortie.controllers import loadbalancer
from tortie.controllers.garbage import Collector
from tortie.controllers.loadbalancer import LoadBalancers
from tortie.controllers.rounds import Controller, keep
from tortie.core.tasks import cancel
from tortie.datastore.keys import ResourceKey
from tortie.datastore.nativekeys import NamespaceKey
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeSpec, OrchRef
from tortie.datastore.types.pod import Metadata
from tortie.ipam.allocator import Allocator
from tortie.ipam.requests import AutoAssign

pytestmark = pytest.mark.unit

SOON = 1e-9  # a grace period that is over with the next round
NEVER = 10_000.0


class Watched(Seen):
    """A world, and its controllers."""

    def __init__(self, world: World) -> None:
        super().__init__(world.backend)
        self.world = world
        self.allocator = Allocator(world.client, "a")

    async def lose(self, node: str) -> None:
        """Kubernetes has no such node any more."""
        del self.live.objects[ResourceKey("Node", node)]
        self.forgotten(ResourceKey("Node", node))

    def collector(self, grace: float) -> Collector:
        api: Any = self.live
        return Collector(self.allocator, self.world.backend, api, self.ours, self.native, grace)

    def balancers(self) -> LoadBalancers:
        api: Any = self.live
        return LoadBalancers(self.allocator, api, self.ours, self.native, "AllServices")

    async def give(self, node: str, handle: str, *, num6: int = 0, use: str = "Workload", **more: str) -> str:
        """An IPv4 address, and perhaps an IPv6 one, under a handle; the former is returned."""
        attributes = {"node": node, **more}
        request = AutoAssign(use, num4=1, num6=num6, handle=handle, host=node, attributes=attributes)
        answer = await self.allocator.auto_assign(request)
        answer.require_all()
        assert answer.v4 is not None
        await self.follow()
        return answer.v4.addresses[0].partition("/")[0]

    async def of_pod(self, name: str, node: str = "a", **more: Any) -> str:
        return await self.give(node, f"net.{name}", pod=name, namespace="shop", **more)

    async def holders(self) -> list[str]:
        return sorted((await self.world.owners()).values())


async def watched(*pools: str) -> Watched:
    """Nodes a and b, both known to Kubernetes, and one pool with small blocks; further ones are named."""
    world = await cluster("10.0.0.0/24", 30)
    for cidr in pools:
        await world.pool(f"more-{cidr[:2]}", cidr, 126 if ":" in cidr else 30)
    seen = Watched(world)
    for name in ("a", "b"):
        node = await world.client.get(Node, name)
        if not node.spec.orchRefs:  # with Kubernetes as the datastore it has
            spec = NodeSpec(orchRefs=(OrchRef(nodeName=name, orchestrator="k8s"),))
            node = await world.client.update(structs.replace(node, spec=spec))
        seen.kubernetes((ResourceKey("Node", name), node))
    await seen.follow()
    return seen


def candidates(collector: Collector) -> int:
    lines = [one for one in collector.metrics().splitlines() if "gc_candidates{" in one]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


# --- garbage ------------------------------------------------------------------------------------


def test_60_an_address_whose_handle_has_another_that_is_used_stays() -> None:
    async def story() -> None:
        seen = await watched("fd00::/120")
        address = await seen.of_pod("web", num6=1)
        key, web = pod("web", address, node="a")  # it tells one family only
        seen.kubernetes((key, web))
        collector = seen.collector(SOON)
        for _ in range(3):
            await collector.round()
        assert await seen.holders() == ["net.web", "net.web"]
        seen.forgotten(key)
        del seen.live.objects[key]
        for _ in range(2):
            await collector.round()
        assert await seen.holders() == []

    run(story())


def test_61_a_pod_that_reappears_clears_the_mark() -> None:
    async def story() -> None:
        seen = await watched()
        address = await seen.of_pod("web")
        collector = seen.collector(SOON)
        await collector.round()
        assert candidates(collector) == 1
        seen.live.objects |= dict([pod("web", address, node="a")])  # the feed has not heard of it yet
        await collector.round()
        assert await seen.holders() == ["net.web"]
        seen.kubernetes(pod("web", address, node="a"))
        await collector.round()
        assert candidates(collector) == 0 and await seen.holders() == ["net.web"]

    run(story())


def test_62_without_a_grace_period_only_what_gone_nodes_left_is_given_back() -> None:
    async def story() -> None:
        seen = await watched()
        await seen.of_pod("of-a")
        await seen.of_pod("of-b", "b")
        collector = seen.collector(0.0)
        for _ in range(3):
            await collector.round()
        assert candidates(collector) == 2 and await seen.holders() == ["net.of-a", "net.of-b"]
        await seen.lose("b")
        await collector.round()
        assert await seen.holders() == ["net.of-a"]

    run(story())


def test_63_a_gone_nodes_tunnel_addresses_and_blocks_go_in_one_pass() -> None:
    async def story() -> None:
        seen = await watched()
        await seen.give("b", "ipip-tunnel-addr-b", use="Tunnel", type="ipipTunnelAddress")
        await seen.lose("b")
        await seen.collector(NEVER).round()
        assert await seen.holders() == [] and await seen.world.affinities() == {}
        assert await seen.world.blocks() == {}

    run(story())


def test_64_what_nobody_can_judge_keeps_a_gone_nodes_blocks() -> None:
    async def story() -> None:
        seen = await watched()
        await seen.give("b", "custom-tool")
        await seen.lose("b")
        collector = seen.collector(SOON)
        for _ in range(2):
            await collector.round()
        assert await seen.holders() == ["custom-tool"]
        assert {owner for owner, _ in await seen.world.affinities()} == {"host:b"}
        await seen.allocator.release_by_handle("custom-tool")
        await seen.follow()
        await collector.round()
        assert await seen.world.affinities() == {} and await seen.world.blocks() == {}

    run(story())


def test_65_of_two_empty_blocks_one_goes_after_the_grace_period() -> None:
    async def story() -> None:
        seen = await watched()
        await seen.world.allocator("a").claim_affinity("10.0.0.0/29")
        await seen.follow()
        assert len(await seen.world.blocks()) == 2
        await seen.collector(NEVER).round()
        assert len(await seen.world.blocks()) == 2
        collector = seen.collector(SOON)
        for _ in range(3):
            await collector.round()
            await seen.follow()
        assert len(await seen.world.blocks()) == len(await seen.world.affinities()) == 1

    run(story())


# --- services -----------------------------------------------------------------------------------


async def lb_pool(seen: Watched) -> None:
    await seen.world.pool("lb", "10.8.0.0/24", 30, allowedUses=("LoadBalancer",), nodeSelector="all()")
    await seen.follow()


def with_service(seen: Watched) -> None:
    seen.kubernetes(service(), (NamespaceKey("shop"), Metadata(metadata=ObjectMeta(name="shop"))))


def test_72_a_service_has_an_address_as_long_as_there_is_a_pool() -> None:
    async def story() -> None:
        seen = await watched()
        with_service(seen)
        balancers = seen.balancers()
        await balancers.round()
        assert await seen.holders() == []
        await lb_pool(seen)
        await balancers.round()
        await seen.follow()
        assert len(await seen.holders()) == 1
        ((_, (address,)),) = seen.live.ingress
        assert address.startswith("10.8.0.")
        found = await seen.world.client.get(IPPool, "lb")
        await seen.world.client.delete(IPPool, "lb", revision=found.revision)
        await seen.follow()
        await balancers.round()
        assert await seen.holders() == []

    run(story())


def test_73_nothing_is_assigned_before_all_blocks_are_known() -> None:
    """Else the service of an earlier controller would get a second address."""

    async def story() -> None:
        seen = await watched()
        with_service(seen)
        await lb_pool(seen)
        await seen.balancers().round()
        before = await seen.world.owners()
        assert len(before) == 1
        again = Watched(seen.world)  # a controller that starts: services are known, blocks not yet
        again.live = seen.live
        with_service(again)
        balancers = again.balancers()
        rounds = 0

        async def counted() -> float | None:
            nonlocal rounds
            rounds += 1
            return await balancers.round()

        controller = Controller("load balancers", counted, [(again.ours, loadbalancer.TOPICS)])
        keeping = asyncio.create_task(keep(controller))
        try:
            for _ in range(20):
                await asyncio.sleep(0.02)
                assert rounds == 0
            await again.follow()
            await eventually(lambda: rounds)
        finally:
            await cancel([keeping])
        assert await seen.world.owners() == before

    run(story())
