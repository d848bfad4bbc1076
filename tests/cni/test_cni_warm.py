"""Addresses kept ready for the next pods: how many, who gets them, and what a crash leaves of them."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, assert_at_rest, cluster
from tests.support.aio import eventually, run
from tests.support.cni import Machine
from tests.support.etcd import wait_until
from tests.support.memory_backend import MemoryBackend
from tortie.cni.warm import WarmPool
from tortie.cni.warmplan import Counters, Marks, change, metrics
from tortie.core import exposition
from tortie.core.errors import CniError, ConfigError, DatastoreUnreachable, FieldError, ValidationError
from tortie.core.paths import Paths
from tortie.datastore.keys import BlockKey, HandleKey
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.meta import ObjectMeta
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import TooManyConflicts
from tortie.ipam.requests import AssignAddress
from tortie.ipam.transfer import Transfer
from tortie.ipam.view import DirectView

unit = pytest.mark.unit
kernel = pytest.mark.kernel

WARM = "warm-pool-a"
LONG = 10_000.0  # seconds: no test waits for it


def anything(_address: str) -> bool:
    return True


# --- how many -----------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize(
    ("ready", "idle", "expected"),
    [
        (0, 0.0, 8),
        (3, 0.0, 5),
        (4, 0.0, 0),
        (8, 0.0, 0),
        (9, 0.0, -1),
        (8, 60.0, -4),
        (4, 60.0, 0),
        (3, 60.0, 5),
    ],
)  # fmt: skip
def test_between_the_marks_nothing_happens_until_nobody_needs_any(
    ready: int, idle: float, expected: int
) -> None:
    assert change(ready, Marks(4, 8, 60.0), idle) == expected


@unit
def test_without_marks_everything_goes_back() -> None:
    assert change(3, Marks(), 0.0) == -3
    assert change(0, Marks(), LONG) == 0


@unit
def test_marks_come_from_the_environment_and_are_off_without() -> None:
    assert Marks.from_env({}) == Marks(0, 0, 300.0)
    env = {"TORTIE_WARM_POOL": "4:16", "TORTIE_WARM_POOL_IDLE": "60"}
    assert Marks.from_env(env) == Marks(4, 16, 60.0)


@unit
@pytest.mark.parametrize("text", ["4", "0:4", "5:4", "4:257", "-1:4", "a:b", "4:8:9", "４:8"])
def test_marks_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="TORTIE_WARM_POOL"):
        Marks.from_env({"TORTIE_WARM_POOL": text})
    with pytest.raises(ConfigError, match="TORTIE_WARM_POOL_IDLE"):
        Marks.from_env({"TORTIE_WARM_POOL": "1:1", "TORTIE_WARM_POOL_IDLE": "soon"})


@unit
def test_metrics_are_in_prometheus_format() -> None:
    text = exposition.text(metrics({4: 3, 6: 0}, 1, Marks(2, 4), Counters(taken=7, missed=1, short=2)))
    assert 'tortie_ipam_warm_addresses{version="4"} 3\n' in text
    assert "# TYPE tortie_ipam_warm_taken_total counter\ntortie_ipam_warm_taken_total 7\n" in text


# --- keeping them -------------------------------------------------------------------------------


def warm_pool(world: World, folder: Path, marks: Marks) -> WarmPool:
    allocator = world.allocator("a")
    return WarmPool(allocator, world.client, DirectView(world.client), Paths(run=str(folder)), marks)


@contextlib.asynccontextmanager
async def kept(warm: WarmPool) -> AsyncIterator[WarmPool]:
    there = asyncio.Event()
    there.set()
    task = asyncio.create_task(warm.run(there))
    try:
        yield warm
    finally:
        task.cancel()
        await asyncio.wait([task])


async def settled(warm: WarmPool, ready: int) -> None:
    await eventually(
        lambda: len(warm.ready[4]) == ready and not warm.given.underway, what=f"{ready} ready addresses"
    )


async def owners_become(world: World, wanted: Callable[[dict[str, str]], bool]) -> None:
    async with asyncio.timeout(120):
        while not wanted(await world.owners()):
            await asyncio.sleep(0.005)


async def filled(world: World, folder: Path, marks: Marks) -> WarmPool:
    """One that has as many as it may have, and that nobody keeps so from here on."""
    warm = warm_pool(world, folder, marks)
    async with kept(warm):
        await settled(warm, marks.high)
    return warm


def taken(warm: WarmPool, handle: str = "net.c", **attributes: str) -> str:
    """The address of a container that got a ready one."""
    text = warm.take(4, handle, {"node": "a", **attributes}, anything)
    assert text
    return text.partition("/")[0]


async def released_by_hand(world: World, address: str) -> None:
    outcome = await world.allocator("b").release_ips([ReleaseRequest(address)])
    assert outcome.error is None and not outcome.unallocated


async def taken_and_released(folder: Path, **attributes: str) -> tuple[World, WarmPool, str]:
    """A container got an address, and somebody released it before it was written whose it is."""
    world = await cluster()
    warm = await filled(world, folder, Marks(2, 4, LONG))
    address = taken(warm, **attributes)
    await released_by_hand(world, address)
    return world, warm, address


def held_by(owners: dict[str, str], handle: str) -> set[str]:
    return {address for address, holder in owners.items() if holder == handle}


@unit
def test_a_ready_address_becomes_a_containers_without_asking_and_the_stock_is_refilled(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        world = await cluster()
        warm = warm_pool(world, tmp_path, Marks(2, 4, LONG))
        async with kept(warm):
            await settled(warm, 4)
            assert len(held_by(await world.owners(), WARM)) == 4
        # Nobody writes now: what is taken is taken from memory alone.
        got = [warm.take(4, f"net.c{n}", {"node": "a", "pod": f"p{n}"}, anything) for n in range(3)]
        addresses = [text.partition("/")[0] for text in got if text]
        assert len(set(addresses)) == 3 and all(text and text.endswith("/26") for text in got)
        assert held_by(await world.owners(), WARM) >= set(addresses)
        async with kept(warm):
            await warm.given.flush("net.c0")
            await settled(warm, 4)
            owners = await world.owners()
            assert [owners[address] for address in addresses] == ["net.c0", "net.c1", "net.c2"]
            assert (await world.allocator("a").attributes(addresses[1])).secondary["pod"] == "p1"
            assert os.listdir(tmp_path / "warm-addresses") == []
            assert "taken_total 3" in (tmp_path / "warm-addresses.prom").read_text()
        await assert_at_rest(world)

    run(story())


@unit
@pytest.mark.parametrize("reboot", [False, True])
def test_after_a_crash_notes_are_carried_out_after_a_reboot_there_are_none(
    tmp_path: Path, reboot: bool
) -> None:
    async def story() -> None:
        world = await cluster()
        first = await filled(world, tmp_path, Marks(2, 2, LONG))
        address = taken(first)
        if reboot:
            (tmp_path / "warm-addresses" / address).unlink()
        second = warm_pool(world, tmp_path, Marks(2, 2, LONG))
        assert bool(second.given.transfers("net.c")) is not reboot
        async with kept(second):
            await settled(second, 2)
            assert (address in second.ready[4]) is reboot
            assert (await world.owners())[address] == (WARM if reboot else "net.c")
        await assert_at_rest(world)

    run(story())


@unit
def test_what_an_endpoint_uses_or_an_unreadable_note_is_of_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        world = await cluster()
        first = await filled(world, tmp_path, Marks(4, 4, LONG))
        used, noted, *_ = first.ready[4]
        (tmp_path / "warm-addresses").mkdir(exist_ok=True)
        (tmp_path / "warm-addresses" / noted).write_text("half a no")
        spec = WorkloadEndpointSpec(
            orchestrator="k8s", node="a", pod="p", endpoint="eth0", containerID="c",
            interfaceName="cali1", ipNetworks=(f"{used}/32",),
        )  # fmt: skip
        meta = ObjectMeta(name="a-k8s-p-eth0", namespace="default")
        await world.client.create(WorkloadEndpoint(metadata=meta, spec=spec))
        second = warm_pool(world, tmp_path, Marks(4, 4, LONG))
        async with kept(second):
            await settled(second, 4)
            assert not {used, noted} & set(second.ready[4])
            await world.client.delete(WorkloadEndpoint, meta.name, "default")
            await owners_become(world, lambda owners: held_by(owners, WARM) == {noted, *second.ready[4]})

    monkeypatch.setattr("tortie.cni.warm._USED", 0.05)
    run(story())


@unit
def test_switched_off_it_gives_everything_back(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        on = await filled(world, tmp_path, Marks(4, 4, LONG))
        taken(on)
        off = warm_pool(world, tmp_path, Marks())
        async with kept(off):
            await owners_become(world, lambda owners: set(owners.values()) == {"net.c"})
        await assert_at_rest(world)

    run(story())


@unit
def test_idle_it_goes_down_to_the_low_mark(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        warm = await filled(world, tmp_path, Marks(1, 4, LONG))
        warm._marks = Marks(1, 4, 0.3)
        async with kept(warm):
            await owners_become(world, lambda owners: len(owners) == 1)

    run(story())


@unit
def test_full_pools_are_told_once_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30)
        warm = warm_pool(world, tmp_path, Marks(8, 8, LONG))
        async with kept(warm):
            await eventually(lambda: warm.counters.short)
            assert warm.take(4, "net.c", {}, anything)
            await eventually(lambda: not warm.given.underway)
            assert len(warm.ready[4]) == 3

    with caplog.at_level("WARNING"):
        run(story())
    (told,) = [record.message for record in caplog.records if "are ready" in record.message]
    assert "pool pool (10.0.0.0/30) has 0 of 4 addresses free" in told


@unit
def test_an_answer_that_got_lost_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses were assigned, or handed over, and nobody was told: the datastore is asked what is so."""

    async def story() -> None:
        world = await cluster()
        warm = warm_pool(world, tmp_path, Marks(2, 4, LONG))
        lost = {"auto_assign": 1, "transfer": 1}

        def losing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            async def call(*arguments: Any) -> Any:
                answer = await original(*arguments)
                if lost[name]:
                    lost[name] -= 1
                    raise DatastoreUnreachable(f"the answer to {name} is lost")
                return answer

            return call

        for name in lost:
            monkeypatch.setattr(warm.allocator, name, losing(name, getattr(warm.allocator, name)))
        async with kept(warm):
            await settled(warm, 4)
            taken(warm)
            await settled(warm, 3)
            assert lost == {"auto_assign": 0, "transfer": 0}
            assert len(held_by(await world.owners(), "net.c")) == 1
        await assert_at_rest(world)

    run(story())


