"""ClusterNetworkPolicies (policy.networking.k8s.io/v1alpha2) in terms of v3 resources."""

from typing import Any

import pytest

from tortie.core.errors import ValidationError
from tortie.datastore import validate
from tortie.datastore.kubernetes import Conversion, convert_cluster_network_policy
from tortie.datastore.types.policy import EntityRule, GlobalNetworkPolicy, Rule, RuleMetadata

pytestmark = pytest.mark.unit

POD = "projectcalico.org/orchestrator == 'k8s'"
ANYWHERE: dict[str, Any] = {"namespaces": {}}
DENY_ALL = Rule(action="Deny")


def conversion(**spec: Any) -> Conversion[GlobalNetworkPolicy]:
    given = {"tier": "Admin", "priority": 10, "subject": ANYWHERE} | spec
    return convert_cluster_network_policy({"metadata": {"name": "p"}, "spec": given})


def convert(**spec: Any) -> GlobalNetworkPolicy:
    result = conversion(**spec)
    assert result.error == "" and result.policy is not None
    validate.check(validate.with_defaults(result.policy))
    return result.policy


def rule(**fields: Any) -> dict[str, Any]:
    return {"action": "Accept", **fields}


@pytest.mark.parametrize(("given", "tier"), [("Admin", "kube-admin"), ("Baseline", "kube-baseline")])
def test_tier_and_order(given: str, tier: str) -> None:
    policy = convert(tier=given, priority=7)
    assert (policy.name, policy.namespace) == ("p", "")
    assert (policy.spec.tier, policy.spec.order, policy.spec.types) == (tier, 7, ())


@pytest.mark.parametrize("spec", [{"tier": "Other"}, {"tier": ""}, {"subject": {}}])
def test_nothing_to_enforce(spec: dict[str, Any]) -> None:
    result = conversion(**spec)
    assert result.policy is None and result.error == ""


@pytest.mark.parametrize(
    ("subject", "namespaces", "pods"),
    [
        ({"namespaces": {}}, "all()", POD),
        ({"namespaces": {"matchLabels": {"a": "1"}}}, "a == '1'", POD),
        (
            {
                "pods": {
                    "namespaceSelector": {"matchLabels": {"a": "1"}},
                    "podSelector": {"matchLabels": {"b": "2"}},
                }
            },
            "a == '1'",
            f"{POD} && b == '2'",
        ),
        ({"pods": {}}, "all()", POD),
    ],
)
def test_subjects(subject: dict[str, Any], namespaces: str, pods: str) -> None:
    spec = convert(subject=subject).spec
    assert (spec.namespaceSelector, spec.selector) == (namespaces, pods)


@pytest.mark.parametrize(("given", "action"), [("Accept", "Allow"), ("Deny", "Deny"), ("Pass", "Pass")])
def test_actions_and_names(given: str, action: str) -> None:
    spec = convert(ingress=[{"action": given, "name": "first", "from": [ANYWHERE]}]).spec
    assert spec.types == ("Ingress",)
    assert spec.ingress == (
        Rule(
            action=action,
            metadata=RuleMetadata(annotations={"name": "first"}),
            source=EntityRule(namespaceSelector="all()"),
        ),
    )


def test_peers() -> None:
    """A namespace peer has no clause for pods; networks are for egress; pods win over namespaces."""
    pods = {"pods": {"podSelector": {"matchLabels": {"b": "2"}}}}
    nets = {"networks": ["10.1.2.3/8", "172.16.0.0/12"]}
    spec = convert(
        ingress=[rule(**{"from": [{"namespaces": {"matchLabels": {"a": "1"}}}, pods, ANYWHERE | pods]})],
        egress=[rule(to=[nets, pods, ANYWHERE | nets])],
    ).spec
    some = EntityRule(selector=f"{POD} && b == '2'", namespaceSelector="all()")
    assert [r.source for r in spec.ingress] == [EntityRule(namespaceSelector="a == '1'"), some, some]
    masked = ("10.0.0.0/8", "172.16.0.0/12")
    assert [r.destination for r in spec.egress] == [
        EntityRule(nets=masked),
        some,
        EntityRule(namespaceSelector="all()", nets=masked),
    ]
    assert spec.types == ("Ingress", "Egress")


