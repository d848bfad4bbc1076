"""A pod on several networks, as Multus puts it there: several ADDs for one container, each with its name."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.support.cni import NETWORK, Machine, calico, host_name, pool
from tortie.cni import attachments
from tortie.cni.identity import Identity
from tortie.cni.pods import Wishes
from tortie.cni.store import Stores
from tortie.core.errors import CniError
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.lab.runtime import Attachment, Chain

# --- the decisions ------------------------------------------------------------------------------

FIRST = Identity("n", "net", "k8s", "default", "c1", "eth0", "p")
SECOND = replace(FIRST, network="other", ifname="net1")
MARKS = {FIRST.host_interface: "net/c1/eth0", replace(SECOND, second=True).host_interface: "other/c1/net1"}


def wep(ifname: str, container: str = "c1", *, second: bool = False) -> WorkloadEndpoint:
    one = replace(FIRST, ifname=ifname, second=second)
    spec = WorkloadEndpointSpec(
        orchestrator="k8s", node="n", pod="p", endpoint=ifname, containerID=container,
        interfaceName=one.host_interface, ipNetworks=("10.0.0.1/32",),
    )  # fmt: skip
    return WorkloadEndpoint(metadata=ObjectMeta(name=f"n-k8s-p-{ifname}", namespace="default"), spec=spec)


def placed(identity: Identity, *stored: WorkloadEndpoint, marks: bool = True) -> tuple[bool, str]:
    """(whether it is a second interface, the endpoint to be changed)"""
    one, existing = attachments.placed(identity, attachments.own(identity, stored), MARKS if marks else {})
    return one.second, existing.spec.endpoint if existing is not None else ""


def ended(identity: Identity, *stored: WorkloadEndpoint, marks: bool = True) -> list[str]:
    owned = attachments.own(identity, stored)
    return [one.spec.endpoint for one in attachments.ended(identity, owned, MARKS if marks else {})]


@pytest.mark.unit
def test_which_endpoint_an_attachment_is() -> None:
    eth0, net1 = wep("eth0"), wep("net1", second=True)
    assert placed(FIRST) == (False, "") and placed(SECOND) == (False, "")
    assert placed(FIRST, eth0, net1) == (False, "eth0")
    assert placed(SECOND, eth0) == (True, "")
    assert placed(SECOND, eth0, net1) == (True, "net1")
    # The same network again under another name, and a newer container: Calico's one endpoint of the pod.
    assert placed(replace(SECOND, network="net"), eth0) == (False, "eth0")
    assert placed(replace(SECOND, container_id="c2"), eth0) == (False, "eth0")
    # No mark: made by Calico's own plugin, which knows no second interface.
    assert placed(SECOND, eth0, marks=False) == (False, "eth0")
    # The first one's endpoint got lost: the second's is not taken for it.
    assert placed(FIRST, net1) == (False, "")
    assert placed(replace(FIRST, container_id="c2"), net1, marks=False) == (False, "")


@pytest.mark.unit
def test_what_ends_with_an_attachment() -> None:
    eth0, net1 = wep("eth0"), wep("net1", second=True)
    assert ended(FIRST, eth0, net1) == ["eth0"] and ended(SECOND, eth0, net1) == ["net1"]
    assert ended(FIRST, net1) == [] and ended(SECOND, eth0) == []
    assert ended(SECOND, eth0, marks=False) == ["eth0"]  # as Calico's plugin does
    assert ended(replace(SECOND, network="net"), eth0) == ["eth0"]


@pytest.mark.unit
def test_a_container_has_one_interface_whatever_it_is_called() -> None:
    """One that is no pod joins further networks with the interface that it has, as with Calico."""
    one = replace(FIRST, orchestrator="cni", pod="")
    assert one.host_interfaces == ("calic1",)
    assert not attachments.needs_marks(replace(one, ifname="eth1"), [wep("eth0")])


@pytest.mark.unit
def test_a_second_interface_has_a_name_that_no_pods_first_one_has() -> None:
    second = replace(SECOND, second=True)
    others = {replace(FIRST, pod=name).host_interface for name in ("p", "p.net1", "p-net1", "p/net1")}
    assert second.host_interface not in others - {replace(FIRST, pod="p/net1").host_interface}
    assert second.host_interfaces == (FIRST.host_interface, second.host_interface)


@pytest.mark.unit
def test_annotations_that_are_the_first_interfaces() -> None:
    given = Wishes(
        ipv4_pools=("a",), ipv6_pools=("b",), assign=(True, True), addresses=("10.0.0.1",),
        addresses_without_ipam=("10.0.0.2",), floating=("1.2.3.4",), mac="02:00:00:00:00:01",
        spoofable=("10.0.0.0/8",),
    )  # fmt: skip
    assert attachments.without_first(given) == Wishes(spoofable=("10.0.0.0/8",))


# --- on a real host -----------------------------------------------------------------------------


@pytest.fixture
def machine(bare_machine: Machine) -> Machine:
    bare_machine.seed(pool("first", "10.65.0.0/24"), pool("second", "10.66.0.0/24"))
    bare_machine.start_server()
    return bare_machine


def network(machine: Machine, name: str, pool_name: str) -> Chain:
    """As the default network's list, or a NetworkAttachmentDefinition, would have it."""
    conf = calico(ipam={"type": "calico-ipam", "ipv4_pools": [pool_name]})
    return machine.chain(conf, version="1.1.0", name=name)


