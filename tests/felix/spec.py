"""What should happen to a packet, from the datastore's objects and the specification alone: the first oracle.

It shares nothing with felix but the types of the objects: no intermediate form, no sets, no index, nothing
incremental. Selectors are not parsed but looked up (SELECTORS), so the language is not shared either.
(Reference: policy sheet 2.1, 2.2, 2.4, 3.)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from tortie.datastore.rules import DEFAULT_ALLOW_PROFILE
from tortie.datastore.types.endpoint import HostEndpoint, WorkloadEndpoint
from tortie.datastore.types.policy import EntityRule, Rule
from tortie.felix.rules.evaluate import Packet

Labels = Mapping[str, str]
Objects = Iterable[Any]

SELECTORS: dict[str, Callable[[Labels], bool]] = {  # text -> what it means
    "": lambda labels: True,
    "all()": lambda labels: True,
    "!all()": lambda labels: False,
    "app == 'web'": lambda labels: labels.get("app") == "web",
    "app != 'web'": lambda labels: labels.get("app") != "web",
    "app in {'web', 'db'}": lambda labels: labels.get("app") in ("web", "db"),
    "app not in {'db'}": lambda labels: labels.get("app") != "db",
    "has(app) && !has(old)": lambda labels: "app" in labels and "old" not in labels,
    "app starts with 'd' || old == 'yes'": lambda labels: (
        labels.get("app", "").startswith("d") or labels.get("old") == "yes"
    ),
    "app == 'db'": lambda labels: labels.get("app") == "db",
    "team == 'red'": lambda labels: labels.get("team") == "red",
    "team != 'red'": lambda labels: labels.get("team") != "red",
}

_NUMBERS = {"TCP": 6, "UDP": 17, "ICMP": 1, "ICMPv6": 58, "SCTP": 132}
_WITH_PORTS = {6: "TCP", 17: "UDP", 132: "SCTP"}
_NAMESPACE, _ACCOUNT = "projectcalico.org/namespace", "projectcalico.org/serviceaccount"


@dataclass(frozen=True)
class Member:
    """Anything a selector can find: an endpoint or a network set."""

    nets: tuple[str, ...]
    labels: Labels
    ports: tuple[tuple[str, str, int], ...] = ()


class World:
    """All objects, and which interface is whose."""

    def __init__(
        self,
        objects: Objects,
        node: str,
        failsafe: Callable[[Packet, str], bool],
        addresses: Mapping[str, Iterable[str]],
    ) -> None:
        """`failsafe(packet, "in" or "out")`: whether configuration keeps that open on host endpoints.

        `addresses`: those of the host's interfaces.
        """
        self.kinds: dict[str, list[Any]] = {}
        for one in objects:
            self.kinds.setdefault(one.KIND, []).append(one)
        self.node, self.failsafe, self.addresses = node, failsafe, addresses
        self.profiles = {one.name: one for one in [DEFAULT_ALLOW_PROFILE, *self.all("Profile")]}
        self.workloads = {
            one.spec.interfaceName: one
            for one in self.all("WorkloadEndpoint")
            if one.spec.node == node and one.spec.ipNetworks
        }
        self.members = [*self._endpoint_members(), *self._set_members()]

    def all(self, *kinds: str) -> list[Any]:
        return [one for kind in kinds for one in self.kinds.get(kind, [])]

    def _endpoint_members(self) -> Iterable[Member]:
        for one in self.all("WorkloadEndpoint"):
            ports = tuple((port.name, str(port.protocol), port.port) for port in one.spec.ports)
            yield Member(one.spec.ipNetworks, self.labels(one), ports)
        for one in self.all("HostEndpoint"):
            ports = tuple((port.name, str(port.protocol), port.port) for port in one.spec.ports)
            yield Member(one.spec.expectedIPs, self.labels(one), ports)

    def _set_members(self) -> Iterable[Member]:
        for one in self.all("GlobalNetworkSet"):
            yield Member(one.spec.nets, one.labels)
        for one in self.all("NetworkSet"):
            inherited = self._inherited([f"kns.{one.namespace}"])
            yield Member(one.spec.nets, {**inherited, **one.labels, _NAMESPACE: one.namespace})

    def labels(self, endpoint: WorkloadEndpoint | HostEndpoint) -> Labels:
        own = dict(endpoint.labels)
        if isinstance(endpoint, WorkloadEndpoint):
            own[_NAMESPACE] = endpoint.namespace
            if endpoint.spec.serviceAccountName:
                own[_ACCOUNT] = endpoint.spec.serviceAccountName
        return {**self._inherited(endpoint.spec.profiles), **own}

    def _inherited(self, profiles: Iterable[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in reversed(list(profiles)):
            found |= self.profiles[name].spec.labelsToApply if name in self.profiles else {}
        return found

    def host_endpoint(self, interface: str) -> HostEndpoint | None:
        """The endpoint of `*` also sees what workloads' interfaces forward."""
        mine = sorted(
            (one for one in self.all("HostEndpoint") if one.spec.node == self.node), key=lambda one: one.name
        )
        held = set(self.addresses.get(interface, ()))
        named = [
            one
            for one in mine
            if (
                one.spec.interfaceName == interface
                if one.spec.interfaceName
                else held & set(one.spec.expectedIPs)
            )
        ]
        return next(iter([*named, *(one for one in mine if one.spec.interfaceName == "*")]), None)


