"""Calico's IPAM as calls use it: what a failure leaves, and how far garbage collection gets."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.ipam.ipam_world import World, assign, cluster
from tests.support.aio import eventually, run
from tests.support.memory_backend import MemoryBackend
from tortie.cni.addressing import Ask, CalicoIpam
from tortie.cni.handler import Handler
from tortie.cni.identity import Identity
from tortie.cni.netconf import NetConf
from tortie.cni.operation import Operation
from tortie.cni.protocol import CALICO, Call
from tortie.cni.store import Store
from tortie.cni.warm import WarmPool
from tortie.cni.warmplan import Marks
from tortie.core.errors import CniError, Unauthorized
from tortie.core.paths import Paths
from tortie.datastore.keys import HandleKey
from tortie.ipam.view import DirectView

pytestmark = pytest.mark.unit


def operation(world: World, **ipam: Any) -> Operation:
    """The ADD of a pod, or the GC of its network, on node a."""
    shim: Any = SimpleNamespace(gone=asyncio.Event())
    store: Any = SimpleNamespace(client=world.client, view=DirectView(world.client))
    unused: Any = None
    return Operation(
        call=Call(CALICO, "ADD", {}),
        conf=msgspec.convert({"name": "net", "ipam": {"type": "calico-ipam", **ipam}}, NetConf),
        stdin=b"",
        shim=shim,
        store=store,
        pods=unused,
        paths=Paths(),
        identity=Identity("a", "net", "k8s", "default", "c", "eth0", pod="p"),
        stopping=asyncio.Event(),
        later=unused,
        home=True,
    )


def warm_pool(world: World, folder: Path, marks: Marks) -> WarmPool:
    return WarmPool(
        world.allocator("a"), world.client, DirectView(world.client), Paths(run=str(folder)), marks
    )


def test_gc_goes_on_after_a_container_whose_addresses_cannot_be_released(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        for container in ("first", "second", "third"):
            await assign(world.allocator("a"), 1, f"net.{container}", attributes={"node": "a"})

        async def refuse(operation: str, what: Any) -> None:
            if (operation, what) == ("get", HandleKey("net.first")):
                raise Unauthorized("net.first")

        assert isinstance(world.backend, MemoryBackend)
        world.backend.before = refuse
        manager = CalicoIpam(world.allocator("a"), warm_pool(world, tmp_path, Marks()))
        with pytest.raises(Unauthorized):
            await manager.collect(operation(world), lambda container: container == "third")
        assert set((await world.owners()).values()) == {"net.first", "net.third"}

    run(story())


def test_a_ready_address_goes_back_when_the_rest_cannot_be_had(tmp_path: Path) -> None:
    """The IPv4 address was ready, the IPv6 one was not, and the runtime gave up meanwhile."""

    async def story() -> None:
        world = await cluster()
        await world.pool("six", "fd00::/112", 122)
        warm = warm_pool(world, tmp_path, Marks(1, 2, idle=10_000.0))
        there = asyncio.Event()
        there.set()
        keeping = asyncio.create_task(warm.run(there))
        try:
            await eventually(lambda: len(warm.ready[4]) == 2, what="ready addresses")
            op = operation(world, assign_ipv6="true")
            op.shim.gone.set()
            with pytest.raises(CniError, match="the runtime gave up waiting"):
                await CalicoIpam(world.allocator("a"), warm).assign(op, Ask())
            assert "net.c" not in (await world.owners()).values() and not warm.given.transfers("net.c")
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    run(story())


def test_a_pod_goes_also_where_nobody_may_ask_for_its_vm(tmp_path: Path) -> None:
    async def refused(*_: object) -> None:
        raise Unauthorized("virtualmachineinstances")

    async def story() -> None:
        world = await cluster()
        tools: Any = SimpleNamespace(warm=warm_pool(world, tmp_path, Marks()))
        pods: Any = SimpleNamespace(launched=refused)
        handler, op = Handler(tools), replace(operation(world), store=Store(world.client, "a"), pods=pods)
        with pytest.raises(Unauthorized):
            await handler._manager(replace(op, call=replace(op.call, command="ADD")))
        assert await handler._manager(replace(op, call=replace(op.call, command="DEL"))) is not None

    run(story())


def test_only_a_call_for_the_warm_pools_own_blocks_takes_turns_with_it(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        for marks, shared in ((Marks(1, 2), True), (Marks(), False)):
            warm = warm_pool(world, tmp_path, marks)
            tools: Any = SimpleNamespace(warm=warm)
            handler, op = Handler(tools), replace(operation(world), store=Store(world.client, "a"))
            for call, same in ((op, shared), (replace(op, home=False), False)):
                manager = handler._calico_ipam(call)
                assert (manager.allocator is warm.allocator) is same
                assert handler._calico_ipam(call) is manager

    run(story())
