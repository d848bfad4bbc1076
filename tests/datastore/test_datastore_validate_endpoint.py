"""Node, CalicoNodeStatus, WorkloadEndpoint, HostEndpoint and LiveMigration."""

from typing import Any

import pytest

from tests.support.resources import problems, resource
from tortie.datastore import validate

pytestmark = pytest.mark.unit

KEY = "jlkVyQYooZYzI2wFfNhSZez5eWh44yfq1wKVjLvSXgY="  # 32 bytes
# --- Node ---------------------------------------------------------------------------------------


def test_a_whole_node() -> None:
    spec = {
        "bgp": {
            "asNumber": "1.10", "ipv4Address": "192.0.2.11/24", "ipv6Address": "fd00::b/64",
            "ipv4IPIPTunnelAddr": "10.1.0.1", "routeReflectorClusterID": "244.0.0.1",
        },
        "ipv4VXLANTunnelAddr": "10.1.0.2", "vxlanTunnelMACAddr": "66:00:00:00:00:01",
        "ipv6VXLANTunnelAddr": "fd00:1::2", "vxlanTunnelMACAddrV6": "66-00-00-00-00-02",
        "orchRefs": [{"nodeName": "Node-1.example", "orchestrator": "k8s"}],
        "wireguard": {"interfaceIPv4Address": "10.1.0.3", "interfaceIPv6Address": "fd00:1::3"},
        "addresses": [{"address": "192.0.2.11", "type": "InternalIP"}, {"address": "192.0.2.11/32"}],
        "interfaces": [{"name": "bond0.100", "addresses": ["192.0.2.11/24"]}, {"name": "eth0@x"}],
    }  # fmt: skip
    status = {"wireguardPublicKey": KEY, "podCIDRs": ["10.1.0.0/24"]}
    assert problems("Node", spec, status=status) == {}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"bgp": {}}, "spec.bgp"),
        ({"bgp": {"ipv4Address": "fd00::b/64"}}, "spec.bgp.ipv4Address"),
        ({"bgp": {"ipv4Address": "192.0.2.11/24\n"}}, "spec.bgp.ipv4Address"),
        ({"bgp": {"ipv4Address": "192.0.2.11/24; }"}}, "spec.bgp.ipv4Address"),
        ({"bgp": {"ipv6Address": "192.0.2.11"}}, "spec.bgp.ipv6Address"),
        ({"bgp": {"ipv4IPIPTunnelAddr": "10.0.0.0/8"}}, "spec.bgp.ipv4IPIPTunnelAddr"),
        ({"bgp": {"routeReflectorClusterID": "1"}}, "spec.bgp.routeReflectorClusterID"),
        ({"ipv4VXLANTunnelAddr": "fd00::1"}, "spec.ipv4VXLANTunnelAddr"),
        ({"ipv6VXLANTunnelAddr": "10.0.0.1"}, "spec.ipv6VXLANTunnelAddr"),
        ({"vxlanTunnelMACAddr": "66:00"}, "spec.vxlanTunnelMACAddr"),
        ({"vxlanTunnelMACAddrV6": "66:00:00:00:00:0g"}, "spec.vxlanTunnelMACAddrV6"),
        ({"wireguard": {"interfaceIPv4Address": "x"}}, "spec.wireguard.interfaceIPv4Address"),
        ({"wireguard": {"interfaceIPv6Address": "10.0.0.1"}}, "spec.wireguard.interfaceIPv6Address"),
        ({"addresses": [{"address": "host"}]}, "spec.addresses[0].address"),
        ({"addresses": [{"address": ""}]}, "spec.addresses[0].address"),
        ({"addresses": [{"address": "10.0.0.1", "type": "Other"}]}, "spec.addresses[0].type"),
        ({"interfaces": [{"name": "a b"}]}, "spec.interfaces[0].name"),
        ({"interfaces": [{"name": "a/b"}]}, "spec.interfaces[0].name"),
        ({"interfaces": [{"addresses": ["x"]}]}, "spec.interfaces[0].addresses[0]"),
        ({"orchRefs": [{"nodeName": "a\nb"}]}, "spec.orchRefs[0].nodeName"),
    ],
)
def test_nodes_that_are_refused(spec: dict[str, Any], field: str) -> None:
    assert list(problems("Node", spec)) == [field]


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "=", "AAAA", KEY[:-2] + "*=", KEY + "\n", "é"])
def test_wireguard_keys(key: str) -> None:
    assert list(problems("Node", status={"wireguardPublicKey": key})) == ["status.wireguardPublicKey"]
    assert list(problems("Node", status={"wireguardPublicKeyV6": key})) == ["status.wireguardPublicKeyV6"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, None),
        ({"updatePeriodSeconds": 0}, None),
        ({"updatePeriodSeconds": 86_400}, None),
        ({"node": ""}, "spec.node"),
        ({"node": "A"}, "spec.node"),
        ({"classes": []}, "spec.classes"),
        ({"classes": ["BGP", "BGP"]}, "spec.classes[1]"),
        ({"classes": ["bgp"]}, "spec.classes[0]"),
        ({"updatePeriodSeconds": None}, "spec.updatePeriodSeconds"),
        ({"updatePeriodSeconds": 86_401}, "spec.updatePeriodSeconds"),
        ({"updatePeriodSeconds": -1}, "spec.updatePeriodSeconds"),
    ],
)
def test_node_statuses(change: dict[str, Any], field: str | None) -> None:
    spec = {"node": "n1", "classes": ["Agent", "BGP", "Routes"], "updatePeriodSeconds": 10} | change
    assert list(problems("CalicoNodeStatus", spec)) == ([field] if field else [])


