"""Rounds against a datastore in memory: what is given back and written, whatever happens in between."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import structs

from tests.support.aio import run
from tests.support.memory_backend import MemoryBackend
from tests.support.seen import Seen, pod, service
from tortie.controllers import copies
from tortie.controllers.garbage import Collector
from tortie.controllers.handles import HandleCollector
from tortie.controllers.loadbalancer import LoadBalancers
from tortie.controllers.mirror import EndpointLabels, Mirror
from tortie.controllers.nodes import HostEndpoints, NodeDeleter
from tortie.controllers.settings import HostEndpointSettings
from tortie.core.errors import DatastoreUnreachable, TortieError, Unauthorized
from tortie.datastore.backend import KV, Listed
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockKey, HandleKey, HandleList, ResourceKey, key_of
from tortie.datastore.nativekeys import NamespaceKey, ServiceKey, VirtualMachineKey, VirtualMachineList
from tortie.datastore.types.cluster import ClusterInformation
from tortie.datastore.types.endpoint import HostEndpoint, WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.ipam import Handle
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeSpec, OrchRef
from tortie.datastore.types.pod import Metadata
from tortie.datastore.types.policy import Profile, ProfileSpec
from tortie.datastore.types.service import Ingress, LoadBalancer, Service, ServiceSpec
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import Owner, new_block
from tortie.ipam.requests import AssignAddress, AutoAssign

pytestmark = pytest.mark.unit


class World(Seen):
    """Our datastore, and what controllers see."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        super().__init__(self.backend)
        self.client = Client(self.backend)
        self.allocator = Allocator(self.client, "n1", sleep=lambda _seconds: asyncio.sleep(0))

    async def pool(self, name: str = "pods", cidr: str = "10.0.0.0/24", uses: Sequence[str] = ()) -> None:
        spec = IPPoolSpec(cidr=cidr, blockSize=30, allowedUses=tuple(uses))
        await self.client.create(IPPool(metadata=ObjectMeta(name=name), spec=spec))

    async def node(self, name: str) -> None:
        spec = NodeSpec(orchRefs=(OrchRef(nodeName=name, orchestrator="k8s"),))
        node = await self.client.create(Node(metadata=ObjectMeta(name=name), spec=spec))
        self.kubernetes((ResourceKey("Node", name), node))

    async def lose(self, name: str) -> None:
        """Kubernetes has no such node any more."""
        del self.live.objects[ResourceKey("Node", name)]
        self.forgotten(ResourceKey("Node", name))

    async def assign(self, pod: str, node: str = "n1", *, vm: str = "") -> str:
        """To a pod, which may be a KubeVirt VM's."""
        named = {"vmi-name": vm} if vm else {}
        request = AutoAssign(
            use="Workload",
            num4=1,
            handle=f"net.vmi.shop.{vm}" if vm else f"net.{pod}",
            host=node,
            attributes={"node": node, "namespace": "shop", "pod": pod, **named},
        )
        answer = await self.allocator.auto_assign(request)
        answer.require_all()
        assert answer.v4 is not None
        return answer.v4.addresses[0].partition("/")[0]

    async def holders(self) -> list[str]:
        blocks = await self.allocator.blocks()
        return sorted(
            block.attributes[index].secondary.get("pod", "?")
            for block in blocks
            for index in block.allocations
            if index is not None
        )

    def collector(self, grace: float) -> Collector:
        api: Any = self.live
        return Collector(self.allocator, self.backend, api, self.ours, self.native, grace)


async def one_node() -> World:
    """A pool for pods, and the node n1."""
    world = World()
    await world.pool()
    await world.node("n1")
    return world


# --- garbage ------------------------------------------------------------------------------------


def test_leaks_are_given_back_after_the_grace_period_and_counted() -> None:
    async def scenario() -> None:
        world = await one_node()
        world.kubernetes(pod("web", await world.assign("web")))
        await world.assign("lost")
        await world.follow()
        collector = world.collector(grace=0.05)
        due = await collector.round()
        assert due is not None
        assert await world.holders() == ["lost", "web"]
        assert 'gc_candidates{ippool="pods",node="n1"} 1' in collector.metrics()
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        await collector.round()
        assert await world.holders() == ["web"]
        assert 'gc_reclamations{ippool="pods",node="n1"} 1' in collector.metrics()

    run(scenario())


