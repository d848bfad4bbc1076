"""Configuration: all sources into one struct, and what makes two of them differ."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.felix.objects import node, pool
from tortie.core.errors import ConfigError
from tortie.core.paths import Paths
from tortie.datastore import validate
from tortie.datastore.felixparams import PARAMS
from tortie.datastore.types.bgp import BGPConfiguration, BGPConfigurationSpec
from tortie.datastore.types.cluster import ClusterInformation, ClusterInformationSpec, FelixConfiguration
from tortie.datastore.types.meta import ObjectMeta
from tortie.felix.config import Config, Sources, resolve
from tortie.felix.daemon import datastore_environment, local_sources
from tortie.felix.rules import ir
from tortie.felix.rules.settings import Failsafe

pytestmark = pytest.mark.unit


def configuration(name: str, **spec: Any) -> FelixConfiguration:
    return FelixConfiguration(metadata=ObjectMeta(name=name), spec=spec)


def config(sources: Sources | None = None, **environment: str) -> Config:
    sources = sources or Sources("node1")
    sources.environment = {f"FELIX_{name}": value for name, value in environment.items()}
    return resolve(sources)[0]


def test_the_defaults_are_calicos() -> None:
    found = config()
    assert found.settings.workload_prefixes == ("cali",)
    assert found.settings.endpoint_to_host == found.settings.filter_deny == ir.DROP
    assert (
        Failsafe("tcp", 22) in found.settings.failsafe_in
        and Failsafe("udp", 53) in found.settings.failsafe_out
    )
    assert (found.table_interval, found.table_recheck, found.route_interval) == (180, 5, 90)
    assert found.status_folder == "/var/run/calico/endpoint-status"
    assert found.settings.marks.accept == 0x10000


def test_routes_to_pods_have_no_metric_until_somebody_asks_for_one() -> None:
    assert config().wiring.metrics == (0, 0)
    assert config(IPV4NORMALROUTEPRIORITY="1024").wiring.metrics == (1024, 0)


def test_routes_to_what_has_just_moved_here_come_first_for_a_while() -> None:
    assert (config().wiring.elevated, config().wiring.patience) == ((512, 512), 30)
    wiring = config(
        IPV4ELEVATEDROUTEPRIORITY="5", IPV6ELEVATEDROUTEPRIORITY="6", LIVEMIGRATIONROUTECONVERGENCETIME="7"
    ).wiring
    assert (wiring.elevated, wiring.patience) == ((5, 6), 7)
    assert wiring.leaving == (1025, 1025) and config(IPV6NORMALROUTEPRIORITY="9").wiring.leaving == (1025, 10)


def test_the_nearer_source_wins() -> None:
    sources = Sources("node1", file="ChainInsertMode = append\n")
    sources.take(
        "FelixConfiguration",
        "default",
        configuration("default", ipv6Support=False, routeRefreshInterval="10s"),
    )
    sources.take("FelixConfiguration", "node.node1", configuration("node.node1", routeRefreshInterval="20s"))
    sources.take("FelixConfiguration", "node.other", configuration("node.other", routeRefreshInterval="30s"))
    found = config(sources)
    assert (found.ipv6, found.append, found.route_interval) == (False, True, 20)
    assert config(sources, ROUTEREFRESHINTERVAL="5").route_interval == 5
    sources.take("FelixConfiguration", "node.node1", None)
    assert config(sources).route_interval == 10


def test_actions_and_lists_become_what_rules_are_written_with() -> None:
    found = config(
        DEFAULTENDPOINTTOHOSTACTION="return",
        IPTABLESFILTERDENYACTION="REJECT",
        INTERFACEPREFIX="cali,tap",
        FAILSAFEINBOUNDHOSTPORTS="none",
        NATPORTRANGE="1000:2000",
        INTERFACEEXCLUDE="kube-ipvs0,/^dummy/",
        SERVICELOOPPREVENTION="Disabled",
        FEATUREDETECTOVERRIDE="MASQFullyRandom=false",
        IPTABLESLOCKPROBEINTERVALMILLIS="20",
        ENDPOINTSTATUSPATHPREFIX="none",
    )
    rules = found.settings
    assert (rules.endpoint_to_host, rules.filter_deny, rules.service_loop) == (ir.RETURN, ir.REJECT, None)
    assert (rules.workload_prefixes, rules.failsafe_in, rules.nat_ports) == (("cali", "tap"), (), "1000-2000")
    assert [bool(re.search(one, "dummy0")) for one in found.interface_exclude] == [False, True]
    assert not found.features.masquerade_random and found.features.snat_random
    assert (found.lock_probe_ms, found.status_folder) == (20, "")


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ([], (False, frozenset())),
        ([("10.0.0.0/16", "", "Always")], (True, frozenset())),
        ([("10.0.0.0/16", "CrossSubnet", "")], (False, frozenset([4]))),
        ([("fd00::/64", "Always", "Never"), ("10.0.0.0/16", "Never", "Never")], (False, frozenset([6]))),
    ],
)
def test_pools_switch_encapsulation_on(modes: list[tuple[str, str, str]], expected: tuple[bool, Any]) -> None:
    sources = Sources("node1")
    for number, (cidr, vxlan, ipip) in enumerate(modes):
        sources.take("IPPool", f"p{number}", pool(f"p{number}", cidr, vxlan=vxlan, ipip=ipip)[1])
    found = config(sources)
    assert (found.settings.ipip, found.settings.vxlan) == expected
    assert found.needs_blocks == bool(expected[1])
    forced = config(sources, IPINIPENABLED="true", VXLANENABLED="false")
    assert (forced.settings.ipip, 4 in forced.settings.vxlan) == (True, False)


def test_who_has_which_address_is_read_from_blocks_or_from_endpoints() -> None:
    for source, blocks, workload_ips in (("CalicoIPAM", True, False), ("WorkloadIPs", False, True)):
        found = config(Sources("node1"), ROUTESOURCE=source, WIREGUARDENABLED="true")
        assert (found.needs_blocks, found.inputs().workload_ips) == (blocks, workload_ips)
        unneeded = config(Sources("node1"), ROUTESOURCE=source)
        assert not unneeded.needs_blocks and not unneeded.inputs().workload_ips


def test_cutting_denied_connections_is_asked_for_by_an_annotation_or_locally() -> None:
    """Calico's schema has no field for it, and Calico does not mind the annotation."""
    sources = Sources("node1")
    assert not config(sources).cut_denied and config(sources, CUTDENIEDFLOWS="true").cut_denied
    asking = configuration("default")
    asking.metadata.annotations["config.projectcalico.org/CutDeniedFlows"] = "true"
    validate.check(validate.with_defaults(asking))
    sources.take("FelixConfiguration", "default", asking)
    found = config(sources)
    assert found.cut_denied and found.options(frozenset((4,)), "1").cut_denied


