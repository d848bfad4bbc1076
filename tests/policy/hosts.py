"""Cases of host endpoints: what a host's own processes send and get, and what it forwards.

All are about node-3: its pods `in3` and `by3` and the host itself `host3` talk to each other, to the pod
`out1` and to the host `host1` of node-1. Only IPv4, because a host endpoint that drops by default drops
IPv6's neighbour discovery too (Calico's does), unless somebody allows ICMPv6.
"""

from collections.abc import Callable, Iterator
from typing import Any

from tests.policy.board import ICMP, TCP, UDP, Case, Expect, Json, Probe, rule, tier

_HERE = ("in3", "by3", "host3")  # on node-3
_ALLOWED = "projectcalico-default-allow"  # a profile that every cluster has
FAILSAFE = 6666  # TCP, in and out

_PATHS = [
    ("out1", "in3"),
    ("in3", "out1"),
    ("in3", "by3"),
    ("host1", "host3"),
    ("host3", "host1"),
    ("host3", "in3"),
    ("in3", "host3"),
    ("host1", "in3"),
    ("host3", "out1"),
]
PROBES = (
    *(Probe(a, b, TCP, port) for a, b in _PATHS for port in (8080, 8081, FAILSAFE)),
    *(Probe(a, b, UDP, port) for a, b in _PATHS for port in (8080, 53)),
    *(Probe(a, b, ICMP, 0) for a, b in _PATHS if "in3" not in (a, b)),
    # Such packets leave with the node's address: a TCP connection would not be known again.
    *(Probe(a, b, UDP, 8080) for a, b in (("out1", "host3"), ("in3", "host1"))),
)


def way(probe: Probe) -> str:
    """How a packet meets node-3: inward or outward (its processes), forward_in, forward_out, or local."""
    come, go = probe.client not in _HERE, probe.server not in _HERE
    if not come and not go:
        return "local"
    own = probe.server == "host3" if come else probe.client == "host3"
    return ("inward" if come else "outward") if own else ("forward_in" if come else "forward_out")


def safe(probe: Probe) -> bool:
    """Whether a failsafe port lets it through at host processes."""
    if probe.protocol == TCP:
        return probe.port == FAILSAFE
    return probe.protocol == UDP and probe.port == 53 and way(probe) == "outward"


def _host(name: str = "h", interface: str = "eth0", **spec: Any) -> Json:
    given = {"node": "node-3", "interfaceName": interface, **spec}
    given = {key: value for key, value in given.items() if value}
    return {
        "kind": "HostEndpoint",
        "metadata": {"name": name, "labels": {"host": "yes", "name": name}},
        "spec": given,
    }


def _policy(name: str = "p", selector: str = "has(host)", **spec: Any) -> Json:
    return {"kind": "GlobalNetworkPolicy", "metadata": {"name": name}, "spec": {"selector": selector, **spec}}


def _to(port: int, action: str = "Allow", protocol: str = "TCP") -> Json:
    return rule(action, protocol=protocol, destination={"ports": [port]})


def _case(name: str, expect: Expect, *resources: Json, probes: tuple[Probe, ...] = PROBES) -> Case:
    return Case(f"hosts: {name}", resources, expect, probes, node3=True)


def _where(**ways: Callable[[Probe], bool] | bool) -> Expect:
    """What passes on each way; what is not named passes. Host processes have their failsafe ports."""

    def expect(probe: Probe) -> bool:
        name = way(probe)
        rules = ways.get(name, True)
        passes = rules if isinstance(rules, bool) else rules(probe)
        return passes or (name in ("inward", "outward") and safe(probe))

    return expect


def _web(probe: Probe) -> bool:
    return probe.protocol == TCP and probe.port == 8080


def _not_udp(probe: Probe) -> bool:
    return probe.protocol != UDP


def cases() -> Iterator[Case]:
    yield from _normal()
    yield from _which()
    yield from _forward()
    yield from _early()
    yield from _between()


_DROPPED = _where(inward=False, outward=False)
_WEB_IN: dict[str, Any] = {"types": ["Ingress"], "ingress": [_to(8080)]}
_WEB_OUT: dict[str, Any] = {"types": ["Egress"], "egress": [_to(8080)]}


