"""IPIP in two networks that know no pod, and every change of a live pool's mode from or to it.

In a guest, as few hosts' kernels have tunl0. What VXLAN and no tunnel do by themselves is tested outside, in
test_cluster_encapsulation.py.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import pytest

from tests.cluster.cluster_guest import guest_lab
from tests.support.routingtables import OURS, shapes
from tortie.lab.box import LabError
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.traffic import Stream
from tortie.lab.wire import Capture, Wrapping
from tortie.linux import netns

pytestmark = [
    pytest.mark.vm(user_mode=True),
    pytest.mark.timeout(3600),
]  # all changes take three minutes of a calm core, and eighteen beside the other sections

POOL = "default-ipv4-ippool"
NODES = {"a": "node-1", "b": "node-2", "c": "node-3"}  # pod -> its node; node-3 is behind the router
PATIENCE = 600.0  # seconds: a busy machine, and a guest on it; TCP comes back after up to twice an outage


@dataclass(frozen=True)
class Mode:
    """Of a pool: `kind` is ipip, vxlan or none."""

    kind: str
    when: str = "Always"

    @property
    def spec(self) -> dict[str, str]:
        return {f"{kind}Mode": self.when if kind == self.kind else "Never" for kind in ("ipip", "vxlan")}

    def tunnels(self, one: str, other: str) -> bool:
        """Whether there is a tunnel between the nodes of two pods."""
        return self.kind != "none" and (self.when == "Always" or "c" in (one, other))

    def joins(self, one: str, other: str) -> bool:
        return self.kind != "none" or "c" not in (one, other)


IPIP, IPIP_CROSS, NONE = Mode("ipip"), Mode("ipip", "CrossSubnet"), Mode("none")
VXLAN, VXLAN_CROSS = Mode("vxlan"), Mode("vxlan", "CrossSubnet")

# Every change from or to a mode of IPIP, once: first those that keep a tunnel between the networks.
FAR = [IPIP, IPIP_CROSS, IPIP, VXLAN, IPIP_CROSS, VXLAN_CROSS, IPIP, VXLAN_CROSS, IPIP_CROSS, VXLAN, IPIP]
NEAR = [IPIP, NONE, IPIP_CROSS, NONE, IPIP]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two nodes in a network and one in another; a pod on each, and the mode is IPIP always."""
    # This guest has no tables of nftables, which iptables' other backend needs.
    settings = {"CALICO_IPV4POOL_IPIP": "Always", "FELIX_IPTABLESBACKEND": "legacy"}
    with guest_lab(tmp_path_factory.mktemp("lab"), "ipip", NODES, PATIENCE, **settings) as lab:
        yield lab


# --- what is to be ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A node by the pod on it: its block, and the far ends of its tunnels."""

    block: str
    mac: str
    tunl0: str
    vtep: str


def node_of(lab: Lab, pod: str, tunl0: str, vtep: str) -> Known:
    own = lab.pods[pod].address().split(".")
    block = ".".join([*own[:3], str(int(own[3]) & ~63)]) + "/26"
    mac = "66:" + hashlib.sha1(NODES[pod].encode()).digest()[:5].hex(":")  # unless the Node says another
    return Known(block, mac, tunl0, vtep)


def in_datastore(lab: Lab) -> dict[str, Known]:
    shown = lab.calicoctl("get", "nodes", "-o", "json")
    specs = {item["metadata"]["name"]: item["spec"] for item in json.loads(shown.stdout)["items"]}
    return {
        pod: node_of(
            lab,
            pod,
            specs[node]["bgp"].get("ipv4IPIPTunnelAddr", ""),
            specs[node].get("ipv4VXLANTunnelAddr", ""),
        )
        for pod, node in NODES.items()
    }


def expected(lab: Lab, mode: Mode, own: str, nodes: dict[str, Known]) -> dict[str, Any]:
    """All that a mode decides on the node of a pod."""
    others = [pod for pod in NODES if pod != own]
    felix = mode.kind == "vxlan"
    blackhole = f"blackhole {nodes[own].block} proto {'80' if felix else 'bgp'}"
    far_ends = [(nodes[pod], lab.nodes[NODES[pod]].ip) for pod in others if felix]
    return {
        "routes": sorted([blackhole, *(route(lab, mode, own, other, nodes) for other in others)]),
        "tunl0": [f"{nodes[own].tunl0}/32"] if mode.kind == "ipip" else [],
        "vxlan.calico": [f"{nodes[own].vtep}/32"] if felix else [],
        "forwarding": sorted(f"{far.mac} dst {address}" for far, address in far_ends),
        "neighbours": sorted(f"{far.vtep} lladdr {far.mac}" for far, _ in far_ends),
    }


