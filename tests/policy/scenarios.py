"""Cases written by hand: types, orders and tiers of policies, and what fits nowhere else."""

from collections.abc import Iterator
from typing import Any

from tests.policy.board import (
    ICMP,
    SCTP,
    STANDARD,
    TCP,
    UDP,
    Case,
    Expect,
    Json,
    Probe,
    global_policy,
    policy,
    rule,
    tier,
)

SERVERS, CLIENTS = "app == 'server'", "app == 'client'"
ALLOW, DENY, PASS = rule("Allow"), rule("Deny"), rule("Pass")


def to(*ports: int | str, action: str = "Allow", protocol: str = "TCP") -> Json:
    return rule(action, protocol=protocol, destination={"ports": list(ports)})


def from_peers(selector: str, action: str = "Allow", **fields: Any) -> Json:
    return rule(action, source={"selector": selector, **fields})


def case(name: str, expect: Expect, *resources: Json) -> Case:
    return Case(name, resources, expect, STANDARD)


def everything(_probe: Probe) -> bool:
    return True


def nothing(_probe: Probe) -> bool:
    return False


def web(probe: Probe) -> bool:
    return probe.protocol == TCP and probe.port == 8080


def tcp(probe: Probe) -> bool:
    return probe.protocol == TCP


def outside(probe: Probe) -> bool:
    return probe.space == "other"


def cases() -> Iterator[Case]:
    yield from _types()
    yield from _orders()
    yield from _tiers()
    yield from _odds()


# --- which directions a policy speaks of (3) ----------------------------------------------------


def _types() -> Iterator[Case]:
    ingress, egress = ["Ingress"], ["Egress"]
    yield case("no policy at all", everything)
    yield case("no rules, ingress", nothing, policy("p", selector=SERVERS, types=ingress))
    yield case("no rules, egress", outside, policy("p", selector=CLIENTS, types=egress))
    yield case("no rules, both", nothing, policy("p", selector="all()", types=[*ingress, *egress]))
    yield case("no rules, no types: ingress", nothing, policy("p", selector="all()"))
    yield case("no rules at the clients, no types", everything, policy("p", selector=CLIENTS))
    yield case(
        "egress rules, no types: egress only",
        lambda p: outside(p) or tcp(p),
        policy("p", selector="all()", egress=[rule(protocol="TCP")]),
    )
    yield case("ingress rules, no types", tcp, policy("p", selector="all()", ingress=[rule(protocol="TCP")]))
    yield case(
        "rules of both directions, no types",
        lambda p: web(p) and not outside(p),
        policy(
            "p",
            selector="all()",
            ingress=[rule(protocol="TCP", source={"selector": CLIENTS})],
            egress=[to(8080)],
        ),
    )
    yield case(
        "egress rules but only the ingress type",
        everything,
        policy("p", selector=CLIENTS, types=ingress, egress=[DENY]),
    )
    yield case(
        "ingress rules but only the egress type",
        everything,
        policy("p", selector=SERVERS, types=egress, ingress=[DENY]),
    )
    yield case("one rule for everything", everything, policy("p", selector=SERVERS, ingress=[ALLOW]))
    yield case("selects nobody", everything, policy("p", selector="app == 'other'", ingress=[DENY]))
    yield case("no selector: the whole namespace", nothing, policy("p", ingress=[DENY]))
    other = policy("p", selector="all()", types=["Ingress", "Egress"], ingress=[DENY], egress=[DENY])
    other["metadata"]["namespace"] = "other@"
    yield case("of another namespace", lambda p: not outside(p), other)


# --- order in a tier, and what rules do ---------------------------------------------------------


