"""WireGuard of this node: per IP version a device, its peers, a routing table and the rule that leads there.

The order of one sync() is what others rely on. Switched on: device, peers, routes, then the rule, so that
packets are led to nothing that cannot carry them; and a peer is let go only after the routes to it.
Switched off: the same backwards. While there is no device (this kernel has no WireGuard, a name is taken)
nothing is led to it: packets go the way they go without WireGuard.

Packets of the device itself carry its mark, which is how the rule tells them from those it is to encrypt.
(Reference: dataplane sheet 3.6; felix/wireguard/wireguard.go.)
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from socket import AF_INET, AF_INET6
from typing import Any

from tortie.felix import mtu
from tortie.felix.calc import canonical
from tortie.felix.calc.graph import State
from tortie.felix.calc.topology import NodeAddresses
from tortie.felix.calc.wireguard import Plan, holders, plan
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import Kernel
from tortie.felix.dataplane.wgdevice import (
    Device,
    Devices,
    DeviceTarget,
    Peers,
    PeerTarget,
    ThreadingTarget,
)
from tortie.felix.dataplane.wgrules import WireguardRules
from tortie.linux import iprules
from tortie.linux import wireguard as wg
from tortie.linux.route_target import RouteTarget
from tortie.linux.routes import PROTOCOL_BOOT, SCOPE_LINK, Route, RouteKey, RouteType

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WireguardOptions:
    """`versions`: IP versions it is on for; `host`: those the host has. `table`: of routes, 0: there is none.
    `devices`, `ports`, `sizes` (the MTU somebody set, 0 if nobody did, and the bytes that a tunnel adds)
    are of IPv4 and of IPv6. `mark`: of the devices' own packets. `keepalive`: seconds, 0: none.
    """

    node: str = ""
    versions: frozenset[int] = frozenset()
    host: frozenset[int] = frozenset((4, 6))
    devices: tuple[str, str] = ("wireguard.cali", "wg-v6.cali")
    ports: tuple[int, int] = (51820, 51821)
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((0, mtu.WIREGUARD_V4), (0, mtu.WIREGUARD_V6))
    priority: int = 99
    table: int = 1
    mark: int = 0
    keepalive: int = 0
    threading: bool = False
    encrypt_host: bool = False
    protocol: int = PROTOCOL_BOOT
    routes: bool = True
    uplinks: mtu.Uplinks = mtu.UPLINKS
    interval: float = 90.0

    def rule(self, version: int) -> iprules.Rule:
        """What leads all but the devices' own packets to the table."""
        return iprules.Rule(version, self.priority, self.table, self.mark, self.mark, invert=True)


class Wireguard:
    """Of all IP versions that this host has."""

    def __init__(
        self,
        options: WireguardOptions,
        kernel: Kernel,
        interfaces: Interfaces,
        *,
        clock: Callable[[], float],
        rand: Callable[[], float],
    ) -> None:
        if options.versions and not options.table:
            _log.warning("Unable to assign table index for wireguard: RouteTableRanges leaves none")
        self._options = options
        self._families = [
            _Family(options, version, kernel, interfaces, clock, rand) for version in sorted(options.host)
        ]

    @property
    def duties(self) -> list[Duty[Any, Any]]:
        return [duty for family in self._families for duty in family.duties]

    def sysctls(self) -> dict[str, str]:
        """The reverse path filter is to look at marks where the rule does, which host packets meet too."""
        wanted = 4 in self._options.versions and self._options.encrypt_host
        return {"net/ipv4/conf/all/src_valid_mark": "1"} if wanted else {}

    def update(self, state: State) -> None:
        """Something about nodes or blocks is new."""
        for family in self._families:
            family.update(state)

    def interfaces_changed(self, names: set[str]) -> None:
        for family in self._families:
            family.interfaces_changed(names)

    async def sync(self) -> None:
        for family in self._families:
            await family.sync()

    def keys(self) -> dict[int, str]:
        """IP version -> the public key others are to know, '' for none; without those not known yet."""
        found = {family.version: family.key() for family in self._families}
        return {version: key for version in (4, 6) if (key := found.get(version, "")) is not None}


