"""Tunnel devices, their far ends and the routes between nodes, in a real kernel.

The yardstick for every change: what is there afterwards is what a fresh start makes of the same objects.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import permutations
from random import Random
from typing import Any

import pytest

from tests.felix.objects import pool
from tests.netns_lab import Namespace, eventually
from tortie.datastore.keys import AffinityKey, BlockKey, Key, ResourceKey
from tortie.datastore.syncer import Update
from tortie.datastore.types.ipam import Affinity, AllocationAttribute, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec
from tortie.felix.calc.graph import Calculation
from tortie.felix.config import Config, Sources, resolve
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import Kernel
from tortie.felix.dataplane.neighbours import ForwardingTarget, NeighbourTarget
from tortie.felix.dataplane.overlay import Overlay
from tortie.felix.dataplane.routes import Ownership, RouteTable, WorkloadRouteTarget
from tortie.felix.dataplane.shaping import ShapingTarget
from tortie.felix.dataplane.sysctls import SysctlTarget
from tortie.felix.dataplane.tunnels import TunnelTarget
from tortie.linux import addresses, ethtool, links
from tortie.linux.route_target import RouteTarget

pytestmark = pytest.mark.kernel

Objects = dict[Key, Any]


class Host:
    """node1 at 172.16.0.2/24, fd16::2/64, and the part of felix that looks after ways to other nodes."""

    def __init__(self, ns: Namespace, **environment: str) -> None:
        self.ns = ns
        ns.veth("eth0", "far")
        for line in ("add 172.16.0.2/24", "add fd16::2/64 nodad"):
            ns.sh(f"ip address {line} dev eth0")
        self.environment = {f"FELIX_{name}": value for name, value in environment.items()}
        self.skew = 0.0
        self.config: Config | None = None
        self.known: Objects = {}

    def clock(self) -> float:
        return time.monotonic() + self.skew

    def start(self, config: Config) -> None:
        """As the process does when its configuration is another one."""
        self.config, self.known = config, {}
        netlink = self.ns.socket()
        self.interfaces = Interfaces()
        ownership = Ownership(self.interfaces.name_of, ("cali",), ipip=config.felix_writes_ipip)

        async def forget(_address: str) -> None: ...

        self.tunnels = TunnelTarget(netlink, offload=config.overlay.offload, ipip=config.manages_ipip)
        target = WorkloadRouteTarget(RouteTarget(netlink, ownership.owns), ownership, forget, self.clock)
        kernel = Kernel(
            netlink, {}, None, target, NeighbourTarget(netlink, ownership.is_workload), SysctlTarget(),
            ShapingTarget(netlink, ("cali",)),
            self.tunnels, NeighbourTarget(netlink, self.tunnels.is_vxlan, both_families=True),
            ForwardingTarget(netlink, self.tunnels.is_vxlan), ownership,
        )  # fmt: skip
        self.routes: Duty[Any, Any] = Duty(
            "routes", target, interval=90, clock=self.clock, rand=lambda: 0.5, spare=target.spare
        )
        target.wanted = self.routes.desired
        table = RouteTable(self.routes, target.claim)
        self.overlay = Overlay(
            config.overlay, kernel, self.interfaces, table, clock=self.clock, rand=lambda: 0.5
        )
        self.calculation = Calculation(config.inputs())

    def follow(self, objects: Objects) -> "Host":
        """Take the objects in, starting again if the configuration changed, until nothing is to do."""
        sources = Sources("node1", environment=self.environment)
        for key, value in objects.items():
            if isinstance(key, ResourceKey) and key.kind in ("IPPool", "Node"):
                sources.take(key.kind, key.name, value)
        config, _ = resolve(sources)
        if config != self.config:
            self.start(config)
        for key in self.known.keys() - objects.keys():
            self.calculation.update(Update("deleted", key, None))
        for key, value in objects.items():
            if self.known.get(key) is not value:
                self.calculation.update(Update("updated" if key in self.known else "new", key, value))
        self.known = dict(objects)
        self.calculation.flush()
        self.overlay.update(self.calculation.state)
        return self.settle()

    def settle(self) -> "Host":
        for _ in range(10):
            if self.ns.call(asyncio.run, self._pass()):
                break
        return self

    def refresh(self) -> "Host":
        """As when every interval has passed."""
        self.skew += 1000
        return self.settle()

    def look(self) -> None:
        """Take in how the interfaces are at this moment."""
        netlink = self.ns.netlink
        self.interfaces.reread(links.dump(netlink), addresses.dump(netlink), self.clock())

    async def _pass(self) -> bool:
        """Whether there was nothing to do."""
        self.look()
        names = self.interfaces.settle(self.clock()) | self.interfaces.take_flapped()
        if self.overlay.interfaces_changed(names):
            self.routes.forget()
        self.overlay.look_again()
        duties: list[Duty[Any, Any]] = [self.overlay.devices, self.routes, *self.overlay.entries]
        before = [duty.outcome for duty in duties]
        await self.overlay.sync_devices()
        for duty in duties[1:]:
            await duty.sync()
        done = zip(duties, before, strict=True)
        return all(
            duty.outcome is old or not (duty.outcome.updated or duty.outcome.deleted) for duty, old in done
        )

    # --- what is there --------------------------------------------------------------------------

    def shown(self) -> list[str]:
        """Everything of the overlay, without what differs between kernels and between indices."""
        lines = self.routes_shown()
        for link in sorted(self.ns.ip("-d", "link"), key=lambda one: str(one["ifname"])):
            kind = link.get("linkinfo", {})
            if link["ifname"] == "tunl0" and not self.held("tunl0"):
                continue  # the kernel's, there for ever: as good as not there
            if kind.get("info_kind") in ("vxlan", "ipip"):
                data = kind.get("info_data", {})
                facts = [data.get(name) for name in ("id", "local", "local6", "link", "port", "learning")]
                held = self.held(link["ifname"]) if "UP" in link["flags"] else "down"
                lines.append(f"{link['ifname']} {link['mtu']} {link['address']} {facts} {held}")
        for command in ("bridge fdb", "ip neigh"):
            lines += sorted(line.strip() for line in self.ns.sh(command).splitlines() if "calico" in line)
        return lines

    def held(self, name: str) -> list[str]:
        """An interface's addresses."""
        (found,) = self.ns.ip("address", "show", name)
        shown = [one for one in found["addr_info"] if one["scope"] == "global"]
        return [f"{one['local']}/{one['prefixlen']}" for one in shown]

    def routes_shown(self) -> list[str]:
        text = self.ns.sh("ip route") + self.ns.sh("ip -6 route")
        return sorted(line.strip() for line in text.splitlines() if "proto kernel" not in line)


