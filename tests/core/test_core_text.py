"""Durations and tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.core.duration import format_duration, parse_duration
from tortie.core.tables import boxed, tabbed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1m30s", 90),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("0", 0),
        ("2h", 7200),
        ("-5s", -5),
        (".5s", 0.5),
        ("1h0m1s", 3601),
    ],
)
def test_go_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1 s", "1s\n", "１s", "1d", "--1s", "1s2", "9" * 100 + "s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


@given(st.integers(-(10**9), 10**9))
def test_duration_round_trip(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90, "1m30s"), (0, "0s"), (3600, "1h0m0s"), (0.25, "250ms"), (1.5, "1.5s"), (-5, "-5s")],
)
def test_go_duration_text(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_boxed_is_the_table_of_node_status() -> None:
    heading = ["Peer address", "Peer type", "State", "Since", "Info"]
    rows = [["172.17.8.102", "node-to-node mesh", "up", "2016-11-21", "Established"]]
    assert boxed(heading, rows) == (
        "+--------------+-------------------+-------+------------+-------------+\n"
        "| PEER ADDRESS | PEER TYPE         | STATE | SINCE      | INFO        |\n"
        "+--------------+-------------------+-------+------------+-------------+\n"
        "| 172.17.8.102 | node-to-node mesh | up    | 2016-11-21 | Established |\n"
        "+--------------+-------------------+-------+------------+-------------+\n"
    )


def test_boxed_without_rows_and_with_right_aligned_cells() -> None:
    assert boxed(["a"], []) == "+---+\n| A |\n+---+\n+---+\n"
    assert "|  1 |" in boxed(["ab"], [["1"]], right={0})


def test_tabbed_is_gos_tabwriter() -> None:
    assert (
        tabbed([["NAME", "CIDR"], ["p", "10.0.0.0/16"]]) == "NAME   CIDR          \np      10.0.0.0/16   \n"
    )
    assert tabbed([]) == ""
