"""The ways to other nodes: tunnel devices, who is at their far ends, and the routes to what nodes have.

Devices come first in every pass, because everything else is said in terms of their indices: what leads
over a device that does not exist (yet) is not wished for. A node is behind a tunnel device once its
neighbour and forwarding entries and its routes are there; they are written in one pass.
(Reference: dataplane sheet 2.3, 3.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tortie.datastore.routeowner import Encapsulation
from tortie.felix import mtu
from tortie.felix.calc import canonical
from tortie.felix.calc.graph import State
from tortie.felix.calc.model import BlockRoute, Vtep, version_of
from tortie.felix.calc.topology import NodeAddresses
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.interfaces import Interface, Interfaces
from tortie.felix.dataplane.kernel import Kernel
from tortie.felix.dataplane.neighbours import FarEnd, FarEnds, Neighbours
from tortie.felix.dataplane.routes import Candidate, RouteClass, RouteTable
from tortie.felix.dataplane.tunnels import DEVICES, IPIP, VXLAN, Device, Devices
from tortie.linux.links import VXLAN_PORT, Vxlan
from tortie.linux.routes import PROTOCOL_BOOT, PROTOCOL_CALICO, SCOPE_LINK, Route, RouteType

_DIRECT = {  # encapsulation of the pool -> class of routes that need no tunnel
    Encapsulation.VXLAN: RouteClass.VXLAN_SAME_SUBNET,
    Encapsulation.IPIP: RouteClass.IPIP_SAME_SUBNET,
    Encapsulation.NONE: RouteClass.NO_ENCAP,
}


@dataclass(frozen=True, slots=True)
class OverlayOptions:
    """`vxlan`: IP versions it is on for; `ipip_address`: tunl0's, '' where it is to have none.

    `uplinks`: the interfaces that carry the host's traffic. `sizes`: of each device the MTU somebody
    set, 0 if nobody did, and the bytes that its tunnel adds. `protocol`: of routes into VXLAN tunnels;
    `cluster_protocol`: of blackholes and of other routes to nodes. `no_uplinks`: devices that may have the
    node's address and are not where its packets leave.
    """

    node: str
    versions: frozenset[int] = frozenset((4, 6))
    vxlan: frozenset[int] = frozenset()
    vni: int = 4096
    port: int = VXLAN_PORT
    ipip_address: str = ""
    offload: bool = True
    uplinks: mtu.Uplinks = mtu.UPLINKS
    sizes: tuple[tuple[str, int, int], ...] = (
        (IPIP, 0, mtu.IPIP),
        (VXLAN[4], 0, mtu.VXLAN_V4),
        (VXLAN[6], 0, mtu.VXLAN_V6),
    )
    protocol: int = PROTOCOL_BOOT
    sources: tuple[str, str] = ("", "")  # of packets that take a direct route: IPv4, IPv6
    no_uplinks: tuple[str, ...] = ()
    interval: float = 90.0

    @property
    def cluster_protocol(self) -> int:
        return PROTOCOL_CALICO if self.protocol == PROTOCOL_BOOT else self.protocol


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What counts of the host's interfaces: their MTU, and IP version -> the one with the node's address."""

    mtu: int
    uplinks: Mapping[int, Interface | None]


