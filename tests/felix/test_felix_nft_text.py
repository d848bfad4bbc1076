"""The intermediate form as nftables text: Calico's words, and that nft accepts all of it."""

import re
import subprocess
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.felix.cluster_lab import path_of, sets_of
from tests.felix.fakes import FakeClock, FakeTables
from tests.felix.nft_rulesets import nft_input, rendered
from tests.felix.rulesets import FULL, everything
from tests.felix.test_felix_rules import a_rule
from tests.felix.test_felix_truth import calculated, ruleset_of
from tests.felix.worlds import HOST, SETTINGS, a_packet, a_world
from tests.netns_lab import Namespace
from tortie.felix.calc.model import Policy, PolicyId, PolicyRef
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.hosts import assign
from tortie.felix.dataplane.nft import NftTableWriter
from tortie.felix.rules import dispatch, ir, names, nat, profiles, static
from tortie.felix.rules.evaluate import evaluate
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.nftables import BASE_CHAINS, hashed, render_chain, render_hook
from tortie.felix.rules.settings import Settings
from tortie.linux.nft_table import Base, Chain, Content, Map

unit, kernel = pytest.mark.unit, pytest.mark.kernel
PLAIN = Features()


def texts(*matches: ir.Match, action: ir.Action | None = None, version: int = 4) -> list[str]:
    """What one rule says, without its comment."""
    content = render_chain(ir.Chain("c", (ir.Rule(matches, action),)), "filter", version, PLAIN)
    chain = content["chain", "filter-c"]
    assert isinstance(chain, Chain)
    return [rule.text.partition(" comment")[0] for rule in chain.rules]


# --- words --------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (ir.all_clear(0x20000), "meta mark & 0x20000 == 0"),
        (ir.any_set(0x30000), "meta mark & 0x30000 != 0"),
        (ir.all_set(0x10000), "meta mark & 0x10000 == 0x10000"),
        (ir.Mark(1, 1, negate=True), "meta mark & 0x1 != 0x1"),
        (ir.Interface("in", "cali", prefix=True), 'iifname "cali*"'),
        (ir.Interface("out", "eth0"), 'oifname "eth0"'),
        (ir.Protocol("tcp", negate=True), "meta l4proto != tcp"),
        (ir.Protocol("udplite"), "meta l4proto 136"),
        (ir.Protocol(4), "meta l4proto 4"),
        (ir.Net("dst", "10.0.0.0/8", negate=True), "ip daddr != 10.0.0.0/8"),
        (ir.InSet("src", "s:x"), "ip saddr @cali40s-x"),
        (ir.InSet("dst", "n:x", ports=True, negate=True), "ip daddr . meta l4proto . th dport != @cali40n-x"),
        (ir.Icmp(4, 8, 0), "icmp type 8 icmp code 0"),
        (ir.Icmp(6, 128, negate=True), "icmpv6 type != 128"),
        (ir.Conntrack(("RELATED", "ESTABLISHED")), "ct state related,established"),
        (ir.Dnatted(), "ct status dnat"),
        (ir.ReversePathFailed(), "fib saddr . mark . iif oif 0"),
        (ir.LocalAddress("dst"), "fib daddr type local"),
        (ir.LocalAddress("src", negate=True, of_interface=True), "fib saddr . oif type != local"),
        (ir.RateLimit("5/minute", 7), "limit rate 5/minute burst 7 packets"),
    ],
)
def test_matches_in_calicos_words(match: ir.Match, expected: str) -> None:
    assert texts(match) == [expected]


@unit
@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (ir.clear_bits(0x30000), "counter meta mark set mark & 0xfffcffff"),
        (ir.set_bits(0x10000), "counter meta mark set mark or 0x10000"),
        (ir.SetMark(0x80000, 0x180000), "counter meta mark set mark & 0xffe7ffff ^ 0x80000"),
        (ir.Goto("x"), "counter goto filter-x"),
        (ir.Jump("x"), "counter jump filter-x"),
        (ir.Dispatch("in", ()), "iifname vmap @filter-c"),
        (ir.REJECT, "counter reject"),
        (ir.NO_TRACK, "counter notrack"),
        (ir.Masquerade("1-2"), "counter masquerade to :1-2 fully-random"),
        (ir.Snat("10.0.0.1", "1-2"), "counter snat to 10.0.0.1:1-2 fully-random"),
        (ir.Dnat("fd00::1"), "counter dnat to fd00::1"),
        (ir.Log("a b"), 'counter log prefix "a b: " level info'),
        (ir.SetDscp(46), "counter ip dscp set 46"),
        (ir.MarkWithinRate(100, 5, 0x80000),
         "limit rate 100/second burst 5 packets counter meta mark set mark or 0x80000"),
        (None, "continue"),
    ],
)  # fmt: skip
def test_actions_in_calicos_words(action: ir.Action | None, expected: str) -> None:
    assert texts(action=action) == [expected]


