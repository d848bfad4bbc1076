"""Every mode of pools in two networks that know no pod: who reaches whom, what is on the wire, and what
is left when a mode is changed while pods talk."""

import json
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from difflib import unified_diff
from itertools import permutations
from typing import Any

import pytest

from tests.cluster.cluster_bgp import apply, calicoctl
from tests.cluster.cluster_pools import add_pod_of
from tests.support.rest import at_rest
from tests.support.routingtables import OURS, shapes
from tortie.core.speaker import Speaker
from tortie.lab import probe
from tortie.lab.box import LabError
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.traffic import Stream
from tortie.lab.underlay import SUBNETS, plug_in, unplug
from tortie.lab.wire import Capture, Wrapping
from tortie.linux import netns

pytestmark = pytest.mark.cluster

POOLS = {4: "default-ipv4-ippool", 6: "default-ipv6-ippool"}
NODES = {"a": "node-1", "b": "node-2", "c": "node-3"}  # pod -> its node; node-3 is behind the router
DEVICES = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
PATIENCE = 180.0  # seconds: a busy machine

Overlays = dict[str, dict[str, Any]]  # node -> its overlay()


@pytest.fixture(scope="module")
def lab(speaker: Speaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two nodes in a network and one in another, with both families; a pod on each."""
    modes = {"CALICO_IPV4POOL_VXLAN": "Always", "CALICO_IPV6POOL_VXLAN": "Always"}
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, ipv6=True, speakers=(speaker,), remote=1, agent_env=modes)
    try:
        lab.up()
        for pod, node in NODES.items():
            lab.add_pod(pod, node)
        wait_until(lambda: settled(lab, "Always"), "the mode everywhere", PATIENCE, lambda: evidence(lab))
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def fresh() -> Overlays:
    """What every node shows in mode Always, before anything was changed. The first test fills it."""
    return {}


# --- what is to be ------------------------------------------------------------------------------


def apart(one: LabNode, other: LabNode) -> bool:
    """Whether the router is between them."""
    return one.ip.rpartition(".")[0] != other.ip.rpartition(".")[0]


def tunnelled(mode: str, one: LabNode, other: LabNode) -> bool:
    return mode == "Always" or (mode == "CrossSubnet" and apart(one, other))


def reachable(mode: str, one: LabNode, other: LabNode) -> bool:
    return mode != "Never" or not apart(one, other)


def expected_wire(lab: Lab, modes: Mapping[str, str], version: int) -> dict[tuple[str, str], set[Wrapping]]:
    """What a TCP connection and its answer look like, for the pairs of two nodes that reach each other.

    `modes`: pod -> the mode of its pool, which decides about what is sent to it.
    """
    found = {}
    for one, other in permutations(modes, 2):
        near, far = (lab.nodes[lab.pods[name].box.name] for name in (one, other))
        if near is not far and all(reachable(modes[name], near, far) for name in (one, other)):
            wrapped = Wrapping("vxlan", node_address(near, version), node_address(far, version), 4096, 4789)
            pair = lab.pods[one].address(version), lab.pods[other].address(version)
            found[pair] = {wrapped if tunnelled(modes[other], near, far) else Wrapping()}
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
            line.partition(": ")[2].replace(" tentative", "")  # for its first seconds
            for line in tell("ip", "-o", "addr").splitlines()
            if "calico" in line
        ),
        "fdb": sorted(line for line in tell("bridge", "fdb").splitlines() if "calico" in line),
        "neighbours": sorted(line for line in tell("ip", "neigh").splitlines() if "calico" in line),
    }


def everywhere(lab: Lab) -> Overlays:
    """Tunnels' addresses by the name of their node: each time a tunnel is made, IPAM gives it others."""
    text = json.dumps({name: overlay(node) for name, node in lab.nodes.items()})
    for name, node in lab.nodes.items():
        for version, device in DEVICES.items():
            for address in global_addresses(node, version, device):
                text = re.sub(rf"(?<![\w.:]){re.escape(address)}(?![\w:.]|/(?!32|128))", name, text)
    return {
        name: {what: sorted(lines) for what, lines in found.items()}
        for name, found in json.loads(text).items()
    }


def global_addresses(node: LabNode, version: int, device: str) -> list[str]:
    """None if there is no such device."""
    shown = node.box.run("ip", f"-{version}", "-j", "addr", "show", device, check=False).stdout
    links = json.loads(shown or "[]")
    return [one["local"] for link in links for one in link["addr_info"] if one["scope"] == "global"]


def at_last(lab: Lab) -> Overlays:
    """What is everywhere once it changes no more: what another mode left goes after the new one is there."""
    return at_rest(lambda: everywhere(lab), "the nodes", PATIENCE, looks=2, seconds=3.0)


def await_same(lab: Lab, before: Overlays) -> None:
    def difference() -> str:
        old, new = (json.dumps(one, indent=1).splitlines() for one in (before, everywhere(lab)))
        return "\n".join(unified_diff(old, new, "before", "now", n=1))

    wait_until(lambda: everywhere(lab) == before, "what was there before", PATIENCE, difference)


def settled(lab: Lab, mode: str) -> bool:
    """Whether every node's kernel is in this mode, with nothing of another."""
    nodes = list(lab.nodes.values())
    return all(
        in_mode(node, [other for other in nodes if other is not node], mode, version)
        for node in nodes
        for version in (4, 6)
    )


def in_mode(node: LabNode, others: Sequence[LabNode], mode: str, version: int) -> bool:
    device = DEVICES[version]
    far = [node_address(other, version) for other in others if mode != "Never"]
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
        and (device in leading) == any(tunnelled(mode, node, other) for other in others)
        and all(
            (node_address(other, version) in ways) != tunnelled(mode, node, other)
            for other in others
            if reachable(mode, node, other)
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
    for version in (4, 6):
        check_family(lab, dict.fromkeys(lab.pods, mode), version)


def check_family(lab: Lab, modes: Mapping[str, str], version: int) -> None:
    """The matrix, and the wire while it is asked for. `modes`: pod -> the mode of its pool."""
    wanted = expected_wire(lab, modes, version)
    pods = {pod.address(version): pod.name for pod in lab.pods.values()}
    good = {(pods[source], pods[destination]) for source, destination in wanted}
    good |= {(a, b) for a, b in permutations(lab.pods, 2) if lab.pods[a].box is lab.pods[b].box}

    def as_expected() -> bool:
        answers = lab.matrix(version=version, timeout=5.0)
        return {pair for pair, answer in answers.items() if answer.ok} == good

    wait_until(as_expected, f"IPv{version} in modes {modes}", PATIENCE, lambda: evidence(lab))
    with Capture(pods) as capture:
        answers = lab.matrix(version=version, refused=set(permutations(lab.pods, 2)) - good)
    for (client, server), answer in answers.items():
        assert answer.ok == ((client, server) in good), f"{client} -> {server}: {answer}"
        assert not answer.ok or answer.source == lab.pods[client].address(version)
    assert {pair: capture.seen[pair] for pair in wanted} == wanted


# --- the tests ----------------------------------------------------------------------------------


def test_a_fresh_cluster_tunnels_everything_between_nodes(lab: Lab, fresh: Overlays) -> None:
    check(lab, "Always")
    fresh.update(at_last(lab))
    assert shapes(lab.nodes["node-1"].box.output("ip", "route")) == OURS["vxlan"]
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
    check_size(lab, version)


def check_size(lab: Lab, version: int) -> None:
    """The least of both tunnels', as a pod's interface has one size for both families."""
    size = int(lab.nodes["node-1"].box.path("/var/lib/calico/mtu").read_text())
    assert size == 1500 - 70
    head = 28 if version == 4 else 48  # of IP and ICMP
    ping = ["ping", "-M", "do", "-c", "1", "-W", "60", "-s"]
    for name in ("b", "c"):  # in the own network and beyond the router
        target = lab.pods[name].address(version)
        assert " 0% packet loss" in lab.pods["a"].output(*ping, str(size - head), target)
        with pytest.raises(LabError, match="essage too long"):
            lab.pods["a"].output(*ping, str(size - head + 1), target)


@pytest.mark.parametrize("version", [4, 6])
def test_a_nodes_own_packets_into_the_tunnel_carry_the_tunnels_address(lab: Lab, version: int) -> None:
    node = lab.nodes["node-1"]
    (tunnel,) = global_addresses(node, version, DEVICES[version])
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


def test_every_transition_of_a_live_pool(lab: Lab, fresh: Overlays) -> None:
    """Pods of one network talk on in every mode; those of two as long as there is a tunnel between them.

    Whichever way leads to a mode, it leaves the same; and back in the first mode it is what it was.
    """
    shown = {"Always": fresh}  # mode -> what it left the first time

    def go(mode: str) -> None:
        set_mode(lab, mode)
        if mode not in shown:
            shown[mode] = at_last(lab)
        await_same(lab, shown[mode])

    with ExitStack() as stack:
        near = [stack.enter_context(stream(lab, "b", version)) for version in (4, 6)]
        with stream(lab, "c", 4) as far4, stream(lab, "c", 6) as far6:
            for mode in ("CrossSubnet", "Always"):
                go(mode)
                check(lab, mode)
                for version in (4, 6):
                    check_size(lab, version)
        for mode in ("Never", "CrossSubnet", "Never", "Always"):
            go(mode)
        check(lab, "Always")
    for one in (*near, far4, far6):
        assert not one.failure, one.failure


def stream(lab: Lab, to: str, version: int, patience: float = PATIENCE) -> Stream:
    return Stream(lab.pods["a"], lab.pods[to], version=version, patience=patience)


@pytest.mark.parametrize("mode", ["CrossSubnet", "Never"])
def test_what_a_change_leaves_is_what_a_start_makes(lab: Lab, mode: str) -> None:
    """With BGP's part in it; felix's alone is compared in the kernel tier, for every mode."""
    set_mode(lab, mode)
    check(lab, mode)
    node, before = lab.nodes["node-1"], at_last(lab)
    node.stop_agent()
    for device in DEVICES.values():
        node.box.run("ip", "link", "del", device, check=False)
    for protocol in ("80", "bgp", "bird"):
        for family in ("-4", "-6"):
            node.box.run("ip", family, "route", "flush", "proto", protocol)
    node.start_agent()
    node.wait_ready()
    await_same(lab, before)


def test_pools_of_every_mode_at_once(lab: Lab) -> None:
    """Each pool is treated as it says, also between pods of two; what it needed goes with it."""
    set_mode(lab, "Always")
    check(lab, "Always")
    before = at_last(lab)
    modes = dict.fromkeys(NODES, "Always")
    for number, mode in enumerate(("CrossSubnet", "Never")):
        apply(lab, "IPPool", f"more-{number}", {"cidr": f"10.5{number}.0.0/24", "vxlanMode": mode})
        for pod, node in NODES.items():
            name = f"{pod}{number}"
            pools = {"cni.projectcalico.org/ipv4pools": f'["more-{number}"]'}
            add_pod_of(f"more-{number}", lab, name, node, annotations=pools)
            modes[name] = mode
    check_family(lab, modes, 4)
    for name in modes.keys() - NODES.keys():
        lab.delete_pod(name)
    for number in range(2):
        calicoctl(lab, "delete", "ippool", f"more-{number}")
    await_same(lab, before)


def test_a_node_that_moves_to_the_other_network(lab: Lab) -> None:
    """Unplugged and plugged in there, with other addresses; its agent and its pods run on.

    Its connections to etcd hang on the old address until keepalives have found that out, up to 40 s; and TCP
    repeats a question twice as late each time: where the way is back just after a repetition, the next comes
    when it has been away for twice as long.
    """
    set_mode(lab, "CrossSubnet")
    check(lab, "CrossSubnet")
    node, there = lab.nodes["node-2"], SUBNETS[1]
    with stream(lab, "b", 4, 5 * PATIENCE) as one, stream(lab, "b", 6, 5 * PATIENCE) as other:
        unplug(node.name)
        plug_in(node.box, there, 12, ipv6=True)
        node.ip, node.ip6 = there.address(12), there.address6(12)
        wait_until(
            lambda: settled(lab, "CrossSubnet"), "the new way everywhere", 3 * PATIENCE, lambda: evidence(lab)
        )
        check(lab, "CrossSubnet")
    assert not (one.failure or other.failure), one.failure + other.failure


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