@unit
def test_a_given_address_that_somebody_had_released_is_assigned_anew(tmp_path: Path) -> None:
    async def story() -> None:
        world, warm, address = await taken_and_released(tmp_path, pod="p")
        async with kept(warm):
            await warm.given.make_sure("net.c")
            assert (await world.owners())[address] == "net.c"
            assert (await world.allocator("a").attributes(address)).secondary == {"node": "a", "pod": "p"}
        assert warm.given.lost == {}
        await assert_at_rest(world)

    run(story())


@unit
def test_one_that_another_has_by_then_fails_the_call_and_stays_the_others(tmp_path: Path) -> None:
    async def story() -> None:
        world, warm, address = await taken_and_released(tmp_path)
        await world.allocator("b").assign_ip(AssignAddress(address, "net.other"))
        async with kept(warm):
            with pytest.raises(CniError, match=rf"{address} \(net.other has it\), which this node had ready"):
                await warm.given.make_sure("net.c")
            assert warm.given.lost == {(address, "net.c"): "net.other has it"} and warm.counters.lost == 1
            assert (await world.owners())[address] == "net.other"
            warm.given.forget("net.c")
            await warm.given.make_sure("net.c")
        await assert_at_rest(world)

    run(story())


@unit
def test_a_ready_address_that_somebody_released_is_not_ready_any_more(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        warm = warm_pool(world, tmp_path, Marks(4, 4, LONG))
        async with kept(warm):
            await settled(warm, 4)
            address = next(iter(warm.ready[4]))
            await released_by_hand(world, address)
            await eventually(lambda: address not in warm.ready[4])
            await settled(warm, 4)
            assert held_by(await world.owners(), WARM) == set(warm.ready[4])
        await assert_at_rest(world)

    run(story())


@unit
def test_what_is_given_is_not_ready_though_it_is_got_again(tmp_path: Path) -> None:
    """Somebody released it just when more were got: until its container has it, it is nobody else's."""

    async def story() -> None:
        world = await cluster("10.0.0.0/29", 29)
        warm = await filled(world, tmp_path, Marks(4, 4, LONG))
        address = taken(warm, "net.x")
        await released_by_hand(world, address)
        await warm._get(4, 5)  # the whole pool
        assert (await world.owners())[address] == WARM
        assert address in warm.given.underway and address not in warm.ready[4]
        stranger = Transfer(address, "10.0.0.0/29", "net.y")
        warm.given.give_again([stranger])
        assert [one.handle for one in warm.given.transfers("net.x")] == ["net.x"]
        async with kept(warm):
            with pytest.raises(CniError, match=rf"{address} \(it was given to net.x\)"):
                await warm.given.make_sure("net.y")
            await warm.given.make_sure("net.x")
            assert (await world.owners())[address] == "net.x"
            assert warm.given.missing([stranger])
            assert not warm.given.missing([replace(stranger, handle="net.x")])
        await assert_at_rest(world)

    run(story())


@unit
@pytest.mark.parametrize("what", ["a handle", "a block"])
def test_what_cannot_be_handed_over_keeps_no_other_from_it_nor_its_container_from_ending(
    tmp_path: Path, what: str
) -> None:
    async def refusing(operation: str, key: Any) -> None:
        bad = key == HandleKey("net.bad") if what == "a handle" else key == BlockKey(blocks[0])
        if bad and operation in ("create", "update"):
            raise ValidationError([FieldError("metadata.name", "net.bad", "is not to the datastore's taste")])

    blocks: list[str] = []

    async def story() -> None:
        world = await cluster("10.0.0.0/24", 30)
        warm = await filled(world, tmp_path, Marks(6, 6, LONG))
        blocks.extend(dict.fromkeys(warm.ready[4].values()))
        memory = world.backend
        assert isinstance(memory, MemoryBackend) and len(blocks) == 2
        bad = warm.take(4, "net.bad", {"node": "a"}, lambda one: warm.ready[4][one] == blocks[0])
        good = warm.take(4, "net.good", {"node": "a"}, lambda one: warm.ready[4][one] == blocks[1])
        assert bad and good
        memory.before = refusing
        warm = warm_pool(world, tmp_path, Marks(4, 4, LONG))
        async with kept(warm):
            await warm.given.make_sure("net.good")
            with pytest.raises(CniError, match=r"is not assigned to net.bad: .*to the datastore's taste"):
                await warm.given.make_sure("net.bad")
            address = bad.partition("/")[0]
            assert address not in warm.ready[4]
            await warm.given.flush("net.bad")  # its DEL
            warm.given.forget("net.bad")
            await eventually(lambda: address in warm.ready[4])
            assert os.listdir(tmp_path / "warm-addresses") == []
            memory.before = None
        await assert_at_rest(world, exact=False)

    run(story())


@unit
@pytest.mark.parametrize("address", ["nonsense", "10.0.1.1"])
def test_a_note_of_no_address_of_its_block_is_none(tmp_path: Path, address: str) -> None:
    async def story() -> None:
        world = await cluster()
        first = await filled(world, tmp_path, Marks(2, 2, LONG))
        folder = tmp_path / "warm-addresses"
        folder.mkdir(exist_ok=True)
        block = next(iter(first.ready[4].values()))
        note = {"address": address, "block": block, "handle": "net.c", "attributes": {}}
        (folder / address).write_text(json.dumps(note))
        await filled(world, tmp_path, Marks(2, 2, LONG))

    run(story())


@unit
def test_what_is_seen_during_a_question_is_not_forgotten_by_its_answer(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        warm = await filled(world, tmp_path, Marks(4, 4, LONG))
        original = warm.allocator.held_by_block

        async def overtaken(handle: str) -> dict[str, list[str]]:
            answer = await original(handle)
            await released_by_hand(world, address)
            warm._saw(block, await world.block(block))
            return answer

        address, block = next(iter(warm.ready[4].items()))
        warm.allocator.held_by_block = overtaken  # type: ignore[method-assign]
        await warm._look()
        assert address not in warm.ready[4] and not warm.sure

    run(story())


@unit
def test_many_conflicts_take_an_address_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        world, warm, address = await taken_and_released(tmp_path)
        original, tries = warm.allocator.assign_ip, [TooManyConflicts()]

        async def busy(request: AssignAddress) -> None:
            if tries:
                raise tries.pop()
            await original(request)

        monkeypatch.setattr(warm.allocator, "assign_ip", busy)
        async with kept(warm):
            await warm.given.make_sure("net.c")
            assert (await world.owners())[address] == "net.c" and not warm.given.lost and not tries

    run(story())


@unit
def test_addresses_of_a_pool_that_is_out_of_use_go_back_and_others_are_got(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        warm = warm_pool(world, tmp_path, Marks(2, 4, LONG))
        async with kept(warm):
            await settled(warm, 4)
            pool = await world.client.get(IPPool, "pool")
            await world.client.update(structs.replace(pool, spec=structs.replace(pool.spec, disabled=True)))
            await world.pool("other", "10.1.0.0/24", 26)
            assert warm.take(4, "net.c", {"node": "a"}, lambda one: one.startswith("10.1.")) is None
            await eventually(lambda: len(warm.ready[4]) == 4 and all(map(from_other, warm.ready[4])))
            assert set(held_by(await world.owners(), WARM)) == set(warm.ready[4])

    def from_other(address: str) -> bool:
        return address.startswith("10.1.")

    run(story())


# --- the real server ------------------------------------------------------------------------------


@kernel
def test_pods_get_ready_addresses_through_the_real_plugin(bare_machine: Machine) -> None:
    machine, ready = bare_machine, bare_machine.ready_addresses
    machine.start_warm_server("2:4")
    wait_until(lambda: '{version="4"} 4\n' in machine.warm_metrics(), what="the server to know of four")
    before = ready()
    chain, pods = machine.chain(), [machine.pod(f"pod-{number}") for number in range(3)]
    got = {str(chain.add(one)["ips"][0]["address"]).partition("/")[0] for one in pods}
    assert got <= before
    machine.kill_server()
    machine.start_server()
    wait_until(lambda: not got & ready() and len(ready()) >= 2, what="their owners, and others ready")
    for one in pods:
        chain.check(one)
        chain.delete(one)
    assert not got & set(machine.held()) or got & set(machine.held()) <= ready()
    machine.stop_server()
    del machine.settings["TORTIE_WARM_POOL"]
    machine.start_server()
    wait_until(lambda: not machine.held(), what="everything given back")