def _orders() -> Iterator[Case]:
    def two(first: Json, second: Json, *orders: float | None) -> tuple[Json, Json]:
        made = []
        for name, one, order in zip("ab", (first, second), orders, strict=True):
            spec = {} if order is None else {"order": order}
            made.append(policy(name, selector=SERVERS, ingress=[one], **spec))
        return made[0], made[1]

    yield case("the lower order first", nothing, *two(DENY, ALLOW, 10, 20))
    yield case("the lower order first, turned round", everything, *two(DENY, ALLOW, 20, 10))
    yield case("no order comes last", everything, *two(DENY, ALLOW, None, 1e9))
    yield case("equal order: by name", nothing, *two(DENY, ALLOW, 10, 10))
    yield case("no orders: by name", everything, *two(ALLOW, DENY, None, None))
    yield case("fractions and negative orders", everything, *two(DENY, ALLOW, -1, -1.5))
    yield case("what the first leaves open the second decides", tcp, *two(to(8080), to("1:65535"), 1, 2))
    yield case(
        "three that overlap",
        lambda p: web(p) or p.client != "near",
        policy("a", order=1, selector=SERVERS, ingress=[to(8080)]),
        policy(
            "b", order=2, selector="all()", types=["Ingress"], ingress=[from_peers("tier == 'front'", "Deny")]
        ),
        policy("c", order=3, selector="has(role)", ingress=[ALLOW]),
    )
    yield case(
        "a deny between two that allow",
        lambda p: p.protocol == UDP or (tcp(p) and p.client == "far"),
        policy(
            "p",
            selector=SERVERS,
            ingress=[
                rule(protocol="UDP"),
                rule("Deny", source={"selector": "tier != 'back'"}),
                rule(protocol="TCP", source={"selector": "all()"}),
            ],
        ),
    )
    yield case(
        "a global and a namespaced policy in one tier",
        lambda p: p.client == "far" or (tcp(p) and p.client == "near"),
        global_policy("a", order=1, selector=SERVERS, ingress=[from_peers("tier == 'back'")]),
        global_policy("b", order=3, selector=SERVERS, ingress=[DENY]),
        policy("p", order=2, selector=SERVERS, ingress=[rule(protocol="TCP", source={"selector": CLIENTS})]),
    )
    yield case(
        "a log decides nothing",
        tcp,
        policy(
            "p",
            selector=SERVERS,
            ingress=[
                rule("Log"),
                rule(protocol="TCP"),
                rule("Log", protocol="UDP"),
            ],
        ),
    )
    yield case(
        "ingress and egress must both agree",
        lambda p: web(p) and p.client == "near",
        policy("in", selector=SERVERS, ingress=[to(8080)], types=["Ingress"]),
        policy("out", selector="tier == 'back'", types=["Egress"]),
        _elsewhere(policy("out", selector="all()", types=["Egress"])),
    )


def _elsewhere(one: Json) -> Json:
    """The same in the cell's other namespace."""
    return one | {"metadata": one["metadata"] | {"namespace": "other@"}}


# --- tiers --------------------------------------------------------------------------------------


def _in(name: str, **spec: Any) -> Json:
    """A policy of a tier, at the servers, for ingress."""
    given = {"selector": SERVERS, "types": ["Ingress"]} | spec
    return policy(f"{name}.p", tier=f"{name}-c@", **given)


