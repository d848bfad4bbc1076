"""One rule of a profile or policy as rules of the intermediate form.

A rule of ours may ask more than one iptables rule can: lists of ports or networks, named ports that are
alternatives to numbers. Such a rule is split into blocks that work on two scratch bits:

    scratch0: all blocks so far match.      scratch1: the present block matches.

A positive block sets its bit from any of several rules; the first writes scratch0 itself, later ones
write scratch1 and then clear scratch0 unless it is set. A negated block clears scratch0 for whatever it
finds. The main rule asks for everything else, and for scratch0.
(Reference: policy sheet 2.4, 2.5; felix/rules/policy.go. Calico leaves scratch1 set from block to block,
so that with three positive blocks a rule matches too much (sheet 7.11); here it is cleared before each.)
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tortie.felix.calc import model
from tortie.felix.calc.model import version_of
from tortie.felix.rules import ir
from tortie.felix.rules.ir import InSet, Match, Net, Ports, Protocol
from tortie.felix.rules.settings import Settings

_MULTIPORT_SLOTS = 15  # XT_MULTI_PORTS; a range takes two
_CATCH_ALL = {4: "0.0.0.0/0", 6: "::/0"}
_PROTOCOL_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "udplite": 136}
# Of one rule: with what they are wrapped in, half of the 250 words and 10,000 characters it may have.
_MAX_ANNOTATIONS = 16
_ICMP = {4: 1, 6: 58}  # IP version -> the protocol number of its ICMP


class Owner(NamedTuple):
    """Whose rules are rendered, for log prefixes and comments. `kind` is short: np, gnp, pro, …"""

    kind: str
    name: str
    namespace: str = ""
    tier: str = ""
    profile: bool = False


# --- which address families a rule is for -------------------------------------------------------


def for_version(rule: model.Rule, version: int) -> model.Rule | None:
    """The rule with the networks of one IP version only; None if it says nothing about that version.

    A list that named networks of the other version only, or a negated list that excludes everything,
    takes the rule away for this version.
    """
    if rule.ip_version not in (0, version) or _for_other_icmp(rule, version):
        return None
    if rule.not_protocol is not None and number(rule.not_protocol) == number(rule.protocol):
        return None  # "tcp and not tcp" matches nothing, and iptables refuses to hear it
    src, dst = _side_for(rule.src, version), _side_for(rule.dst, version)
    if src is None or dst is None:
        return None
    return _with_sides(rule, src, dst)


def _with_sides(rule: model.Rule, src: model.Side, dst: model.Side) -> model.Rule:
    """Most rules need no other sides, and a copy costs more than all the rest."""
    return rule if src is rule.src and dst is rule.dst else replace(rule, src=src, dst=dst)


def _side_for(side: model.Side, version: int) -> model.Side | None:
    if not side.nets and not side.not_nets:
        return side
    nets = tuple(net for net in side.nets if version_of(net) == version)
    not_nets = tuple(net for net in side.not_nets if version_of(net) == version)
    if (side.nets and not nets) or (side.not_nets and not not_nets) or _CATCH_ALL[version] in not_nets:
        return None
    return replace(side, nets=nets, not_nets=not_nets)


def _for_other_icmp(rule: model.Rule, version: int) -> bool:
    """Types and codes mean something only in the version's own ICMP."""
    asks = rule.icmp is not None or rule.not_icmp is not None
    return asks and number(rule.protocol) != _ICMP[version]


def number(protocol: int | str | None) -> int | str | None:
    return _PROTOCOL_NUMBERS.get(protocol, protocol) if isinstance(protocol, str) else protocol


# --- blocks -------------------------------------------------------------------------------------


