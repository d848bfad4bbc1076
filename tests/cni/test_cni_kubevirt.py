"""What a VM's pod is, whose address it gets, and what becomes of the address: decisions about KubeVirt."""

from dataclasses import replace
from typing import Any

import pytest

from tortie.cni import kubevirt
from tortie.cni.addressing import holders
from tortie.cni.identity import Identity
from tortie.cni.kubevirt import Launched, launched
from tortie.core.errors import CniError
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.ipam.owners import OwnerChange, PodOwner

pytestmark = pytest.mark.unit

OWNER = {
    "apiVersion": "kubevirt.io/v1",
    "kind": "VirtualMachineInstance",
    "name": "vm",
    "uid": "vmi-1",
    "controller": True,
}
POD = PodOwner("ns", "virt-launcher-vm-a")
OTHER = PodOwner("ns", "virt-launcher-vm-b")
LATER = "2027-01-15T08:00:00Z"


def meta(uid: str, *owners: dict[str, Any], deleted: bool = False) -> ObjectMeta:
    return ObjectMeta(
        name="vm",
        namespace="ns",
        uid=uid,
        ownerReferences=owners,
        deletionTimestamp=LATER if deleted else None,
    )


def pod(*owners: dict[str, Any], **labels: str) -> ObjectMeta:
    return ObjectMeta(name=POD.pod, namespace="ns", ownerReferences=owners, labels=labels)


OF_VM = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm", "uid": "vm-1"}
ALONE = Launched(POD, "vm", "vmi-1", instance=meta("vmi-1"))
OWNED = Launched(POD, "vm", "vmi-1", instance=meta("vmi-1", OF_VM), machine=meta("vm-1"))


def used(by: PodOwner | None, beside: PodOwner | None = None) -> AllocationAttribute:
    active, alternate = (
        {"namespace": one.namespace, "pod": one.pod, "node": "n"} if one is not None else {}
        for one in (by, beside)
    )
    return AllocationAttribute(handle_id="h", secondary=active, alternateOwnerAttrs=alternate)


def test_a_vms_pod_is_controlled_by_an_instance() -> None:
    assert launched(pod(OWNER)) == Launched(POD, "vm", "vmi-1")
    migrating = ObjectMeta(name="x", ownerReferences=(OWNER,), labels={"kubevirt.io/migrationJobUID": "job"})
    assert launched(migrating) == Launched(PodOwner("", "x"), "vm", "vmi-1", "job")
    for change in ({"controller": False}, {"kind": "ReplicaSet"}, {"apiVersion": "kubevirt.io/v2"}):
        assert launched(pod({**OWNER, **change})) is None
    assert launched(pod()) is None


def test_only_pods_named_as_a_vms_are_asked_about() -> None:
    plain = Identity("n", "net", "k8s", "ns", "c", "eth0", "virt-launcher-vm-a")
    assert kubevirt.may_launch(plain)
    assert not kubevirt.may_launch(replace(plain, pod="my-virt-launcher-vm"))
    assert not kubevirt.may_launch(replace(plain, pod=""))


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (replace(ALONE, uid=""), 'invalid VMI ownerReference: name="vm" uid=""'),
        (replace(ALONE, instance=None), "VirtualMachineInstance ns/vm does not exist"),
        (replace(ALONE, instance=meta("vmi-2")), "VMI UID mismatch: pod ownerReference has vmi-1 but VMI"),
        (replace(OWNED, machine=None), "VirtualMachine ns/vm does not exist"),
    ],
)
def test_a_pod_that_is_not_its_vms_any_more(one: Launched, said: str) -> None:
    with pytest.raises(CniError, match=said):
        one.check()
    ALONE.check()
    OWNED.check()


@pytest.mark.parametrize(
    ("one", "ending"),
    [
        (OWNED, False),
        (replace(OWNED, machine=meta("vm-1", deleted=True)), True),
        (replace(OWNED, machine=None), True),
        (replace(OWNED, instance=None), False),  # it is started anew
        (replace(OWNED, instance=meta("vmi-1", OF_VM, deleted=True)), False),  # it is stopped
        (ALONE, False),
        (replace(ALONE, instance=meta("vmi-1", deleted=True)), True),
        (replace(ALONE, instance=None), True),
    ],
)
def test_when_no_other_pod_of_the_vm_will_come(one: Launched, ending: bool) -> None:
    assert one.ending is ending


def test_what_is_remembered_of_the_vm() -> None:
    assert ALONE.attributes == {"vmi-name": "vm", "vmi-uid": "vmi-1"}
    assert replace(OWNED, migration="job").attributes == {
        "vmi-name": "vm",
        "vmi-uid": "vmi-1",
        "vm-uid": "vm-1",
        "vmim-uid": "job",
    }
    assert Identity("n", "net", "k8s", "ns", "c", "eth0", "x", vm="vm").handle == "net.vmi.ns.vm"


def test_who_uses_the_address_when_a_pod_comes_and_goes() -> None:
    assert kubevirt.arrival(False, {"pod": "a"}) == OwnerChange(active={"pod": "a"})
    assert kubevirt.arrival(True, {"pod": "b"}) == OwnerChange(alternate={"pod": "b"})
    departure = kubevirt.departure
    assert departure(used(POD), POD) == OwnerChange(active={}, expect_active=POD)
    assert departure(used(POD, POD), POD) == OwnerChange(active={}, expect_active=POD)
    assert departure(used(OTHER, POD), POD) == OwnerChange(alternate={}, expect_alternate=POD)
    assert departure(used(OTHER), POD) is None and departure(used(None), POD) is None
    # It has migrated: the target has the address now.
    assert departure(used(POD, OTHER), POD) == OwnerChange(
        active=used(OTHER).secondary, alternate={}, expect_active=POD, expect_alternate=OTHER
    )
    assert kubevirt.deserted(used(None))
    assert not kubevirt.deserted(used(None, POD)) and not kubevirt.deserted(used(POD))


def test_a_vms_address_is_no_containers() -> None:
    """Whose last part is cut off as a container's: of a network that is named so, it would be collected."""
    attribute = AllocationAttribute(
        handle_id="net.vmi.ns.vm", secondary={"node": "n", "pod": "p", "namespace": "ns", "vmi-name": "vm"}
    )
    assert holders([Block(cidr="10.0.0.0/30", attributes=(attribute,))], "n", "cali") == set()
