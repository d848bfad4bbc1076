"""BGPFilter rules in BIRD 2's filter language (reference: BGP facts, 1.4).

Each filter becomes a function per direction. BIRD 2 runs an export filter before it puts its own AS in
front of the path, Calico's BIRD 1.6 after that.
Conditions on the path's beginning are translated so that a rule means the same; what `prependASPath` adds on
eBGP stands behind our own AS, where 1.6 has it before.

Pure. Rules are made of numbers and parsed prefixes; the texts in them are checked for what BIRD can quote.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from tortie.bgp.filters import INTERFACE, Direction, Filter, Operation, Rule
from tortie.bgp.prefix import Version
from tortie.bgp.route import INT_MAX
from tortie.core.errors import ConfigError

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,45}")  # what BIRD takes in a quoted symbol of 64, with our additions


@dataclass(frozen=True, slots=True)
class Statement:
    """One rule: `if (condition) then { actions }`."""

    condition: str
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    statements: tuple[Statement, ...]


def functions(filters: Iterable[Filter], version: Version) -> Iterator[Function]:
    """Of all filters that have rules for the family. Raises ConfigError."""
    directions: tuple[Direction, ...] = ("import", "export")
    for one in filters:
        for direction in directions:
            if rules := _rules(one, direction, version):
                statements = tuple(_statement(rule, direction) for rule in rules)
                yield Function(function_name(one.name, direction, version), statements)


def calls(filters: Iterable[Filter], direction: Direction, version: Version) -> tuple[str, ...]:
    """The functions to call for these filters, in order; those without rules have none."""
    return tuple(
        function_name(one.name, direction, version) for one in filters if _rules(one, direction, version)
    )


def function_name(name: str, direction: Direction, version: Version) -> str:
    """Calico's, which shortens long names; a name that BIRD could not read is told by its digest alone."""
    if not _NAME.fullmatch(name):
        digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16].upper()
        start = re.sub(r"[^a-zA-Z0-9_.-]", "_", name)[:28]
        name = f"{start}_{digest}"
    return f"bgp_{name}_{direction}FilterV{version}"


def _rules(one: Filter, direction: Direction, version: Version) -> Sequence[Rule]:
    found: Sequence[Rule] = getattr(one, f"{direction}{version}")
    return found


def _statement(rule: Rule, direction: Direction) -> Statement:
    actions = [line for one in rule.operations for line in _operation(one)] if rule.accept else []
    if rule.accept and direction == "import":
        actions.append("calico_rate();")
    actions.append("accept;" if rule.accept else "reject;")
    return Statement(" && ".join(_conditions(rule, direction)) or "true", tuple(actions))


def _conditions(rule: Rule, direction: Direction) -> Iterator[str]:
    if rule.peer:
        yield "(is_same_as)" if rule.peer == "iBGP" else "(!is_same_as)"
    if rule.cidr:
        yield f"({_prefix(rule)})"
    if rule.remote:
        yield "(source = RTS_BGP)"
    if rule.interface:
        if not INTERFACE.fullmatch(rule.interface):
            raise ConfigError("bird.cfg", rule.interface, "not an interface")
        yield f'((ifname != "") && (ifname ~ "{rule.interface}"))'
    if rule.community:
        attribute = "bgp_community" if len(rule.community) == 2 else "bgp_large_community"
        yield f"({_community(rule.community)} ~ {attribute})"
    if rule.as_path:
        yield f"({_as_path(rule.as_path, direction)})"
    if rule.priority:
        yield f"(defined(bgp_local_pref) && (bgp_local_pref = {INT_MAX - rule.priority}))"


def _prefix(rule: Rule) -> str:
    if rule.lengths is None:
        operator = {"Equal": "=", "NotEqual": "!=", "In": "~", "NotIn": "!~"}[rule.operator]
        return f"net {operator} {rule.cidr}"
    inside = rule.operator in ("Equal", "In")
    least, most = rule.lengths
    if least > most:  # BIRD knows no empty set of prefixes
        return "false" if inside else "true"
    return f"net {'~' if inside else '!~'} [ {rule.cidr}{{{least},{most}}} ]"


def _as_path(numbers: Sequence[int], direction: Direction) -> str:
    plain = f"bgp_path ~ [= {' '.join(map(str, numbers))} * =]"
    if direction == "import":
        return plain
    rest = " ".join(map(str, (*numbers[1:], "*")))
    # BIRD's `&&` binds no stronger than its `||`.
    return f"(is_same_as && {plain}) || (!is_same_as && (own_as = {numbers[0]}) && bgp_path ~ [= {rest} =])"


def _operation(operation: Operation) -> Iterator[str]:
    if operation.add_community:
        attribute = "bgp_community" if len(operation.add_community) == 2 else "bgp_large_community"
        yield f"{attribute}.add({_community(operation.add_community)});"
    for number in reversed(operation.prepend):
        yield f"bgp_path.prepend({number});"
    if operation.priority:
        yield f"bgp_local_pref = {INT_MAX - operation.priority};"


def _community(parts: Sequence[int]) -> str:
    return f"({','.join(map(str, parts))})"