@pytest.mark.parametrize("many", [1, 60])
def test_what_comes_back_before_the_second_look_is_kept(many: int) -> None:
    """The feed is late, asked one by one or for a list of all."""

    async def scenario() -> None:
        world = await one_node()
        pods = [pod(f"p{n}", await world.assign(f"p{n}")) for n in range(many)]
        world.live.objects |= dict(pods)
        await world.follow()
        collector = world.collector(grace=1e-9)
        await collector.round()
        await collector.round()
        assert len(await world.holders()) == many
        for key, _ in pods:
            del world.live.objects[key]
        await collector.round()
        assert await world.holders() == []

    run(scenario())


def test_a_node_that_is_gone_leaves_nothing() -> None:
    async def scenario() -> None:
        world = World()
        await world.pool()
        for name in ("n1", "n2"):
            await world.node(name)
            await world.assign(f"of-{name}", name)
        await world.follow()
        collector = world.collector(grace=1000.0)
        world.forgotten(ResourceKey("Node", "n2"))
        await collector.round()
        assert await world.holders() == ["of-n1", "of-n2"]  # the API knows it: the feed is behind
        del world.live.objects[ResourceKey("Node", "n2")]
        await collector.round()
        assert await world.holders() == ["of-n1"]
        assert [block.affinity for block in await world.allocator.blocks()] == ["host:n1"]

    run(scenario())


def test_a_block_that_only_names_a_node_that_is_gone_goes_too() -> None:
    async def scenario() -> None:
        world = World()
        await world.pool()
        lonely = new_block("10.0.0.0/30", Owner("n9"), 1)
        await world.backend.create(BlockKey("10.0.0.0/30"), lonely)
        await world.follow()
        await world.collector(grace=1000.0).round()
        assert await world.allocator.blocks() == []

    run(scenario())


def test_without_its_node_a_pods_address_is_its_own_wherever_it_runs() -> None:
    """A node in etcd may have another name than in Kubernetes; who deletes it by mistake stops no pod."""

    async def scenario() -> None:
        world = await one_node()
        address = await world.assign("web")
        await world.lose("n1")
        await world.client.delete(Node, "n1")
        world.kubernetes(pod("web", address, node="n1.example"))
        await world.follow()
        await world.collector(grace=1e-9).round()
        assert await world.holders() == ["web"]

    run(scenario())


def test_a_vms_address_is_given_back_when_there_is_no_vm_on_a_second_look_too() -> None:
    """And never where nobody may ask, or is answered, which keeps nothing else."""

    async def scenario() -> None:
        world = await one_node()
        for name, vm in (("virt-launcher-vm-a", "vm"), ("web", ""), ("shop", "")):
            await world.assign(name, vm=vm)
        await world.lose("n1")
        await world.follow()
        live, looks = world.live, list[bool]()  # whether the VM is there, at each look
        refusals = iter((Unauthorized("list"), DatastoreUnreachable("500")))

        async def look(what: Any) -> Listed:
            if not isinstance(what, VirtualMachineList):
                return Listed([], "1")
            if not looks:
                raise next(refusals)
            return Listed([KV(VirtualMachineKey("shop", "vm"), Metadata(), "1")] * looks.pop(0), "1")

        live.list = look  # type: ignore[method-assign]
        for looks[:], left in (
            ([], ["virt-launcher-vm-a"]),
            ([], ["virt-launcher-vm-a"]),
            ([True], ["virt-launcher-vm-a"]),
            ([False, True], ["virt-launcher-vm-a"]),
            ([False, False], []),
        ):
            await world.collector(grace=1e-9).round()
            assert await world.holders() == left
            await world.follow()

    run(scenario())


def test_nothing_is_collected_while_the_datastore_is_locked() -> None:
    async def scenario() -> None:
        world = await one_node()
        await world.assign("lost")
        await world.lose("n1")
        found = await world.client.get(ClusterInformation, "default")
        spec = structs.replace(found.spec, datastoreReady=False)
        await world.client.update(structs.replace(found, spec=spec))
        await world.follow()
        await world.collector(grace=1e-9).round()
        assert await world.holders() == ["lost"]

    run(scenario())


def test_an_outage_in_the_middle_is_repaired_by_the_next_round() -> None:
    async def scenario() -> None:
        world = World()
        await world.pool()
        await world.node("n9")
        for n in range(6):
            await world.assign(f"p{n}", "n9")
        await world.lose("n9")
        await world.follow()
        collector, calls = world.collector(grace=1e-9), 0

        async def fail(operation: str, what: Any) -> None:
            nonlocal calls
            calls += operation == "update" and isinstance(what, BlockKey)
            if calls == 2:
                raise DatastoreUnreachable("gone")

        world.backend.before = fail
        with pytest.raises(TortieError):
            await collector.round()
        world.backend.before = None
        await world.follow()
        await collector.round()
        await world.follow()
        await collector.round()
        assert await world.allocator.blocks() == []

    run(scenario())


