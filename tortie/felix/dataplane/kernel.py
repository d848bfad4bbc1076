"""All doors to this namespace's kernel that felix goes through, opened once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tortie.felix.dataplane.neighbours import NeighbourTarget
from tortie.felix.dataplane.routes import Ownership, WorkloadRouteTarget
from tortie.felix.dataplane.sysctls import SysctlTarget
from tortie.felix.rules.profiles import expendable
from tortie.linux import conntrack
from tortie.linux.ipsets import SetTarget
from tortie.linux.iptables import TableTarget
from tortie.linux.iptables_backend import detect, installed, other_in_use, tools
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.route_target import RouteTarget


@dataclass(frozen=True, slots=True)
class Kernel:
    """`tables` and `sets` are by IP version; `leftovers` are tables of the iptables back-end not in use."""

    netlink: NetlinkSocket
    tables: dict[int, TableTarget]
    sets: dict[int, SetTarget]
    leftovers: dict[int, TableTarget]
    routes: WorkloadRouteTarget
    neighbours: NeighbourTarget
    sysctls: SysctlTarget
    ownership: Ownership

    async def close(self) -> None:
        await self.routes.close()
        self.netlink.close()


async def open_kernel(
    versions: frozenset[int],
    ownership: Ownership,
    *,
    clock: Callable[[], float],
    backend: str = "auto",
    append: bool = False,
    lock_probe_ms: int = 50,
    forget: Callable[[str], Awaitable[None]] = conntrack.flush,
) -> Kernel:
    """Finds out which iptables to use. Raises KernelError if there is none."""
    tables: dict[int, TableTarget] = {}
    leftovers: dict[int, TableTarget] = {}
    for version in sorted(versions):
        chosen = await detect(version, backend)
        tables[version] = TableTarget(
            tools(version, chosen, lock_probe_ms), append=append, expendable=expendable
        )
        if (other := other_in_use(version, chosen)) is not None:
            leftovers[version] = TableTarget(tools(version, other, lock_probe_ms))
    netlink = NetlinkSocket()
    routes = WorkloadRouteTarget(RouteTarget(netlink, ownership.owns), ownership, forget, clock)
    return Kernel(
        netlink,
        tables,
        {version: SetTarget(version) for version in versions},
        leftovers,
        routes,
        NeighbourTarget(netlink, ownership.is_workload),
        SysctlTarget(),
        ownership,
    )


def usable_versions(ipv6: bool) -> frozenset[int]:
    """The IP versions to work for: 6 only if asked for and there."""
    return frozenset((4, 6)) if ipv6 and installed(6) else frozenset((4,))