def also(pod: Attachment, ifname: str) -> Attachment:
    """A further interface of the same container."""
    return replace(pod, ifname=ifname)


def address(result: dict[str, Any]) -> str:
    return str(result["ips"][0]["address"]).partition("/")[0]


@pytest.mark.kernel
def test_a_pod_on_two_networks(machine: Machine) -> None:
    """Each interface has its address, its endpoint and its host side; each goes by itself, and twice."""
    one, other = network(machine, NETWORK, "first"), network(machine, "storage", "second")
    pod = machine.pod()
    net1 = also(pod, "net1")
    first, second = address(one.add(pod)), address(other.add(net1))
    assert first.startswith("10.65.") and second.startswith("10.66.")
    found = {one["spec"]["endpoint"]: one["spec"] for one in machine.endpoints().values()}
    assert {name: spec["ipNetworks"] for name, spec in found.items()} == {
        "eth0": [f"{first}/32"], "net1": [f"{second}/32"],
    }  # fmt: skip
    assert found["eth0"]["interfaceName"] == host_name("default", "nginx")
    assert sorted(machine.remains().interfaces) == sorted(spec["interfaceName"] for spec in found.values())
    for bare in (first, second):
        machine.host.run("ping", "-c", "1", "-W", "30", bare)
    inside = machine.inside(pod)
    assert machine.host.run("ping", "-c", "1", "-W", "30", "-I", "192.0.2.1", second)
    over = inside.ip("route", "get", "192.0.2.254", "from", second)[0]
    assert (over["gateway"], over["dev"]) == ("169.254.1.1", "net1")
    assert inside.ip("route", "get", "192.0.2.254")[0]["dev"] == "eth0"
    one.check(pod)
    other.check(net1)
    one.gc([pod])
    other.gc([net1])
    for _ in range(2):
        other.delete(net1)
        assert list(machine.endpoints()) == ["default/node--1-k8s-nginx-eth0"]
        assert list(machine.held()) == [first]
        assert second not in inside.run("ip", "rule")
        one.check(pod)
    assert address(other.add(net1)) and len(machine.endpoints()) == 2
    one.delete(pod)
    assert list(machine.endpoints()) == ["default/node--1-k8s-nginx-net1"]
    other.check(net1)
    other.delete(net1)
    assert not machine.remains()