MakeHost = Callable[..., Host]


@pytest.fixture
def host(make_netns: Callable[[], Namespace]) -> MakeHost:
    return lambda **environment: Host(make_netns(), **environment)


# --- objects ------------------------------------------------------------------------------------


def node(
    name: str, v4: str = "", v6: str = "", tunnel: str = "", tunnel6: str = "", ipip: str = ""
) -> Objects:
    spec = NodeSpec(
        bgp=NodeBGPSpec(ipv4Address=v4, ipv6Address=v6, ipv4IPIPTunnelAddr=ipip),
        ipv4VXLANTunnelAddr=tunnel,
        ipv6VXLANTunnelAddr=tunnel6,
    )
    return {ResourceKey("Node", name): Node(metadata=ObjectMeta(name=name), spec=spec)}


def block(cidr: str, owner: str, **borrowed: int) -> Objects:
    """`borrowed`: node -> ordinal of the one address it has in the block."""
    attributes = tuple(AllocationAttribute(secondary={"node": name}) for name in borrowed)
    size = max([4, *(ordinal + 1 for ordinal in borrowed.values())])
    allocations: list[int | None] = [None] * size
    for index, ordinal in enumerate(borrowed.values()):
        allocations[ordinal] = index
    made = Block(cidr=cidr, affinity=f"host:{owner}", allocations=tuple(allocations), attributes=attributes)
    objects: Objects = {BlockKey(cidr): made}
    objects[AffinityKey(cidr, owner)] = Affinity(state="confirmed")
    return objects


