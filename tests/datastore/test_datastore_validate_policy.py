"""Policies of all kinds, their rules, tiers, profiles and network sets."""

from typing import Any

import pytest

from tests.support.resources import problems, resource
from tortie.datastore import codec, validate

pytestmark = pytest.mark.unit

POLICIES = ["NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"]
GLOBAL = ["GlobalNetworkPolicy", "StagedGlobalNetworkPolicy"]
STAGED = ["StagedNetworkPolicy", "StagedGlobalNetworkPolicy"]
ALLOW = {"action": "Allow"}

# --- defaults -----------------------------------------------------------------------------------


def filled(kind: str, spec: dict[str, Any], **metadata: Any) -> Any:
    return validate.with_defaults(resource(kind, spec, **metadata))


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(
    ("rules", "types"),
    [
        ({}, ["Ingress"]),
        ({"ingress": [ALLOW]}, ["Ingress"]),
        ({"egress": [ALLOW]}, ["Egress"]),
        ({"ingress": [ALLOW], "egress": [ALLOW]}, ["Ingress", "Egress"]),
        ({"egress": [ALLOW], "types": ["Ingress"]}, ["Ingress"]),
    ],
)
def test_types_follow_the_rules(kind: str, rules: dict[str, Any], types: list[str]) -> None:
    assert list(filled(kind, rules).spec.types) == types


@pytest.mark.parametrize("kind", POLICIES)
def test_the_tier_is_default_and_its_label_forced(kind: str) -> None:
    policy = filled(kind, {}, labels={"a": "b", "projectcalico.org/tier": "forged"})
    assert policy.spec.tier == "default"
    assert policy.labels == {"a": "b", "projectcalico.org/tier": "default"}
    other = filled(kind, {"tier": "ops"})
    assert (other.spec.tier, other.labels["projectcalico.org/tier"]) == ("ops", "ops")


@pytest.mark.parametrize("kind", STAGED)
def test_staged_actions(kind: str) -> None:
    assert filled(kind, {}).spec.stagedAction == "Set"
    assert filled(kind, {"stagedAction": "Delete", "types": ["Ingress"]}).spec.types == ()
    assert filled("StagedKubernetesNetworkPolicy", {}).spec.stagedAction == "Set"


def test_ports_and_protocols_in_calicos_spelling() -> None:
    rule = ALLOW | {"protocol": "6", "destination": {"ports": ["80", "80:80", "1:2", "http", 443]}}
    for kind, spec in [("NetworkPolicy", {"egress": [rule]}), ("Profile", {"egress": [rule]})]:
        stored = codec.to_plain(filled(kind, spec))["spec"]["egress"][0]
        assert stored["protocol"] == 6
        assert stored["destination"]["ports"] == [80, 80, "1:2", "http", 443]


def test_tiers() -> None:
    tier = filled("Tier", {})
    assert (tier.spec.order, tier.spec.defaultAction) == (1_000_000, "Deny")
    kept = filled("Tier", {"order": 0, "defaultAction": "Pass"})
    assert (kept.spec.order, kept.spec.defaultAction) == (0, "Pass")


