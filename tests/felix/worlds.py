"""Random small clusters for the truth tests: objects of the datastore around one node, and packets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.felix import spec
from tortie.datastore.keys import ResourceKey, key_of
from tortie.datastore.types.endpoint import (
    EndpointPort,
    HostEndpoint,
    HostEndpointSpec,
    WorkloadEndpoint,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.policy import (
    EntityRule,
    GlobalNetworkPolicy,
    GlobalNetworkPolicySpec,
    GlobalNetworkSet,
    GlobalNetworkSetSpec,
    ICMPFields,
    NetworkPolicy,
    NetworkPolicySpec,
    NetworkSet,
    NetworkSetSpec,
    Profile,
    ProfileSpec,
    Rule,
    ServiceAccountMatch,
    StagedGlobalNetworkPolicy,
    StagedGlobalNetworkPolicySpec,
    Tier,
    TierSpec,
)
from tortie.datastore.validate import check, with_defaults
from tortie.felix.rules import ir
from tortie.felix.rules.evaluate import Packet
from tortie.felix.rules.settings import Failsafe, Settings

NODE = "node1"
SETTINGS = Settings(
    endpoint_to_host=ir.ACCEPT, failsafe_in=(Failsafe("tcp", 22),), failsafe_out=(Failsafe("udp", 53),)
)
PORTS = (22, 53, 80, 8080, 9000)
NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}


@dataclass(frozen=True)
class Place:
    """Where packets come from and go to; the host's own interface is ''."""

    name: str
    interface: str
    v4: str
    v6: str

    def address(self, version: int) -> str:
        return self.v4 if version == 4 else self.v6


PODS = tuple(
    Place(name, f"cali{name}", f"10.65.0.{number}", f"fd65::{number}")
    for number, name in enumerate("abcd", 1)
)
OUTSIDE = Place("outside", "eth0", "172.16.0.254", "fd16::fe")
HOST = Place("host", "", "172.16.0.1", "fd16::1")
WAYS = [
    (source, target)
    for source in (*PODS, OUTSIDE, HOST)
    for target in (*PODS, OUTSIDE, HOST)
    if source != target
]


def failsafe(packet: Packet, way: str) -> bool:
    return (packet.protocol, packet.dport) == ((6, 22) if way == "in" else (17, 53))


# --- what always is -----------------------------------------------------------------------------

_NAMESPACE_OF = {"a": "one", "b": "one", "c": "two", "d": "two"}
_LABELS = {
    "a": {"app": "web"},
    "b": {"app": "db", "old": "yes"},
    "c": {"app": "web", "team": "red"},
    "d": {},
}
_PORTS = {
    "a": (("http", "TCP", 80), ("dns", "UDP", 53)),
    "b": (("http", "TCP", 8080),),
    "c": (("http", "UDP", 80),),
    "d": (),
}


def pod_object(place: Place, labels: Mapping[str, str] | None = None) -> WorkloadEndpoint:
    name, namespace = place.name, _NAMESPACE_OF[place.name]
    account = "red" if name in "ac" else ""
    profiles = (f"kns.{namespace}", *([f"ksa.{namespace}.{account}"] if account else []))
    return WorkloadEndpoint(
        metadata=ObjectMeta(
            name=f"{NODE}-k8s-{name}-eth0",
            namespace=namespace,
            labels=dict(_LABELS[name] if labels is None else labels),
        ),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s", node=NODE, pod=name, endpoint="eth0", interfaceName=place.interface,
            ipNetworks=(f"{place.v4}/32", f"{place.v6}/128"), profiles=profiles, serviceAccountName=account,
            ports=tuple(
                WorkloadEndpointPort(name=one, protocol=kind, port=port) for one, kind, port in _PORTS[name]
            ),
        ),
    )  # fmt: skip


def ghost_object(number: int, labels: Mapping[str, str]) -> WorkloadEndpoint:
    """An endpoint of this node whose interface is not there (yet)."""
    nets = (f"10.65.0.{number}/32", f"fd65::{number:x}/128")
    return WorkloadEndpoint(
        metadata=ObjectMeta(name=f"{NODE}-k8s-g{number}-eth0", namespace="one", labels=dict(labels)),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s", node=NODE, pod=f"g{number}", endpoint="eth0", interfaceName=f"calig{number}",
            ipNetworks=nets, profiles=("kns.one",),
        ),
    )  # fmt: skip


