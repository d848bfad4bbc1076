"""Tunnels: a new node among 500 seen by another, and traffic in each mode. `sudo ./dev bench overlay [NODES]`

Runs itself again inside namespaces of its own; nothing outside is touched. First a felix with that many
simulated nodes in etcd: how long after a node's objects are written its route, neighbour and forwarding
entry are in the kernel. Then throughput (iperf3) and round trips (ping) between pods on two nodes, in turns
with namespaces wired in the same way with nothing but routes, and with these and connection tracking. With
0 nodes only the traffic.
"""

import asyncio
import json
import math
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path as Folder
from typing import Any, NamedTuple

sys.path.insert(0, str(Folder(__file__).resolve().parent.parent))

from bench.parts import isolated
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import AffinityKey, BlockKey, Key, ResourceKey
from tortie.datastore.types.ipam import Affinity, Block
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec
from tortie.lab.box import Box
from tortie.lab.cluster import Lab, wait_until
from tortie.lab.etcd import Etcd
from tortie.lab.pods import Pod
from tortie.lab.underlay import UNDERLAY, ip
from tortie.linux import monitor
from tortie.linux.codec import RTM_NEWNEIGH, RTM_NEWROUTE
from tortie.linux.netlink import NetlinkSocket

_NODES = 500
_ROUNDS = 20  # nodes that appear one by one
_NEIGHBOURS = 0x4  # RTMGRP_NEIGH of linux/rtnetlink.h: neighbours and forwarding entries
# The best of many short turns: what else runs on the machine disturbs some of them only.
_TURNS = 15
_BYTES = "200M"  # of throughput in each turn, a quarter of a second
_PINGS = 500
# What Linux does by itself. Others, such as BBR, send at a pace of their own, whatever the way could take.
_CONGESTION = ("-C", "cubic")
FIRST = ("nice", "-n", "-20")  # before everything else that runs


def main() -> None:
    isolated.ensure()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else _NODES
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    folder = Folder(tempfile.mkdtemp(prefix="bench-overlay-"))
    try:
        if count:
            report_nodes(count, folder)
        report_traffic(folder, "iptables")
        report_traffic(folder, "nftables", FELIX_NFTABLESMODE="Enabled")
    finally:
        shutil.rmtree(folder)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --- many nodes ---------------------------------------------------------------------------------


def node(number: int) -> list[tuple[Key, Any]]:
    """A node in 10.0.0.0/8, its block in 172.20.0.0/14 and the first address of that as its tunnel's."""
    name, block = f"node{number}", f"172.{20 + number // 1024}.{number // 4 % 256}.{number % 4 * 64}"
    spec = NodeSpec(
        bgp=NodeBGPSpec(ipv4Address=f"10.{number // 65536}.{number // 256 % 256}.{number % 256}/8"),
        ipv4VXLANTunnelAddr=block,
    )
    cidr = f"{block}/26"
    return [
        (ResourceKey("Node", name), Node(metadata=ObjectMeta(name=name), spec=spec)),
        (BlockKey(cidr), Block(cidr=cidr, affinity=f"host:{name}", allocations=(None,) * 64)),
        (AffinityKey(cidr, name), Affinity(state="confirmed")),
    ]


def report_nodes(count: int, folder: Folder) -> None:
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far")
    for name in ("eth0", "far"):
        ip("link", "set", name, "up")
    ip("address", "add", "10.0.0.1/8", "dev", "eth0")
    etcd = Etcd(folder / "etcd")
    etcd.start()
    try:
        asyncio.run(_nodes(count, etcd, folder))
    finally:
        etcd.stop()
        ip("link", "del", "eth0")


async def _nodes(count: int, etcd: Etcd, folder: Folder) -> None:
    writer = EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
    spec = IPPoolSpec(cidr="172.20.0.0/14", vxlanMode="Always")
    await writer.apply(ResourceKey("IPPool", "pool"), IPPool(metadata=ObjectMeta(name="pool"), spec=spec))
    for number in range(1, count + 1):
        for key, value in node(number):
            await writer.apply(key, value)
    began = time.monotonic()
    felix = start_felix(etcd, folder)
    try:
        await until(partial(_complete, count - 1))
        print(f"{count} nodes: felix started -> all of them in the kernel   {time.monotonic() - began:.2f} s")
        took = []
        for number in range(count + 1, count + _ROUNDS + 1):
            objects = node(number)
            with closing(NetlinkSocket(_NEIGHBOURS | monitor.ROUTES)) as events:
                began = time.monotonic()
                for key, value in objects:
                    await writer.apply(key, value)
                await asyncio.to_thread(_await_news, events)
                took.append((time.monotonic() - began) * 1000)
            await until(partial(_complete, number - 1))
        middle, worst = statistics.median(took), max(took)
        print(f"one more: written -> all of it in the kernel   p50 {middle:.0f} ms   worst {worst:.0f} ms\n")
    finally:
        felix.kill()
        felix.wait()
        await writer.close()