def test_what_a_node_reports_is_checked() -> None:
    spec = {"node": "n1", "classes": ["BGP"], "updatePeriodSeconds": 10}
    status = {
        "agent": {"birdV4": {"state": "Maybe"}},
        "bgp": {"peersV4": [{"peerIP": "x", "type": "T", "state": "S"}]},
        "routes": {"routesV6": [{"type": "T", "learnedFrom": {"sourceType": "S", "peerIP": "p"}}]},
    }
    assert set(problems("CalicoNodeStatus", spec, status=status)) == {
        "status.agent.birdV4.state", "status.bgp.peersV4[0].peerIP", "status.bgp.peersV4[0].type",
        "status.bgp.peersV4[0].state", "status.routes.routesV6[0].type",
        "status.routes.routesV6[0].learnedFrom.sourceType", "status.routes.routesV6[0].learnedFrom.peerIP",
    }  # fmt: skip


# --- WorkloadEndpoint ---------------------------------------------------------------------------

WEB: dict[str, Any] = {
    "orchestrator": "k8s", "node": "node-1", "pod": "web-0", "endpoint": "eth0",
    "interfaceName": "calia4fc3c48bd8", "containerID": "c0ffee0123", "serviceAccountName": "default",
    "ipNetworks": ["10.1.0.17/32", "fd00:1::17/128"], "profiles": ["kns.shop", "ksa.shop.default"],
    "mac": "aa:61:33:0d:5e:01",
    "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
}  # fmt: skip


def test_names_and_labels_are_forced() -> None:
    given = resource("WorkloadEndpoint", WEB, labels={"app": "web", "projectcalico.org/namespace": "forged"})
    filled: Any = validate.with_defaults(given)
    assert filled.name == "node--1-k8s-web--0-eth0"
    assert filled.labels == {
        "app": "web", "projectcalico.org/namespace": "shop", "projectcalico.org/orchestrator": "k8s",
    }  # fmt: skip
    validate.check(filled)


def test_a_name_that_does_not_match_is_refused() -> None:
    assert problems("WorkloadEndpoint", WEB, name="other") == {
        "Name": "the WorkloadEndpoint name does not match the primary identifiers assigned in the Spec: "
        "expected name node--1-k8s-web--0-eth0"
    }
    assert problems("WorkloadEndpoint", WEB, name="node--1-k8s-web--0-eth0") == {}


