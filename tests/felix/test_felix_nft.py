"""Nftables as felix's dataplane in a real kernel: what stands, what is put back, what packets meet."""

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from tests.felix.driver_lab import HOSTILE, OPEN, Felix, picture
from tests.felix.node_lab import Node, Pod, pings
from tests.netns_lab import eventually
from tortie.felix.calc.model import Members, Pool, Profile, Rule, Side
from tortie.felix.rules.evaluate import Packet, Sets, evaluate
from tortie.felix.rules.settings import Settings

pytestmark = pytest.mark.kernel

UDP = 17


@pytest.fixture
def dataplane() -> str:
    return "nftables"


# --- what stands ----------------------------------------------------------------------------------


def test_it_reads_like_calicos(node: Node, make_felix: Callable[..., Felix]) -> None:
    daemon = make_felix()
    daemon.state.profiles["kns.default"] = replace(OPEN, name="kns.default")
    daemon.add(node.pod("a"), "kns.default")
    assert daemon.apply(), daemon.driver.failures()
    listed = node.ns.sh("nft list table ip calico")
    for line in (
        "type filter hook forward priority filter; policy accept;",
        "type nat hook postrouting priority srcnat + 10; policy accept;",
        "type filter hook prerouting priority raw; policy accept;",
        '"calia" : goto filter-cali-fw-calia',
        "iifname vmap @filter-cali-from-wl-dispatch",
        "jump filter-cali-pri-kns.default",
        "set cali40masq-ipam-pools {",
        "fib saddr . mark . iif oif 0",
    ):
        assert line in listed, line
    assert "calia" in node.ns.sh("nft list table ip6 calico")
    assert "cali" not in node.rules() + node.ns.sh("ipset list -n")


def test_an_endpoint_more_is_an_element_more(node: Node, make_felix: Callable[..., Felix]) -> None:
    """Nothing that stands is written anew for it."""
    daemon = make_felix()
    daemon.add(node.pod("a"), "open")
    daemon.apply()
    before = node.ns.sh("nft -a -s list chain ip calico filter-cali-from-wl-dispatch")
    daemon.add(node.pod("b"), "open")
    daemon.apply()
    assert node.ns.sh("nft -a -s list chain ip calico filter-cali-from-wl-dispatch") == before
    assert "calib" in node.ns.sh("nft list map ip calico filter-cali-from-wl-dispatch")


# --- the guard -------------------------------------------------------------------------------------


def test_the_guard_leaves_what_it_does_not_need(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = make_felix()
    daemon.add(a, "open")
    daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True)}
    daemon.apply()
    for chain in ("filter-FORWARD", "filter-INPUT"):
        node.ns.sh(f"nft flush chain ip calico {chain}")
    make_felix().guard()
    assert "masquerade" in node.ns.sh("nft list chain ip calico nat-cali-nat-outgoing")
    assert not pings(node.outside, a.v4)


# --- history and damage ----------------------------------------------------------------------------


def test_any_history_ends_as_a_fresh_start_does(node: Node, make_felix: Callable[..., Felix]) -> None:
    rand = Random(11)
    pods = [node.pod(f"p{number}") for number in range(4)]
    daemon = make_felix()
    for _ in range(15):
        pod = rand.choice(pods)
        known = any(one.interface == pod.interface for one in daemon.state.workloads.values())
        if known and rand.random() < 0.4:
            daemon.remove(pod)
        else:
            daemon.add(pod, *rand.sample(["open", "other", "none"], rand.randint(0, 2)))
        daemon.state.profiles["other"] = Profile("other", (Rule(rand.choice(["allow", "deny"])),), ())
        daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", rand.random() < 0.5)}
        daemon.state.sets = {
            f"s:{n}": Members("net", {"10.0.0.0/8", "10.1.0.0/16"}) for n in range(rand.randint(0, 3))
        }
        daemon.settle()
    # Sets that are no more go with a reading; the test's Touched names those of now only.
    for name in ("s:0", "s:1", "s:2"):
        daemon.state.sets.setdefault(name, Members("net"))
    assert daemon.resync(), daemon.driver.failures()
    before = picture(node)
    fresh = make_felix()
    fresh.state = daemon.state
    assert fresh.apply()
    assert picture(node) == before
    assert sum(duty.outcome.updated + duty.outcome.deleted for duty in fresh.driver._duties()) == 0
    node.ns.sh("nft flush ruleset")
    assert fresh.resync()
    assert picture(node) == before


