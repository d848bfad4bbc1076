"""Addresses of KubeVirt's VMs, which outlive pods: whose each is, and whether that VM is still there. Pure.

An address names its VM while a pod uses it. That of a stopped VM names nobody, only its handle tells, and of
a long name that has but a digest: so it is compared with what the handles of all VMs would be.
(Reference: IPAM, 1.6 and 5.1; the CNI plugin's part is cni/kubevirt.py.)
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tortie.datastore.backend import KV, Broken, Listed
from tortie.datastore.nativekeys import VirtualMachineInstanceKey, VirtualMachineKey
from tortie.datastore.types.pod import Pod
from tortie.ipam.audit import Allocation
from tortie.ipam.names import NAMESPACE, POD, VM_HANDLE, VMI_NAME, vm_handle
from tortie.ipam.owners import is_machines

Name = tuple[str, str]  # namespace, name: of a pod or a VM
_OVER = ("Succeeded", "Failed")  # phases of a pod that uses no address any more


@dataclass(frozen=True, slots=True)
class Machines:
    """The VMs there are, stopped ones too, and instances without one."""

    names: frozenset[Name] = frozenset()

    def has(self, one: Allocation) -> bool:
        """Whether the VM of an address is there; in doubt, yes."""
        named = {(owner.get(NAMESPACE, ""), owner[VMI_NAME]) for owner in _users(one) if VMI_NAME in owner}
        if named:
            return any(not namespace or (namespace, name) in self.names for namespace, name in named)
        return any(self._has(network, one.handle) for network in _networks(one.handle))

    def _has(self, network: str, handle: str) -> bool:
        rest = handle.removeprefix(network + VM_HANDLE)
        if rest.startswith("_"):  # no namespace does: a digest
            return any(vm_handle(network, *name) == handle for name in self.names)
        namespace, _, name = rest.partition(".")
        return (namespace, name) in self.names


def machines(stored: Listed, instances: Listed) -> Machines:
    """An instance whose VM is gone is on its way out. What nobody can read, is there."""
    alone = [kv for kv in instances.items if not any(map(_is_vm, kv.value.metadata.ownerReferences))]
    there: list[KV | Broken] = [*stored.items, *alone, *stored.broken, *instances.broken]
    keys = [one.key for one in there if isinstance(one.key, VirtualMachineKey | VirtualMachineInstanceKey)]
    return Machines(frozenset((key.namespace, key.name) for key in keys))


def _is_vm(owner: Mapping[str, Any]) -> bool:
    return owner.get("kind") == "VirtualMachine"


def pods_of(one: Allocation) -> Iterator[Name]:
    """The pods that use an address: the VM's, and the one that it migrates to."""
    for user in _users(one):
        if user.get(NAMESPACE) and user.get(POD):
            yield user[NAMESPACE], user[POD]


def runs(one: Allocation, pods: Mapping[Name, Pod]) -> bool:
    """Whether a pod that uses the address is there: then nobody needs to be asked for the VM."""
    found = (pods.get(name) for name in pods_of(one))
    return any(pod is not None and pod.status.phase not in _OVER for pod in found)


def any_idle(allocations: Iterable[Allocation], pods: Mapping[Name, Pod]) -> bool:
    return any(is_machines(one.attribute) and not one.cooling and not runs(one, pods) for one in allocations)


def _users(one: Allocation) -> Iterator[Mapping[str, str]]:
    return (user for user in (one.attribute.secondary, one.attribute.alternateOwnerAttrs) if user)


def _networks(handle: str) -> Iterator[str]:
    """The networks whose VM's it can be: names may have dots."""
    at = handle.find(VM_HANDLE)
    while at >= 0:
        yield handle[:at]
        at = handle.find(VM_HANDLE, at + 1)
