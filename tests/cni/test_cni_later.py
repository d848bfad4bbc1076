"""ADDs that answer before anything is written: what they owe is written, once and only while it is true."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.ipam.ipam_world import World, assert_at_rest, cluster
from tests.support.aio import eventually, run
from tests.support.cni import WARM_HANDLE, Machine, calico
from tests.support.etcd import wait_until
from tests.support.memory_backend import MemoryBackend
from tortie.cni import plugin
from tortie.cni.identity import Identity
from tortie.cni.later import Later
from tortie.cni.operation import Operation
from tortie.cni.warm import WarmPool
from tortie.cni.warmplan import Marks
from tortie.core.errors import CniError, FieldError, ValidationError
from tortie.core.paths import Paths
from tortie.datastore.keys import BlockKey, ResourceKey
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.requests import AssignAddress
from tortie.ipam.view import DirectView

unit = pytest.mark.unit
kernel = pytest.mark.kernel

POD = Identity(
    node="a", network="net", orchestrator="k8s", namespace="default", container_id="c", ifname="eth0", pod="p"
)
FieldRefused = ValidationError([FieldError("spec.node", "a", "is not to the datastore's taste")])


def owed(identity: Identity, address: str) -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator="k8s", node="a", pod=identity.pod, endpoint="eth0", interfaceName="cali1",
        containerID=identity.container_id, ipNetworks=(f"{address}/32",),
    )  # fmt: skip
    meta = ObjectMeta(name=f"a-k8s-{identity.pod}-eth0", namespace="default")
    return WorkloadEndpoint(metadata=meta, spec=spec)


class Node:
    """What a CNI server keeps; another Node of the same folder is the server after a restart."""

    def __init__(self, world: World, folder: Path, *, keeps_endpoints: bool = True) -> None:
        paths, client = Paths(run=str(folder)), world.client
        self.in_sync = asyncio.Event()
        self.in_sync.set()
        self.warm = WarmPool(
            world.allocator("a"), client, DirectView(client), paths, Marks(2, 4, idle=10_000.0)
        )
        self.later = Later(client, self.warm, paths, self.in_sync, keeps_endpoints=keeps_endpoints)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Node"]:
        loops = [asyncio.create_task(one) for one in (self.warm.run(self.in_sync), self.later.run())]
        try:
            yield self
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.wait(loops)

    async def filled(self) -> None:
        await eventually(
            lambda: len(self.warm.ready[4]) >= 2 and not self.warm.given.underway, what="ready addresses"
        )
        new = replace(POD, container_id="new", pod="new", uid="new")
        await eventually(lambda: self.later.may_answer_early(new), what="an early answer")

    def add(self, identity: Identity = POD, *, dies: bool = False) -> str:
        """All that an ADD does before it answers, and the answer; returns the address."""
        text = self.warm.take(4, identity.handle, {"node": "a", "pod": identity.pod}, lambda _: True)
        assert text
        address = text.partition("/")[0]
        self.later.meet(identity)
        transfers = self.warm.given.transfers(identity.handle)
        debt = self.later.note(identity, transfers, owed(identity, address), profile=False)
        if not dies:
            self.later.owe(debt)
        return address


async def killed_after_an_add(world: World, folder: Path) -> str:
    """The address of the container; nothing of it is written."""
    async with Node(world, folder).running() as node:
        await node.filled()
    return node.add(dies=True)


def memory(world: World) -> MemoryBackend:
    assert isinstance(world.backend, MemoryBackend)
    return world.backend


async def endpoints(world: World) -> dict[str, str]:
    """Address -> the container that has it by its endpoint."""
    listed = await world.client.list(WorkloadEndpoint)
    return {one.spec.ipNetworks[0].partition("/")[0]: one.spec.containerID for one in listed.items}


async def written(world: World, address: str, container: str = "c") -> None:
    async with asyncio.timeout(120):
        while (await endpoints(world)).get(address) != container:
            await asyncio.sleep(0.005)


def notes(folder: Path) -> list[str]:
    path = folder / "owed-endpoints"
    return os.listdir(path) if path.exists() else []


@unit
def test_the_endpoint_is_written_when_the_address_is_known_to_be_the_containers(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        order: list[str] = []

        async def watch(operation: str, key: Any) -> None:
            if operation in ("create", "update"):
                if isinstance(key, BlockKey):
                    order.append("block")
                elif isinstance(key, ResourceKey) and key.kind == "WorkloadEndpoint":
                    order.append("endpoint")

        async with Node(world, tmp_path).running() as node:
            await node.filled()
            assert node.later.may_answer_early(POD)
            memory(world).before = watch
            address = node.add()
            assert len(notes(tmp_path)) == 1
            await written(world, address)
            memory(world).before = None
            await node.later.await_paid(POD)
            assert order.index("block") < order.index("endpoint") and notes(tmp_path) == []
            assert (await world.owners())[address] == "net.c"
            assert not node.later.may_answer_early(POD)  # it is not new any more
        await assert_at_rest(world)

    run(story())


@unit
def test_killed_before_any_write_the_next_start_goes_on(tmp_path: Path) -> None:
    """After each number of writes; a write that was under way may have happened or not."""

    async def story(writes: int, *, happens: bool) -> bool:
        folder = tmp_path / f"{writes}-{happens}"
        world, stuck, left = await cluster(), asyncio.Event(), writes

        async def die(operation: str, _key: Any) -> None:
            nonlocal left
            if operation in ("get", "list"):
                return
            left -= 1
            if left < 0 and not stuck.is_set():
                stuck.set()
                if not happens:
                    await asyncio.Event().wait()
            elif left < 0:
                await asyncio.Event().wait()

        async with Node(world, folder).running() as node:
            await node.filled()
            memory(world).before = die
            address = node.add()
            await eventually(lambda: stuck.is_set() or not notes(folder), what="death, or the end")
            memory(world).before = None if not stuck.is_set() else die
            died = bool(notes(folder))
        memory(world).before = None
        async with Node(world, folder).running() as node:
            await written(world, address)
            await node.later.await_paid(POD)
            await node.filled()
            assert (await world.owners())[address] == "net.c" and notes(folder) == []
            assert address not in node.warm.ready[4]
        await assert_at_rest(world, exact=False)
        return died

    for happens in (False, True):
        writes = 0
        while run_and_tell(story(writes, happens=happens)):
            writes += 1
        assert writes >= 3  # the handle, the block, the endpoint


def run_and_tell(story: Any) -> bool:
    told: list[bool] = []

    async def whole() -> None:
        told.append(await story)

    run(whole())
    return told[0]


@unit
def test_an_address_that_another_has_by_then_is_used_by_one_of_them_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        world = await cluster()
        address = await killed_after_an_add(world, tmp_path)
        outcome = await world.allocator("b").release_ips([ReleaseRequest(address)])
        assert outcome.error is None
        await world.allocator("b").assign_ip(AssignAddress(address, "net.other"))
        async with Node(world, tmp_path).running() as node:
            await eventually(lambda: "has no network" in caplog.text, what="the network to be lost")
            await node.later.await_paid(POD)
            assert await endpoints(world) == {} and (await world.owners())[address] == "net.other"
        await world.allocator("b").release_by_handle("net.other")
        async with Node(world, tmp_path).running() as node:  # free again; its interface is gone
            await node.filled()
            await node.later.await_paid(POD)
            assert await endpoints(world) == {} and (await world.owners()).get(address) != "net.c"
            await node.later.forgive(lambda one: one == POD)  # its DEL
            node.warm.given.forget(POD.handle)
            assert notes(tmp_path) == []
        await assert_at_rest(world)

    run(story())


@unit
def test_a_release_by_hand_in_between_does_not_take_the_address_from_a_running_container(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        world = await cluster()
        address = await killed_after_an_add(world, tmp_path)
        assert (await world.allocator("b").release_ips([ReleaseRequest(address)])).error is None
        async with Node(world, tmp_path).running():
            await written(world, address)
            assert (await world.owners())[address] == "net.c"
        await assert_at_rest(world)

    run(story())


@unit
@pytest.mark.parametrize("there", ["the pod", "another pod of its name", "nothing"])
def test_where_a_pod_is_the_endpoint_only_the_very_pods_is_written(tmp_path: Path, there: str) -> None:
    identity = replace(POD, uid="u1")

    async def story() -> None:
        world = await cluster()
        if there != "nothing":
            spec = WorkloadEndpointSpec(
                orchestrator="k8s", node="a", pod="p", endpoint="eth0", interfaceName="cali1",
                ipNetworks=("10.9.9.9/32",),
            )  # fmt: skip
            uid = "u1" if there == "the pod" else "u2"
            meta = ObjectMeta(name="a-k8s-p-eth0", namespace="default", uid=uid)
            await world.client.create(WorkloadEndpoint(metadata=meta, spec=spec))
        async with Node(world, tmp_path, keeps_endpoints=False).running() as node:
            await node.filled()
            assert node.later.may_answer_early(identity)
            assert not node.later.may_answer_early(POD)  # nobody could tell whose the name is by then
            address = node.add(identity)
            await node.later.await_paid(identity)
            expected = {"the pod": {address: "c"}, "nothing": {}}.get(there, {"10.9.9.9": ""})
            assert await endpoints(world) == expected
            assert not node.later.problem
            await node.later.forgive(lambda one: one == identity)  # its DEL
            assert notes(tmp_path) == []

    run(story())


@unit
def test_while_a_write_fails_it_is_told_and_nobody_else_answers_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tortie.cni.given._FLUSH_LIMIT", 0.1)
    other = replace(POD, container_id="d", pod="q")

    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            assert node.later.may_answer_early(other)
            memory(world).away = True
            address = node.add()
            await eventually(lambda: node.later.problem, what="the failure to be told")
            assert node.later.problem.startswith("1 endpoints of containers are not written yet: ")
            assert not node.later.may_answer_early(other)
            memory(world).away = False
            await written(world, address)
            await node.filled()
            await eventually(lambda: not node.later.problem and not notes(tmp_path), what="all to be well")
            assert node.later.may_answer_early(other)
        await assert_at_rest(world)

    run(story())


@unit
def test_what_the_datastore_would_never_take_is_refused_before_the_answer(tmp_path: Path) -> None:
    identity = replace(POD, network="My_Net")
    made = owed(POD, "10.0.0.1")

    async def story() -> None:
        node = Node(await cluster(), tmp_path)
        node.later.tear_up(node.later.note(identity, (), made, profile=False))
        with pytest.raises(ValidationError, match="My_Net"):
            node.later.note(identity, (), made, profile=True)
        with pytest.raises(ValidationError, match="b c"):
            node.later.note(POD, (), made.with_metadata(labels={"a": "b c"}), profile=False)
        assert notes(tmp_path) == []

    run(story())


@unit
@pytest.mark.parametrize("error", [FieldRefused, ZeroDivisionError()], ids=["refused", "unforeseen"])
def test_what_concerns_one_endpoint_keeps_nobody_else_waiting_and_is_told(
    tmp_path: Path, error: Exception
) -> None:
    other = replace(POD, container_id="d", pod="q")

    async def refusing(operation: str, key: Any) -> None:
        if operation == "create" and isinstance(key, ResourceKey):
            raise error

    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            memory(world).before = refusing
            node.add()
            await eventually(lambda: node.later.refusals, what="the refusal to be told")
            assert node.later.refusals.startswith("1 endpoints of containers are not written yet: ")
            assert not node.later.problem and node.later.may_answer_early(other)
            if isinstance(error, ZeroDivisionError):
                await node.later.await_paid(POD)
            await node.later.forgive_own(POD)
            assert not node.later.refusals and notes(tmp_path) == []

    run(story())


@unit
def test_a_note_that_nobody_can_read_is_told_until_the_containers_end(tmp_path: Path) -> None:
    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            node.add(dies=True)
        (name,) = notes(tmp_path)
        (tmp_path / "owed-endpoints" / name).write_text("{}")
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            assert node.later.refusals == "1 notes of endpoints cannot be read" and not node.later.problem
            await node.later.forgive_own(POD)
            assert not node.later.refusals and notes(tmp_path) == []

    run(story())


@unit
def test_an_add_again_that_fails_leaves_what_is_owed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortie.cni.later._PAID_LIMIT", 0.05)

    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            memory(world).away = True
            address = node.add()
            with pytest.raises(CniError, match="is not written yet"):
                await plugin._earlier_endpoint(
                    cast(Operation, SimpleNamespace(later=node.later, identity=POD))
                )
            memory(world).away = False
            await written(world, address)

    run(story())


@unit
def test_what_is_forgiven_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            memory(world).away = True
            node.add()
            with pytest.raises(CniError, match="is not written yet"):
                await node.later.await_paid(POD)
            await node.later.forgive(lambda one: one.container_id == "c")
            assert notes(tmp_path) == [] and not node.later.problem
            memory(world).away = False
            await eventually(lambda: not node.warm.given.underway, what="the address to be handed over")
            await node.warm.allocator.release_by_handle(POD.handle)
            assert await endpoints(world) == {}
        await assert_at_rest(world)

    monkeypatch.setattr("tortie.cni.later._PAID_LIMIT", 0.05)
    monkeypatch.setattr("tortie.cni.given._FLUSH_LIMIT", 0.05)
    run(story())


@unit
def test_a_container_is_met_while_it_has_any_attachment_and_its_workload_with_it(tmp_path: Path) -> None:
    second = replace(POD, network="other", ifname="net1")
    sandbox = replace(POD, container_id="newer")

    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            for one in (POD, second):
                node.later.meet(one)
            node.later.forget(second)
            assert not node.later.may_answer_early(second)  # the first interface is still there
            # The other sandbox is of the same name, under its predecessor's policy.
            assert not node.later.may_answer_early(sandbox)
            node.later.forget(POD)
            assert node.later.may_answer_early(second) and node.later.may_answer_early(sandbox)

    run(story())


@unit
def test_what_gc_collected_is_not_known_any_more(tmp_path: Path) -> None:
    other = replace(POD, network="other", container_id="d", pod="q")

    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            for one in (POD, other):
                node.later.meet(one)
            node.later.forget_gone("net", lambda container: container == "c")
            assert not node.later.may_answer_early(POD)
            node.later.forget_gone("net", lambda _container: False)
            assert node.later.may_answer_early(POD) and not node.later.may_answer_early(other)

    run(story())


@unit
def test_many_debts_are_forgiven_at_once(tmp_path: Path) -> None:
    """Each may have a write under way: GC must not wait for one after the other."""

    async def story() -> None:
        world, answers, asked = await cluster(), asyncio.Event(), set[str]()

        async def hang(operation: str, key: Any) -> None:
            if operation in ("create", "update") and isinstance(key, ResourceKey):
                asked.add(key.name)
                await answers.wait()

        async with Node(world, tmp_path).running() as node:
            await node.filled()
            memory(world).before = hang
            for container in "cd":
                node.add(replace(POD, container_id=container, pod=container))
            owed = list(node.later._open.values())
            await eventually(lambda: len(asked) == 2, what="both writes to be under way")
            forgiving = asyncio.create_task(node.later.forgive(lambda _: True))
            await eventually(lambda: all(one.forgiven.is_set() for one in owed), what="both to be forgiven")
            answers.set()
            await forgiving
            assert notes(tmp_path) == []

    run(story())


@unit
def test_after_a_restart_workloads_are_known_by_their_endpoints(tmp_path: Path) -> None:
    sandbox = replace(POD, container_id="newer")

    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            await written(world, node.add())
            await node.later.await_paid(POD)
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            assert not node.later.may_answer_early(sandbox) and not node.later.may_answer_early(POD)
            node.later.forget(POD)
            assert node.later.may_answer_early(sandbox)

    run(story())


@unit
@pytest.mark.parametrize("reason", ["met", "owed", "not followed"])
def test_who_is_not_new_asks_first(tmp_path: Path, reason: str) -> None:
    async def story() -> None:
        world = await cluster()
        async with Node(world, tmp_path).running() as node:
            await node.filled()
            assert node.later.may_answer_early(POD)
            if reason == "met":
                node.later.meet(POD)
            elif reason == "owed":
                memory(world).away = True
                node.add()
                node.later.forget(POD)
            else:
                node.in_sync.clear()
            assert not node.later.may_answer_early(POD)

    run(story())


# --- the real server ------------------------------------------------------------------------------


@kernel
def test_add_answers_while_the_datastore_says_nothing_and_a_crash_loses_nothing(
    bare_machine: Machine,
) -> None:
    machine = bare_machine
    machine.start_warm_server("4:4")
    chain, pods = machine.chain(), [machine.pod(f"pod-{number}") for number in range(2)]
    wait_until(lambda: '{version="4"} 4\n' in machine.warm_metrics(), what="addresses")
    wait_until(lambda: "may answer at once" in machine.log.read_text(), what="the server to know who is new")
    machine.etcd.stop_answering()
    try:
        got = [str(chain.add(one)["ips"][0]["address"]).partition("/")[0] for one in pods]
        machine.kill_server()
    finally:
        machine.etcd.resume()
    assert machine.endpoints() == {} and set(got) <= machine.ready_addresses()
    machine.start_server()
    wait_until(lambda: len(machine.endpoints()) == 2, what="the endpoints to be written")
    assert {one: machine.held()[one].rpartition(".")[2] for one in got} == {
        one: pod.container_id for one, pod in zip(got, pods, strict=True)
    }
    for one in pods:
        chain.check(one)
        chain.delete(one)
    assert machine.endpoints() == {}


@kernel
def test_another_way_to_the_same_datastore_is_no_other_datastore(bare_machine: Machine) -> None:
    """As a rule the plugin has its own: credentials of its own, in files of its own."""
    machine = bare_machine
    machine.start_warm_server("4:4")
    way = machine.etcd.endpoint.replace("127.0.0.1", "localhost")
    chain = machine.chain(calico(etcd_endpoints=way))

    def taken() -> bool:
        """It takes a moment until the first ADD by this way has shown where it leads."""
        one = machine.pod()
        chain.add(one)
        chain.delete(one)
        metrics = machine.warm_metrics()
        return bool(metrics) and "warm_taken_total 0" not in metrics

    wait_until(taken, what="an ADD to get a ready address")
    wait_until(lambda: set(machine.held().values()) == {WARM_HANDLE}, what="all to be given back")
    assert machine.endpoints() == {}


@kernel
def test_who_waits_for_policy_waits_for_its_endpoint_too(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.start_warm_server("2:2")
    wait_until(lambda: len(machine.held()) == 2, what="two ready addresses")
    chain, pod = machine.chain(calico(policy_setup_timeout_seconds=1)), machine.pod()
    chain.add(pod)
    assert len(machine.endpoints()) == 1
    chain.delete(pod)
    assert machine.endpoints() == {} and not machine.remains().interfaces