def _tiers() -> Iterator[Case]:
    rest = policy("rest", selector=SERVERS, ingress=[to(8080)])
    yield case(
        "pass in the only tier: the profile decides",
        tcp,
        policy("p", selector=SERVERS, ingress=[rule("Pass", protocol="TCP"), DENY]),
    )
    yield case(
        "pass to the default tier",
        web,
        tier("a", 10),
        _in("a", ingress=[rule("Pass", protocol="TCP")]),
        rest,
    )
    yield case(
        "pass, and deny for the rest",
        lambda p: tcp(p) and not web(p),
        tier("a", 10),
        _in("a", ingress=[to(8080, action="Deny"), PASS]),
        policy("rest", selector=SERVERS, ingress=[rule(protocol="TCP")]),
    )
    yield case(
        "pass skips the policies behind it",
        everything,
        tier("a", 10),
        policy("a.1", tier="a-c@", order=1, selector=SERVERS, ingress=[PASS]),
        policy("a.2", tier="a-c@", order=2, selector=SERVERS, ingress=[DENY]),
    )
    yield case("the end of a tier drops", web, tier("a", 10), _in("a", ingress=[to(8080)]))
    yield case(
        "the end of a tier drops before the next",
        nothing,
        tier("a", 10),
        _in("a", types=["Ingress"]),
        policy("rest", selector=SERVERS, ingress=[ALLOW]),
    )
    yield case("the end of a tier passes", everything, tier("a", 10, "Pass"), _in("a", ingress=[to(8080)]))
    yield case(
        "the end of a tier passes to one that drops",
        lambda p: tcp(p) and p.port in (8080, 8081),
        tier("a", 10, "Pass"),
        _in("a", ingress=[to(8081), rule("Deny", protocol="UDP")]),
        rest,
    )
    yield case(
        "tiers in order, not by name",
        lambda p: p.protocol != UDP,
        tier("z", 1, "Pass"),
        tier("a", 2),
        _in("z", ingress=[rule("Deny", protocol="UDP")]),
        _in("a", ingress=[ALLOW]),
    )
    yield case(
        "tiers of equal order by name",
        everything,
        tier("b", 5),
        tier("a", 5),
        _in("b", ingress=[DENY]),
        _in("a", ingress=[ALLOW]),
    )
    yield case(
        "a tier after the default one",
        tcp,
        tier("late", 2_000_000),
        policy("p", selector=SERVERS, ingress=[rule("Pass", protocol="TCP"), rule("Pass", protocol="UDP")]),
        _in("late", ingress=[rule(protocol="TCP")]),
    )
    yield case(
        "a tier of egress does not drop ingress", everything, tier("a", 10), _in("a", types=["Egress"])
    )
    yield case("a tier for others", everything, tier("a", 10), _in("a", selector="app == 'other'"))
    yield case(
        "four tiers, each passing less",
        lambda p: p.protocol == TCP and p.port == 8080 and p.version == 6 and p.client == "near",
        tier("a", 1),
        tier("b", 2),
        tier("c", 3),
        _in("a", ingress=[rule("Pass", protocol="TCP")]),
        _in("b", ingress=[to(8080, action="Pass")]),
        _in("c", ingress=[rule("Pass", ipVersion=6)]),
        policy("rest", selector=SERVERS, ingress=[from_peers("tier == 'front'")]),
    )
    yield case(
        "pass by a global policy",
        web,
        tier("a", 10),
        global_policy("a.g", tier="a-c@", selector=SERVERS, ingress=[PASS]),
        rest,
    )
    yield case(
        "egress tiers",
        lambda p: outside(p) or web(p),
        tier("a", 10),
        _in("a", selector=CLIENTS, types=["Egress"], egress=[rule("Pass", protocol="TCP")]),
        policy("rest", selector=CLIENTS, egress=[to(8080)]),
    )
    for kind, meta in (
        ("StagedNetworkPolicy", {"name": "a.s", "namespace": "ns@"}),
        ("StagedGlobalNetworkPolicy", {"name": "a.s-c@"}),
    ):
        staged = {
            "kind": kind,
            "metadata": meta,
            "spec": {
                "tier": "a-c@",
                "selector": "cell == 'c@'",
                "types": ["Ingress", "Egress"],
                "ingress": [DENY],
            },
        }
        yield case(f"{kind} does nothing, its tier neither", everything, tier("a", 10), staged)
        yield case(f"{kind} before a real one", web, tier("a", 10), staged, rest)


# --- the rest -----------------------------------------------------------------------------------


