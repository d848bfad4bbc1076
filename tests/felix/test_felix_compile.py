"""Rules of the API into rules of the model: selectors into sets, everything else checked."""

from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.core.errors import ValidationError
from tortie.datastore.selector import parse, unique_id
from tortie.datastore.types.policy import (
    EntityRule,
    ICMPFields,
    Rule,
    RuleMetadata,
    ServiceAccountMatch,
    ServiceMatch,
)
from tortie.felix.calc import canonical, model
from tortie.felix.calc.rules import (
    PortSource,
    SelectorSource,
    ServiceSource,
    compile_rules,
    namespace_clause,
)

pytestmark = pytest.mark.unit


def compiled(namespace: str = "", **fields: Any) -> tuple[model.Rule, dict[str, Any]]:
    found = compile_rules([Rule(action=fields.pop("action", "Allow"), **fields)], namespace)
    return found.rules[0], found.sources


def source_selector(namespace: str = "", **fields: Any) -> str:
    """The one positive selector that a source side comes down to."""
    rule, sources = compiled(namespace, source=EntityRule(**fields))
    (ident,) = rule.src.sets
    assert isinstance(sources[ident], SelectorSource)
    return str(sources[ident].selector.canonical)


@pytest.mark.parametrize(
    ("action", "expected"), [("Allow", "allow"), ("Deny", "deny"), ("Pass", "pass"), ("Log", "log")]
)
def test_actions(action: str, expected: str) -> None:
    assert compiled(action=action)[0].action == expected


def test_plain_fields_become_canonical() -> None:
    rule, sources = compiled(
        protocol="TCP",
        notProtocol=17,
        source=EntityRule(nets=("10.1.2.3/8", "FD00:0::1"), ports=(80, "1000:2000")),
        destination=EntityRule(notNets=("10.0.0.1",), notPorts=("53",)),
        metadata=RuleMetadata(annotations={"b": "2", "a": "1"}),
    )
    assert (rule.protocol, rule.not_protocol, sources) == ("tcp", 17, {})
    assert rule.src == model.Side(nets=("10.0.0.0/8", "fd00::1/128"), ports=((80, 80), (1000, 2000)))
    assert rule.dst == model.Side(not_nets=("10.0.0.1/32",), not_ports=((53, 53),))
    assert rule.annotations == (("a", "1"), ("b", "2"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"protocol": "ICMP"}, 4),
        ({"protocol": "ICMPv6"}, 6),
        ({"notProtocol": "icmpv6"}, 6),
        ({"protocol": 58}, 0),
        ({"protocol": "ICMP", "ipVersion": 6}, 6),
        ({}, 0),
    ],
)
def test_the_ip_version_is_what_is_said_or_what_a_name_implies(fields: dict[str, Any], expected: int) -> None:
    assert compiled(**fields)[0].ip_version == expected


def test_icmp() -> None:
    rule, _ = compiled(protocol="ICMP", icmp=ICMPFields(type=8), notICMP=ICMPFields(type=8, code=1))
    assert (rule.icmp, rule.not_icmp) == ((8, None), (8, 1))


# --- selectors ----------------------------------------------------------------------------------


def test_a_selector_becomes_the_set_of_its_id() -> None:
    rule, sources = compiled(source=EntityRule(selector="a == 'b'"))
    assert rule.src.sets == (parse("a == 'b'").id,)
    assert list(sources) == [parse("a == 'b'").id]


def test_a_negative_selector_alone_stays_negative() -> None:
    rule, _ = compiled(destination=EntityRule(notSelector="has(x)"))
    assert (rule.dst.sets, rule.dst.not_sets) == ((), (parse("has(x)").id,))


def test_both_selectors_become_one_positive_set() -> None:
    assert source_selector(selector="a == 'b'", notSelector="has(x)") == '(a == "b" && !has(x))'


def test_namespaces_and_service_accounts_are_looked_up_by_their_prefixes() -> None:
    assert source_selector(namespaceSelector="team == 'x'") == 'pcns.team == "x"'
    assert source_selector(namespaceSelector="all()") == "has(projectcalico.org/namespace)"
    assert source_selector(namespaceSelector="global()") == "!has(projectcalico.org/namespace)"
    accounts = ServiceAccountMatch(names=("b", "a"), selector="x == 'y'")
    assert source_selector(serviceAccounts=accounts) == (
        '(pcsa.x == "y" && projectcalico.org/serviceaccount in {"a", "b"})'
    )
    assert source_selector(selector="s == '1'", serviceAccounts=ServiceAccountMatch(names=("a",))) == (
        '(projectcalico.org/serviceaccount in {"a"} && s == "1")'
    )


def test_a_value_that_looks_like_a_call_stays_a_value() -> None:
    assert namespace_clause('a == "all()"') == 'pcns.a == "all()"'