def cluster(*more: Objects, vxlan: str = "", vxlan6: str = "", ipip: str = "") -> Objects:
    """The sheet's worked example: node1 is this host, node2 in its subnet, node3 beyond a router."""
    objects: Objects = dict(
        [pool("v4", "10.0.0.0/8", vxlan=vxlan, ipip=ipip), pool("v6", "fd10::/64", vxlan=vxlan6)]
    )
    for part in (
        node("node1", "172.16.0.2/24", "fd16::2/64", *tunnels(1, vxlan, vxlan6, ipip)),
        node("node2", "172.16.0.9/24", "fd16::9/64", *tunnels(2, vxlan, vxlan6, ipip)),
        node("node3", "172.17.0.9/24", "fd17::9/64", *tunnels(3, vxlan, vxlan6, ipip)),
        *(block(f"10.{n}.0.0/26", f"node{n}") for n in (1, 2, 3)),
        *(block(f"fd10::{n}00/122", f"node{n}") for n in (1, 2, 3)),
        *more,
    ):  # fmt: skip
        objects |= part
    return objects


def tunnels(number: int, vxlan: str, vxlan6: str, ipip: str) -> tuple[str, str, str]:
    return (
        f"10.{number}.0.1" if vxlan else "",
        f"fd10::{number}01" if vxlan6 else "",
        f"10.{number}.0.2" if ipip else "",
    )


# --- the worked examples ------------------------------------------------------------------------

FAR = [  # what belongs to node2 and node3 behind the tunnels
    "66:2d:bf:44:a6:8b dev vxlan.calico dst 172.16.0.9 self permanent",
    "66:32:42:ed:de:d5 dev vxlan-v6.calico dst fd16::9 self permanent",
    "66:71:6e:25:e2:07 dev vxlan-v6.calico dst fd17::9 self permanent",
    "66:a4:6f:e0:c4:da dev vxlan.calico dst 172.17.0.9 self permanent",
    "10.2.0.1 dev vxlan.calico lladdr 66:2d:bf:44:a6:8b PERMANENT",
    "10.3.0.1 dev vxlan.calico lladdr 66:a4:6f:e0:c4:da PERMANENT",
    "fd10::201 dev vxlan-v6.calico lladdr 66:32:42:ed:de:d5 PERMANENT",
    "fd10::301 dev vxlan-v6.calico lladdr 66:71:6e:25:e2:07 PERMANENT",
]
DEVICES = [
    "vxlan-v6.calico 1430 66:0f:35:f2:60:df [4096, None, 'fd16::2', 'eth0', 4789, False] ['fd10::101/128']",
    "vxlan.calico 1450 66:f9:37:c3:7e:94 [4096, '172.16.0.2', None, 'eth0', 4789, False] ['10.1.0.1/32']",
]
BLACKHOLES = [
    "blackhole 10.1.0.0/26 proto 80",
    "blackhole fd10::100/122 dev lo proto 80 metric 1024 pref medium",
]
TUNNELLED6 = [
    "fd10::200/122 via fd10::201 dev vxlan-v6.calico metric 1024 onlink pref medium",
    "fd10::300/122 via fd10::301 dev vxlan-v6.calico metric 1024 onlink pref medium",
]


def test_vxlan_always(host: MakeHost) -> None:
    """A borrowed address goes to who has it, not to who has the block."""
    borrowed = block("10.9.0.0/26", "node2", node3=7)
    assert host().follow(cluster(borrowed, vxlan="Always", vxlan6="Always")).shown() == [
        "10.2.0.0/26 via 10.2.0.1 dev vxlan.calico onlink",
        "10.3.0.0/26 via 10.3.0.1 dev vxlan.calico onlink",
        "10.9.0.0/26 via 10.2.0.1 dev vxlan.calico onlink",
        "10.9.0.7 via 10.3.0.1 dev vxlan.calico onlink",
        *BLACKHOLES, *TUNNELLED6, *DEVICES, *FAR,
    ]  # fmt: skip


