"""Cases written by hand: whom policies and rules select, by labels, sets and in rules of many parts."""

from collections.abc import Iterator
from typing import Any

from tests.policy.board import Case, Expect, Json, Probe, global_policy, policy, rule
from tests.policy.fields import MANY
from tests.policy.scenarios import (
    CLIENTS,
    SERVERS,
    case,
    everything,
    from_peers,
    nothing,
    outside,
    tcp,
    web,
)


def cases() -> Iterator[Case]:
    yield from _selections()
    yield from _operators()
    yield from _sets()
    yield from _large_rules()


# --- whom a policy selects (2.2) ----------------------------------------------------------------


def _selections() -> Iterator[Case]:
    drop: dict[str, Any] = {"types": ["Ingress"]}
    yield case(
        "by the namespace's label",
        lambda p: p.server != "srv",
        policy("p", selector="role == 'a' && pcns.env == 'prod'", **drop),
    )
    yield case(
        "global, by labels", lambda p: p.server != "alt", global_policy("p", selector="role == 'b'", **drop)
    )
    yield case(
        "global, with namespaceSelector",
        nothing,
        global_policy("p", namespaceSelector="env == 'prod'", **drop),
    )
    yield case(
        "global, with another namespaceSelector",
        everything,
        global_policy("p", namespaceSelector="env == 'dev'", **drop),
    )
    yield case(
        "global, namespaceSelector by name",
        nothing,
        global_policy("p", namespaceSelector="projectcalico.org/name == 'ns@'", **drop),
    )
    egress: dict[str, Any] = {"types": ["Egress"]}
    yield case(
        "by serviceAccountSelector",
        lambda p: p.client != "near",
        policy("p", serviceAccountSelector="team == 'a'", **egress),
    )
    yield case(
        "serviceAccountSelector and selector",
        everything,
        policy("p", selector="tier == 'back'", serviceAccountSelector="has(team)", **egress),
    )
    yield case(
        "serviceAccountSelector by name",
        lambda p: p.client != "near",
        policy("p", serviceAccountSelector="projectcalico.org/name == 'bot'", **egress),
    )
    yield case(
        "global, by serviceAccountSelector",
        lambda p: p.client == "far",
        global_policy("p", serviceAccountSelector="all()", **egress),
    )
    yield case(
        "global, by both",
        lambda p: p.client != "ext",
        global_policy("p", namespaceSelector="env == 'dev'", serviceAccountSelector="team == 'b'", **egress),
    )
    yield case(
        "the namespace is a label",
        lambda p: p.client != "ext",
        global_policy("p", selector="projectcalico.org/namespace == 'other@'", **egress),
    )
    yield case(
        "the service account is a label",
        lambda p: p.client == "far",
        global_policy("p", selector="projectcalico.org/serviceaccount == 'bot'", **egress),
    )

    def peers(expect: Expect, name: str, **source: Any) -> Case:
        rules = [rule(source=source)]
        return case(f"global, peers: {name}", expect, global_policy("p", selector=SERVERS, ingress=rules))

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
    yield peers(nothing, "global() is no pod", namespaceSelector="global()", selector=here)
    yield peers(everything, "all namespaces", namespaceSelector="all()", selector=here)


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
        ("!has(tier)", nothing),
        ("!has(role) && !tier == 'back'", near),
        ("tier == 'back' || tier == 'front'", inside),
        ("(tier == 'back' || app == 'server') && app == 'client'", far),
        ("tier in {}", nothing),
        ("tier not in {}", inside),
        ("all()", inside),
        ("projectcalico.org/orchestrator == 'k8s'", inside),
        ('app == "client"', inside),
        ("app == ''", nothing),
        ("pcns.env == 'prod' && tier == 'front'", near),
        ("pcsa.team == 'a'", near),
    ]:
        yield case(
            f"selector {text}",
            expect,
            policy("p", selector=SERVERS, ingress=[from_peers(text)], types=["Ingress"]),
        )


# --- network sets -------------------------------------------------------------------------------


def _set(kind: str, *nets: str, namespace: str = "") -> Json:
    meta: Json = {"name": "set-c@", "labels": {"set": "yes", "cell": "c@"}}
    if namespace:
        meta["namespace"] = namespace
    return {"kind": kind, "metadata": meta, "spec": {"nets": list(nets)}}


