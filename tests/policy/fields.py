"""Every field of a rule, alone and in pairs.

Each row says, beside the field, which packets it speaks of: as a person reads it in the specification. A
pair speaks of what both speak of. That is all there is to a rule.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations

from tests.policy.board import ICMP, ICMP6, SCTP, STANDARD, TCP, UDP, Case, Json, Probe, policy, rule

Holds = Callable[[Probe], bool]


@dataclass(frozen=True)
class Field:
    """`holds` looks at labels only where the field is a selector: which namespaces it means depends on
    the other fields of its side, see _limited.
    """

    name: str
    fragment: Json
    holds: Holds


def _src(name: str, holds: Holds, **fragment: object) -> Field:
    return Field(f"source {name}", {"source": fragment}, holds)


def _dst(name: str, holds: Holds, **fragment: object) -> Field:
    return Field(f"destination {name}", {"destination": fragment}, holds)


def _whole(name: str, holds: Holds, **fragment: object) -> Field:
    return Field(name, fragment, holds)


def _named(probe: Probe, name: str) -> bool:
    """Whether the packet goes to the server's own port of this name."""
    protocols = {"http": TCP, "dns": UDP, "signal": SCTP}
    own = {
        ("srv", "http"): 8080, ("alt", "http"): 8081, ("srv", "dns"): 5353, ("alt", "dns"): 8080,
        ("srv", "signal"): 8080, ("alt", "signal"): 9000,
    }  # fmt: skip
    return probe.protocol == protocols[name] and probe.port == own[probe.server, name]


MANY = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 8080, "8100:8200", 8300]  # more than one match takes

FIELDS = [
    # -- source
    _src("nets", lambda p: p.version == 4 and p.client == "near", nets=["%near4%/32"]),
    _src("nets IPv6", lambda p: p.version == 6 and p.client == "near", nets=["%near6%/128"]),
    _src("two nets", lambda p: p.version == 4 and p.client != "far", nets=["%near4%/32", "%ext4%/32"]),
    _src("notNets", lambda p: p.version == 4 and p.client != "near", notNets=["%near4%/32"]),
    _src("notNets IPv6", lambda p: p.version == 6 and p.client != "near", notNets=["%near6%/128"]),
    _src("two notNets", lambda p: p.version == 4 and p.client == "far", notNets=["%near4%/32", "%ext4%/32"]),
    _src(
        "nets but notNets",
        lambda p: p.version == 4 and p.client != "near",
        nets=["%pool4%"],
        notNets=["%near4%/32"],
    ),
    _src("selector", lambda p: p.tier == "front", selector="tier == 'front'"),
    _src("selector !=", lambda p: p.tier != "front", selector="tier != 'front'"),
    _src("notSelector", lambda p: p.tier != "front", notSelector="tier == 'front'"),
    _src(
        "selector but notSelector",
        lambda p: p.tier == "front",
        selector="app == 'client'",
        notSelector="tier == 'back'",
    ),
    _src("namespaceSelector", lambda p: p.space == "other", namespaceSelector="env == 'dev' && has(env)"),
    _src("namespaceSelector all", lambda p: True, namespaceSelector="all()"),
    _src(
        "namespaceSelector and selector",
        lambda p: p.client != "far",
        namespaceSelector="all()",
        selector="tier == 'front'",
    ),
    _src("serviceAccounts names", lambda p: p.client != "far", serviceAccounts={"names": ["bot", "nobody"]}),
    _src(
        "serviceAccounts selector", lambda p: p.client == "near", serviceAccounts={"selector": "team == 'a'"}
    ),
    _src("ports", lambda p: p.low, ports=["1000:1999"]),
    _src("notPorts", lambda p: not p.low, notPorts=["1000:1999"]),
    # -- destination
    _dst("nets", lambda p: p.version == 4 and p.server == "srv", nets=["%srv4%/32"]),
    _dst("nets IPv6", lambda p: p.version == 6 and p.server == "srv", nets=["%srv6%/128"]),
    _dst("two nets", lambda p: p.version == 4, nets=["%srv4%/32", "%alt4%/32"]),
    _dst("notNets", lambda p: p.version == 4 and p.server != "srv", notNets=["%srv4%/32"]),
    _dst("selector", lambda p: p.server == "srv", selector="role == 'a'"),
    _dst("notSelector", lambda p: p.server != "srv", notSelector="role == 'a'"),
    _dst("namespaceSelector", lambda p: True, namespaceSelector="env == 'prod'"),
    _dst("namespaceSelector of none", lambda p: False, namespaceSelector="env == 'test'"),
    _dst("port", lambda p: p.port == 8080, ports=[8080]),
    _dst("port range", lambda p: p.port in (8080, 8081), ports=["8080:8090"]),
    _dst("many ports", lambda p: p.port == 8080, ports=MANY),
    _dst("named ports", lambda p: _named(p, "http"), ports=["http"]),
    _dst(
        "number and name",
        lambda p: p.port == 8081 or _named(p, "http"),
        ports=[8081, "http"],
    ),
    _dst("notPorts", lambda p: p.port != 8080, notPorts=[8080]),
    _dst("named notPorts", lambda p: not _named(p, "http"), notPorts=["http"]),
    # -- the whole rule
    _whole("protocol name", lambda p: p.protocol == TCP, protocol="TCP"),
    _whole("protocol number", lambda p: p.protocol == UDP, protocol=17),
    _whole("protocol SCTP", lambda p: p.protocol == SCTP, protocol="SCTP"),
    _whole("protocol ICMP", lambda p: p.protocol == ICMP, protocol="ICMP"),
    _whole("protocol ICMPv6", lambda p: p.protocol == ICMP6, protocol="ICMPv6"),
    _whole("protocol without a name", lambda p: p.protocol == 253, protocol=253),
    _whole("notProtocol", lambda p: p.protocol != TCP, notProtocol="TCP"),
    _whole("notProtocol number", lambda p: p.protocol != UDP, notProtocol=17),
    _whole("ipVersion 4", lambda p: p.version == 4, ipVersion=4),
    _whole("ipVersion 6", lambda p: p.version == 6, ipVersion=6),
    _whole(
        "icmp type",
        lambda p: p.protocol == ICMP and p.icmp[0] == 8,
        protocol="ICMP",
        icmp={"type": 8},
    ),
    _whole(
        "icmp type and code",
        lambda p: p.protocol == ICMP and p.icmp == (8, 1),
        protocol="ICMP",
        icmp={"type": 8, "code": 1},
    ),
    _whole(
        "icmp of IPv6",
        lambda p: p.protocol == ICMP6 and p.icmp[0] == 128,
        protocol="ICMPv6",
        icmp={"type": 128},
    ),
    _whole(
        "notICMP",
        lambda p: p.protocol == ICMP and p.icmp[0] != 8,
        protocol="ICMP",
        notICMP={"type": 8},
    ),
]