def test_across_subnets_only(host: MakeHost) -> None:
    assert host().follow(cluster(vxlan="CrossSubnet", vxlan6="Always")).shown() == [
        "10.2.0.0/26 via 172.16.0.9 dev eth0 proto 80 onlink",
        "10.3.0.0/26 via 10.3.0.1 dev vxlan.calico onlink",
        *BLACKHOLES, *TUNNELLED6, *DEVICES, *FAR,
    ]  # fmt: skip


def test_what_is_bgps_is_left_to_it_and_what_is_felixs_is_done(host: MakeHost) -> None:
    assert host().follow(cluster()).shown() == []
    one = host(PROGRAMCLUSTERROUTES="Enabled", DEVICEROUTESOURCEADDRESS="172.16.0.2")
    assert one.follow(cluster()).shown() == [
        "10.2.0.0/26 via 172.16.0.9 dev eth0 proto 80 src 172.16.0.2 onlink",
        "10.3.0.0/26 via 172.17.0.9 dev eth0 proto 80 src 172.16.0.2 onlink",
        *BLACKHOLES,
        "fd10::200/122 via fd16::9 dev eth0 proto 80 metric 1024 onlink pref medium",
        "fd10::300/122 via fd17::9 dev eth0 proto 80 metric 1024 onlink pref medium",
    ]


def test_pools_of_different_modes_at_once(host: MakeHost) -> None:
    objects = cluster(
        dict([pool("bgp", "192.168.0.0/16"), pool("near", "172.30.0.0/16", vxlan="CrossSubnet")]),
        block("192.168.2.0/26", "node2"),
        block("172.30.2.0/26", "node2"),
        block("172.30.3.0/26", "node3"),
        vxlan="Always",
    )
    assert host().follow(objects).routes_shown() == [
        "10.2.0.0/26 via 10.2.0.1 dev vxlan.calico onlink",
        "10.3.0.0/26 via 10.3.0.1 dev vxlan.calico onlink",
        "172.30.2.0/26 via 172.16.0.9 dev eth0 proto 80 onlink",
        "172.30.3.0/26 via 10.3.0.1 dev vxlan.calico onlink",
        "blackhole 10.1.0.0/26 proto 80",
    ]


def test_a_far_end_that_is_a_block_by_itself(host: MakeHost) -> None:
    """It cannot be its own gateway."""
    objects = cluster(
        node("node2", "172.16.0.9/24", tunnel="10.8.0.5"), block("10.8.0.5/32", "node2"), vxlan="Always"
    )
    shown = host().follow(objects).routes_shown()
    assert "10.8.0.5 dev vxlan.calico scope link" in shown
    assert "10.2.0.0/26 via 10.8.0.5 dev vxlan.calico onlink" in shown


# --- IPIP ---------------------------------------------------------------------------------------


IN_GUEST = pytest.mark.vm(user_mode=True)  # its kernel has tunl0
EITHER = pytest.mark.parametrize("kernel", ["own", pytest.param("guest's", marks=IN_GUEST)])
MODES: list[dict[str, str]] = [
    {}, {"ipip": "Always"}, {"ipip": "CrossSubnet"}, {"vxlan": "Always"}, {"vxlan": "CrossSubnet"},
]  # fmt: skip


@EITHER
def test_ipip_is_made_or_refused_with_the_name_of_the_module(host: MakeHost, kernel: str) -> None:
    """Where the kernel has it tunl0 gets the address, and loses it with the mode."""
    one = host(PROGRAMCLUSTERROUTES="EnabledIPIPOnly")
    one.ns.run("ip", "link", "add", "probe", "type", "ipip", "local", "10.255.0.1", check=False)
    one.follow(cluster(ipip="Always"))
    if "probe" not in one.ns.run("ip", "link"):
        assert kernel == "own"
        assert "kernel module ipip" in one.overlay.devices.outcome.failed["tunl0"]
        assert one.routes_shown() == BLACKHOLES[:1], "rather no way than one that leads elsewhere"
        return
    assert one.routes_shown() == [
        "10.2.0.0/26 via 172.16.0.9 dev tunl0 proto 80 onlink",
        "10.3.0.0/26 via 172.17.0.9 dev tunl0 proto 80 onlink",
        *BLACKHOLES[:1],
    ]
    assert one.held("tunl0") == ["10.1.0.2/32"]
    one.follow(cluster())
    assert one.held("tunl0") == []


