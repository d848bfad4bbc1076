"""Addresses kept ready for the next pods: how many, who gets them, and what a crash leaves of them."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ipam.ipam_world import World, assert_at_rest, cluster
from tests.support.aio import eventually, run
from tests.support.cni import Machine, pool
from tests.support.etcd import wait_until
from tortie.cni.warm import WarmPool
from tortie.cni.warmplan import Counters, Marks, change, metrics
from tortie.core.errors import ConfigError, DatastoreUnreachable
from tortie.core.paths import Paths
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
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
    text = metrics({4: 3, 6: 0}, 1, Marks(2, 4), Counters(taken=7, missed=1, short=2))
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
    await eventually(lambda: len(warm.ready[4]) == ready and not warm.given, 30, f"{ready} ready addresses")


async def owners_become(world: World, wanted: Callable[[dict[str, str]], bool]) -> None:
    async with asyncio.timeout(30):
        while not wanted(await world.owners()):
            await asyncio.sleep(0.005)


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
            await warm.flush("net.c0")
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
        first = warm_pool(world, tmp_path, Marks(2, 2, LONG))
        async with kept(first):
            await settled(first, 2)
        text = first.take(4, "net.c", {"node": "a"}, anything)
        assert text
        address = text.partition("/")[0]
        if reboot:
            (tmp_path / "warm-addresses" / address).unlink()
        second = warm_pool(world, tmp_path, Marks(2, 2, LONG))
        assert second.owes("net.c") is not reboot
        async with kept(second):
            await settled(second, 2)
            assert (address in second.ready[4]) is reboot
            assert (await world.owners())[address] == (WARM if reboot else "net.c")
        await assert_at_rest(world)

    run(story())


@unit
def test_what_an_endpoint_uses_or_an_unreadable_note_is_of_is_never_ready(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        first = warm_pool(world, tmp_path, Marks(4, 4, LONG))
        async with kept(first):
            await settled(first, 4)
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

    run(story())


@unit
def test_switched_off_it_gives_everything_back(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        on = warm_pool(world, tmp_path, Marks(4, 4, LONG))
        async with kept(on):
            await settled(on, 4)
        assert on.take(4, "net.c", {"node": "a"}, anything)
        off = warm_pool(world, tmp_path, Marks())
        async with kept(off):
            await owners_become(world, lambda owners: set(owners.values()) == {"net.c"})
        await assert_at_rest(world)

    run(story())


@unit
def test_idle_it_goes_down_to_the_low_mark(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        warm = warm_pool(world, tmp_path, Marks(1, 4, 0.3))
        async with kept(warm):
            await settled(warm, 4)
            await owners_become(world, lambda owners: len(owners) == 1)

    run(story())


@unit
def test_full_pools_are_told_once_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        world = await cluster("10.0.0.0/30", 30)
        warm = warm_pool(world, tmp_path, Marks(8, 8, LONG))
        async with kept(warm):
            await eventually(lambda: warm.counters.short, 30)
            assert warm.take(4, "net.c", {}, anything)
            await eventually(lambda: not warm.given, 30)
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
            assert warm.take(4, "net.c", {"node": "a"}, anything)
            await eventually(lambda: not warm.given, 30)
            await settled(warm, 3)
            assert lost == {"auto_assign": 0, "transfer": 0}
            assert len(held_by(await world.owners(), "net.c")) == 1
        await assert_at_rest(world)

    run(story())


# --- the real server ------------------------------------------------------------------------------


@kernel
def test_pods_get_ready_addresses_through_the_real_plugin(
    bare_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = bare_machine
    machine.seed(pool("v4", "10.65.0.0/24"))
    monkeypatch.setenv("TORTIE_WARM_POOL", "2:4")
    machine.start_server()

    def ready() -> set[str]:
        return {address for address, handle in machine.held().items() if handle == "warm-pool-node-1"}

    wait_until(lambda: len(ready()) == 4, 60, "four ready addresses")
    before = ready()
    chain, pods = machine.chain(), [machine.pod(f"pod-{number}") for number in range(3)]
    got = {str(chain.add(one)["ips"][0]["address"]).partition("/")[0] for one in pods}
    assert got <= before
    machine.kill_server()
    machine.start_server()
    wait_until(lambda: not got & ready() and len(ready()) >= 2, 60, "their owners, and others ready")
    for one in pods:
        chain.check(one)
        chain.delete(one)
    assert not got & set(machine.held()) or got & set(machine.held()) <= ready()
    machine.stop_server()
    monkeypatch.delenv("TORTIE_WARM_POOL")
    machine.start_server()
    wait_until(lambda: not machine.held(), 60, "everything given back")
