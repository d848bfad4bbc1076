"""Rules of profiles and policies as chains: they mean what the specification says, however they are split."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.felix import naive
from tortie.felix.calc.model import Profile, Rule, Side
from tortie.felix.rules import iptables, ir, names, nftables
from tortie.felix.rules.evaluate import Packet, Ruleset, Sets, evaluate
from tortie.felix.rules.policy import Owner, log_prefix, split_ports
from tortie.felix.rules.profiles import profile_chains
from tortie.felix.rules.settings import Settings
from tortie.linux.nft_table import Chain

pytestmark = pytest.mark.unit

SETTINGS = Settings()
MEMBERS = {
    "net": ["10.0.0.0/30", "10.0.0.9/32", "fd00::/126"],
    "odd": ["10.0.0.1/32", "10.0.0.3/32", "fd00::1/128"],
    "ports": ["10.0.0.1,tcp:80", "10.0.0.2,udp:53", "fd00::1,tcp:80"],
    "more": ["10.0.0.3,tcp:90", "10.0.0.1,udp:80", "fd00::2,tcp:90"],
}
ADDRESSES = {4: [f"10.0.0.{n}" for n in (1, 2, 3, 9, 77)], 6: [f"fd00::{n}" for n in (1, 2, 3, 9, 77)]}
NETS = [
    "10.0.0.0/31",
    "10.0.0.2/31",
    "10.0.0.9/32",
    "0.0.0.0/0",
    "fd00::/127",
    "fd00::2/127",
    "::/0",
    "fd00::9/128",
]
PORTS = [(53, 53), (80, 80), (79, 91), (1, 65535)]
MANY_PORTS = [(n, n) for n in range(100, 130)]


def some(rand: Random, values: Sequence[Any], most: int) -> tuple[Any, ...]:
    return tuple(rand.sample(values, rand.randint(1, most)))


def a_side(rand: Random, numeric: bool) -> Side:
    """Two or three criteria at a time: with all of them at once hardly any packet would match."""
    many = [*MANY_PORTS, *PORTS]
    rand.shuffle(many)
    fields: dict[str, tuple[Any, ...]] = {
        "nets": some(rand, NETS, 4),
        "sets": some(rand, ["net", "odd"], 2),
        "ports": some(rand, PORTS, 2) if rand.random() < 0.5 else tuple(many[:20]),
        "port_sets": some(rand, ["ports", "more"], 2),
        "service_sets": ("ports",),
        "not_nets": some(rand, NETS, 2),
        "not_sets": ("odd",),
        "not_ports": some(rand, PORTS[:2], 2) if rand.random() < 0.5 else tuple(MANY_PORTS[:20]),
        "not_port_sets": ("more",),
    }
    chosen = rand.sample(sorted(fields), rand.choice([0, 1, 2, 3]))
    return Side(**{name: fields[name] for name in chosen if numeric or name not in ("ports", "not_ports")})


def a_rule(rand: Random, *actions: str) -> Rule:
    protocol = rand.choice([None, None, "tcp", 6, "udp", 17, "icmp", "icmpv6", 1, 58, 200])
    numeric = protocol in ("tcp", "udp", 6, 17)
    asks = protocol in ("icmp", "icmpv6", 1, 58) and rand.random() < 0.7
    kind = rand.choice([8, 128]), rand.choice([None, 0, 1])
    return Rule(
        rand.choice(actions),  # type: ignore[arg-type]
        ip_version=rand.choice([0, 0, 0, 4, 6]),
        protocol=protocol,
        not_protocol=rand.choice([None, None, None, "tcp", "udp", 17]),
        icmp=kind if asks else None,
        not_icmp=(kind[0], 1) if asks and rand.random() < 0.3 else None,
        src=replace(a_side(rand, numeric), service_sets=()),
        dst=a_side(rand, numeric),
    )


def a_packet(rand: Random) -> Packet:
    version = rand.choice([4, 6])
    protocol = rand.choice([6, 6, 17, 1 if version == 4 else 58, 200])
    icmp = (rand.choice([8, 128]), rand.choice([0, 1])) if protocol in (1, 58) else None
    ports = [53, 80, 85, 90, 100, 115, 129, 9999] if protocol in (6, 17) else [0]
    source, target = rand.choice(ADDRESSES[version]), rand.choice(ADDRESSES[version])
    return Packet(source, target, protocol, rand.choice(ports), rand.choice(ports), icmp)


def mark_after(profile: Profile, packet: Packet, mark: int = 0) -> tuple[str, int]:
    """(outcome, mark) of the profile's inbound chain alone."""
    inbound, _ = profile_chains(profile, packet.version, ir.FILTER, SETTINGS)
    hook = ir.Hook((ir.Rule(action=ir.SetMark(mark, 0xFFFFFFFF)), ir.Rule(action=ir.Jump(inbound.name))))
    ruleset: Ruleset = {(ir.FILTER, "FORWARD"): hook, (ir.FILTER, inbound.name): inbound}
    verdict = evaluate(ruleset, Sets(MEMBERS), packet, [(ir.FILTER, "FORWARD")])
    return verdict.outcome, verdict.mark


