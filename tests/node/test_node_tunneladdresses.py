"""A node's tunnel addresses follow the pools and the Node, whoever changes them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import structs

from tests.support import aio
from tests.support.memory_backend import MemoryBackend
from tortie.core import tasks
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec
from tortie.ipam.allocator import Allocator
from tortie.ipam.requests import AutoAssign
from tortie.node.tunneladdresses import TunnelAddresses

pytestmark = pytest.mark.unit


class Cluster:
    """Nodes `n`, whose addresses are kept, and `n2`."""

    def __init__(self) -> None:
        self.client = Client(MemoryBackend())

    async def start(self) -> None:
        for name, address in (("n", "192.0.2.1/24"), ("n2", "192.0.2.2/24")):
            spec = NodeSpec(bgp=NodeBGPSpec(ipv4Address=address))
            await self.client.create(Node(metadata=ObjectMeta(name=name), spec=spec))

    async def pool(self, cidr: str, name: str = "pool", **more: Any) -> None:
        spec = IPPoolSpec(cidr=cidr, **more)
        try:
            stored = await self.client.get(IPPool, name)
        except ResourceDoesNotExist:
            await self.client.create(IPPool(metadata=ObjectMeta(name=name), spec=spec))
        else:
            await self.client.update(structs.replace(stored, spec=spec))

    async def tunnels(self, node: str = "n") -> tuple[str, str, str]:
        """Addresses for VXLAN, VXLAN in IPv6, IPIP."""
        spec = (await self.client.get(Node, node)).spec
        return (
            spec.ipv4VXLANTunnelAddr,
            spec.ipv6VXLANTunnelAddr,
            spec.bgp.ipv4IPIPTunnelAddr if spec.bgp else "",
        )

    async def until(self, *begins: str) -> tuple[str, str, str]:
        """Wait until the addresses begin so; '' is for none."""
        async with asyncio.timeout(120):
            while True:
                found = await self.tunnels()
                if all(a.startswith(b) and bool(a) == bool(b) for a, b in zip(found, begins, strict=True)):
                    return found
                await asyncio.sleep(0.01)


def play(story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def run() -> None:
        cluster = Cluster()
        await cluster.start()
        part = TunnelAddresses(cluster.client, "n", {})
        loops = [asyncio.create_task(loop()) for loop in (part.watch, part.follow)]
        try:
            await story(cluster)
        finally:
            await tasks.cancel(loops)

    aio.run(run())


def test_addresses_come_and_go_with_the_modes_of_pools() -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.pool("10.0.0.0/24", vxlanMode="Always")
        await cluster.until("10.0.0.", "", "")
        await cluster.pool("10.0.0.0/24", ipipMode="CrossSubnet")
        await cluster.until("", "", "10.0.0.")
        await cluster.pool("fd00:10::/112", "six", vxlanMode="CrossSubnet")
        await cluster.until("", "fd00:10::", "10.0.0.")
        assert await cluster.tunnels("n2") == ("", "", ""), "every node for itself"
        await cluster.client.delete(IPPool, "pool")
        await cluster.until("", "fd00:10::", "")

    play(story)


def test_an_address_that_somebody_took_out_of_the_node_comes_back() -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.pool("10.0.0.0/24", vxlanMode="Always")
        await cluster.until("10.0.0.", "", "")
        node = await cluster.client.get(Node, "n")
        await cluster.client.update(structs.replace(node, spec=NodeSpec(bgp=node.spec.bgp)))
        await cluster.until("10.0.0.", "", "")

    play(story)


def test_a_pool_without_room_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def story(cluster: Cluster) -> None:
        allocator = Allocator(cluster.client, "n2")
        await cluster.pool("10.0.0.0/30", blockSize=30)
        await allocator.auto_assign(AutoAssign(use="Workload", num4=4, handle="full"))
        await cluster.pool("10.0.0.0/30", blockSize=30, vxlanMode="Always")
        await aio.eventually(lambda: "cannot bring tunnel addresses up to date" in caplog.text)
        await allocator.release_by_handle("full")
        await cluster.until("10.0.0.", "", "")

    play(story)
