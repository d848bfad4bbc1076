"""Kubernetes NetworkPolicies, and what namespaces and service accounts lend, in terms of v3 resources."""

import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.core.errors import ValidationError
from tortie.datastore import validate
from tortie.datastore.kubernetes import convert_network_policy, namespace_profile, service_account_profile
from tortie.datastore.kubernetes.ports import simplified
from tortie.datastore.selector import parse
from tortie.datastore.types.policy import EntityRule, NetworkPolicy, Rule

pytestmark = pytest.mark.unit

POD = "projectcalico.org/orchestrator == 'k8s'"
UID = "30316465-6365-4463-ad63-3564622d3638"


def convert(**spec: Any) -> NetworkPolicy:
    conversion = convert_network_policy({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
    assert conversion.error == ""
    assert conversion.policy is not None
    validate.check(validate.with_defaults(conversion.policy))
    return conversion.policy


def ingress(*rules: dict[str, Any]) -> tuple[Rule, ...]:
    return convert(podSelector={}, ingress=list(rules)).spec.ingress


def peer(raw: dict[str, Any]) -> EntityRule:
    (rule,) = ingress({"from": [raw]})
    return rule.source


def ports(*raw: dict[str, Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    return [(rule.protocol, rule.destination.ports) for rule in ingress({"ports": list(raw)})]


# --- the policy ---------------------------------------------------------------------------------


def test_what_every_policy_becomes() -> None:
    raw = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": UID,
            "resourceVersion": "7",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"of": "the object"},
            "annotations": {"large": "text"},
        },
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]},
    }
    policy = convert_network_policy(raw).policy
    assert policy is not None
    assert (policy.name, policy.namespace, policy.revision) == ("web", "shop", "7")
    assert policy.metadata.creationTimestamp == "2026-01-02T03:04:05Z"
    assert policy.metadata.labels == policy.metadata.annotations == {}
    assert (policy.spec.tier, policy.spec.order) == ("default", 1000)
    assert policy.spec.selector == f"{POD} && app == 'web'"
    assert (policy.spec.types, policy.spec.ingress, policy.spec.egress) == (("Ingress",), (), ())


def test_a_uid_of_its_own_that_is_always_the_same() -> None:
    """The bits of each byte reversed, but for the two that say what kind of UUID it is."""
    policy = convert_network_policy({"metadata": {"name": "p", "uid": UID}}).policy
    assert policy is not None
    assert policy.metadata.uid == "0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c"
    again = convert_network_policy({"metadata": {"name": "p", "uid": policy.metadata.uid}}).policy
    assert again is not None and again.metadata.uid == UID
    with pytest.raises(ValidationError, match="failed to parse UID for resource"):
        convert_network_policy({"metadata": {"name": "p", "uid": "x"}})


@pytest.mark.parametrize(
    ("given", "types"),
    [
        ([], ("Ingress",)),
        (["Ingress"], ("Ingress",)),
        (["Egress"], ("Egress",)),
        (["Egress", "Ingress"], ("Ingress", "Egress")),
        (["Other"], ("Ingress",)),
    ],
)
def test_types(given: list[str], types: tuple[str, ...]) -> None:
    assert convert(policyTypes=given).spec.types == types


def test_egress_rules_without_the_type_stay_without_effect() -> None:
    spec = convert(policyTypes=["Ingress"], egress=[{}]).spec
    assert (spec.types, spec.egress) == (("Ingress",), (Rule(action="Allow"),))