def _odds() -> Iterator[Case]:
    def at(name: str, expect: Expect, *rules: Json, **spec: Any) -> Case:
        return case(name, expect, policy("p", selector=SERVERS, ingress=list(rules), **spec))

    yield at(
        "a named port without a protocol",
        lambda p: p.protocol == UDP and (p.server, p.port) in {("srv", 5353), ("alt", 8080)},
        rule(destination={"ports": ["dns"]}),
    )
    yield at(
        "named ports of two protocols",
        lambda p: (
            (p.server, p.protocol, p.port)
            in {("srv", TCP, 8080), ("alt", TCP, 8081), ("srv", SCTP, 8080), ("alt", SCTP, 9000)}
        ),
        rule(destination={"ports": ["http", "signal"]}),
    )
    yield at(
        "a named port of another protocol",
        nothing,
        rule(protocol="TCP", destination={"ports": ["dns", "signal"]}),
    )
    yield at("a port name nobody has", nothing, rule(protocol="TCP", destination={"ports": ["nothing"]}))
    yield at("not a port name nobody has", tcp, rule(protocol="TCP", destination={"notPorts": ["nothing"]}))
    yield at(
        "named port with a selector",
        lambda p: tcp(p) and p.server == "alt" and p.port == 8081,
        rule(protocol="TCP", destination={"ports": ["http"], "selector": "role == 'b'"}),
    )
    yield at(
        "an SCTP port",
        lambda p: p.protocol == SCTP and p.port == 9000,
        rule(protocol="SCTP", destination={"ports": [9000]}),
    )
    yield at("SCTP by number", lambda p: p.protocol == SCTP, rule(protocol=132))
    yield at("ICMP by number", lambda p: p.protocol == ICMP, rule(protocol=1))
    yield at("not a protocol without a name", lambda p: p.protocol != 253, rule(notProtocol=253))
    yield at(
        "a type and its negation",
        lambda p: p.protocol == ICMP and p.icmp == (8, 0),
        rule(protocol="ICMP", icmp={"type": 8}, notICMP={"type": 8, "code": 1}),
    )
    yield at("every port there is", tcp, rule(protocol="TCP", destination={"ports": ["1:65535"]}))
    yield at(
        "both versions by two rules",
        lambda p: p.client == "near",
        rule(source={"nets": ["%near4%/32"]}),
        rule(source={"nets": ["%near6%/128"]}),
    )
    yield at("nets of no pod", nothing, rule(source={"nets": ["203.0.113.0/24"]}))
    yield at("all of IPv4 by net", lambda p: p.version == 4, rule(source={"nets": ["0.0.0.0/0"]}))
    yield at("all of IPv6 by net", lambda p: p.version == 6, rule(source={"nets": ["::/0"]}))
    yield at("a hint changes nothing", web, to(8080), performanceHints=["AssumeNeededOnEveryNode"])
    yield at(
        "annotations change nothing",
        web,
        {**to(8080), "metadata": {"annotations": {"who": "somebody; DROP"}}},
    )
    services = {"services": {"name": "web", "namespace": "ns@"}}
    yield case(
        "a service nobody offers",
        outside,
        policy("p", selector=CLIENTS, egress=[rule(destination=services)]),
    )
    yield case(
        "applyOnForward means nothing to pods",
        web,
        global_policy("p", selector=SERVERS, applyOnForward=True, ingress=[to(8080)]),
    )
    yield case(
        "doNotTrack does nothing to pods",
        everything,
        global_policy("p", selector=SERVERS, applyOnForward=True, doNotTrack=True, ingress=[DENY]),
    )
    yield case(
        "preDNAT does nothing to pods",
        everything,
        global_policy(
            "p", selector=SERVERS, applyOnForward=True, preDNAT=True, ingress=[DENY], types=["Ingress"]
        ),
    )
    yield case(
        "three hundred rules",
        web,
        policy(
            "p",
            selector=SERVERS,
            ingress=[
                *(to(port) for port in range(20000, 20300)),
                to(8080),
            ],
        ),
    )
