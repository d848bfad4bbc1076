"""Policies, their staged forms, tiers, profiles and network sets."""

from msgspec import UNSET, UnsetType, field, structs

from tortie.datastore.types.meta import Condition, Resource, Spec


class ICMPFields(Spec, frozen=True, kw_only=True):
    type: int | None = None
    code: int | None = None


class ServiceMatch(Spec, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""


class ServiceAccountMatch(Spec, frozen=True, kw_only=True):
    names: tuple[str, ...] = ()
    selector: str = ""


class EntityRule(Spec, frozen=True, kw_only=True):
    """One side of a rule; all criteria given must hold, lists are alternatives."""

    nets: tuple[str, ...] = ()
    selector: str = ""
    namespaceSelector: str = ""
    services: ServiceMatch | None = None
    ports: tuple[int | str, ...] = ()  # number, "min:max" or a port name
    notNets: tuple[str, ...] = ()
    notSelector: str = ""
    notPorts: tuple[int | str, ...] = ()
    serviceAccounts: ServiceAccountMatch | None = None


_ANYTHING = EntityRule()  # a side without criteria


class HTTPPath(Spec, frozen=True, kw_only=True):
    exact: str = ""
    prefix: str = ""


class HTTPMatch(Spec, frozen=True, kw_only=True):
    methods: tuple[str, ...] = ()
    paths: tuple[HTTPPath, ...] = ()


class RuleMetadata(Spec, frozen=True, kw_only=True):
    annotations: dict[str, str] = {}


class Rule(Spec, frozen=True, kw_only=True):
    action: str  # Allow | Deny | Log | Pass
    ipVersion: int | None = None
    protocol: int | str | None = None
    icmp: ICMPFields | None = None
    notProtocol: int | str | None = None
    notICMP: ICMPFields | None = None
    source: EntityRule = _ANYTHING
    destination: EntityRule = _ANYTHING
    http: HTTPMatch | None = None
    metadata: RuleMetadata | None = None

    def __post_init__(self) -> None:
        """An empty side is not written, as by Calico; msgspec itself leaves out only the very default."""
        for side in ("source", "destination"):
            if getattr(self, side) == _ANYTHING:
                structs.force_setattr(self, side, _ANYTHING)


class NetworkPolicySpec(Spec, frozen=True, kw_only=True):
    tier: str = ""
    order: int | float | None = None  # None: after all numbers
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    selector: str = ""
    types: tuple[str, ...] = ()
    serviceAccountSelector: str = ""
    performanceHints: tuple[str, ...] = ()


class NetworkPolicy(Resource, frozen=True, kw_only=True, tag="NetworkPolicy"):
    spec: NetworkPolicySpec = NetworkPolicySpec()


class GlobalNetworkPolicySpec(Spec, frozen=True, kw_only=True):
    tier: str = ""
    order: int | float | None = None
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    selector: str = ""
    types: tuple[str, ...] = ()
    doNotTrack: bool = False
    preDNAT: bool = False
    applyOnForward: bool = False
    serviceAccountSelector: str = ""
    namespaceSelector: str = ""
    performanceHints: tuple[str, ...] = ()


class GlobalNetworkPolicy(Resource, frozen=True, kw_only=True, tag="GlobalNetworkPolicy"):
    spec: GlobalNetworkPolicySpec = GlobalNetworkPolicySpec()


class StagedNetworkPolicySpec(Spec, frozen=True, kw_only=True):
    stagedAction: str = ""  # Set | Delete | Learn | Ignore
    tier: str = ""
    order: int | float | None = None
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    selector: str = ""
    types: tuple[str, ...] = ()
    serviceAccountSelector: str = ""
    performanceHints: tuple[str, ...] = ()


class StagedNetworkPolicy(Resource, frozen=True, kw_only=True, tag="StagedNetworkPolicy"):
    spec: StagedNetworkPolicySpec = StagedNetworkPolicySpec()


class StagedGlobalNetworkPolicySpec(Spec, frozen=True, kw_only=True):
    stagedAction: str = ""
    tier: str = ""
    order: int | float | None = None
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    selector: str = ""
    types: tuple[str, ...] = ()
    doNotTrack: bool = False
    preDNAT: bool = False
    applyOnForward: bool = False
    serviceAccountSelector: str = ""
    namespaceSelector: str = ""
    performanceHints: tuple[str, ...] = ()


class StagedGlobalNetworkPolicy(Resource, frozen=True, kw_only=True, tag="StagedGlobalNetworkPolicy"):
    spec: StagedGlobalNetworkPolicySpec = StagedGlobalNetworkPolicySpec()


class LabelSelectorRequirement(Spec, frozen=True, kw_only=True):
    key: str = ""
    operator: str = ""  # In | NotIn | Exists | DoesNotExist
    values: tuple[str, ...] = ()


class LabelSelector(Spec, frozen=True, kw_only=True):
    """Kubernetes' own; all terms must hold, none at all selects everything."""

    matchLabels: dict[str, str] = {}
    matchExpressions: tuple[LabelSelectorRequirement, ...] = ()


class IPBlock(Spec, frozen=True, kw_only=True):
    cidr: str = ""
    except_: tuple[str, ...] = field(default=(), name="except")


class KubernetesPeer(Spec, frozen=True, kw_only=True):
    podSelector: LabelSelector | None = None
    namespaceSelector: LabelSelector | None = None
    ipBlock: IPBlock | None = None


class KubernetesPort(Spec, frozen=True, kw_only=True):
    protocol: str | None = None
    port: int | str | None = None
    endPort: int | None = None


class KubernetesIngress(Spec, frozen=True, kw_only=True):
    ports: tuple[KubernetesPort, ...] = ()
    from_: tuple[KubernetesPeer, ...] = field(default=(), name="from")


class KubernetesEgress(Spec, frozen=True, kw_only=True):
    ports: tuple[KubernetesPort, ...] = ()
    to: tuple[KubernetesPeer, ...] = ()


class StagedKubernetesNetworkPolicySpec(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """stagedAction plus the fields of Kubernetes' NetworkPolicySpec, whose podSelector is always written."""

    stagedAction: str | UnsetType = UNSET
    podSelector: LabelSelector = LabelSelector()
    ingress: tuple[KubernetesIngress, ...] | UnsetType = UNSET
    egress: tuple[KubernetesEgress, ...] | UnsetType = UNSET
    policyTypes: tuple[str, ...] | UnsetType = UNSET


class StagedKubernetesNetworkPolicy(Resource, frozen=True, kw_only=True, tag="StagedKubernetesNetworkPolicy"):
    spec: StagedKubernetesNetworkPolicySpec = StagedKubernetesNetworkPolicySpec()


class TierSpec(Spec, frozen=True, kw_only=True):
    order: int | float | None = None
    defaultAction: str | None = None  # Deny | Pass; None: Deny


class TierStatus(Spec, frozen=True, kw_only=True):
    conditions: tuple[Condition, ...] = ()


class Tier(Resource, frozen=True, kw_only=True, tag="Tier"):
    spec: TierSpec = TierSpec()
    status: TierStatus = TierStatus()


class ProfileSpec(Spec, frozen=True, kw_only=True):
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    labelsToApply: dict[str, str] = {}


class Profile(Resource, frozen=True, kw_only=True, tag="Profile"):
    spec: ProfileSpec = ProfileSpec()


class NetworkSetSpec(Spec, frozen=True, kw_only=True):
    nets: tuple[str, ...] = ()


class NetworkSet(Resource, frozen=True, kw_only=True, tag="NetworkSet"):
    spec: NetworkSetSpec = NetworkSetSpec()


class GlobalNetworkSetSpec(Spec, frozen=True, kw_only=True):
    nets: tuple[str, ...] = ()


class GlobalNetworkSet(Resource, frozen=True, kw_only=True, tag="GlobalNetworkSet"):
    spec: GlobalNetworkSetSpec = GlobalNetworkSetSpec()