@settings(max_examples=1500, deadline=None)
@given(st.integers(min_value=0))
def test_a_chain_decides_as_its_rules_do(seed: int) -> None:
    """Also with scratch bits that something before left set."""
    rand = Random(seed)
    some_rules = [a_rule(rand, "allow", "deny", "pass", "log") for _ in range(rand.randint(0, 4))]
    profile = Profile("p", tuple(some_rules))
    marks = SETTINGS.marks
    for _ in range(20):
        packet = a_packet(rand)
        outcome, mark = mark_after(profile, packet, rand.choice([0, marks.scratch0, marks.scratch1]))
        expected = naive.verdict_of_rules(some_rules, packet, MEMBERS)
        assert outcome == ("drop" if expected == "deny" else "accept")
        assert bool(mark & marks.accept) == (expected == "allow")
        assert bool(mark & marks.passed) == (expected == "pass")


@settings(max_examples=1500, deadline=None)
@given(st.integers(min_value=0))
def test_one_rule_matches_as_specified(seed: int) -> None:
    rand = Random(seed)
    rule = a_rule(rand, "allow")
    for _ in range(20):
        packet = a_packet(rand)
        _, mark = mark_after(Profile("p", (rule,)), packet)
        assert bool(mark & SETTINGS.marks.accept) == naive.rule_matches(rule, packet, MEMBERS)


def test_the_random_rules_match_often_enough_to_mean_something() -> None:
    rand = Random(1)
    hits = sum(naive.rule_matches(a_rule(rand, "allow"), a_packet(rand), MEMBERS) for _ in range(2000))
    assert hits > 100


def test_three_blocks_do_not_open_a_rule() -> None:
    """Calico leaves its scratch bit set from the second block on (policy sheet 7.11)."""
    rule = Rule(
        "allow",
        protocol="tcp",
        src=Side(ports=tuple(MANY_PORTS), nets=("10.0.0.0/31", "10.0.0.9/32")),
        dst=Side(ports=tuple(MANY_PORTS)),
    )
    wrong_source = Packet("10.0.0.77", "10.0.0.1", 6, 100, 100)
    assert mark_after(Profile("p", (rule,)), wrong_source)[1] & SETTINGS.marks.accept == 0
    right = Packet("10.0.0.9", "10.0.0.1", 6, 100, 100)
    assert mark_after(Profile("p", (rule,)), right)[1] & SETTINGS.marks.accept


def test_two_nets_render_as_calico_does() -> None:
    rule = Rule("allow", src=Side(nets=("10.0.0.0/31", "10.0.0.9/32")))
    inbound, _ = profile_chains(Profile("p", (rule,)), 4, ir.FILTER, SETTINGS)
    marks = SETTINGS.marks
    assert [(one.matches, one.action) for one in inbound.rules] == [
        ((), ir.SetMark(0, marks.scratch0 | marks.scratch1)),
        ((ir.Net("src", "10.0.0.0/31"),), ir.set_bits(marks.scratch0)),
        ((ir.Net("src", "10.0.0.9/32"),), ir.set_bits(marks.scratch0)),
        ((ir.all_set(marks.scratch0),), ir.set_bits(marks.accept)),
    ]
    assert inbound.name == names.chain(names.PROFILE_IN, "p")
    assert inbound.rules[0].comments == ("Profile p ingress",)


def test_an_empty_profile_has_one_rule_that_does_nothing() -> None:
    inbound, outbound = profile_chains(Profile("p"), 4, ir.FILTER, SETTINGS)
    assert inbound.rules == (ir.Rule(comments=("Profile p ingress",)),)
    assert outbound.rules == (ir.Rule(comments=("Profile p egress",)),)


def test_however_many_annotations_a_rule_has_it_stays_one_line_with_its_owners_name() -> None:
    """iptables reads 250 words and 10 kB as one rule; nftables shares out 128 bytes among the comments."""
    rule = Rule("allow", annotations=tuple((f"a{number}", "x" * 300) for number in range(500)))
    for chain in profile_chains(Profile("p", (rule,), (rule,)), 4, ir.FILTER, SETTINGS):
        (line, *_) = iptables.render_chain(chain, 4, iptables.Features()).rules
        assert len(line.text) < 5000 and "Profile p" in line.text
        (content,) = nftables.render_chain(chain, ir.FILTER, 4, iptables.Features()).values()
        assert isinstance(content, Chain)
        assert all(len(one.text.partition("comment ")[2]) <= 130 for one in content.rules)


def test_reject_is_for_the_filter_table_only() -> None:
    rejecting = Settings(filter_deny=ir.REJECT)
    profile = Profile("p", (Rule("deny"),))
    for table, expected in ((ir.FILTER, ir.REJECT), (ir.MANGLE, ir.DROP), (ir.RAW, ir.DROP)):
        inbound, _ = profile_chains(profile, 4, table, rejecting)
        assert inbound.rules[-1].action == expected


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1)).map(lambda one: (one[0], one[0] + one[1]))))
def test_port_groups_fit_a_multiport_match_and_lose_nothing(ranges: list[tuple[int, int]]) -> None:
    groups = split_ports(ranges)
    assert [one for group in groups for one in group] == ranges
    for group in groups:
        assert 0 < sum(1 if low == high else 2 for low, high in group) <= 15


def test_log_prefixes_know_whose_rule_they_log() -> None:
    owner = Owner("np", "web", "ns", "default")
    assert log_prefix("%t-%k-%n-%p-%x", owner) == "default-np-web-ns/web-%x"
    assert log_prefix("plain", owner) == "plain"