# --- one rule -----------------------------------------------------------------------------------


def rule_matches(world: World, rule: Rule, namespace: str, packet: Packet) -> bool:
    version = 6 if ":" in packet.src else 4
    protocol = _number(rule.protocol)
    implied = {"ICMP": 4, "ICMPv6": 6}
    for name in (rule.protocol, rule.notProtocol):
        if rule.ipVersion is None and name in implied and implied[str(name)] != version:
            return False
    if rule.ipVersion not in (None, version):
        return False
    for entity in (rule.source, rule.destination):
        for nets in (entity.nets, entity.notNets):
            if nets and all((":" in net) != (version == 6) for net in nets):
                return False
    if protocol not in (None, packet.protocol) or _number(rule.notProtocol) == packet.protocol:
        return False
    if rule.icmp is not None and not _icmp(rule.icmp, packet):
        return False
    if rule.notICMP is not None and _icmp(rule.notICMP, packet):
        return False
    return _side(world, rule.source, namespace, packet, packet.src, packet.sport, rule) and _side(
        world, rule.destination, namespace, packet, packet.dst, packet.dport, rule
    )


def _number(protocol: int | str | None) -> int | None:
    return _NUMBERS[protocol] if isinstance(protocol, str) else protocol


def _icmp(wanted: Any, packet: Packet) -> bool:
    kind, code = packet.icmp or (-1, -1)
    return wanted.type == kind and wanted.code in (None, code)


def _side(
    world: World, entity: EntityRule, namespace: str, packet: Packet, address: str, port: int, rule: Rule
) -> bool:
    if entity.nets and not any(_within(address, net) for net in entity.nets):
        return False
    if any(_within(address, net) for net in entity.notNets):
        return False
    found = [member for member in world.members if any(_within(address, net) for net in member.nets)]
    scoped = [member for member in found if _selected(entity, namespace, member)]
    asks = entity.selector or entity.namespaceSelector or entity.serviceAccounts
    positive = asks or (namespace and entity.notSelector)
    if positive and not scoped:
        return False
    excluded = SELECTORS[entity.notSelector] if entity.notSelector and not positive else None
    if excluded is not None and any(excluded(member.labels) for member in found):
        return False
    named_in = scoped if positive else found
    if entity.ports and not any(_port(one, named_in, packet, port, rule) for one in entity.ports):
        return False
    return not any(_port(one, named_in, packet, port, rule) for one in entity.notPorts)


def _selected(entity: EntityRule, namespace: str, member: Member) -> bool:
    """Positive and negative selector together, within the rule's namespaces and service accounts."""
    if not SELECTORS[entity.selector](member.labels):
        return False
    if entity.notSelector and SELECTORS[entity.notSelector](member.labels):
        return False
    if entity.serviceAccounts is not None:
        names, selector = entity.serviceAccounts.names, entity.serviceAccounts.selector
        if names and member.labels.get(_ACCOUNT) not in names:
            return False
        if selector and not SELECTORS[selector](_prefixed(member.labels, "pcsa.")):
            return False
    return _in_namespaces(entity, namespace, member.labels)