def test_a_namespaced_policy_keeps_to_its_namespace_once_a_selector_is_used() -> None:
    own = 'projectcalico.org/namespace == "ns"'
    assert source_selector("ns", selector="a == 'b'") == f'({own} && a == "b")'
    assert source_selector("ns", namespaceSelector="all()", selector="a == 'b'") == (
        '(has(projectcalico.org/namespace) && a == "b")'
    )
    rule, sources = compiled("ns", source=EntityRule(nets=("10.0.0.0/8",)))
    assert (rule.src.sets, sources) == ((), {})
    rule, _ = compiled("ns", source=EntityRule(notSelector="has(x)"))
    assert rule.src.sets == (parse(f"({own}) && (!(has(x)))").id,)


def test_named_ports_are_sets_of_their_own_that_hold_the_selector() -> None:
    rule, sources = compiled(protocol="TCP", destination=EntityRule(selector="a == 'b'", ports=("http",)))
    (ident,) = rule.dst.port_sets
    assert rule.dst.sets == ()
    assert sources[ident] == PortSource(parse("a == 'b'"), "tcp", "http")
    assert ident == unique_id("n", f"{parse(chr(97) + ' == ' + repr('b')).id},tcp,http")
    rule, _ = compiled(protocol="TCP", destination=EntityRule(selector="a == 'b'", ports=("http", 80)))
    assert rule.dst.sets and rule.dst.port_sets and rule.dst.ports == ((80, 80),)


def test_named_ports_without_selector_or_protocol() -> None:
    rule, sources = compiled(source=EntityRule(notPorts=("dns",)))
    (ident,) = rule.src.not_port_sets
    assert sources[ident] == PortSource(parse("all()"), "any", "dns")


def test_services() -> None:
    service = EntityRule(services=ServiceMatch(name="db", namespace="prod"))
    rule, sources = compiled(destination=service)
    assert [sources[ident] for ident in rule.dst.service_sets] == [ServiceSource("prod/db", True)]
    rule, sources = compiled(source=service)
    assert [sources[ident] for ident in rule.src.sets] == [ServiceSource("prod/db", False)]
    rule, sources = compiled("own", destination=EntityRule(services=ServiceMatch(name="db")))
    assert [sources[ident] for ident in rule.dst.service_sets] == [ServiceSource("own/db", True)]


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"action": "Accept"}, "action"),
        ({"protocol": "gre"}, "protocol"),
        ({"protocol": 256}, "protocol"),
        ({"protocol": "9" * 5000}, "protocol"),
        ({"ipVersion": 5}, "ipVersion"),
        ({"icmp": ICMPFields(type=8)}, "icmp"),
        ({"protocol": "ICMP", "icmp": ICMPFields(type=255)}, "icmp"),
        ({"protocol": "ICMP", "icmp": ICMPFields(code=1)}, "icmp"),
        ({"source": EntityRule(ports=(80,))}, "source.ports"),
        ({"protocol": "ICMP", "source": EntityRule(ports=(80,))}, "source.ports"),
        ({"protocol": "TCP", "source": EntityRule(ports=("80:70",))}, "source.ports"),
        ({"protocol": "TCP", "source": EntityRule(ports=(70000,))}, "source.ports"),
        ({"protocol": "TCP", "destination": EntityRule(notPorts=('x" -j ACCEPT',))}, "destination.notPorts"),
        ({"source": EntityRule(nets=("10.0.0.0/33",))}, "source.nets"),
        ({"source": EntityRule(nets=("10.0.0.1\n-A INPUT",))}, "source.nets"),
        ({"source": EntityRule(notNets=("",))}, "source.notNets"),
        ({"source": EntityRule(selector="a =")}, "selector"),
        ({"source": EntityRule(namespaceSelector="(")}, "namespaceSelector"),
        ({"source": EntityRule(serviceAccounts=ServiceAccountMatch(names=("a'\"",)))}, "serviceAccounts"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        compiled(**fields)


@given(st.text(max_size=60))
def test_texts_of_any_kind_are_canonical_or_refused(text: str) -> None:
    for function in (canonical.address, canonical.cidr, canonical.interface, canonical.mac):
        try:
            found = function(text)
        except ValidationError:
            continue
        assert found.isascii() and found.isprintable() and not set(found) & set(" \"'+;")
        assert function(found) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10.1.2.3/8", "10.0.0.0/8"), ("FD00:0:0::1", "fd00::1/128"), ("::ffff:10.0.0.1", "::ffff:10.0.0.1/128"),
     ("0.0.0.0/0", "0.0.0.0/0"), ("1.2.3.4", "1.2.3.4/32")],
)  # fmt: skip
def test_networks_as_the_kernel_prints_them(text: str, expected: str) -> None:
    assert canonical.cidr(text) == expected


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4), st.integers(0, 32))
def test_containment_is_that_of_ipaddress(one: Any, length: int, other: Any, inner: int) -> None:
    outer_net = IPv4Network(f"{one}/{length}", strict=False)
    inner_net = IPv4Network(f"{other}/{inner}", strict=False)
    assert canonical.contains(str(outer_net), str(inner_net)) == inner_net.subnet_of(outer_net)
    assert canonical.contains(str(outer_net), str(other)) == (other in outer_net)
    assert not canonical.contains(str(outer_net), "fd00::1")