class Overlay:
    def __init__(
        self,
        options: OverlayOptions,
        kernel: Kernel,
        interfaces: Interfaces,
        routes: RouteTable,
        *,
        clock: Callable[[], float],
        rand: Callable[[], float],
    ) -> None:
        self._options, self._target, self._interfaces, self._routes = (
            options, kernel.tunnels, interfaces, routes,
        )  # fmt: skip
        interval = options.interval
        self.devices: Devices = Duty(
            "tunnel devices", kernel.tunnels, interval=interval, clock=clock, rand=rand
        )
        self.neighbours: Neighbours = Duty(
            "tunnel neighbours", kernel.tunnel_neighbours, interval=interval, clock=clock, rand=rand
        )
        self.far_ends: FarEnds = Duty(
            "forwarding entries", kernel.forwarding, interval=interval, clock=clock, rand=rand
        )
        self._state = State()
        self._surroundings = _Surroundings(mtu.FALLBACK, dict.fromkeys(options.versions))
        self._placed: tuple[int, ...] = ()  # indices of the devices that the wishes are made for

    @property
    def entries(self) -> list[Duty[Any, Any]]:
        """What is written beside the routes."""
        return [self.neighbours, self.far_ends]

    # --- what is to be --------------------------------------------------------------------------

    def update(self, state: State) -> None:
        """Something about nodes, pools or blocks is new."""
        self._state = state
        self._surroundings = self._look()
        self.devices.want(dict(self._wanted()))
        self._place()

    def look_again(self) -> None:
        """Interfaces changed. Those of pods come and go, which makes no difference here."""
        if self._look() != self._surroundings:
            self.update(self._state)

    def _look(self) -> _Surroundings:
        options, own = self._options, self._own()
        found = mtu.of_host(self._interfaces.shown(), options.uplinks, otherwise=self._surroundings.mtu)
        uplinks = {
            version: self._interfaces.holding(own.of(version), besides=options.no_uplinks)
            for version in options.versions
        }
        return _Surroundings(found, uplinks)

    def interfaces_changed(self, names: Iterable[str]) -> bool:
        """Whether to look again at what leads to other nodes: an uplink or a tunnel device is among them,
        or a device has not the addresses it should. The kernel drops routes with the interface."""
        uplinks = {one.name for one in self._surroundings.uplinks.values() if one is not None}
        concerned = not uplinks.union(DEVICES).isdisjoint(names) or any(
            not {canonical.address_of(cidr) for cidr in device.addresses} <= self._interfaces.on(name)
            for name, device in self.devices.desired.items()
        )
        if concerned:
            for duty in (self.devices, *self.entries):
                duty.forget()
        return concerned

    def _own(self) -> NodeAddresses:
        return self._state.nodes.get(self._options.node, NodeAddresses())

    def _wanted(self) -> Iterator[tuple[str, Device]]:
        """Each device that can be made now: VXLAN needs to know by which interface its packets leave."""
        options = self._options
        for version in sorted(options.vxlan & options.versions):
            vtep = self._own().vtep(version)
            parent = self._surroundings.uplinks[version]
            if vtep is not None and parent is not None:
                yield VXLAN[version], self._vxlan(version, vtep, parent)
        if options.ipip_address:
            held = frozenset([canonical.cidr(options.ipip_address)])
            yield IPIP, Device(self._mtu(IPIP), held, checksum_offload=options.offload)

    def _mtu(self, device: str) -> int:
        found = ((given, overhead) for name, given, overhead in self._options.sizes if name == device)
        return mtu.of_tunnel(self._surroundings.mtu, *next(found))

    def _vxlan(self, version: int, vtep: Vtep, parent: Interface) -> Device:
        options = self._options
        return Device(
            self._mtu(VXLAN[version]),
            frozenset([canonical.cidr(vtep.address)]),
            vtep.mac,
            Vxlan(options.vni, vtep.node_address, parent.ifindex, options.port),
            options.offload,
        )

    # --- making it so ---------------------------------------------------------------------------

    async def sync_devices(self) -> None:
        await self.devices.sync()
        if tuple(map(self._target.ifindex, DEVICES)) != self._placed:
            self._place()

    def _place(self) -> None:
        """Say what leads where, with the devices that there are."""
        self._placed = tuple(map(self._target.ifindex, DEVICES))
        neighbours: dict[tuple[int, str], str] = {}
        far_ends: dict[FarEnd, bool] = {}
        for name, node in sorted(self._state.nodes.items()):
            for version, vtep in node.vteps:
                ifindex = self._target.ifindex(VXLAN[version])
                if ifindex and name != self._options.node and VXLAN[version] in self.devices.desired:
                    neighbours[ifindex, vtep.address] = vtep.mac
                    far_ends[FarEnd(ifindex, vtep.mac, vtep.node_address)] = True
        self.neighbours.want(neighbours)
        self.far_ends.want(far_ends)
        self._routes.want("blackholes", self._blackholes())
        self._routes.want("blocks", self._block_candidates())

    def _blackholes(self) -> Iterator[Candidate]:
        protocol = self._options.cluster_protocol
        for block in sorted(self._state.blackholes):
            if version_of(block) in self._options.versions:
                route = Route(block, type=RouteType.BLACKHOLE, protocol=protocol)
                yield Candidate(RouteClass.BLACKHOLE, route)

    def _block_candidates(self) -> Iterator[Candidate]:
        if not self._state.block_routes:
            return
        uplinks = self._surroundings.uplinks
        for way in self._state.block_routes.values():
            if (version := version_of(way.dst)) in uplinks:
                parent = uplinks[version]
                if way.direct and parent is not None and parent.running:
                    yield self._direct(way, parent, version)
                elif (candidate := self._tunnelled(way, version)) is not None:
                    yield candidate

    def _direct(self, way: BlockRoute, parent: Interface, version: int) -> Candidate:
        route = Route(
            way.dst,
            ifindex=parent.ifindex,
            gateway=way.gateway,
            onlink=True,
            protocol=self._options.cluster_protocol,
            src=self._options.sources[version == 6] or None,
        )
        return Candidate(_DIRECT[way.encapsulation], route)

    def _tunnelled(self, way: BlockRoute, version: int) -> Candidate | None:
        """The route carries no MTU: the device's own is the same, and changes without touching routes."""
        if way.encapsulation is Encapsulation.IPIP and (ifindex := self._ready(IPIP)):
            protocol = self._options.cluster_protocol
            route = Route(way.dst, ifindex=ifindex, gateway=way.gateway, onlink=True, protocol=protocol)
            return Candidate(RouteClass.IPIP_TUNNEL, route)
        if way.encapsulation is Encapsulation.VXLAN and way.vtep and (ifindex := self._ready(VXLAN[version])):
            protocol = self._options.protocol
            if way.dst == canonical.cidr(way.vtep):  # the far end itself: it cannot be its own gateway
                route = Route(way.dst, ifindex=ifindex, scope=SCOPE_LINK, protocol=protocol)
            else:
                route = Route(way.dst, ifindex=ifindex, gateway=way.vtep, onlink=True, protocol=protocol)
            return Candidate(RouteClass.VXLAN_TUNNEL, route)
        return None

    def _ready(self, device: str) -> int:
        """The index of a device that is there and wanted, else 0."""
        return self._target.ifindex(device) if device in self.devices.desired else 0