def _await_news(events: NetlinkSocket) -> None:
    """Until the kernel has told of a route, a neighbour and a forwarding entry."""
    told = Counter[int]()
    while told[RTM_NEWROUTE] < 1 or told[RTM_NEWNEIGH] < 2:
        if not select.select([events.fileno()], [], [], 120)[0]:
            raise TimeoutError("the kernel told nothing in two minutes")
        told.update(frame.kind for frame in events.receive())


def _complete(others: int) -> bool:
    return entries() == (others,) * 3


def start_felix(etcd: Etcd, folder: Folder) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "DATASTORE_TYPE": "etcdv3",
        "ETCD_ENDPOINTS": etcd.endpoint,
        "FELIX_FELIXHOSTNAME": "node1",
        "FELIX_ENDPOINTSTATUSPATHPREFIX": "none",
        "FELIX_REPORTINGINTERVALSECS": "0",
        "CALICO_LIB_DIR": str(folder / "lib"),
    }
    with (folder / "felix.log").open("wb") as log:
        argv = [sys.executable, "-m", "tortie.felix.daemon"]
        return subprocess.Popen(argv, env=environment, stdout=log, stderr=log)


def entries() -> tuple[int, int, int]:
    """Routes, neighbours and forwarding entries over vxlan.calico; none while there is no such device."""
    if not os.path.exists("/sys/class/net/vxlan.calico"):
        return 0, 0, 0
    shown = (
        ("ip", "route", "show", "dev", "vxlan.calico"),
        ("ip", "neigh", "show", "dev", "vxlan.calico", "nud", "permanent"),
        ("bridge", "fdb", "show", "dev", "vxlan.calico"),
    )
    routes, neighbours, forwarding = (len(run(*command).splitlines()) for command in shown)
    return routes, neighbours, forwarding


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # what another process writes into the kernel, with no event for us
        if time.monotonic() > deadline:
            raise TimeoutError("the kernel did not get there in two minutes")
        await asyncio.sleep(0.005)


# --- traffic ------------------------------------------------------------------------------------


class Path(NamedTuple):
    """A way for packets: who sends and who receives, as the start of a command line."""

    name: str
    client: list[str]
    server: list[str]
    address: str


def report_traffic(folder: Folder, dataplane: str, **felix: str) -> None:
    """All ways stand at once and are measured in turns, so that whatever disturbs meets all of them."""
    lab = Lab(folder / dataplane, 2, ipv6=True, agent_env={"CALICO_IPV6POOL_VXLAN": "Always", **felix})
    try:
        lab.up()
        paths = [bare_path(lab, 1), bare_path(lab, 2, tracked=True), *pod_paths(lab)]
        wait_until(partial(_whole, lab), "the pods to reach each other", 60)
        found = {path.name: Measured() for path in paths}
        for _ in range(_TURNS):
            for path in paths:
                found[path.name] = best(found[path.name], measure(path))
    finally:
        lab.down()
    bare, tracked = (found[paths[number].name] for number in (0, 1))
    shown = f"{'Gb/s':>6}{'of bare':>9}{'of tracked':>12}{'CPU s/GB':>10}{'of bare':>9}{'round trip':>12}"
    print(f"{'between pods of two nodes, ' + dataplane:42}{shown}")
    for name, one in found.items():
        shares = f"{one.rate / bare.rate:9.0%}{one.rate / tracked.rate:12.0%}"
        cost = f"{one.cost:10.2f}{one.cost / bare.cost:9.0%}"
        print(f"{name:42}{one.rate:6.1f}{shares}{cost}{one.trip:9.0f} us")
    print(flush=True)


class Measured(NamedTuple):
    """Gbit/s, the CPU seconds of both ends for a gigabyte, and microseconds there and back."""

    rate: float = 0.0
    cost: float = math.inf
    trip: float = math.inf


def best(one: Measured, other: Measured) -> Measured:
    return Measured(max(one.rate, other.rate), min(one.cost, other.cost), min(one.trip, other.trip))


def _whole(lab: Lab) -> bool:
    return all(answer.ok for version in (4, 6) for answer in lab.matrix(version=version).values())