def _in_namespaces(entity: EntityRule, namespace: str, labels: Labels) -> bool:
    wanted = entity.namespaceSelector
    if wanted == "global()":
        return _NAMESPACE not in labels
    if wanted == "all()":
        return _NAMESPACE in labels
    if wanted:
        return SELECTORS[wanted](_prefixed(labels, "pcns."))
    asks = entity.selector or entity.notSelector or entity.serviceAccounts
    return not (namespace and asks) or labels.get(_NAMESPACE) == namespace


def _prefixed(labels: Labels, prefix: str) -> Labels:
    return {name.removeprefix(prefix): value for name, value in labels.items() if name.startswith(prefix)}


def _port(wanted: int | str, members: Iterable[Member], packet: Packet, port: int, rule: Rule) -> bool:
    if isinstance(wanted, int) or ":" in wanted:
        low, _, high = str(wanted).partition(":")
        return int(low) <= port <= int(high or low)
    protocol = _WITH_PORTS.get(packet.protocol)
    return any(
        (name, proto, number) == (wanted, protocol, port)
        for member in members
        for name, proto, number in member.ports
    )


def _within(address: str, net: str) -> bool:
    network = ip_network(net)
    return ip_address(address).version == network.version and ip_address(address) in network


# --- policies and tiers -------------------------------------------------------------------------


def applies(world: World, policy: Any, endpoint: WorkloadEndpoint | HostEndpoint) -> bool:
    labels = world.labels(endpoint)
    spec = policy.spec
    if not SELECTORS[spec.selector](labels):
        return False
    if policy.KIND == "NetworkPolicy" and labels.get(_NAMESPACE) != policy.namespace:
        return False
    namespaces = getattr(spec, "namespaceSelector", "")
    if namespaces and not (
        _NAMESPACE in labels if namespaces == "all()" else SELECTORS[namespaces](_prefixed(labels, "pcns."))
    ):
        return False
    if namespaces and spec.selector == "all()" and _NAMESPACE not in labels:
        return False
    accounts = spec.serviceAccountSelector
    return not accounts or SELECTORS[accounts](_prefixed(labels, "pcsa."))


def stage_of(policy: Any) -> str:
    spec = policy.spec
    return (
        "untracked"
        if getattr(spec, "doNotTrack", False)
        else "pre-dnat"
        if getattr(spec, "preDNAT", False)
        else "normal"
    )


def tiers_verdict(
    world: World, endpoint: WorkloadEndpoint | HostEndpoint, use: str, ingress: bool, packet: Packet
) -> str:
    """allow, deny, or '' where no policy has the last word."""
    direction = "Ingress" if ingress else "Egress"
    stage = "normal" if use == "forward" else use
    chosen = [
        policy
        for policy in world.all("GlobalNetworkPolicy", "NetworkPolicy")
        if stage_of(policy) == stage
        and (use != "forward" or getattr(policy.spec, "applyOnForward", False))
        and direction in policy.spec.types
        and applies(world, policy, endpoint)
    ]
    for tier in sorted(world.all("Tier"), key=lambda one: (_order(one), one.name)):
        mine = [policy for policy in chosen if policy.spec.tier == tier.name]
        mine.sort(key=lambda one: (_order(one), f"{one.name}/{one.namespace}/{one.KIND}"))
        verdict = _first_verdict(world, mine, ingress, packet)
        if verdict in ("Allow", "Deny"):
            return verdict.lower()
        early = use in ("untracked", "pre-dnat")
        if mine and not verdict and tier.spec.defaultAction != "Pass" and not early:
            return "deny"
    return ""


def _order(one: Any) -> float:
    return float("inf") if one.spec.order is None else one.spec.order