def test_a_device_named_tunl0_that_is_none_is_left_alone(host: MakeHost) -> None:
    one = host(PROGRAMCLUSTERROUTES="EnabledIPIPOnly")
    one.ns.run("ip", "link", "del", "tunl0", check=False)
    if "tunl0" in one.ns.run("ip", "link"):  # the kernel's own stays whatever one does
        return
    one.ns.veth("tunl0", "tunl0-far")
    one.follow(cluster(ipip="CrossSubnet"))
    assert "there is a veth of this name" in one.overlay.devices.outcome.failed["tunl0"]
    assert one.held("tunl0") == []


@IN_GUEST
@pytest.mark.timeout(1800)  # minutes of computing, where others compute beside it
def test_every_change_of_mode_ends_where_a_fresh_start_begins(host: MakeHost) -> None:
    """With felix as the owner of all routes; with BGP in tests/cluster, in far fewer nodes."""
    fresh = [host(PROGRAMCLUSTERROUTES="Enabled").follow(cluster(**mode)).shown() for mode in MODES]
    assert fresh[2] == [
        "10.2.0.0/26 via 172.16.0.9 dev eth0 proto 80 onlink",
        "10.3.0.0/26 via 172.17.0.9 dev tunl0 proto 80 onlink",
        *BLACKHOLES,
        "fd10::200/122 via fd16::9 dev eth0 proto 80 metric 1024 onlink pref medium",
        "fd10::300/122 via fd17::9 dev eth0 proto 80 metric 1024 onlink pref medium",
        "tunl0 1480 0.0.0.0 [None, 'any', None, None, None, None] ['10.1.0.2/32']",
    ]
    for before, after in permutations(range(len(MODES)), 2):
        if "ipip" not in MODES[before] | MODES[after]:
            continue  # below, in a kernel without it
        one = host(PROGRAMCLUSTERROUTES="Enabled").follow(cluster(**MODES[before]))
        assert one.follow(cluster(**MODES[after])).shown() == fresh[after], (MODES[before], MODES[after])


@IN_GUEST
def test_damage_to_ipip_is_repaired(host: MakeHost) -> None:
    one = host(PROGRAMCLUSTERROUTES="Enabled").follow(cluster(ipip="Always"))
    before = one.shown()
    for damage in (
        "ip link set tunl0 down",
        "ip link set tunl0 mtu 1400",
        "ip address flush dev tunl0",
        "ip address add 10.1.0.99/32 dev tunl0",
        "ip route del 10.2.0.0/26",
    ):
        one.ns.sh(damage)
        assert one.shown() != before, damage
        assert one.refresh().shown() == before, damage


# --- drift --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "ip link del vxlan.calico",
        "ip link set vxlan.calico down",
        "ip link set vxlan.calico mtu 1400",
        "ip link set vxlan.calico address 66:00:00:00:00:01",
        "ip address del 10.1.0.1/32 dev vxlan.calico",
        "ip address add 10.1.0.77/32 dev vxlan.calico",
        "ip route add 10.77.0.0/24 via 10.3.0.1 dev vxlan.calico onlink",
        "ip route del 10.2.0.0/26",
        "ip route replace 10.2.0.0/26 via 172.16.0.254 dev eth0",
        "ip -6 route replace fd10::200/122 via fe80::1 dev eth0 metric 1024",
        "bridge fdb add 66:00:00:00:00:02 dev vxlan.calico dst 172.16.0.77",
        "bridge fdb del 66:2d:bf:44:a6:8b dev vxlan.calico dst 172.16.0.9",
        "ip neigh replace 10.2.0.1 lladdr 66:00:00:00:00:03 dev vxlan.calico nud permanent",
        "ip neigh add 10.2.0.99 lladdr 66:00:00:00:00:03 dev vxlan.calico nud permanent",
        "ip -6 neigh del fd10::201 dev vxlan-v6.calico",
    ],
)
def test_damage_is_repaired(host: MakeHost, damage: str) -> None:
    one = host().follow(cluster(vxlan="Always", vxlan6="Always"))
    before = one.shown()
    one.ns.sh(damage)
    assert one.shown() != before
    assert one.refresh().shown() == before