# --- policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"tier": "A"}, "spec.tier", "lower case"),
        ({"order": 10}, None, ""),
        ({"order": -1.5}, None, ""),
        ({"selector": "a == 'b' && has(c)", "serviceAccountSelector": "all()"}, None, ""),
        ({"selector": "a == "}, "spec.selector", "expected string"),
        ({"selector": "global()"}, "spec.selector", "EntityRule namespaceSelector"),
        ({"selector": "x" * 1025}, "spec.selector", "1024"),
        ({"serviceAccountSelector": "global()"}, "spec.serviceAccountSelector", "EntityRule"),
        ({"types": ["Ingress", "Ingress"]}, "spec.types", "'Ingress' type specified more than once"),
        ({"types": ["ingress"]}, "spec.types[0]", "supported values"),
        ({"performanceHints": ["AssumeNeededOnEveryNode"]}, None, ""),
        ({"performanceHints": ["x"]}, "spec.performanceHints[0]", "supported values"),
        ({"performanceHints": ["AssumeNeededOnEveryNode"] * 2}, "spec.performanceHints[1]", "Duplicate"),
        ({"ingress": [ALLOW] * 1025}, "spec.ingress", "at most 1024"),
        ({"egress": [ALLOW | {"source": {"services": {"name": "s", "namespace": "n"}}}]},
         "spec.egress[0].source.services", "egress rule source"),
        ({"ingress": [ALLOW | {"destination": {"services": {"name": "s", "namespace": "n"}}}]},
         "spec.ingress[0].destination.services", "ingress rule destination"),
        ({"egress": [ALLOW | {"destination": {"services": {"name": "s", "namespace": "n"}}}]}, None, ""),
        ({"ingress": [ALLOW | {"source": {"services": {"name": "s", "namespace": "n"}}}]}, None, ""),
        ({"egress": [ALLOW | {"http": {"methods": ["GET"]}}]}, "spec.egress[0].http",
         "not allowed in egress"),
    ],
)  # fmt: skip
def test_policies(kind: str, spec: dict[str, Any], field: str | None, reason: str) -> None:
    found = problems(kind, spec)
    assert (reason in found.get(field, f"only {found}")) if field else (found == {})


@pytest.mark.parametrize("kind", GLOBAL)
@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"namespaceSelector": "has(a)"}, None),
        ({"namespaceSelector": "global()"}, "spec.namespaceSelector"),
        ({"preDNAT": True, "applyOnForward": True}, None),
        ({"doNotTrack": True, "applyOnForward": True}, None),
        ({"preDNAT": True}, "spec.applyOnForward"),
        ({"doNotTrack": True}, "spec.applyOnForward"),
        ({"preDNAT": True, "doNotTrack": True, "applyOnForward": True}, "spec.preDNAT"),
        ({"preDNAT": True, "applyOnForward": True, "egress": [ALLOW], "types": ["Ingress"]}, "spec.egress"),
        ({"preDNAT": True, "applyOnForward": True, "types": ["Egress"]}, "spec.types"),
        ({"egress": [ALLOW | {"destination": {"services": {"name": "s"}}}]},
         "spec.egress[0].destination.services.namespace"),
        ({"ingress": [ALLOW | {"source": {"services": {"name": "s"}}}]},
         "spec.ingress[0].source.services.namespace"),
    ],
)  # fmt: skip
def test_global_policies(kind: str, spec: dict[str, Any], field: str | None) -> None:
    assert list(problems(kind, spec)) == ([field] if field else [])


@pytest.mark.parametrize("kind", STAGED)
def test_a_staged_deletion_says_nothing_else(kind: str) -> None:
    assert problems(kind, {"stagedAction": "Delete", "tier": "ops", "types": ["Egress"]}) == {}
    wrong = {"stagedAction": "Delete", "selector": "all()", "order": 0, "ingress": [ALLOW]}
    assert set(problems(kind, wrong)) == {"spec.selector", "spec.order", "spec.ingress"}
    assert list(problems(kind, {"stagedAction": "Drop"})) == ["spec.stagedAction"]
    assert list(problems(kind, {"stagedAction": "Delete", "tier": "A"})) == ["spec.tier"]


# --- rules --------------------------------------------------------------------------------------

TCP = ALLOW | {"protocol": "TCP"}


def rule_problems(rule: dict[str, Any]) -> dict[str, str]:
    found = problems("NetworkPolicy", {"ingress": [rule]})
    return {field.removeprefix("spec.ingress[0]."): reason for field, reason in found.items()}


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "Deny"},
        {"action": "Log"},
        {"action": "Pass"},
        ALLOW | {"source": {"ports": ["http"]}},
        ALLOW | {"protocol": "ICMP", "ipVersion": 4, "icmp": {"type": 254, "code": 255}},
        ALLOW | {"protocol": 58, "ipVersion": 6, "icmp": {"type": 0}},
        ALLOW | {"notProtocol": "ICMP", "ipVersion": 4},
        ALLOW | {"protocol": "SCTP", "destination": {"ports": [1, "2:3"], "notPorts": [4]}},
        ALLOW | {"source": {"nets": ["10.0.0.0/8", "11.0.0.1/32"], "notNets": ["10.1.0.0/16"]}},
        ALLOW | {"ipVersion": 6, "destination": {"nets": ["fd00::/8", "::/0"]}},
        ALLOW
        | {"source": {"selector": "a == 'b'", "notSelector": "has(c)", "namespaceSelector": "global()"}},
        ALLOW | {"source": {"namespaceSelector": " global( ) "}},
        ALLOW | {"source": {"serviceAccounts": {"names": ["default"], "selector": "has(a)"}}},
        TCP | {"http": {"methods": ["GET", "POST"], "paths": [{"exact": "/a"}, {"prefix": "/b/"}]}},
        ALLOW | {"metadata": {"annotations": {"a.b/c": "any\ntext"}}},
    ],
)
def test_legal_rules(rule: dict[str, Any]) -> None:
    assert rule_problems(rule) == {}