@unit
def test_ports_are_of_the_rules_protocol() -> None:
    ports = ir.Ports("dst", ((80, 80), (443, 445)))
    assert texts(ir.Protocol("tcp"), ports) == [
        "meta l4proto tcp tcp dport 80",
        "meta l4proto tcp tcp dport 443-445",
    ]
    assert texts(ir.Protocol(132), ir.Ports("src", ((1, 1),))) == ["meta l4proto 132 sctp sport 1"]
    assert texts(ir.Protocol("udp"), ir.Port(4789)) == ["meta l4proto udp udp dport 4789"]
    other = texts(ir.Protocol(17), ir.Ports("src", ((1, 1), (3, 4)), negate=True), version=6)
    assert other == ["meta l4proto 17 udp sport != 1 udp sport != 3-4"]


@unit
def test_a_packet_meets_one_line_of_a_rule_at_most() -> None:
    overlapping = ir.Ports("dst", ((80, 90), (85, 100), (7, 7)))
    assert texts(ir.Protocol("tcp"), overlapping) == [
        "meta l4proto tcp tcp dport 7",
        "meta l4proto tcp tcp dport 80-100",
    ]
    assert texts(ir.Icmp(4, 8, 0, negate=True)) == ["icmp type != 8", "icmp type 8 icmp code != 0"]


@unit
def test_what_cannot_be_split_is_asked_of_a_set() -> None:
    """One limit is for the rule as a whole; and fifteen ports on either side would be 225 lines."""
    two = ir.Ports("dst", ((1, 1), (3, 3)))
    assert texts(ir.Protocol("tcp"), two, ir.RateLimit("5/minute"), action=ir.Log("x")) == [
        'meta l4proto tcp tcp dport { 1, 3 } limit rate 5/minute counter log prefix "x: " level info'
    ]
    many = [ir.Ports(side, tuple((n, n) for n in range(1, 30, 2))) for side in ("src", "dst")]
    (line,) = texts(ir.Protocol("tcp"), *many)
    assert line.count("{") == 2


@unit
def test_not_translated_is_true_of_untracked_packets_too() -> None:
    """The kernel compares no status where there is no connection; a second rule speaks for those."""
    assert texts(ir.Dnatted(negate=True), action=ir.Jump("x")) == [
        "ct status & dnat == 0 counter jump filter-x",
        "ct state invalid,untracked counter jump filter-x",
    ]


@unit
def test_without_the_feature_ports_are_not_randomised() -> None:
    chain = ir.Chain("c", (ir.Rule(action=ir.Masquerade()), ir.Rule(action=ir.Snat("1.2.3.4"))))
    content = render_chain(chain, "nat", 4, Features(False, False))["chain", "nat-c"]
    assert isinstance(content, Chain)
    assert [rule.text.partition(" comment")[0] for rule in content.rules] == [
        "counter masquerade",
        "counter snat to 1.2.3.4",
    ]


@unit
@pytest.mark.parametrize(
    ("setting", "expected"),
    [("eth0", ['oifname "eth0"']), ("eth+", ['oifname "eth*"']), ("+", [])],  # iptables' words
)
def test_masquerading_may_be_for_interfaces_whose_names_begin_so(setting: str, expected: list[str]) -> None:
    chain = nat.outgoing_chain(4, True, Settings(nat_interface=setting))
    content = render_chain(chain, "nat", 4, PLAIN)["chain", f"nat-{names.NAT_OUTGOING}"]
    assert isinstance(content, Chain)
    assert re.findall(r"oifname \S+", content.rules[0].text) == expected


