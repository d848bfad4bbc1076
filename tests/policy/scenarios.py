"""Cases written by hand: how policies, tiers, profiles, sets and selectors work together."""

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
from tests.policy.fields import MANY

SERVERS, CLIENTS = "app == 'server'", "app == 'client'"
ALLOW, DENY, PASS = rule("Allow"), rule("Deny"), rule("Pass")


def _to(*ports: int | str, action: str = "Allow", protocol: str = "TCP") -> Json:
    return rule(action, protocol=protocol, destination={"ports": list(ports)})


def _from(selector: str, action: str = "Allow", **fields: Any) -> Json:
    return rule(action, source={"selector": selector, **fields})


def _case(name: str, expect: Expect, *resources: Json) -> Case:
    return Case(name, resources, expect, STANDARD)


def _everything(_probe: Probe) -> bool:
    return True


def _nothing(_probe: Probe) -> bool:
    return False


def _web(probe: Probe) -> bool:
    return probe.protocol == TCP and probe.port == 8080


def _tcp(probe: Probe) -> bool:
    return probe.protocol == TCP


def _outside(probe: Probe) -> bool:
    return probe.space == "other"


def cases() -> Iterator[Case]:
    yield from _types()
    yield from _orders()
    yield from _tiers()
    yield from _selections()
    yield from _operators()
    yield from _sets()
    yield from _large_rules()
    yield from _odds()


# --- which directions a policy speaks of (3) ----------------------------------------------------


def _types() -> Iterator[Case]:
    ingress, egress = ["Ingress"], ["Egress"]
    yield _case("no policy at all", _everything)
    yield _case("no rules, ingress", _nothing, policy("p", selector=SERVERS, types=ingress))
    yield _case("no rules, egress", _outside, policy("p", selector=CLIENTS, types=egress))
    yield _case("no rules, both", _nothing, policy("p", selector="all()", types=[*ingress, *egress]))
    yield _case("no rules, no types: ingress", _nothing, policy("p", selector="all()"))
    yield _case("no rules at the clients, no types", _everything, policy("p", selector=CLIENTS))
    yield _case(
        "egress rules, no types: egress only",
        lambda p: _outside(p) or _tcp(p),
        policy("p", selector="all()", egress=[rule(protocol="TCP")]),
    )
    yield _case(
        "ingress rules, no types", _tcp, policy("p", selector="all()", ingress=[rule(protocol="TCP")])
    )
    yield _case(
        "rules of both directions, no types",
        lambda p: _web(p) and not _outside(p),
        policy(
            "p",
            selector="all()",
            ingress=[rule(protocol="TCP", source={"selector": CLIENTS})],
            egress=[_to(8080)],
        ),
    )
    yield _case(
        "egress rules but only the ingress type",
        _everything,
        policy("p", selector=CLIENTS, types=ingress, egress=[DENY]),
    )
    yield _case(
        "ingress rules but only the egress type",
        _everything,
        policy("p", selector=SERVERS, types=egress, ingress=[DENY]),
    )
    yield _case("one rule for everything", _everything, policy("p", selector=SERVERS, ingress=[ALLOW]))
    yield _case("selects nobody", _everything, policy("p", selector="app == 'other'", ingress=[DENY]))
    yield _case("no selector: the whole namespace", _nothing, policy("p", ingress=[DENY]))
    other = policy("p", selector="all()", types=["Ingress", "Egress"], ingress=[DENY], egress=[DENY])
    other["metadata"]["namespace"] = "other@"
    yield _case("of another namespace", lambda p: not _outside(p), other)


# --- order in a tier, and what rules do ---------------------------------------------------------