def test_who_routes_is_decided_with_bgps_configuration() -> None:
    sources = Sources("node1")
    sources.take("IPPool", "p", pool("p", "10.0.0.0/16")[1])
    spec = BGPConfigurationSpec(programClusterRoutes="Disabled")
    sources.take("BGPConfiguration", "default", BGPConfiguration(spec=spec))
    found = config(sources, PROGRAMCLUSTERROUTES="Enabled")
    assert found.needs_blocks
    assert found.inputs().owns_routes(sources.pools["p"])
    assert not config(Sources("node1")).inputs().owns_routes(sources.pools["p"])


def test_only_what_felix_uses_makes_a_difference() -> None:
    sources = Sources("node1")
    before = config(sources)
    sources.take("FelixConfiguration", "default", configuration("default", usageReportingEnabled=False))
    sources.take("IPPool", "p", pool("p", "10.0.0.0/16")[1])
    sources.take("Node", "node1", node("node1", "172.16.0.1/24")[1])
    assert config(sources) == before
    sources.take("FelixConfiguration", "default", configuration("default", logSeverityScreen="Debug"))
    assert config(sources) != before
    assert not sources.take("Node", "other", None)


def test_a_datastore_that_says_it_is_not_ready_is_believed() -> None:
    sources = Sources("node1")
    assert config(sources).datastore_ready
    for ready in (False, True, None):
        spec = ClusterInformationSpec(datastoreReady=ready)
        sources.take("ClusterInformation", "default", ClusterInformation(spec=spec))
        assert config(sources).datastore_ready is (ready is not False)


def test_what_felix_must_not_start_with_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="ChainInsertMode"):
        config(CHAININSERTMODE="sideways")
    with pytest.raises(ConfigError, match="IptablesMarkMask"):
        config(IPTABLESMARKMASK="0x7")


