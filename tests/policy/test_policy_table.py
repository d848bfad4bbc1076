"""The table of policy cases: that it is whole, and that its expectations are those of the specification."""

import pytest

from tests.policy import fields
from tests.policy.board import CELL, CELL_OF_HOSTS, Case, Cell, imaginary, packet_of
from tests.policy.naive import World
from tests.policy.table import CASES
from tortie.datastore import validate
from tortie.datastore.codec import from_plain
from tortie.datastore.kinds import KINDS

pytestmark = pytest.mark.unit


def world_of(case: Case, cell: Cell) -> World:
    resources = [*cell.background(), *cell.endpoints(), *cell.filled(list(case.resources))]
    return World(resources, cell.hosts(), endpoint_to_host="RETURN")  # as a first start configures it


def test_there_is_enough_of_it() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)
    told = [case.name for case in CASES if not case.node3 and len({case.expect(p) for p in case.probes}) == 1]
    assert len(told) < len(CASES) / 4, "most cases allow something and deny something"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_expectations_are_the_specifications(case: Case) -> None:
    cell = imaginary(7, CELL_OF_HOSTS if case.node3 else CELL)
    world = world_of(case, cell)
    wrong = [
        f"{probe}: expected {'to pass' if case.expect(probe) else 'to be dropped'}"
        for probe in case.probes
        if world.allowed(packet_of(probe, cell)) != case.expect(probe)
    ]
    assert not wrong, "\n".join([*wrong, str(case.resources)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_calico_takes_what_the_cases_say(case: Case) -> None:
    cell = imaginary(7, CELL_OF_HOSTS if case.node3 else CELL)
    for raw in cell.filled(list(case.resources)):
        validate.check(validate.with_defaults(from_plain(KINDS[raw["kind"]].type, raw)))


def test_a_field_stands_alone_and_in_pairs() -> None:
    names = [case.name.partition(": ")[2] for case in CASES]
    for field in fields.FIELDS:
        assert field.name in names
        assert sum(field.name in name.split(" + ") for name in names) > 5
