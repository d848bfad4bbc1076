"""The two owners an allocation may have while a KubeVirt VM migrates: the active and the alternate pod.

A change may demand who the present owners are; all demands are checked before anything changes.
(Reference: Calico IPAM, 2.12.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import structs

from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.ipam import block as blocks
from tortie.ipam.errors import IPAMError, OwnerMismatch
from tortie.ipam.names import NAMESPACE, POD, VM_HANDLE, VMI_NAME, clean_handle


@dataclass(frozen=True, slots=True)
class PodOwner:
    """A pod as an owner; both empty means: nobody."""

    namespace: str = ""
    pod: str = ""

    def owns(self, attributes: Mapping[str, str]) -> bool:
        if not self.namespace and not self.pod:
            return not attributes
        return attributes.get(POD) == self.pod and attributes.get(NAMESPACE) == self.namespace


NOBODY = PodOwner()


@dataclass(frozen=True, slots=True)
class OwnerChange:
    """New attributes per side: None leaves a side alone, {} clears it. `expect_*`: None demands nothing."""

    active: Mapping[str, str] | None = None
    alternate: Mapping[str, str] | None = None
    expect_active: PodOwner | None = None
    expect_alternate: PodOwner | None = None


def is_machines(attribute: AllocationAttribute) -> bool:
    """Whether an address is a KubeVirt VM's, which outlives pods: of a stopped one only its handle tells.

    Every other allocation names the pod, or what else it was made for.
    """
    users = [one for one in (attribute.secondary, attribute.alternateOwnerAttrs) if one]
    if users:
        return any(VMI_NAME in one for one in users)
    return VM_HANDLE in clean_handle(attribute.handle_id)


def with_owners(block: Block, ordinal: int, handle: str, change: OwnerChange) -> Block:
    """The block with the owners of one address changed; addresses that shared its attribute keep theirs.

    Raises ResourceDoesNotExist if the address is free, IPAMError if another handle has it,
    OwnerMismatch if a demand is not met.
    """
    address = blocks.address_at(block, ordinal)
    attribute = blocks.attribute_at(block, ordinal)
    if attribute is None:
        raise ResourceDoesNotExist(address, "IP is unassigned")
    if attribute.handle_id is None or clean_handle(attribute.handle_id) != clean_handle(handle):
        raise IPAMError(f"IP {address} is not assigned to handle {handle}")
    if change.active is not None:
        _demand("ActiveOwnerAttrs", address, attribute.secondary, change.expect_active)
    if change.alternate is not None:
        _demand("AlternateOwnerAttrs", address, attribute.alternateOwnerAttrs, change.expect_alternate)
    return blocks.redirected(block, ordinal, _changed(attribute, change))


def _changed(attribute: AllocationAttribute, change: OwnerChange) -> AllocationAttribute:
    return structs.replace(
        attribute,
        secondary=attribute.secondary if change.active is None else dict(change.active),
        alternateOwnerAttrs=(
            attribute.alternateOwnerAttrs if change.alternate is None else dict(change.alternate)
        ),
    )


def _demand(field: str, address: str, found: Mapping[str, str], expected: PodOwner | None) -> None:
    if expected is None or expected.owns(found):
        return
    raise OwnerMismatch(
        f"{address}: cannot set {field}: expected pod={expected.pod} namespace={expected.namespace} "
        f"but found pod={found.get(POD, '')} namespace={found.get(NAMESPACE, '')}"
    )
