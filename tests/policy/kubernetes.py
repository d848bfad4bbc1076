"""Cases of the policies that Kubernetes users write: by way of their conversion, or as they are."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from tests.policy.board import SCTP, STANDARD, TCP, UDP, Case, Expect, Json, Probe
from tortie.datastore.codec import to_plain
from tortie.datastore.kubernetes import Conversion, convert_cluster_network_policy, convert_network_policy

NATIVE = "networking.k8s.io/v1 NetworkPolicy"  # in the place of a kind
_NEWER = ("endPort",)  # what the API server of the tests does not know yet: it is of 1.20
_SERVERS = {"matchLabels": {"app": "server"}}
_CLIENTS = {"matchLabels": {"app": "client"}}


def _plain(conversion: Conversion[Any]) -> Json:
    assert conversion.policy is not None and not conversion.refused
    return to_plain(conversion.policy)


def _policy(name: str, **spec: Any) -> Json:
    return {"kind": NATIVE, "metadata": {"name": name, "namespace": "ns@"}, "spec": spec}


def _converted(raw: Json) -> Json:
    """`%pod4%` stands for 192.0.2.1 while the policy is converted: conversion reads addresses."""
    if raw["kind"] != NATIVE:
        return raw
    text = msgspec.json.encode({name: raw[name] for name in ("metadata", "spec")}).decode()
    for number, pod in enumerate(_STAND_INS):
        text = text.replace(pod, _stand_in(number, pod))
    converted = msgspec.json.encode(_plain(convert_network_policy(msgspec.json.decode(text)))).decode()
    for number, pod in enumerate(_STAND_INS):
        converted = converted.replace(_stand_in(number, pod), pod)
    plain: Json = msgspec.json.decode(converted)
    return plain


_STAND_INS = ("%near4%", "%near6%", "%far4%", "%srv4%", "%pool4%", "%pool6%")


def _stand_in(number: int, pod: str) -> str:
    """An address or network that no case mentions."""
    if pod.startswith("%pool"):
        return "198.18.0.0/16" if "4" in pod else "2001:db8:ffff::/48"
    return f"192.0.2.{number + 1}" if pod.endswith("4%") else f"2001:db8::{number + 1}"


def _cluster(name: str, tier: str, priority: int = 10, **spec: Any) -> Json:
    raw = {"tier": tier, "priority": priority, "subject": _pods(_SERVERS), **spec}
    plain = _plain(convert_cluster_network_policy({"metadata": {"name": f"{name}-c@"}, "spec": raw}))
    # All cells share one cluster: what is said of all namespaces is meant for those of the cell.
    plain["spec"]["selector"] += " && cell == 'c@'"
    return plain


def _pods(labels: Json, namespaces: Json | None = None) -> Json:
    return {"pods": {"podSelector": labels, "namespaceSelector": namespaces or {}}}


def _case(name: str, expect: Expect, *resources: Json) -> Case:
    return Case(f"Kubernetes: {name}", resources, expect, STANDARD)


def _everything(_probe: Probe) -> bool:
    return True


def _nothing(_probe: Probe) -> bool:
    return False


def _tcp(probe: Probe) -> bool:
    return probe.protocol == TCP


def cases() -> Iterator[Case]:
    for case in (*_network_policies(), *_ports(), *_cluster_policies()):
        yield replace(case, resources=tuple(map(_converted, case.resources)))


def native_cases() -> Iterator[Case]:
    """Those that an API server can be given."""
    for case in (*_network_policies(), *_ports()):
        if not any(word in str(case.resources) for word in _NEWER):
            yield case


def _network_policies() -> Iterator[Case]:
    def from_(name: str, expect: Expect, *peers: Json) -> Case:
        return _case(name, expect, _policy("p", podSelector=_SERVERS, ingress=[{"from": list(peers)}]))

    yield _case("default deny", _nothing, _policy("p", podSelector={}))
    yield _case(
        "default deny of egress",
        lambda p: p.space == "other",
        _policy("p", podSelector={}, policyTypes=["Egress"]),
    )
    yield _case(
        "default deny of both", _nothing, _policy("p", podSelector={}, policyTypes=["Ingress", "Egress"])
    )
    yield _case("allow all", _everything, _policy("p", podSelector={}, ingress=[{}]))
    yield _case("an empty list of rules", _nothing, _policy("p", podSelector=_SERVERS, ingress=[]))
    yield _case("for other pods", _everything, _policy("p", podSelector={"matchLabels": {"app": "none"}}))
    yield _case(
        "two policies add up",
        lambda p: p.client in ("near", "ext"),
        _policy(
            "p",
            podSelector=_SERVERS,
            ingress=[{"from": [{"podSelector": {"matchLabels": {"tier": "front"}}}]}],
        ),
        _policy(
            "q", podSelector={}, ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"env": "dev"}}}]}]
        ),
    )
    front = {"podSelector": {"matchLabels": {"tier": "front"}}}
    dev, prod = ({"namespaceSelector": {"matchLabels": {"env": env}}} for env in ("dev", "prod"))
    # The cells share a cluster: all namespaces have such labels, which only makes the rule wider.
    yield from_("podSelector", lambda p: p.client == "near", front)
    yield from_("empty podSelector: the own namespace", lambda p: p.space == "ns", {"podSelector": {}})
    yield from_("namespaceSelector", lambda p: p.client == "ext", dev)
    yield from_("empty namespaceSelector", _everything, {"namespaceSelector": {}})
    yield from_("both in one peer", lambda p: p.client == "near", front | prod)
    yield from_("both in two peers", lambda p: p.client != "far", front, dev)
    yield from_(
        "a namespace by its name",
        lambda p: p.client == "ext",
        {"namespaceSelector": {"matchLabels": {"projectcalico.org/name": "other@"}}},
    )
    for operator, values, expect in [
        ("In", ["front", "x"], lambda p: p.client == "near"),
        ("NotIn", ["front"], lambda p: p.client == "far"),
        ("Exists", [], lambda p: p.space == "ns"),
        ("DoesNotExist", [], _nothing),
    ]:
        expression = {"key": "tier", "operator": operator, "values": values}
        yield from_(
            f"matchExpressions {operator}", expect, {"podSelector": {"matchExpressions": [expression]}}
        )
    yield from_(
        "ipBlock", lambda p: p.version == 4 and p.client == "near", {"ipBlock": {"cidr": "%near4%/32"}}
    )
    yield from_(
        "ipBlock of IPv6",
        lambda p: p.version == 6 and p.client == "near",
        {"ipBlock": {"cidr": "%near6%/128"}},
    )
    yield from_(
        "ipBlock except",
        lambda p: p.version == 4 and p.client not in ("near", "far"),
        {"ipBlock": {"cidr": "%pool4%", "except": ["%near4%/32", "%far4%/32"]}},
    )
    yield from_(
        "two blocks",
        lambda p: p.client == "near",
        {"ipBlock": {"cidr": "%near4%/32"}},
        {"ipBlock": {"cidr": "%near6%/128"}},
    )
    yield from_(
        "everything but one",
        lambda p: p.version == 4 and p.client != "near",
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["%near4%/32"]}},
    )
    yield _case(
        "egress to pods",
        lambda p: p.space == "other" or p.server == "srv",
        _policy(
            "p",
            podSelector=_CLIENTS,
            policyTypes=["Egress"],
            egress=[{"to": [{"podSelector": {"matchLabels": {"role": "a"}}}]}],
        ),
    )
    yield _case(
        "egress to a block",
        lambda p: p.space == "other" or (p.server == "srv" and p.version == 4),
        _policy(
            "p",
            podSelector=_CLIENTS,
            policyTypes=["Egress"],
            egress=[{"to": [{"ipBlock": {"cidr": "%srv4%/32"}}]}],
        ),
    )
    yield _case(
        "egress rules without the type",
        _everything,
        _policy("p", podSelector=_CLIENTS, policyTypes=["Ingress"], egress=[]),
    )


def _ports() -> Iterator[Case]:
    def to(name: str, expect: Expect, *ports: Json) -> Case:
        return _case(name, expect, _policy("p", podSelector=_SERVERS, ingress=[{"ports": list(ports)}]))

    yield to("a port is of TCP", lambda p: _tcp(p) and p.port == 8080, {"port": 8080})
    yield to("an empty port is all of TCP", _tcp, {})
    yield to("a protocol only", lambda p: p.protocol == UDP, {"protocol": "UDP"})
    yield to("SCTP", lambda p: p.protocol == SCTP and p.port == 8080, {"protocol": "SCTP", "port": 8080})
    yield to("endPort", lambda p: _tcp(p) and p.port in (8080, 8081), {"port": 8000, "endPort": 8081})
    yield to("endPort just short", lambda p: _tcp(p) and p.port == 8080, {"port": 8000, "endPort": 8080})
    yield to(
        "named ports that differ per pod",
        lambda p: _tcp(p) and (p.server, p.port) in {("srv", 8080), ("alt", 8081)},
        {"port": "http"},
    )
    yield to(
        "two protocols",
        lambda p: (p.protocol, p.port) in {(TCP, 8081), (UDP, 5353)},
        {"port": 8081},
        {"port": 5353, "protocol": "UDP"},
    )
    yield to(
        "neighbouring ports", lambda p: _tcp(p) and p.port in (8080, 8081), {"port": 8081}, {"port": 8080}
    )
    yield to(
        "name and number",
        lambda p: _tcp(p) and (p.port == 8081 or (p.server, p.port) == ("srv", 8080)),
        {"port": "http"},
        {"port": 8081},
    )
    yield _case(
        "ports and peers",
        lambda p: p.client == "near" and p.protocol == UDP and p.port == 5353,
        _policy(
            "p",
            podSelector=_SERVERS,
            ingress=[
                {
                    "from": [{"podSelector": {"matchLabels": {"tier": "front"}}}],
                    "ports": [{"port": 5353, "protocol": "UDP"}],
                }
            ],
        ),
    )
    yield _case(
        "ports of egress",
        lambda p: p.space == "other" or (_tcp(p) and p.port == 8080),
        _policy("p", podSelector={}, policyTypes=["Egress"], egress=[{"ports": [{"port": 8080}]}]),
    )


def _cluster_policies() -> Iterator[Case]:
    def rule(action: str, *peers: Json, **fields: Any) -> Json:
        return {"action": action, "from": list(peers) or [{"namespaces": {}}], **fields}

    def web(probe: Probe) -> bool:
        return _tcp(probe) and probe.port == 8080

    def port(protocol: str, number: int) -> Json:
        return {protocol: {"destinationPort": {"number": number}}}

    deny = _policy("default-deny", podSelector=_SERVERS)
    allow = _policy("allow", podSelector=_SERVERS, ingress=[{}])
    dev = {"namespaces": {"matchLabels": {"env": "dev"}}}
    yield _case(
        "admin: deny before namespaced policies",
        lambda p: p.client != "ext",
        _cluster("a", "Admin", ingress=[rule("Deny", dev)]),
        allow,
    )
    yield _case(
        "admin: accept before namespaced policies",
        web,
        _cluster("a", "Admin", ingress=[rule("Accept", protocols=[port("tcp", 8080)])]),
        deny,
    )
    yield _case(
        "admin: pass on to namespaced policies",
        lambda p: p.client == "far",
        _cluster(
            "a",
            "Admin",
            ingress=[
                rule("Pass", _pods({"matchLabels": {"tier": "back"}})),
                rule("Deny"),
            ],
        ),
        allow,
    )
    yield _case(
        "admin: nothing matches, the pod's profile decides",
        lambda p: p.protocol != UDP,
        _cluster("a", "Admin", ingress=[rule("Deny", protocols=[{"udp": {}}])]),
    )
    yield _case(
        "admin: priority",
        web,
        _cluster("z", "Admin", 1, ingress=[rule("Accept", protocols=[port("tcp", 8080)])]),
        _cluster("a", "Admin", 2, ingress=[rule("Deny")]),
    )
    yield _case(
        "baseline: deny where nothing else is said",
        _nothing,
        _cluster("b", "Baseline", ingress=[rule("Deny")]),
    )
    yield _case(
        "baseline: namespaced policies come first",
        _everything,
        _cluster("b", "Baseline", ingress=[rule("Deny")]),
        allow,
    )
    yield _case(
        "baseline: accept",
        web,
        _cluster("b", "Baseline", ingress=[rule("Accept", protocols=[port("tcp", 8080)]), rule("Deny")]),
    )
    yield _case(
        "named port without a protocol",
        lambda p: _tcp(p) and (p.server, p.port) in {("srv", 8080), ("alt", 8081)},
        _cluster(
            "a", "Admin", ingress=[rule("Accept", protocols=[{"destinationNamedPort": "http"}]), rule("Deny")]
        ),
    )
    yield _case(
        "a range of ports",
        lambda p: p.protocol == SCTP and p.port == 9000,
        _cluster(
            "a",
            "Admin",
            ingress=[
                rule(
                    "Accept",
                    protocols=[{"sctp": {"destinationPort": {"range": {"start": 8999, "end": 9001}}}}],
                ),
                rule("Deny"),
            ],
        ),
    )
    yield _case(
        "egress to pods and networks",
        lambda p: (p.server == "srv" or p.version == 6) and p.client == "far",
        _cluster(
            "a",
            "Admin",
            subject=_pods({"matchLabels": {"tier": "back"}}),
            egress=[
                {"action": "Accept", "to": [_pods({"matchLabels": {"role": "a"}})]},
                {"action": "Accept", "to": [{"networks": ["2000::/3", "fc00::/7"]}]},
                {"action": "Deny", "to": [{"namespaces": {}}]},
            ],
        ),
        _cluster(
            "b",
            "Admin",
            subject=_pods({"matchLabels": {"tier": "front"}}),
            egress=[
                {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
                {"action": "Deny", "to": [{"networks": ["::/0"]}]},
            ],
        ),
    )
