"""Policies by chance, such as nobody would write, for yardstick, oracle and kernel to agree on."""

from typing import Any

from hypothesis import strategies as st

from tests.policy.board import Json, rule

_SELECTORS = [
    "app == 'server'", "app == 'client'", "tier == 'front'", "tier != 'front'", "role == 'a'", "role != 'a'",
    "has(role)", "!has(role)", "all()", "tier in {'front', 'back'}", "set == 'c@'", "app == 'none'",
    "set == 'c@' || tier == 'front'", "pcns.env == 'dev'", "has(pcsa.team) && !(tier == 'back')",
]  # fmt: skip
_NAMESPACES = ["all()", "env == 'prod'", "env == 'dev'", "env != 'prod'", "has(none)", "global()",
               "projectcalico.org/name == 'other@'"]  # fmt: skip
_ACCOUNTS: list[Json] = [
    {"names": ["bot"]}, {"names": ["bot", "x"], "selector": "has(team)"}, {"selector": "team == 'a'"},
    {"selector": "all()"}, {"selector": "team != 'a'"},
]  # fmt: skip
_NETS = {
    4: ["%near4%/32", "%far4%/32", "%ext4%/32", "%srv4%/32", "%alt4%/32", "%pool4%", "10.0.0.0/8"],
    6: ["%near6%/128", "%far6%/128", "%ext6%/128", "%srv6%/128", "%alt6%/128", "%pool6%", "fd77::/64"],
}
_PORTS: list[int | str] = [
    8080,
    8081,
    "8000:8080",
    "8081:9000",
    5353,
    "1000:1999",
    "http",
    "dns",
    "signal",
    "none",
]
_MANY: list[int | str] = [*range(2001, 2031, 2), 8080]
_WITH_PORTS = ("TCP", "UDP", "SCTP", 6, 17)


def _some(values: list[Any], most: int = 2) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


@st.composite
def _sides(draw: st.DrawFn, protocol: Any, version: int, numbers: bool) -> Json:
    """One side of a rule; each field is there in one case of four or less."""
    side: Json = {}

    def sometimes(name: str, values: st.SearchStrategy[Any], seldom: int = 4) -> None:
        if draw(st.integers(1, seldom)) == 1:
            side[name] = draw(values)

    sometimes("selector", st.sampled_from(_SELECTORS), 3)
    sometimes("notSelector", st.sampled_from(_SELECTORS), 6)
    sometimes("namespaceSelector", st.sampled_from(_NAMESPACES), 6)
    sometimes("serviceAccounts", st.sampled_from(_ACCOUNTS), 8)
    sometimes("nets", _some(_NETS[version], 3), 6)
    sometimes("notNets", _some(_NETS[version], 3), 6)
    if protocol in _WITH_PORTS:
        some = st.one_of(_some(_PORTS, 3), st.just(_MANY))
        sometimes("ports", some, 3 if numbers else 8)
        sometimes("notPorts", some, 8)
    elif protocol is None and numbers:
        sometimes("ports", _some(["http", "dns", "signal"]), 8)
    return side


@st.composite
def rules(draw: st.DrawFn) -> Json:
    action = draw(st.sampled_from(["Allow"] * 4 + ["Deny", "Deny", "Pass", "Log"]))
    version = draw(st.sampled_from([4, 6]))
    protocols = [None, None, "TCP", "TCP", "UDP", "SCTP", 17, "ICMP" if version == 4 else "ICMPv6", 253]
    protocol = draw(st.sampled_from(protocols))
    fields: Json = {}
    if protocol is not None:
        fields["protocol"] = protocol
    elif draw(st.integers(1, 6)) == 1:
        fields["notProtocol"] = draw(st.sampled_from(["TCP", 17, "SCTP"]))
    if protocol in ("ICMP", "ICMPv6") and draw(st.booleans()):
        kind = 8 if version == 4 else 128
        name = draw(st.sampled_from(["icmp", "notICMP"]))
        fields[name] = draw(st.sampled_from([{"type": kind}, {"type": kind, "code": 1}, {"type": 5}]))
        if name == "notICMP":  # the dataplanes differ, as Calico's do, in what a negated code means
            fields[name].pop("code", None)
    source = draw(_sides(protocol, version, False))
    destination = draw(_sides(protocol, version, "notProtocol" not in fields))
    limited = any(side.keys() & {"nets", "notNets"} for side in (source, destination))
    if (limited or protocol is None) and draw(st.integers(1, 6)) == 1:
        fields["ipVersion"] = version
    return rule(action, **fields, source=source, destination=destination)