@pytest.mark.parametrize(
    ("rule", "field", "reason"),
    [
        ({"action": "Accept"}, "action", "supported values"),
        ({"action": ""}, "action", "Required"),
        (ALLOW | {"ipVersion": 5}, "ipVersion", "4, 6"),
        (ALLOW | {"protocol": "tcp"}, "protocol", "protocol name invalid"),
        (ALLOW | {"protocol": 0}, "protocol", "protocol number invalid"),
        (ALLOW | {"protocol": 256}, "protocol", "protocol number invalid"),
        (ALLOW | {"notProtocol": "x\n"}, "notProtocol", "protocol name invalid"),
        (ALLOW | {"protocol": "ICMP", "ipVersion": 6}, "ipVersion", "protocol ICMP requires ipVersion 4"),
        (ALLOW | {"protocol": 58, "ipVersion": 4}, "ipVersion", "protocol ICMPv6 requires ipVersion 6"),
        (ALLOW | {"notProtocol": 1, "ipVersion": 6}, "ipVersion", "requires ipVersion 4"),
        (TCP | {"icmp": {"type": 1}}, "protocol", "ICMP fields require"),
        (ALLOW | {"icmp": {"type": 1}}, "protocol", "ICMP fields require"),
        (ALLOW | {"protocol": "ICMP", "icmp": {"code": 1}}, "icmp.code", "without an ICMP type"),
        (ALLOW | {"protocol": "ICMP", "icmp": {"type": 255}}, "icmp.type", "254"),
        (ALLOW | {"notICMP": {"type": -1}}, "notICMP.type", "0"),
        (ALLOW | {"notICMP": {"type": 1, "code": 256}}, "notICMP.code", "255"),
        (ALLOW | {"source": {"ports": [80]}}, "source.ports", "numeric port"),
        (ALLOW | {"destination": {"notPorts": ["1:2"]}}, "destination.notPorts", "numeric port"),
        (ALLOW | {"protocol": "ICMP", "source": {"ports": ["http"]}}, "source.ports", "must set protocol"),
        (TCP | {"source": {"ports": [0]}}, "source.ports[0]", "between 1 and 65535"),
        (TCP | {"source": {"ports": ["2:1"]}}, "source.ports[0]", "port range invalid"),
        (TCP | {"source": {"ports": ["a b"]}}, "source.ports[0]", "IANA"),
        (TCP | {"source": {"ports": [1] * 51}}, "source.ports", "at most 50"),
        (ALLOW | {"source": {"nets": ["10.0.0.1/8"]}}, "source.nets[0]", "strictly masked"),
        (ALLOW | {"source": {"nets": ["10.0.0.1"]}}, "source.nets[0]", "invalid CIDR"),
        (ALLOW | {"source": {"nets": ["x"]}}, "source.nets[0]", "invalid IP network"),
        (ALLOW | {"source": {"nets": ["10.0.0.0/8"] * 2}}, "source.nets[1]", "Duplicate"),
        (ALLOW | {"source": {"nets": [f"10.0.{n}.0/24" for n in range(257)]}}, "source.nets", "at most 256"),
        (ALLOW | {"source": {"notNets": ["0.0.0.0/0"]}}, "source.notNets[0]", "catch-all"),
        (ALLOW | {"destination": {"notNets": ["0::/0"]}}, "destination.notNets[0]", "catch-all"),
        (ALLOW | {"ipVersion": 4, "source": {"nets": ["fd00::/8"]}}, "source.nets", "doesn't match CIDR"),
        (ALLOW | {"source": {"nets": ["fd00::/8", "10.0.0.0/8"]}}, "source.nets", "both IPv4 and IPv6"),
        (ALLOW | {"source": {"nets": ["fd00::/8"]}, "destination": {"nets": ["10.0.0.0/8"]}},
         "destination.nets", "both IPv4 and IPv6"),
        (ALLOW | {"source": {"selector": "global()"}}, "source.selector", "namespaceSelector"),
        (ALLOW | {"source": {"notSelector": "("}}, "source.notSelector", "unexpected"),
        (ALLOW | {"source": {"namespaceSelector": "global() || has(a)"}}, "source.namespaceSelector",
         "cannot be combined"),
        (ALLOW | {"source": {"serviceAccounts": {"names": ["a'b"]}}}, "source.serviceAccounts.names[0]",
         "lower case"),
        (ALLOW | {"source": {"serviceAccounts": {"selector": "("}}}, "source.serviceAccounts.selector",
         "unexpected"),
        (ALLOW | {"source": {"services": {"namespace": "n"}}}, "source.services.name", "service name"),
        (ALLOW | {"source": {"services": {"name": "A"}}}, "source.services.name", "lower case"),
        (ALLOW | {"source": {"services": {"name": "s"}, "selector": "all()"}}, "source.selector",
         "Selector/NotSelector and Services"),
        (ALLOW | {"source": {"services": {"name": "s"}, "namespaceSelector": "all()"}},
         "source.namespaceSelector", "NamespaceSelector and Services"),
        (ALLOW | {"source": {"services": {"name": "s"}, "nets": ["10.0.0.0/8"]}}, "source.nets",
         "Nets/NotNets and Services"),
        (ALLOW | {"source": {"services": {"name": "s"}, "serviceAccounts": {}}}, "source.serviceAccounts",
         "ServiceAccounts and Services"),
        (ALLOW | {"protocol": "UDP", "http": {"methods": ["GET"]}}, "protocol", "TCP or unset"),
        ({"action": "Deny", "http": {"methods": ["GET"]}}, "action", "Allow rules"),
        (TCP | {"http": {"methods": ["GET", "GET"]}}, "http.methods[1]", "Duplicate"),
        (TCP | {"http": {"methods": ["G"] * 21}}, "http.methods", "at most 20"),
        (TCP | {"http": {"methods": ["G\nT"]}}, "http.methods[0]", "control"),
        (TCP | {"http": {"paths": [{"exact": "/a", "prefix": "/b"}]}}, "http.paths[0]", "Both"),
        (TCP | {"http": {"paths": [{}]}}, "http.paths[0]", "must be set"),
        (TCP | {"http": {"paths": [{"exact": "a"}]}}, "http.paths[0]", "must start with"),
        (TCP | {"http": {"paths": [{"prefix": "/a?b"}]}}, "http.paths[0]", "not contain"),
        (ALLOW | {"metadata": {"annotations": {"a b": "c"}}}, "metadata.annotations (key)", "alphanumeric"),
    ],
)  # fmt: skip
def test_rules_that_are_refused(rule: dict[str, Any], field: str, reason: str) -> None:
    found = rule_problems(rule)
    assert reason in found.get(field, f"only {found}")


