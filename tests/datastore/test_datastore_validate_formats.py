"""Single values: addresses, names, ports, selectors, times; what each accepts and what it must not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.datastore.validate import addresses, fields, formats
from tortie.datastore.validate.fields import Check, Problems

pytestmark = pytest.mark.unit

# What every check of text refuses, whatever it is for.
HOSTILE = [
    "a\nb", "a\n", "\n", "a\x00b", "a b\r", "'", '"', "a;b", "$(id)", "`id`", "{{ x }}", "{", "../../etc",
    "x" * 10_000, "١", "１", "é", "\u202e", "\ud800", " ", "-", "--", "#", "\\", "%s",
]  # fmt: skip

CASES: list[tuple[str, Check, list[Any], list[Any]]] = [  # what, check, accepted, refused
    ("ip", addresses.ip, ["10.0.0.1", "fd00::1", "::"], ["10.0.0.1/32", "10.0.0", "010.0.0.1",
     "::ffff:1.2.3.4"]),
    ("ipv4", addresses.ipv4, ["10.0.0.1"], ["fd00::1", "10.0.0.256"]),
    ("ipv6", addresses.ipv6, ["fd00::1"], ["10.0.0.1", "fe80::1%eth0", "fd00:::1"]),
    ("net", addresses.net, ["10.0.0.0/8", "10.0.0.1", "fd00::/8", "0.0.0.0/0"],
     ["10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0.0/08", "10.0.0.0/", "/8"]),
    ("netv4", addresses.netv4, ["10.0.0.0/8"], ["fd00::/8"]),
    ("netv6", addresses.netv6, ["fd00::/8"], ["10.0.0.0/8"]),
    ("cidr", addresses.cidr, ["10.0.0.1/8", "10.0.0.1"], ["10.0.0.1/-1", "10.0.0.1/8/8"]),
    ("cidrv4", addresses.cidrv4, ["10.0.0.1/24"], ["fd00::1/64"]),
    ("cidrv6", addresses.cidrv6, ["fd00::1/64"], ["10.0.0.1/24"]),
    ("real_cidr", addresses.real_cidr, ["10.0.0.1/24"], ["10.0.0.1"]),
    ("mac", addresses.mac, ["ee:ee:ee:ee:ee:ee", "EE-00-00-00-00-01", "eeee.eeee.eeee"],
     ["ee:ee:ee:ee:ee", "ee:ee:ee:ee:ee:eg", "eeeeeeeeeeee"]),
    ("peer", addresses.peer, ["10.0.0.1", "10.0.0.1:179", "fd00::1", "[fd00::1]:179"],
     ["10.0.0.1:0", "10.0.0.1:65536", "[fd00::1]", "[10.0.0.1]:179", "host:179", ":179"]),
    ("name", formats.name, ["a", "a-b.c", "0"], ["A", "a_b", ".a", "a.", "a..b", "-a", "a" * 254]),
    ("container_id", formats.container_id, ["C0ffee-1"], ["-a", "a_"]),
    ("port_name", formats.port_name, ["http", "a-1"], ["HTTP", "1", "a--b", "-a", "a" * 16]),
    ("qualified_name", formats.qualified_name, ["a", "a.b/C_d", "A" * 63],
     ["/a", "a/", "a/b/c", "A.b/c", "a" * 64, "-a"]),
    ("label_value", formats.label_value, ["a", "A_b.c"], ["-a", "a" * 64, "a/b"]),
    ("interface", formats.interface, ["eth0", "bond0.100", "A_b-c"],
     [".", "..", "*", "a" * 16, "a/b", "eth0:1"]),
    ("interface_or_all", formats.interface_or_all, ["*", "eth0"], ["**", "eth*"]),
    ("interface_filter", formats.interface_filter, ["docker+", "eth0:1"], ["*", "a" * 16]),
    ("bgp_interface", formats.bgp_interface, ["*", "eth*", "cali-1"], ["+", "a" * 16]),
    ("ignored_interface", formats.ignored_interface, ["eth*", "*.cali"], ["*", "eth+"]),
    ("selector", formats.selector, ["all()", "a == 'b' &&\thas(c)", "x in {'ü'}"],
     ["a = 'b'", "a == ", "all() all()", "a == 'b\nc'", "has(a", "a" * 1025]),
    ("protocol", formats.protocol, ["TCP", "UDPLite", "ICMPv6", 1, 255, "6"],
     ["tcp", 0, 256, -1, "256", True, "6 "]),
    ("port", formats.port, [1, 65535, "80", "1:2", "http", "65535:65535"],
     [0, 65536, "0", "2:1", "0:1", "1:65536", "1:2:3", "HTTP", 1.5, True, None, -1]),
    ("numeric_port", formats.numeric_port, [80, "80:90"], ["http"]),
    ("port_number", formats.port_number, [1, 65535], [0, 65536, "80", True]),
    ("dscp", formats.dscp, [0, 63, "EF", "cs6", "AF11", "10"], [64, -1, "AF14", "CS7", "EF ", True]),
    ("duration", formats.duration, ["90s", "1m30s", "1.5s", "0s", "100ms"],
     ["90", "-1s", "1d", "s", "9999999h", "1s1"]),
    ("regexp", formats.regexp, ["^eth.*", "[a-z]+"], ["(", "a\\1"]),
    ("timestamp", formats.timestamp, ["2026-03-01T08:00:00Z", "2026-03-01T08:00:00.5+01:00"],
     ["2026-03-01", "2026-03-01 08:00:00Z", "2026-03-01T08:00:00"]),
]  # fmt: skip


def reasons(check: Check, value: Any) -> list[str]:
    problems = Problems()
    check(problems, "field", value)
    assert all(problem.field == "field" for problem in problems.found)
    return [problem.reason for problem in problems.found]


@pytest.mark.parametrize(("_what", "check", "accepted", "refused"), CASES, ids=[case[0] for case in CASES])
def test_formats(_what: str, check: Check, accepted: list[Any], refused: list[Any]) -> None:
    assert {repr(value): reasons(check, value) for value in accepted if reasons(check, value)} == {}
    assert [value for value in refused if not reasons(check, value)] == []


# Formats that are not made of a fixed small alphabet have hostile-looking values that are legal.
_LEGAL = {
    "selector": {" "},
    "regexp": {"'", '"', "a;b", "$(id)", "`id`", "../../etc", "é", " ", "-", "--", "#", "%s", "{{ x }}",
    "١", "１", "{"},
    "port": set(), "label_value": set(), "interface": {"-", "--"}, "interface_or_all": {"-", "--"},
    "interface_filter": {"-", "--"}, "bgp_interface": {"-", "--"}, "ignored_interface": {"-", "--"},
}  # fmt: skip


@pytest.mark.parametrize(("what", "check"), [(case[0], case[1]) for case in CASES], ids=[c[0] for c in CASES])
def test_hostile_text_is_refused(what: str, check: Check) -> None:
    accepted = {value for value in HOSTILE if not reasons(check, value)}
    assert accepted == _LEGAL.get(what, set())


@pytest.mark.parametrize("check", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_other_types_are_refused_not_crashed_on(check: Check) -> None:
    for value in ([], {}, {"a": 1}, [1], 1.5, object()):
        assert reasons(check, value)


@given(st.text(max_size=50))
def test_addresses_never_raise_and_read_what_they_print(text: str) -> None:
    for parse in (addresses.parse_cidr, addresses.parse_cidr_or_ip):
        if (found := parse(text)) is not None:
            assert addresses.parse_cidr(str(found[1])) == (found[1].network_address, found[1])
    if (peer := addresses.parse_peer(text)) is not None:
        assert addresses.parse_ip(str(peer[0])) == peer[0]


def test_protocol_numbers() -> None:
    assert [formats.protocol_number(value) for value in ("TCP", "6", 6, "tcp", 0, None)] == [
        6,
        6,
        6,
        None,
        None,
        None,
    ]
    assert [formats.has_ports(value) for value in ("TCP", "UDP", 132, "ICMP", None)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert formats.canonical_port("80:80") == 80 and formats.canonical_port("080") == 80
    assert formats.canonical_port("1:2") == "1:2" and formats.canonical_port("http") == "http"


def test_dscp_values() -> None:
    names = {"DF": 0, "EF": 46, "AF11": 10, "AF23": 22, "AF43": 38, "CS1": 8, "CS6": 48}
    assert {name: formats.dscp_value(name) for name in names} == names


def test_durations_in_gos_spelling() -> None:
    spelled = {"90s": "1m30s", "1500ms": "1.5s", "0": "0s", "60m": "1h0m0s", "1us": "1us", "bad": "bad"}
    assert {text: formats.canonical_duration(text) for text in spelled} == spelled
    assert formats.canonical_duration(None) is None and formats.canonical_duration(5) == 5


def test_problems_in_the_depth_name_their_path() -> None:
    check = fields.struct(
        {
            "list": fields.listing(fields.struct({"port": formats.port_number}, required=("name",))),
            "map": fields.mapping(formats.name, formats.name),
            "set": fields.listing(fields.anything, unique=True, most=2),
        },
        required=("needed",),
    )
    problems = Problems()
    check(problems, "spec", {"list": [{"port": 0}, 7], "map": {"A": "b", "c": "D"}, "set": ["x", "x"]})
    assert {problem.field for problem in problems.found} == {
        "spec.needed", "spec.list[0].name", "spec.list[0].port", "spec.list[1]", "spec.map (key)",
        "spec.map.c", "spec.set[1]",
    }  # fmt: skip
    problems = Problems()
    check(problems, "", {"needed": 1, "set": [1, 2, 3], "list": "text", "map": []})
    assert {problem.field: problem.reason for problem in problems.found} == {
        "set": "must have at most 2 items", "list": "expected a list",
    }  # fmt: skip
