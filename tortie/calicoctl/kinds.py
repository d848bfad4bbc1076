"""Which kinds calicoctl manages: their aliases, the columns of their tables, and what stands in each cell.

(Reference: CLI, 2.1.) Cells are text as Go prints it; the printer makes them safe for a terminal.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.gonumber import format_float
from tortie.datastore.kinds import KINDS, Kind
from tortie.datastore.types.meta import Resource

Cell = Callable[[Any], str]

_LONG_LIST = 80  # characters of a cell of networks
CLUSTER_AS = "(cluster)"  # stands in a cell until the table is printed: the printer knows the number


@dataclass(frozen=True, slots=True)
class Managed:
    kind: Kind
    aliases: tuple[str, ...]
    columns: tuple[str, ...]
    wide: tuple[str, ...]
    cells: Mapping[str, Cell]  # heading -> the cell of a resource

    @property
    def type(self) -> type[Resource]:
        return self.kind.type

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def namespaced(self) -> bool:
        return self.kind.namespaced


def _name(resource: Resource) -> str:
    return resource.metadata.name


def _joined(items: Iterable[object]) -> str:
    return ",".join(map(str, items))


def _cut(items: Iterable[object]) -> str:
    text = _joined(items)
    return text if len(text) <= _LONG_LIST else text[: _LONG_LIST - 3] + "..."


def _bool(value: bool | None) -> str:
    return "<nil>" if value is None else "true" if value else "false"


def _order(resource: Any) -> str:
    order = resource.spec.order
    return "<nil>" if order is None else format_float(float(order))


def _selector(resource: Any) -> str:
    return str(resource.spec.selector)


def _tier(resource: Any) -> str:
    return str(resource.spec.tier)


def _peer_node(peer: Any) -> str:
    return peer.spec.node or peer.spec.nodeSelector or "(global)"


def _node_as(node: Any) -> str:
    if node.spec.bgp is None:
        return ""
    return str(int(node.spec.bgp.asNumber)) if node.spec.bgp.asNumber else CLUSTER_AS


def _nats(endpoint: Any) -> str:
    return _joined(f"{{{nat.internalIP} {nat.externalIP}}}" for nat in endpoint.spec.ipNATs)


def _label_selector(policy: Any) -> str:
    """A Kubernetes label selector as its Go type prints itself."""
    given = policy.spec.podSelector
    pairs = "".join(f"{key}: {value}," for key, value in sorted(given.matchLabels.items()))
    expressions = "".join(
        f"LabelSelectorRequirement{{Key:{e.key},Operator:{e.operator},Values:[{' '.join(e.values)}],}},"
        for e in given.matchExpressions
    )
    return (
        f"&LabelSelector{{MatchLabels:map[string]string{{{pairs}}},"
        f"MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )


def _managed(kind: str, short: str, columns: str, wide: str, cells: Mapping[str, Cell]) -> Managed:
    """`short` are the aliases besides the kind's singular and plural."""
    row = KINDS[kind]
    named: dict[str, Cell] = {"NAME": _name, **cells}
    if row.namespaced:
        named["NAMESPACE"] = lambda resource: resource.metadata.namespace
    aliases = (kind.lower(), row.plural, *short.split())
    return Managed(row, aliases, tuple(columns.split()), tuple(wide.split()) or tuple(columns.split()), named)


_POLICY: dict[str, Cell] = {"TIER": _tier, "ORDER": _order, "SELECTOR": _selector}
_NAME_TIER, _POLICY_WIDE = "NAME TIER", "NAME TIER ORDER SELECTOR"