def route(lab: Lab, mode: Mode, own: str, other: str, nodes: dict[str, Known]) -> str:
    there, block = lab.nodes[NODES[other]].ip, nodes[other].block
    if mode.tunnels(own, other):
        if mode.kind == "ipip":
            return f"{block} via {there} dev tunl0 proto bgp onlink"
        return f"{block} via {nodes[other].vtep} dev vxlan.calico onlink"
    router = f"{lab.nodes[NODES[own]].ip.rpartition('.')[0]}.1"
    via = there if mode.joins(own, other) else router
    return f"{block} via {via} dev eth0 proto {'80' if mode.kind == 'vxlan' else 'bgp'} onlink"


# --- what is ---------------------------------------------------------------------------------------


def found(node: LabNode) -> dict[str, Any]:
    """The same of a node's kernel, with one process: there they are slow."""
    commands = "; echo =;".join(
        ["ip route", "ip -o -4 addr show", "bridge fdb", "ip neigh show nud permanent"]
    )
    routes, addresses, forwarding, neighbours = node.box.output("sh", "-c", commands).split("=\n")
    held = re.findall(r"^\d+: (\S+) +inet (\S+)", addresses, re.M)
    return {
        "routes": sorted(line.strip() for line in routes.splitlines() if "/26 " in line),
        "tunl0": [cidr for name, cidr in held if name == "tunl0"],
        "vxlan.calico": [cidr for name, cidr in held if name == "vxlan.calico"],
    } | {
        key: sorted(" ".join(pair) for pair in re.findall(pattern, text, re.M))
        for key, pattern, text in (
            ("forwarding", r"^(\S+) dev vxlan.calico (dst \S+)", forwarding),
            ("neighbours", r"^(\S+) dev vxlan.calico (lladdr \S+)", neighbours),
        )
    }


def settle(lab: Lab, mode: Mode) -> None:
    """Wait until every node's kernel is in this mode, with nothing of another.

    The datastore is asked only when the kernels agree: in there that costs as much as a node's own work.
    """
    pause = threading.Event()

    def differences() -> list[str]:
        real = {pod: found(lab.nodes[NODES[pod]]) for pod in NODES}
        held = {pod: ["".join(real[pod][device]) for device in ("tunl0", "vxlan.calico")] for pod in NODES}
        nodes = {pod: node_of(lab, pod, *(cidr.removesuffix("/32") for cidr in held[pod])) for pod in NODES}
        wrong = compare(nodes, real)
        return wrong if wrong else compare(in_datastore(lab), real)

    def compare(nodes: dict[str, Known], real: dict[str, dict[str, Any]]) -> list[str]:
        wanted = {pod: expected(lab, mode, pod, nodes) for pod in NODES}
        return [
            f"{NODES[pod]} {key}: {real[pod][key]} instead of {wanted[pod][key]}"
            for pod in NODES
            for key in wanted[pod]
            if real[pod][key] != wanted[pod][key]
        ]

    last: list[str] = []

    def settled() -> bool:
        last[:] = differences()
        return not last or pause.wait(1.0)

    wait_until(settled, f"{mode} everywhere", PATIENCE, lambda: "\n".join(last))


def set_mode(lab: Lab, mode: Mode) -> None:
    done = lab.calicoctl("patch", "ippool", POOL, "-p", json.dumps({"spec": mode.spec}))
    assert done.returncode == 0, done.stderr
    settle(lab, mode)


def check(lab: Lab, mode: Mode) -> None:
    """Who reaches whom, and the wire while it is asked for."""
    pods = {pod.address(): pod.name for pod in lab.pods.values()}
    wanted = {}
    for one, other in permutations(NODES, 2):
        if mode.joins(one, other):
            near, far = (lab.nodes[NODES[pod]].ip for pod in (one, other))
            pair = lab.pods[one].address(), lab.pods[other].address()
            wanted[pair] = {Wrapping(mode.kind, near, far) if mode.tunnels(one, other) else Wrapping()}
    good = {(pods[source], pods[destination]) for source, destination in wanted}
    refused = set(permutations(NODES, 2)) - good

    def as_expected() -> bool:
        return {pair for pair, answer in lab.matrix(timeout=10.0).items() if answer.ok} == good

    wait_until(as_expected, f"the matrix of {mode}", PATIENCE, lambda: str(lab.matrix()))
    with Capture(pods) as capture:
        answers = lab.matrix(timeout=5.0 if refused else PATIENCE, refused=refused)
    for (client, server), answer in answers.items():
        assert answer.ok == ((client, server) in good), f"{client} -> {server}: {answer}"
        assert not answer.ok or answer.source == lab.pods[client].address()
    assert {pair: capture.seen[pair] for pair in wanted} == wanted