def split_ports(ranges: Iterable[tuple[int, int]]) -> list[tuple[tuple[int, int], ...]]:
    """Groups, in order, that fit one multiport match each."""
    groups: list[tuple[tuple[int, int], ...]] = []
    current: list[tuple[int, int]] = []
    used = 0
    for low, high in ranges:
        slots = 1 if low == high else 2
        if used + slots > _MULTIPORT_SLOTS:
            groups.append(tuple(current))
            current, used = [], 0
        current.append((low, high))
        used += slots
    return [*groups, tuple(current)] if current else groups


@dataclass(slots=True)
class _Split:
    """A rule being taken apart: `rules` so far, and what is left for the main rule."""

    settings: Settings
    rules: list[ir.Rule]
    positives: int = 0

    @property
    def used(self) -> bool:
        return bool(self.rules)

    def positive(self, alternatives: Iterable[tuple[Match, ...]]) -> None:
        marks = self.settings.marks
        self._start(0)
        first, self.positives = self.positives == 0, self.positives + 1
        if self.positives > 2:
            self.rules.append(ir.Rule(action=ir.clear_bits(marks.scratch1)))
        bit = marks.scratch0 if first else marks.scratch1
        self.rules += [ir.Rule(matches, ir.set_bits(bit)) for matches in alternatives]
        if not first:
            self.rules.append(ir.Rule((ir.all_clear(marks.scratch1),), ir.clear_bits(marks.scratch0)))

    def negated(self, excluded: Iterable[Match]) -> None:
        marks = self.settings.marks
        self._start(marks.scratch0)
        self.rules += [ir.Rule((match,), ir.clear_bits(marks.scratch0)) for match in excluded]

    def _start(self, initial: int) -> None:
        if not self.used:
            marks = self.settings.marks
            self.rules.append(ir.Rule(action=ir.SetMark(initial, marks.scratch0 | marks.scratch1)))


def _split_ports_off(
    split: _Split, protocol: tuple[Match, ...], which: ir.Side, side: model.Side
) -> model.Side:
    groups = split_ports(side.ports)
    if len(groups) + len(side.port_sets) <= 1:
        return side
    numeric = [(*protocol, Ports(which, group)) for group in groups]
    named = [(InSet(which, ident, ports=True),) for ident in side.port_sets]
    split.positive([*numeric, *named])
    return replace(side, ports=(), port_sets=())


def _split_nets_off(split: _Split, which: ir.Side, side: model.Side) -> model.Side:
    if len(side.nets) <= 1:
        return side
    split.positive((Net(which, net),) for net in side.nets)
    return replace(side, nets=())


def _split_not_nets_off(split: _Split, which: ir.Side, side: model.Side) -> model.Side:
    if not side.not_nets or len(side.nets) + len(side.not_nets) <= 1:
        return side
    split.negated(Net(which, net) for net in side.not_nets)
    return replace(side, not_nets=())


# --- the main rule ------------------------------------------------------------------------------


def _positive_side(which: ir.Side, side: model.Side) -> Iterator[Match]:
    yield from (Net(which, net) for net in side.nets)
    yield from (InSet(which, ident) for ident in side.sets)
    if which == "dst":
        yield from (InSet(which, ident, ports=True) for ident in side.service_sets)
    if side.ports:
        yield Ports(which, side.ports)
    yield from (InSet(which, ident, ports=True) for ident in side.port_sets)


def _negative_side(which: ir.Side, side: model.Side) -> Iterator[Match]:
    yield from (Net(which, net, negate=True) for net in side.not_nets)
    yield from (InSet(which, ident, negate=True) for ident in side.not_sets)
    yield from (Ports(which, group, negate=True) for group in split_ports(side.not_ports))
    yield from (InSet(which, ident, ports=True, negate=True) for ident in side.not_port_sets)


