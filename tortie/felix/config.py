"""What felix is told: one function, one frozen struct.

Everything felix's behaviour depends on - environment, file, FelixConfiguration resources, the own node, the
modes of IP pools, BGPConfiguration - comes together in Config. Two equal Configs behave alike, so a running
felix compares: when the datastore leads to another one, it exits with RESTART and is started again at once,
which costs no packet. (Reference: dataplane sheet 3.4, 6; precedence in datastore.felixparams.)
"""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tortie.core.paths import Paths
from tortie.core.speaker import Speaker, speaker
from tortie.datastore import felixparams, routeowner
from tortie.datastore.felixparams import Resolved, Source
from tortie.datastore.types.bgp import BGPConfiguration
from tortie.datastore.types.cluster import ClusterInformation, FelixConfiguration
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.node import Node
from tortie.felix import metrics, mtu, ruleconfig, wgconfig
from tortie.felix.calc.graph import Inputs
from tortie.felix.dataplane import tunnels
from tortie.felix.dataplane.endpoints import Wiring
from tortie.felix.dataplane.options import Options
from tortie.felix.dataplane.overlay import OverlayOptions
from tortie.felix.dataplane.wireguard import WireguardOptions
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.settings import Settings

RESTART = 129  # exit code that asks the supervisor for a fresh start at once, Calico's


@dataclass(frozen=True, slots=True)
class Config:
    """Times are seconds."""

    node: str
    settings: Settings
    wiring: Wiring
    features: Features = Features()  # noqa: RUF009 - a frozen value
    interface_exclude: tuple[re.Pattern[str], ...] = ()
    backend: str = "auto"
    nft_mode: str = "Auto"
    nft_settings: Settings = Settings()  # noqa: RUF009 - what `settings` is when nftables enforces
    nft_interval: float = 180.0
    append: bool = False
    lock_probe_ms: int = 50
    ipv6: bool = True
    forwarding: bool = True
    remove_external_routes: bool = True
    set_maximum: int = 1048576
    external_nodes: tuple[str, ...] = ()
    overlay: OverlayOptions = OverlayOptions("")  # noqa: RUF009
    wireguard: WireguardOptions = WireguardOptions()  # noqa: RUF009
    manages_ipip: bool = True  # tunl0 is felix's to look after
    table_interval: float = 180.0
    table_recheck: float = 5.0
    set_interval: float = 90.0
    route_interval: float = 90.0
    interface_interval: float = 90.0
    spoofing: bool = False
    floating_ips: bool = False
    felix_routes: str | None = None  # programClusterRoutes, as far as somebody set it
    bgp_routes: str | None = None
    speaker: Speaker = "exabgp"
    # Who has which address counts where routes to other nodes are felix's for some pool, or WireGuard is on.
    needs_blocks: bool = False  # and blocks say so
    workload_ips: bool = False  # and endpoints say so
    felix_writes_ipip: bool = False  # those over tunl0 among them
    region: str = ""
    log_severity: str = "INFO"
    pod_mtu: mtu.Wanted | None = None  # None: CNI is told nothing
    status_folder: str = ""  # '': no files
    endpoint_reports: bool = False
    endpoint_report_delay: float = 1.0
    report_interval: float = 30.0  # 0: no process reports
    report_ttl: float = 90.0
    cut_denied: bool = False
    metrics_port: metrics.Port | None = None  # None: nobody is told figures
    watchdog: float = 90.0  # one pass over the dataplane may take so long
    datastore_ready: bool = True

    def options(self, versions: frozenset[int], rp_filter: str, *, nftables: bool = False) -> Options:
        """For a host that has these IP versions, and that reverse path filter on new interfaces."""
        return Options(
            node=self.node,
            settings=self.nft_settings if nftables else self.settings,
            features=self.features,
            wiring=replace(self.wiring, versions=versions, rp_filter=rp_filter),
            forwarding=self.forwarding,
            set_maximum=self.set_maximum,
            external_nodes=self.external_nodes,
            overlay=self.overlay,
            wireguard=self._wireguard(versions, nftables),
            table_interval=self.nft_interval if nftables else self.table_interval,
            table_recheck=self.table_recheck,
            set_interval=self.set_interval,
            route_interval=self.route_interval,
            cut_denied=self.cut_denied,
        )

    def _wireguard(self, host: frozenset[int], nftables: bool) -> WireguardOptions:
        marks = (self.nft_settings if nftables else self.settings).marks
        return replace(self.wireguard, host=host, mark=marks.left_for_wireguard, routes=self.wiring.routes)

    def inputs(self) -> Inputs:
        return Inputs(
            node=self.node,
            workload_prefixes=self.settings.workload_prefixes,
            owns_routes=lambda pool: felix_owns(pool.spec, self.felix_routes, self.bgp_routes, self.speaker),
            spoofing=self.spoofing,
            floating_ips=self.floating_ips,
            wireguard=bool(self.wireguard.versions),
            workload_ips=self.workload_ips,
        )