# --- chains, maps, names --------------------------------------------------------------------------


@unit
def test_base_chains_hang_where_calicos_do() -> None:
    assert BASE_CHAINS[ir.NAT, "POSTROUTING"] == Base("nat", "postrouting", 110)
    assert BASE_CHAINS[ir.MANGLE, "POSTROUTING"] == Base("filter", "postrouting", -150)
    assert BASE_CHAINS[ir.RAW, "PREROUTING"] == Base("filter", "prerouting", -300)
    assert set(static.hooks(Settings())) == set(BASE_CHAINS)


@unit
def test_a_base_chain_holds_our_first_rules_and_then_our_last() -> None:
    hook = static.hooks(Settings())[ir.FILTER, "FORWARD"]
    chain = render_hook(hook, ir.FILTER, "FORWARD", PLAIN)
    assert [rule.text.partition(" comment")[0] for rule in chain.rules] == [
        "counter jump filter-cali-FORWARD",
        "meta mark & 0x10000 == 0x10000 counter accept",
        "counter meta mark set mark or 0x10000",
    ]
    assert 'comment "cali:' in chain.rules[1].text
    assert chain.rules[1].text.endswith('; Policy explicitly accepted packet."')


@unit
def test_endpoints_are_found_by_a_map() -> None:
    root = dispatch.workload_maps(["cali2", "cali1"], Settings())[0]
    content = render_chain(root, ir.FILTER, 4, PLAIN)
    assert content["map", "filter-cali-from-wl-dispatch"] == Map(
        frozenset({("cali1", "filter-cali-fw-cali1"), ("cali2", "filter-cali-fw-cali2")})
    )
    chain = content["chain", "filter-cali-from-wl-dispatch"]
    assert isinstance(chain, Chain)
    assert [rule.text.partition(" comment")[0] for rule in chain.rules] == [
        "iifname vmap @filter-cali-from-wl-dispatch",
        "counter drop",
    ]
    fewer = render_chain(dispatch.workload_maps(["cali1"], Settings())[0], ir.FILTER, 4, PLAIN)
    assert fewer["chain", "filter-cali-from-wl-dispatch"] == chain, "an endpoint more or less is no new chain"


@unit
def test_names_are_cut_late() -> None:
    name = names.chain(names.POLICY_IN, "knp/default/allow-dns-and-more")
    assert name == "cali-pi-_3zNcQ8_wPwGm_tAx4ZR"
    assert names.long_chain(name) == "cali-pi-knp/default/allow-dns-and-more"
    assert texts(action=ir.Jump(name)) == ["counter jump filter-cali-pi-knp/default/allow-dns-and-more"]
    assert names.long_chain("cali-INPUT") == "cali-INPUT"
    assert names.nft_set(4, "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug") == "cali40s-5y5I3VdRZfDU01O--xXAPx2"


@unit
@given(st.text(max_size=300))
def test_no_name_of_the_datastore_reaches_a_long_name_unless_harmless(name: str) -> None:
    long = names.long_chain(names.chain(names.PROFILE_IN, name))
    assert re.fullmatch(r"cali-pri-[A-Za-z0-9_./-]+", long)
    assert len("mangle-" + long) <= 255


@unit
@given(st.lists(st.text(max_size=300), max_size=4), st.text(max_size=300), st.text(max_size=40))
def test_free_text_can_neither_end_a_line_nor_a_quote(comments: list[str], prefix: str, name: str) -> None:
    rule = ir.Rule((ir.Interface("in", name),), ir.Log(prefix), tuple(comments))
    content = render_chain(ir.Chain("c", (rule,)), "filter", 4, PLAIN)["chain", "filter-c"]
    assert isinstance(content, Chain)
    (rendered_rule,) = content.rules
    assert rendered_rule.text.isascii() and rendered_rule.text.isprintable()
    assert rendered_rule.text.count('"') == 6 and "\\" not in rendered_rule.text
    assert len(rendered_rule.text.rpartition('comment "')[2]) <= 129


