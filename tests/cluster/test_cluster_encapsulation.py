"""Every mode of pools in two networks that know no pod: who reaches whom, what is on the wire, and what
is left when a mode is changed while pods talk."""

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tortie.lab import probe
from tortie.lab.box import LabError
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.traffic import Stream
from tortie.lab.underlay import SUBNETS
from tortie.lab.wire import Capture, Wrapping
from tortie.linux import netns

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

POOLS = {4: "default-ipv4-ippool", 6: "default-ipv6-ippool"}
NODES = {"a": "node-1", "b": "node-2", "c": "node-3"}  # pod -> its node; node-3 is behind the router
DEVICES = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
PATIENCE = 60.0  # seconds: a busy machine


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two nodes in a network and one in another, with both families; a pod on each."""
    modes = {"CALICO_IPV4POOL_VXLAN": "Always", "CALICO_IPV6POOL_VXLAN": "Always"}
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, ipv6=True, remote=1, agent_env=modes)
    try:
        lab.up()
        for pod, node in NODES.items():
            lab.add_pod(pod, node)
        yield lab
    finally:
        lab.down()


# --- what is to be ------------------------------------------------------------------------------


def tunnelled(mode: str, one: str, other: str) -> bool:
    return mode == "Always" or (mode == "CrossSubnet" and "c" in (one, other))


def reachable(mode: str, one: str, other: str) -> bool:
    return mode != "Never" or "c" not in (one, other)


def expected_wire(lab: Lab, mode: str, version: int) -> dict[tuple[str, str], set[Wrapping]]:
    """What a TCP connection and its answer look like, for the pairs that reach each other."""
    found = {}
    for one in NODES:
        for other in NODES:
            if one != other and reachable(mode, one, other):
                near, far = (node_address(lab.nodes[NODES[pod]], version) for pod in (one, other))
                wrapped = Wrapping("vxlan", near, far, 4096, 4789)
                pair = lab.pods[one].address(version), lab.pods[other].address(version)
                found[pair] = {wrapped if tunnelled(mode, one, other) else Wrapping()}
    return found


def node_address(node: LabNode, version: int) -> str:
    return node.ip if version == 4 else node.ip6


# --- what is ------------------------------------------------------------------------------------


def overlay(node: LabNode) -> dict[str, Any]:
    """All that modes decide on a node, as text: routes, tunnel devices, and who is behind them."""
    tell = node.box.output
    devices = [
        link for link in tell("ip", "-d", "-o", "link").splitlines() if "calico" in link or "tunl" in link
    ]
    return {
        "routes": tell("ip", "route").splitlines() + tell("ip", "-6", "route").splitlines(),
        "devices": sorted(line.partition(": ")[2] for line in devices),
        "addresses": sorted(
            line.partition(": ")[2] for line in tell("ip", "-o", "addr").splitlines() if "calico" in line
        ),
        "fdb": sorted(line for line in tell("bridge", "fdb").splitlines() if "calico" in line),
        "neighbours": sorted(line for line in tell("ip", "neigh").splitlines() if "calico" in line),
    }


def settled(lab: Lab, mode: str) -> bool:
    """Whether every node's kernel is in this mode, with nothing of another."""
    return all(in_mode(lab, pod, mode, version) for pod in NODES for version in (4, 6))


def in_mode(lab: Lab, pod: str, mode: str, version: int) -> bool:
    node, device = lab.nodes[NODES[pod]], DEVICES[version]
    others = [other for other in NODES if other != pod]
    far = [node_address(lab.nodes[NODES[other]], version) for other in others if mode != "Never"]
    shown = node.box.output("ip", f"-{version}", "route").splitlines()
    leading = {line.split()[4] for line in shown if " via " in line and "/" in line.split()[0]}
    ways = {line.split()[2]: line for line in shown if " via " in line}
    entries = [
        line.split() for line in node.box.output("bridge", "fdb").splitlines() if f" {device} " in line
    ]
    neighbours = node.box.output("ip", f"-{version}", "neigh", "show", "nud", "permanent").splitlines()
    wants_device = mode != "Never"
    has_device = device in node.box.output("ip", "-o", "link")
    return (
        has_device == wants_device
        and sorted(entry[4] for entry in entries) == sorted(far)
        and sum(f" {device} " in line for line in neighbours) == len(far)
        and (device in leading) == any(tunnelled(mode, pod, other) for other in others)
        and all(
            (node_address(lab.nodes[NODES[other]], version) in ways) != tunnelled(mode, pod, other)
            for other in others
            if reachable(mode, pod, other)
        )
    )


