"""BGPFilter: which routes pass between us and one peer, and what is changed on them.

A filter is a list of rules, a peer has a list of filters; the first rule that matches decides, and what
it accepts no later check refuses (reference: BGP facts, 1.4 and 3.1). Nothing matches: the checks that
hold without filters decide.

Pure. A rule's conditions on the path are asked apart from that on the prefix: ten thousand prefixes
with one path need the former once, see narrow().
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import msgspec

from tortie.bgp.prefix import Network, canonical, network
from tortie.bgp.route import INT_MAX, Attributes, Segment, prepend

Operator = Literal["Equal", "NotEqual", "In", "NotIn"]
Direction = Literal["import", "export"]

INTERFACE = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")  # Calico's schema


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class Operation(_Value, frozen=True, kw_only=True):
    """One change to an accepted route: the field that is set says which."""

    add_community: tuple[int, ...] = ()  # two numbers: standard, three: large
    prepend: tuple[int, ...] = ()  # as it shall stand: the first leftmost
    priority: int = 0  # LOCAL_PREF = INT_MAX - this; 0 is no priority


class Rule(_Value, frozen=True, kw_only=True):
    """A rule whose conditions all hold decides; a condition that is empty always holds."""

    accept: bool
    cidr: str = ""
    operator: Operator = "In"
    lengths: tuple[int, int] | None = None  # least and most, of prefixes inside `cidr`
    remote: bool = False  # learned from a peer
    interface: str = ""  # of the next hop, a glob with `*`
    community: tuple[int, ...] = ()  # two numbers: standard, three: large
    as_path: tuple[int, ...] = ()  # what the AS path begins with
    priority: int = 0
    peer: Literal["", "iBGP", "eBGP"] = ""
    operations: tuple[Operation, ...] = ()


class Filter(_Value, frozen=True, kw_only=True):
    name: str
    import4: tuple[Rule, ...] = ()
    export4: tuple[Rule, ...] = ()
    import6: tuple[Rule, ...] = ()
    export6: tuple[Rule, ...] = ()


class Clause(NamedTuple):
    """A rule, ready to be asked; `name` is for people: `filter deny, importV4 rule 2`."""

    name: str
    rule: Rule
    net: Network | None


class Subject(NamedTuple):
    """What is asked about a path. `attributes` as they stand before the filter, `local_pref` likewise
    (None: the path has none); `interface`: of its next hop, "" for none."""

    attributes: Attributes
    local_pref: int | None
    remote: bool
    ebgp: bool
    interface: str


def chain(filters: Iterable[Filter], direction: Direction, version: int) -> tuple[Clause, ...]:
    """The rules of several filters, in order, as far as they are for this direction and IP version."""
    return tuple(
        Clause(
            f"filter {one.name}, {direction}V{version} rule {number}",
            rule,
            network(rule.cidr) if rule.cidr else None,
        )
        for one in filters
        for number, rule in enumerate(getattr(one, f"{direction}{version}"), 1)
    )


def narrow(clauses: Iterable[Clause], subject: Subject) -> tuple[Clause, ...]:
    """Those that can match a path like this; only the prefix is still to be asked for."""
    left: list[Clause] = []
    for clause in clauses:
        if _holds(clause.rule, subject):
            left.append(clause)
            if clause.net is None:
                break  # it matches every prefix
    return tuple(left)


def decide(narrowed: Sequence[Clause], net: Network) -> Clause | None:
    """The first that matches the prefix; None if none does."""
    for clause in narrowed:
        if clause.net is None or _matches(clause.rule, clause.net, net):
            return clause
    return None


def apply(operations: Iterable[Operation], attributes: Attributes, ebgp: bool) -> Attributes:
    """The attributes after the operations. `ebgp`: they are for another AS, which LOCAL_PREF is not."""
    standard, large = set(attributes.communities), set(attributes.large_communities)
    path, local_pref = attributes.as_path, attributes.local_pref
    for operation in operations:
        match operation.add_community:
            case (high, low):
                standard.add((high, low))
            case (one, two, three):
                large.add((one, two, three))
            case _:
                pass
        for number in reversed(operation.prepend):
            path = prepend(number, path)
        if operation.priority and not ebgp:
            local_pref = INT_MAX - operation.priority
    return msgspec.structs.replace(
        attributes,
        as_path=path,
        local_pref=local_pref,
        communities=tuple(sorted(standard)),
        large_communities=tuple(sorted(large)),
    )


def _holds(rule: Rule, subject: Subject) -> bool:
    attributes = subject.attributes
    return (
        (not rule.peer or (rule.peer == "eBGP") == subject.ebgp)
        and (not rule.remote or subject.remote)
        and (not rule.interface or _on(rule.interface, subject.interface))
        and (not rule.community or _carries(attributes, rule.community))
        and (not rule.as_path or begins(attributes.as_path, rule.as_path))
        and (not rule.priority or subject.local_pref == INT_MAX - rule.priority)
    )


def _on(pattern: str, interface: str) -> bool:
    return bool(interface) and fnmatchcase(interface, pattern)


def _carries(attributes: Attributes, community: tuple[int, ...]) -> bool:
    return community in attributes.communities or community in attributes.large_communities


def begins(path: Iterable[Segment], numbers: Sequence[int]) -> bool:
    """Whether an AS path begins with these; a set counts as one number, any of its members."""
    flat: list[frozenset[int]] = []
    for segment in path:
        if segment.kind == "as-set":
            flat.append(frozenset(segment.numbers))
        else:
            flat.extend(frozenset([number]) for number in segment.numbers)
    return len(flat) >= len(numbers) and all(map(frozenset.__contains__, flat, numbers))


def _matches(rule: Rule, cidr: Network, net: Network) -> bool:
    """`Equal` with lengths asks for one of the prefixes that they allow (BIRD's own `=` knows no sets)."""
    if rule.lengths is not None:
        least, most = rule.lengths
        found = cidr.contains(net) and least <= net.length <= most
    elif rule.operator in ("Equal", "NotEqual"):
        found = net == cidr
    else:
        found = cidr.contains(net)
    return found if rule.operator in ("Equal", "In") else not found


def check(one: Filter) -> None:
    """What a file could hold and the types do not refuse. Raises ValueError."""
    for rule in (*one.import4, *one.export4, *one.import6, *one.export6):
        if rule.cidr and canonical(rule.cidr) != rule.cidr:
            raise ValueError(f"filter {one.name}: {rule.cidr!r} is not in canonical form")
        if rule.interface and not INTERFACE.fullmatch(rule.interface):
            raise ValueError(f"filter {one.name}: {rule.interface!r} is no interface")
        for operation in rule.operations:
            numbers = (*operation.add_community, *operation.prepend)
            if len(operation.add_community) not in (0, 2, 3) or any(
                not 0 <= number <= 0xFFFFFFFF for number in numbers
            ):
                raise ValueError(f"filter {one.name}: {operation} cannot be carried out")