def test_a_device_of_another_make_is_replaced(host: MakeHost) -> None:
    one, fresh = host(), host()
    one.ns.sh("ip link add vxlan.calico type vxlan id 7 local 172.16.0.2 dev eth0 dstport 8472 learning")
    objects = cluster(vxlan="Always")
    assert one.follow(objects).shown() == fresh.follow(objects).shown()


def test_the_size_follows_the_hosts_interfaces(host: MakeHost) -> None:
    one = host().follow(cluster(vxlan="Always", vxlan6="Always"))
    one.ns.sh("ip link set eth0 mtu 9000")
    one.settle()
    assert [one.ns.ip("link", "show", name)[0]["mtu"] for name in ("vxlan.calico", "vxlan-v6.calico")] == [
        8950,
        8930,
    ]
    fixed = host(VXLANMTU="1300", VXLANVNI="77", VXLANPORT="8472").follow(cluster(vxlan="Always"))
    assert fixed.shown()[-5].startswith("vxlan.calico 1300 ")
    assert "[77, '172.16.0.2', None, 'eth0', 8472, False]" in fixed.shown()[-5]


def test_checksums_are_computed_before_kernels_that_cannot(host: MakeHost) -> None:
    for broken in (False, True):
        one = host(FEATUREDETECTOVERRIDE=f"ChecksumOffloadBroken={str(broken).lower()}")
        one.follow(cluster(vxlan="Always"))
        assert one.ns.call(ethtool.tx_checksum, "vxlan.calico") is not broken


def test_without_the_nodes_own_interface_there_is_no_tunnel(host: MakeHost) -> None:
    """It comes with the address, and with nothing else."""
    one = host()
    one.ns.sh("ip address del 172.16.0.2/24 dev eth0")
    one.follow(cluster(vxlan="CrossSubnet"))
    assert one.routes_shown() == ["blackhole 10.1.0.0/26 proto 80"]
    one.ns.sh("ip address add 172.16.0.2/24 dev eth0")
    assert one.settle().shown() == host().follow(cluster(vxlan="CrossSubnet")).shown()


def test_the_tunnel_outlives_an_uplink_that_does_not_run(host: MakeHost) -> None:
    """What is on the way need not be found again, as it would be through a new device."""
    one = host().follow(cluster(vxlan="CrossSubnet", vxlan6="Always"))
    before, indices = one.shown(), [one.ns.ifindex(name) for name in ("vxlan.calico", "vxlan-v6.calico")]
    one.ns.sh("ip link set far down")
    eventually(lambda: not one.ns.running("eth0"))
    assert "10.3.0.0/26 via 10.3.0.1 dev vxlan.calico onlink" in one.settle().refresh().routes_shown()
    one.ns.sh("ip link set far up")
    eventually(lambda: one.ns.running("eth0"))
    assert one.settle().shown() == before
    assert [one.ns.ifindex(name) for name in ("vxlan.calico", "vxlan-v6.calico")] == indices


@pytest.mark.parametrize("device", ["eth0", "vxlan.calico"])
def test_routes_that_a_moment_without_the_interface_cost_come_back(host: MakeHost, device: str) -> None:
    """The kernel drops them, and says nothing."""
    one = host().follow(cluster(vxlan="CrossSubnet"))
    before = one.shown()
    one.ns.sh(f"ip link set {device} down")
    one.look()
    one.ns.sh(f"ip link set {device} up")
    eventually(lambda: one.ns.running(device))
    assert one.shown() != before
    assert one.settle().shown() == before