def pod_paths(lab: Lab) -> list[Path]:
    """A pool of each mode, and a pod of it on both nodes with the MTU it would have with nothing else."""
    modes = {"none": {}, "VXLAN": {"vxlanMode": "Always"}, "VXLAN, same subnet": {"vxlanMode": "CrossSubnet"}}
    if has_ipip():
        modes["IPIP"] = {"ipipMode": "Always"}
    found = []
    for number, (name, mode) in enumerate(modes.items()):
        found.append(pod_path(lab, number, name, mode))
        if name == "VXLAN":
            other = lab.pods[f"2-{number}"].address(6)
            found.append(found[-1]._replace(name="encapsulation: VXLAN, IPv6", address=other))
    return found


def pod_path(lab: Lab, number: int, name: str, mode: dict[str, str]) -> Path:
    spec = {"cidr": f"10.5{number}.0.0/24", **mode}
    pool = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": f"pool-{number}"},
    }
    lab.calicoctl("apply", "-f", "-", stdin=json.dumps({**pool, "spec": spec})).check_returncode()
    asked = {"cni.projectcalico.org/ipv4pools": f'["pool-{number}"]'}
    a, b = (lab.add_pod(f"{which}-{number}", f"node-{which}", annotations=asked) for which in (1, 2))
    if mode.get("vxlanMode") != "Always":
        for pod in (a, b):
            set_mtu(pod, 1480 if "ipipMode" in mode else 1500)
    return Path(f"encapsulation: {name}", a.command(), b.command(), b.address())


def set_mtu(pod: Pod, mtu: int) -> None:
    """At both ends of its link: a packet that is too long for the host's end is not taken as it is."""
    pod.output("ip", "link", "set", "eth0", "mtu", str(mtu))
    (route,) = json.loads(pod.box.output("ip", "-j", "route", "show", pod.address()))
    pod.box.run("ip", "link", "set", route["dev"], "mtu", str(mtu))


def has_ipip() -> bool:
    """Whether this kernel can; leaves nothing."""
    made = Box("probe")
    try:
        return (
            made.run("ip", "link", "add", "t", "type", "ipip", "local", "10.0.0.9", check=False).returncode
            == 0
        )
    finally:
        made.power_off()


def bare_path(lab: Lab, number: int, *, tracked: bool = False) -> Path:
    """Two machines of the underlay with a namespace each behind them, and nothing but routes.

    `tracked`: with connection tracking and one rule on its verdict, the least that any policy needs.
    """
    hosts = [lab.add_host(f"bare-{number}-{end}", 100 + 2 * number + end) for end in (0, 1)]
    for end, host in enumerate(hosts):
        _wire(
            host,
            f"10.99.{number}.{end}",
            f"10.99.{number}.{1 - end}",
            UNDERLAY + f".{100 + 2 * number + 1 - end}",
        )
        if tracked:
            host.run("nft", "-f", "-", stdin=_TRACKED)
    prefixes = [host.command(["ip", "netns", "exec", "inside"]) for host in hosts]
    name = "bare veth pairs and routes" if not tracked else "the same, tracking connections"
    return Path(name, prefixes[0], prefixes[1], f"10.99.{number}.1")


_TRACKED = """table ip least { chain forward { type filter hook forward priority 0; policy accept;
    ct state established,related accept; }; }"""


def _wire(host: Box, own: str, other: str, gateway: str) -> None:
    for line in (
        "ip netns add inside",
        # One queue, as CNI makes it.
        "ip link add out numtxqueues 1 numrxqueues 1 type veth"
        " peer name eth0 netns inside numtxqueues 1 numrxqueues 1",
        "ip link set out up",
        "ip -n inside link set eth0 up",
        f"ip -n inside address add {own}/32 dev eth0",
        "ip -n inside route add 169.254.1.1 dev eth0",
        "ip -n inside route add default via 169.254.1.1",
        f"ip route add {own} dev out",
        f"ip route add {other} via {gateway}",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.out.proxy_arp=1",
    ):
        host.run(*line.split())


def measure(path: Path) -> Measured:
    """One connection as fast as it goes, and the shortest of a few hundred round trips."""
    command = [*path.server, *FIRST, "iperf3", "-s", "-1", "--forceflush"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    next(line for line in server.stdout if "listening" in line)
    asked = ("-J", *_CONGESTION, "-n", _BYTES, "-c", path.address)
    answer = json.loads(run(*path.client, *FIRST, "iperf3", *asked))["end"]
    server.communicate(timeout=30)
    sent, used = answer["sum_sent"], answer["cpu_utilization_percent"]
    busy = (used["host_total"] + used["remote_total"]) / 100 * sent["seconds"]
    pings = run(*path.client, *FIRST, "ping", "-q", "-f", "-c", str(_PINGS), path.address)
    match = re.search(r"= ([\d.]+)/", pings)
    assert match, pings
    rate = answer["sum_received"]["bits_per_second"] / 1e9
    return Measured(rate, busy / sent["bytes"] * 1e9, float(match[1]) * 1000)


if __name__ == "__main__":
    main()