def _normal() -> Iterator[Case]:
    """To and from the host's own processes."""
    open_host = _host(profiles=[_ALLOWED])
    yield _case("none", _where())
    yield _case("no policy, no profile: only failsafe ports", _DROPPED, _host())
    yield _case("no policy, a profile that allows", _where(), open_host)
    yield _case("a profile that does not exist", _DROPPED, _host(profiles=["nothing"]))
    yield _case("ingress policy, no profile", _where(inward=_web, outward=False), _host(), _policy(**_WEB_IN))
    yield _case("ingress policy and a profile", _where(inward=_web), open_host, _policy(**_WEB_IN))
    yield _case("egress policy and a profile", _where(outward=_web), open_host, _policy(**_WEB_OUT))
    yield _case(
        "policies of both directions",
        _where(inward=_web, outward=_web),
        _host(),
        _policy(ingress=[_to(8080)], egress=[_to(8080)]),
    )
    yield _case(
        "deny by network",
        _where(inward=lambda p: p.client != "host1"),
        open_host,
        _policy(types=["Ingress"], ingress=[rule("Deny", source={"nets": ["%host14%/32"]}), rule("Allow")]),
        probes=tuple(probe for probe in PROBES if probe.client != "out1"),  # it comes with host1's address
    )
    yield _case(
        "a tier that passes on",
        _where(inward=lambda p: p.protocol == TCP and p.port != 8081),
        open_host,
        tier("t", 1),
        _policy("t.p", tier="t-c@", types=["Ingress"], ingress=[_to(8081, "Deny"), rule("Pass")]),
        _policy(types=["Ingress"], ingress=[rule(protocol="TCP")]),
    )
    yield _case(
        "for pods only",
        _where(),
        open_host,
        _policy(selector="all()", namespaceSelector="has(nothing)", types=["Ingress"]),
    )
    staged = _policy(types=["Ingress", "Egress"]) | {"kind": "StagedGlobalNetworkPolicy"}
    yield _case("a staged policy", _where(), open_host, staged)


def _which() -> Iterator[Case]:
    """Which endpoint stands for an interface."""
    by_address = _host(interface="", expectedIPs=["%host34%"])
    yield _case("found by address", _DROPPED, by_address)
    yield _case("of another address", _where(), _host(interface="", expectedIPs=["203.0.113.1"]))
    yield _case("of another interface", _where(), _host(interface="eth7"))
    yield _case("of all interfaces", _DROPPED, _host(interface="*"))
    yield _case(
        "of all interfaces, with a policy",
        _where(inward=_web, outward=_web),
        _host(interface="*"),
        _policy(ingress=[_to(8080)], egress=[_to(8080)]),
    )
    yield _case(
        "the interface's own goes before that of all",
        _where(),
        _host("z", profiles=[_ALLOWED]),
        _host("a", interface="*"),
    )
    yield _case("two: the smaller name", _where(), _host("a", profiles=[_ALLOWED]), _host("b"))
    yield _case("two: the smaller name, turned round", _DROPPED, _host("a"), _host("b", profiles=[_ALLOWED]))


