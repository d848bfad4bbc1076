"""The specification and felix's rules agree: on the table, and on clusters by chance."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policy import chance
from tests.policy.board import (
    BUILT_IN_TIERS,
    CELL,
    CELL_OF_HOSTS,
    STANDARD,
    TCP,
    UDP,
    Case,
    Cell,
    Json,
    Probe,
    imaginary,
    packet_of,
)
from tests.policy.naive import World
from tests.policy.oracle import Cluster
from tests.policy.table import CASES

pytestmark = pytest.mark.unit

WITH_HOSTS = (*CELL, "host1", "host2")


def everything(cell: Cell, resources: Sequence[Json]) -> list[Json]:
    return [*BUILT_IN_TIERS, *cell.background(), *cell.endpoints(), *cell.filled(list(resources))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_chains_do_what_the_table_says(case: Case) -> None:
    cell = imaginary(7, CELL_OF_HOSTS if case.node3 else CELL)
    cluster = Cluster(everything(cell, case.resources), cell.hosts())
    wrong = [
        f"{probe}: {cluster.crossings(packet_of(probe, cell))}"
        for probe in case.probes
        if cluster.allowed(packet_of(probe, cell)) != case.expect(probe)
    ]
    assert not wrong, "\n".join([*wrong, str(case.resources)])


def agree(resources: Sequence[Json], cell: Cell, probes: Sequence[Probe]) -> None:
    raws = everything(cell, resources)
    world = World(raws, cell.hosts(), endpoint_to_host="RETURN")
    cluster = Cluster(raws, cell.hosts())
    for probe in probes:
        packet = packet_of(probe, cell)
        specified, found = world.allowed(packet), cluster.crossings(packet)
        assert specified == all(verdict.outcome == "accept" for _, verdict in found), (
            f"{probe} should {'pass' if specified else 'be dropped'}: {found}"
        )


@given(chance.resources())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_pods_by_chance(resources: list[Json]) -> None:
    agree(resources, imaginary(7), STANDARD)


_PAIRS = [(a, b) for a in WITH_HOSTS for b in WITH_HOSTS if a != b]
_PROBES = [
    Probe(a, b, protocol, port)
    for a, b in _PAIRS
    for protocol, port in ((TCP, 8080), (UDP, 8080), (TCP, 6666))
]


@given(chance.resources(hosts=True), st.sets(st.sampled_from(_PROBES), min_size=30, max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_hosts_by_chance(resources: list[Json], probes: set[Probe]) -> None:
    agree(resources, imaginary(7, WITH_HOSTS), sorted(probes, key=str))
