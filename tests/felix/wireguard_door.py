"""WireGuard's part of the kernel as a dictionary, over devices that are bridges.

For what there is to see of WireGuard where the kernel has none: devices, addresses, rules and routes are the
kernel's own, keys and peers are not. What is encrypted is tested in a guest.
"""

import errno
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from tests.felix.fakes import FakeClock
from tests.netns_lab import Namespace
from tests.support.aio import run
from tortie.core.errors import KernelError
from tortie.felix.calc.graph import State
from tortie.felix.calc.topology import NodeAddresses
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.wireguard import Wireguard, WireguardOptions
from tortie.linux import addresses, links
from tortie.linux import wireguard as wg

KIND = "bridge"  # what stands for WireGuard's
OPTIONS = WireguardOptions("node1", frozenset((4,)), frozenset((4,)), mark=0x200000, encrypt_host=True)


class Door:
    """wg.Wireguard for one namespace; a device's public key is its private key."""

    def __init__(self, ns: Namespace) -> None:
        self._ns = ns
        self._devices: dict[int, wg.Device] = {}  # ifindex -> what is known of it

    def read(self, name: str) -> wg.Device:
        link = links.get(self._ns.netlink, name)
        if link is None:
            raise KernelError("read", name, errno.ENODEV)
        return self._devices.get(link.ifindex, wg.Device())

    def set_device(
        self, name: str, *, private_key: bytes | None = None, port: int | None = None, mark: int | None = None
    ) -> None:
        device = self.read(name)
        given: dict[str, Any] = {"port": port, "mark": mark}
        given["public_key"] = None if private_key is None else b64encode(private_key).decode()
        given = {field: value for field, value in given.items() if value is not None}
        self._devices[self._ns.ifindex(name)] = replace(device, **given)

    def set_peers(self, name: str, changes: Iterable[wg.PeerChange]) -> dict[str, str]:
        device = self.read(name)
        self._devices[self._ns.ifindex(name)] = replace(device, peers=peers_after(device.peers, changes))
        return {}


def peers_after(there: Mapping[str, wg.Peer], told: Iterable[wg.PeerChange]) -> dict[str, wg.Peer]:
    """What is there afterwards: an allowed IP belongs to whom it was given last."""
    now = dict(there)
    for change in told:
        if change.remove:
            now.pop(change.key, None)
            continue
        if change.key not in now and change.update_only:
            continue
        peer = now.get(change.key, wg.Peer())
        if change.replace:
            peer = replace(peer, allowed=frozenset())
        for key, other in list(now.items()):
            now[key] = replace(other, allowed=other.allowed - set(change.allowed))
        peer = replace(peer, allowed=peer.allowed | set(change.allowed))
        if change.endpoint is not None:
            peer = replace(peer, endpoint=change.endpoint[0], port=change.endpoint[1])
        if change.keepalive is not None:
            peer = replace(peer, keepalive=change.keepalive)
        now[change.key] = peer
    return now


class Node:
    """A namespace with WireGuard's part of felix's dataplane, which can be started anew."""

    def __init__(self, ns: Namespace, nodes: Mapping[str, NodeAddresses]) -> None:
        self.ns, self.door, self.clock = ns, Door(ns), FakeClock()
        self.nodes = dict(nodes)
        self.kernel: Any = SimpleNamespace(netlink=ns.netlink, wireguard=self.door)

    def start(self, **options: Any) -> None:
        self.options = replace(OPTIONS, **options)
        self.interfaces = Interfaces()
        self.wireguard = Wireguard(
            self.options, self.kernel, self.interfaces, clock=self.clock, rand=lambda: 0.5
        )
        self.follow()

    def follow(self) -> None:
        """A pass, as after news of nodes and interfaces."""
        self.clock.now += 1000
        self.interfaces.reread(links.dump(self.ns.netlink), addresses.dump(self.ns.netlink), self.clock())
        names = self.interfaces.settle(self.clock())
        self.wireguard.update(State(nodes=self.nodes))
        self.wireguard.interfaces_changed(names)
        run(self.wireguard.sync())

    def publish(self) -> None:
        """What the agent does with keys."""
        keys = tuple((version, key) for version, key in self.wireguard.keys().items() if key)
        self.nodes["node1"] = replace(self.nodes["node1"], keys=keys)

    def table(self, number: int = 1) -> list[str]:
        return [
            line.strip().removesuffix(" linkdown")  # a bridge without ports
            for line in self.ns.run("ip", "route", "show", "table", str(number), check=False).splitlines()
        ]

    def rules(self) -> list[str]:
        return [line for line in self.ns.sh("ip rule").splitlines() if "fwmark" in line]

    def links(self) -> set[str]:
        return {link.name for link in links.dump(self.ns.netlink)}