def felix_owns(pool: IPPoolSpec, felix: str | None, bgp: str | None, speaker: Speaker = "exabgp") -> bool:
    return routeowner.owner(pool, felix, bgp, speaker) is routeowner.Owner.FELIX


@dataclass(slots=True)
class Sources:
    """Everything a Config is made of: local text, and the datastore's objects as they are now."""

    hostname: str
    environment: Mapping[str, str] = field(default_factory=dict)  # FELIX_… and others
    file: str = ""  # content of felix.cfg
    configurations: dict[str, FelixConfiguration] = field(default_factory=dict)
    node: Node | None = None
    information: ClusterInformation | None = None
    bgp: BGPConfiguration | None = None
    pools: dict[str, IPPool] = field(default_factory=dict)

    def take(self, kind: str, name: str, value: Any) -> bool:
        """Note one object of the datastore (None: gone); whether it is of interest here."""
        if kind == "FelixConfiguration":
            _note(self.configurations, name, value)
        elif kind == "IPPool":
            _note(self.pools, name, value)
        elif kind == "Node" and name == self.hostname:
            self.node = value
        elif kind == "ClusterInformation" and name == "default":
            self.information = value
        elif kind == "BGPConfiguration" and name == "default":
            self.bgp = value
        else:
            return False
        return True