def set_mode(lab: Lab, mode: str, field: str = "vxlanMode") -> None:
    for name in POOLS.values():
        done = lab.calicoctl("patch", "ippool", name, "-p", json.dumps({"spec": {field: mode}}))
        assert done.returncode == 0, done.stderr
    wait_until(lambda: settled(lab, mode), f"mode {mode} everywhere", PATIENCE, lambda: evidence(lab))


def evidence(lab: Lab) -> str:
    return "\n".join(json.dumps(overlay(node), indent=1) for node in lab.nodes.values())


def check(lab: Lab, mode: str) -> None:
    """The matrix, and the wire while it is asked for, in both families."""
    for version in (4, 6):
        wanted = expected_wire(lab, mode, version)
        pods = {pod.address(version): pod.name for pod in lab.pods.values()}
        good = {(pods[source], pods[destination]) for source, destination in wanted}

        def as_expected(version: int = version, good: set[tuple[str, str]] = good) -> bool:
            answers = lab.matrix(version=version, timeout=1.0)
            return {pair for pair, answer in answers.items() if answer.ok} == good

        wait_until(as_expected, f"IPv{version} in mode {mode}", PATIENCE, lambda: evidence(lab))
        with Capture(pods) as capture:
            answers = lab.matrix(version=version)
        for (client, server), answer in answers.items():
            assert answer.ok == ((client, server) in good), f"{client} -> {server}: {answer}"
            assert not answer.ok or answer.source == lab.pods[client].address(version)
        assert {pair: capture.seen[pair] for pair in wanted} == wanted


# --- the tests ----------------------------------------------------------------------------------


def test_a_fresh_cluster_tunnels_everything_between_nodes(lab: Lab) -> None:
    wait_until(lambda: settled(lab, "Always"), "the mode everywhere", PATIENCE, lambda: evidence(lab))
    check(lab, "Always")
    audit = lab.calicoctl("ipam", "check").stdout
    assert "Check complete; found 0 problems." in audit, audit


