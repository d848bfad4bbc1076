"""Policy from the datastore's objects to verdicts: the specification, the evaluator and the kernel agree.

Two oracles that share no code: spec.py reads the objects, rules.evaluate the chains made of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.felix import spec
from tests.felix.cluster_lab import Cluster, path_of, sets_of
from tests.felix.fakes import FakeClock, FakeTables
from tests.felix.node_lab import Node
from tests.felix.worlds import HOST, NODE, SETTINGS, a_packet, a_world, specified
from tests.netns_lab import Namespace
from tortie.datastore.syncer import Update
from tortie.felix.calc.graph import Calculation, Inputs, State
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.hosts import assign
from tortie.felix.dataplane.tables import Tables, TableWriter
from tortie.felix.rules.evaluate import Ruleset, evaluate
from tortie.felix.rules.iptables import Features


def calculated(objects: Mapping[Any, Any]) -> State:
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


@pytest.mark.unit
@pytest.mark.timeout(2400)  # it computes for a quarter of a minute, beside whoever else does
@settings(max_examples=600, deadline=None)
@given(st.integers(min_value=0))
@example(18207)  # an interface whose own endpoint leaves policy before translation to that of all interfaces
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
                packets, here.try_out(packets, expected), expected, strict=True
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
    wanted = fresh.saved()
    for name, lines in old.saved().items():
        assert set(lines) ^ set(wanted[name]) == set(), name
        assert lines == wanted[name]