def _note(mapping: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        mapping.pop(name, None)
    else:
        mapping[name] = value


def parameters(sources: Sources) -> Resolved:
    """Every parameter with its source. Raises ConfigError for what felix must not start with.

    Those are values of local sources only, see felixparams.resolve_stored().
    """
    local = {
        Source.ENVIRONMENT: felixparams.from_environment(sources.environment),
        Source.FILE: felixparams.from_file(sources.file),
    }
    stored = felixparams.datastore_layers(
        sources.configurations.values(), sources.hostname, sources.node, sources.information
    )
    return felixparams.resolve_stored(local, stored, sources.hostname)


def resolve(sources: Sources) -> tuple[Config, Resolved]:
    """The one way from all sources to what felix does. Raises ConfigError."""
    params = ruleconfig.with_usable_marks(parameters(sources))
    pools = [pool.spec for pool in sources.pools.values()]
    felix_routes = _said(params, "ProgramClusterRoutes")
    bgp_routes = sources.bgp.spec.programClusterRoutes if sources.bgp is not None else None
    information = sources.information
    speaking = speaker(sources.environment)
    owned = (pool for pool in pools if felix_owns(pool, felix_routes, bgp_routes, speaking))
    kinds = {routeowner.encapsulation(pool) for pool in owned}
    settings = ruleconfig.settings(params, pools)
    reaches_nodes, by_endpoints = bool(kinds or settings.wireguard), params["RouteSource"] == "WorkloadIPs"
    config = Config(
        node=params["FelixHostname"],
        settings=settings,
        wiring=_wiring(params),
        features=_features(params["FeatureDetectOverride"]),
        interface_exclude=tuple(params["InterfaceExclude"]),
        backend=params["IptablesBackend"],
        nft_mode=params["NFTablesMode"],
        nft_settings=ruleconfig.nft_settings(params, settings),
        nft_interval=params["NftablesRefreshInterval"],
        append=params["ChainInsertMode"].lower() == "append",
        lock_probe_ms=round(params["IptablesLockProbeIntervalMillis"] * 1000),
        ipv6=params["Ipv6Support"],
        forwarding=params["IPForwarding"] == "Enabled",
        remove_external_routes=params["RemoveExternalRoutes"],
        set_maximum=params["MaxIpsetSize"],
        external_nodes=tuple(params["ExternalNodesCIDRList"]),
        overlay=_overlay(params, settings),
        wireguard=wgconfig.options(params, settings),
        manages_ipip=params["IpInIpEnabled"] is not False,
        table_interval=params["IptablesRefreshInterval"],
        table_recheck=params["IptablesPostWriteCheckIntervalSecs"],
        set_interval=params["IpsetsRefreshInterval"],
        route_interval=params["RouteRefreshInterval"],
        interface_interval=params["InterfaceRefreshInterval"],
        spoofing=params["WorkloadSourceSpoofing"] == "Any",
        floating_ips=params["FloatingIPs"] == "Enabled",
        felix_routes=felix_routes,
        bgp_routes=bgp_routes,
        speaker=speaking,
        needs_blocks=reaches_nodes and not by_endpoints,
        workload_ips=reaches_nodes and by_endpoints,
        felix_writes_ipip=routeowner.Encapsulation.IPIP in kinds,
        region=params["OpenstackRegion"],
        log_severity=params["LogSeverityScreen"],
        pod_mtu=_mtu(params, settings, Paths.from_env(sources.environment).mtu),
        status_folder=_status_folder(_said(params, "EndpointStatusPathPrefix"), sources.environment),
        endpoint_reports=params["EndpointReportingEnabled"],
        endpoint_report_delay=params["EndpointReportingDelaySecs"],
        report_interval=params["ReportingIntervalSecs"],
        report_ttl=params["ReportingTTLSecs"],
        cut_denied=params["CutDeniedFlows"],
        metrics_port=metrics.port(params),
        watchdog=params["DataplaneWatchdogTimeout"],
        # Only an explicit no stops us: a datastore that nobody initialised holds nothing to enforce.
        datastore_ready=information is None or information.spec.datastoreReady is not False,
    )
    return config, params


def _said(params: Resolved, name: str) -> Any:
    """A parameter's value if somebody set it, else None."""
    return None if params.sources[name] is Source.DEFAULT else params[name]


def _wiring(params: Resolved) -> Wiring:
    # Without a word from the user, routes to pods read as in released Calico: without a metric. What CNI
    # made is then already what we want. (In IPv6 the kernel turns 0 into 1024.)
    priorities = _said(params, "IPv4NormalRoutePriority") or 0, _said(params, "IPv6NormalRoutePriority") or 0
    # Behind the normal one, and so another than that of BGP's routes, which then come first.
    leaving = params["IPv4NormalRoutePriority"] + 1, params["IPv6NormalRoutePriority"] + 1
    return Wiring(
        protocol=params["DeviceRouteProtocol"],
        metrics=priorities,
        leaving=leaving,
        elevated=(params["IPv4ElevatedRoutePriority"], params["IPv6ElevatedRoutePriority"]),
        patience=params["LiveMigrationRouteConvergenceTime"],
        sources=(params["DeviceRouteSourceAddress"], params["DeviceRouteSourceAddressIPv6"]),
        routes=not params["RouteSyncDisabled"],
    )


def _overlay(params: Resolved, settings: Settings) -> OverlayOptions:
    sizes = (
        (tunnels.IPIP, params["IpInIpMtu"], mtu.IPIP),
        (tunnels.VXLAN[4], params["VXLANMTU"], mtu.VXLAN_V4),
        (tunnels.VXLAN[6], params["VXLANMTUV6"], mtu.VXLAN_V6),
    )
    return OverlayOptions(
        params["FelixHostname"],
        vxlan=settings.vxlan,
        vni=params["VXLANVNI"],
        port=params["VXLANPort"],
        ipip_address=(params["IpInIpTunnelAddr"] or "") if settings.ipip else "",
        offload=not _checksums_broken(params["FeatureDetectOverride"]),
        uplinks=wgconfig.uplinks(params),
        sizes=sizes,
        protocol=params["DeviceRouteProtocol"],
        sources=(params["DeviceRouteSourceAddress"], params["DeviceRouteSourceAddressIPv6"]),
        no_uplinks=settings.wireguard_devices,
        interval=params["RouteRefreshInterval"],
    )


_LAST_BROKEN = (5, 7, 0)  # the last kernel that computes wrong checksums for encapsulated packets


def _checksums_broken(overrides: Mapping[str, str], release: str = platform.release()) -> bool:
    if said := overrides.get("ChecksumOffloadBroken"):
        return said.lower() == "true"
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    return found is not None and tuple(int(part or 0) for part in found.groups()) <= _LAST_BROKEN


def _features(overrides: Mapping[str, str]) -> Features:
    """Everything supported today can do these; the override is for kernels that only claim to."""
    return Features(
        masquerade_random=overrides.get("MASQFullyRandom", "true").lower() != "false",
        snat_random=overrides.get("SNATFullyRandom", "true").lower() != "false",
    )


def _mtu(params: Resolved, settings: Settings, path: str) -> mtu.Wanted:
    wireguard = wgconfig.overheads(params)
    every = (
        (settings.ipip, "IpInIpMtu", mtu.IPIP),
        (4 in settings.vxlan, "VXLANMTU", mtu.VXLAN_V4),
        (6 in settings.vxlan, "VXLANMTUV6", mtu.VXLAN_V6),
        (4 in settings.wireguard, "WireguardMTU", wireguard[0]),
        (6 in settings.wireguard, "WireguardMTUV6", wireguard[1]),
    )
    return mtu.Wanted(
        path,
        wgconfig.uplinks(params),
        tuple((params[name], overhead) for used, name, overhead in every if used),
        params["RequireMTUFile"],
    )


def _status_folder(prefix: str | None, environment: Mapping[str, str]) -> str:
    """Where CNI looks, unless somebody (other than the built-in default) names another place."""
    if prefix is None:
        return Paths.from_env(environment).endpoint_status
    return f"{prefix.rstrip('/')}/endpoint-status" if prefix else ""