def _remote() -> WorkloadEndpoint:
    """The neighbour outside plays a pod of another node."""
    nets = (f"{OUTSIDE.v4}/32", f"{OUTSIDE.v6}/128")
    return WorkloadEndpoint(
        metadata=ObjectMeta(name="node2-k8s-far-eth0", namespace="two", labels={"app": "db"}),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s", node="node2", pod="far", endpoint="eth0", interfaceName="cali9",
            ipNetworks=nets, profiles=("kns.two",),
            ports=(WorkloadEndpointPort(name="http", protocol="TCP", port=9000),),
        ),
    )  # fmt: skip


def _profile(rand: Random, name: str, labels: Mapping[str, str], *, rules: bool) -> Profile:
    def some() -> tuple[Rule, ...]:
        if not rules:
            return ()
        return (Rule(action="Allow"),) if rand.random() < 0.7 else tuple(a_rule(rand) for _ in range(2))

    return Profile(
        metadata=ObjectMeta(name=name),
        spec=ProfileSpec(ingress=some(), egress=some(), labelsToApply=dict(labels)),
    )


def a_world(rand: Random) -> dict[ResourceKey, Any]:
    """Valid objects, as they are stored."""
    objects: list[Any] = [pod_object(place) for place in PODS]
    objects += [
        _profile(rand, "kns.one", {"pcns.team": "red", "pcns.app": "web"}, rules=True),
        _profile(rand, "kns.two", {"pcns.team": "blue"}, rules=rand.random() < 0.8),
        _profile(rand, "ksa.one.red", {"pcsa.team": "red"}, rules=False),
        _profile(rand, "ksa.two.red", {"pcsa.team": "red", "pcsa.app": "db"}, rules=False),
        Tier(metadata=ObjectMeta(name="default"), spec=TierSpec(order=1_000_000, defaultAction="Deny")),
        Tier(
            metadata=ObjectMeta(name="first"),
            spec=TierSpec(order=rand.choice([1, 2_000_000]), defaultAction=rand.choice(["Deny", "Pass"])),
        ),
        GlobalNetworkSet(
            metadata=ObjectMeta(name="g", labels={"app": "web"}),
            spec=GlobalNetworkSetSpec(nets=("172.16.0.0/24", "fd16::/64")),
        ),
        NetworkSet(
            metadata=ObjectMeta(name="n", namespace="one", labels={"app": "db"}),
            spec=NetworkSetSpec(nets=("172.16.0.254/32", "fd65::4/128", "10.65.0.4/32")),
        ),
    ]
    if rand.random() < 0.7:
        objects.append(_remote())
    objects += _host_endpoints(rand)
    objects += [a_policy(rand, number) for number in range(rand.randint(0, 7))]
    return {key_of(one): one for one in map(_valid, objects)}


def _valid(resource: Any) -> Any:
    found = with_defaults(resource)
    check(found)
    return found


def specified(objects: Mapping[Any, Any]) -> spec.World:
    """The same world as the specification sees it."""
    return spec.World(objects.values(), NODE, failsafe, {"eth0": (HOST.v4, HOST.v6)})


def _host_endpoints(rand: Random) -> Iterator[HostEndpoint]:
    kind = rand.choice(["none", "named", "any", "addresses", "both"])
    chosen = {"named": ["eth0"], "any": ["*"], "addresses": [""], "both": ["eth0", "*"], "none": []}[kind]
    for interface in chosen:
        profiles = ("projectcalico-default-allow",) if rand.random() < 0.3 else ()
        labels = {"app": rand.choice(["web", "host"])}
        yield HostEndpoint(
            metadata=ObjectMeta(name=f"h{interface.replace('*', 'any')}", labels=labels),
            spec=HostEndpointSpec(
                node=NODE, interfaceName=interface, expectedIPs=(HOST.v4, HOST.v6), profiles=profiles,
                ports=(EndpointPort(name="http", protocol="TCP", port=80),),
            ),
        )  # fmt: skip


# --- policies -----------------------------------------------------------------------------------

_SELECTORS = [text for text in spec.SELECTORS if text]
_TEAMS = ["team == 'red'", "team != 'red'", "app == 'web'"]


_STAGES: list[dict[str, Any]] = [
    {},
    {},
    {"applyOnForward": True},
    {"applyOnForward": True, "doNotTrack": True},
    {"applyOnForward": True, "preDNAT": True},
]