@pytest.mark.parametrize("missing", ["node", "pod", "endpoint"])
def test_missing_identifiers_are_named(missing: str) -> None:
    found = problems("WorkloadEndpoint", WEB | {missing: ""})
    assert found[f"spec.{missing}"] == "field should be assigned"


@pytest.mark.parametrize(
    "change",
    [
        {"ports": [{"name": "", "protocol": "SCTP", "port": 1, "hostPort": 80, "hostIP": "10.0.0.1"}]},
        {"ports": [{"name": "a", "protocol": "17", "port": 65535}]},
        {"ipNATs": [{"internalIP": "10.1.0.17", "externalIP": "192.0.2.1"}]},
        {"ipNetworks": ["10.1.0.17"]},
        {"ipv4Gateway": "10.1.0.1", "ipv6Gateway": "fd00:1::1"},
        {"allowSpoofedSourcePrefixes": ["10.0.0.1", "192.168.0.0/16"]},
        {"qosControls": {"ingressBandwidth": 1000, "egressMaxConnections": 5, "dscp": "EF"}},
        {"qosControls": {"dscp": "12"}},
    ],
)
def test_legal_endpoints(change: dict[str, Any]) -> None:
    assert problems("WorkloadEndpoint", WEB | change) == {}


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"interfaceName": ""}, "spec.interfaceName", "Required"),
        ({"interfaceName": "*"}, "spec.interfaceName", "invalid interface"),
        ({"interfaceName": ".."}, "spec.interfaceName", "invalid interface"),
        ({"interfaceName": "cali1\n"}, "spec.interfaceName", "control"),
        ({"interfaceName": "x" * 16}, "spec.interfaceName", "invalid interface"),
        ({"containerID": "a;b"}, "spec.containerID", "container ID"),
        ({"serviceAccountName": "A"}, "spec.serviceAccountName", "lower case"),
        ({"ipNetworks": ["10.1.0.0/24"]}, "spec.ipNetworks[0]", "multiple addresses"),
        ({"ipNetworks": ["10.1.0.1/32 "]}, "spec.ipNetworks[0]", "strictly masked"),
        ({"ipNetworks": ["x"]}, "spec.ipNetworks[0]", "network"),
        ({"ipNATs": [{"internalIP": "10.9.9.9", "externalIP": "192.0.2.1"}]}, "spec.ipNATs[0].internalIP",
         "networks"),
        ({"ipNATs": [{"internalIP": "10.1.0.17", "externalIP": "fd00::1"}]}, "spec.ipNATs[0].externalIP",
         "mismatched"),
        ({"ipNATs": [{"internalIP": "10.1.0.17"}]}, "spec.ipNATs[0].externalIP", "Required"),
        ({"ipNATs": [{"internalIP": "x", "externalIP": "y"}]}, "spec.ipNATs[0].internalIP", "invalid IP"),
        ({"ipv4Gateway": "fd00::1"}, "spec.ipv4Gateway", "IPv4"),
        ({"ipv6Gateway": "10.0.0.1"}, "spec.ipv6Gateway", "IPv6"),
        ({"profiles": ["kns.shop", "a b"]}, "spec.profiles[1]", "lower case"),
        ({"mac": "aa:61"}, "spec.mac", "MAC"),
        ({"allowSpoofedSourcePrefixes": ["10.abcd"]}, "spec.allowSpoofedSourcePrefixes[0]", "CIDR"),
        ({"qosControls": {"ingressBandwidth": -1}}, "spec.qosControls.ingressBandwidth", "greater"),
        ({"qosControls": {"dscp": 64}}, "spec.qosControls.dscp", "DSCP"),
    ],
)  # fmt: skip
def test_endpoints_that_are_refused(change: dict[str, Any], field: str, reason: str) -> None:
    found = problems("WorkloadEndpoint", WEB | change)
    assert reason in found.get(field, f"only {found}")