def _limited(fragment: Json, holds: Holds) -> Holds:
    """A policy's own namespace is meant wherever a peer is chosen by labels and no namespaces are given."""
    source = fragment.get("source", {}).keys()
    if source & {"selector", "notSelector", "serviceAccounts"} and "namespaceSelector" not in source:
        return lambda p: p.space == "ns" and holds(p)
    return holds  # all servers are of that namespace


def combined(one: Field, other: Field) -> tuple[Json, Holds] | None:
    """The rule that has both fields, and what it speaks of; None if both are the same field."""
    merged = deepcopy(one.fragment)
    for name, value in other.fragment.items():
        if name not in merged:
            merged[name] = value
        elif name in ("source", "destination") and not merged[name].keys() & value.keys():
            merged[name] = merged[name] | value
        else:
            return None
    return completed(merged, lambda p: one.holds(p) and other.holds(p))


def completed(fragment: Json, holds: Holds) -> tuple[Json, Holds] | None:
    """With TCP if ports need a protocol and none is given. None if that is one without ports, or negated."""
    holds = _limited(fragment, holds)
    sides = [fragment.get(side, {}).keys() for side in ("source", "destination")]
    ports = any(side & {"ports", "notPorts"} for side in sides)
    if "notProtocol" in fragment and (ports or "protocol" in fragment):
        return None
    if not ports:
        return fragment, holds
    if fragment.get("protocol", "TCP") not in ("TCP", 17, "SCTP"):
        return None
    if "protocol" in fragment:
        return fragment, holds
    return fragment | {"protocol": "TCP"}, lambda p: p.protocol == TCP and holds(p)


def _versions(fragment: Json) -> set[int]:
    """What IP versions a rule can be about, where it says so; Calico refuses a rule that names both."""
    found = {"ICMP": {4}, "ICMPv6": {6}}.get(str(fragment.get("protocol")), set())
    if "ipVersion" in fragment:
        found = found | {fragment["ipVersion"]}
    for side in ("source", "destination"):
        for nets in ("nets", "notNets"):
            found = found | {6 if "6%" in net else 4 for net in fragment.get(side, {}).get(nets, ())}
    return found


def _rules() -> Iterator[tuple[str, Json, Holds]]:
    for one in FIELDS:
        alone = completed(one.fragment, one.holds)
        if alone is not None:
            yield one.name, *alone
    for one, other in combinations(FIELDS, 2):
        both = combined(one, other)
        if both is not None and len(_versions(both[0])) < 2:
            yield f"{one.name} + {other.name}", *both


def _case(name: str, direction: str, fragment: Json, holds: Holds, action: str = "Allow") -> Case:
    """The rule at the servers, at the clients of the namespace, or at all of them."""
    rules = [rule(action, **fragment)]
    if action == "Deny":
        rules.append(rule("Allow"))
    selected, sides = {
        "ingress": ("app == 'server'", ["ingress"]),
        "egress": ("app == 'client'", ["egress"]),
        "both": ("all()", ["ingress", "egress"]),
    }[direction]
    spec = dict.fromkeys(sides, rules)
    types = [side.capitalize() for side in sides]

    def expect(probe: Probe) -> bool:
        if direction == "egress" and probe.space == "other":
            return True  # the policy is not theirs
        return holds(probe) == (action == "Allow")

    one = policy("p", selector=selected, types=types, **spec)
    return Case(f"{direction}, {action}: {name}", (one,), expect, STANDARD)


def cases() -> Iterator[Case]:
    """Alone in all directions, allowed and denied; pairs in one direction after the other."""
    directions = ("ingress", "egress", "both")
    for number, (name, fragment, holds) in enumerate(_rules()):
        if number < len(FIELDS):
            for direction in directions:
                yield _case(name, direction, fragment, holds)
            yield _case(name, directions[number % 2], fragment, holds, "Deny")
        else:
            yield _case(name, directions[number % 3], fragment, holds)