def a_policy(rand: Random, number: int) -> Any:
    common: dict[str, Any] = {
        "tier": rand.choice(["default", "default", "first"]),
        "order": rand.choice([None, 1, 2.5, 10]),
        "selector": rand.choice([*[""] * 8, *_SELECTORS]),
        "types": rand.choice([("Ingress",), ("Egress",), ("Ingress", "Egress"), ("Ingress", "Egress")]),
        "serviceAccountSelector": rand.choice([*[""] * 9, "team == 'red'"]),
    }
    kind = rand.choice(["namespaced", "namespaced", "global", "global", "global", "staged"])
    metadata = ObjectMeta(name=f"p{number}")
    if kind == "namespaced":
        metadata = ObjectMeta(name=f"p{number}", namespace=rand.choice(["one", "two"]))
        return NetworkPolicy(metadata=metadata, spec=NetworkPolicySpec(**common, **_rules(rand, common)))
    if common["selector"] != "!all()":
        common["namespaceSelector"] = rand.choice([*[""] * 6, "all()", *_TEAMS])
    if kind == "staged":
        staged = StagedGlobalNetworkPolicySpec(**common, **_rules(rand, common), stagedAction="Set")
        return StagedGlobalNetworkPolicy(metadata=metadata, spec=staged)
    common |= rand.choice(_STAGES)
    if "preDNAT" in common:
        common["types"] = ("Ingress",)
    whole = GlobalNetworkPolicySpec(**common, **_rules(rand, common))
    return GlobalNetworkPolicy(metadata=metadata, spec=whole)


def _rules(rand: Random, common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        direction.lower(): tuple(a_rule(rand) for _ in range(rand.randint(0, 3)))
        for direction in common["types"]
    }


def a_rule(rand: Random) -> Rule:
    protocol = rand.choice([None, None, None, "TCP", "TCP", "UDP", "SCTP", "ICMP", "ICMPv6", 17])
    ports = protocol in ("TCP", "UDP", "SCTP", 17)
    fields: dict[str, Any] = {}
    if protocol in ("ICMP", "ICMPv6") and rand.random() < 0.5:
        kind = 8 if protocol == "ICMP" else 128
        fields[rand.choice(["icmp", "notICMP"])] = ICMPFields(type=kind, code=rand.choice([None, 0, 1]))
    if rand.random() < 0.1:
        fields["notProtocol"] = rand.choice(["UDP", 132])
    if rand.random() < 0.15:
        fields["ipVersion"] = {"ICMP": 4, "ICMPv6": 6}.get(str(protocol)) or rand.choice([4, 6])
    family = fields.get("ipVersion") or {"ICMP": 4, "ICMPv6": 6}.get(str(protocol)) or rand.choice([4, 4, 6])
    return Rule(
        action=rand.choice(["Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log"]),
        protocol=protocol,
        source=_entity(rand, family, ports=False),
        destination=_entity(rand, family, ports=ports),
        **fields,
    )


_NETS = {
    4: ["10.65.0.0/30", "10.65.0.2/32", "172.16.0.0/24", "0.0.0.0/0", "10.65.0.4/32", "10.65.0.1/32"],
    6: ["fd65::/126", "fd65::2/128", "fd16::/64", "::/0", "fd65::4/128", "fd65::1/128"],
}


def _entity(rand: Random, family: int, *, ports: bool) -> EntityRule:
    """At most two criteria, or hardly any packet would match."""
    nets = _NETS[family]
    choices: dict[str, Any] = {
        "selector": rand.choice(_SELECTORS),
        "notSelector": rand.choice(_SELECTORS[2:]),
        "namespaceSelector": rand.choice(["all()", "global()", *_TEAMS]),
        "serviceAccounts": rand.choice(
            [ServiceAccountMatch(names=("red",)), ServiceAccountMatch(selector="app == 'db'")]
        ),
        "nets": tuple(rand.sample(nets, rand.randint(1, 3))),
        "notNets": tuple(rand.sample([net for net in nets if not net.endswith("/0")], rand.randint(1, 2))),
    }
    if ports:
        many = ("http", 80, "8000:9000", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
        choices["ports"] = rand.choice([("http",), (80,), ("http", 53), ("8000:9000",), many])
        choices["notPorts"] = rand.choice([("http",), (80,), (*range(1, 17), 80), ("8000:9000",)])
    chosen = rand.sample(sorted(choices), rand.choice([0, 0, 1, 1, 2]))
    return EntityRule(**{name: choices[name] for name in chosen})


# --- packets ------------------------------------------------------------------------------------


def a_packet(rand: Random, sport: int) -> tuple[Place, Place, Packet]:
    """The first packet of a connection that nothing else uses, as told by its source port or echo id."""
    source, target = rand.choice(WAYS)
    version = rand.choice([4, 4, 6])
    protocol = rand.choice([6, 6, 6, 17, 17, 132, 1 if version == 4 else 58])
    icmp = None
    dport = rand.choice(PORTS)
    if protocol in (1, 58):
        icmp, dport = (8 if protocol == 1 else 128, 0), 0
    return source, target, Packet(
        source.address(version), target.address(version), protocol, 0 if icmp else sport, dport, icmp,
        source.interface, target.interface,
    )  # fmt: skip
