"""FelixConfiguration: defaults that are pinned, and every field's limits."""

from typing import Any

import pytest

from tests.support.resources import problems, resource
from tortie.datastore import validate
from tortie.datastore.felixparams import BY_FIELD, PARAMS

pytestmark = pytest.mark.unit

PINNED = {
    "floatingIPs": "Disabled",
    "bpfConnectTimeLoadBalancing": "TCP",
    "bpfHostNetworkedNATWithoutCTLB": "Enabled",
    "nftablesMode": "Auto",
    "nftablesFlowTableOffload": "Disabled",
}


def filled(spec: dict[str, Any]) -> dict[str, Any]:
    configuration: Any = validate.with_defaults(resource("FelixConfiguration", spec))
    return dict(configuration.spec)


def test_five_values_are_pinned_everywhere() -> None:
    assert filled({}) == PINNED
    assert filled({"floatingIPs": "Enabled"})["floatingIPs"] == "Enabled"


@pytest.mark.parametrize(("enabled", "balancing"), [(True, "Enabled"), (False, "Disabled")])
def test_the_old_form_of_connect_time_load_balancing(enabled: bool, balancing: str) -> None:
    spec = filled({"bpfConnectTimeLoadBalancingEnabled": enabled, "bpfConnectTimeLoadBalancing": "TCP"})
    assert spec["bpfConnectTimeLoadBalancing"] == balancing
    assert spec["bpfHostNetworkedNATWithoutCTLB"] == "Disabled"


def test_values_in_calicos_spelling() -> None:
    given = {
        "reportingInterval": "90s", "natPortRange": "80:80", "kubeNodePortRanges": ["80", "1:2"],
        "istioDSCPMark": "23", "healthTimeoutOverrides": [{"name": "a", "timeout": "60s"}],
        "iptablesLockProbeInterval": "50ms", "logPrefix": "90s",
    }  # fmt: skip
    assert {field: filled(given)[field] for field in given} == {
        "reportingInterval": "1m30s", "natPortRange": 80, "kubeNodePortRanges": [80, "1:2"],
        "istioDSCPMark": 23, "healthTimeoutOverrides": [{"name": "a", "timeout": "1m0s"}],
        "iptablesLockProbeInterval": "50ms", "logPrefix": "90s",
    }  # fmt: skip


ACCEPTED: list[dict[str, Any]] = [
    {"ipipEnabled": True, "vxlanEnabled": False, "ipv6Support": False},
    {"logSeverityScreen": "debug", "logSeverityFile": "FATAL", "logFilePath": "none"},
    {"defaultEndpointToHostAction": "Return", "chainInsertMode": "append"},
    {"iptablesBackend": "NFT", "nftablesMode": "Enabled"},
    {"reportingInterval": "0s", "usageReportingInitialDelay": "1h30m"},
    {"dataplaneWatchdogTimeout": "1.5s", "liveMigrationRouteConvergenceTime": "1.5s"},
    {"failsafeInboundHostPorts": []},
    {"failsafeOutboundHostPorts": [{"protocol": "TCP", "port": 22, "net": "10.0.0.0/8"},
    {"protocol": "udp", "port": 53}]},
    {"routeTableRange": {"min": 1, "max": 250}},
    {"routeTableRanges": [{"min": 1, "max": 100}, {"min": 5000, "max": 6000}]},
    {"externalNodesList": ["10.0.0.0/8", "192.0.2.1"]},
    {"kubeNodePortRanges": ["30000:32767", 80]},
    {"natPortRange": "32768:65535", "natOutgoingAddress": "192.0.2.1"},
    {"interfacePrefix": "cali,tap", "interfaceExclude": "kube-ipvs0,/^docker.*/"},
    {"mtuIfacePattern": "^eth[[:digit:]]$", "wireguardInterfaceName": "wireguard.cali"},
    {"featureDetectOverride": "ChecksumOffloadBroken=true,X=", "featureGates": "A=b,C=d"},
    {"logPrefix": "calico-packet %t: ", "logActionRateLimit": "100/minute", "logActionRateLimitBurst": 9999},
    {"healthTimeoutOverrides": [{"name": "InternalDataplaneMainLoop", "timeout": "5m"}]},
    {"prometheusMetricsHost": "::1", "healthHost": "0.0.0.0", "debugHost": "localhost", "debugPort": 0},
    {"openstackRegion": "region-one", "metadataAddr": "metadata.example.org", "metadataPort": 0},
    {"bpfLogFilters": {"eth0": "host 10.0.0.1"}, "bpfConntrackTimeouts": {"tcpFinsSeen": "Auto",
    "udpTimeout": "1.5s"}},
    {"bpfForceTrackPacketsFromIfaces": ["docker+"], "bpfDSROptoutCIDRs": ["10.0.0.0/8"]},
    {"iptablesMarkMask": 0xFFFF0000, "nftablesMarkMask": 3},
    {"wireguardRoutingRulePriority": 32_765, "wireguardMTU": 0, "deviceRouteProtocol": 80},
    {"goGCThreshold": -1, "vxlanVNI": 4096, "vxlanPort": 4789, "maxIpsetSize": 1_048_576},
    {"flowLogsPolicyEvaluationMode": "None", "endpointStatusPathPrefix": "none"},
    {"unknownField": {"from": "the future"}},
]  # fmt: skip


