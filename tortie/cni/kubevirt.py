"""KubeVirt's virtual machines: which pods run one, and what becomes of a machine's address. Pure.

A VM keeps its address while its pods come and go: it is held under a handle of the VM's own, and remembers
which pod uses it, and to which one the VM is migrating. Where the objects are read is podsource.py; what is
done about it, vmaddresses.py. (Reference: IPAM and CNI, section 7; libcalico-go/lib/kubevirt.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tortie.cni.identity import Identity
from tortie.cni.protocol import Code
from tortie.core.errors import CniError
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.datastore.types.meta import ObjectMeta
from tortie.ipam.names import NAMESPACE, POD, VM_UID, VMI_NAME, VMI_UID, VMIM_UID
from tortie.ipam.owners import OwnerChange, PodOwner

_LAUNCHER = "virt-launcher-"  # what KubeVirt begins its pods' names with
_API_VERSION = "kubevirt.io/v1"
_MIGRATION_JOB = "kubevirt.io/migrationJobUID"  # label of pods that a VM is migrated to


@dataclass(frozen=True, slots=True)
class Launched:
    """What a VM's pod says of it, and its objects as they are; None where there is none (any more).

    `name` is the VM's and its instance's, `uid` the instance's; `migration` is the UID of the migration
    whose target the pod is.
    """

    pod: PodOwner
    name: str
    uid: str
    migration: str = ""
    instance: ObjectMeta | None = None
    machine: ObjectMeta | None = None

    @property
    def ending(self) -> bool:
        """Whether no other pod will come: the VM is being deleted or gone, or the instance without one."""
        alone = self.instance is not None and not machine_of(self.instance)
        lasting = self.instance if alone else self.machine
        return lasting is None or lasting.deletionTimestamp is not None

    @property
    def attributes(self) -> dict[str, str]:
        """What IPAM remembers of the VM beside the pod."""
        found = {
            VMI_NAME: self.name,
            VMI_UID: self.uid,
            VM_UID: self.machine.uid if self.machine is not None else "",
            VMIM_UID: self.migration,
        }
        return {key: value for key, value in found.items() if value}

    def check(self) -> None:
        """Raises CniError unless the pod may have the VM's address: another VM may have the name by now."""
        if not self.name or not self.uid:
            pod = f"{self.pod.namespace}/{self.pod.pod}"
            reason = f'pod {pod} has invalid VMI ownerReference: name="{self.name}" uid="{self.uid}"'
        elif self.instance is None:
            reason = f"VirtualMachineInstance {self.pod.namespace}/{self.name} does not exist"
        elif self.instance.uid != self.uid:
            actual = self.instance.uid
            reason = f"VMI UID mismatch: pod ownerReference has {self.uid} but VMI resource has {actual}"
        elif machine_of(self.instance) and self.machine is None:
            reason = f"VirtualMachine {self.pod.namespace}/{machine_of(self.instance)} does not exist"
        else:
            return
        raise CniError(Code.INTERNAL, f"failed to get VMI info: {reason}")


def may_launch(identity: Identity) -> bool:
    """Whether the pod can be a VM's, by its name: nothing is asked about others."""
    return identity.pod.startswith(_LAUNCHER)


def launched(pod: ObjectMeta) -> Launched | None:
    """What a pod says; None if it is no VM's."""
    for owner in pod.ownerReferences:
        if _is(owner, "VirtualMachineInstance") and owner.get("controller") is True:
            where, migration = PodOwner(pod.namespace, pod.name), pod.labels.get(_MIGRATION_JOB, "")
            return Launched(where, str(owner.get("name", "")), str(owner.get("uid", "")), migration)
    return None


def machine_of(instance: ObjectMeta) -> str:
    """The name of the VM that an instance belongs to, '' if none."""
    owners = instance.ownerReferences
    return next((str(owner.get("name", "")) for owner in owners if _is(owner, "VirtualMachine")), "")


def _is(owner: Mapping[str, Any], kind: str) -> bool:
    return owner.get("apiVersion") == _API_VERSION and owner.get("kind") == kind


# --- who uses the address -------------------------------------------------------------------------


def arrival(migrating: bool, attributes: Mapping[str, str]) -> OwnerChange:
    """A pod of the VM is there: whatever its side says names a pod that is on its way out, or never came."""
    return OwnerChange(alternate=attributes) if migrating else OwnerChange(active=attributes)


def departure(found: AllocationAttribute, pod: PodOwner) -> OwnerChange | None:
    """What changes when a pod goes; None if the address does not name it.

    The pod that the VM has migrated to is the one that uses the address from then on.
    """
    if pod.owns(found.secondary):
        other = found.alternateOwnerAttrs
        if not other or pod.owns(other):
            return OwnerChange(active={}, expect_active=pod)
        expected = PodOwner(other.get(NAMESPACE, ""), other.get(POD, ""))
        return OwnerChange(active=other, alternate={}, expect_active=pod, expect_alternate=expected)
    if pod.owns(found.alternateOwnerAttrs):
        return OwnerChange(alternate={}, expect_alternate=pod)
    return None


def deserted(found: AllocationAttribute) -> bool:
    """Whether no pod uses the address."""
    return not found.secondary and not found.alternateOwnerAttrs
