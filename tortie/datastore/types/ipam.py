"""IPAM's own objects, in the JSON of the etcd datastore (which is not an envelope).

In etcd they live under /calico/ipam/v2/; the Kubernetes backend maps them to custom resources.
Equality of sequence numbers is all that is ever tested; they need 64 bits.
"""

from msgspec import UNSET, UnsetType

from tortie.datastore.types.meta import Spec


class AllocationAttribute(Spec, frozen=True, kw_only=True):
    """What is known of one or several allocations; `secondary` describes the active owner."""

    handle_id: str | None = None
    secondary: dict[str, str] = {}
    alternateOwnerAttrs: dict[str, str] = {}
    releasedAt: str | None = None  # RFC 3339: released, still cooling down


class Block(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """One block of addresses; ordinal = address - base. See ipam.block for its arithmetic."""

    cidr: str
    affinity: str | None = None  # host:<node> | virtual:<name>; None: nobody's
    affinity_claim_time: str | UnsetType = UNSET
    allocations: tuple[int | None, ...] = ()  # ordinal -> index into attributes, None: free
    unallocated: tuple[int, ...] = ()  # ordinals, the head is handed out next
    attributes: tuple[AllocationAttribute, ...] = ()
    sequenceNumber: int = 0  # +1 on every write; starts as the creation time in ns
    sequenceNumberForAllocation: dict[str, int] = {}  # ordinal -> block's number before that write
    deleted: bool = False


class Affinity(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """A host's claim on a block. '' counts as confirmed (data of old versions)."""

    state: str = ""  # pending | confirmed | pendingDeletion
    deleted: bool = False


class Handle(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """How many addresses a handle holds in each block; never less than the truth."""

    block: dict[str, int] = {}  # block CIDR -> count
    deleted: bool = False


class IPAMConfig(Spec, frozen=True, kw_only=True):
    """The allocator's configuration; a missing `auto_allocate_blocks` in a stored object is false."""

    strict_affinity: bool = False
    auto_allocate_blocks: bool = False
    maxBlocksPerHost: int = 0
    kubeVirtVMAddressPersistence: str = ""  # "" | Enabled | Disabled
    ipCooldownSeconds: int = 0


DEFAULT_IPAM_CONFIG = IPAMConfig(auto_allocate_blocks=True, kubeVirtVMAddressPersistence="Enabled")


class IPAMHost(Spec, frozen=True, kw_only=True):
    """The legacy per-host directory key, an empty object."""


class EndpointStatus(Spec, frozen=True, kw_only=True):
    """Felix's word on one endpoint: up, down or error."""

    status: str


class ProcessStatus(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """Felix's report about itself."""

    time: str
    uptime: float
    first_update: bool