# --- the tests -------------------------------------------------------------------------------------


def test_a_fresh_cluster_tunnels_everything_between_nodes(lab: Lab) -> None:
    settle(lab, IPIP)
    check(lab, IPIP)
    assert shapes(lab.nodes["node-1"].box.output("ip", "route")) == OURS["ipip"]
    device = lab.nodes["node-1"].box.output("ip", "-d", "link", "show", "tunl0")
    assert "mtu 1480" in device and "ipip any remote any local any" in device
    audit = lab.calicoctl("ipam", "check").stdout
    assert "Check complete; found 0 problems." in audit, audit


def test_tunnelled_packets_are_taken_from_nodes_only(lab: Lab) -> None:
    """What a stranger sends, as if from pod b, does not come to pod a; what b's node sends does."""
    a, b, node = lab.pods["a"], lab.pods["b"], lab.nodes["node-1"]
    stranger, own = netns.open("/proc/self/ns/net"), netns.open(lab.nodes["node-2"].box.netns)
    with netns.call_in(a.netns_fd, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as inside:
        inside.bind(("", 9999))
        inside.settimeout(PATIENCE)
        for sender, words in ((stranger, b"stranger"), (own, b"own")):
            with netns.call_in(sender, socket.socket, socket.AF_INET, socket.SOCK_RAW, 4) as out:
                out.sendto(datagram(b.address(), a.address(), words), (node.ip, 0))
        assert inside.recv(100) == b"own", "the first that came"


def datagram(source: str, destination: str, words: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram for port 9999 (without a checksum)."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(words), 0, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    udp = struct.pack("!HHHH", 9999, 9999, 8 + len(words), 0)
    return head[:10] + struct.pack("!H", checksum) + head[12:] + udp + words


def test_packets_of_just_the_size_that_pods_are_given_pass_whole(lab: Lab) -> None:
    size = int(lab.nodes["node-1"].box.path("/var/lib/calico/mtu").read_text())
    assert size == 1500 - 20
    ping = ["ping", "-M", "do", "-c", "1", "-W", "60", "-s"]
    head = 28  # of IP and ICMP
    assert " 0% packet loss" in lab.pods["a"].output(*ping, str(size - head), lab.pods["c"].address())
    with pytest.raises(LabError, match="essage too long"):
        lab.pods["a"].output(*ping, str(size - head + 1), lab.pods["c"].address())


def test_every_change_of_a_live_pool_that_involves_ipip(lab: Lab) -> None:
    """Pods of one network talk on throughout; those of two as long as there is a tunnel between them."""
    a, b, c = (lab.pods[name] for name in "abc")
    with ExitStack() as stack:
        near = stack.enter_context(Stream(a, b, patience=PATIENCE, interval=0.1))
        with Stream(a, c, patience=PATIENCE, interval=0.1) as far:
            for number, mode in enumerate(FAR[1:]):
                set_mode(lab, mode)
                if number == 0:
                    check(lab, IPIP_CROSS)
                assert not near.failure and not far.failure, (mode, near.failure, far.failure)
        for mode in NEAR[1:]:
            set_mode(lab, mode)
            assert not near.failure, (mode, near.failure)
        check(lab, IPIP)
    assert not near.failure and not far.failure, (near.failure, far.failure)


def test_what_a_change_leaves_is_what_a_start_makes(lab: Lab) -> None:
    """What is expected above, on a node where nothing was of it."""
    set_mode(lab, IPIP_CROSS)
    node = lab.nodes["node-1"]
    node.stop_agent()
    wipe = ["ip addr flush dev tunl0", "ip link set tunl0 down mtu 1400", "ip route flush proto bgp"]
    node.box.run("sh", "-c", "; ".join(wipe))
    assert found(node)["routes"] == [] == found(node)["tunl0"]
    node.start_agent()
    settle(lab, IPIP_CROSS)
    node.wait_until(
        lambda: "mtu 1480" in node.box.output("ip", "link", "show", "tunl0"), "tunl0's size", PATIENCE
    )


def test_the_changes_above_are_all_that_there_are() -> None:
    modes = {IPIP, IPIP_CROSS, VXLAN, VXLAN_CROSS, NONE}
    every = {
        (one, other) for one in modes for other in modes if one != other and "ipip" in (one.kind, other.kind)
    }
    made = [*pairwise(FAR), *pairwise(NEAR)]
    assert set(made) == every and len(made) == len(every)