def test_a_handle_that_no_address_has_is_deleted_after_the_grace_period() -> None:
    async def scenario() -> None:
        world = await one_node()
        await world.assign("web")
        for name in ("net.lost", "net.coming"):
            await world.backend.create(HandleKey(name), Handle(block={"10.0.0.0/30": 1}))
        collector = HandleCollector(world.backend, grace=0.02)
        await collector.round()
        coming = await world.backend.get(HandleKey("net.coming"))
        await world.backend.update(coming)  # somebody counts it up just now
        await asyncio.sleep(0.03)
        await collector.round()
        handles = (await world.backend.list(HandleList())).items
        assert {str(kv.key) for kv in handles} == {"IPAMHandle(net.web)", "IPAMHandle(net.coming)"}

    run(scenario())


def test_while_a_block_cannot_be_read_no_handle_is_judged() -> None:
    async def scenario() -> None:
        world = World()
        await world.backend.create(HandleKey("net.web"), Handle(block={"10.0.0.0/30": 1}))
        await world.backend.put_raw(BlockKey("10.0.0.0/30").path(), "{}")
        collector = HandleCollector(world.backend, grace=1e-9)
        for _ in range(3):
            await collector.round()
            await asyncio.sleep(0.001)
        await world.backend.get(HandleKey("net.web"))

    run(scenario())


def test_a_handle_that_is_counted_up_at_the_last_moment_stays() -> None:
    async def scenario() -> None:
        world = World()
        await world.backend.create(HandleKey("net.lost"), Handle(block={"10.0.0.0/30": 1}))
        collector = HandleCollector(world.backend, grace=1e-9)
        await collector.round()

        async def count_up(operation: str, _what: Any) -> None:
            if operation == "delete":
                world.backend.before = None
                await world.backend.apply(HandleKey("net.lost"), Handle(block={"10.0.0.0/30": 2}))

        await asyncio.sleep(0.001)
        world.backend.before = count_up
        await collector.round()
        await world.backend.get(HandleKey("net.lost"))

    run(scenario())


# --- load balancers -----------------------------------------------------------------------------


async def balanced(world: World) -> LoadBalancers:
    await world.pool("lb", uses=("LoadBalancer",))
    world.kubernetes((NamespaceKey("shop"), Metadata(metadata=ObjectMeta(name="shop"))))
    await world.follow()
    api: Any = world.live
    return LoadBalancers(world.allocator, api, world.ours, world.native, "AllServices")


async def served() -> tuple[World, LoadBalancers, tuple[ServiceKey, Service]]:
    """A service has its address, which the feed knows."""
    world, made = World(), service()
    balancers = await balanced(world)
    world.kubernetes(made)
    await balancers.round()
    await world.follow()
    return world, balancers, made


def test_a_service_gets_one_address_however_often_it_is_looked_at() -> None:
    async def scenario() -> None:
        world = World()
        balancers = await balanced(world)
        world.kubernetes(service())
        await balancers.round()
        await balancers.round()  # the feed has not seen the block yet
        assert len(await world.holders()) == 1
        ((name, (address,)), again) = world.live.ingress
        assert (name, address.startswith("10.0.0."), again) == ("web", True, ("web", (address,)))

    run(scenario())


def test_the_address_of_a_service_that_is_gone_is_given_back() -> None:
    async def scenario() -> None:
        world, balancers, (key, _) = await served()
        world.forgotten(key)
        await balancers.round()
        assert len(await world.holders()) == 1  # the API says that it is there
        world.live.objects[key] = service(uid="another")[1]
        await balancers.round()
        assert await world.holders() == []

    run(scenario())


def test_a_service_that_is_ours_no_more_gives_back_and_keeps_what_others_say() -> None:
    async def scenario() -> None:
        world, balancers, (key, made) = await served()
        (_, (address,)) = world.live.ingress[-1]
        status = structs.replace(
            made.status.loadBalancer, ingress=(Ingress(ip=address), Ingress(ip="192.0.2.1"))
        )
        theirs = structs.replace(
            made,
            spec=structs.replace(made.spec, loadBalancerClass="theirs"),
            status=structs.replace(made.status, loadBalancer=status),
        )
        world.kubernetes((key, theirs))
        await balancers.round()
        assert (await world.holders(), world.live.ingress[-1]) == ([], ("web", ("192.0.2.1",)))

    run(scenario())


