"""WorkloadEndpoint, HostEndpoint and LiveMigration."""

from typing import Any

from msgspec import structs

from tortie.core.errors import ValidationError
from tortie.datastore.names import build_endpoint_name, ids_of
from tortie.datastore.types.endpoint import (
    IPNAT,
    HostEndpoint,
    WorkloadEndpoint,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from tortie.datastore.validate.addresses import cidr, ip, ipv4, ipv6, mac, net, parse_cidr_or_ip
from tortie.datastore.validate.fields import Check, Problems, integer, listing, member, struct, text
from tortie.datastore.validate.formats import (
    MAX_NAME,
    canonical_number,
    container_id,
    dscp,
    has_ports,
    interface,
    interface_or_all,
    name,
    port_name,
    port_number,
    selector,
)

# --- WorkloadEndpoint ---------------------------------------------------------------------------


def workload_defaults(endpoint: WorkloadEndpoint) -> WorkloadEndpoint:
    """The computed name where none is given, and the labels that the client forces."""
    spec = endpoint.spec
    labels = endpoint.labels | {
        "projectcalico.org/namespace": endpoint.namespace,
        "projectcalico.org/orchestrator": spec.orchestrator,
    }
    ports = tuple(_canonical(port) for port in spec.ports)
    endpoint = structs.replace(endpoint, spec=structs.replace(spec, ports=ports))
    return endpoint.with_metadata(labels=labels, name=endpoint.name or _computed_name(endpoint))


def _canonical(port: WorkloadEndpointPort) -> WorkloadEndpointPort:
    return structs.replace(port, protocol=canonical_number(port.protocol))


def _computed_name(endpoint: WorkloadEndpoint) -> str:
    try:
        return build_endpoint_name(ids_of(endpoint))
    except ValidationError:  # the check names the identifiers that are missing
        return ""


def _check_endpoint_name(problems: Problems, _path: str, endpoint: WorkloadEndpoint) -> None:
    try:
        expected = build_endpoint_name(ids_of(endpoint))
    except ValidationError as err:
        for wrong in err.fields:
            problems.add(f"spec.{wrong.field}", wrong.value, wrong.reason)
        return
    if endpoint.name != expected:
        problems.add(
            "Name", endpoint.name,
            "the WorkloadEndpoint name does not match the primary identifiers assigned in the Spec: "
            f"expected name {expected}",
        )  # fmt: skip


def _single_addresses(problems: Problems, path: str, spec: WorkloadEndpointSpec) -> None:
    for index, value in enumerate(spec.ipNetworks):
        parsed = parse_cidr_or_ip(value)
        if parsed is not None and parsed[1].num_addresses != 1:
            problems.add(f"{path}.ipNetworks[{index}]", value, "IP network contains multiple addresses")


def _nat_within_networks(problems: Problems, path: str, spec: WorkloadEndpointSpec) -> None:
    networks = [parsed[1] for value in spec.ipNetworks if (parsed := parse_cidr_or_ip(value))]
    for index, nat in enumerate(spec.ipNATs):
        internal = parse_cidr_or_ip(nat.internalIP)
        if internal and not any(internal[0] in network for network in networks):
            where = f"{path}.ipNATs[{index}].internalIP"
            problems.add(where, nat.internalIP, "NAT is not in the endpoint networks")


def _same_family(problems: Problems, path: str, nat: IPNAT) -> None:
    internal, external = parse_cidr_or_ip(nat.internalIP), parse_cidr_or_ip(nat.externalIP)
    if internal and external and internal[0].version != external[0].version:
        problems.add(f"{path}.externalIP", nat.externalIP, "mismatched IP versions")


def _carries_ports(problems: Problems, path: str, value: Any) -> None:
    if not has_ports(value):
        problems.add(path, value, "protocol does not support ports")


def _named_unless_mapped(problems: Problems, path: str, port: WorkloadEndpointPort) -> None:
    if not port.name and not port.hostPort:
        problems.add(
            f"{path}.name", "", "WorkloadEndpointPort name must not be empty if no HostPort is specified"
        )


_workload_port = struct(
    {
        "name": port_name,
        "protocol": _carries_ports,
        "port": port_number,
        "hostPort": integer(0, 65535),
        "hostIP": net,
    },
    _named_unless_mapped,
    required=("protocol",),
)
_qos = struct(
    {
        f"{direction}{limit}": integer(0)
        for direction in ("ingress", "egress")
        for limit in (
            "Bandwidth", "Burst", "Peakrate", "Minburst", "PacketRate", "PacketBurst", "MaxConnections"
        )
    }
    | {"dscp": dscp}
)  # fmt: skip

workload: Check = struct(
    {
        "spec": struct(
            {
                "orchestrator": name,
                "workload": name,
                "node": name,
                "containerID": container_id,
                "pod": name,
                "endpoint": name,
                "serviceAccountName": name,
                "ipNetworks": listing(net),
                "ipNATs": listing(
                    struct(
                        {"internalIP": ip, "externalIP": ip},
                        _same_family,
                        required=("internalIP", "externalIP"),
                    )
                ),
                "ipv4Gateway": ipv4,
                "ipv6Gateway": ipv6,
                "profiles": listing(name),
                "interfaceName": interface,
                "mac": mac,
                "ports": listing(_workload_port),
                "allowSpoofedSourcePrefixes": listing(cidr),
                "qosControls": _qos,
            },
            _single_addresses,
            _nat_within_networks,
            required=("interfaceName",),
        )
    },
    _check_endpoint_name,
)

# --- HostEndpoint -------------------------------------------------------------------------------


def host_defaults(endpoint: HostEndpoint) -> HostEndpoint:
    ports = tuple(
        structs.replace(port, protocol=canonical_number(port.protocol)) for port in endpoint.spec.ports
    )
    return structs.replace(endpoint, spec=structs.replace(endpoint.spec, ports=ports))


def _host_rules(problems: Problems, path: str, spec: Any) -> None:
    if not spec.interfaceName and not spec.expectedIPs:
        reason = "at least one of interfaceName or expectedIPs must be specified"
        problems.add(f"{path}.interfaceName", None, reason)
    if not spec.node:
        problems.add(f"{path}.node", None, "node must be specified")


_host_port = struct({"name": port_name, "protocol": _carries_ports, "port": port_number}, required=("name",))

host: Check = struct(
    {
        "spec": struct(
            {
                "node": name,
                "interfaceName": interface_or_all,
                "expectedIPs": listing(ip, unique=True),
                "profiles": listing(name, unique=True),
                "ports": listing(_host_port),
            },
            _host_rules,
        )
    }
)

# --- LiveMigration ------------------------------------------------------------------------------

_line = text(MAX_NAME)
_workload_id = {"hostname": name, "orchestratorID": name, "workloadID": _line}


def _exactly_one(*choices: str) -> Check:
    def check(problems: Problems, path: str, value: Any) -> None:
        if sum(member(value, choice) is not None for choice in choices) != 1:
            problems.add(path, None, "exactly one of the fields in [" + " ".join(choices) + "] must be set")

    return check


_endpoint_id = struct(_workload_id | {"endpointID": _line})
migration: Check = struct(
    {
        "spec": struct(
            {
                "source": struct(
                    {"workload": struct(_workload_id), "workloadEndpoint": _endpoint_id},
                    _exactly_one("workload", "workloadEndpoint"),
                ),
                "target": struct(
                    {"selector": selector, "workloadEndpoint": _endpoint_id},
                    _exactly_one("selector", "workloadEndpoint"),
                ),
            }
        )
    }
)
