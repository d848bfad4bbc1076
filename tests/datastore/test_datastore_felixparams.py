"""Felix parameters: what each source says, and who wins."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.resources import resource
from tortie.core.errors import ConfigError
from tortie.datastore.felixparams import (
    FATAL,
    LOCAL,
    NON_ZERO,
    PARAMS,
    ProtoPort,
    Resolved,
    Source,
    by_selector,
    datastore_layers,
    from_cluster,
    from_environment,
    from_file,
    from_node,
    from_resource,
    resolve,
)
from tortie.datastore.felixparams.sources import Raw
from tortie.datastore.types.cluster import ClusterInformation, FelixConfiguration
from tortie.datastore.types.node import Node

pytestmark = pytest.mark.unit


def configuration(spec: dict[str, Any], **metadata: Any) -> FelixConfiguration:
    made = resource("FelixConfiguration", spec, **metadata)
    assert isinstance(made, FelixConfiguration)
    return made


def environment(**variables: str) -> Resolved:
    return resolve({Source.ENVIRONMENT: from_environment({f"FELIX_{k}": v for k, v in variables.items()})})


# --- defaults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("InterfacePrefix", ("cali",)), ("Ipv6Support", True), ("IptablesBackend", "auto"),
        ("DefaultEndpointToHostAction", "DROP"), ("RouteRefreshInterval", 90.0), ("MaxIpsetSize", 1_048_576),
        ("IptablesLockProbeIntervalMillis", 0.05), ("IptablesMarkMask", 0xFFFF0000), ("VXLANEnabled", None),
        ("KubeNodePortRanges", ((30000, 32767),)), ("NATPortRange", None), ("DeviceRouteProtocol", 3),
        ("ProgramClusterRoutes", "EnabledIPIPOnly"), ("RouteTableRanges", ()), ("HealthPort", 9099),
        ("ClusterGUID", "baddecaf"), ("Variant", "Calico"), ("WireguardInterfaceName", "wireguard.cali"),
        ("IPv4NormalRoutePriority", 1024), ("NATOutgoingAddress", ""), ("PrometheusMetricsHost", ""),
        ("EndpointStatusPathPrefix", "/var/run/calico"), ("LogDebugFilenameRegex", None),
         ("IstioDSCPMark", 23),
    ],
)  # fmt: skip
def test_defaults(name: str, value: object) -> None:
    resolved = resolve({})
    assert resolved[name] == value and resolved.sources[name] is Source.DEFAULT


def test_default_failsafe_ports_and_patterns() -> None:
    resolved = resolve({})
    assert set(resolved["FailsafeOutboundHostPorts"]) == {
        ProtoPort("udp", 53), ProtoPort("udp", 67),
        *(ProtoPort("tcp", port) for port in (179, 2379, 2380, 5473, 6443, 6666, 6667)),
    }  # fmt: skip
    assert ProtoPort("tcp", 22) in resolved["FailsafeInboundHostPorts"]
    assert resolved["InterfaceExclude"][0].search("kube-ipvs0")
    assert resolved["MTUIfacePattern"].search("enp0s3") and not resolved["MTUIfacePattern"].search("lo")


def test_every_parameter_has_a_value() -> None:
    resolved = resolve({}, "node-1")
    assert set(resolved.values) == set(PARAMS) == set(resolved.sources)
    assert resolved["FelixHostname"] == "node-1"
    assert resolve({Source.ENVIRONMENT: {"felixhostname": "other"}}, "node-1")["FelixHostname"] == "other"


# --- reading values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("Ipv6Support", "F", False), ("Ipv6Support", "Yes", True), ("VXLANEnabled", "0", False),
        ("HealthPort", "0x10", 16), ("HealthPort", "0", 0), ("GoMaxProcs", "-1", -1), ("VXLANMTU", "010", 8),
        ("IptablesMarkMask", "0xff", 255), ("ReportingIntervalSecs", "0.5", 0.5),
         ("ReportingTTLSecs", "1e2", 100.0),
        ("IptablesLockProbeIntervalMillis", "250", 0.25), ("IptablesBackend", "NFT", "nft"),
        ("LogSeverityScreen", "warning", "WARNING"), ("FlowLogsPolicyEvaluationMode", "none", "None"),
        ("InterfacePrefix", "cali,tap", ("cali", "tap")), ("NATPortRange", "1:2", (1, 2)),
         ("NATPortRange", "80", (80, 80)),
        ("KubeNodePortRanges", "1:2,5", ((1, 2), (5, 5))), ("RouteTableRange", "1-250", (1, 250)),
        ("RouteTableRanges", "1-2, 5-9", ((1, 2), (5, 9))), ("RouteTableRanges", "1-2 5-9", ((1, 2), (5, 9))),
        ("ExternalNodesCIDRList", "10.0.0.1/8, 192.0.2.1", ("10.0.0.0/8", "192.0.2.1/32")),
        ("DeviceRouteSourceAddressIPv6", "FD00:0::1", "fd00::1"), ("IstioDSCPMark", "ef", 46),
        ("FeatureDetectOverride", "A=true,B=", {"A": "true", "B": ""}), ("BPFLogFilters", "", {}),
        ("HealthTimeoutOverrides", "a=1m,b=1s", {"a": 60.0, "b": 1.0}),
        ("EtcdEndpoints", "https://a:2379,https://b:2379", ("https://a:2379/", "https://b:2379/")),
        ("TyphaAddr", "10.0.0.1:5473", "10.0.0.1:5473"), ("LogActionRateLimit", "5/hour", "5/hour"),
        ("BPFForceTrackPacketsFromIfaces", "docker+, eth0", ("docker+", "eth0")),
    ],
)  # fmt: skip
def test_values(name: str, text: str, value: object) -> None:
    assert environment(**{name.upper(): text})[name] == value


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("tcp:22", [ProtoPort("tcp", 22)]),
        ("22,UDP:53 , ", [ProtoPort("tcp", 22), ProtoPort("udp", 53)]),
        ("tcp:10.0.0.0/8:22", [ProtoPort("tcp", 22, "10.0.0.0/8")]),
        ("tcp:[fd00::1]:22", [ProtoPort("tcp", 22, "fd00::1/128")]),
        ("none", []),
    ],
)
def test_failsafe_ports(text: str, ports: list[ProtoPort]) -> None:
    assert list(environment(FAILSAFEINBOUNDHOSTPORTS=text)["FailsafeInboundHostPorts"]) == ports


@pytest.mark.parametrize(
    "text", ["sctp:1", "tcp:65536", "tcp", "tcp:x:1", "tcp:[x]:1", "tcp:1:2:3", "tcp:[fd00::1:22", "icmp:1",
    "1\n"]
)  # fmt: skip
def test_failsafe_ports_that_cannot_be_read_are_fatal(text: str) -> None:
    with pytest.raises(ConfigError, match="FailsafeInboundHostPorts from environment variable"):
        environment(FAILSAFEINBOUNDHOSTPORTS=text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Ipv6Support", "maybe"), ("HealthPort", "65536"), ("HealthPort", "١"), ("HealthPort", "1_0"),
         ("HealthPort", "08"),
        ("HealthPort", "9" * 5000), ("ReportingIntervalSecs", "inf"), ("ReportingIntervalSecs", "nan"),
        ("ReportingIntervalSecs", "90s"), ("ReportingIntervalSecs", "1e300"), ("IptablesBackend", "bpf"),
        ("WireguardInterfaceName", "wg/0"), ("InterfaceExclude", "/(/"), ("InterfaceExclude", "a b"),
        ("NATOutgoingAddress", "fd00::1"), ("NATPortRange", "http"), ("MTUIfacePattern", "("),
         ("VXLANPort", "0"),
        ("KubeNodePortRanges", "2:1"), ("HealthTimeoutOverrides", "a=soon"), ("FeatureGates", "novalue"),
        ("EtcdEndpoints", "http://a,https://b"), ("EtcdEndpoints", "http://user:pw@a"),
         ("IstioDSCPMark", "64"),
        ("LogPrefix", "a\nb"), ("BPFForceTrackPacketsFromIfaces", "a/b"), ("BPFDSROptoutCIDRs", "x"),
    ],
)  # fmt: skip
def test_other_values_that_cannot_be_read_fall_back_to_the_default(name: str, text: str) -> None:
    resolved = environment(**{name.upper(): text})
    assert resolved[name] == PARAMS[name].default
    assert resolved.sources[name] is Source.ENVIRONMENT
    assert len(resolved.ignored) == 1 and name in resolved.ignored[0] and len(resolved.ignored[0]) < 600


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("InterfacePrefix", "a*"), ("IptablesMarkMask", "1"), ("IptablesMarkMask", "x"),
         ("RouteTableRange", "0-5"),
        ("RouteTableRanges", "1-70000"), ("RouteTableRanges", "1"), ("OpenstackRegion", "A"),
         ("DatastoreType", "consul"),
        ("ChainInsertMode", "prepend"), ("ExternalNodesCIDRList", "x"), ("MetadataPort", "-1"),
         ("MetadataAddr", "a b"),
    ],
)  # fmt: skip
def test_values_that_felix_must_not_start_with(name: str, text: str) -> None:
    assert FATAL in PARAMS[name].traits
    with pytest.raises(ConfigError) as caught:
        environment(**{name.upper(): text})
    assert caught.value.where == f"{name} from environment variable"


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_none_switches_off_or_is_refused(name: str) -> None:
    param = PARAMS[name]
    if param.kind.has_none:
        assert environment(**{name: "NONE"})[name] == "None"
    elif NON_ZERO in param.traits:
        with pytest.raises(ConfigError, match="non-zero field cannot be set to none"):
            environment(**{name: "None"})
    else:
        assert environment(**{name: "None"})[name] == param.kind.zero


@pytest.mark.parametrize("name", sorted(PARAMS))
@settings(max_examples=15)  # of each parameter; many share a kind
@given(text=st.text(max_size=40))
def test_no_text_crashes(name: str, text: str) -> None:
    try:
        resolved = resolve({Source.FILE: {name: text}})
    except ConfigError as err:
        assert NON_ZERO in PARAMS[name].traits or FATAL in PARAMS[name].traits
        assert str(err).isprintable()
        return
    assert all(line.isprintable() for line in resolved.ignored)


# --- sources ------------------------------------------------------------------------------------


def test_environment_names_in_any_case() -> None:
    raw = from_environment({"FELIX_WIREGUARDMTU": "1", "felix_HealthPort": "2", "FELIXX": "3", "PATH": "/"})
    assert raw == {"wireguardmtu": "1", "healthport": "2"}


def test_a_file() -> None:
    text = (
        "# comment\r\n[global]\r\nMetadataAddr = None\nLogFilePath: /var/log/x.log ; why\n; comment\n"
        '  LogPrefix = "a # b" # c\n[other]\nInterfacePrefix=cali,\\\ntap\n'
        "LogSeverityFile = 'None'\nX = `a;b`\nY = \"\nZ =\n\n"
    )
    assert from_file(text) == {
        "MetadataAddr": "None", "LogFilePath": "/var/log/x.log", "LogPrefix": "a # b",
        "InterfacePrefix": "cali,tap", "LogSeverityFile": "None", "X": "a;b", "Y": '"', "Z": "",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["nonsense", "a = 1\n= 2", "[section\n"])
def test_a_malformed_file_names_its_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"/etc/x\.cfg line \d"):
        from_file(text, "/etc/x.cfg")


@given(st.text(max_size=200))
def test_no_file_crashes(text: str) -> None:
    try:
        from_file(text)
    except ConfigError:
        return


def test_fields_of_a_resource_become_text_that_reads_back() -> None:
    made = configuration(
        {
            "reportingInterval": "1m30s", "iptablesLockProbeInterval": "50ms", "ipipEnabled": True,
            "ipipMTU": 1480,
            "failsafeInboundHostPorts": [{"protocol": "TCP", "port": 22, "net": "fd00::/8"},
            {"protocol": "UDP", "port": 53}],
            "failsafeOutboundHostPorts": [], "routeTableRanges": [{"min": 1, "max": 2}, {"min": 5, "max": 9}],
            "kubeNodePortRanges": ["1:2", 5], "externalNodesList": ["10.0.0.0/8"],
            "wireguardKeepAlive": "25s",
            "healthTimeoutOverrides": [{"name": "a", "timeout": "1m0s"}], "ipv6Support": False,
            "bpfConntrackTimeouts": {"tcpSynSent": "20s"}, "bpfLogFilters": {"b": "2", "a": "1"},
            "xdpRefreshInterval": "90s", "bpfConntrackMode": "Auto", "natPortRange": 80,
            "istioDSCPMark": "EF",
            "nodeSelector": "all()", "future": 1,
        },
    )  # fmt: skip
    raw = from_resource(made)
    assert raw == {
        "ReportingIntervalSecs": "90", "IptablesLockProbeIntervalMillis": "50", "IpInIpEnabled": "true",
        "IpInIpMtu": "1480", "FailsafeInboundHostPorts": "tcp:[fd00::/8]:22,udp:53",
        "FailsafeOutboundHostPorts": "none",
        "RouteTableRanges": "1-2,5-9", "KubeNodePortRanges": "1:2,5", "ExternalNodesCIDRList": "10.0.0.0/8",
        "WireguardPersistentKeepAlive": "25", "HealthTimeoutOverrides": "a=1m0s", "Ipv6Support": "false",
        "BPFConntrackTimeouts": "TCPSynSent=20s", "BPFLogFilters": "a=1,b=2", "XDPRefreshInterval": "90",
        "BPFConntrackCleanupMode": "Auto", "NATPortRange": "80", "IstioDSCPMark": "EF",
    }  # fmt: skip
    resolved = resolve({Source.GLOBAL: raw})
    assert resolved.ignored == ()
    assert resolved["ReportingIntervalSecs"] == 90.0 and resolved["IptablesLockProbeIntervalMillis"] == 0.05
    assert resolved["FailsafeOutboundHostPorts"] == ()


def test_annotations_override_fields_unvalidated() -> None:
    made = configuration(
        {"healthPort": 1, "ipv6Support": True},
        annotations={
            "config.projectcalico.org/healthport": "2",
            "config.projectcalico.org/New": "x",
            "other": "y",
        },
    )
    assert from_resource(made) == {"Ipv6Support": "true", "healthport": "2", "New": "x"}
    resolved = resolve({Source.GLOBAL: from_resource(made)})
    assert resolved["HealthPort"] == 2 and resolved.ignored == (
        "unknown parameter 'New' from datastore (global)",
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"healthPort": {"a": 1}}, {"routeTableRange": {}}, {"reportingInterval": 5},
        {"kubeNodePortRanges": "x"},
        {"healthTimeoutOverrides": [{}]}, {"natPortRange": []}, {"ipv6Support": "maybe"},
        {"bpfLogFilters": [1]},
    ],
)  # fmt: skip
def test_nonsense_written_past_validation_falls_back(spec: dict[str, Any]) -> None:
    try:
        resolved = resolve({Source.GLOBAL: from_resource(configuration(spec))})
    except ConfigError as err:
        assert "RouteTableRange" in err.where
        return
    assert resolved.values == resolve({}).values and len(resolved.ignored) <= 1


def test_what_an_older_calico_stored_is_read_though_it_would_be_refused_now() -> None:
    assert resolve({Source.GLOBAL: from_resource(configuration({"reportingInterval": "1.5s"}))})[
        "ReportingIntervalSecs"
    ] == pytest.approx(1.5)


def test_what_comes_from_node_and_cluster() -> None:
    node = resource(
        "Node",
        {
            "bgp": {"ipv4IPIPTunnelAddr": "10.0.0.1"}, "ipv4VXLANTunnelAddr": "10.0.0.2",
            "vxlanTunnelMACAddr": "66:00:00:00:00:01", "ipv6VXLANTunnelAddr": "fd00::2",
        },
    )  # fmt: skip
    assert isinstance(node, Node)
    assert from_node(node) == {
        "IpInIpTunnelAddr": "10.0.0.1", "IPv4VXLANTunnelAddr": "10.0.0.2", "IPv6VXLANTunnelAddr": "fd00::2",
        "VXLANTunnelMACAddr": "66:00:00:00:00:01",
    }  # fmt: skip
    information = resource("ClusterInformation", {"clusterGUID": "abc", "clusterType": "k8s"})
    assert isinstance(information, ClusterInformation)
    assert from_cluster(information) == {"ClusterGUID": "abc", "ClusterType": "k8s"}


# --- precedence ---------------------------------------------------------------------------------


def test_the_highest_source_wins() -> None:
    layers: dict[Source, Raw] = {source: {"HealthPort": str(1000 + source)} for source in Source if source}
    for source in sorted(layers, reverse=True):
        resolved = resolve(layers)
        assert (resolved["HealthPort"], resolved.sources["HealthPort"]) == (1000 + source, source)
        del layers[source]
    assert resolve(layers)["HealthPort"] == 9099


def test_an_empty_value_counts_as_not_set() -> None:
    layers = {Source.ENVIRONMENT: {"HealthPort": ""}, Source.FILE: {"HEALTHPORT": "5"}}
    assert resolve(layers)["HealthPort"] == 5


def test_a_bad_value_hides_lower_sources() -> None:
    layers = {Source.ENVIRONMENT: {"HealthPort": "x"}, Source.GLOBAL: {"HealthPort": "5"}}
    assert resolve(layers)["HealthPort"] == 9099


def test_a_fatal_value_is_fatal_also_where_it_does_not_count() -> None:
    layers = {Source.ENVIRONMENT: {"ChainInsertMode": "append"}, Source.GLOBAL: {"ChainInsertMode": "x"}}
    with pytest.raises(ConfigError):
        resolve(layers)


@pytest.mark.parametrize("source", [Source.GLOBAL, Source.PER_SELECTOR, Source.PER_HOST])
def test_local_parameters_cannot_come_from_the_datastore(source: Source) -> None:
    for name, param in PARAMS.items():
        if LOCAL in param.traits:
            resolved = resolve({source: {name: "etcdv3"}})
            assert resolved.sources[name] is Source.DEFAULT and name in resolved.ignored[0]


def test_layers_of_the_datastore() -> None:
    node = resource("Node", {"ipv4VXLANTunnelAddr": "10.0.0.2"}, labels={"gpu": "yes"}, name="n1")
    information = resource("ClusterInformation", {"clusterType": "k8s"})
    assert isinstance(node, Node) and isinstance(information, ClusterInformation)
    configurations = [
        configuration({"healthPort": 1, "debugPort": 1, "metadataPort": 1}, name="default"),
        configuration({"nodeSelector": "gpu == 'yes'", "healthPort": 2, "debugPort": 2}, name="gpu"),
        configuration({"healthPort": 3}, name="node.n1"),
        configuration({"healthPort": 4}, name="node.n2"),
    ]
    resolved = resolve(datastore_layers(configurations, "n1", node, information), "n1")
    assert [resolved[name] for name in ("HealthPort", "DebugPort", "MetadataPort")] == [3, 2, 1]
    assert resolved["IPv4VXLANTunnelAddr"] == "10.0.0.2" and resolved["ClusterType"] == "k8s"
    assert datastore_layers([], "n1") == {Source.GLOBAL: {}, Source.PER_SELECTOR: {}, Source.PER_HOST: {}}


def test_of_several_selected_resources_the_oldest_wins_then_the_name() -> None:
    def scoped(name: str, day: int, selector: str = "has(gpu)") -> FelixConfiguration:
        return configuration(
            {"nodeSelector": selector}, name=name, creationTimestamp=f"2026-03-0{day}T00:00:00Z"
        )

    young, old, twin = scoped("a", 3), scoped("c", 1), scoped("b", 1)
    labels = {"gpu": ""}
    assert by_selector([young, old], labels) is old
    assert by_selector([young, old, twin], labels) is twin
    assert by_selector([young, scoped("x", 1, "!has(gpu)")], labels) is young
    assert by_selector([scoped("x", 1, ""), scoped("y", 1, "((")], labels) is None
    assert by_selector([young], {}) is None and by_selector([young], None) is None
    assert by_selector([configuration({"nodeSelector": "all()"}, name="default")], labels) is None


# --- change -------------------------------------------------------------------------------------


def test_what_changed_is_named() -> None:
    before = resolve({})
    after = resolve({Source.GLOBAL: {"ClusterType": "k8s", "HealthPort": "1"}})
    assert after.changed(before) == {"ClusterType", "HealthPort"}
    assert resolve({}).changed(before) == set()


def test_what_was_set_is_described_with_its_source() -> None:
    lines = list(environment(HEALTHPORT="1", LOGPREFIX="x").describe())
    assert lines == [
        "HealthPort = 1 (from environment variable)",
        "LogPrefix = 'x' (from environment variable)",
    ]
