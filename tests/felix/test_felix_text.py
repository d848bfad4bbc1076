"""The intermediate form as iptables text: Calico's hashes and words, and that iptables accepts all of it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.felix.rulesets import everything, restore_input
from tests.netns_lab import Namespace
from tortie.felix.rules import ir, nat, static
from tortie.felix.rules.iptables import Features, render_chain, render_hook
from tortie.felix.rules.settings import Settings

unit, kernel = pytest.mark.unit, pytest.mark.kernel
PLAIN = Features()


def text(*matches: ir.Match, action: ir.Action | None = None, version: int = 4) -> str:
    """What one rule says besides its hash."""
    (rule,) = render_chain(ir.Chain("c", (ir.Rule(matches, action),)), version, PLAIN).rules
    before, _, after = rule.text.partition(f'-m comment --comment "cali:{rule.hash}"')
    return (before + after).strip()


# --- hashes -------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize(
    ("chain", "expected"),
    [("INPUT", "Cz_u1IQiXIMmKD4c"), ("FORWARD", "wUHhoiAYhphO9Mso"), ("OUTPUT", "tVnHkvAo15HuiPy0")],
)
def test_a_jump_into_our_chains_has_calicos_hash(chain: str, expected: str) -> None:
    hook = ir.Hook((ir.Rule(action=ir.Jump(f"cali-{chain}")),))
    assert [rule.hash for rule in render_hook(hook, chain, 4, PLAIN).first] == [expected]


@unit
def test_the_appended_rules_of_forward_have_calicos_hashes() -> None:
    hook = static.hooks(Settings())[ir.FILTER, "FORWARD"]
    hashes = [rule.hash for rule in render_hook(hook, "FORWARD", 4, PLAIN).last]
    assert hashes == ["S93hcgKJrXEqnTfs", "mp77cMpurHhyjLrM"]


@unit
@pytest.mark.parametrize(
    ("table", "chain", "index", "expected"),
    [  # as iptables-save shows them on nodes that run Calico
        (ir.FILTER, "cali-INPUT", 0, "FewJpBykm9iJ-YNH"),
        (ir.FILTER, "cali-INPUT", 1, "hder3ARWznqqv8Va"),
        (ir.FILTER, "cali-OUTPUT", 0, "Mq1_rAdXXH3YkrzW"),
        (ir.FILTER, "cali-OUTPUT", 1, "69FkRTJDvD5Vu6Vl"),
        (ir.FILTER, "cali-wl-to-host", 0, "Ee9Sbo10IpVujdIY"),
        (ir.FILTER, "cali-wl-to-host", 1, "nSZbcOoG1xPONxb8"),
        (ir.NAT, "cali-PREROUTING", 0, "r6XmIziWUJsdOK6Z"),
        (ir.NAT, "cali-POSTROUTING", 0, "Z-c7XtVd2Bq7s_hA"),
        (ir.NAT, "cali-POSTROUTING", 1, "nYKhEzDlr11Jccal"),
        (ir.NAT, "cali-OUTPUT", 0, "GBTAv2p5CwevEyJm"),
    ],
)
def test_static_rules_have_calicos_hashes(table: str, chain: str, index: int, expected: str) -> None:
    settings = Settings(endpoint_to_host=ir.ACCEPT)
    (found,) = [one for one in static.chains(4, settings)[table] if one.name == chain]
    assert render_chain(found, 4, PLAIN).rules[index].hash == expected


@unit
def test_a_hash_covers_the_rules_before_it() -> None:
    one, other = ir.Rule(action=ir.ACCEPT), ir.Rule(action=ir.DROP)
    first = render_chain(ir.Chain("c", (one, one)), 4, PLAIN).rules
    second = render_chain(ir.Chain("c", (other, one)), 4, PLAIN).rules
    assert first[1].hash != second[1].hash
    assert first[0].hash != first[1].hash


# --- words --------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (ir.all_clear(0x20000), "-m mark --mark 0/0x20000"),
        (ir.any_set(0x30000), "-m mark ! --mark 0/0x30000"),
        (ir.all_set(0x10000), "-m mark --mark 0x10000/0x10000"),
        (ir.Interface("in", "cali", prefix=True), "--in-interface cali+"),
        (ir.Interface("out", "eth0"), "--out-interface eth0"),
        (ir.Protocol("tcp", negate=True), "! -p tcp"),
        (ir.Net("dst", "10.0.0.0/8", negate=True), "! --destination 10.0.0.0/8"),
        (ir.InSet("src", "x"), "-m set --match-set cali40x src"),
        (ir.InSet("dst", "x", ports=True, negate=True), "-m set ! --match-set cali40x dst,dst"),
        (ir.Ports("dst", ((1, 1), (5, 9))), "-m multiport --destination-ports 1,5:9"),
        (ir.Icmp(4, 8, 0), "-m icmp --icmp-type 8/0"),
        (ir.Icmp(6, 128, negate=True), "-m icmp6 ! --icmpv6-type 128"),
        (ir.Conntrack(("RELATED", "ESTABLISHED")), "-m conntrack --ctstate RELATED,ESTABLISHED"),
        (ir.Dnatted(negate=True), "-m conntrack ! --ctstate DNAT"),
        (ir.ReversePathFailed(), "-m rpfilter --invert --validmark"),
        (ir.LocalAddress("src", negate=True, of_interface=True),
         "-m addrtype ! --src-type LOCAL --limit-iface-out"),
        (ir.RateLimit("5/minute", 7), "-m limit --limit 5/minute --limit-burst 7"),
    ],
)  # fmt: skip
def test_matches_in_calicos_words(match: ir.Match, expected: str) -> None:
    assert text(match) == expected


@unit
@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (ir.clear_bits(0x30000), "--jump MARK --set-mark 0/0x30000"),
        (ir.set_bits(0x10000), "--jump MARK --set-mark 0x10000/0x10000"),
        (ir.Goto("x"), "--goto x"),
        (ir.Masquerade("1-2"), "--jump MASQUERADE --to-ports 1-2 --random-fully"),
        (ir.Snat("10.0.0.1", "1-2"), "--jump SNAT --to-source 10.0.0.1:1-2 --random-fully"),
        (ir.Dnat("fd00::1"), "--jump DNAT --to-destination fd00::1"),
        (ir.Log("calico-packet"), '--jump LOG --log-prefix "calico-packet: " --log-level 5'),
    ],
)
def test_actions_in_calicos_words(action: ir.Action, expected: str) -> None:
    assert text(action=action) == expected


@unit
def test_without_the_feature_ports_are_not_randomised() -> None:
    chain = nat.outgoing_chain(4, True, Settings())
    (rule,) = render_chain(chain, 4, Features(masquerade_random=False)).rules
    assert rule.text.endswith("--jump MASQUERADE")


@unit
@given(st.text(), st.text())
def test_free_text_can_neither_end_a_line_nor_a_quote(comment: str, prefix: str) -> None:
    chain = ir.Chain("c", (ir.Rule(action=ir.Log(prefix), comments=(comment,)),))
    (rule,) = render_chain(chain, 4, PLAIN).rules
    assert rule.text.isascii() and rule.text.isprintable()
    quoted = re.findall(r'"([^"]*)"', rule.text)
    assert len(quoted) == 3 and rule.text.count('"') == 6
    assert len(quoted[1]) <= 255 and len(quoted[2]) <= 29


# --- iptables itself ----------------------------------------------------------------------------


@kernel
@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("version", [4, 6])
def test_iptables_takes_every_rule_there_is(netns: Namespace, backend: str, version: int) -> None:
    """Each match and action, all static chains with everything switched on, both kinds of endpoints."""
    ruleset, sets = everything(version)
    family = "inet" if version == 4 else "inet6"
    for name, kind in sets.items():
        netns.run("ipset", "create", name, kind, "family", family)
    program = f"{'iptables' if version == 4 else 'ip6tables'}-{backend}-restore"
    given_rules = restore_input(ruleset, version)
    netns.run(program, "--test", "--noflush", stdin=given_rules)
    netns.run(program, "--noflush", stdin=given_rules)


@kernel
def test_a_rule_that_iptables_refuses_turns_the_test_red(netns: Namespace) -> None:
    broken = "*raw\n:cali-x - -\n-A cali-x --jump REJECT\nCOMMIT\n"
    with pytest.raises(AssertionError, match="line 3"):
        netns.run("iptables-nft-restore", "--noflush", stdin=broken)