def test_a_status_that_is_not_true_any_more_is_put_right_but_not_that_of_others() -> None:
    async def scenario() -> None:
        world = World()
        key, made = service()
        stale = structs.replace(made.status.loadBalancer, ingress=(Ingress(ip="10.7.0.1"),))
        made = structs.replace(made, status=structs.replace(made.status, loadBalancer=stale))
        world.kubernetes((key, made))
        await world.follow()
        api: Any = world.live
        await LoadBalancers(world.allocator, api, world.ours, world.native, "AllServices").round()
        assert world.live.ingress == []  # without a pool it is not ours to say
        balancers = await balanced(world)
        spec = structs.replace(made.spec, loadBalancerIP="10.66.0.1")  # of no pool
        world.kubernetes((key, structs.replace(made, spec=spec)))
        await balancers.round()
        assert world.live.ingress == [("web", ())]

    run(scenario())


def test_what_is_told_at_the_end_does_not_keep_it_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPAM is asked, the API is away, the Lease is lost: the load balancers stop."""

    async def scenario() -> None:
        world, (key, made) = World(), service()
        status = structs.replace(made.status, loadBalancer=LoadBalancer(ingress=(Ingress(ip="10.7.0.1"),)))
        world.kubernetes((key, structs.replace(made, status=status)))
        balancers = await balanced(world)
        monkeypatch.setattr(world.allocator, "auto_assign", lambda _request: asyncio.sleep(60))
        monkeypatch.setattr(world.live, "set_ingress", away)
        working = asyncio.create_task(balancers.round())
        await asyncio.sleep(0.05)
        working.cancel()
        await asyncio.wait([working])
        assert working.cancelled()

    async def away(*_: object) -> None:
        raise DatastoreUnreachable("the API is away")

    run(scenario())


def test_one_wrong_service_does_not_hinder_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()
        balancers = await balanced(world)
        meta = ObjectMeta(
            name="bad", namespace="shop", uid="v", annotations={"projectcalico.org/loadBalancerIPs": "x"}
        )
        bad = Service(metadata=meta, spec=ServiceSpec(type="LoadBalancer"))
        world.kubernetes((ServiceKey("shop", "bad"), bad), service())
        await balancers.round()
        await balancers.round()
        assert [name for name, _ in world.live.ingress] == ["web", "web"]
        assert caplog.text.count("must be a list of strings") == 1

    run(scenario())


@pytest.mark.parametrize(
    ("families", "given"),
    [(("IPv4", "IPv6"), 1), (("IPv6",), 0)],
)
def test_what_no_pool_can_give_is_told_and_not_tried_again(
    families: tuple[str, ...], given: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Only an IPv4 pool: a round that raised would be followed by others for ever."""

    async def scenario() -> None:
        world = World()
        balancers = await balanced(world)
        world.kubernetes(service(ipFamilies=families))
        await balancers.round()
        await world.follow()
        due = await balancers.round()
        assert due is not None and due > asyncio.get_running_loop().time() + 10, "for what makes no round"
        assert len(await world.holders()) == given
        assert caplog.text.count("cannot find a qualified ippool") == 1

    run(scenario())


def test_an_address_that_somebody_has_is_waited_for() -> None:
    async def scenario() -> None:
        world = World()
        balancers = await balanced(world)
        await world.allocator.assign_ip(AssignAddress("10.0.0.9", "theirs"))
        world.kubernetes(service(loadBalancerIP="10.0.0.9"))
        await balancers.round()
        assert world.live.ingress == []
        await world.allocator.release_by_handle("theirs")
        await balancers.round()
        assert world.live.ingress[-1] == ("web", ("10.0.0.9",))

    run(scenario())


# --- copies, nodes ------------------------------------------------------------------------------


def profile(name: str, label: str = "x") -> Profile:
    return Profile(metadata=ObjectMeta(name=name), spec=ProfileSpec(labelsToApply={"pcns.a": label}))


def test_copies_follow_their_sources_and_nothing_else_is_touched() -> None:
    async def scenario() -> None:
        world = World()
        for name in ("kns.old", "kns.changed", "mine", "ksa.shop.x"):
            await world.client.create(profile(name))
        await world.follow()
        wanted = [profile("kns.new"), profile("kns.changed", "y")]
        world.kubernetes(*((key_of(one), one) for one in wanted))
        await Mirror("namespace", world.client, world.ours, world.native).round()
        found = {one.name: one.spec.labelsToApply for one in (await world.client.list(Profile)).items}
        found.pop("projectcalico-default-allow")
        assert found == {
            "kns.new": {"pcns.a": "x"},
            "kns.changed": {"pcns.a": "y"},
            "mine": {"pcns.a": "x"},
            "ksa.shop.x": {"pcns.a": "x"},
        }
        before = world.backend.revision
        await world.follow()
        await Mirror("namespace", world.client, world.ours, world.native).round()
        assert world.backend.revision == before

    run(scenario())


