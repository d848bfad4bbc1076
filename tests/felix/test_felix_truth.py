"""Policy from the datastore's objects to verdicts: the specification, the evaluator and the kernel agree.

Two oracles that share no code: spec.py reads the objects, rules.evaluate the chains made of them.
"""

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.felix import spec
from tests.felix.fakes import FakeClock, FakeTables
from tests.felix.worlds import HOST, NODE, SETTINGS, a_packet, a_world, specified
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
    for key, value in objects.items():
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