def test_hostile_names_never_reach_the_ruleset(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = make_felix()
    for number, name in enumerate([*HOSTILE, 'x" ; flush ruleset #', "a:b", "a; }"]):
        rule = Rule("allow", annotations=((name, name),))
        daemon.state.profiles[name] = Profile(name, (rule,), (rule,))
        daemon.add(a, *list(daemon.state.profiles)[: number + 2])
    assert daemon.apply(), daemon.driver.failures()
    listed = node.ns.sh("nft list ruleset")
    assert listed.isascii() and "7*7" not in listed
    assert max(map(len, listed.splitlines())) < 1000


# --- packets, as the oracle says --------------------------------------------------------------------


def a_profile(rand: Random, pods: list[Pod]) -> Profile:
    return Profile("p", tuple(a_rule(rand, pods) for _ in range(rand.randint(1, 4))), ())


def a_rule(rand: Random, pods: list[Pod]) -> Rule:
    addresses = [f"{pod.v4}/32" for pod in pods] + [f"{pod.v6}/128" for pod in pods]
    nets = ["10.65.0.0/30", "10.65.0.2/31", "fd65::2/127", *addresses]
    ports: list[tuple[int, int]] = [(5000, 5000), (5001, 5002), (5003, 5003), (6000, 6010)]

    def maybe(values: list[Any], chance: float, most: int = 2) -> tuple[Any, ...]:
        return tuple(rand.sample(values, rand.randint(1, most))) if rand.random() < chance else ()

    protocol = rand.choice([None, "udp", UDP, "tcp"])
    numeric = 0.5 if protocol is not None else 0.0
    src = Side(
        nets=maybe(nets, 0.3, 4),
        not_nets=maybe(nets, 0.2),
        sets=maybe(["s:friends"], 0.2, 1),
        not_sets=maybe(["s:foes"], 0.2, 1),
        ports=maybe(ports, numeric / 2),
    )
    dst = Side(
        ports=maybe(ports, numeric, 4),
        not_ports=maybe(ports, numeric / 2),
        port_sets=maybe(["n:named"], 0.2, 1),
        not_port_sets=maybe(["n:other"], 0.2, 1),
    )
    return Rule(
        rand.choice(["allow", "allow", "deny", "pass", "log"]),
        protocol=protocol,
        not_protocol=rand.choice([None, None, "tcp"]) if protocol is None else None,
        ip_version=rand.choice([0, 0, 4, 6]),
        src=src,
        dst=dst,
    )


def arrivals(listener: Pod, packets: list[tuple[Pod, int, int, int]], expected: set[int]) -> set[int]:
    """Which of the datagrams (from, version, source port, port) arrive, by their place in the list.

    Forwarding inside one machine is done when sendto() returns, unless that is busy: then a thread of the
    kernel's goes on. So those that are expected are waited for.
    """
    sockets: dict[tuple[int, int], socket.socket] = {}
    try:
        for _, version, _, port in packets:
            if (version, port) not in sockets:
                family = socket.AF_INET if version == 4 else socket.AF_INET6
                one = sockets[version, port] = listener.ns.call(socket.socket, family, socket.SOCK_DGRAM)
                one.bind((listener.v4 if version == 4 else listener.v6, port))
                one.setblocking(False)
        places = {sport: index for index, (_, _, sport, _) in enumerate(packets)}
        for sender, version, sport, port in packets:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            with sender.ns.call(socket.socket, family, socket.SOCK_DGRAM) as sending:
                sending.bind(("", sport))
                sending.sendto(str(sport).encode(), (listener.v4 if version == 4 else listener.v6, port))
        found: set[int] = set()

        def complete() -> bool:
            for one in sockets.values():
                with suppress(OSError):  # no more
                    while True:
                        found.add(places.get(int(one.recv(100)), -1))  # late ones of another round: -1
            found.discard(-1)
            return found >= expected

        with suppress(AssertionError):  # who compares tells what is missing
            eventually(complete)
        return found
    finally:
        for one in sockets.values():
            one.close()


@pytest.mark.parametrize("nftables", [True, False])
def test_packets_fare_as_the_oracle_says(
    node: Node, make_felix: Callable[..., Felix], nftables: bool
) -> None:
    rand = Random(3)
    a, b, c = (node.pod(name) for name in "abc")
    daemon = make_felix(nftables=nftables)
    for pod in (a, c):
        daemon.add(pod, "open")
    daemon.add(b, "p")
    daemon.state.sets = {
        "s:friends": Members("net", {a.v4}, {c.v6, "fd65::/126"}),
        "s:foes": Members("net", {c.v4}, {a.v6}),
        "n:named": Members("ip,port", {f"{b.v4},udp:5000", f"{b.v4},tcp:5001"}, {f"{b.v6},udp:5001"}),
        "n:other": Members("ip,port", {f"{b.v4},udp:5003"}, {f"{b.v6},udp:5003"}),
    }
    members = {name: [*one.v4, *one.v6] for name, one in daemon.state.sets.items()}
    members |= {name: [] for name in ("masq-ipam-pools", "network-ip-pools", "dscp-src-net", "this-host")}
    # The first packet to a fresh neighbour may be lost to its resolution.
    daemon.state.profiles["p"] = replace(OPEN, name="p")
    daemon.apply()
    assert all(pod.reaches(address, within=60) for pod in (a, c) for address in (b.v4, b.v6))
    sport = 20000
    verdicts = {"accept": 0, "drop": 0}
    for _ in range(40):
        daemon.state.profiles["p"] = a_profile(rand, [a, b, c])
        assert daemon.apply(), daemon.driver.failures()
        packets = []
        for sender in (a, c):
            for version in (4, 6):
                for port in (5000, 5001, 5003, 6005, 7000):
                    packets.append((sender, version, sport, port))
                    sport += 1
        expected = set()
        for index, (sender, version, source, port) in enumerate(packets):
            ends = (sender.v4, b.v4) if version == 4 else (sender.v6, b.v6)
            packet = Packet(*ends, UDP, source, port, None, sender.interface, b.interface)
            ruleset = daemon.driver._families[version].chains.ruleset()
            outcome = evaluate(ruleset, Sets(members), packet).outcome
            verdicts["accept" if outcome == "accept" else "drop"] += 1
            if outcome == "accept":
                expected.add(index)
        assert arrivals(b, packets, expected) == expected, daemon.state.profiles["p"]
    assert min(verdicts.values()) > 100, verdicts


def test_denials_may_be_rejections(node: Node, make_felix: Callable[..., Felix]) -> None:
    from tortie.felix.rules import ir

    a, b = node.pod("a"), node.pod("b")
    daemon = make_felix(settings=replace(Settings(), filter_deny=ir.REJECT))
    daemon.add(a, "open")
    daemon.add(b)
    assert daemon.apply(), daemon.driver.failures()
    said = a.ns.run("ping", "-n", "-c", "1", "-W", "60", b.v4, check=False)
    assert "Port Unreachable" in said