@unit
def test_a_hash_covers_the_rules_before_it_and_no_comment() -> None:
    one = [rule.hash for rule in hashed("c", [("accept", ()), ("drop", ())])]
    assert one == [rule.hash for rule in hashed("c", [("accept", ("why",)), ("drop", ())])]
    other = [rule.hash for rule in hashed("c", [("drop", ()), ("drop", ())])]
    assert one[1] != other[1]
    assert one[0] != hashed("d", [("accept", ())])[0].hash


# --- nft itself -----------------------------------------------------------------------------------


def check(ns: Namespace, text: str) -> str:
    """What nft complains about; "" if it would take all of it."""
    done = ns.call(
        subprocess.run, ["nft", "-c", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode else ""


@kernel
@pytest.mark.parametrize("version", [4, 6])
def test_nft_takes_every_rule_there_is(netns: Namespace, version: int) -> None:
    ruleset = dict(everything(version)[0])
    for chain in dispatch.workload_maps(["cali0123456789a", "cali2", "cali01"], FULL):
        ruleset[ir.FILTER, chain.name] = chain
    text = nft_input(ruleset, version)
    assert check(netns, text) == ""
    netns.run("nft", "-f", "-", stdin=text)
    wanted: dict[tuple[str, str], Content] = rendered(ruleset, version)
    listed = netns.sh(f"nft list table {'ip' if version == 4 else 'ip6'} calico")
    assert {name for _, name in wanted} == set(re.findall(r"\t(?:chain|map) (\S+) {", listed))
    hashes = [rule.hash for one in wanted.values() if isinstance(one, Chain) for rule in one.rules]
    assert sorted(hashes) == sorted(re.findall(r'comment "cali:(\S{16});', listed))


@kernel
def test_a_rule_that_nft_refuses_turns_the_test_red(netns: Namespace) -> None:
    ruleset = {(ir.FILTER, "c"): ir.Chain("c", (ir.Rule((ir.Net("src", "10.0.0.0/99"),), ir.ACCEPT),))}
    assert check(netns, nft_input(ruleset, 4))


@kernel
@settings(max_examples=30, deadline=None)
@given(st.integers(min_value=0))
def test_nft_takes_any_policy(seed: int) -> None:
    """Thirty policies at a time, of all that rules can ask for."""
    rand = Random(seed)
    ruleset: dict[tuple[str, str], ir.Chain | ir.Hook] = {}
    version, table = rand.choice([4, 6]), rand.choice([ir.RAW, ir.MANGLE, ir.FILTER])
    options = FULL if rand.random() < 0.5 else replace(FULL, filter_deny=ir.DROP)
    for number in range(30):
        rules = tuple(a_rule(rand, "allow", "deny", "pass", "log") for _ in range(rand.randint(0, 5)))
        ref = PolicyRef(PolicyId(f"p{number}", "ns", "NetworkPolicy"), "all()")
        policy = Policy(ref.id, "default", inbound=rules, outbound=rules)
        for chain in profiles.policy_chains(policy, version, table, options):
            ruleset[table, chain.name] = chain
    ns = Namespace()
    try:
        assert check(ns, nft_input(ruleset, version)) == ""
    finally:
        ns.close()


# --- as the evaluator sees it ---------------------------------------------------------------------


@unit
@settings(max_examples=40, deadline=None)
@given(st.integers(min_value=0))
def test_both_dataplanes_decide_alike(seed: int) -> None:
    """They differ in how an endpoint's chains are found."""
    rand = Random(seed)
    state = calculated(a_world(rand))
    sets = sets_of(state)
    for version in (4, 6):
        duty: Duty[Any, Any] = Duty("x", FakeTables(), interval=0, clock=FakeClock(), rand=lambda: 0.5)
        writer = NftTableWriter(version, SETTINGS, PLAIN, duty)
        writer.start(state)
        writer.hosts(assign(state.hosts.values(), {"eth0": (HOST.v4, HOST.v6)}, SETTINGS.workload_prefixes))
        for number in range(20):
            _, _, packet = a_packet(rand, 20000 + number)
            if packet.version == version:
                found = evaluate(writer.ruleset(), sets, packet, path_of(packet)).outcome
                assert found == evaluate(ruleset_of(state, version), sets, packet, path_of(packet)).outcome
        for content in duty.desired.values():
            targets = [name for _, name in content.elements] if isinstance(content, Map) else []
            assert all(("chain", target) in duty.desired for target in targets)
