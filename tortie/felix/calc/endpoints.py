"""Endpoints and network sets of the API as felix sees them. Pure conversions of single objects.

Raises ValidationError for what cannot be enforced; such a workload counts as absent and its traffic is
dropped as that of any unknown interface. (Reference: policy sheet 2.1; felix/calc/validation_filter.go,
updateprocessors/workloadendpointprocessor.go.)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import names
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types import endpoint as v3
from tortie.datastore.types import policy as v3_policy
from tortie.felix.calc import canonical
from tortie.felix.calc.canonical import refuse
from tortie.felix.calc.members import Item
from tortie.felix.calc.model import Bandwidth, FloatingIP, HostEndpoint, QoS, Workload, WorkloadId
from tortie.felix.calc.rules import NAMESPACE, SERVICE_ACCOUNT

_MAX_PACKETS = 10_000  # per second, and at once: XT_LIMIT_SCALE
_MAX_CONNECTIONS = 0xFFFFFFFF  # connlimit counts in 32 bits
_MAX_RATE, _MAX_PEAK = 10**15, 101 * 10**13  # bit/s, Calico's bounds as the two that follow
_MAX_BURST, _MAX_MIN_BURST = 34_359_738_360, 10**8  # bits, bytes
_BURST_BITS = 4 << 30  # Calico's default
_BURST = 5  # packets, the default of Calico and of the limit match
_INHERITED = ("pcns.", "pcsa.")  # labels only a namespace or a service account may give

_DSCP = {"DF": 0, "EF": 46} | {f"AF{x}{y}": 8 * x + 2 * y for x in range(1, 5) for y in range(1, 4)}
_DSCP |= {f"CS{x}": 8 * x for x in range(8)}  # code point name -> value (RFC 2474, 2597, 3246)


# --- workload endpoints -------------------------------------------------------------------------


def workload_id(key: ResourceKey) -> tuple[str, WorkloadId]:
    """(node, id) out of the resource's name `<node>-<orchestrator>-<workload>-<endpoint>`."""
    ids = names.parse_endpoint_name(key.name)
    if ids is None or not key.namespace:
        raise refuse("metadata.name", key.name, "not the name of a workload endpoint")
    (_, node), (_, orchestrator), (_, workload), (_, endpoint) = ids.segments()
    return node, WorkloadId(orchestrator, f"{key.namespace}/{workload}", endpoint)


def workload(ident: WorkloadId, endpoint: v3.WorkloadEndpoint, prefixes: Iterable[str]) -> Workload:
    """A local endpoint. `prefixes` are those of workload interfaces: no other interface is ever touched."""
    spec = endpoint.spec
    name = canonical.interface(spec.interfaceName)
    if not name.startswith(tuple(prefixes)):
        raise refuse("interfaceName", name, "is not the name of a workload interface")
    return Workload(
        ident,
        name,
        _nets(spec.ipNetworks),
        mac=canonical.mac(spec.mac) if spec.mac else "",
        profiles=tuple(spec.profiles),
        spoofed_sources=tuple(
            canonical.cidr(net, "allowSpoofedSourcePrefixes") for net in spec.allowSpoofedSourcePrefixes
        ),
        floating_ips=_floating(spec.ipNATs),
        qos=_qos(spec.qosControls),
        ingress=_bandwidth(spec.qosControls, "ingress"),
        egress=_bandwidth(spec.qosControls, "egress"),
        dscp=_dscp(spec.qosControls),
    )


def permitted(workload: Workload, *, spoofing: bool, floating_ips: bool) -> Workload:
    """An endpoint that may not do what it asks for is refused as a whole, as in Calico; floating addresses
    are merely left out."""
    if workload.spoofed_sources and not spoofing:
        reason = "needs WorkloadSourceSpoofing to be Any"
        raise refuse("allowSpoofedSourcePrefixes", workload.spoofed_sources, reason)
    wanted = floating_ips or workload.id.orchestrator == "openstack"
    return workload if wanted or not workload.floating_ips else replace(workload, floating_ips=())


def _nets(nets: Iterable[str]) -> tuple[str, ...]:
    found = tuple(canonical.cidr(net, "ipNetworks") for net in nets)
    for net in found:
        if not canonical.is_single(net):
            raise refuse("ipNetworks", net, "must be a single address (/32 or /128)")
    return tuple(dict.fromkeys(found))


def _floating(nats: Iterable[v3.IPNAT]) -> tuple[FloatingIP, ...]:
    return tuple(
        FloatingIP(
            canonical.address(nat.externalIP, "externalIP"), canonical.address(nat.internalIP, "internalIP")
        )
        for nat in nats
    )


def _qos(controls: v3.QoSControls | None) -> QoS | None:
    if controls is None:
        return None
    ingress_packets = _limit(controls, "ingressPacketRate", _MAX_PACKETS)
    egress_packets = _limit(controls, "egressPacketRate", _MAX_PACKETS)
    qos = QoS(
        ingress_packets=ingress_packets,
        ingress_burst=ingress_packets and (_limit(controls, "ingressPacketBurst", _MAX_PACKETS) or _BURST),
        egress_packets=egress_packets,
        egress_burst=egress_packets and (_limit(controls, "egressPacketBurst", _MAX_PACKETS) or _BURST),
        ingress_connections=_limit(controls, "ingressMaxConnections", _MAX_CONNECTIONS),
        egress_connections=_limit(controls, "egressMaxConnections", _MAX_CONNECTIONS),
    )
    return None if qos == QoS() else qos


