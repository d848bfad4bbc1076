"""What configuration says about rules: marks, actions, and which tunnels they have to know.

(Reference: dataplane sheet 6.)
"""

from collections.abc import Iterable
from dataclasses import replace

from tortie.core.errors import ConfigError
from tortie.datastore import felixparams, routeowner
from tortie.datastore.felixparams import PARAMS, Resolved
from tortie.datastore.types.ippool import IPPoolSpec
from tortie.felix.rules import ir
from tortie.felix.rules.marks import allocate
from tortie.felix.rules.settings import Failsafe, Settings

_ACTIONS = {  # as configuration writes them -> as rules do
    "ACCEPT": ir.ACCEPT,
    "RETURN": ir.RETURN,
    "DROP": ir.DROP,
    "REJECT": ir.REJECT,
}
_SERVICE_LOOP: dict[str, ir.Drop | ir.Reject | None] = {  # the same; None: no rule
    "Drop": ir.DROP,
    "Reject": ir.REJECT,
    "Disabled": None,
}


def with_usable_marks(params: Resolved) -> Resolved:
    """A mask in the datastore whose bits do not suffice stops no node; a local one does, by allocate()."""
    wireguard = params["WireguardEnabled"] or params["WireguardEnabledV6"]
    for name in ("IptablesMarkMask", "NftablesMarkMask"):
        try:
            allocate(params[name], wireguard=wireguard, parameter=f"{name} from {params.sources[name]}")
        except ConfigError as err:
            if not params.sources[name].local:
                params = params.without(name, f"{err}; using the default {PARAMS[name].default_text!r}")
    return params


def settings(params: Resolved, pools: Iterable[IPPoolSpec]) -> Settings:
    ipip, vxlan = _encapsulations(params, pools)
    wireguard = frozenset(
        version for version, name in ((4, "WireguardEnabled"), (6, "WireguardEnabledV6")) if params[name]
    )
    ports = params["NATPortRange"]
    return Settings(
        marks=allocate(params["IptablesMarkMask"], wireguard=bool(wireguard)),
        workload_prefixes=tuple(params["InterfacePrefix"]),
        filter_allow=_ACTIONS[params["IptablesFilterAllowAction"].upper()],  # type: ignore[arg-type]
        mangle_allow=_ACTIONS[params["IptablesMangleAllowAction"].upper()],  # type: ignore[arg-type]
        filter_deny=_ACTIONS[params["IptablesFilterDenyAction"].upper()],  # type: ignore[arg-type]
        endpoint_to_host=_ACTIONS[params["DefaultEndpointToHostAction"].upper()],  # type: ignore[arg-type]
        drop_invalid=not params["DisableConntrackInvalidCheck"],
        failsafe_in=_failsafes(params["FailsafeInboundHostPorts"]),
        failsafe_out=_failsafes(params["FailsafeOutboundHostPorts"]),
        ipip=ipip,
        vxlan=vxlan,
        wireguard=wireguard,
        tunnel_devices=tuple(_tunnels(params, ipip, vxlan)),
        vxlan_port=params["VXLANPort"],
        wireguard_ports=((4, params["WireguardListeningPort"]), (6, params["WireguardListeningPortV6"])),
        wireguard_devices=(params["WireguardInterfaceName"], params["WireguardInterfaceNameV6"]),
        wireguard_host_encryption=params["WireguardHostEncryptionEnabled"],
        allow_vxlan_from_workloads=params["AllowVXLANPacketsFromWorkloads"],
        allow_ipip_from_workloads=params["AllowIPIPPacketsFromWorkloads"],
        nat_ports="" if not ports or not ports[1] else f"{ports[0]}-{ports[1]}",
        nat_address=params["NATOutgoingAddress"],
        nat_spares_hosts=params["NATOutgoingExclusions"] == "IPPoolsAndHostIPs",
        nat_interface=params["IptablesNATOutgoingInterfaceFilter"],
        service_loop=_SERVICE_LOOP[params["ServiceLoopPrevention"]],
        log_prefix=params["LogPrefix"] or "calico-packet",
        log_rate=params["LogActionRateLimit"],
        log_burst=params["LogActionRateLimitBurst"],
    )


def nft_settings(params: Resolved, settings: Settings) -> Settings:
    """What has parameters of its own for nftables."""
    return replace(
        settings,
        marks=allocate(
            params["NftablesMarkMask"], wireguard=bool(settings.wireguard), parameter="NftablesMarkMask"
        ),
        filter_allow=_ACTIONS[params["NftablesFilterAllowAction"].upper()],  # type: ignore[arg-type]
        mangle_allow=_ACTIONS[params["NftablesMangleAllowAction"].upper()],  # type: ignore[arg-type]
        filter_deny=_ACTIONS[params["NftablesFilterDenyAction"].upper()],  # type: ignore[arg-type]
    )


def _failsafes(ports: Iterable[felixparams.ProtoPort]) -> tuple[Failsafe, ...]:
    return tuple(Failsafe(one.protocol, one.port, one.net) for one in ports)


def _encapsulations(params: Resolved, pools: Iterable[IPPoolSpec]) -> tuple[bool, frozenset[int]]:
    """Whether IPIP is on, and the IP versions VXLAN is on for: as configured, else as pools need it."""
    kinds = [(routeowner.encapsulation(pool), 6 if ":" in pool.cidr else 4) for pool in pools]
    ipip, vxlan = params["IpInIpEnabled"], params["VXLANEnabled"]
    if ipip is None:
        ipip = any(kind is routeowner.Encapsulation.IPIP for kind, _ in kinds)
    versions = {version for kind, version in kinds if kind is routeowner.Encapsulation.VXLAN}
    if vxlan is not None:  # the setting is about IPv4 only
        versions = versions - {4} | ({4} if vxlan else set())
    return ipip, frozenset(versions)


def _tunnels(params: Resolved, ipip: bool, vxlan: frozenset[int]) -> Iterable[tuple[int, str]]:
    """Tunnel devices whose address the host's own packets must carry."""
    if ipip and params["IpInIpTunnelAddr"]:
        yield 4, "tunl0"
    if 4 in vxlan and params["IPv4VXLANTunnelAddr"]:
        yield 4, "vxlan.calico"
    if 6 in vxlan and params["IPv6VXLANTunnelAddr"]:
        yield 6, "vxlan-v6.calico"
    if params["WireguardEnabled"]:
        yield 4, params["WireguardInterfaceName"]
    if params["WireguardEnabledV6"]:
        yield 6, params["WireguardInterfaceNameV6"]