@pytest.mark.parametrize("spec", ACCEPTED)
def test_what_is_accepted(spec: dict[str, Any]) -> None:
    assert problems("FelixConfiguration", spec) == {}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ipipEnabled": "true"}, "spec.ipipEnabled"),
    ({"logSeverityScreen": "Verbose"}, "spec.logSeverityScreen"),
    ({"logSeverityScreen": "Info\n"}, "spec.logSeverityScreen"),
    ({"defaultEndpointToHostAction": "Allow"}, "spec.defaultEndpointToHostAction"),
    ({"iptablesBackend": "nft"}, "spec.iptablesBackend"),
    ({"floatingIPs": "enabled"}, "spec.floatingIPs"),
    ({"nftablesMode": "On"}, "spec.nftablesMode"),
    ({"reportingInterval": "1.5s"}, "spec.reportingInterval"),
    ({"reportingInterval": "90"}, "spec.reportingInterval"),
    ({"reportingInterval": 90}, "spec.reportingInterval"),
    ({"reportingInterval": "-1s"}, "spec.reportingInterval"),
    ({"routeRefreshInterval": "100us"}, "spec.routeRefreshInterval"),
    ({"failsafeInboundHostPorts": [{"protocol": "ICMP", "port": 1}]},
     "spec.failsafeInboundHostPorts[0].protocol"),
    ({"failsafeInboundHostPorts": [{"protocol": "TCP", "port": 65_536}]},
     "spec.failsafeInboundHostPorts[0].port"),
    ({"failsafeInboundHostPorts": [{"protocol": "TCP"}]}, "spec.failsafeInboundHostPorts[0].port"),
    ({"failsafeInboundHostPorts": [{"protocol": "TCP", "port": 1, "net": "x"}]},
     "spec.failsafeInboundHostPorts[0].net"),
    ({"failsafeInboundHostPorts": "tcp:22"}, "spec.failsafeInboundHostPorts"),
    ({"routeTableRange": {"min": 0, "max": 5}}, "spec.routeTableRange"),
    ({"routeTableRange": {"min": 1, "max": 251}}, "spec.routeTableRange"),
    ({"routeTableRange": {}}, "spec.routeTableRange.min"),
    ({"routeTableRanges": [{"min": 5, "max": 1}]}, "spec.routeTableRanges"),
    ({"routeTableRanges": [{"min": 1, "max": 70_000}]}, "spec.routeTableRanges"),
    ({"routeTableRanges": [{"min": 1, "max": 2**32}]}, "spec.routeTableRanges"),
    ({"routeTableRanges": [{"min": "1", "max": 2}]}, "spec.routeTableRanges[0].min"),
    ({"routeTableRange": {"min": 1, "max": 2}, "routeTableRanges": [{"min": 1, "max": 2}]},
     "spec.routeTableRanges"),
    ({"externalNodesList": ["fd00::/8"]}, "spec.externalNodesList[0]"),
    ({"kubeNodePortRanges": ["http"]}, "spec.kubeNodePortRanges[0]"),
    ({"kubeNodePortRanges": [1, 2, 3, 4, 5, 6, 7, 8]}, "spec.kubeNodePortRanges"),
    ({"natPortRange": "2:1"}, "spec.natPortRange"),
    ({"natOutgoingAddress": "fd00::1"}, "spec.natOutgoingAddress"),
    ({"deviceRouteSourceAddress": "10.0.0.0/8"}, "spec.deviceRouteSourceAddress"),
    ({"deviceRouteSourceAddressIPv6": "10.0.0.1"}, "spec.deviceRouteSourceAddressIPv6"),
    ({"interfacePrefix": "cali*"}, "spec.interfacePrefix"),
    ({"interfacePrefix": "cali;reboot"}, "spec.interfacePrefix"),
    ({"interfaceExclude": "/(/"}, "spec.interfaceExclude"),
    ({"mtuIfacePattern": "("}, "spec.mtuIfacePattern"),
    ({"wireguardInterfaceName": "wg/0"}, "spec.wireguardInterfaceName"),
    ({"wireguardInterfaceName": ".."}, "spec.wireguardInterfaceName"),
    ({"iptablesNATOutgoingInterfaceFilter": "eth*"}, "spec.iptablesNATOutgoingInterfaceFilter"),
    ({"featureDetectOverride": "a=maybe"}, "spec.featureDetectOverride"),
    ({"featureGates": "novalue"}, "spec.featureGates"),
    ({"logPrefix": 'x" -j ACCEPT'}, "spec.logPrefix"),
    ({"logActionRateLimit": "0/second"}, "spec.logActionRateLimit"),
    ({"logActionRateLimit": "5/second\n"}, "spec.logActionRateLimit"),
    ({"logActionRateLimitBurst": 10_000}, "spec.logActionRateLimitBurst"),
    ({"logFilePath": "/var\n/log"}, "spec.logFilePath"),
    ({"healthTimeoutOverrides": [{"name": "a,b", "timeout": "1s"}]}, "spec.healthTimeoutOverrides[0].name"),
    ({"healthTimeoutOverrides": [{"name": "a", "timeout": "-1s"}]}, "spec.healthTimeoutOverrides[0].timeout"),
    ({"healthTimeoutOverrides": [{}]}, "spec.healthTimeoutOverrides[0].timeout"),
    ({"prometheusMetricsHost": "a b"}, "spec.prometheusMetricsHost"),
    ({"healthPort": 65_536}, "spec.healthPort"),
    ({"debugPort": -1}, "spec.debugPort"),
    ({"openstackRegion": "Region"}, "spec.openstackRegion"),
    ({"openstackRegion": "r" * 50}, "spec.openstackRegion"),
    ({"bpfLogFilters": {"a/b": "x"}}, "spec.bpfLogFilters (key)"),
    ({"bpfConntrackTimeouts": {"udpTimeout": "soon"}}, "spec.bpfConntrackTimeouts.udpTimeout"),
    ({"bpfForceTrackPacketsFromIfaces": ["a b"]}, "spec.bpfForceTrackPacketsFromIfaces[0]"),
    ({"bpfExcludeCIDRsFromNAT": ["x"]}, "spec.bpfExcludeCIDRsFromNAT[0]"),
    ({"bpfConntrackLogLevel": "off"}, "spec.bpfConntrackLogLevel"),
    ({"bpfRedirectToPeer": "L2Only"}, "spec.bpfRedirectToPeer"),
    ({"iptablesMarkMask": 0x1_0000_0000}, "spec.iptablesMarkMask"),
    ({"iptablesMarkMask": 1}, "spec.iptablesMarkMask"),
    ({"wireguardRoutingRulePriority": 32_766}, "spec.wireguardRoutingRulePriority"),
    ({"wireguardListeningPort": 0}, "spec.wireguardListeningPort"),
    ({"vxlanPort": 70_000}, "spec.vxlanPort"),
    ({"vxlanVNI": 2**24}, "spec.vxlanVNI"),
    ({"ipv4NormalRoutePriority": 0}, "spec.ipv4NormalRoutePriority"),
    ({"goMaxProcs": -2}, "spec.goMaxProcs"),
    ({"istioDSCPMark": 64}, "spec.istioDSCPMark"),
    ({"nodeSelector": "("}, "spec.nodeSelector"),
    ({"awsSrcDstCheck": {"a": 1}}, "spec.awsSrcDstCheck"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "field"), REFUSED)
