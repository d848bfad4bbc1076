"""What configuration says about WireGuard, as the dataplane takes it.

(Reference: dataplane sheet 3.6, 4, 6; felix/dataplane/driver.go.)
"""

from tortie.datastore.felixparams import Resolved
from tortie.felix import mtu
from tortie.felix.dataplane import tunnels
from tortie.felix.dataplane.wgrules import KERNELS_TABLES
from tortie.felix.dataplane.wireguard import WireguardOptions
from tortie.felix.rules.settings import Settings

_TABLES = ((1, 250),)  # of RouteTableRanges, Calico's default
_LONGEST_KEEPALIVE = 0xFFFF  # seconds; the kernel's field has 16 bits


def options(params: Resolved, settings: Settings) -> WireguardOptions:
    """All but what the host decides: its IP versions, and the mark, which is of what enforces."""
    added = overheads(params)
    return WireguardOptions(
        node=params["FelixHostname"],
        versions=settings.wireguard,
        devices=(params["WireguardInterfaceName"], params["WireguardInterfaceNameV6"]),
        ports=(params["WireguardListeningPort"], params["WireguardListeningPortV6"]),
        sizes=((params["WireguardMTU"], added[0]), (params["WireguardMTUV6"], added[1])),
        priority=params["WireguardRoutingRulePriority"],
        table=first_table(params),
        keepalive=min(max(0, round(params["WireguardPersistentKeepAlive"])), _LONGEST_KEEPALIVE),
        threading=params["WireguardThreadingEnabled"],
        encrypt_host=params["WireguardHostEncryptionEnabled"],
        protocol=params["DeviceRouteProtocol"],
        uplinks=uplinks(params),
        interval=params["RouteRefreshInterval"],
    )


def uplinks(params: Resolved) -> mtu.Uplinks:
    wireguard = params["WireguardInterfaceName"], params["WireguardInterfaceNameV6"]
    return mtu.Uplinks(params["MTUIfacePattern"], frozenset((*tunnels.DEVICES, *wireguard)))


def first_table(params: Resolved) -> int:
    """The lowest index of a routing table that felix may use, for both IP versions; 0 if there is none."""
    older = params["RouteTableRange"]
    ranges = params["RouteTableRanges"] or ((older,) if older else _TABLES)
    indices = (index for first, last in sorted(ranges) for index in range(first, last + 1))
    return next((index for index in indices if index not in KERNELS_TABLES), 0)


def overheads(params: Resolved) -> tuple[int, int]:
    """Bytes that WireGuard adds over IPv4 and over IPv6."""
    types = [one.strip().lower() for one in params["ClusterType"].split(",")]
    more = mtu.AKS if params["WireguardHostEncryptionEnabled"] and "aks" in types else 0
    return mtu.WIREGUARD_V4 + more, mtu.WIREGUARD_V6 + more