def _first_verdict(world: World, policies: Iterable[Any], ingress: bool, packet: Packet) -> str:
    for policy in policies:
        for rule in policy.spec.ingress if ingress else policy.spec.egress:
            if rule.action != "Log" and rule_matches(world, rule, policy.namespace, packet):
                return str(rule.action)
    return ""


def endpoint_allows(
    world: World, endpoint: WorkloadEndpoint | HostEndpoint, ingress: bool, packet: Packet
) -> bool:
    """An endpoint's own traffic: the tiers, then its profiles, then no."""
    verdict = tiers_verdict(world, endpoint, "normal", ingress, packet)
    if verdict:
        return verdict == "allow"
    for name in endpoint.spec.profiles:
        profile = world.profiles.get(name)
        if profile is None:
            return False
        for rule in profile.spec.ingress if ingress else profile.spec.egress:
            if rule.action in ("Allow", "Deny", "Pass") and rule_matches(world, rule, "", packet):
                if rule.action == "Pass":
                    break
                return bool(rule.action == "Allow")
    return False


# --- whole ways ---------------------------------------------------------------------------------


def passes(world: World, packet: Packet) -> bool:
    """Whether the first packet of a connection reaches whom it is for.

    '' as an interface means the host itself.
    """
    early = _early(world, packet)
    if early is False:
        return False
    if packet.in_interface and packet.out_interface:
        ways = [(packet.out_interface, False)] + ([] if early else [(packet.in_interface, True)])
        return all(_may_forward(world, *way, packet) for way in ways) and _workloads_allow(world, packet)
    return _own_traffic(world, packet, bool(early))


def _early(world: World, packet: Packet) -> bool | None:
    """Untracked policy, then policy before translation; None if neither has a say."""
    if packet.in_interface:
        coming = world.host_endpoint(packet.in_interface)
        if coming is None:
            return None
        safe = world.failsafe(packet, "in")
        if coming.spec.interfaceName != "*" and not safe:
            verdict = tiers_verdict(world, coming, "untracked", True, packet)
            if verdict:
                return verdict == "allow"
        decides = _before_translation(world, coming)
        verdict = tiers_verdict(world, decides, "pre-dnat", True, packet) if decides and not safe else ""
        return None if not verdict else verdict == "allow"
    going = world.host_endpoint(packet.out_interface)
    if going is None or going.spec.interfaceName == "*" or world.failsafe(packet, "out"):
        return None
    verdict = tiers_verdict(world, going, "untracked", False, packet)
    return None if not verdict else verdict == "allow"


def _before_translation(world: World, own: HostEndpoint) -> HostEndpoint | None:
    """Whose policy of that stage counts: where an interface's own endpoint has none, that of `*` has its say.

    (Reference: felix/dataplane/linux/endpoint_mgr.go, updateHostEndpoints.)
    """
    policies = [one for one in world.all("GlobalNetworkPolicy") if stage_of(one) == "pre-dnat"]
    candidates = [own, *([any_interface] if (any_interface := world.host_endpoint("*")) else [])]
    return next((one for one in candidates if any(applies(world, policy, one) for policy in policies)), None)


def _workloads_allow(world: World, packet: Packet) -> bool:
    source, target = world.workloads.get(packet.in_interface), world.workloads.get(packet.out_interface)
    if source is not None and not endpoint_allows(world, source, False, packet):
        return False
    return target is None or endpoint_allows(world, target, True, packet)


def _may_forward(world: World, interface: str, ingress: bool, packet: Packet) -> bool:
    endpoint = world.host_endpoint(interface)
    return endpoint is None or tiers_verdict(world, endpoint, "forward", ingress, packet) != "deny"


def _own_traffic(world: World, packet: Packet, accepted: bool) -> bool:
    """Between the host itself and the world; a workload may say to it whatever its own policy allows."""
    interface, ingress = packet.in_interface or packet.out_interface, bool(packet.in_interface)
    if interface in world.workloads:
        return not ingress or endpoint_allows(world, world.workloads[interface], False, packet)
    endpoint = world.host_endpoint(interface)
    if endpoint is None or accepted or world.failsafe(packet, "in" if ingress else "out"):
        return True
    return endpoint_allows(world, endpoint, ingress, packet)