def test_nonsense_in_the_datastore_stops_no_node() -> None:
    """Not even in parameters that Calico's Felix would die of; what can be read still counts."""
    sources = Sources("node1")
    spec = {"interfacePrefix": 5, "chainInsertMode": "sideways", "routeRefreshInterval": "10s"}
    sources.take("FelixConfiguration", "default", configuration("default", **spec))
    found, params = resolve(sources)
    assert (found.settings.workload_prefixes, found.append, found.route_interval) == (("cali",), False, 10)
    assert any("InterfacePrefix" in line for line in params.ignored)
    assert any("sideways" in line for line in params.ignored)


def test_a_mark_mask_that_does_not_suffice_stops_a_node_only_where_it_is_local() -> None:
    sources = Sources("node1")
    spec = {"iptablesMarkMask": 0x3, "nftablesMarkMask": 0x1F, "wireguardEnabled": True}
    sources.take("FelixConfiguration", "default", configuration("default", **spec))
    found, params = resolve(sources)
    assert found.settings == config(Sources("node1"), WIREGUARDENABLED="true").settings
    assert found.nft_settings.marks == found.settings.marks
    for name in ("IptablesMarkMask", "NftablesMarkMask"):
        assert any(f"{name} from datastore (global)" in line for line in params.ignored)
    with pytest.raises(ConfigError, match="NftablesMarkMask"):
        config(NFTABLESMARKMASK="0xf")


def test_what_was_set_and_by_whom_can_be_logged() -> None:
    sources = Sources("node1", {"FELIX_IPV6SUPPORT": "false"})
    _, params = resolve(sources)
    assert "Ipv6Support = False (from environment variable)" in list(params.describe())


def test_status_files_are_where_cni_looks() -> None:
    moved = {"CALICO_RUN_DIR": "/r"}
    assert resolve(Sources("node1"))[0].status_folder == "/var/run/calico/endpoint-status"
    assert resolve(Sources("node1", moved))[0].status_folder == Paths.from_env(moved).endpoint_status
    named = {**moved, "FELIX_ENDPOINTSTATUSPATHPREFIX": "/p/"}
    assert resolve(Sources("node1", named))[0].status_folder == "/p/endpoint-status"
    assert resolve(Sources("node1", {"FELIX_ENDPOINTSTATUSPATHPREFIX": "none"}))[0].status_folder == ""


# --- who and where ------------------------------------------------------------------------------


def test_the_node_is_named_by_parameter_then_variable() -> None:
    assert local_sources({"FELIX_FELIXHOSTNAME": "a", "NODENAME": "b"}).hostname == "a"
    assert local_sources({"NODENAME": "b"}).hostname == "b"


def test_felixs_own_variables_find_the_datastore() -> None:
    given = {"ETCD_ENDPOINTS": "http://a:1", "CALICO_ETCD_ENDPOINTS": "http://b:1"}
    assert datastore_environment(given) == given
    own = datastore_environment(
        {**given, "FELIX_ETCDENDPOINTS": "http://c:1", "FELIX_DATASTORETYPE": "etcdv3"}
    )
    assert (own["ETCD_ENDPOINTS"], own["DATASTORE_TYPE"]) == ("http://c:1", "etcdv3")
    assert "CALICO_ETCD_ENDPOINTS" not in own
    assert datastore_environment({"FELIX_ETCDADDR": "h:2379"})["ETCD_ENDPOINTS"] == "http://h:2379"


def test_the_manual_names_every_parameter_that_has_an_effect_and_no_other() -> None:
    root = Path(__file__).parents[2]
    manual = (root / "docs/operations.md").read_text()
    listed = manual.partition("are read, checked and stored only:")[2].partition("A change in the")[0]
    readers = ("config.py", "ruleconfig.py", "wgconfig.py", "metrics.py")
    code = "".join((root / "tortie/felix" / name).read_text() for name in readers)
    read = re.findall(r'"(\w+)"', code)
    told = {"ClusterType", "IpInIpTunnelAddr", "IPv4VXLANTunnelAddr", "IPv6VXLANTunnelAddr"}  # by the cluster
    assert set(re.findall(r"\w+", listed)) & PARAMS.keys() == set(read) & PARAMS.keys() - told