@pytest.mark.parametrize(
    ("port", "field"),
    [
        ({"name": "", "protocol": "TCP", "port": 80}, "name"),
        ({"name": "HTTP", "protocol": "TCP", "port": 80}, "name"),
        ({"name": "http", "protocol": "tcp", "port": 80}, "protocol"),
        ({"name": "http", "protocol": "ICMP", "port": 80}, "protocol"),
        ({"name": "http", "protocol": 123, "port": 80}, "protocol"),
        ({"name": "http", "protocol": "", "port": 80}, "protocol"),
        ({"name": "http", "protocol": "TCP", "port": 0}, "port"),
        ({"name": "http", "protocol": "TCP", "port": 65_536}, "port"),
        ({"name": "http", "protocol": "TCP", "port": 80, "hostPort": -1}, "hostPort"),
        ({"name": "http", "protocol": "TCP", "port": 80, "hostPort": 1, "hostIP": "x"}, "hostIP"),
    ],
)
def test_ports_that_are_refused(port: dict[str, Any], field: str) -> None:
    assert list(problems("WorkloadEndpoint", WEB | {"ports": [port]})) == [f"spec.ports[0].{field}"]


# --- HostEndpoint -------------------------------------------------------------------------------

HOST = {"node": "node-1", "interfaceName": "eth0"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, None),
        ({"interfaceName": "*"}, None),
        ({"interfaceName": "", "expectedIPs": ["192.0.2.1", "fd00::1"]}, None),
        ({"ports": [{"name": "http", "protocol": "TCP", "port": 80}]}, None),
        ({"profiles": ["projectcalico-default-allow"]}, None),
        ({"node": ""}, "spec.node"),
        ({"node": "A"}, "spec.node"),
        ({"interfaceName": ""}, "spec.interfaceName"),
        ({"interfaceName": "eth0:1"}, "spec.interfaceName"),
        ({"interfaceName": "."}, "spec.interfaceName"),
        ({"expectedIPs": ["10.0.0.0/8"]}, "spec.expectedIPs[0]"),
        ({"expectedIPs": ["10.0.0.1", "10.0.0.1"]}, "spec.expectedIPs[1]"),
        ({"profiles": ["a", "a"]}, "spec.profiles[1]"),
        ({"ports": [{"name": "", "protocol": "TCP", "port": 80}]}, "spec.ports[0].name"),
        ({"ports": [{"name": "http", "protocol": 1, "port": 80}]}, "spec.ports[0].protocol"),
        ({"ports": [{"name": "http", "protocol": "UDP", "port": 0}]}, "spec.ports[0].port"),
    ],
)
def test_host_endpoints(change: dict[str, Any], field: str | None) -> None:
    assert list(problems("HostEndpoint", HOST | change)) == ([field] if field else [])


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, None),
        ({"source": {"workload": {"hostname": "n1", "workloadID": "ns/pod"}},
         "target": {"selector": "all()"}}, None),
        ({"source": {}}, "spec.source"),
        ({"target": {"selector": "a", "workloadEndpoint": {"endpointID": "x"}}}, "spec.target.selector"),
        ({"target": {"workloadEndpoint": {"workloadID": "a\nb"}}}, "spec.target.workloadEndpoint.workloadID"),
        ({"source": {"workload": {"hostname": 7}}}, "LiveMigration.spec.source.workload.hostname"),
        ({"source": {"workload": {"workloadID": []}}}, "LiveMigration.spec.source.workload.workloadID"),
        ({"target": {"workloadEndpoint": {"endpointID": {}}}},
         "LiveMigration.spec.target.workloadEndpoint.endpointID"),
    ],
)  # fmt: skip
def test_live_migrations(spec: dict[str, Any], field: str | None) -> None:
    found = problems("LiveMigration", spec)
    assert (field in found) if field else not found