def test_what_is_refused(spec: dict[str, Any], field: str) -> None:
    assert field in problems("FelixConfiguration", spec)


@pytest.mark.parametrize("field", sorted(BY_FIELD))
def test_every_field_refuses_what_makes_no_sense(field: str) -> None:
    values: list[Any] = ["a\nb", "x" * 10_000, "\x00", {"a b": 5}, ["\n"], 2**63, -(2**62), 1.5, [[]]]
    if field == "bpfConntrackTimeouts":
        values.remove({"a b": 5})  # an object whose unknown members are left alone
    for nonsense in values:
        found = problems("FelixConfiguration", {field: nonsense})
        assert any(name.startswith(f"spec.{field}") for name in found), nonsense


def test_node_selectors_belong_to_resources_with_free_names() -> None:
    spec = {"nodeSelector": "has(gpu)"}
    assert problems("FelixConfiguration", spec, name="gpu-nodes") == {}
    for name in ("default", "node.n1"):
        assert list(problems("FelixConfiguration", spec, name=name)) == ["spec.nodeSelector"]


def test_the_table_covers_the_schema() -> None:
    assert (
        len(BY_FIELD) == 187 and len(PARAMS) == 219
    )  # fields of the schema but nodeSelector; parameters, one our own
    assert all(param.default is not NotImplemented for param in PARAMS.values())  # each default can be read