def _forward() -> Iterator[Case]:
    """What the host passes on, to and from its pods."""
    open_host = _host(profiles=[_ALLOWED])
    forward: dict[str, Any] = {"applyOnForward": True}
    yield _case("ingress", _where(inward=_web, forward_in=_web), open_host, _policy(**forward, **_WEB_IN))
    yield _case("egress", _where(outward=_web, forward_out=_web), open_host, _policy(**forward, **_WEB_OUT))
    yield _case(
        "both",
        _where(inward=_web, outward=_web, forward_in=_web, forward_out=_web),
        _host(),
        _policy(**forward, ingress=[_to(8080)], egress=[_to(8080)]),
    )
    yield _case(
        "pass leaves it to the pod",
        _where(inward=_not_udp, forward_in=_not_udp),
        open_host,
        _policy(**forward, types=["Ingress"], ingress=[rule("Deny", protocol="UDP"), rule("Pass")]),
    )
    yield _case(
        "without the flag nothing is forwarded differently",
        _where(inward=False),
        open_host,
        _policy(types=["Ingress"]),
    )
    pings = [rule(protocol="ICMP"), rule(protocol="ICMPv6")]  # the canary's
    without = tuple(p for p in PROBES if p.protocol != ICMP)

    def all_pods(probe: Probe) -> bool:
        """The endpoint of all interfaces sees what comes from and goes to pods, of this host too."""
        pods = {"in3", "by3", "out1"}
        if "host3" in (probe.client, probe.server):
            return "out1" in (probe.client, probe.server) or way(probe) == "local"
        return _web(probe) or not pods & {probe.client, probe.server}

    every = _host(interface="*", profiles=[_ALLOWED])
    for direction in ("ingress", "egress"):
        spec: dict[str, Any] = {"types": [direction.capitalize()], direction: [*pings, _to(8080)]}
        own = "inward" if direction == "ingress" else "outward"

        def expect(probe: Probe, own: str = own) -> bool:
            if way(probe) in ("inward", "outward"):
                return way(probe) != own or _web(probe) or safe(probe)
            return all_pods(probe)

        yield _case(
            f"of all interfaces, {direction}", expect, every, _policy(**forward, **spec), probes=without
        )


def _early() -> Iterator[Case]:
    """Before translation, and before connection tracking."""
    open_host = _host(profiles=[_ALLOWED])
    early: dict[str, Any] = {"applyOnForward": True, "preDNAT": True, "types": ["Ingress"]}
    no_udp = [rule("Deny", protocol="UDP")]
    yield _case(
        "preDNAT deny",
        _where(inward=_not_udp, forward_in=_not_udp),
        open_host,
        _policy(**early, ingress=no_udp),
    )
    yield _case(
        "preDNAT allow ends it",
        _where(inward=_web),
        open_host,
        _policy("a", **early, ingress=[_to(8080)]),
        _policy("b", types=["Ingress"]),
    )
    yield _case(
        "preDNAT allow goes before forward policies",
        _where(inward=_web, forward_in=_web),
        open_host,
        _policy("a", **early, ingress=[_to(8080)]),
        _policy("b", applyOnForward=True, types=["Ingress"]),
    )
    untracked: dict[str, Any] = {"applyOnForward": True, "doNotTrack": True}
    yield _case(
        "untracked deny",
        _where(inward=_not_udp, forward_in=_not_udp),
        open_host,
        _policy(**untracked, types=["Ingress"], ingress=no_udp),
    )
    yield _case(
        "untracked egress deny",
        _where(outward=_not_udp),
        open_host,
        _policy(**untracked, types=["Egress"], egress=no_udp),
    )
    reply = rule(protocol="TCP", source={"ports": [8080]})
    yield _case(
        "untracked allow, both ways",
        _where(inward=_web, outward=False),
        _host(),
        _policy(**untracked, ingress=[_to(8080)], egress=[reply]),
        # A pod's own rules would take the reply of a connection that nobody tracks for an invalid packet.
        probes=tuple(p for p in PROBES if "in3" not in (p.client, p.server)),
    )
    yield _case(
        "untracked, of all interfaces: nothing",
        _where(),
        _host(interface="*", profiles=[_ALLOWED]),
        _policy(**untracked, types=["Ingress"], ingress=no_udp),
    )


def _between() -> Iterator[Case]:
    """Hosts as peers of pods, and pods with their own host."""
    pods: dict[str, Any] = {"selector": "app in {'in3', 'by3'} && cell == 'c@'"}
    peer = _host("other", interface="eth7", expectedIPs=["%host14%"])
    yield _case(
        "a host endpoint as a peer",
        lambda p: p.server != "in3" or p.client in ("host1", "host3"),
        peer,
        _policy(
            selector="app == 'in3'", types=["Ingress"], ingress=[rule(source={"selector": "name == 'other'"})]
        ),
    )
    yield _case(
        "a host reaches its own pods whatever they deny",
        lambda p: p.server not in ("in3", "by3") or p.client == "host3",
        _policy(**pods, types=["Ingress"]),
    )
    yield _case(
        "a pod's own policy decides what it may send to its host",
        lambda p: p.client != "in3" or _web(p),
        _policy(**pods, types=["Egress"], egress=[_to(8080)]),
    )