def _bandwidth(controls: v3.QoSControls | None, direction: str) -> Bandwidth:
    """What goes with a rate that is not there is left out, as Calico's conversion of annotations does."""
    if controls is None or not (rate := _limit(controls, f"{direction}Bandwidth", _MAX_RATE)):
        return Bandwidth()
    peak = _limit(controls, f"{direction}Peakrate", _MAX_PEAK)
    if peak and peak <= rate:
        raise refuse(f"qosControls.{direction}Peakrate", peak, "must be more than the bandwidth")
    return Bandwidth(
        rate,
        _limit(controls, f"{direction}Burst", _MAX_BURST) or _BURST_BITS,
        peak,
        _limit(controls, f"{direction}Minburst", _MAX_MIN_BURST) if peak else 0,
    )


def _limit(controls: v3.QoSControls, field: str, most: int) -> int:
    value: int = getattr(controls, field)
    if not 0 <= value <= most:
        raise refuse(f"qosControls.{field}", value, f"must be 0-{most}")
    return value


def _dscp(controls: v3.QoSControls | None) -> int | None:
    if controls is None or controls.dscp is None:
        return None
    value = controls.dscp
    number = _DSCP.get(value.upper(), canonical.small_number(value)) if isinstance(value, str) else value
    if number is None or not 0 <= number <= 63:
        raise refuse("qosControls.dscp", value, "must be 0-63 or the name of a code point")
    return number


def workload_item(namespace: str, endpoint: v3.WorkloadEndpoint) -> Item:
    """The same endpoint, local or not, as selectors see it.

    Its namespace is where it is stored: no label of its own can put it under another namespace's policy.
    """
    spec = endpoint.spec
    labels = {name: value for name, value in endpoint.labels.items() if not name.startswith(_INHERITED)}
    labels[NAMESPACE] = namespace
    if spec.serviceAccountName:
        labels[SERVICE_ACCOUNT] = spec.serviceAccountName
    return Item(
        _nets(spec.ipNetworks),
        tuple(sorted(labels.items())),
        tuple(spec.profiles),
        _named_ports((port.name, port.protocol, port.port) for port in spec.ports if port.name),
    )


def _named_ports(ports: Iterable[tuple[str, int | str, int]]) -> tuple[tuple[str, str, int], ...]:
    """Ports of protocols that have none cannot be in a set and are left out."""
    known = ((name, canonical.PORT_PROTOCOLS.get(_lower(protocol)), port) for name, protocol, port in ports)
    return tuple(
        (name, protocol, port) for name, protocol, port in known if protocol is not None and 0 < port < 65536
    )


def _lower(protocol: int | str) -> int | str:
    if isinstance(protocol, str):
        number = canonical.small_number(protocol)
        return protocol.lower() if number is None else number
    return protocol


# --- host endpoints and network sets ------------------------------------------------------------


_MOST_TOLD = 10  # wrong addresses of one object; the rest is likely wrong in the same way

Faults = tuple[FieldError, ...]


def _legible(
    texts: Iterable[str], field: str, read: Callable[[str, str], str]
) -> tuple[tuple[str, ...], Faults]:
    """What can be read, and what cannot. One address that is wrong takes none of the others along:
    what a list of a thousand is to keep out must not come in for a typing error in one."""
    found: list[str] = []
    wrong: list[FieldError] = []
    for text in texts:
        try:
            found.append(read(text, field))
        except ValidationError as err:
            wrong += err.fields
    return tuple(found), tuple(wrong[:_MOST_TOLD])


def host_endpoint(endpoint: v3.HostEndpoint) -> HostEndpoint:
    """Addresses that cannot be read are left out; host_item() names them."""
    spec = endpoint.spec
    name = spec.interfaceName
    expected, _ = _legible(spec.expectedIPs, "expectedIPs", canonical.address)
    return HostEndpoint(
        endpoint.name,
        name if name in ("", "*") else canonical.interface(name),
        expected,
        tuple(spec.profiles),
    )


def host_item(endpoint: v3.HostEndpoint) -> tuple[Item, Faults]:
    nets, wrong = _legible(endpoint.spec.expectedIPs, "expectedIPs", canonical.cidr)
    item = Item(
        nets,
        tuple(sorted(endpoint.labels.items())),
        tuple(endpoint.spec.profiles),
        _named_ports((port.name, port.protocol, port.port) for port in endpoint.spec.ports),
    )
    return item, wrong


def network_set_item(resource: v3_policy.NetworkSet | v3_policy.GlobalNetworkSet) -> tuple[Item, Faults]:
    """A namespaced set inherits its namespace's labels."""
    labels: Mapping[str, str] = resource.labels
    profiles: tuple[str, ...] = ()
    if resource.namespace:
        labels = {**labels, NAMESPACE: resource.namespace}
        profiles = (f"kns.{resource.namespace}",)
    nets, wrong = _legible(resource.spec.nets, "nets", canonical.cidr)
    return Item(nets, tuple(sorted(labels.items())), profiles), wrong
