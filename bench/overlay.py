"""Tunnels: a new node among 500 seen by another, and traffic in each mode. `sudo ./dev bench overlay [NODES]`

Runs itself again inside namespaces of its own; nothing outside is touched. First a felix with that many
simulated nodes in etcd: how long after a node's objects are written its route, neighbour and forwarding
entry are in the kernel. Then throughput (iperf3) and round trips (ping) between pods on two nodes, beside
two namespaces wired in the same way with nothing but routes.
"""

import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
from tortie.lab.underlay import ip

_NODES = 500
_ROUNDS = 20  # nodes that appear one by one
_SECONDS = 4  # of each throughput measurement
_PINGS = 1000
_MODES = {"none": {}, "VXLAN": {"CALICO_IPV4POOL_VXLAN": "Always"}}  # name -> environment of calico-node


def main() -> None:
    isolated.ensure()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else _NODES
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    folder = Path(tempfile.mkdtemp(prefix="bench-overlay-"))
    try:
        report_nodes(count, folder)
        report_traffic(folder)
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


def report_nodes(count: int, folder: Path) -> None:
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


async def _nodes(count: int, etcd: Etcd, folder: Path) -> None:
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
            began = time.monotonic()
            for key, value in objects:
                await writer.apply(key, value)
            await until(partial(_complete, number - 1))
            took.append((time.monotonic() - began) * 1000)
        middle, worst = statistics.median(took), max(took)
        print(f"one more: written -> all of it in the kernel   p50 {middle:.0f} ms   worst {worst:.0f} ms\n")
    finally:
        felix.kill()
        felix.wait()
        await writer.close()


def _complete(others: int) -> bool:
    return entries() == (others,) * 3


def start_felix(etcd: Etcd, folder: Path) -> subprocess.Popen[bytes]:
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


def report_traffic(folder: Path) -> None:
    print(f"{'between pods of two nodes':28}{'throughput':>14}{'of bare':>10}{'round trip':>14}")
    bare = 0.0
    for mode, environment in _MODES.items():
        lab = Lab(folder / mode, 2, agent_env=environment)
        try:
            lab.up()
            if not bare:
                bare = _row("bare veth pairs and routes", *bare_pair(lab))
            a, b = (lab.add_pod(name, f"node-{number}") for number, name in ((1, "a"), (2, "b")))
            wait_until(partial(_whole, lab), "the pods to reach each other", 60)
            _row(f"encapsulation: {mode}", a.command(), b.command(), b.address(), bare)
        finally:
            lab.down()


def _whole(lab: Lab) -> bool:
    return all(answer.ok for answer in lab.matrix().values())


def bare_pair(lab: Lab) -> tuple[list[str], list[str], str]:
    """Two machines of the underlay with a namespace each behind it: (client's, server's prefix, address)."""
    hosts = [lab.add_host(f"bare-{number}", 100 + number) for number in (1, 2)]
    for number, host in enumerate(hosts, 1):
        _wire(host, number)
    prefixes = [host.command(["ip", "netns", "exec", "inside"]) for host in hosts]
    return prefixes[0], prefixes[1], "10.99.0.2"


def _wire(host: Box, number: int) -> None:
    for line in (
        "ip netns add inside",
        "ip link add out type veth peer name eth0 netns inside",
        "ip link set out up",
        "ip -n inside link set eth0 up",
        f"ip -n inside address add 10.99.0.{number}/32 dev eth0",
        "ip -n inside route add 169.254.1.1 dev eth0",
        "ip -n inside route add default via 169.254.1.1",
        f"ip route add 10.99.0.{number} dev out",
        f"ip route add 10.99.0.{3 - number} via 172.18.0.{103 - number}",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.out.proxy_arp=1",
    ):
        host.run(*line.split())


def _row(what: str, client: list[str], server: list[str], address: str, bare: float = 0.0) -> float:
    """Prints a line; Gbit/s."""
    listener = subprocess.Popen([*server, "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    answer = json.loads(run(*client, "iperf3", "-J", "-t", str(_SECONDS), "-c", address))
    listener.wait(30)
    rate = float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9
    pings = run(*client, "ping", "-q", "-i", "0.002", "-c", str(_PINGS), address)
    match = re.search(r"= [\d.]+/([\d.]+)/", pings)
    assert match, pings
    share = f"{rate / bare:.0%}" if bare else "–"
    print(f"{what:28}{rate:9.2f} Gb/s{share:>10}{float(match[1]) * 1000:11.0f} µs", flush=True)
    return rate


if __name__ == "__main__":
    main()