def test_services_exclude_ports() -> None:
    rule = TCP | {"destination": {"services": {"name": "s", "namespace": "n"}, "ports": [80]}}
    assert problems("NetworkPolicy", {"egress": [rule]}) == {
        "spec.egress[0].destination.ports": "ports and notPorts cannot be specified with services"
    }


# --- StagedKubernetesNetworkPolicy --------------------------------------------------------------

PEER = {"podSelector": {"matchLabels": {"a": "b"}}}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, None),
        ({"stagedAction": "Delete"}, None),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}, None),
        ({"ingress": [{"ports": [{"protocol": "TCP", "port": 80, "endPort": 90}, {"port": "http"}],
         "from": [PEER]}]}, None),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}],
         "policyTypes": ["Egress"]}, None),
        ({"stagedAction": "Learned"}, "spec.stagedAction"),
        ({"stagedAction": "Delete", "ingress": [{}]}, "spec.ingress"),
        ({"podSelector": {"matchLabels": {"a b": "c"}}}, "spec.podSelector.matchLabels (key)"),
        ({"podSelector": {"matchLabels": {"a": "b\n"}}}, "spec.podSelector.matchLabels.a"),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
         "spec.podSelector.matchExpressions[0].operator"),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
         "spec.podSelector.matchExpressions[0].values"),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
         "spec.podSelector.matchExpressions[0].values"),
        ({"ingress": [{"ports": [{"protocol": "ICMP"}]}]}, "spec.ingress[0].ports[0].protocol"),
        ({"ingress": [{"ports": [{"port": 0}]}]}, "spec.ingress[0].ports[0].port"),
        ({"ingress": [{"ports": [{"port": "http", "endPort": 90}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ingress": [{"ports": [{"port": 90, "endPort": 80}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.1/8"}}]}]}, "spec.egress[0].to[0].ipBlock.cidr"),
        ({"egress": [{"to": [{"ipBlock": {}}]}]}, "spec.egress[0].to[0].ipBlock.cidr"),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}]}]},
         "spec.egress[0].to[0].ipBlock.except[0]"),
        ({"egress": [{"to": "x"}]}, "StagedKubernetesNetworkPolicy.spec.egress[0].to"),
        ({"policyTypes": ["ingress"]}, "spec.policyTypes[0]"),
    ],
)  # fmt: skip
def test_staged_kubernetes_policies(spec: dict[str, Any], field: str | None) -> None:
    assert list(problems("StagedKubernetesNetworkPolicy", spec)) == ([field] if field else [])


