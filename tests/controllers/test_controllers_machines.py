"""Which addresses are KubeVirt VMs', and whether the VM is still there: with pods, without, by a digest."""

from typing import Any

import pytest

from tortie.controllers.leaks import Home, Picture, Verdict, judge
from tortie.controllers.machines import Machines, machines
from tortie.core.errors import ValidationError
from tortie.datastore.backend import KV, Broken, Listed
from tortie.datastore.nativekeys import VirtualMachineInstanceKey, VirtualMachineKey
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.pod import Metadata, Pod, PodStatus
from tortie.ipam.audit import Allocation
from tortie.ipam.names import vm_handle
from tortie.ipam.owners import is_machines

pytestmark = pytest.mark.unit

GRACE = 900.0
LONG = "v" * 120
VM = Machines(frozenset({("shop", "vm"), ("shop", LONG), ("shop", "vm.with.dots")}))
ACTIVE = {"namespace": "shop", "pod": "virt-launcher-vm-a", "node": "n1", "vmi-name": "vm"}
TARGET = {"namespace": "shop", "pod": "virt-launcher-vm-b", "node": "n2", "vmi-name": "vm"}


def held(
    handle: str = "net.vmi.shop.vm",
    active: dict[str, str] | None = None,
    beside: Any = None,
    node: str = "n1",
) -> Allocation:
    attribute = AllocationAttribute(
        handle_id=handle, secondary=active or {}, alternateOwnerAttrs=beside or {}
    )
    return Allocation("10.0.0.1", "10.0.0.0/26", handle, 7, node, False, False, attribute)


def judged(
    one: Allocation,
    known: Machines | None = VM,
    *pods: str,
    phase: str = "Running",
    grace: float = GRACE,
    home: Home = Home.HERE,
    after: float = GRACE,
) -> Verdict:
    """After two looks that are so many seconds apart."""
    there = {("shop", name): Pod(status=PodStatus(phase=phase)) for name in pods}
    picture = Picture([one], [one.node], lambda _node: home, there, machines=known)
    return judge(picture, judge(picture, {}, 100.0, grace).suspects, 100.0 + after, grace)


@pytest.mark.parametrize(
    "one",
    [
        held(active=ACTIVE),
        held(beside=TARGET),
        held(),  # it is stopped
        held(node=""),  # and its block is nobody's
        held(vm_handle("net", "shop", LONG)),
        held("a.vmi.b.vmi.shop.vm"),  # of a network that is named so
        held("net.vmi.shop.vm.with.dots"),
        held(active={**ACTIVE, "namespace": ""}),  # nobody can tell
    ],
)
def test_a_vms_address_is_kept_while_there_is_the_vm_and_leaked_without(one: Allocation) -> None:
    assert is_machines(one.attribute)
    assert judged(one) == Verdict()
    assert judged(one, None) == Verdict()  # not known
    named = one.attribute.secondary.get("namespace") != ""
    assert [found.address for found in judged(one, Machines()).leaked] == ["10.0.0.1"] * named


@pytest.mark.parametrize(
    "one", [held("net.c0ffee"), held("net.vmi.shop.vm", {"namespace": "shop", "pod": "vm", "node": "n1"})]
)
def test_what_is_no_vms(one: Allocation) -> None:
    """The second one is a container's that is called vm, in a network that is called net.vmi.shop."""
    assert not is_machines(one.attribute)


def test_another_vm_of_a_like_name_keeps_nothing() -> None:
    other = Machines(frozenset({("shop", "v"), ("shop", LONG + "w"), ("sho", "p.vm")}))
    assert judged(held(), other).leaked and judged(held(vm_handle("net", "shop", LONG)), other).leaked


@pytest.mark.parametrize(
    "one", [held(active=ACTIVE), held(beside=ACTIVE), held(active=TARGET, beside=ACTIVE)]
)
def test_a_pod_that_still_runs_has_the_address(one: Allocation) -> None:
    assert judged(one, Machines(), ACTIVE["pod"]) == Verdict()
    assert judged(one, Machines(), ACTIVE["pod"], phase="Succeeded").leaked


def test_a_vm_has_five_minutes_whatever_pods_have() -> None:
    for grace in (0.0, 1.0):
        early = judged(held(), Machines(), grace=grace, after=299.0)
        assert (early.leaked, early.next_at) == ([], 400.0)
        assert judged(held(), Machines(), grace=grace, after=300.0).leaked
    assert not judged(held(), Machines(), after=899.0).leaked


def test_of_a_node_that_is_gone_only_a_living_vms_address_stays() -> None:
    kept = judged(held(active=ACTIVE), VM, home=Home.GONE)
    assert (kept.leaked, kept.gone) == ([], [])
    gone = judged(held(active=ACTIVE), Machines(), home=Home.GONE, after=0.0)
    assert ([one.address for one in gone.leaked], gone.gone) == (["10.0.0.1"], ["n1"])


def test_which_machines_there_are() -> None:
    def stored(key: Any, *owners: dict[str, str]) -> KV:
        return KV(key, Metadata(metadata=ObjectMeta(ownerReferences=owners)), "1")

    unread = Broken("x", VirtualMachineKey("ns", "broken"), ValidationError([]))
    vms = Listed([stored(VirtualMachineKey("ns", "vm"))], "1", [unread])
    vmis = Listed(
        [
            stored(VirtualMachineInstanceKey("ns", "alone")),
            stored(VirtualMachineInstanceKey("ns", "orphan"), {"kind": "VirtualMachine", "name": "orphan"}),
        ],
        "1",
    )
    assert machines(vms, vmis).names == {("ns", "vm"), ("ns", "alone"), ("ns", "broken")}
