"""Three machines on one wire, each with a pod: for WireGuard. Two run felix's dataplane, in this process.

What BGP would do - plain routes to the other machines' blocks - is there from the beginning; what IPAM and
felix's agent would do - a tunnel address for who has a key, keys in the Node - is done between passes.
The third machine is one that knows nothing of WireGuard.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import structs

from tests.felix.node_lab import Loop, Pod, pings
from tests.felix.objects import allow, pool, profile, workload
from tests.netns_lab import Namespace
from tortie.datastore.keys import AffinityKey, BlockKey, Key, ResourceKey
from tortie.datastore.syncer import Update
from tortie.datastore.types.ipam import Affinity, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec, NodeWireguardSpec
from tortie.felix import wgkeys
from tortie.felix.calc.graph import Calculation
from tortie.felix.config import Sources, resolve
from tortie.felix.dataplane.driver import Driver
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import Kernel, open_kernel
from tortie.felix.dataplane.routes import Ownership
from tortie.felix.watch import InterfaceWatch
from tortie.linux import links

VERSIONS = frozenset((4, 6))
DEVICES = {4: "wireguard.cali", 6: "wg-v6.cali"}
_PATIENCE = 200.0  # seconds for one pass: a guest whose programs and modules were never loaded before
_ROUNDS = 20  # of looks at what the others published, until nothing changes any more
_GREETING = b"hello\n"
_FIELDS = {4: "interfaceIPv4Address", 6: "interfaceIPv6Address"}


def pod_address(machine: int, version: int, ordinal: int) -> str:
    number = 64 * (machine - 1) + ordinal
    return f"10.65.0.{number}" if version == 4 else f"fd65::{number:x}"


def block_of(machine: int, version: int) -> str:
    return (
        f"10.65.0.{64 * (machine - 1)}/26"
        if version == 4
        else f"fd65::{64 * (machine - 1):x}/122".replace("::0/", "::/")
    )


class Machine:
    def __init__(self, number: int, wire: Namespace, make: Callable[[], Namespace]) -> None:
        self.number, self.name, self.make = number, f"node{number}", make
        self.ns = make()
        self.addresses = {4: f"172.16.0.{number}", 6: f"fd16::{number:x}"}
        self.ns.veth("eth0", f"port{number}", wire)
        wire.netlink.execute(links.change(f"port{number}", master=wire.ifindex("wire")))
        self.ns.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
        self.ns.sh(f"ip address add {self.addresses[4]}/24 dev eth0")
        self.ns.sh(f"ip address add {self.addresses[6]}/64 dev eth0 nodad")
        self.ns.sh("ip route add default via 172.16.0.254")  # else nobody answers for a pod's gateway
        self.ns.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        self.pod = Pod(self, f"pod{number}", 64 * (number - 1) + 5)  # type: ignore[arg-type]
        self.pod.cni_route()
        self.loop = Loop(self.ns)
        self.kernel: Kernel | None = None
        self.skew = 0.0
        self.known: dict[Key, Any] = {}

    def clock(self) -> float:
        return time.monotonic() + self.skew

    def start(self, objects: Mapping[Key, Any], **environment: object) -> None:
        """As a felix that finds this in the datastore, and in the kernel what the last one left."""
        self.stop()
        given = {f"FELIX_{name}": str(value) for name, value in environment.items()}
        sources = Sources(self.name, given)
        for key, value in objects.items():
            if isinstance(key, ResourceKey):
                sources.take(key.kind, key.name, value)
        config, _ = resolve(sources)
        self.loop.run(self._open(config), _PATIENCE)
        self.known = {}

    async def _open(self, config: Any) -> None:
        self.interfaces = Interfaces()
        ownership = Ownership(self.interfaces.name_of, ("cali",))
        self.kernel = await open_kernel(VERSIONS, ownership, clock=self.clock, backend="nft")
        options = config.options(VERSIONS, "1")
        self.driver = Driver(options, self.kernel, self.interfaces, clock=self.clock, rand=lambda: 0.5)
        self.watch = InterfaceWatch(
            self.interfaces, self.kernel.netlink, interval=0, noticed=lambda: None,
            link_gone=self.driver.interface_gone, route_seen=self.driver.route_seen, lost=self.driver.forget,
        )  # fmt: skip
        self.calculation = Calculation(config.inputs())
        self._started = False

    def stop(self) -> None:
        if self.kernel is not None:
            self.loop.run(self.kernel.close())
            self.kernel = None

    def follow(self, objects: Mapping[Key, Any]) -> bool:
        """Take in what is new and apply it; whether there was nothing to do."""
        return self.loop.run(self._follow(objects), _PATIENCE)

    async def _follow(self, objects: Mapping[Key, Any]) -> bool:
        for key in self.known.keys() - objects.keys():
            self.calculation.update(Update("deleted", key, None))
        for key, value in objects.items():
            if self.known.get(key) != value:
                self.calculation.update(Update("updated", key, value))
        self.known = dict(objects)
        touched = self.calculation.flush()
        self.watch.reread()
        names = self.interfaces.settle(self.clock())
        if not self._started:
            self._started = True
            self.driver.start(self.calculation.state)
        else:
            if touched:
                self.driver.update(touched)
            self.driver.interfaces_changed(names)
        if self.driver.next_due() > self.clock():
            return True
        await self.driver.apply()
        return False

    @property
    def wireguard_duties(self) -> list[Duty[Any, Any]]:
        return self.driver.wireguard.duties

    def close(self) -> None:
        self.stop()
        self.loop.close()


class World:
    """`make_netns` outlives it. `felixes`: the machines that run one after start()."""

    def __init__(self, make_netns: Callable[[], Namespace], machines: int = 3) -> None:
        self.wire = make_netns()
        self.wire.netlink.execute(links.create_bridge("wire", up=True))
        self.machines = {number: Machine(number, self.wire, make_netns) for number in range(1, machines + 1)}
        self.felixes = {number: self.machines[number] for number in list(self.machines)[:-1]}
        self.environments: dict[int, dict[str, object]] = {}
        self.objects: dict[Key, Any] = dict(
            [pool("v4", "10.65.0.0/16"), pool("v6", "fd65::/64"), profile("open", allow())]
        )
        for machine in self.machines.values():
            self._connect(machine)
        self._echoes = [Echo(machine.pod.ns) for machine in self.machines.values()]

    def _connect(self, machine: Machine) -> None:
        pod = machine.pod
        spec = NodeSpec(
            bgp=NodeBGPSpec(
                ipv4Address=f"{machine.addresses[4]}/24", ipv6Address=f"{machine.addresses[6]}/64"
            )
        )
        key = ResourceKey("Node", machine.name)
        self.objects[key] = Node(metadata=ObjectMeta(name=machine.name), spec=spec)
        endpoint = workload(pod.name, f"{pod.v4}/32", f"{pod.v6}/128", node=machine.name, profiles=("open",))
        self.objects.update([endpoint])
        for version in VERSIONS:
            block = block_of(machine.number, version)
            self.objects[BlockKey(block)] = Block(cidr=block, affinity=f"host:{machine.name}")
            self.objects[AffinityKey(block, machine.name)] = Affinity(state="confirmed")
            for other in self.machines.values():
                if other is not machine:
                    other.ns.sh(f"ip route add {block} via {machine.addresses[version]} dev eth0")

    def node(self, number: int) -> Node:
        found = self.objects[ResourceKey("Node", f"node{number}")]
        assert isinstance(found, Node)
        return found

    def change_node(self, number: int, **fields: Any) -> None:
        self.objects[ResourceKey("Node", f"node{number}")] = structs.replace(self.node(number), **fields)

    # --- felix ----------------------------------------------------------------------------------

    def start(self, *numbers: int, **environment: object) -> None:
        """(Re)start felix on these machines, or on all, with these parameters; until all is settled."""
        for number in numbers or self.felixes:
            self.environments[number] = environment
            self.felixes[number].start(self.objects, **environment)
        self.settle()

    def settle(self) -> None:
        for _ in range(_ROUNDS):
            quiet = [machine.follow(self.objects) for machine in self.felixes.values()]
            published = [self._publish(machine) for machine in self.felixes.values()]
            if all(quiet) and not any(published):
                return
        failures = {one.name: one.driver.failures() for one in self.felixes.values()}
        raise AssertionError(f"not settled: {failures}")

    def _publish(self, machine: Machine) -> bool:
        """What felix's agent and the allocator of tunnel addresses do; whether that was anything."""
        node = self.node(machine.number)
        keys = machine.driver.wireguard.keys()
        status = wgkeys.with_keys(node.status, keys)
        encrypts = self.environments[machine.number].get("WireguardHostEncryptionEnabled")
        given = {
            _FIELDS[version]: pod_address(machine.number, version, 1)
            for version, key in ((4, status.wireguardPublicKey), (6, status.wireguardPublicKeyV6))
            if key and not encrypts
        }
        spec = structs.replace(node.spec, wireguard=NodeWireguardSpec(**given) if given else None)
        if (status, spec) == (node.status, node.spec):
            return False
        self.change_node(machine.number, status=status, spec=spec)
        return True

    def resync(self) -> None:
        """As when every refresh interval has passed."""
        for machine in self.felixes.values():
            machine.skew += 1000
        self.settle()

    # --- packets --------------------------------------------------------------------------------

    def pods_reach(self, one: int, other: int, version: int) -> bool:
        """Patiently: the guest is slow, and there may be a handshake first."""
        target = self.machines[other].pod
        return pings(self.machines[one].pod.ns, target.v4 if version == 4 else target.v6, within=60)

    def close(self) -> None:
        for echo in self._echoes:
            echo.close()
        for machine in self.machines.values():
            machine.close()


