"""Routing rules by mark, in a real kernel: as `ip rule` has them, and everybody else's left alone."""

import asyncio
from collections.abc import Mapping

import pytest

from tests.netns_lab import Namespace
from tortie.core.reconcile import Reconciler
from tortie.linux import iprules
from tortie.linux.iprules import Rule, RuleTarget

pytestmark = pytest.mark.kernel

WORDS = {4: "ip", 6: "ip -6"}
FOREIGN = [
    "from 10.0.0.0/8 fwmark 0x1 lookup 1 priority 10",
    "iif lo fwmark 0x1 lookup 1 priority 11",
    "from all lookup 1 priority 12",
    "fwmark 0x1 lookup 1 suppress_prefixlength 0 priority 13",
    "fwmark 0x1 prohibit priority 14",
    "fwmark 0x1 lookup 2 priority 15",
]


def make(ns: Namespace, rules: RuleTarget, wanted: Mapping[Rule, bool]) -> None:
    reconciler = Reconciler("rules", rules)
    reconciler.want(wanted)
    outcome = asyncio.run(reconciler.sync())
    assert outcome.ok, outcome.failed


@pytest.mark.parametrize("version", [4, 6])
def test_rules_come_and_go_as_wished(netns: Namespace, version: int) -> None:
    words = WORDS[version]
    for line in FOREIGN:
        if version == 4 or "10.0.0.0" not in line:
            netns.sh(f"{words} rule add {line}")
    before = netns.sh(f"{words} rule")
    target = RuleTarget(netns.netlink, version, lambda rule: rule.table == 1 and rule.invert)
    first = Rule(version, 99, 1, 0x200000, 0x200000, invert=True)
    make(netns, target, {first: True})
    assert f"\n99:\t{str(first).partition(' ')[2]}" in netns.sh(f"{words} rule")
    make(netns, target, {first: True})
    moved = Rule(version, 200, 1, 0x10, 0x10, invert=True)
    make(netns, target, {moved: True})
    assert iprules.dump(netns.netlink, version).count(moved) == 1
    assert first not in iprules.dump(netns.netlink, version)
    make(netns, target, {})
    assert netns.sh(f"{words} rule") == before


def test_a_rule_with_a_large_table_and_without_a_full_mask(netns: Namespace) -> None:
    rule = Rule(4, 7, 100_000, 0x1, 0xFFFFFFFF)
    make(netns, RuleTarget(netns.netlink, 4, lambda one: one.table == 100_000), {rule: True})
    assert "7:\tfrom all fwmark 0x1 lookup 100000" in netns.sh("ip rule")
    assert iprules.dump(netns.netlink, 4) == [rule]


def test_what_is_done_already_is_no_failure(netns: Namespace) -> None:
    target, rule = RuleTarget(netns.netlink, 4, lambda _rule: True), Rule(4, 99, 1, 1, 1, invert=True)
    for _ in range(2):
        assert asyncio.run(target.apply({rule: True}, ())) == {}
    for _ in range(2):
        assert asyncio.run(target.apply({}, [rule])) == {}