# --- selectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({}, POD),
        ({"matchLabels": {"b": "2", "a": "1"}}, f"{POD} && a == '1' && b == '2'"),
        (
            {"matchExpressions": [{"key": "k", "operator": "In", "values": ["b", "a"]}]},
            f"{POD} && k in {{ 'b', 'a' }}",
        ),
        (
            {"matchExpressions": [{"key": "k", "operator": "NotIn", "values": ["a"]}]},
            f"{POD} && k not in {{ 'a' }}",
        ),
        ({"matchExpressions": [{"key": "z/k", "operator": "Exists"}]}, f"{POD} && has(z/k)"),
        ({"matchExpressions": [{"key": "k", "operator": "DoesNotExist"}]}, f"{POD} && ! has(k)"),
        (
            {
                "matchExpressions": [
                    {"key": "z", "operator": "Exists"},
                    {"key": "a", "operator": "Exists", "values": None},
                ],
                "matchLabels": {"m": ""},
            },
            f"{POD} && m == '' && has(z) && has(a)",
        ),
    ],
)
def test_pod_selectors(raw: dict[str, Any], text: str) -> None:
    assert convert(podSelector=raw).spec.selector == text
    assert peer({"podSelector": raw}) == EntityRule(selector=text)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"podSelector": {}}, EntityRule(selector=POD)),
        ({"namespaceSelector": {}}, EntityRule(selector=POD, namespaceSelector="all()")),
        (
            {"namespaceSelector": {"matchLabels": {"a": "1"}}, "podSelector": {"matchLabels": {"b": "2"}}},
            EntityRule(selector=f"{POD} && b == '2'", namespaceSelector="a == '1'"),
        ),
        ({}, EntityRule(selector=POD)),
        (
            {"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.2.3.4/16", "10.3.0.0/16"]}},
            EntityRule(nets=("10.0.0.0/8",), notNets=("10.2.0.0/16", "10.3.0.0/16")),
        ),
        ({"ipBlock": {"cidr": "fd00::1/64"}, "podSelector": {}}, EntityRule(nets=("fd00::/64",))),
    ],
)
def test_peers(raw: dict[str, Any], expected: EntityRule) -> None:
    assert peer(raw) == expected


_keys = st.sampled_from(["app", "tier", "example.com/role", "in", "has"])
_values = st.sampled_from(["", "a", "b", "web"])
_requirements = st.builds(
    lambda key, operator, values: {
        "key": key,
        "operator": operator,
        "values": values if operator in ("In", "NotIn") else [],
    },
    _keys,
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    st.lists(_values, min_size=1, max_size=3),
)


@given(
    st.dictionaries(_keys, _values),
    st.lists(_requirements, max_size=3),
    st.dictionaries(_keys, _values),
    st.sampled_from(["k8s", "cni", None]),
)
def test_a_pod_selector_selects_what_kubernetes_says(
    wanted: dict[str, str],
    requirements: list[dict[str, Any]],
    labels: dict[str, str],
    orchestrator: str | None,
) -> None:
    def holds(requirement: dict[str, Any]) -> bool:
        value = labels.get(requirement["key"])
        match requirement["operator"]:
            case "In":
                return value in requirement["values"]
            case "NotIn":
                return value not in requirement["values"]  # also if there is none
            case "Exists":
                return value is not None
        return value is None

    expected = (
        orchestrator == "k8s"
        and all(labels.get(key) == value for key, value in wanted.items())
        and all(map(holds, requirements))
    )
    text = convert(podSelector={"matchLabels": wanted, "matchExpressions": requirements}).spec.selector
    own = labels | ({"projectcalico.org/orchestrator": orchestrator} if orchestrator else {})
    assert parse(text).evaluate(own) == expected


# --- ports --------------------------------------------------------------------------------------