@pytest.mark.parametrize(
    ("protocols", "expected"),
    [
        ([], [(None, ())]),
        ([{}], [(None, ())]),
        ([{"tcp": {}}], [("TCP", ())]),
        ([{"tcp": {"destinationPort": {"number": 80}}}], [("TCP", (80,))]),
        ([{"tcp": {"destinationPort": {}}}], [("TCP", ())]),
        ([{"udp": {"destinationPort": {"range": {"start": 5, "end": 9}}}}], [("UDP", ("5:9",))]),
        ([{"sctp": {"destinationPort": {"number": 7}}}], [("SCTP", (7,))]),
        ([{"destinationNamedPort": "http"}], [(None, ("http",))]),
        (
            [
                {"udp": {"destinationPort": {"number": 53}}},
                {"tcp": {"destinationPort": {"number": 81}}},
                {"destinationNamedPort": "http"},
                {"tcp": {"destinationPort": {"number": 80}}},
            ],
            [(None, ("http",)), ("TCP", ("80:81",)), ("UDP", (53,))],
        ),
        ([{"tcp": {"destinationPort": {"number": 80}}}, {"tcp": {}}], [("TCP", ())]),
        # Everything is covered already: what follows is not even looked at.
        ([{"tcp": {}}, {}, {"destinationNamedPort": "a b"}], [(None, ())]),
    ],
)
def test_protocols(protocols: list[dict[str, Any]], expected: list[Any]) -> None:
    spec = convert(ingress=[rule(protocols=protocols, **{"from": [ANYWHERE]})]).spec
    assert [(r.protocol, r.destination.ports) for r in spec.ingress] == expected


def test_a_rule_for_nobody() -> None:
    assert convert(ingress=[rule()], egress=[rule(to=[])]).spec.types == ()


BAD = [
    ({"to": [{"domainNames": ["example.com"]}]}, "none of supported fields in 'To' is set."),
    ({"to": [{}]}, "none of supported fields in 'To' is set."),
    ({"to": [ANYWHERE, {"networks": ["x"]}]}, "invalid CIDR in ANP rule: invalid CIDR address: x"),
    (
        {"to": [ANYWHERE], "protocols": [{"destinationNamedPort": "a b"}]},
        "failed to parse k8s port: invalid name for named port (a b)",
    ),
]


@pytest.mark.parametrize(
    ("action", "instead"), [("Accept", ()), ("Deny", (DENY_ALL,)), ("Pass", (DENY_ALL,))]
)
@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_rule_fails_closed(
    bad: dict[str, Any], reason: str, action: str, instead: tuple[Rule, ...]
) -> None:
    good = {"action": "Pass", "to": [ANYWHERE]}
    result = conversion(egress=[good, {"action": action, **bad}, good])
    assert result.policy is not None
    passing = Rule(action="Pass", destination=EntityRule(namespaceSelector="all()"))
    assert result.policy.spec.egress == (passing, *instead, passing)
    assert result.error.endswith(f"(k8s rule couldn't be converted: {reason})")


def test_networks_are_no_peer_of_ingress() -> None:
    result = conversion(ingress=[{"action": "Deny", "from": [{"networks": ["10.0.0.0/8"]}]}])
    assert result.policy is not None
    assert result.policy.spec.ingress == (DENY_ALL,)
    assert "none of supported fields in 'From' is set." in result.error


def test_an_unknown_action_is_dropped() -> None:
    result = conversion(ingress=[{"action": "Allow", "from": [ANYWHERE]}])
    assert result.policy is not None and result.policy.spec.ingress == ()
    assert "unsupported cluster network policy action Allow" in result.error


def test_a_subject_that_cannot_be_written() -> None:
    with pytest.raises(ValidationError, match=r"spec\.subject"):
        conversion(subject={"namespaces": {"matchLabels": {"a": "'"}}})
