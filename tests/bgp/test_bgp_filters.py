"""BGPFilter rules: every condition and operation, and the order in which they decide."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tortie.bgp import filters
from tortie.bgp.filters import Clause, Filter, Operation, Rule, Subject
from tortie.bgp.prefix import Network, network
from tortie.bgp.route import INT_MAX, Attributes, Segment

pytestmark = pytest.mark.unit

_PLAIN = Subject(Attributes(), 100, True, True, "eth0")
_NET = network("10.1.2.0/24")


def _sequence(*numbers: int) -> tuple[Segment, ...]:
    return (Segment("as-sequence", numbers),)


def _decided(rules: list[Rule], subject: Subject = _PLAIN, net: Network = _NET) -> int | None:
    """The number of the rule that decides, from 1."""
    clauses = filters.chain([Filter(name="f", import4=tuple(rules))], "import", 4)
    found = filters.decide(filters.narrow(clauses, subject), net)
    return int(found.name.rpartition(" ")[2]) if found else None


def _matches(subject: Subject = _PLAIN, net: str = "10.1.2.0/24", **rule: Any) -> bool:
    return _decided([Rule(accept=True, **rule)], subject, network(net)) == 1


@pytest.mark.parametrize(
    ("operator", "net", "expected"),
    [
        ("Equal", "10.1.0.0/16", True),
        ("Equal", "10.1.2.0/24", False),
        ("NotEqual", "10.1.0.0/16", False),
        ("NotEqual", "10.1.2.0/24", True),
        ("In", "10.1.0.0/16", True),
        ("In", "10.1.2.3/32", True),
        ("In", "10.0.0.0/8", False),
        ("NotIn", "10.0.0.0/8", True),
        ("NotIn", "10.1.2.3/32", False),
        ("NotIn", "10.1.0.0/16", False),
    ],
)
def test_operators(operator: Any, net: str, expected: bool) -> None:
    assert _matches(net=net, cidr="10.1.0.0/16", operator=operator) is expected


@pytest.mark.parametrize(
    ("net", "inside"),
    [
        ("10.1.0.0/16", False),
        ("10.1.0.0/19", False),
        ("10.1.0.0/20", True),
        ("10.1.255.0/24", True),
        ("10.1.255.0/25", False),
        ("10.2.0.0/20", False),
    ],
)
def test_prefix_lengths(net: str, inside: bool) -> None:
    rule: dict[str, Any] = {"cidr": "10.1.0.0/16", "lengths": (20, 24)}
    assert _matches(net=net, operator="In", **rule) is inside
    assert _matches(net=net, operator="Equal", **rule) is inside
    assert _matches(net=net, operator="NotIn", **rule) is not inside


def test_both_families() -> None:
    assert _matches(net="fd00:1::/64", cidr="fd00::/8")
    assert not _matches(net="fd00:1::/64", cidr="0.0.0.0/0")


@pytest.mark.parametrize(
    ("rule", "subject", "expected"),
    [
        ({"remote": True}, _PLAIN, True),
        ({"remote": True}, _PLAIN._replace(remote=False), False),
        ({"peer": "eBGP"}, _PLAIN, True),
        ({"peer": "iBGP"}, _PLAIN, False),
        ({"peer": "iBGP"}, _PLAIN._replace(ebgp=False), True),
        ({"interface": "eth*"}, _PLAIN, True),
        ({"interface": "eth0"}, _PLAIN, True),
        ({"interface": "e.h0"}, _PLAIN, False),
        ({"interface": "*"}, _PLAIN._replace(interface=""), False),
        ({"priority": 512}, _PLAIN._replace(local_pref=INT_MAX - 512), True),
        ({"priority": 512}, _PLAIN, False),
        ({"priority": INT_MAX - 100}, _PLAIN, True),
        ({"priority": 512}, _PLAIN._replace(local_pref=None), False),
        ({"community": (65000, 1)}, _PLAIN, False),
        ({"community": (65000, 1)}, _PLAIN._replace(attributes=Attributes(communities=((65000, 1),))), True),
        (
            {"community": (1, 2, 3)},
            _PLAIN._replace(attributes=Attributes(large_communities=((1, 2, 3),))),
            True,
        ),
        ({"as_path": (1,)}, _PLAIN, False),
        ({"as_path": (1, 2)}, _PLAIN._replace(attributes=Attributes(as_path=_sequence(1, 2, 3))), True),
        ({"as_path": (2,)}, _PLAIN._replace(attributes=Attributes(as_path=_sequence(1, 2, 3))), False),
        ({"as_path": (1, 2, 3)}, _PLAIN._replace(attributes=Attributes(as_path=_sequence(1, 2))), False),
    ],
)
def test_conditions(rule: dict[str, Any], subject: Subject, expected: bool) -> None:
    assert _matches(subject, **rule) is expected


def test_an_as_set_is_any_of_its_members() -> None:
    path = (*_sequence(1), Segment("as-set", (7, 8)), *_sequence(9))
    assert filters.begins(path, (1, 8, 9)) and not filters.begins(path, (1, 9))


def test_the_first_that_matches_decides() -> None:
    inside = Rule(accept=False, cidr="10.1.0.0/16", operator="In")
    assert _decided([Rule(accept=True, remote=True, cidr="10.9.0.0/16"), inside, Rule(accept=True)]) == 2
    assert _decided([Rule(accept=True, peer="iBGP")]) is None


def test_filters_follow_each_other_and_give_their_names() -> None:
    first = Filter(name="a", import4=(Rule(accept=True, peer="iBGP"),), export4=(Rule(accept=False),))
    second = Filter(name="b", import4=(Rule(accept=False),), import6=(Rule(accept=True),))
    clauses = filters.chain([first, second], "import", 4)
    found = filters.decide(filters.narrow(clauses, _PLAIN), _NET)
    assert found is not None and found.name == "filter b, importV4 rule 1"
    assert [c.name for c in filters.chain([first, second], "import", 6)] == ["filter b, importV6 rule 1"]


def test_operations_in_their_order() -> None:
    operations = [
        Operation(add_community=(65000, 2)),
        Operation(add_community=(1, 2, 3)),
        Operation(prepend=(11, 12)),
        Operation(prepend=(13,)),
        Operation(priority=512),
    ]
    before = Attributes(as_path=_sequence(65009), communities=((65000, 9), (65000, 2)), local_pref=100)
    after = filters.apply(operations, before, ebgp=False)
    assert after == Attributes(
        as_path=_sequence(13, 11, 12, 65009),
        communities=((65000, 2), (65000, 9)),
        large_communities=((1, 2, 3),),
        local_pref=INT_MAX - 512,
    )
    assert filters.apply(operations, replace(before, local_pref=None), ebgp=True).local_pref is None


@pytest.mark.parametrize(
    "rule",
    [
        Rule(accept=True, cidr="10.1.2.3/16"),
        Rule(accept=True, interface="eth0; rm"),
        Rule(accept=True, interface="[a-z]"),
        Rule(accept=True, operations=(Operation(add_community=(1,)),)),
        Rule(accept=True, operations=(Operation(prepend=(-1,)),)),
        Rule(accept=True, operations=(Operation(prepend=(1 << 32,)),)),
    ],
)
def test_what_a_file_may_not_hold(rule: Rule) -> None:
    with pytest.raises(ValueError, match="filter f"):
        filters.check(Filter(name="f", export6=(rule,)))


# --- against a second evaluator -----------------------------------------------------------------

_nets = st.builds(
    lambda value, length: Network(4, value >> 32 - length << 32 - length, length),
    st.integers(0x0A000000, 0x0A0000FF),
    st.integers(24, 32),
)
_rules = st.builds(
    Rule,
    accept=st.booleans(),
    cidr=st.one_of(st.just(""), _nets.map(str)),
    operator=st.sampled_from(["Equal", "NotEqual", "In", "NotIn"]),
    remote=st.booleans(),
    interface=st.sampled_from(["", "eth*", "eth0", "*1"]),
    community=st.sampled_from([(), (), (1, 1), (1, 2), (1, 2, 3)]),
    as_path=st.sampled_from([(), (), (1,), (1, 2)]),
    priority=st.sampled_from([0, 0, 512, 1024]),
    peer=st.sampled_from(["", "", "iBGP", "eBGP"]),
)
_subjects = st.builds(
    Subject,
    st.builds(
        Attributes,
        as_path=st.sampled_from([(), _sequence(1), _sequence(1, 2), _sequence(2, 1)]),
        communities=st.sampled_from([(), ((1, 1),), ((1, 1), (1, 2))]),
        large_communities=st.sampled_from([(), ((1, 2, 3),)]),
    ),
    st.sampled_from([None, 100, INT_MAX - 512, INT_MAX - 1024]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "eth0", "eth1"]),
)


def _naive(rule: Rule, subject: Subject, net: Network) -> bool:
    """Conditions one after the other, on text and sets, as BIRD's expression has them."""
    if rule.cidr:
        cidr = network(rule.cidr)
        bits = f"{cidr.value:032b}"[: cidr.length]
        inside = net.length >= cidr.length and f"{net.value:032b}".startswith(bits)
        equal = str(net) == rule.cidr
        if not {"Equal": equal, "NotEqual": not equal, "In": inside, "NotIn": not inside}[rule.operator]:
            return False
    if rule.remote and not subject.remote:
        return False
    if rule.interface:
        pattern = re.escape(rule.interface).replace(r"\*", ".*")
        if not subject.interface or not re.fullmatch(pattern, subject.interface):
            return False
    carried = {*subject.attributes.communities, *subject.attributes.large_communities}
    if rule.community and rule.community not in carried:
        return False
    path = [number for segment in subject.attributes.as_path for number in segment.numbers]
    if tuple(path[: len(rule.as_path)]) != rule.as_path:
        return False
    if rule.priority and (subject.local_pref is None or INT_MAX - subject.local_pref != rule.priority):
        return False
    return rule.peer in ("", "eBGP" if subject.ebgp else "iBGP")


@given(st.lists(_rules, max_size=6), _subjects, _nets)
def test_like_an_evaluator_that_asks_everything_each_time(
    rules: list[Rule], subject: Subject, net: Network
) -> None:
    expected = next((n for n, rule in enumerate(rules, 1) if _naive(rule, subject, net)), None)
    assert _decided(rules, subject, net) == expected


@given(st.lists(_rules, max_size=4), st.lists(_rules, max_size=4), _subjects, _nets)
def test_two_filters_are_their_rules_in_a_row(
    first: list[Rule], second: list[Rule], subject: Subject, net: Network
) -> None:
    def rule(clauses: tuple[Clause, ...]) -> Rule | None:
        found = filters.decide(filters.narrow(clauses, subject), net)
        return found.rule if found else None

    apart = [Filter(name="a", export4=tuple(first)), Filter(name="b", export4=tuple(second))]
    together = [Filter(name="c", export4=(*first, *second))]
    assert rule(filters.chain(apart, "export", 4)) == rule(filters.chain(together, "export", 4))
