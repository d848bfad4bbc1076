"""All doors to this namespace's kernel that felix goes through, opened once."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tortie.felix.dataplane.backend import Backend, arp_target, iptables_backend, nft_backend
from tortie.felix.dataplane.neighbours import ForwardingTarget, NeighbourTarget
from tortie.felix.dataplane.routes import Ownership, WorkloadRouteTarget
from tortie.felix.dataplane.shaping import ShapingTarget
from tortie.felix.dataplane.sysctls import SysctlTarget
from tortie.felix.dataplane.tunnels import TunnelTarget
from tortie.linux import conntrack
from tortie.linux.iptables_backend import installed
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.nftables import TableTarget
from tortie.linux.route_target import RouteTarget
from tortie.linux.wireguard import Wireguard


@dataclass(frozen=True, slots=True)
class Kernel:
    """`backends` are by IP version; `arp` is None where ARP cannot be filtered."""

    netlink: NetlinkSocket
    backends: dict[int, Backend]
    arp: TableTarget | None
    routes: WorkloadRouteTarget
    neighbours: NeighbourTarget
    sysctls: SysctlTarget
    shaping: ShapingTarget
    tunnels: TunnelTarget
    tunnel_neighbours: NeighbourTarget
    forwarding: ForwardingTarget
    ownership: Ownership
    wireguard: Wireguard = field(default_factory=Wireguard)

    @property
    def nftables(self) -> bool:
        """Whether nftables enforces."""
        return any(backend.nftables for backend in self.backends.values())

    async def close(self) -> None:
        await self.routes.close()
        self.netlink.close()
        self.wireguard.close()


async def open_kernel(
    versions: frozenset[int],
    ownership: Ownership,
    *,
    clock: Callable[[], float],
    nftables: bool = False,
    backend: str = "auto",
    append: bool = False,
    lock_probe_ms: int = 50,
    offload: bool = True,
    ipip: bool = True,
    forget: Callable[[str], Awaitable[None]] = conntrack.flush,
) -> Kernel:
    """`nftables` enforces, or else iptables, of which `backend` says which. Raises KernelError without it.

    `offload` and `ipip` are TunnelTarget's.
    """
    backends: dict[int, Backend] = {}
    for version in sorted(versions):
        if nftables:
            backends[version] = nft_backend(version, lock_probe_ms)
        else:
            backends[version] = await iptables_backend(version, backend, append, lock_probe_ms)
    arp = await arp_target() if 4 in versions else None
    netlink = NetlinkSocket()
    routes = WorkloadRouteTarget(RouteTarget(netlink, ownership.owns), ownership, forget, clock)
    tunnels = TunnelTarget(netlink, offload=offload, ipip=ipip)
    return Kernel(
        netlink,
        backends,
        arp,
        routes,
        NeighbourTarget(netlink, ownership.is_workload),
        SysctlTarget(),
        ShapingTarget(netlink, ownership.prefixes),
        tunnels,
        NeighbourTarget(netlink, tunnels.is_vxlan, both_families=True),
        ForwardingTarget(netlink, tunnels.is_vxlan),
        ownership,
    )


def usable_versions(ipv6: bool, nftables: bool = False) -> frozenset[int]:
    """The IP versions to work for: 6 only if asked for and there."""
    there = os.path.exists("/proc/net/if_inet6") if nftables else installed(6)
    return frozenset((4, 6)) if ipv6 and there else frozenset((4,))
