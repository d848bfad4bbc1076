"""Policy from the datastore's objects to verdicts: the specification, the evaluator and the kernel agree.

Two oracles that share no code: spec.py reads the objects, rules.evaluate the chains made of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.felix import spec
from tests.felix.fakes import FakeClock, FakeTables
from tests.felix.nft_rulesets import nft_picture
from tests.felix.node_lab import Node
from tests.felix.packets import Ear, Mouth, heard, identity
from tests.felix.test_felix_dataplane import Felix
from tests.felix.worlds import HOST, NODE, OUTSIDE, PODS, SETTINGS, Place, a_packet, a_world, specified
from tests.netns_lab import Namespace
from tortie.datastore.keys import Key
from tortie.datastore.syncer import Update
from tortie.felix.calc.graph import Calculation, Inputs, State
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.hosts import assign
from tortie.felix.dataplane.tables import Tables, TableWriter
from tortie.felix.rules import names
from tortie.felix.rules.evaluate import FORWARDED, INWARD, OUTWARD, Packet, Ruleset, Sets, evaluate
from tortie.felix.rules.iptables import Features

STATIC_SETS = (names.MASQUERADED_POOLS, names.ALL_POOLS, names.DSCP_SOURCES, names.THIS_HOST)


def calculated(objects: Mapping[Key, Any]) -> State:
    calc = Calculation(Inputs(NODE))
    for key, value in sorted(objects.items(), key=str, reverse=True):  # no order is to be relied on
        calc.update(Update("new", key, value))
    calc.flush()
    assert calc.state.problems == {}
    return calc.state


def ruleset_of(state: State, version: int) -> Ruleset:
    duty: Tables = Duty("chains", FakeTables(), interval=0, clock=FakeClock(), rand=lambda: 0.5)
    tables = TableWriter(version, SETTINGS, Features(), duty)
    tables.start(state)
    held = {"eth0": (HOST.v4, HOST.v6)}
    tables.hosts(assign(state.hosts.values(), held, SETTINGS.workload_prefixes))
    return tables.ruleset()


def sets_of(state: State) -> Sets:
    members = {ident: one.v4 | one.v6 for ident, one in state.sets.items()}
    return Sets({**members, **dict.fromkeys(STATIC_SETS, ())})


def path_of(packet: Packet) -> tuple[tuple[str, str], ...]:
    if not packet.in_interface:
        return OUTWARD
    return FORWARDED if packet.out_interface else INWARD


@pytest.mark.unit
@settings(max_examples=600, deadline=None)
@given(st.integers(min_value=0))
def test_chains_decide_as_the_objects_say(seed: int) -> None:
    rand = Random(seed)
    objects = a_world(rand)
    state, world = calculated(objects), specified(objects)
    sets, rulesets = sets_of(state), {version: ruleset_of(state, version) for version in (4, 6)}
    for number in range(40):
        source, target, packet = a_packet(rand, 20000 + number)
        verdict = evaluate(rulesets[packet.version], sets, packet, path_of(packet))
        expected = spec.passes(world, packet)
        assert (verdict.outcome == "accept") == expected, (source.name, target.name, packet, verdict.path)


@pytest.mark.unit
def test_the_worlds_are_neither_open_nor_shut() -> None:
    """Random policies that decide nothing would prove nothing."""
    rand, found = Random(1), Counter[bool]()
    for _ in range(60):
        world = specified(a_world(rand))
        found.update(spec.passes(world, a_packet(rand, 1)[2]) for _ in range(20))
    assert 0.25 < found[True] / found.total() < 0.75


# --- in the kernel --------------------------------------------------------------------------------


class Cluster:
    """A node with the pods of the worlds, felix's calculation and driver on it, and ways to send packets."""

    def __init__(self, node: Node, backend: str) -> None:
        self.node = node
        for place in PODS:
            node.pod(place.name)
        self.namespaces = {pod.name: pod.ns for pod in node.pods.values()}
        self.namespaces |= {OUTSIDE.name: node.outside, HOST.name: node.ns}
        # The neighbour answers for itself; what pods are is known only to the node.
        for way in ("10.65.0.0/16 via 172.16.0.1", "fd65::/64 via fd16::1"):
            node.outside.sh(f"ip route add {way}")
        self.sent = 0  # packets so far: no two may look like one connection
        self.calc, self.known = Calculation(Inputs(NODE)), set[Key]()
        self.nftables = backend == "nftables"
        options = {"nftables": True} if self.nftables else {"backend": backend}
        self.felix = Felix(node, settings=SETTINGS, **options)
        self.felix.state = self.calc.state
        self.mouths = {name: Mouth(ns) for name, ns in self.namespaces.items()}
        self.ears = {name: Ear(ns) for name, ns in self.namespaces.items()}

    def become(self, objects: Mapping[Key, Any]) -> None:
        """Tell felix what changed, and let it apply that."""
        for key in self.known - objects.keys():
            self.calc.update(Update("deleted", key, None))
        for key, value in objects.items():
            self.calc.update(Update("updated", key, value))
        self.known = set(objects)
        assert self.felix.apply(self.calc.flush()), self.felix.driver.failures()

    def try_out(self, packets: Sequence[tuple[Place, Place, Packet]]) -> list[bool]:
        """Whether each packet came through."""
        numbered = [(*one, self.sent + number) for number, one in enumerate(packets)]
        self.sent += len(packets)
        for source, _, packet, number in numbered:
            self.mouths[source.name].send(packet, number)
        found = heard(self.ears)
        return [identity(packet, number) in found[target.name] for _, target, packet, number in numbered]

    def rules(self) -> dict[str, list[str]]:
        """All chains and sets, in an order that does not depend on history."""
        if self.nftables:
            return nft_picture(self.node.ns)
        tables = {
            f"{version} {command}": self.node.ns.run(command)
            for version, command in ((4, "iptables-nft-save"), (6, "ip6tables-nft-save"))
        }
        found = {name: _by_chain(text) for name, text in tables.items()}
        saved = self.node.ns.run("ipset", "save").splitlines()
        found["ipset"] = sorted(
            re.sub(r" (bucketsize|initval) \S+", "", line) for line in saved if " fe80:" not in line
        )
        return found

    def close(self) -> None:
        self.felix.close()
        for mouth in self.mouths.values():
            mouth.close()
        for ear in self.ears.values():
            ear.close()