_ALL = [
    _managed("BGPConfiguration", "bgpconfig bgpconfigs", "NAME LOGSEVERITY MESHENABLED ASNUMBER", "", {
        "LOGSEVERITY": lambda r: r.spec.logSeverityScreen,
        "MESHENABLED": lambda r: "-" if (on := r.spec.nodeToNodeMeshEnabled) is None else _bool(on),
        "ASNUMBER": lambda r: "-" if r.spec.asNumber is None else str(int(r.spec.asNumber)),
    }),
    _managed("BGPFilter", "bgpf bgpfs bf bfs", "NAME NUMEXPORTV4 NUMIMPORTV4 NUMEXPORTV6 NUMIMPORTV6", "", {
        "NUMEXPORTV4": lambda r: str(len(r.spec.exportV4)),
        "NUMIMPORTV4": lambda r: str(len(r.spec.importV4)),
        "NUMEXPORTV6": lambda r: str(len(r.spec.exportV6)),
        "NUMIMPORTV6": lambda r: str(len(r.spec.importV6)),
    }),
    _managed("BGPPeer", "bgpp bgpps bp bps", "NAME PEERIP NODE ASN", "", {
        "PEERIP": lambda r: r.spec.peerIP,
        "NODE": _peer_node,
        "ASN": lambda r: str(int(r.spec.asNumber)),
    }),
    _managed("CalicoNodeStatus", "nodestatus nodestatuses", "NAME NODE", "NAME NODE CLASSES", {
        "NODE": lambda r: r.spec.node,
        "CLASSES": lambda r: _joined(r.spec.classes),
    }),
    _managed("ClusterInformation", "clusterinfo clusterinfos",
             "NAME CLUSTERGUID CLUSTERTYPE CALICOVERSION DATASTOREREADY", "", {
        "CLUSTERGUID": lambda r: r.spec.clusterGUID,
        "CLUSTERTYPE": lambda r: r.spec.clusterType,
        "CALICOVERSION": lambda r: r.spec.calicoVersion,
        "DATASTOREREADY": lambda r: _bool(r.spec.datastoreReady),
    }),
    _managed("FelixConfiguration", "felixconfig felixconfigs", "NAME", "", {}),
    _managed("GlobalNetworkPolicy", "gnp gnps", _NAME_TIER, _POLICY_WIDE, _POLICY),
    _managed("GlobalNetworkSet", "gnetsets", "NAME", "NAME NETS", {"NETS": lambda r: _cut(r.spec.nets)}),
    _managed("HostEndpoint", "hep heps", "NAME NODE", "NAME NODE INTERFACE IPS PROFILES", {
        "NODE": lambda r: r.spec.node,
        "INTERFACE": lambda r: r.spec.interfaceName,
        "IPS": lambda r: _joined(r.spec.expectedIPs),
        "PROFILES": lambda r: _joined(r.spec.profiles),
    }),
    _managed("IPAMConfiguration", "ipamconfig ipamconfigs", "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS",
             "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS MAXBLOCKSPERHOST", {
        "STRICTAFFINITY": lambda r: _bool(r.spec.strictAffinity),
        "AUTOALLOCATEBLOCKS": lambda r: _bool(r.spec.autoAllocateBlocks),
        "MAXBLOCKSPERHOST": lambda r: str(r.spec.maxBlocksPerHost or 0),
    }),
    _managed("IPPool", "ipp ipps pool pools", "NAME CIDR SELECTOR",
             "NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE", {
        "CIDR": lambda r: r.spec.cidr,
        "NAT": lambda r: _bool(r.spec.natOutgoing),
        "IPIPMODE": lambda r: r.spec.ipipMode or "Never",
        "VXLANMODE": lambda r: r.spec.vxlanMode or "Never",
        "DISABLED": lambda r: _bool(r.spec.disabled),
        "DISABLEBGPEXPORT": lambda r: _bool(r.spec.disableBGPExport),
        "SELECTOR": lambda r: r.spec.nodeSelector,
        "ASSIGNMENTMODE": lambda r: "<nil>" if r.spec.assignmentMode is None else r.spec.assignmentMode,
    }),
    _managed("IPReservation", "reservation reservations", "NAME", "NAME CIDRS", {
        "CIDRS": lambda r: _cut(r.spec.reservedCIDRs),
    }),
    _managed("KubeControllersConfiguration", "kubecontrollersconfig kubecontrollersconfigs", "NAME", "", {}),
    _managed("NetworkPolicy", "policy np policies pol pols", _NAME_TIER, _POLICY_WIDE, _POLICY),
    _managed("NetworkSet", "netsets", "NAME", "NAME NETS", {"NETS": lambda r: _cut(r.spec.nets)}),
    _managed("Node", "no nos", "NAME", "NAME ASN IPV4 IPV6", {
        "ASN": _node_as,
        "IPV4": lambda r: r.spec.bgp.ipv4Address if r.spec.bgp else "",
        "IPV6": lambda r: r.spec.bgp.ipv6Address if r.spec.bgp else "",
    }),
    _managed("Profile", "pro pros", "NAME", "NAME LABELS", {
        "LABELS": lambda r: _joined(sorted(f"{key}={value}" for key, value in r.spec.labelsToApply.items())),
    }),
    _managed("StagedGlobalNetworkPolicy", "sgnp sgnps", _NAME_TIER, _POLICY_WIDE, _POLICY),
    _managed("StagedKubernetesNetworkPolicy",
             "stagedkubernetespolicy sknp stagedkubernetespolicies skpol skpols", "NAME",
             "NAME PODSELECTOR", {"PODSELECTOR": _label_selector}),
    _managed("StagedNetworkPolicy", "stagedpolicy snp stagedpolicies spol spols",
             _NAME_TIER, _POLICY_WIDE, _POLICY),
    _managed("Tier", "", "NAME ORDER", "", {"ORDER": _order}),
    _managed("WorkloadEndpoint", "wep weps", "WORKLOAD NODE NETWORKS INTERFACE",
             "NAME WORKLOAD NODE NETWORKS INTERFACE PROFILES NATS", {
        "NODE": lambda r: r.spec.node,
        "ORCHESTRATOR": lambda r: r.spec.orchestrator,
        "WORKLOAD": lambda r: r.spec.workload or r.spec.pod,
        "NETWORKS": lambda r: _joined(r.spec.ipNetworks),
        "NATS": _nats,
        "PROFILES": lambda r: _joined(r.spec.profiles),
        "INTERFACE": lambda r: r.spec.interfaceName,
    }),
]  # fmt: skip

MANAGED: dict[str, Managed] = {managed.name: managed for managed in _ALL}  # kind name -> its row
_BY_ALIAS = {alias: managed for managed in _ALL for alias in managed.aliases}


def by_alias(word: str) -> Managed:
    """Raises CommandError for a word that names no kind."""
    if (managed := _BY_ALIAS.get(word.lower())) is None:
        raise CommandError(f"resource type '{word}' is not supported")
    return managed


def of(resource: Resource) -> Managed:
    return MANAGED[resource.KIND]
