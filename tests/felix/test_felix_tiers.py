"""Endpoint chains with tiers of policies: order, pass, end of tier, groups, staged ones; host endpoints."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.felix import naive
from tests.felix.rulesets import add
from tests.felix.test_felix_rules import MEMBERS, a_packet, a_rule
from tortie.felix.calc.model import (
    HostEndpoint,
    Policy,
    PolicyId,
    PolicyRef,
    Profile,
    QoS,
    Rule,
    Side,
    Tier,
    Workload,
    WorkloadId,
)
from tortie.felix.rules import endpoints, ir, names, profiles, static
from tortie.felix.rules.evaluate import Packet, Sets, evaluate
from tortie.felix.rules.settings import Failsafe, Settings

pytestmark = pytest.mark.unit

SETTINGS = Settings()
IDENT = WorkloadId("k8s", "default/pod", "eth0")
ALLOW, DENY, PASS = Rule("allow"), Rule("deny"), Rule("pass")


def policy(
    name: str, *rules: Rule, kind: str = "NetworkPolicy", selector: str = ""
) -> tuple[PolicyRef, Policy]:
    ident = PolicyId(name, "ns", kind)
    return PolicyRef(ident, selector), Policy(ident, "t", rules, rules)


def verdict(
    chains: Sequence[ir.Chain],
    policies: Sequence[Policy],
    some: Sequence[Profile],
    start: str,
    packet: Packet,
    table: str = ir.FILTER,
    tiers: Sequence[Tier] = (),
    rules: Settings = SETTINGS,
) -> str:
    """accept (with the mark), drop, or nothing (fell through without a mark)."""
    ruleset: dict[tuple[str, str], ir.Chain | ir.Hook] = {}
    add(ruleset, {table: chains})
    add(ruleset, {table: endpoints.group_chains(tiers, rules)})
    for one in policies:
        add(ruleset, {table: profiles.policy_chains(one, packet.version, table, rules)})
    for profile in some:
        add(ruleset, {table: profiles.profile_chains(profile, packet.version, table, rules)})
    for name in (names.FAILSAFE_IN, names.FAILSAFE_OUT):
        failsafe = ir.Rule((ir.Protocol("tcp"), ir.Ports("dst", ((22, 22),))), ir.ACCEPT)
        ruleset[table, name] = ir.Chain(name, (failsafe,))
    ruleset[table, "FORWARD"] = ir.Hook((ir.Rule(action=ir.Jump(start)),))
    found = evaluate(ruleset, Sets(MEMBERS), packet, [(table, "FORWARD")])
    if found.outcome == "accept" and found.rule is None and not found.mark & rules.marks.accept:
        return "nothing"
    return found.outcome


def workload_verdict(
    tiers: Sequence[Tier], policies: Sequence[Policy], packet: Packet, *some: Profile
) -> str:
    workload = Workload(IDENT, "cali1", tiers=tuple(tiers), profiles=tuple(one.name for one in some))
    chains = endpoints.workload_chains(workload, SETTINGS)
    return verdict(chains, policies, some, "cali-tw-cali1", packet, tiers=tiers)


PACKET = Packet("10.0.0.1", "10.0.0.2", 6, 1000, 80)
OPEN = Profile("open", (ALLOW,), (ALLOW,))


@pytest.mark.parametrize(
    ("rules", "default_pass", "expected"),
    [
        ([ALLOW], False, "accept"),
        ([DENY], False, "drop"),
        ([PASS], False, "accept"),  # the profile allows
        ([], False, "drop"),  # nobody had a say: the tier denies
        ([], True, "accept"),
        ([Rule("log"), ALLOW], False, "accept"),
    ],
)
def test_one_tier(rules: list[Rule], default_pass: bool, expected: str) -> None:
    ref, one = policy("p", *rules)
    assert workload_verdict([Tier("t", default_pass, (ref,), ())], [one], PACKET, OPEN) == expected


def test_a_tier_without_policies_in_this_direction_is_skipped() -> None:
    ref, one = policy("p", DENY)
    assert workload_verdict([Tier("t", False, (), (ref,))], [one], PACKET, OPEN) == "accept"


def test_a_pass_of_a_tier_is_not_taken_for_one_of_the_profile() -> None:
    """Calico leaves the mark set, and a profile with a Pass rule of its own would then end early."""
    ref, one = policy("p", PASS)
    never = Rule("pass", protocol="udp")
    tier = Tier("t", False, (ref,), ())
    assert workload_verdict([tier], [one], PACKET, Profile("own", (never, ALLOW))) == "accept"
    passing = Profile("passing", (PASS,))
    assert workload_verdict([], [], PACKET, passing, Profile("own", (never, ALLOW))) == "accept"


def test_staged_policies_have_no_effect() -> None:
    ref, one = policy("p", DENY, kind="StagedNetworkPolicy")
    assert workload_verdict([Tier("t", False, (ref,), ())], [one], PACKET, OPEN) == "accept"
    live, other = policy("q")
    tier = Tier("t", False, (ref, live), ())
    assert workload_verdict([tier], [one, other], PACKET, OPEN) == "drop"


@settings(max_examples=400, deadline=None)
@given(st.integers(min_value=0))
def test_tiers_decide_as_specified(seed: int) -> None:
    """Random tiers of up to eight policies, in groups of equal selectors, some of them staged."""
    rand = Random(seed)
    tiers, policies, lookup = [], [], {}
    for number in range(rand.randint(0, 3)):
        refs = []
        for index in range(rand.randint(0, 8)):
            kind = rand.choice(["NetworkPolicy"] * 4 + ["StagedNetworkPolicy"])
            rules = [a_rule(rand, "allow", "deny", "pass", "log") for _ in range(rand.randint(0, 2))]
            ref, one = policy(f"p{number}-{index}", *rules, kind=kind, selector=rand.choice("ab"))
            refs.append(ref)
            policies.append(one)
            lookup[ref.id] = one
        tiers.append(Tier(f"t{number}", rand.random() < 0.3, tuple(refs), ()))
    profile = Profile("p", tuple(a_rule(rand, "allow", "deny", "pass") for _ in range(2)))
    for _ in range(5):
        packet = a_packet(rand)
        expected = naive_tiers(tiers, lookup, packet) or naive.verdict_of_profiles(
            [profile], True, packet, MEMBERS
        )
        found = workload_verdict(tiers, policies, packet, profile)
        assert found == {"allow": "accept", "deny": "drop"}[expected]


def naive_tiers(tiers: Sequence[Tier], lookup: dict[PolicyId, Policy], packet: Packet) -> str:
    for tier in tiers:
        live = [ref for ref in tier.ingress if not ref.id.staged]
        for ref in live:
            found = naive.verdict_of_rules(lookup[ref.id].inbound, packet, MEMBERS)
            if found == "pass":
                break
            if found:
                return found
        else:
            if live and not tier.default_pass:
                return "deny"
    return ""


def test_groups_are_named_by_what_is_in_them() -> None:
    refs = tuple(policy(f"p{n}", selector="a")[0] for n in range(3))
    name = endpoints.group_name(refs, True)
    assert name.startswith("cali-gi-") and len(name) == 28
    assert name != endpoints.group_name(refs, False) and name != endpoints.group_name(refs[:2], True)


# --- quality of service --------------------------------------------------------------------


def test_limits_come_before_policy() -> None:
    """That of packets to a workload before any chain which accepts standing connections."""
    workload = Workload(IDENT, "cali1", profiles=("open",), qos=QoS(100, 5, 0, 0, 7, 0))
    to, origin = endpoints.workload_chains(workload, SETTINGS)
    rate = endpoints.rate_chain(workload, SETTINGS)
    assert rate is not None
    assert ir.MarkWithinRate(100, 5, SETTINGS.marks.scratch0) in [rule.action for rule in rate.rules]
    for counted in (True, False):
        idle = () if counted else (names.WORKLOAD_RATE_DISPATCH,)
        chains = {chain.name: chain for chain in static.chains(4, SETTINGS, idle)[ir.FILTER]}
        (first, *_) = [
            rule.action for rule in chains[names.FORWARD].rules if isinstance(rule.action, ir.Jump)
        ]
        assert (first.chain == names.WORKLOAD_RATE_DISPATCH) is counted
    only_sent = replace(workload, qos=QoS(egress_packets=9, egress_burst=9))
    assert endpoints.rate_chain(only_sent, SETTINGS) is None
    (_, limited) = endpoints.workload_chains(only_sent, SETTINGS)
    assert ir.MarkWithinRate(9, 9, SETTINGS.marks.scratch0) in [rule.action for rule in limited.rules]
    assert ir.ResetAboveConnections(7) in [rule.action for rule in to.rules]
    kinds = {type(rule.action) for rule in origin.rules}
    assert not kinds & {ir.MarkWithinRate, ir.ResetAboveConnections}
    assert verdict([to], [], [OPEN], to.name, PACKET) == "accept"


# --- host endpoints -------------------------------------------------------------------------------


def host(**tiers: tuple[Tier, ...]) -> HostEndpoint:
    return replace(HostEndpoint("h", "eth0"), **tiers)  # type: ignore[arg-type]


def test_a_host_endpoint_drops_what_no_policy_allows_but_failsafes() -> None:
    to, origin, *_ = endpoints.host_filter_chains(host(), "eth0", SETTINGS)
    assert verdict([origin], [], [], origin.name, PACKET) == "drop"
    assert verdict([to], [], [], to.name, PACKET) == "drop"
    assert verdict([origin], [], [], origin.name, replace(PACKET, dport=22)) == "accept"


@pytest.mark.parametrize(
    ("rules", "expected"), [(None, "accept"), ([ALLOW], "accept"), ([DENY], "drop"), ([PASS], "nothing")]
)
def test_forwarded_traffic_is_free_unless_a_policy_speaks(rules: list[Rule] | None, expected: str) -> None:
    ref, one = policy("p", *(rules or []))
    tiers = () if rules is None else (Tier("t", False, (ref,), (ref,)),)
    *_, to, origin = endpoints.host_filter_chains(host(forward_tiers=tiers), "eth0", SETTINGS)
    for chain in (to, origin):
        assert verdict([chain], [one], [], chain.name, PACKET) == expected


def test_untracked_policy_lets_pass_without_tracking() -> None:
    ref, one = policy("p", Rule("allow", protocol="tcp", dst=Side(ports=((80, 80),))))
    chains = endpoints.host_raw_chains(
        host(untracked_tiers=(Tier("t", True, (ref,), (ref,)),)), "eth0", SETTINGS
    )
    assert len(chains) == 2
    for chain in chains:
        assert ir.NO_TRACK in [rule.action for rule in chain.rules]
        assert not any(isinstance(match, ir.Conntrack) for rule in chain.rules for match in rule.matches)
        assert verdict([chain], [one], [], chain.name, PACKET, ir.RAW) == "accept"
        assert verdict([chain], [one], [], chain.name, replace(PACKET, dport=81), ir.RAW) == "nothing"
    assert endpoints.host_raw_chains(host(), "eth0", SETTINGS) == []


def test_policy_before_translation_is_for_what_comes_in() -> None:
    ref, one = policy("p", DENY)
    to, origin = endpoints.host_mangle_chains(
        host(pre_dnat_tiers=(Tier("t", True, (ref,), ()),)), "eth0", SETTINGS
    )
    assert (to.name, origin.name) == ("cali-th-eth0", "cali-fh-eth0")
    assert verdict([origin], [one], [], origin.name, PACKET, ir.MANGLE) == "drop"
    assert len(endpoints.host_mangle_chains(host(), "eth0", SETTINGS)) == 1


def test_failsafes_are_of_one_family_each() -> None:
    settings = Settings(failsafe_in=(Failsafe("tcp", 22), Failsafe("tcp", 23, "10.0.0.0/8")))
    discovery = 4  # kinds of ICMPv6 that do what ARP does, in front of all others
    for version, count in ((4, 2), (6, 1 + discovery)):
        chains = {chain.name: chain for chain in static.chains(version, settings)[ir.FILTER]}
        assert len(chains[names.FAILSAFE_IN].rules) == count
        raw = {chain.name: chain for chain in static.chains(version, settings)[ir.RAW]}
        assert len(raw[names.FAILSAFE_OUT].rules) == count, "answers of what comes in must get out untracked"