def _sets() -> Iterator[Case]:
    """Some hold addresses of other cells: cases beside them must not choose sets by namespace only."""
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
    yield case("a network set of the namespace", near4, *at(near_set, **chosen))
    yield case("a network set of another namespace", nothing, *at(far_set, **chosen))
    yield case("network sets of all namespaces", near4, *at(far_set, **chosen, **every))
    yield case(
        "a network set by its namespace's labels",
        near4,
        *at(near_set, selector="set == 'yes' && pcns.env == 'prod'"),
    )
    yield case("a global set is in no namespace", nothing, *at(free_set, **chosen))
    yield case("a global set by global()", near4, *at(free_set, **chosen, namespaceSelector="global()"))
    yield case("a global set is in none of all namespaces", nothing, *at(free_set, **chosen, **every))
    yield case("a global set in a global policy", near4, *globally(free_set, **chosen))
    yield case("a namespace's set in a global policy", near4, *globally(near_set, **chosen))
    yield case(
        "not in a global set", lambda p: not near4(p), *globally(free_set, notSelector=chosen["selector"])
    )
    both = _set("NetworkSet", "%near4%/32", "%far6%/128", "%ext4%", "10.0.0.0/8", namespace=own)
    yield case(
        "a set of both versions",
        lambda p: (p.client, p.version) in {("near", 4), ("far", 6), ("ext", 4)},
        *at(both, **chosen),
    )
    yield case(
        "everything of IPv4",
        lambda p: p.version == 4,
        *at(_set("NetworkSet", "0.0.0.0/0", namespace=own), **chosen),
    )
    yield case(
        "everything of IPv6",
        lambda p: p.version == 6,
        *at(_set("NetworkSet", "::/0", namespace=own), **chosen),
    )
    yield case(
        "nets that hold each other",
        lambda p: p.version == 4,
        *at(_set("NetworkSet", "%pool4%", "%near4%/32", "%far4%/31", namespace=own), **chosen),
    )
    yield case("a set without nets", nothing, *at(_set("NetworkSet", namespace=own), **chosen))
    yield case(
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
                from_peers("all()"),
            ],
        ),
    )
    yield case(
        "an egress set",
        lambda p: outside(p) or (p.server == "srv" and p.version == 6),
        _set("NetworkSet", "%srv6%/128", namespace=own),
        policy("p", selector=CLIENTS, egress=[rule(destination=chosen)]),
    )


# --- rules that take more than one match (2.5) --------------------------------------------------


def _large_rules() -> Iterator[Case]:
    low = [2000, 2002, 2004, 2006, 2008, 2010, 2012, 2014, 2016, 2018, 2020, 2022, 2024, 2026, "1000:1999"]
    near_ext = ["%near4%/32", "%ext4%/32"]

    def large(name: str, expect: Expect, source: Json, destination: Json) -> Case:
        rules = [rule(protocol="TCP", source=source, destination=destination)]
        return case(f"large rule: {name}", expect, policy("p", selector=SERVERS, ingress=rules))

    def low_web(probe: Probe) -> bool:
        return web(probe) and probe.low

    yield large("ports of both sides", low_web, {"ports": [*low, 3000]}, {"ports": MANY})
    yield large(
        "ports of both sides and nets",
        lambda p: low_web(p) and p.version == 4 and p.client != "far",
        {"ports": [*low, 3000], "nets": near_ext},
        {"ports": MANY},
    )
    yield large(
        "ports that do not match and nets that do",
        nothing,
        {"ports": [1, *low[:14], 3000], "nets": near_ext},
        {"ports": MANY},
    )
    yield large(
        "nets of both sides",
        lambda p: tcp(p) and p.version == 4 and p.client != "far",
        {"nets": near_ext},
        {"nets": ["%srv4%/32", "%alt4%/32"]},
    )
    yield large(
        "nets that do not match behind two that do",
        nothing,
        {"ports": [*low, 3000], "nets": near_ext},
        {"ports": MANY, "nets": ["10.0.0.0/8", "172.16.0.0/12"]},
    )
    yield large(
        "nets and excepted nets",
        lambda p: tcp(p) and p.version == 4 and p.client == "far",
        {"nets": ["%pool4%", "10.0.0.0/8"], "notNets": near_ext},
        {},
    )
    yield large(
        "excepted nets of both sides",
        lambda p: tcp(p) and p.version == 4 and p.client == "far" and p.server == "srv",
        {"notNets": near_ext},
        {"notNets": ["%alt4%/32", "10.0.0.0/8"]},
    )
    yield large(
        "many negated ports",
        lambda p: tcp(p) and not web(p) and not p.low,
        {"notPorts": [*low, 3000]},
        {"notPorts": MANY},
    )
    yield large(
        "sixty nets",
        lambda p: tcp(p) and p.version == 4 and p.client == "far",
        {"nets": [*(f"10.{n}.0.0/16" for n in range(60)), "%far4%/32"]},
        {},
    )
    yield large(
        "names and many numbers",
        lambda p: tcp(p) and (p.port == 8080 or p.server == "alt"),
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