# --- tiers, profiles, sets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spec", "fields"),
    [
        ("ops", {"order": 5.5, "defaultAction": "Pass"}, []),
        ("ops", {"defaultAction": "Allow"}, ["spec.defaultAction"]),
        ("default", {"order": 1_000_000, "defaultAction": "Deny"}, []),
        ("default", {}, []),
        ("default", {"order": 1_000_000.0}, []),
        ("default", {"order": 5, "defaultAction": "Pass"}, ["spec.defaultAction", "spec.order"]),
        ("kube-admin", {"order": 1000, "defaultAction": "Pass"}, []),
        ("kube-admin", {}, ["spec.defaultAction", "spec.order"]),
        ("kube-baseline", {"order": 10_000_000, "defaultAction": "Pass"}, []),
        ("kube-baseline", {"order": 1, "defaultAction": "Pass"}, ["spec.order"]),
    ],
)
def test_built_in_tiers_are_fixed(name: str, spec: dict[str, Any], fields: list[str]) -> None:
    assert list(problems("Tier", spec, name=name)) == fields


def test_the_wording_for_built_in_tiers_is_calicos() -> None:
    assert problems("Tier", {"order": 1, "defaultAction": "Pass"}, name="default") == {
        "spec.defaultAction": "The 'default' tier must have default action 'Deny'",
        "spec.order": "default tier order must be 1000000",
    }


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"ingress": [ALLOW], "egress": [ALLOW], "labelsToApply": {"pcns.a/b": "c"}}, None),
        ({"ingress": [{"action": "x"}]}, "spec.ingress[0].action"),
        ({"egress": [ALLOW] * 1025}, "spec.egress"),
        ({"labelsToApply": {"a b": "c"}}, "spec.labelsToApply (key)"),
        ({"labelsToApply": {"a": "'"}}, "spec.labelsToApply.a"),
    ],
)
def test_profiles(spec: dict[str, Any], field: str | None) -> None:
    assert list(problems("Profile", spec)) == ([field] if field else [])


@pytest.mark.parametrize("kind", ["NetworkSet", "GlobalNetworkSet"])
def test_network_sets(kind: str) -> None:
    assert problems(kind, {"nets": ["10.0.0.1", "10.0.0.1/8", "dead:beef::", "dead:beef::/96"]}) == {}
    found = problems(kind, {"nets": ["garbage", "10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/8\n"]})
    assert set(found) == {"spec.nets[0]", "spec.nets[2]", "spec.nets[3]"}
