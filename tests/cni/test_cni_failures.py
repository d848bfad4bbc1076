"""Every way in which an ADD fails says what a person can do about it, and leaves nothing behind.

Message and details both reach the pod's events. Exhaustion in all its forms is test_ipam_explain's; what
other IPAM plugins do wrong is test_cni_chain's; annotations that cannot be read are test_cni_annotations'.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.netns_lab import eventually
from tests.support.cni import Machine, calico, pool
from tortie.cni import advice
from tortie.core.errors import CniError
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.lab.runtime import Attachment

pytestmark = pytest.mark.kernel

STRICT = '{"strict_affinity": true, "auto_allocate_blocks": true}'


@pytest.fixture
def machine(bare_machine: Machine) -> Machine:
    """Pools of every kind, strict affinity, and a pod that has an address."""
    bare_machine.seed(
        pool("open", "10.65.0.0/24"),
        pool("shut", "10.66.0.0/24", disabled=True),
        pool("balancer", "10.67.0.0/24", allowedUses=("LoadBalancer",)),
        pool("manual", "10.68.0.0/24", assignmentMode="Manual"),
        pool("six", "fd00:65::/112"),
    )
    bare_machine.host.call(bare_machine.etcd.put, "/calico/ipam/v2/config", STRICT)
    bare_machine.start_server()
    assert not refused(bare_machine, bare_machine.pod("first"))
    return bare_machine


def refused(machine: Machine, pod: Attachment, conf: dict[str, Any] | None = None) -> str:
    """What the ADD says, "" if it succeeds; whatever fails leaves everything as it was."""
    before = machine.remains()
    try:
        machine.chain(conf or calico()).add(pod)
    except CniError as err:
        assert machine.remains() == before
        return f"{err.code}: {err.msg}: {err.details}"
    return ""


def annotated(name: str, value: str) -> Callable[[Machine], str]:
    """A pod with one annotation; `{held}` in it is an address that another pod has."""

    def add(machine: Machine) -> str:
        held = next(iter(machine.held()))
        annotations = {f"cni.projectcalico.org/{name}": value.replace("{held}", held)}
        return refused(machine, machine.pod("late", annotations=annotations))

    return add


def configured(**fields: Any) -> Callable[[Machine], str]:
    return lambda machine: refused(machine, machine.pod("late"), calico(**fields))


def without_netns(machine: Machine) -> str:
    pod = machine.pod("late")
    return refused(
        machine, Attachment(pod.container_id, "/run/netns/gone", "eth0", pod.args, {}, pod.config_args)
    )


def ifname_taken(machine: Machine) -> str:
    pod = machine.pod("late")
    machine.inside(pod).veth("eth0", "other")
    return refused(machine, pod)


def under_strict_affinity(machine: Machine) -> str:
    """An address in a block of another node."""
    machine.write(Node(metadata=ObjectMeta(name="node-2")))
    annotations = {"cni.projectcalico.org/ipAddrs": f'["{_neighbour(next(iter(machine.held())))}"]'}
    return refused(machine, machine.pod("late", annotations=annotations), calico(nodename="node-2"))


def _neighbour(address: str) -> str:
    """Another address of the same block."""
    start, _, last = address.rpartition(".")
    return f"{start}.{int(last) ^ 1}"


def without_server(machine: Machine) -> str:
    machine.stop_server()
    return refused(machine, machine.pod("late"))


def without_etcd(machine: Machine) -> str:
    """What is left cannot be looked at; test_row_50_delete_waits_for_the_datastore_to_come_back does."""
    machine.etcd.kill()
    try:
        with pytest.raises(CniError) as caught:
            machine.chain().add(machine.pod("late"))
    finally:
        machine.start_etcd()
    return f"{caught.value.code}: {caught.value}"


FAILURES: dict[str, tuple[Callable[[Machine], str], tuple[str, ...]]] = {  # what -> (how, what is said)
    "pool of no name": (
        annotated("ipv4pools", '["nope"]'),
        ('999: error parsing pool "nope"', "IPv4 pools are: ", "open (10.65.0.0/24)"),
    ),
    "pool of another family": (
        annotated("ipv4pools", '["six"]'),
        ("isn't a IPv4 address", "IPv4 pools are: ", "open (10.65.0.0/24)"),
    ),
    "pool of no family's": (
        annotated("ipv4pools", '["10.99.0.0/16"]'),
        ("the given pool (10.99.0.0/16) does not exist", "there is no IPv4 pool with CIDR 10.99.0.0/16"),
    ),
    "pool that is disabled": (
        annotated("ipv4pools", '["shut"]'),
        ("does not exist, or is not enabled", "pool shut (10.66.0.0/24) is disabled"),
    ),
    "pool for another use": (
        annotated("ipv4pools", '["balancer"]'),
        ("no pools match the required use (Workload)", "pool balancer (10.67.0.0/24) is not for Workload"),
    ),
    "address in use": (
        annotated("ipAddrs", '["{held}"]'),
        (
            "Address already assigned in block",
            "is held by pod default/first on node node-1",
            "ipam show --ip=",
        ),
    ),
    "address in no pool": (
        annotated("ipAddrs", '["10.99.0.1"]'),
        ("not in a configured pool", "10.99.0.1 is in no pool; IPv4 pools are: "),
    ),
    "address of a disabled pool": (
        annotated("ipAddrs", '["10.66.0.1"]'),
        ("not in a configured pool", "10.66.0.1 is in pool shut (10.66.0.0/24), which is disabled"),
    ),
    "address for another use": (
        annotated("ipAddrs", '["10.67.0.1"]'),
        ('in IP pool "balancer", which is not allowed for use "Workload"',),
    ),
    "address of another node's block": (
        under_strict_affinity,
        (
            "Block host affinity does not match",
            "is affine to host:node-1; with strict affinity only its owner",
        ),
    ),
    "annotation": (
        annotated("ipAddrs", "10.65.0.9"),
        ("7: annotation cni.projectcalico.org/ipAddrs", "JSON"),
    ),
    "feature": (annotated("floatingIPs", '["1.2.3.4"]'), ("requested feature is not enabled: floating_ips",)),
    "node": (
        configured(nodename="elsewhere"),
        ("Node(elsewhere)", "does it run on this node, and is elsewhere its name?"),
    ),
    "namespace": (without_netns, ('3: failed to open netns "/run/netns/gone": no such file or directory',)),
    "interface": (ifname_taken, ("File exists: the container has an interface eth0 already: delete it",)),
    "endpoints": (
        configured(etcd_endpoints="http://127.0.0.1:1"),
        ("11: no etcd endpoint answers: http://127.0.0.1:1", "Connection refused"),
    ),
    "certificate": (
        configured(etcd_endpoints="https://127.0.0.1:1", etcd_ca_cert_file="/none"),
        ("etcdCACertFile = '/none': cannot be read: No such file or directory",),
    ),
    "datastore type": (
        configured(datastore_type="mysql"),
        ("7: datastore_type = 'mysql': must be etcdv3 or kubernetes",),
    ),
    "kubeconfig": (
        configured(datastore_type="kubernetes", kubernetes={"kubeconfig": "/none"}),
        ("7: kubeconfig = '/none': does not exist",),
    ),
    "ipam": (configured(ipam={}), ("7: ipam.type = '': an IPAM plugin must be named, such as calico-ipam",)),
    "server": (
        without_server,
        ("11: cannot reach the CNI server at ", "check that calico-node runs on this node"),
    ),
    "datastore": (without_etcd, ("11: no etcd endpoint answers: http://127.0.0.1:",)),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_failed_add_says_what_to_do(machine: Machine, what: str) -> None:
    provoke, expected = FAILURES[what]
    said = provoke(machine)
    assert all(part in said for part in expected), said


def test_a_cluster_that_is_not_there_yet_or_locked(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.start_server()
    said = refused(machine, machine.pod("early"))
    assert "error getting ClusterInformation" in said and "calico-node writes it when it starts" in said
    machine.ready(True)
    said = refused(machine, machine.pod("early"))
    assert "Node(node-1)" in said and "does it run on this node, and is node-1 its name?" in said
    machine.ready(False)
    locked = "datastoreReady is false in ClusterInformation default"
    assert eventually(lambda: locked in refused(machine, machine.pod("early")))


@pytest.mark.unit
def test_who_holds_an_address_is_told_whatever_is_known_of_him() -> None:
    tunnel = AllocationAttribute(handle_id="ipip-tunnel-addr-node-1", secondary={"node": "node-1"})
    assert "is held by handle ipip-tunnel-addr-node-1 on node node-1" in advice.holder("10.0.0.1", tunnel)
    assert "is held by handle <none>;" in advice.holder("10.0.0.1", AllocationAttribute())
    hostile = AllocationAttribute(secondary={"pod": "a\x1b[2J", "namespace": "b\n"})
    assert "\x1b" not in (text := advice.holder("10.0.0.1", hostile)) and "\n" not in text


@pytest.mark.unit
def test_pools_are_named_if_there_are_any() -> None:
    assert advice.pools_to_name((), 6) == "there is no IPv6 pool"
    assert advice.address_outside("fd00::1", ()) == "fd00::1 is in no pool; there is no IPv6 pool"
    assert advice.foreign_block("10.0.0.0/26", None).startswith("block 10.0.0.0/26 is affine to no node;")
