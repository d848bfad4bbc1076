"""What this node must enforce, as plain data: what calc produces and all that the dataplane is told.

Everything here is validated and canonical: addresses as inet_ntop writes them, networks without host
bits and always with a prefix length, ports and protocols in range. Nothing downstream checks again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tortie.datastore.routeowner import Encapsulation

RuleAction = Literal["allow", "deny", "pass", "log"]
SetKind = Literal["net", "ip", "ip,port"]
Stage = Literal["normal", "untracked", "pre-dnat"]
MigrationRole = Literal["none", "target", "source"]


# --- rules --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """What a rule asks of one side of a packet; every field given must hold, lists are alternatives.

    Fields that end in `sets` name IP sets by id: all of `sets` must hold the address; of `port_sets`
    (named ports, alternatives to `ports`) one must hold address and port; all of `service_sets` must.
    """

    nets: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    port_sets: tuple[str, ...] = ()
    service_sets: tuple[str, ...] = ()
    not_nets: tuple[str, ...] = ()
    not_sets: tuple[str, ...] = ()
    not_ports: tuple[tuple[int, int], ...] = ()
    not_port_sets: tuple[str, ...] = ()

    @property
    def all_sets(self) -> Iterator[str]:
        for group in (self.sets, self.port_sets, self.service_sets, self.not_sets, self.not_port_sets):
            yield from group


ANYTHING = Side()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a profile or a policy. Protocols are numbers or lower-case names.

    `ip_version` 0: both. `icmp`: (type, code or None).
    """

    action: RuleAction
    ip_version: int = 0
    protocol: int | str | None = None
    not_protocol: int | str | None = None
    icmp: tuple[int, int | None] | None = None
    not_icmp: tuple[int, int | None] | None = None
    src: Side = ANYTHING
    dst: Side = ANYTHING
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def all_sets(self) -> Iterator[str]:
        yield from self.src.all_sets
        yield from self.dst.all_sets


DENY_ALL = Rule("deny")
ALLOW_ALL = Rule("allow")


@dataclass(frozen=True, slots=True)
class Profile:
    """Rules for traffic to an endpoint (inbound) and from it (outbound)."""

    name: str
    inbound: tuple[Rule, ...] = ()
    outbound: tuple[Rule, ...] = ()


class PolicyId(NamedTuple):
    """`kind` is the API kind; text forms are Calico's (`np/default/web`)."""

    name: str
    namespace: str
    kind: str

    @property
    def text(self) -> str:
        parts = [_SHORT_KINDS.get(self.kind, self.kind.lower()), self.namespace, self.name]
        return "/".join(filter(None, parts))

    @property
    def staged(self) -> bool:
        return self.kind.startswith("Staged")


_SHORT_KINDS = {  # kind -> how it is written in ids
    "NetworkPolicy": "np",
    "GlobalNetworkPolicy": "gnp",
    "StagedNetworkPolicy": "snp",
    "StagedGlobalNetworkPolicy": "sgnp",
    "StagedKubernetesNetworkPolicy": "sknp",
    "KubernetesNetworkPolicy": "knp",
    "KubernetesClusterNetworkPolicy": "kcnp",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """`stage`: where packets meet it; only normal policies ever concern workloads.

    `everywhere`: its chains are to be ready in the kernel before an endpoint here needs them.
    """

    id: PolicyId
    tier: str
    inbound: tuple[Rule, ...] = ()
    outbound: tuple[Rule, ...] = ()
    stage: Stage = "normal"
    everywhere: bool = False


class PolicyRef(NamedTuple):
    """A policy as a tier lists it. `selector`: canonical; neighbours with the same one share a chain."""

    id: PolicyId
    selector: str = ""


@dataclass(frozen=True, slots=True)
class Tier:
    """What one tier holds for one endpoint, in order of evaluation."""

    name: str
    default_pass: bool = False  # what happens when no policy had a say: go on, instead of drop
    ingress: tuple[PolicyRef, ...] = ()
    egress: tuple[PolicyRef, ...] = ()


# --- endpoints ----------------------------------------------------------------------------------


class WorkloadId(NamedTuple):
    """Of two endpoints that claim one interface, the smaller id wins."""

    orchestrator: str
    workload: str  # <namespace>/<name>
    endpoint: str

    def __str__(self) -> str:
        return "/".join(self)


@dataclass(frozen=True, slots=True)
class FloatingIP:
    external: str
    internal: str


@dataclass(frozen=True, slots=True)
class QoS:
    """Limits that rules enforce; 0: none."""

    ingress_packets: int = 0  # per second
    ingress_burst: int = 0
    egress_packets: int = 0
    egress_burst: int = 0
    ingress_connections: int = 0
    egress_connections: int = 0


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A limit of one direction: bit/s and bits, but `min_burst`, of the peak rate, in bytes. 0: none."""

    rate: int = 0
    burst: int = 0
    peak_rate: int = 0
    min_burst: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload endpoint of this node."""

    id: WorkloadId
    interface: str
    nets: tuple[str, ...] = ()  # /32 and /128, in the order given
    mac: str = ""  # of the far end; "" if not known
    profiles: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()
    spoofed_sources: tuple[str, ...] = ()  # prefixes it may send from besides its own
    floating_ips: tuple[FloatingIP, ...] = ()
    qos: QoS | None = None
    ingress: Bandwidth = Bandwidth()
    egress: Bandwidth = Bandwidth()
    dscp: int | None = None  # for what it sends out of the cluster
    migration: MigrationRole = "none"  # its part in a live migration

    def nets_of(self, version: int) -> tuple[str, ...]:
        return tuple(net for net in self.nets if version_of(net) == version)


@dataclass(frozen=True, slots=True)
class HostEndpoint:
    """A host endpoint of this node; `interface` is a name, `*`, or "" when it goes by addresses."""

    name: str
    interface: str = ""
    expected_ips: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()
    untracked_tiers: tuple[Tier, ...] = ()
    pre_dnat_tiers: tuple[Tier, ...] = ()
    forward_tiers: tuple[Tier, ...] = ()


# --- sets, pools, routes ------------------------------------------------------------------------


@dataclass(slots=True)
class Members:
    """The members of one logical IP set, by IP version; only calc changes it."""

    kind: SetKind
    v4: set[str] = field(default_factory=set)
    v6: set[str] = field(default_factory=set)

    def of(self, version: int) -> set[str]:
        return self.v4 if version == 4 else self.v6


@dataclass(frozen=True, slots=True)
class Pool:
    cidr: str
    nat_outgoing: bool = False
    load_balancer_only: bool = False


@dataclass(frozen=True, slots=True)
class Vtep:
    """A node's end of a VXLAN tunnel: the address and MAC of its device, and where the node is reached."""

    address: str
    mac: str
    node_address: str


@dataclass(frozen=True, slots=True)
class BlockRoute:
    """A way to addresses on another node, for pools whose routes are felix's to write.

    `direct`: without a tunnel, because the pool has none or the node is in the own subnet. `vtep`: address
    of the node's end of a VXLAN tunnel, '' while it has none.
    """

    dst: str
    node: str
    gateway: str  # the node's address
    encapsulation: Encapsulation = Encapsulation.NONE
    direct: bool = True
    vtep: str = ""


def version_of(address: str) -> int:
    """4 or 6, of an address or CIDR known to be valid."""
    return 6 if ":" in address else 4