def test_rules_multiply_by_protocol_then_peer() -> None:
    rules = ingress(
        {
            "ports": [
                {"port": 53, "protocol": "UDP"},
                {"port": 80},
                {"port": "http"},
                {"protocol": "SCTP", "port": 7},
            ],
            "from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}],
        }
    )
    assert [(r.protocol, r.destination.ports, r.source.nets) for r in rules] == [
        ("SCTP", (7,), ()), ("SCTP", (7,), ("10.0.0.0/8",)),
        ("TCP", (80, "http"), ()), ("TCP", (80, "http"), ("10.0.0.0/8",)),
        ("UDP", (53,), ()), ("UDP", (53,), ("10.0.0.0/8",)),
    ]  # fmt: skip
    assert {rule.action for rule in rules} == {"Allow"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([], [(None, ())]),
        ([{}], [("TCP", ())]),
        ([{"protocol": "UDP"}, {"port": 53, "protocol": "UDP"}], [("UDP", ())]),
        ([{"port": 53, "protocol": "UDP"}, {"protocol": "UDP"}], [("UDP", ())]),
        ([{"port": 80, "endPort": 90}], [("TCP", ("80:90",))]),
        ([{"port": 80, "endPort": 80}], [("TCP", (80,))]),
        ([{"port": "80"}], [("TCP", (80,))]),
        ([{"port": "http"}], [("TCP", ("http",))]),
        ([{"port": 80}, {"port": "http"}], [("TCP", (80, "http"))]),
        ([{"port": 81}, {"port": "http"}, {"port": 80}], [("TCP", ("http", "80:81"))]),
        ([{"port": 9}, {"port": 7}, {"port": 9}, {"port": 8, "endPort": 8}], [("TCP", ("7:9",))]),
        ([{"port": 80}, {"port": 80}], [("TCP", (80,))]),
        ([{"port": 80, "protocol": "udp"}], [("UDP", (80,))]),
    ],
)
def test_ports(raw: list[dict[str, Any]], expected: list[Any]) -> None:
    assert ports(*raw) == expected


def test_ports_are_the_destination_in_both_directions() -> None:
    rule = {"ports": [{"port": 80}]}
    other: dict[str, Any] = {"podSelector": {}}
    spec = convert(policyTypes=["Egress"], egress=[{**rule, "to": [other]}], ingress=[rule]).spec
    assert spec.egress == (
        Rule(action="Allow", protocol="TCP", destination=EntityRule(selector=POD, ports=(80,))),
    )
    assert spec.ingress == (Rule(action="Allow", protocol="TCP", destination=EntityRule(ports=(80,))),)


_small = st.integers(1, 40)
_ranges = st.lists(
    st.one_of(
        st.tuples(_small, _small).map(lambda pair: (min(pair), max(pair))), st.sampled_from(["http", "dns"])
    ),
    max_size=6,
)


@given(_ranges)
def test_simplifying_changes_neither_ports_nor_names(given_ports: list[Any]) -> None:
    def numbers(written: tuple[int | str, ...]) -> list[range]:
        found = []
        for port in written:
            first, _, last = str(port).partition(":")
            if first.isdecimal():
                found.append(range(int(first), int(last or first) + 1))
        return found

    result = simplified(given_ports)
    wanted = {n for port in given_ports if isinstance(port, tuple) for n in range(port[0], port[1] + 1)}
    ranges = numbers(result)
    assert {number for one in ranges for number in one} == wanted
    assert [p for p in result if p in ("http", "dns")] == [p for p in given_ports if isinstance(p, str)]
    if len(wanted) > 1:  # nothing that touches is left apart
        assert all(after.start > before.stop for before, after in itertools.pairwise(ranges))


