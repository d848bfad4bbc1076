"""Nodes and settings as BGP sees them, made from a snapshot once, so that nothing below reads resources.

A wrong value in one object costs that object its part and is noted in `problems`; it never stops the
rest (values were validated on the way in, but old data and other writers exist). Pure.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from tortie.bgp.prefix import Version, network, number
from tortie.bgp.route import NORMAL_METRIC
from tortie.confd.snapshot import Snapshot
from tortie.core.duration import parse_duration
from tortie.core.errors import ConfigError
from tortie.datastore.types.bgp import BGPConfigurationSpec
from tortie.datastore.types.node import Node

DEFAULT_AS = 64512  # Calico's
DEFAULT_NAME = "default"  # of the one cluster-wide resource of a configuration kind


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node: `addresses` version -> address, `subnets` version -> address/length as configured."""

    name: str
    as_number: int | None  # None: the cluster's
    cluster_id: str
    addresses: Mapping[Version, str]
    subnets: Mapping[Version, str]
    labels: Mapping[str, str]
    listen_port: int | None  # of its own BGPConfiguration
    wireguard: frozenset[Version]  # families in which others reach it by WireGuard


@dataclass(frozen=True, slots=True)
class Settings:
    """BGPConfiguration `default`, and of `node.<name>` what counts there (reference: BGP facts, 1.2)."""

    as_number: int = DEFAULT_AS
    mesh: bool = True
    mesh_restart_time: int | None = None  # seconds
    mesh_password: tuple[str, str] | None = None  # Secret, key
    listen_port: int | None = None  # this node's, else the cluster's
    cluster_listen_port: int | None = None
    bind_to_node: bool = False
    log_severity: str = "info"
    program_cluster_routes: str | None = None
    ignored_interfaces: tuple[str, ...] = ()
    local_peering: Mapping[Version, str] = field(default_factory=dict)  # what workloads dial
    normal_metrics: Mapping[Version, int] = field(
        default_factory=lambda: {4: NORMAL_METRIC, 6: NORMAL_METRIC}
    )


@dataclass(frozen=True, slots=True)
class Cluster:
    me: NodeView
    router_id: str
    nodes: Mapping[str, NodeView]  # name -> node, this one included
    settings: Settings


def view(snapshot: Snapshot, node: str, router_id: str, problems: list[str]) -> Cluster:
    """`router_id` is CALICO_ROUTER_ID: "", `hash` or an address.

    Raises ConfigError if this node does not exist or has no router ID: nothing can be rendered then.
    """
    if node not in snapshot.nodes:
        raise ConfigError("NODENAME", node, "there is no such node in the datastore")
    claims = Counter(key for one in snapshot.nodes.values() for key in _keys(one).values())
    nodes = {name: _node(one, snapshot, claims, problems) for name, one in sorted(snapshot.nodes.items())}
    me = nodes[node]
    return Cluster(me, _router_id(me, router_id), nodes, _settings(snapshot, node, problems))


def _keys(node: Node) -> dict[Version, str]:
    found: dict[Version, str] = {4: node.status.wireguardPublicKey, 6: node.status.wireguardPublicKeyV6}
    return {version: key for version, key in found.items() if key}


def _node(node: Node, snapshot: Snapshot, claims: Mapping[str, int], problems: list[str]) -> NodeView:
    bgp, wireguard, keys = node.spec.bgp, node.spec.wireguard, _keys(node)
    addresses: dict[Version, str] = {}
    subnets: dict[Version, str] = {}
    given: dict[Version, str] = {4: bgp.ipv4Address, 6: bgp.ipv6Address} if bgp else {}
    for version, text in given.items():
        try:
            if text:
                address, subnet = _address(text, version)
                addresses[version], subnets[version] = address, subnet
        except ValueError as err:
            problems.append(f"Node {node.name}: spec.bgp: {err}")
    own = snapshot.bgp.get(f"node.{node.name}")
    tunnels: dict[Version, str] = {}
    if wireguard:
        tunnels = {4: wireguard.interfaceIPv4Address, 6: wireguard.interfaceIPv6Address}
    return NodeView(
        name=node.name,
        as_number=int(bgp.asNumber) if bgp and bgp.asNumber is not None else None,
        cluster_id=_cluster_id(node, problems),
        addresses=addresses,
        subnets=subnets,
        labels=node.labels,
        listen_port=(own.spec.listenPort or None) if own else None,
        wireguard=frozenset(
            version
            for version, address in tunnels.items()
            if address and claims.get(keys.get(version, ""), 0) <= 1
        ),
    )


