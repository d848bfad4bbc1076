"""ExaBGP's lines, as it writes them, and our commands, as it reads them."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.bgp import commands, events
from tortie.bgp.commands import Change
from tortie.bgp.route import Announcement, Attributes, Origin, Received, Segment
from tortie.core.errors import PeerError

pytestmark = pytest.mark.unit

_FILE = Path(__file__).with_name("data") / "exabgp-5.0.15.lines"
_LINES = dict(line.split("\t", 1) for line in _FILE.read_text().splitlines())  # name -> as ExaBGP wrote it

_EXPECTED = Attributes(
    origin=Origin.INCOMPLETE,
    as_path=(Segment("as-sequence", (65001, 65002)), Segment("as-set", (7, 8))),
    med=7,
    local_pref=100,
    communities=((65000, 100), (65535, 65281)),
    large_communities=((1, 2, 3),),
    originator_id="1.1.1.1",
    cluster_list=("2.2.2.2",),
)


_OPEN = events.Open("10.0.0.2", 64512, 240, "10.0.0.2", frozenset([4]), 120, True, {4: True})
_EVENTS: dict[str, events.Event | None] = {
    "up": events.Up("10.0.0.2"),
    "connected": None,
    "down": events.Down("10.0.0.2", "closing connection"),
    "opensent": events.State("10.0.0.2", "OpenSent"),
    "idle": events.State("10.0.0.2", "Idle"),
    "eor sent": events.EndOfRib("10.0.0.2", True, 4),
    "eor of another family": None,
    "update": events.Update(
        "10.0.0.2",
        False,
        {
            "10.3.0.0/26": None,
            "10.2.0.0/26": Received(_EXPECTED, "10.0.0.9"),
            "10.1.0.64/26": Received(_EXPECTED, "10.0.0.9"),
        },
    ),
    "open": _OPEN,
    "open without capabilities": events.Open("10.0.0.2", 1, 90, "1.2.3.4", frozenset([4])),
    "refresh": None,
    "shutdown": events.Shutdown(),
    "listed": events.Listed("10.0.0.2", "10.1.0.0/26", Received(_EXPECTED, "10.0.0.9")),
    "listed own": events.Listed(
        "10.0.0.2", "10.1.0.0/26", Received(Attributes(local_pref=2147482623), "10.0.0.9")
    ),
    "neighbours": events.Neighbours(
        (
            events.Neighbour("10.0.0.2", True, 0, "10.0.0.2", 90, True),
            events.Neighbour("10.0.0.3", False, 0, "", 0, False),
        )
    ),
    "no neighbours": events.Neighbours(()),
    "description": events.Described("Mesh_10_0_0_2 0123abcd"),
    "version": events.Ready("5.0.15"),
    "done": None,
    "empty": None,
    "other configuration": None,
}


@pytest.mark.parametrize("name", _EVENTS)
def test_lines(name: str) -> None:
    assert events.parse(_LINES[name].encode()) == _EVENTS[name]


@pytest.mark.parametrize("name", _LINES.keys() - _EVENTS.keys())
def test_a_line_that_makes_no_sense_is_an_error_of_exabgps(name: str) -> None:
    assert name.startswith("broken: ")
    with pytest.raises(PeerError, match="cannot be understood"):
        events.parse(_LINES[name].encode())


@given(st.binary(max_size=200))
def test_any_line_is_an_event_nothing_or_an_error(line: bytes) -> None:
    for start in (b"", b'{ "exabgp"', b'{"peer"', b"["):
        with contextlib.suppress(PeerError):
            events.parse(start + line)


# --- commands -----------------------------------------------------------------------------------


def test_one_line_for_what_has_the_same_attributes() -> None:
    told = Announcement(Attributes(local_pref=2147482623), "10.0.0.1")
    lines = list(
        commands.tell(
            [
                Change("10.0.0.2", "10.1.0.64/26", told),
                Change("10.0.0.2", "10.1.0.0/26", told),
                Change("10.0.0.3", "10.1.0.0/26", told),
                Change("10.0.0.3", "10.1.0.64/26", told),
                Change("10.0.0.2", "10.9.0.0/26", None),
                Change("fd00::2", "fd00:1::/122", None),
            ]
        )
    )
    assert lines == [
        b"neighbor 10.0.0.2 withdraw attributes next-hop 0.0.0.0 nlri 10.9.0.0/26\n",
        b"neighbor fd00::2 withdraw attributes next-hop :: nlri fd00:1::/122\n",
        b"neighbor 10.0.0.2 , neighbor 10.0.0.3 announce attributes next-hop 10.0.0.1 origin igp as-path [ ] "
        b"local-preference 2147482623 nlri 10.1.0.0/26 10.1.0.64/26\n",
    ]


def test_all_attributes() -> None:
    assert commands.write_attributes(_EXPECTED) == (
        "origin incomplete as-path [ 65001 65002 ] ( 7 8 ) med 7 local-preference 100 "
        "community [ 65000:100 65535:65281 ] large-community [ 1:2:3 ] originator-id 1.1.1.1 "
        "cluster-list [ 2.2.2.2 ]"
    )


def test_lines_stay_far_below_exabgps_limit() -> None:
    told = Announcement(Attributes(), "fd00::1")
    prefixes = [f"fd00:{number:x}:ffff:ffff:ffff:ffff:ffff:ff00/122" for number in range(5000)]
    peers = [f"fd00::{number:x}" for number in range(300)]
    lines = list(
        commands.tell([Change(peer, prefix, told) for prefix in prefixes[:1500] for peer in peers[:3]])
    )
    assert max(map(len, lines)) < 100_000 and len(lines) == 2
    lines = list(commands.tell([Change(peer, prefixes[0], told) for peer in peers]))
    assert len(lines) == 3 and max(map(len, lines)) < 100_000