def _orders() -> Iterator[Case]:
    def two(first: Json, second: Json, *orders: float | None) -> tuple[Json, Json]:
        made = []
        for name, one, order in zip("ab", (first, second), orders, strict=True):
            spec = {} if order is None else {"order": order}
            made.append(policy(name, selector=SERVERS, ingress=[one], **spec))
        return made[0], made[1]

    yield _case("the lower order first", _nothing, *two(DENY, ALLOW, 10, 20))
    yield _case("the lower order first, turned round", _everything, *two(DENY, ALLOW, 20, 10))
    yield _case("no order comes last", _everything, *two(DENY, ALLOW, None, 1e9))
    yield _case("equal order: by name", _nothing, *two(DENY, ALLOW, 10, 10))
    yield _case("no orders: by name", _everything, *two(ALLOW, DENY, None, None))
    yield _case("fractions and negative orders", _everything, *two(DENY, ALLOW, -1, -1.5))
    yield _case("what the first leaves open the second decides", _tcp, *two(_to(8080), _to("1:65535"), 1, 2))
    yield _case(
        "three that overlap",
        lambda p: _web(p) or p.client != "near",
        policy("a", order=1, selector=SERVERS, ingress=[_to(8080)]),
        policy("b", order=2, selector="all()", types=["Ingress"], ingress=[_from("tier == 'front'", "Deny")]),
        policy("c", order=3, selector="has(role)", ingress=[ALLOW]),
    )
    yield _case(
        "a deny between two that allow",
        lambda p: p.protocol == UDP or (_tcp(p) and p.client == "far"),
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
    yield _case(
        "a global and a namespaced policy in one tier",
        lambda p: p.client == "far" or (_tcp(p) and p.client == "near"),
        global_policy("a", order=1, selector=SERVERS, ingress=[_from("tier == 'back'")]),
        global_policy("b", order=3, selector=SERVERS, ingress=[DENY]),
        policy("p", order=2, selector=SERVERS, ingress=[rule(protocol="TCP", source={"selector": CLIENTS})]),
    )
    yield _case(
        "a log decides nothing",
        _tcp,
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
    yield _case(
        "ingress and egress must both agree",
        lambda p: _web(p) and p.client == "near",
        policy("in", selector=SERVERS, ingress=[_to(8080)], types=["Ingress"]),
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
    rest = policy("rest", selector=SERVERS, ingress=[_to(8080)])
    yield _case(
        "pass in the only tier: the profile decides",
        _tcp,
        policy("p", selector=SERVERS, ingress=[rule("Pass", protocol="TCP"), DENY]),
    )
    yield _case(
        "pass to the default tier",
        _web,
        tier("a", 10),
        _in("a", ingress=[rule("Pass", protocol="TCP")]),
        rest,
    )
    yield _case(
        "pass, and deny for the rest",
        lambda p: _tcp(p) and not _web(p),
        tier("a", 10),
        _in("a", ingress=[_to(8080, action="Deny"), PASS]),
        policy("rest", selector=SERVERS, ingress=[rule(protocol="TCP")]),
    )
    yield _case(
        "pass skips the policies behind it",
        _everything,
        tier("a", 10),
        policy("a.1", tier="a-c@", order=1, selector=SERVERS, ingress=[PASS]),
        policy("a.2", tier="a-c@", order=2, selector=SERVERS, ingress=[DENY]),
    )
    yield _case("the end of a tier drops", _web, tier("a", 10), _in("a", ingress=[_to(8080)]))
    yield _case(
        "the end of a tier drops before the next",
        _nothing,
        tier("a", 10),
        _in("a", types=["Ingress"]),
        policy("rest", selector=SERVERS, ingress=[ALLOW]),
    )
    yield _case("the end of a tier passes", _everything, tier("a", 10, "Pass"), _in("a", ingress=[_to(8080)]))
    yield _case(
        "the end of a tier passes to one that drops",
        lambda p: _tcp(p) and p.port in (8080, 8081),
        tier("a", 10, "Pass"),
        _in("a", ingress=[_to(8081), rule("Deny", protocol="UDP")]),
        rest,
    )
    yield _case(
        "tiers in order, not by name",
        lambda p: p.protocol != UDP,
        tier("z", 1, "Pass"),
        tier("a", 2),
        _in("z", ingress=[rule("Deny", protocol="UDP")]),
        _in("a", ingress=[ALLOW]),
    )
    yield _case(
        "tiers of equal order by name",
        _everything,
        tier("b", 5),
        tier("a", 5),
        _in("b", ingress=[DENY]),
        _in("a", ingress=[ALLOW]),
    )
    yield _case(
        "a tier after the default one",
        _tcp,
        tier("late", 2_000_000),
        policy("p", selector=SERVERS, ingress=[rule("Pass", protocol="TCP"), rule("Pass", protocol="UDP")]),
        _in("late", ingress=[rule(protocol="TCP")]),
    )
    yield _case(
        "a tier of egress does not drop ingress", _everything, tier("a", 10), _in("a", types=["Egress"])
    )
    yield _case("a tier for others", _everything, tier("a", 10), _in("a", selector="app == 'other'"))
    yield _case(
        "four tiers, each passing less",
        lambda p: p.protocol == TCP and p.port == 8080 and p.version == 6 and p.client == "near",
        tier("a", 1),
        tier("b", 2),
        tier("c", 3),
        _in("a", ingress=[rule("Pass", protocol="TCP")]),
        _in("b", ingress=[_to(8080, action="Pass")]),
        _in("c", ingress=[rule("Pass", ipVersion=6)]),
        policy("rest", selector=SERVERS, ingress=[_from("tier == 'front'")]),
    )
    yield _case(
        "pass by a global policy",
        _web,
        tier("a", 10),
        global_policy("a.g", tier="a-c@", selector=SERVERS, ingress=[PASS]),
        rest,
    )
    yield _case(
        "egress tiers",
        lambda p: _outside(p) or _web(p),
        tier("a", 10),
        _in("a", selector=CLIENTS, types=["Egress"], egress=[rule("Pass", protocol="TCP")]),
        policy("rest", selector=CLIENTS, egress=[_to(8080)]),
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
        yield _case(f"{kind} does nothing, its tier neither", _everything, tier("a", 10), staged)
        yield _case(f"{kind} before a real one", _web, tier("a", 10), staged, rest)


# --- whom a policy selects (2.2) ----------------------------------------------------------------


def _selections() -> Iterator[Case]:
    drop: dict[str, Any] = {"types": ["Ingress"]}
    yield _case(
        "by the namespace's label",
        lambda p: p.server != "srv",
        policy("p", selector="role == 'a' && pcns.env == 'prod'", **drop),
    )
    yield _case(
        "global, by labels", lambda p: p.server != "alt", global_policy("p", selector="role == 'b'", **drop)
    )
    yield _case(
        "global, with namespaceSelector",
        _nothing,
        global_policy("p", namespaceSelector="env == 'prod'", **drop),
    )
    yield _case(
        "global, with another namespaceSelector",
        _everything,
        global_policy("p", namespaceSelector="env == 'dev'", **drop),
    )
    yield _case(
        "global, namespaceSelector by name",
        _nothing,
        global_policy("p", namespaceSelector="projectcalico.org/name == 'ns@'", **drop),
    )
    egress: dict[str, Any] = {"types": ["Egress"]}
    yield _case(
        "by serviceAccountSelector",
        lambda p: p.client != "near",
        policy("p", serviceAccountSelector="team == 'a'", **egress),
    )
    yield _case(
        "serviceAccountSelector and selector",
        _everything,
        policy("p", selector="tier == 'back'", serviceAccountSelector="has(team)", **egress),
    )
    yield _case(
        "serviceAccountSelector by name",
        lambda p: p.client != "near",
        policy("p", serviceAccountSelector="projectcalico.org/name == 'bot'", **egress),
    )
    yield _case(
        "global, by serviceAccountSelector",
        lambda p: p.client == "far",
        global_policy("p", serviceAccountSelector="all()", **egress),
    )
    yield _case(
        "global, by both",
        lambda p: p.client != "ext",
        global_policy("p", namespaceSelector="env == 'dev'", serviceAccountSelector="team == 'b'", **egress),
    )
    yield _case(
        "the namespace is a label",
        lambda p: p.client != "ext",
        global_policy("p", selector="projectcalico.org/namespace == 'other@'", **egress),
    )
    yield _case(
        "the service account is a label",
        lambda p: p.client == "far",
        global_policy("p", selector="projectcalico.org/serviceaccount == 'bot'", **egress),
    )

    def peers(expect: Expect, name: str, **source: Any) -> Case:
        rules = [rule(source=source)]
        return _case(f"global, peers: {name}", expect, global_policy("p", selector=SERVERS, ingress=rules))

    here = "cell == 'c@'"
    yield peers(
        lambda p: p.client != "far", "a selector knows no namespace", selector=f"tier == 'front' && {here}"
    )
    yield peers(lambda p: p.client == "far", "notSelector alone", notSelector="tier == 'front'")
    yield peers(
        lambda p: p.client == "ext", "namespaceSelector", namespaceSelector="env == 'dev'", selector=here
    )
    yield peers(
        lambda p: p.client != "far",
        "service accounts of all namespaces",
        selector=here,
        serviceAccounts={"names": ["bot"]},
    )
    yield peers(
        lambda p: p.client == "ext",
        "service accounts by selector",
        selector=here,
        serviceAccounts={"selector": "team == 'b'"},
    )
    yield peers(_nothing, "global() is no pod", namespaceSelector="global()", selector=here)
    yield peers(_everything, "all namespaces", namespaceSelector="all()", selector=here)


# --- the selector language (1) ------------------------------------------------------------------


def _operators() -> Iterator[Case]:
    def near(probe: Probe) -> bool:
        return probe.client == "near"

    def far(probe: Probe) -> bool:
        return probe.client == "far"

    def inside(probe: Probe) -> bool:
        return probe.space == "ns"

    for text, expect in [
        ("tier in {'front', 'middle'}", near),
        ("tier not in {'front'}", far),
        ("tier not in {'x'}", inside),
        ("role not in {'a'} && app == 'client'", inside),
        ("role != 'a' && tier contains 'on'", near),
        ("tier starts with 'fr'", near),
        ("tier ends with 'ck'", far),
        ("has(tier)", inside),
        ("!has(tier)", _nothing),
        ("!has(role) && !tier == 'back'", near),
        ("tier == 'back' || tier == 'front'", inside),
        ("(tier == 'back' || app == 'server') && app == 'client'", far),
        ("tier in {}", _nothing),
        ("tier not in {}", inside),
        ("all()", inside),
        ("projectcalico.org/orchestrator == 'k8s'", inside),
        ('app == "client"', inside),
        ("app == ''", _nothing),
        ("pcns.env == 'prod' && tier == 'front'", near),
        ("pcsa.team == 'a'", near),
    ]:
        yield _case(
            f"selector {text}",
            expect,
            policy("p", selector=SERVERS, ingress=[_from(text)], types=["Ingress"]),
        )


# --- network sets -------------------------------------------------------------------------------


def _set(kind: str, *nets: str, namespace: str = "") -> Json:
    meta: Json = {"name": "set-c@", "labels": {"set": "yes", "cell": "c@"}}
    if namespace:
        meta["namespace"] = namespace
    return {"kind": kind, "metadata": meta, "spec": {"nets": list(nets)}}


def _sets() -> Iterator[Case]:
    """Some hold addresses of other cells: whoever plays beside them must not choose sets by namespace only."""
    chosen = {"selector": "set == 'yes' && cell == 'c@'"}

    def at(one: Json, **source: Any) -> tuple[Json, Json]:
        return one, policy("p", selector=SERVERS, ingress=[rule(source=source)])

    def globally(one: Json, **source: Any) -> tuple[Json, Json]:
        return one, global_policy("p", selector=SERVERS, ingress=[rule(source=source)])

    def near4(probe: Probe) -> bool:
        return probe.client == "near" and probe.version == 4

    own, theirs = "ns@", "other@"
    near_set = _set("NetworkSet", "%near4%/32", namespace=own)
    far_set = _set("NetworkSet", "%near4%/32", namespace=theirs)
    free_set = _set("GlobalNetworkSet", "%near4%/32")
    every = {"namespaceSelector": "all()"}
    yield _case("a network set of the namespace", near4, *at(near_set, **chosen))
    yield _case("a network set of another namespace", _nothing, *at(far_set, **chosen))
    yield _case("network sets of all namespaces", near4, *at(far_set, **chosen, **every))
    yield _case(
        "a network set by its namespace's labels",
        near4,
        *at(near_set, selector="set == 'yes' && pcns.env == 'prod'"),
    )
    yield _case("a global set is in no namespace", _nothing, *at(free_set, **chosen))
    yield _case("a global set by global()", near4, *at(free_set, **chosen, namespaceSelector="global()"))
    yield _case("a global set is in none of all namespaces", _nothing, *at(free_set, **chosen, **every))
    yield _case("a global set in a global policy", near4, *globally(free_set, **chosen))
    yield _case("a namespace's set in a global policy", near4, *globally(near_set, **chosen))
    yield _case(
        "not in a global set", lambda p: not near4(p), *globally(free_set, notSelector="set == 'yes'")
    )
    both = _set("NetworkSet", "%near4%/32", "%far6%/128", "%ext4%", "10.0.0.0/8", namespace=own)
    yield _case(
        "a set of both versions",
        lambda p: (p.client, p.version) in {("near", 4), ("far", 6), ("ext", 4)},
        *at(both, **chosen),
    )
    yield _case(
        "everything of IPv4",
        lambda p: p.version == 4,
        *at(_set("NetworkSet", "0.0.0.0/0", namespace=own), **chosen),
    )
    yield _case(
        "everything of IPv6",
        lambda p: p.version == 6,
        *at(_set("NetworkSet", "::/0", namespace=own), **chosen),
    )
    yield _case(
        "nets that hold each other",
        lambda p: p.version == 4,
        *at(_set("NetworkSet", "%pool4%", "%near4%/32", "%far4%/31", namespace=own), **chosen),
    )
    yield _case("a set without nets", _nothing, *at(_set("NetworkSet", namespace=own), **chosen))
    yield _case(
        "an address in a set and at a pod",
        lambda p: p.client == "far",
        near_set,
        policy(
            "p",
            selector=SERVERS,
            ingress=[
                rule(
                    "Deny",
                    source={"selector": "app == 'client' || set == 'yes'", "notSelector": "tier == 'back'"},
                ),
                _from("all()"),
            ],
        ),
    )
    yield _case(
        "an egress set",
        lambda p: _outside(p) or (p.server == "srv" and p.version == 6),
        _set("NetworkSet", "%srv6%/128", namespace=own),
        policy("p", selector=CLIENTS, egress=[rule(destination=chosen)]),
    )


# --- rules that take more than one match (2.5) --------------------------------------------------


def _large_rules() -> Iterator[Case]:
    low = [2000, 2002, 2004, 2006, 2008, 2010, 2012, 2014, 2016, 2018, 2020, 2022, 2024, 2026, "1000:1999"]
    near_ext = ["%near4%/32", "%ext4%/32"]

    def large(name: str, expect: Expect, source: Json, destination: Json) -> Case:
        rules = [rule(protocol="TCP", source=source, destination=destination)]
        return _case(f"large rule: {name}", expect, policy("p", selector=SERVERS, ingress=rules))

    def low_web(probe: Probe) -> bool:
        return _web(probe) and probe.low

    yield large("ports of both sides", low_web, {"ports": [*low, 3000]}, {"ports": MANY})
    yield large(
        "ports of both sides and nets",
        lambda p: low_web(p) and p.version == 4 and p.client != "far",
        {"ports": [*low, 3000], "nets": near_ext},
        {"ports": MANY},
    )
    yield large(
        "ports that do not match and nets that do",
        _nothing,
        {"ports": [1, *low[:14], 3000], "nets": near_ext},
        {"ports": MANY},
    )
    yield large(
        "nets of both sides",
        lambda p: _tcp(p) and p.version == 4 and p.client != "far",
        {"nets": near_ext},
        {"nets": ["%srv4%/32", "%alt4%/32"]},
    )
    yield large(
        "nets that do not match behind two that do",
        _nothing,
        {"ports": [*low, 3000], "nets": near_ext},
        {"ports": MANY, "nets": ["10.0.0.0/8", "172.16.0.0/12"]},
    )
    yield large(
        "nets and excepted nets",
        lambda p: _tcp(p) and p.version == 4 and p.client == "far",
        {"nets": ["%pool4%", "10.0.0.0/8"], "notNets": near_ext},
        {},
    )
    yield large(
        "excepted nets of both sides",
        lambda p: _tcp(p) and p.version == 4 and p.client == "far" and p.server == "srv",
        {"notNets": near_ext},
        {"notNets": ["%alt4%/32", "10.0.0.0/8"]},
    )
    yield large(
        "many negated ports",
        lambda p: _tcp(p) and not _web(p) and not p.low,
        {"notPorts": [*low, 3000]},
        {"notPorts": MANY},
    )
    yield large(
        "sixty nets",
        lambda p: _tcp(p) and p.version == 4 and p.client == "far",
        {"nets": [*(f"10.{n}.0.0/16" for n in range(60)), "%far4%/32"]},
        {},
    )
    yield large(
        "names and many numbers",
        lambda p: _tcp(p) and (p.port == 8080 or p.server == "alt"),
        {},
        {"ports": [*MANY, "http"]},
    )
    yield large(
        "all fields",
        lambda p: low_web(p) and p.client == "near" and p.version == 4 and p.server == "srv",
        {
            "ports": [*low, 3000],
            "nets": near_ext,
            "notNets": ["10.0.0.0/8", "%far4%/32"],
            "selector": "app == 'client'",
            "notSelector": "tier == 'back'",
            "notPorts": [5],
        },
        {
            "ports": [*MANY, "http"],
            "nets": ["%srv4%/32", "%alt4%/32"],
            "notNets": ["%alt4%/32"],
            "selector": "role == 'a'",
            "notPorts": ["dns"],
        },
    )


# --- the rest -----------------------------------------------------------------------------------


def _odds() -> Iterator[Case]:
    def at(name: str, expect: Expect, *rules: Json, **spec: Any) -> Case:
        return _case(name, expect, policy("p", selector=SERVERS, ingress=list(rules), **spec))

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
        _nothing,
        rule(protocol="TCP", destination={"ports": ["dns", "signal"]}),
    )
    yield at("a port name nobody has", _nothing, rule(protocol="TCP", destination={"ports": ["nothing"]}))
    yield at("not a port name nobody has", _tcp, rule(protocol="TCP", destination={"notPorts": ["nothing"]}))
    yield at(
        "named port with a selector",
        lambda p: _tcp(p) and p.server == "alt" and p.port == 8081,
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
    yield at("every port there is", _tcp, rule(protocol="TCP", destination={"ports": ["1:65535"]}))
    yield at(
        "both versions by two rules",
        lambda p: p.client == "near",
        rule(source={"nets": ["%near4%/32"]}),
        rule(source={"nets": ["%near6%/128"]}),
    )
    yield at("nets of no pod", _nothing, rule(source={"nets": ["203.0.113.0/24"]}))
    yield at("all of IPv4 by net", lambda p: p.version == 4, rule(source={"nets": ["0.0.0.0/0"]}))
    yield at("all of IPv6 by net", lambda p: p.version == 6, rule(source={"nets": ["::/0"]}))
    yield at("a hint changes nothing", _web, _to(8080), performanceHints=["AssumeNeededOnEveryNode"])
    yield at(
        "annotations change nothing",
        _web,
        {**_to(8080), "metadata": {"annotations": {"who": "somebody; DROP"}}},
    )
    services = {"services": {"name": "web", "namespace": "ns@"}}
    yield _case(
        "a service nobody offers",
        _outside,
        policy("p", selector=CLIENTS, egress=[rule(destination=services)]),
    )
    yield _case(
        "applyOnForward means nothing to pods",
        _web,
        global_policy("p", selector=SERVERS, applyOnForward=True, ingress=[_to(8080)]),
    )
    yield _case(
        "doNotTrack does nothing to pods",
        _everything,
        global_policy("p", selector=SERVERS, applyOnForward=True, doNotTrack=True, ingress=[DENY]),
    )
    yield _case(
        "preDNAT does nothing to pods",
        _everything,
        global_policy(
            "p", selector=SERVERS, applyOnForward=True, preDNAT=True, ingress=[DENY], types=["Ingress"]
        ),
    )
    yield _case(
        "three hundred rules",
        _web,
        policy(
            "p",
            selector=SERVERS,
            ingress=[
                *(_to(port) for port in range(20000, 20300)),
                _to(8080),
            ],
        ),
    )