def _address(text: str, version: Version) -> tuple[str, str]:
    """Address and subnet of `address/length`, in canonical form. Raises ValueError."""
    address, subnet = network(text.partition("/")[0]), network(text)
    if address.version != version:
        raise ValueError(f"{text!r} is not IPv{version}")
    return str(address).partition("/")[0], str(subnet)


def _cluster_id(node: Node, problems: list[str]) -> str:
    given = node.spec.bgp.routeReflectorClusterID if node.spec.bgp else ""
    if not given:
        return ""
    try:
        if number(given)[0] == 4:
            return given
    except ValueError:
        pass
    problems.append(f"Node {node.name}: spec.bgp.routeReflectorClusterID = {given!r}: not an IPv4 address")
    return ""


def _router_id(me: NodeView, given: str) -> str:
    """CALICO_ROUTER_ID, else the IPv4 address; a node without one gets the hash without being asked."""
    if given and given != "hash":
        try:
            if number(given)[0] == 4:
                return given
        except ValueError:
            pass
        raise ConfigError("CALICO_ROUTER_ID", given, "expected `hash` or an IPv4 address")
    if not given and 4 in me.addresses:
        return me.addresses[4]
    digest = sha256(me.name.encode()).digest()
    first = digest[0] - 32 if digest[0] > 223 else digest[0]  # Calico's: no multicast address
    return ".".join(map(str, (first, *digest[1:4])))


def _settings(snapshot: Snapshot, node: str, problems: list[str]) -> Settings:
    default, own = snapshot.bgp.get(DEFAULT_NAME), snapshot.bgp.get(f"node.{node}")
    spec = default.spec if default else BGPConfigurationSpec()
    password = spec.nodeMeshPassword.secretKeyRef if spec.nodeMeshPassword else None
    restart_time = None
    if spec.nodeMeshMaxRestartTime is not None:
        restart_time = seconds(
            spec.nodeMeshMaxRestartTime, f"BGPConfiguration {DEFAULT_NAME}: nodeMeshMaxRestartTime", problems
        )
    severity = (own.spec.logSeverityScreen if own else "") or spec.logSeverityScreen
    return Settings(
        as_number=DEFAULT_AS if spec.asNumber is None else int(spec.asNumber),
        mesh=spec.nodeToNodeMeshEnabled is not False,
        mesh_restart_time=restart_time,
        mesh_password=(password.name, password.key) if password else None,
        listen_port=(own.spec.listenPort if own else 0) or spec.listenPort or None,
        cluster_listen_port=spec.listenPort or None,
        bind_to_node=spec.bindMode == "NodeIP",
        log_severity=severity or "info",
        program_cluster_routes=spec.programClusterRoutes,
        ignored_interfaces=spec.ignoredInterfaces,
        local_peering=_local_peering(spec, problems),
        normal_metrics={
            4: spec.ipv4NormalRoutePriority or NORMAL_METRIC,
            6: spec.ipv6NormalRoutePriority or NORMAL_METRIC,
        },
    )


def _local_peering(spec: BGPConfigurationSpec, problems: list[str]) -> dict[Version, str]:
    given: dict[Version, str] = {4: spec.localWorkloadPeeringIPV4, 6: spec.localWorkloadPeeringIPV6}
    found: dict[Version, str] = {}
    for version, text in given.items():
        try:
            if text and number(text)[0] == version:
                found[version] = str(network(text)).partition("/")[0]
                continue
        except ValueError:
            pass
        if text:
            where = f"BGPConfiguration {DEFAULT_NAME}: localWorkloadPeeringIPV{version}"
            problems.append(f"{where} = {text!r}: not an IPv{version} address")
    return found


def seconds(text: str, where: str, problems: list[str]) -> int | None:
    """A Go duration rounded to whole seconds; None, with a note, if it is none."""
    try:
        return max(0, round(parse_duration(text)))
    except ValueError as err:
        problems.append(f"{where} = {text!r}: {err}")
        return None