def test_a_node_that_gets_another_address_leaves_nothing_of_the_old_one(host: MakeHost) -> None:
    one, fresh = host(), host()
    one.follow(cluster(vxlan="CrossSubnet", vxlan6="Always"))
    moved = cluster(
        node("node1", "172.17.0.3/24", "fd17::3/64", "10.1.0.1", "fd10::101"),
        vxlan="CrossSubnet",
        vxlan6="Always",
    )
    for either in (one, fresh):
        either.ns.sh("ip address flush dev eth0 scope global")
        either.ns.sh("ip address add 172.17.0.3/24 dev eth0")
        either.ns.sh("ip address add fd17::3/64 dev eth0 nodad")
    shown = one.settle().follow(moved).shown()
    assert shown == fresh.follow(moved).shown()
    assert "10.3.0.0/26 via 172.17.0.9 dev eth0 proto 80 onlink" in shown
    assert "10.2.0.0/26 via 10.2.0.1 dev vxlan.calico onlink" in shown


# --- changes ------------------------------------------------------------------------------------


def changed(objects: Objects, random: Random) -> Objects:
    """The objects after one thing that happens to clusters."""
    modes = ("Never", "CrossSubnet", "Always")
    name = f"node{random.choice((2, 3))}"
    number = int(name[-1])
    what = random.randrange(9)
    if what == 0:
        return objects | dict([pool("v4", "10.0.0.0/8", vxlan=random.choice(modes))])
    if what == 1:
        return objects | dict([pool("v6", "fd10::/64", vxlan=random.choice(modes))])
    if what == 2:  # deleted or made: a pool of its own for some blocks
        extra = ResourceKey("IPPool", "extra")
        if extra in objects:
            return {key: value for key, value in objects.items() if key != extra}
        return objects | dict([pool("extra", "10.2.0.0/15", vxlan=random.choice(modes))])
    if what == 3:  # another address, perhaps in the other subnet
        v4 = f"172.{random.choice((16, 17))}.0.{random.choice((8, 9))}{number}/24"
        v6 = f"fd{random.choice((16, 17))}::{number}{random.choice((8, 9))}/64"
        return objects | node(name, v4, v6, f"10.{number}.0.1", f"fd10::{number}01")
    if what == 4:  # tunnel addresses come, go and change
        ends = random.choice([("", ""), (f"10.{number}.0.{random.choice((1, 5))}", f"fd10::{number}05")])
        return objects | node(name, f"172.17.0.{number}/24", f"fd17::{number}/64", *ends)
    if what == 5:
        return {key: value for key, value in objects.items() if key != ResourceKey("Node", name)}
    if what == 6:
        borrower = f"node{random.choice((1, 2, 3))}"
        return objects | block(
            f"10.{random.choice((1, 2, 3))}.0.0/26", name, **{borrower: random.randrange(9)}
        )
    if what == 7:  # the own node widens or narrows its subnet
        length = random.choice((12, 24, 32))
        return objects | node("node1", f"172.16.0.2/{length}", "fd16::2/64", "10.1.0.1", "fd10::101")
    cidr = random.choice([f"10.{number}.0.0/26", f"fd10::{number}00/122"])
    return {key: value for key, value in objects.items() if getattr(key, "cidr", "") != cidr}


@pytest.mark.parametrize("seed", range(3))
def test_any_history_ends_where_a_fresh_start_begins(host: MakeHost, seed: int) -> None:
    random = Random(seed)
    objects = cluster(vxlan="Always", vxlan6="CrossSubnet")
    one = host().follow(objects)
    for step in range(24):
        objects = changed(objects, random)
        one.follow(objects)
        if step % 4 == 3:
            fresh = host().follow(dict(random.sample(list(objects.items()), len(objects))))
            assert one.shown() == fresh.shown(), f"step {step}"
