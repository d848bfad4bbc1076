"""IPPool, IPReservation, IPAMConfiguration and the BlockAffinity resource."""

from msgspec import UNSET, UnsetType

from tortie.datastore.types.meta import Condition, Resource, Spec


class IPPoolSpec(Spec, frozen=True, kw_only=True):
    cidr: str = ""
    vxlanMode: str = ""  # Never | Always | CrossSubnet; "" reads as Never
    ipipMode: str = ""  # the same
    natOutgoing: bool = False
    disabled: bool = False
    disableBGPExport: bool = False
    blockSize: int = 0  # prefix length of the pool's blocks; 0: 26 or 122
    nodeSelector: str = ""
    namespaceSelector: str = ""
    allowedUses: tuple[str, ...] = ()  # Workload | Tunnel | LoadBalancer
    assignmentMode: str | None = None  # Automatic | Manual


class IPPoolStatus(Spec, frozen=True, kw_only=True):
    conditions: tuple[Condition, ...] = ()


class IPPool(Resource, frozen=True, kw_only=True, tag="IPPool"):
    spec: IPPoolSpec = IPPoolSpec()
    status: IPPoolStatus | UnsetType = UNSET


class IPReservationSpec(Spec, frozen=True, kw_only=True):
    reservedCIDRs: tuple[str, ...] = ()


class IPReservation(Resource, frozen=True, kw_only=True, tag="IPReservation"):
    spec: IPReservationSpec = IPReservationSpec()


class IPAMConfigurationSpec(Spec, frozen=True, kw_only=True, omit_defaults=False):
    strictAffinity: bool = False
    maxBlocksPerHost: int | UnsetType = UNSET
    autoAllocateBlocks: bool = False
    kubeVirtVMAddressPersistence: str | UnsetType = UNSET  # Enabled | Disabled
    ipCooldownSeconds: int | UnsetType = UNSET


class IPAMConfiguration(Resource, frozen=True, kw_only=True, tag="IPAMConfiguration"):
    spec: IPAMConfigurationSpec = IPAMConfigurationSpec()


class BlockAffinitySpec(Spec, frozen=True, kw_only=True, omit_defaults=False):
    state: str = ""  # "" | confirmed | pending | pendingDeletion
    node: str = ""
    type: str | UnsetType = UNSET
    cidr: str = ""
    deleted: bool | str = False  # the etcd datastore holds it as text


class BlockAffinity(Resource, frozen=True, kw_only=True, tag="BlockAffinity"):
    spec: BlockAffinitySpec = BlockAffinitySpec()