def _matches(rule: model.Rule, version: int) -> Iterator[Match]:
    """In Calico's order."""
    if rule.protocol is not None:
        yield Protocol(rule.protocol)
    yield from _positive_side("src", rule.src)
    yield from _positive_side("dst", rule.dst)
    if rule.icmp is not None:
        yield ir.Icmp(version, *rule.icmp)
    # Beside a positive protocol a negated one says nothing more, and iptables takes only one of them.
    if rule.not_protocol is not None and rule.protocol is None:
        yield Protocol(rule.not_protocol, negate=True)
    yield from _negative_side("src", rule.src)
    yield from _negative_side("dst", rule.dst)
    if rule.not_icmp is not None:
        yield ir.Icmp(version, *rule.not_icmp, negate=True)


def _verdict(
    action: str, matches: tuple[Match, ...], table: str, settings: Settings, owner: Owner
) -> Iterator[ir.Rule]:
    """The main rule marks, the rules after it act on the mark alone."""
    if action == "log":
        # The limit comes last, unlike Calico's: only packets that match may use it up.
        limit = (ir.RateLimit(settings.log_rate, settings.log_burst),) if settings.log_rate else ()
        yield ir.Rule((*matches, *limit), ir.Log(log_prefix(settings.log_prefix, owner)))
        return
    marks = settings.marks
    bit = {"allow": marks.accept, "pass": marks.passed, "deny": marks.drop}[action]
    yield ir.Rule(matches, ir.set_bits(bit))
    yield ir.Rule((ir.all_set(bit),), settings.deny(table) if action == "deny" else ir.RETURN)


def log_prefix(pattern: str, owner: Owner) -> str:
    """%t tier, %k short kind, %n name, %p namespace/name."""
    if "%" not in pattern:
        return pattern
    full = f"{owner.namespace}/{owner.name}" if owner.namespace else owner.name
    words = {"%t": owner.tier, "%k": owner.kind, "%n": owner.name, "%p": full}
    return re.sub("%[tknp]", lambda match: words[match[0]], pattern)


def rule_chain_rules(
    rules: Iterable[model.Rule],
    *,
    version: int,
    table: str,
    settings: Settings,
    owner: Owner,
    comment: str,
) -> tuple[ir.Rule, ...]:
    """All rules of one direction of a profile or policy; never empty, the first carries `comment`."""
    rules, rendered = list(rules), []
    if owner.profile and any(rule.action == "pass" for rule in rules):
        # The mark may still be set from the last tier or the profile before (which Calico overlooks).
        rendered.append(ir.Rule(action=ir.clear_bits(settings.marks.passed)))
    for rule in rules:
        rendered += render_rule(rule, version=version, table=table, settings=settings, owner=owner)
    while rendered and rendered[-1].action == ir.RETURN:  # the chain's end returns anyway
        rendered.pop()
    first = rendered[0] if rendered else ir.Rule()
    return (replace(first, comments=(*first.comments, comment)), *rendered[1:])


def render_rule(
    rule: model.Rule, *, version: int, table: str, settings: Settings, owner: Owner
) -> list[ir.Rule]:
    """One rule for one IP version; nothing if it does not concern that version."""
    mine = for_version(rule, version)
    if mine is None:
        return []
    split = _Split(settings, [])
    src, dst = mine.src, mine.dst
    protocol: tuple[Match, ...] = () if mine.protocol is None else (Protocol(mine.protocol),)
    src = _split_ports_off(split, protocol, "src", src)
    dst = _split_ports_off(split, protocol, "dst", dst)
    src = _split_nets_off(split, "src", src)
    dst = _split_nets_off(split, "dst", dst)
    src = _split_not_nets_off(split, "src", src)
    dst = _split_not_nets_off(split, "dst", dst)
    matches = tuple(_matches(_with_sides(mine, src, dst), version))
    if split.used:
        matches = (*matches, ir.all_set(settings.marks.scratch0))
    verdict = _verdict(mine.action, matches, table, settings, owner)
    comments = tuple(f"{key}={value}" for key, value in mine.annotations[:_MAX_ANNOTATIONS])
    return [replace(one, comments=comments) if comments else one for one in [*split.rules, *verdict]]