@st.composite
def policies(draw: st.DrawFn, number: int, tiers: list[str], hosts: bool) -> Json:
    kind = draw(st.sampled_from(["NetworkPolicy", "GlobalNetworkPolicy"]))
    tier = draw(st.sampled_from(tiers))
    lists = draw(st.sampled_from([("ingress",), ("egress",), ("ingress", "egress"), ()]))
    spec: Json = {name: draw(st.lists(rules(), max_size=4)) for name in lists}
    spec = {name: value for name, value in spec.items() if value}
    types = draw(st.sampled_from([(), ("Ingress",), ("Egress",), ("Ingress", "Egress")]))
    spec |= {"tier": tier, "types": list(types)}
    order = draw(st.sampled_from([None, 1, 2, 2.5]))
    if order is not None:
        spec["order"] = order
    selector = draw(st.sampled_from(_SELECTORS))
    meta: Json = {"name": f"{tier}.p{number}-c@"}
    if kind == "NetworkPolicy":
        meta["namespace"] = draw(st.sampled_from(["ns@", "ns@", "other@"]))
        spec["selector"] = selector
    else:
        spec["selector"] = f"({selector}) && cell == 'c@'"
        if draw(st.integers(1, 4)) == 1:
            spec["namespaceSelector"] = draw(st.sampled_from(_NAMESPACES[:5]))
        if hosts:
            spec |= draw(_for_hosts(spec))
    if draw(st.integers(1, 6)) == 1:
        spec["serviceAccountSelector"] = draw(st.sampled_from(["all()", "team == 'a'", "has(team)"]))
    return {"kind": kind, "metadata": meta, "spec": spec}


@st.composite
def _for_hosts(draw: st.DrawFn, spec: Json) -> Json:
    if draw(st.booleans()):
        return {}
    flag = draw(st.sampled_from(["", "", "", "preDNAT", "doNotTrack"]))
    if flag == "preDNAT" and ("egress" in spec or "Egress" in spec["types"]):
        flag = ""
    more: Json = {"selector": draw(st.sampled_from(["has(host)", "host == 'one'", "all()"]))}
    if flag or draw(st.booleans()):
        more["applyOnForward"] = True
    return more | ({flag: True} if flag else {})


@st.composite
def _tiers(draw: st.DrawFn) -> list[Json]:
    made = []
    for name in draw(st.sampled_from([[], ["a"], ["a", "b"], ["b", "z"]])):
        spec: Json = {"defaultAction": draw(st.sampled_from(["Deny", "Pass"]))}
        if draw(st.booleans()):
            spec["order"] = draw(st.sampled_from([1, 2, 2_000_000]))
        made.append({"kind": "Tier", "metadata": {"name": f"{name}-c@"}, "spec": spec})
    return made


@st.composite
def _sets(draw: st.DrawFn, wide: bool) -> list[Json]:
    made = []
    possible = [net for net in (*_NETS[4], *_NETS[6]) if wide or not net.startswith("%pool")]
    for kind, namespace in (("NetworkSet", "ns@"), ("NetworkSet", "other@"), ("GlobalNetworkSet", "")):
        if draw(st.integers(1, 3)) == 1:
            meta: Json = {
                "name": "set-c@",
                "labels": {"set": "c@", "tier": draw(st.sampled_from(["front", "x"]))},
            }
            if namespace:
                meta["namespace"] = namespace
            nets = draw(_some([*possible, *(["0.0.0.0/0", "::/0"] if wide else [])], 3))
            made.append({"kind": kind, "metadata": meta, "spec": {"nets": nets}})
    return made


@st.composite
def _hosts(draw: st.DrawFn) -> list[Json]:
    made = []
    for number in range(draw(st.integers(0, 2))):
        node = draw(st.sampled_from(["node-1", "node-2"]))
        spec: Json = {"node": node}
        match draw(st.sampled_from(["eth0", "*", "addresses"])):
            case "addresses":
                spec["expectedIPs"] = ["%host14%" if node == "node-1" else "%host24%"]
            case name:
                spec["interfaceName"] = name
        if draw(st.booleans()):
            spec["profiles"] = ["projectcalico-default-allow"]
        labels = {"host": draw(st.sampled_from(["one", "two"])), "app": "client", "cell": "c@"}
        made.append(
            {"kind": "HostEndpoint", "metadata": {"name": f"h{number}", "labels": labels}, "spec": spec}
        )
    return made


@st.composite
def resources(draw: st.DrawFn, hosts: bool = False, wide: bool = True) -> list[Json]:
    """Tiers, sets, policies and, if asked for, host endpoints, for one cell.

    Without `wide` no network set holds addresses of other cells, whose global policies might choose it by
    its namespace's labels.
    """
    tiers = draw(_tiers())
    known = ["default", *(one["metadata"]["name"] for one in tiers)]
    wanted = draw(st.integers(1, 5))
    made = [draw(policies(number, known, hosts)) for number in range(wanted)]
    return [*tiers, *draw(_sets(wide)), *(draw(_hosts()) if hosts else []), *made]