class _Family:
    def __init__(
        self,
        options: WireguardOptions,
        version: int,
        kernel: Kernel,
        interfaces: Interfaces,
        clock: Callable[[], float],
        rand: Callable[[], float],
    ) -> None:
        self._options, self._node, self.version, self._interfaces = options, options.node, version, interfaces
        self._on = version in options.versions and options.table > 0
        self._name, self._port = options.devices[version == 6], options.ports[version == 6]
        self._state = State()
        self._host_mtu = mtu.FALLBACK
        self._placed: tuple[int, str] = (0, "")  # the device that the wishes are made for
        self._disputed: frozenset[str] = frozenset()
        self._leaving = True  # a peer, also one found at the start, stays until no route leads to it
        self._synced = False
        self._target = DeviceTarget(
            kernel.netlink, kernel.wireguard, self._name, version,
            spared=options.devices, mark=options.mark, port=self._port, published=self._published,
        )  # fmt: skip

        def duty(what: str, target: Any, **more: Any) -> Any:
            name = f"IPv{version} WireGuard {what}"
            return Duty(name, target, interval=options.interval, clock=clock, rand=rand, **more)

        peers = PeerTarget(kernel.wireguard, self._name, lambda: self._target.ifindex != 0)
        family = AF_INET if version == 4 else AF_INET6
        routes = RouteTarget(kernel.netlink, self._owns_route, families=(family,), table=options.table)
        rules = WireguardRules(kernel.netlink, options.rule(version), self._owns_route)
        self._devices: Devices = duty("devices", self._target)
        self._peers: Peers = duty("peers", peers, spare=lambda _key, _peer: inf if self._leaving else 0.0)
        self._routes: Duty[RouteKey, Route] = duty("routes", routes)
        self._rules: Duty[iprules.Rule, bool] = duty("rules", rules)
        self._threads: Duty[str, bool] = duty("threads", ThreadingTarget(self._name))

    @property
    def duties(self) -> list[Duty[Any, Any]]:
        found: list[Duty[Any, Any]] = [self._devices]
        if self._options.routes:
            found += [self._routes, self._rules] if self._options.table else [self._rules]
        if self._on:
            found += [self._peers, self._threads]
        return found

    # --- whose is what the kernel has -----------------------------------------------------------

    def _owns_route(self, route: Route) -> bool:
        """In a table that is or was ours; what somebody put there over other devices stays."""
        return route.type is RouteType.THROW or route.ifindex == self._target.ifindex != 0

    def _published(self) -> str:
        return self._own().key(self.version)

    def _own(self) -> NodeAddresses:
        return self._state.nodes.get(self._node, NodeAddresses())

    # --- what is to be --------------------------------------------------------------------------

    def update(self, state: State) -> None:
        self._state = state
        self._want_device()
        if self._on:
            self._place()

    def interfaces_changed(self, names: set[str]) -> None:
        """The kernel drops routes with the device that they lead over, and says nothing."""
        wanted = self._devices.desired.get(self._name) if self._target.ifindex else None
        held = () if wanted is None else map(canonical.address_of, wanted.addresses)
        missing = not self._interfaces.on(self._name).issuperset(held)
        if self._name in names or missing:
            for duty in self.duties:
                duty.forget()
        self._want_device()

    def _device(self) -> tuple[int, str]:
        return self._target.ifindex, self._target.public_key

    def _want_device(self) -> None:
        if not self._on:
            return
        uplinks = self._options.uplinks
        self._host_mtu = mtu.of_host(self._interfaces.shown(), uplinks, otherwise=self._host_mtu)
        size = mtu.of_tunnel(self._host_mtu, *self._options.sizes[self.version == 6])
        address = self._address(self._own())
        held = frozenset([canonical.cidr(address)] if address else ())
        self._devices.put(self._name, Device(size, self._port, self._options.mark, held))

    def _address(self, own: NodeAddresses) -> str:
        """What encrypts the host's own packets can do without an address from a pool."""
        found = own.wireguard_address(self.version)
        return found or (own.of(self.version) if self._options.encrypt_host else "")

    def _place(self) -> None:
        """Say who is a peer and what leads where, for the device there is."""
        target, options = self._target, self._options
        self._placed = self._device()
        nodes = self._state.nodes if target.ifindex else {}
        held = holders(self.version, self._state.owners, nodes, self._node, encrypt_host=options.encrypt_host)
        found = plan(self.version, target.public_key, held if target.ifindex else {}, nodes, self._node)
        self._tell_disputes(found)
        peers = {
            key: wg.Peer(peer.endpoint, self._port, options.keepalive, peer.allowed)
            for key, peer in found.peers.items()
        }
        self._leaving |= not self._peers.desired.keys() <= peers.keys()
        self._peers.want(peers)
        routes = [self._route(net, through) for net, through in found.ways.items()]
        self._routes.want({route.key: route for route in routes})
        if peers:
            self._threads.put(self._name, options.threading)
        else:
            self._threads.drop(self._name)

    def _route(self, net: str, through: bool) -> Route:
        table, protocol = self._options.table, self._options.protocol
        if not through:
            return Route(net, type=RouteType.THROW, table=table, protocol=protocol)
        ifindex = self._target.ifindex
        return Route(net, ifindex=ifindex, scope=SCOPE_LINK, table=table, protocol=protocol)

    def _tell_disputes(self, found: Plan) -> None:
        for name in sorted(found.disputed - self._disputed):
            _log.warning("node %s claims a WireGuard key that is another's too: not encrypted", name)
        for name in sorted(self._disputed - found.disputed):
            _log.info("nobody else claims the WireGuard key of node %s any more", name)
        self._disputed = found.disputed

    # --- making it so ---------------------------------------------------------------------------

    async def sync(self) -> None:
        if not self._on:
            for duty in reversed(self.duties):
                await duty.sync()
        else:
            await self._devices.sync()
            if self._device() != self._placed:
                self._place()
            await self._sync_peers()
            await self._threads.sync()
            self._want_rule()
            if self._options.routes:
                await self._rules.sync()
        self._synced = True

    async def _sync_peers(self) -> None:
        await self._peers.sync()
        if self._options.routes:
            await self._routes.sync()
        if self._leaving:
            self._leaving = False
            self._peers.touch()
            await self._peers.sync()

    def _want_rule(self) -> None:
        """Once packets are led to the device, one peer that cannot be had does not lead the others astray."""
        rule = self._options.rule(self.version)
        carries = rule in self._rules.desired or self._settled()
        self._rules.want({rule: True} if self._target.ifindex and carries else {})

    def _settled(self) -> bool:
        return self._peers.settled and (self._routes.settled or not self._options.routes)

    def key(self) -> str | None:
        """Others learn a key when what they send can be received, and answered the same way."""
        if not self._synced:
            return None
        key = self._target.public_key if self._on else ""
        return key if not key or self._settled() else None
