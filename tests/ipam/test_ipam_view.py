"""What the allocator knows besides blocks: read directly, or kept in memory and fed by a syncer."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.ipam.ipam_world import World, assign, gone, try_assign
from tests.support.memory_backend import MemoryBackend
from tortie.core.errors import DatastoreUnreachable
from tortie.datastore.keys import BlockKey, Key, Listing, ResourceList
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.node import Node
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner
from tortie.ipam.errors import IPAMError
from tortie.ipam.requests import AssignAddress
from tortie.ipam.view import DirectView, Facts, SyncedView

pytestmark = pytest.mark.unit


async def with_view(story: Callable[[World, SyncedView], Coroutine[Any, Any, None]]) -> None:
    world = World()
    await world.pool("pool", "10.0.0.0/24", 26)
    await world.node("a", rack="1")
    await world.node("ab")
    view = SyncedView(world.client, "a")
    feeding = asyncio.create_task(view.run())
    try:
        await until(lambda: view.in_sync)
        await story(world, view)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.001)


def run(story: Callable[[World, SyncedView], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(with_view(story))


def count_requests(world: World) -> list[str]:
    asked: list[str] = []

    async def note(operation: str, what: Key | Listing) -> None:
        asked.append(f"{operation} {what}")

    assert isinstance(world.backend, MemoryBackend)
    world.backend.before = note
    return asked


def test_a_synced_view_says_what_a_direct_one_says() -> None:
    async def story(world: World, view: SyncedView) -> None:
        await world.pool("another", "10.1.0.0/24")
        await world.reserve("r", "10.0.0.0/30")
        await world.configure(strict_affinity=True)
        await world.label("a", rack="2")

        async def same() -> bool:
            mine, read = await view.facts(), await DirectView(world.client).facts()
            return mine.config == read.config and mine.pools == read.pools

        async with asyncio.timeout(120):
            while not await same() or dict(await view.labels("a")) != {"rack": "2"}:
                await asyncio.sleep(0.001)
        assert [pool.name for pool in (await view.facts()).pools] == ["another", "pool"]
        assert (await view.facts()).reserved
        assert (await view.facts()) is (await view.facts()), "derived once, not at each request"

    run(story)


def test_nothing_but_blocks_is_read_for_an_address_and_that_in_four_requests() -> None:
    async def story(world: World, view: SyncedView) -> None:
        allocator = world.allocator("a", view=view)
        await assign(allocator, 1, "first")
        asked = count_requests(world)
        await assign(allocator, 1, "second")
        assert sorted(asked) == [
            "create IPAMHandle(second)",
            "get IPAMBlock(10.0.0.192/26)",
            "list AffinityList(host='a', owner_type='host', version=4)",
            "update IPAMBlock(10.0.0.192/26)",
        ]
        asked.clear()
        await allocator.release_by_handle("second")
        assert [text.split("(")[0] for text in asked] == [
            "get IPAMHandle",
            "get IPAMBlock",
            "update IPAMBlock",
            "delete IPAMHandle",
        ]

    run(story)


def test_deletions_reach_the_view() -> None:
    async def story(world: World, view: SyncedView) -> None:
        await world.client.delete(IPPool, "pool")
        await world.client.delete(Node, "a")
        async with asyncio.timeout(120):
            while (await view.facts()).pools or not await gone(view.labels("a")):
                await asyncio.sleep(0.001)

    run(story)


def test_other_nodes_and_fresh_facts_are_read_directly() -> None:
    async def story(world: World, view: SyncedView) -> None:
        assert await view.labels("ab") == {}, "whose name begins like ours"
        asked = count_requests(world)
        await view.facts()
        assert asked == []
        await view.facts(fresh=True)
        assert len(asked) == 3

    run(story)


def test_before_it_is_in_sync_it_reads_directly() -> None:
    async def story() -> None:
        world = World()
        await world.pool("pool", "10.0.0.0/24")
        await world.nodes("a")
        view = SyncedView(world.client, "a")
        assert [pool.name for pool in (await view.facts()).pools] == ["pool"]
        assert await view.labels("a") == {}
        assert await assign(world.allocator("a", view=view), 1, "h")

    asyncio.run(story())


def test_an_outage_does_not_make_it_forget() -> None:
    async def story(world: World, view: SyncedView) -> None:
        assert isinstance(world.backend, MemoryBackend)
        world.backend.away = True
        world.backend.drop_watches()
        await asyncio.sleep(0.01)
        assert [pool.name for pool in (await view.facts()).pools] == ["pool"]
        got = await try_assign(world.allocator("a", view=view), 1, "h")
        assert isinstance(got.error, DatastoreUnreachable)

    run(story)


def test_an_unusable_pool_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World, view: SyncedView) -> None:
        path = ResourceList("IPPool").prefix() + "broken"
        assert isinstance(world.backend, MemoryBackend)
        with caplog.at_level(logging.WARNING, "tortie.ipam"):
            bad = '{"kind":"IPPool","metadata":{"name":"broken"},"spec":{"cidr":"1.2.3.4/5\\n[INFO]"}}'
            await world.backend.put_raw(path, bad)
            for name in ("one", "two", "three"):  # each makes the view derive its facts anew
                await world.reserve(name, "10.0.0.1")
                await until(lambda: view._facts is None)
                assert [pool.name for pool in (await view.facts()).pools] == ["pool"]
        told = [record.getMessage() for record in caplog.records if "broken" in record.getMessage()]
        assert len(told) == 1 and "\n" not in told[0]

    run(story)


class StaleView(DirectView):
    """Has not heard of anything since it was made, unless it must be fresh."""

    def __init__(self, world: World, known: Facts) -> None:
        super().__init__(world.client)
        self._known = known

    async def facts(self, *, fresh: bool = False) -> Facts:
        return await super().facts() if fresh else self._known


def test_a_stale_view_does_not_make_blocks_of_two_sizes_overlap() -> None:
    """The pool was deleted and created anew with another block size, and the view has not heard of it."""

    async def story() -> None:
        world = World()
        await world.pool("pool", "10.0.0.0/24", 26)
        await world.nodes("a", "b")
        view = StaleView(world, await DirectView(world.client).facts())
        await world.client.delete(IPPool, "pool")
        await world.pool("pool", "10.0.0.0/24", 28)
        await assign(world.allocator("b"), 20, "b")
        allocator = world.allocator("a", view=view)
        await assign(allocator, 1, "a")
        assert {block.cidr[-2:] for block in (await world.blocks()).values()} == {"28"}
        taken = next(iter(await world.blocks()))
        with pytest.raises(IPAMError, match="overlaps a block of another size"):
            await allocator.assign_ip(AssignAddress(str(addresses.network(taken)[0]), "h"))

    asyncio.run(story())


def test_a_misfit_block_is_stepped_around() -> None:
    async def story() -> None:
        world = World()
        await world.pool("pool", "10.0.0.0/28", 30)
        await world.nodes("a")
        odd, _ = blocks.assign(
            blocks.new_block("10.0.0.8/29", Owner("x"), 1), 1, AllocationAttribute(handle_id="h")
        )
        await world.backend.create(BlockKey(odd.cidr), odd)
        got = await try_assign(world.allocator("a"), 16, "a")
        assert got.v4 is not None and len(got.v4.addresses) == 8
        assert all(int(a.split("/")[0].split(".")[3]) < 8 for a in got.v4.addresses)

    asyncio.run(story())


def test_an_unreadable_block_is_neither_used_nor_claimed(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        world = World()
        await world.pool("pool", "10.0.0.0/29", 30)
        await world.nodes("a")
        assert isinstance(world.backend, MemoryBackend)
        prefix = "/calico/ipam/v2/assignment/ipv4/block/"
        await world.backend.put_raw(prefix + "10.0.0.0-30", '{"cidr":"10.0.0.0/30","allocations":[9,9,9,9]}')
        await world.backend.put_raw(prefix + "0.0.0.0-0", '{"cidr":"0.0.0.0/0","affinity":null}')
        await world.backend.put_raw(prefix + "10.0.0.4-31", "{")
        with caplog.at_level(logging.WARNING, "tortie.ipam"):
            got = await try_assign(world.allocator("a"), 8, "a")
            assert got.error is None and got.v4 is not None and len(got.v4.addresses) == 4
        assert sum("10.0.0.0-30" in record.getMessage() for record in caplog.records) == 1

    asyncio.run(story())