def _by_chain(text: str) -> list[str]:
    """Lines of iptables-save, those of one chain together and in their order."""
    lines = [line for line in text.splitlines() if line[:1] in "*:-"]
    table, found = "", list[tuple[str, str, int, str]]()
    for number, line in enumerate(lines):
        if line.startswith("*"):
            table = line
        else:
            chain = line[1:].split()[0] if line.startswith(":") else line.split()[1]
            found.append((table, chain, 0 if line.startswith(":") else number, line))
    return [f"{table} {line}" for table, _, _, line in sorted(found)]


@pytest.fixture
def cluster(make_netns: Callable[[], Namespace]) -> Iterator[Callable[[str], Cluster]]:
    made: list[Cluster] = []

    def make(backend: str = "nft") -> Cluster:
        made.append(Cluster(Node(make_netns), backend))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.kernel
@pytest.mark.parametrize("backend", ["nft", "legacy", "nftables"])
def test_packets_go_where_the_objects_say(cluster: Callable[[str], Cluster], backend: str) -> None:
    """Through one random world after another, each reached by updates from the one before."""
    here = cluster(backend)
    for seed in range(25):
        rand = Random(seed)
        objects = a_world(rand)
        here.become(objects)
        world = specified(objects)
        packets = [a_packet(rand, 20000 + here.sent + number) for number in range(120)]
        expected = [spec.passes(world, packet) for _, _, packet in packets]
        wrong = [
            f"{source.name} to {target.name}, {'should' if wanted else 'should not'} arrive: {packet}"
            for (source, target, packet), found, wanted in zip(
                packets, here.try_out(packets), expected, strict=True
            )
            if found != wanted
        ]
        assert not wrong, f"world {seed}:\n" + "\n".join(wrong)


@pytest.mark.kernel
@pytest.mark.parametrize("backend", ["nft", "nftables"])
def test_any_history_ends_in_the_kernel_as_a_fresh_start(
    cluster: Callable[[str], Cluster], backend: str
) -> None:
    old, rand = cluster(backend), Random(7)
    for _ in range(12):
        world = a_world(rand)
        some = {key: value for key, value in world.items() if rand.random() < 0.8}
        old.become(some)
    old.become(world)
    fresh = cluster(backend)
    fresh.become(world)
    for name, lines in fresh.rules().items():
        assert set(old.rules()[name]) ^ set(lines) == set(), name
        assert old.rules()[name] == lines