class Echo:
    """A TCP server on port 80 that greets, then sends back what it gets, as the lab's pods do."""

    def __init__(self, ns: Namespace) -> None:
        self._listener = ns.call(
            socket.create_server, ("::", 80), family=socket.AF_INET6, dualstack_ipv6=True
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Conversation:
    """One TCP connection from a pod to another's Echo, for as long as it takes."""

    def __init__(self, client: Namespace, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = client.call(socket.socket, family, socket.SOCK_STREAM)
        self._socket.settimeout(_PATIENCE)
        self._socket.connect((address, 80))
        assert self._receive(len(_GREETING)) == _GREETING
        self._exchanged = 0

    def exchange(self) -> None:
        """A question and its answer, sent again for as long as it takes. Raises OSError if it is over."""
        self._exchanged += 1
        message = b"%016d" % self._exchanged
        self._socket.sendall(message)
        assert self._receive(len(message)) == message

    def _receive(self, size: int) -> bytes:
        found = b""
        while len(found) < size and (part := self._socket.recv(size - len(found))):
            found += part
        return found

    def close(self) -> None:
        self._socket.close()


def _echo(connection: socket.socket) -> None:
    with connection:
        connection.sendall(_GREETING)
        while data := connection.recv(4096):
            connection.sendall(data)


def picture(machine: Machine) -> list[str]:
    """What WireGuard could leave something in of a machine's network, without what the kernel adds late."""
    lines: list[str] = []
    for command in ("link", "address", "rule", "-6 rule", "route show table all", "-6 route show table all"):
        found = [line.partition(" <")[0] for line in machine.ns.sh(f"ip -o {command}").splitlines()]
        lines += [f"{command}: {line}" for line in found if "fe80::" not in line and "ff00::" not in line]
    return sorted(lines)