def test_vxlan_packets_are_taken_from_nodes_only(lab: Lab) -> None:
    """What a stranger sends, as if from pod b, does not come to pod a; what b's node sends does."""
    a, b, node = lab.pods["a"], lab.pods["b"], lab.nodes["node-1"]
    mac = bytes.fromhex(
        node.box.output("cat", "/sys/class/net/vxlan.calico/address").strip().replace(":", "")
    )
    stranger, own = netns.open("/proc/self/ns/net"), netns.open(lab.nodes["node-2"].box.netns)
    with netns.call_in(a.netns_fd, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as inside:
        inside.bind(("", 9999))
        inside.settimeout(PATIENCE)
        for sender, words in ((stranger, b"stranger"), (own, b"own")):
            with netns.call_in(sender, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as out:
                out.sendto(in_vxlan(mac, b.address(), a.address(), words), (node.ip, 4789))
            os.close(sender)
        assert inside.recv(100) == b"own", "the first that came"


def in_vxlan(mac: bytes, source: str, destination: str, words: bytes) -> bytes:
    """A UDP datagram for port 9999 (without a checksum) in an IPv4 packet in a frame in VXLAN, VNI 4096."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(words), 0, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet = head[:10] + struct.pack("!H", checksum) + head[12:]
    frame = mac + bytes(6) + b"\x08\0" + packet + struct.pack("!HHHH", 9999, 9999, 8 + len(words), 0) + words
    return struct.pack("!BxxxI", 0x08, 4096 << 8) + frame


@pytest.mark.parametrize("version", [4, 6])
def test_packets_of_just_the_size_that_pods_are_given_pass_whole(lab: Lab, version: int) -> None:
    """The least of both tunnels', as a pod's interface has one size for both families."""
    size = int(lab.nodes["node-1"].box.path("/var/lib/calico/mtu").read_text())
    assert size == 1500 - 70
    head = 28 if version == 4 else 48  # of IP and ICMP
    target = lab.pods["c"].address(version)
    ping = ["ping", "-M", "do", "-c", "1", "-W", "10", "-s"]
    assert " 0% packet loss" in lab.pods["a"].output(*ping, str(size - head), target)
    with pytest.raises(LabError, match="essage too long"):
        lab.pods["a"].output(*ping, str(size - head + 1), target)


@pytest.mark.parametrize("version", [4, 6])
def test_a_nodes_own_packets_into_the_tunnel_carry_the_tunnels_address(lab: Lab, version: int) -> None:
    node = lab.nodes["node-1"]
    own = json.loads(node.box.output("ip", f"-{version}", "-j", "addr", "show", DEVICES[version]))
    (tunnel,) = [one["local"] for one in own[0]["addr_info"] if one["scope"] == "global"]
    fd = netns.open(node.box.netns)
    (answer,) = probe.run([probe.Probe(fd, lab.pods["c"].address(version), 80)], PATIENCE)
    os.close(fd)
    assert (answer.server, answer.source) == ("c", tunnel)


def test_what_leaves_an_ipv6_pool_is_masqueraded_when_the_pool_says_so(lab: Lab) -> None:
    """The router knows no pod: its answers find the way only to the node."""
    router, pod = SUBNETS[0].address6(1), lab.pods["a"]
    ping = ["ping", "-c", "1", "-W", "1", router]

    def reached() -> bool:
        return pod.box.run("nsenter", f"--net={pod.netns_path}", "--", *ping, check=False).returncode == 0

    assert not reached()
    lab.calicoctl("patch", "ippool", POOLS[6], "-p", json.dumps({"spec": {"natOutgoing": True}}))
    wait_until(reached, "an answer", PATIENCE)


def test_every_transition_of_a_live_pool(lab: Lab) -> None:
    """Pods of one network talk on in every mode; those of two as long as there is a tunnel between them."""
    with ExitStack() as stack:
        streams = [
            stack.enter_context(Stream(lab.pods["a"], lab.pods["b"], version=version, patience=PATIENCE))
            for version in (4, 6)
        ]
        with Stream(lab.pods["a"], lab.pods["c"], patience=PATIENCE) as far:
            for mode in ("CrossSubnet", "Always"):
                set_mode(lab, mode)
                check(lab, mode)
        for mode in ("Never", "CrossSubnet", "Never", "Always"):
            set_mode(lab, mode)
        check(lab, "Always")
    for stream in (*streams, far):
        assert not stream.failure, stream.failure


def test_what_a_change_leaves_is_what_a_start_makes(lab: Lab) -> None:
    """With BGP's part in it; felix's alone is compared in the kernel tier, for every mode."""
    set_mode(lab, "Never")
    check(lab, "Never")
    node = lab.nodes["node-1"]
    before = overlay(node)
    node.stop_agent()
    for device in DEVICES.values():
        node.box.run("ip", "link", "del", device, check=False)
    for protocol in ("80", "bgp"):
        for family in ("-4", "-6"):
            node.box.run("ip", family, "route", "flush", "proto", protocol)
    node.start_agent()
    node.wait_ready()
    wait_until(lambda: overlay(node) == before, "the same", PATIENCE, lambda: f"{before}\n{overlay(node)}")


def test_no_bgp_is_needed(lab: Lab) -> None:
    for node in lab.nodes.values():
        node.stop_agent()
        node.start_agent(CALICO_NETWORKING_BACKEND="vxlan")
    for node in lab.nodes.values():
        node.wait_ready()
        assert not node.box.pids("tortie.bgp")
    set_mode(lab, "CrossSubnet")
    check(lab, "CrossSubnet")


def test_a_flat_network_without_bgp(lab: Lab) -> None:
    """Where somebody says that felix is to write the routes that BGP would; goes on from the last test."""
    spec = json.dumps({"spec": {"programClusterRoutes": "EnabledNoEncapOnly"}})
    assert lab.calicoctl("patch", "felixconfiguration", "default", "-p", spec).returncode == 0
    set_mode(lab, "Never")
    check(lab, "Never")
    via = f"via {lab.nodes['node-2'].ip} dev eth0 proto 80 onlink"
    assert via in lab.nodes["node-1"].box.output("ip", "route")