@pytest.mark.kernel
def test_a_second_interface_of_both_families(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(pool("first", "10.65.0.0/24"), pool("six", "fd00:65::/112"))
    machine.start_server()
    conf = calico(ipam={"type": "calico-ipam", "assign_ipv6": "true"})
    one, other = (machine.chain(conf, version="1.1.0", name=name) for name in (NETWORK, "storage"))
    pod = machine.pod()
    net1 = also(pod, "net1")
    one.add(pod)
    result = other.add(net1)
    v4, v6 = (str(ip["address"]).partition("/")[0] for ip in result["ips"])
    inside = machine.inside(pod)
    for family, bare, source in (("-4", v4, "192.0.2.1"), ("-6", v6, "2001:db8::1")):
        machine.host.run("ping", "-c", "1", "-W", "30", "-I", source, bare)
        assert inside.ip(family, "route", "get", source, "from", bare)[0]["dev"] == "net1"
    other.check(net1)
    inside.run("ip", "-6", "rule", "del", "from", v6)
    with pytest.raises(CniError, match=f"the rule for what leaves from {v6} over net1 is missing"):
        other.check(net1)
    other.delete(net1)
    one.delete(pod)
    assert not machine.remains()


@pytest.mark.kernel
def test_the_same_further_network_twice(machine: Machine) -> None:
    """Both addresses are held under one handle; the end of one interface leaves the other its own."""
    one, other = network(machine, NETWORK, "first"), network(machine, "storage", "second")
    pod = machine.pod()
    net1, net2 = also(pod, "net1"), also(pod, "net2")
    one.add(pod)
    first, second = address(other.add(net1)), address(other.add(net2))
    assert {first, second} < set(machine.held()) and len(machine.endpoints()) == 3
    other.check(net1)
    other.delete(net1)
    assert first not in machine.held()
    other.check(net2)
    again = address(other.add(net1))
    assert {again, second} < set(machine.held())
    for attachment in (net2, net1, net2, net1):
        other.delete(attachment)
    one.check(pod)
    one.delete(pod)
    assert not machine.remains()


@pytest.mark.kernel
def test_a_pods_new_sandbox_on_two_networks(machine: Machine) -> None:
    """The old sandbox's DELs come late, and find nothing of theirs but addresses."""
    one, other = network(machine, NETWORK, "first"), network(machine, "storage", "second")
    old, new = machine.pod(container="old"), machine.pod(container="new")
    for pod in (old, new):
        one.add(pod)
        other.add(also(pod, "net1"))
    other.delete(also(old, "net1"))
    one.delete(old)
    one.check(new)
    other.check(also(new, "net1"))
    assert sorted(machine.held().values()) == [f"{NETWORK}.new", "storage.new"]
    assert len(machine.endpoints()) == len(machine.remains().interfaces) == 2


@pytest.mark.kernel
def test_gc_of_one_network_leaves_the_other_alone(machine: Machine) -> None:
    one, other = network(machine, NETWORK, "first"), network(machine, "storage", "second")
    pod = machine.pod()
    one.add(pod)
    other.add(also(pod, "net1"))
    other.gc([])
    assert list(machine.endpoints()) == ["default/node--1-k8s-nginx-eth0"]
    assert list(machine.held().values()) == [f"{NETWORK}.{pod.container_id}"]
    one.check(pod)
    one.gc([])
    assert not machine.remains()


@pytest.mark.kernel
def test_annotations_for_the_first_interface_alone(machine: Machine) -> None:
    """Else the second ADD would ask for the address that the first has."""
    one, other = network(machine, NETWORK, "first"), network(machine, "storage", "second")
    mac = "02:00:00:00:00:77"
    annotations = {"ipAddrs": '["10.65.0.9"]', "hwAddr": mac, "ipv4pools": '["first"]'}
    prefixed = {f"cni.projectcalico.org/{name}": value for name, value in annotations.items()}
    pod = machine.pod(annotations=prefixed)
    first, second = one.add(pod), other.add(also(pod, "net1"))
    assert (address(first), first["interfaces"][1]["mac"]) == ("10.65.0.9", mac)
    assert address(second).startswith("10.66.") and second["interfaces"][1]["mac"] != mac


@pytest.mark.unit
def test_where_pods_are_the_endpoints_a_second_interface_is_refused() -> None:
    """The Kubernetes API keeps a pod's addresses with it: a second endpoint would overwrite the first."""
    config = DatastoreConfig(datastoreType="kubernetes", k8sAPIEndpoint="https://127.0.0.1:1")

    async def kept() -> bool:
        stores = Stores(config, "n")
        try:
            return stores.start().keeps_endpoints
        finally:
            await stores.close()

    assert asyncio.run(kept()) is False