# --- what cannot be converted -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"ports": [{"port": 70000}]}, "failed to parse k8s port: invalid port format (70000)"),
        (
            {"ports": [{"port": 90, "endPort": 80}]},
            "failed to parse k8s port: minimum port number (90) is greater than maximum port number (80) "
            "in port range",
        ),
        (
            {"ports": [{"port": "http", "endPort": 90}]},
            "failed to parse k8s port: invalid name for named port (http:90)",
        ),
        ({"ports": [{"port": "a b"}]}, "failed to parse k8s port: invalid name for named port (a b)"),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}, "invalid CIDR address: 10.0.0.0/33"),
        (
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0.0/9"]}}]},
            "invalid CIDR address: 10.0.0.0.0/9",
        ),
        (
            {"from": [{"podSelector": {"matchLabels": {"a": "b' || has(c) || a == 'b"}}}]},
            "invalid label value \"b' || has(c) || a == 'b\"",
        ),
        (
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a) || has(b", "operator": "Exists"}]}}]},
            "invalid label key 'a) || has(b'",
        ),
        (
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}]},
            "invalid label selector operator 'Gt'",
        ),
    ],
)
def test_a_bad_rule_is_left_out_whole_and_told(rule: dict[str, Any], reason: str) -> None:
    good = {"ports": [{"port": 80}]}
    two_peers = {**rule, "from": [{}, *rule.get("from", [])]}
    raw = {"metadata": {"name": "p"}, "spec": {"ingress": [good, two_peers, good]}}
    conversion = convert_network_policy(raw)
    assert conversion.policy is not None and len(conversion.policy.spec.ingress) == 2
    assert conversion.error.startswith('policy: p: error with rule {"')
    assert conversion.error.endswith(f" (k8s rule couldn't be converted: {reason})")


def test_several_bad_rules() -> None:
    bad = {"ports": [{"port": 0, "endPort": 99999}]}
    conversion = convert_network_policy(
        {"metadata": {"name": "p"}, "spec": {"ingress": [bad], "egress": [bad]}}
    )
    assert len(conversion.refused) == 2
    assert conversion.error.startswith("policy: p: error with the following rules:\n-  {")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"podSelector": {"matchLabels": {"a": "'"}}}, "podSelector"),
        ({"podSelector": []}, "podSelector"),
        ({"ingress": [{"ports": [{"port": 1.5}]}]}, "ingress"),
        ({"ingress": [{"from": [{"ipBlock": "x"}]}]}, "ingress"),
    ],
)
def test_what_is_no_policy_at_all(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        convert_network_policy({"metadata": {"name": "p"}, "spec": spec})


# --- namespaces and service accounts ------------------------------------------------------------


def test_a_namespace() -> None:
    profile = namespace_profile(
        {
            "metadata": {
                "name": "shop",
                "labels": {"env": "prod"},
                "uid": UID,
                "resourceVersion": "5",
                "annotations": {"a": "b"},
            }
        }
    )
    assert (profile.name, profile.namespace, profile.revision) == ("kns.shop", "", "5/")
    assert profile.metadata.uid == "0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c"
    assert profile.metadata.annotations == {}
    assert profile.spec.labelsToApply == {"pcns.env": "prod", "pcns.projectcalico.org/name": "shop"}
    assert profile.spec.ingress == profile.spec.egress == (Rule(action="Allow"),)


@pytest.mark.parametrize("namespace", ["shop", "default", ""])
def test_a_service_account(namespace: str) -> None:
    profile = service_account_profile(
        {
            "metadata": {
                "name": "bot",
                "namespace": namespace,
                "labels": {"team": "a"},
                "resourceVersion": "5",
            }
        }
    )
    assert (profile.name, profile.revision) == (f"ksa.{namespace or 'default'}.bot", "/5")
    assert profile.spec.labelsToApply == {"pcsa.team": "a", "pcsa.projectcalico.org/name": "bot"}
    assert profile.spec.ingress == profile.spec.egress == ()


def test_the_name_label_is_not_the_users() -> None:
    profile = namespace_profile({"metadata": {"name": "shop", "labels": {"projectcalico.org/name": "other"}}})
    assert profile.spec.labelsToApply == {"pcns.projectcalico.org/name": "shop"}


@given(st.ip_addresses(), st.integers(0, 128))
def test_blocks_are_masked(address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int) -> None:
    length = min(length, address.max_prefixlen)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return
    network = (
        ipaddress.ip_network((int(address), length), strict=False)
        if address.version == 4
        else (ipaddress.IPv6Network((int(address), length), strict=False))
    )
    assert peer({"ipBlock": {"cidr": f"{address}/{length}"}}).nets == (str(network),)