def test_the_copy_of_what_cannot_be_read_stays() -> None:
    old = profile("kns.old")
    key = key_of(old)
    assert copies.changes({}, {key: old}).delete == [old]
    assert copies.changes({}, {key: old}, spared={key}).delete == []


def test_labels_of_pods_reach_their_endpoints() -> None:
    async def scenario() -> None:
        world = World()
        spec = WorkloadEndpointSpec(
            orchestrator="k8s",
            node="n1",
            pod="web",
            endpoint="eth0",
            containerID="c1",
            ipNetworks=("10.0.0.1/32",),
            interfaceName="cali1",
        )
        meta = ObjectMeta(name="n1-k8s-web-eth0", namespace="shop", labels={"app": "old"})
        stored = WorkloadEndpoint(metadata=meta, spec=spec)
        await world.client.create(stored)
        await world.follow()
        other = structs.replace(spec, containerID="c2")
        relabelled = stored.with_metadata(labels={"app": "new"})
        rounds = EndpointLabels(world.client, world.ours, world.native)
        world.kubernetes((key_of(stored), structs.replace(relabelled, spec=other)))
        await rounds.round()  # a pod that came back under its name
        assert (await world.client.get(WorkloadEndpoint, stored.name, "shop")).labels["app"] == "old"
        world.kubernetes((key_of(stored), relabelled))
        await rounds.round()
        assert (await world.client.get(WorkloadEndpoint, stored.name, "shop")).labels["app"] == "new"

    run(scenario())


def test_a_node_is_deleted_with_kubernetes_and_only_then() -> None:
    async def scenario() -> None:
        world = World()
        await world.node("n1")
        await world.client.create(Node(metadata=ObjectMeta(name="metal")))
        await world.follow()
        api: Any = world.live
        deleter = NodeDeleter(world.client, world.allocator, api, world.ours, world.native)
        world.forgotten(ResourceKey("Node", "n1"))
        await deleter.round()
        assert len((await world.client.list(Node)).items) == 2
        world.live.objects.clear()
        await deleter.round()
        assert [one.name for one in (await world.client.list(Node)).items] == ["metal"]

    run(scenario())


def test_a_node_that_cannot_be_deleted_keeps_no_other() -> None:
    async def scenario() -> None:
        world = World()
        for name in ("n1", "n2", "n3"):
            await world.node(name)
        await world.follow()
        world.live.objects.clear()
        world.forgotten(*(ResourceKey("Node", name) for name in ("n1", "n2", "n3")))

        async def refuse(operation: str, what: Any) -> None:
            if operation == "delete" and what == ResourceKey("Node", "n1"):
                raise Unauthorized("n1")

        world.backend.before = refuse
        api: Any = world.live
        with pytest.raises(Unauthorized):
            await NodeDeleter(world.client, world.allocator, api, world.ours, world.native).round()
        assert [one.name for one in (await world.client.list(Node)).items] == ["n1"]

    run(scenario())


async def with_a_persons_endpoint(name: str) -> World:
    world = World()
    await world.node("n1")
    theirs = HostEndpoint(metadata=ObjectMeta(name=name))
    theirs = structs.replace(theirs, spec=structs.replace(theirs.spec, node="n1", interfaceName="eth9"))
    await world.client.create(theirs)
    await world.follow()
    return world


def test_a_host_endpoint_whose_name_somebody_else_has_is_not_tried_again() -> None:
    async def scenario() -> None:
        world = await with_a_persons_endpoint("n1-auto-hep")
        await HostEndpoints(world.client, world.ours, HostEndpointSettings(create=True)).round()
        assert (await world.client.get(HostEndpoint, "n1-auto-hep")).spec.interfaceName == "eth9"

    run(scenario())


def test_host_endpoints_come_and_go_with_their_nodes() -> None:
    async def scenario() -> None:
        world = await with_a_persons_endpoint("hand-made")
        await HostEndpoints(world.client, world.ours, HostEndpointSettings(create=True)).round()
        assert await names(world) == ["hand-made", "n1-auto-hep"]
        await world.follow()
        await HostEndpoints(world.client, world.ours, HostEndpointSettings()).round()
        assert await names(world) == ["hand-made"]

    run(scenario())


async def names(world: World) -> list[str]:
    return sorted(one.name for one in (await world.client.list(HostEndpoint)).items)
