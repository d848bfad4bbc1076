"""What policies mean, said as plainly as can be: the yardstick for the calculation and the dataplanes.

Written from the specification of Calico's policy (the sections are the reference sheet's) and from nothing
of felix; only the selector language is shared. Resources are v3 objects in JSON form, nothing is indexed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tortie.datastore.selector import ChainLabels, parse

Json = Mapping[str, Any]
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "udplite": 136}
_TIERS = {"kube-admin": (1000, "Pass"), "default": (1_000_000, "Deny"), "kube-baseline": (10_000_000, "Pass")}
_INF = float("inf")
_SAFE_IN = {(6, port) for port in (22, 179, 2379, 2380, 5473, 6443, 6666, 6667)} | {(17, 68)}
_SAFE_OUT = {(6, port) for port in (179, 2379, 2380, 5473, 6443, 6666, 6667)} | {(17, 53), (17, 67)}


@dataclass(frozen=True)
class Packet:
    """A connection's first packet."""

    src: str
    dst: str
    protocol: int = 6
    dport: int = 0
    sport: int = 0
    icmp: tuple[int, int] = (8, 0)

    @property
    def version(self) -> int:
        return ip_address(self.src).version


@dataclass
class World:
    """`hosts`: node -> addresses of its interface eth0, through which all other nodes are reached."""

    resources: Sequence[Json]
    hosts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    endpoint_to_host: str = "DROP"  # defaultEndpointToHostAction

    def of(self, *kinds: str) -> list[Json]:
        return [one for one in self.resources if one["kind"] in kinds]

    # --- labels (2.1) ---------------------------------------------------------------------------

    def labels(self, thing: Json) -> ChainLabels:
        spec, meta = thing["spec"], thing["metadata"]
        own = dict(meta.get("labels", {}))
        profiles = list(spec.get("profiles", []))
        if thing["kind"] in ("WorkloadEndpoint", "NetworkSet"):
            own["projectcalico.org/namespace"] = meta["namespace"]
        if thing["kind"] == "NetworkSet":
            profiles = [f"kns.{meta['namespace']}"]
        if thing["kind"] == "WorkloadEndpoint":
            own["projectcalico.org/orchestrator"] = spec["orchestrator"]
            if account := spec.get("serviceAccountName"):
                own["projectcalico.org/serviceaccount"] = account
        known = {p["metadata"]["name"]: p["spec"].get("labelsToApply", {}) for p in self.of("Profile")}
        return ChainLabels(own, *(known.get(name, {}) for name in profiles))

    def things_at(self, address: str) -> Iterator[Json]:
        """Endpoints and network sets that have this address."""
        for thing in self.of("WorkloadEndpoint", "HostEndpoint", "NetworkSet", "GlobalNetworkSet"):
            spec = thing["spec"]
            nets = [*spec.get("ipNetworks", ()), *spec.get("expectedIPs", ()), *spec.get("nets", ())]
            if any(_within(address, net) for net in nets):
                yield thing

    # --- one side of a rule (2.2, 2.3) ----------------------------------------------------------

    def side_matches(
        self, side: Json, namespace: str, address: str, port: int, protocol: int, of: Any
    ) -> bool:
        if "services" in side:
            return False  # they have endpoints in Kubernetes' datastore only
        if side.get("nets") and not any(_within(address, net) for net in side["nets"]):
            return False
        if any(_within(address, net) for net in side.get("notNets", ())):
            return False
        wanted, unwanted = _peer_selector(side, namespace), side.get("notSelector", "")
        chosen = [
            thing
            for thing in self.things_at(address)
            if (not wanted or parse(wanted).evaluate(self.labels(thing)))
            and not (wanted and unwanted and parse(unwanted).evaluate(self.labels(thing)))
        ]
        if wanted and not chosen:
            return False
        if unwanted and not wanted and any(parse(unwanted).evaluate(self.labels(t)) for t in chosen):
            return False

        def listed(ports: Sequence[int | str]) -> bool:
            return any(self._port_matches(one, port, protocol, of, chosen) for one in ports)

        return not (side.get("ports") and not listed(side["ports"])) and not listed(side.get("notPorts", ()))

    def _port_matches(self, wanted: int | str, port: int, protocol: int, of: Any, things: list[Json]) -> bool:
        first, _, last = str(wanted).partition(":")
        if first.isdecimal():
            return protocol in (6, 17, 132) and int(first) <= port <= int(last or first)
        named = [one for thing in things for one in thing["spec"].get("ports", ()) if one["name"] == wanted]
        return any(
            one["port"] == port and _number(one["protocol"]) == protocol and of in (None, protocol)
            for one in named
        )

    # --- rules (2.4) ----------------------------------------------------------------------------

    def rule_matches(self, rule: Json, namespace: str, packet: Packet) -> bool:
        version, protocol = packet.version, rule.get("protocol")
        inferred = {"icmp": 4, "icmpv6": 6}.get(str(protocol).lower(), version)
        if rule.get("ipVersion", inferred) != version or not _speaks_of(rule, version):
            return False
        if protocol is not None and _number(protocol) != packet.protocol:
            return False
        if "notProtocol" in rule and _number(rule["notProtocol"]) == packet.protocol:
            return False
        if "icmp" in rule and not _icmp(rule["icmp"], packet):
            return False
        if "notICMP" in rule and _icmp(rule["notICMP"], packet):
            return False
        of = None if protocol is None else _number(protocol)
        sides = (("source", packet.src, packet.sport), ("destination", packet.dst, packet.dport))
        return all(
            self.side_matches(rule.get(name, {}), namespace, address, port, packet.protocol, of)
            for name, address, port in sides
        )

    def verdict_of(self, rules: Sequence[Json], namespace: str, packet: Packet) -> str:
        for rule in rules:
            if rule["action"] != "Log" and self.rule_matches(rule, namespace, packet):
                return str(rule["action"])
        return ""

    # --- policies at an endpoint (3) ------------------------------------------------------------

    def tiers_of(self, endpoint: Json, direction: str, kind: str) -> list[tuple[str, list[Json]]]:
        """(default action, policies in order) of each tier that has any here."""
        known = dict(_TIERS)
        for tier in self.of("Tier"):
            spec, name = tier["spec"], tier["metadata"]["name"]
            order = spec.get("order", _TIERS[name][0] if name in _TIERS else 1_000_000)
            known[name] = order, spec.get("defaultAction", "Deny")
        labels, found = self.labels(endpoint), {}  # type: ignore[var-annotated]
        for policy in self.of("NetworkPolicy", "GlobalNetworkPolicy"):
            if (
                direction in _types(policy)
                and _is_of(policy, kind)
                and parse(_policy_selector(policy)).evaluate(labels)
            ):
                found.setdefault(policy["spec"].get("tier") or "default", []).append(policy)
        names = sorted(found, key=lambda name: (name not in known, known.get(name, (0, ""))[0], name))
        return [(known.get(name, (0, "Deny"))[1], sorted(found[name], key=_policy_order)) for name in names]

    def decide(self, endpoint: Json, direction: str, kind: str, packet: Packet) -> str:
        """Allow, Deny, or '' where nobody speaks: only forward, preDNAT and untracked may end so."""
        side = direction.lower()
        for default, policies in self.tiers_of(endpoint, direction, kind):
            verdict = ""
            for policy in policies:
                namespace = policy["metadata"].get("namespace", "")
                if verdict := self.verdict_of(policy["spec"].get(side, ()), namespace, packet):
                    break
            if verdict in ("Allow", "Deny"):
                return verdict
            if not verdict and default != "Pass" and kind in ("normal", "forward"):
                return "Deny"
        return self._profiles(endpoint, side, packet) if kind == "normal" else ""

    def _profiles(self, endpoint: Json, side: str, packet: Packet) -> str:
        everything = [{"action": "Allow"}]
        known = {p["metadata"]["name"]: p["spec"].get(side, ()) for p in self.of("Profile")}
        known["projectcalico-default-allow"] = everything
        for name in endpoint["spec"].get("profiles", ()):
            verdict = self.verdict_of(known.get(name, [{"action": "Deny"}]), "", packet)
            if verdict in ("Allow", "Deny"):
                return verdict
        return "Deny"

    # --- the way of a packet (3, 5.3) -----------------------------------------------------------

    def allowed(self, packet: Packet) -> bool:
        from_pod, to_pod = self._pod(packet.src), self._pod(packet.dst)
        here, there = self._node(packet.src, from_pod), self._node(packet.dst, to_pod)
        if from_pod is None and here == there:
            return True  # a host's own processes reach its pods
        if from_pod is not None:
            if self.decide(from_pod, "Egress", "normal", packet) == "Deny":
                return False
            if to_pod is None and here == there:
                return self.endpoint_to_host != "DROP"
            if not self._forwards(here, packet, "cali", "cali" if here == there else "eth0"):
                return False
        elif not self._leaves(here, packet):
            return False
        if here != there and to_pod is not None and not self._forwards(there, packet, "eth0", "cali"):
            return False
        if to_pod is not None:
            return self.decide(to_pod, "Ingress", "normal", packet) == "Allow"
        return self._arrives(there, packet)

    def _pod(self, address: str) -> Json | None:
        nets = {f"{address}/32", f"{address}/128"}
        return next((p for p in self.of("WorkloadEndpoint") if nets & set(p["spec"]["ipNetworks"])), None)

    def _node(self, address: str, pod: Json | None) -> str:
        if pod is not None:
            return str(pod["spec"]["node"])
        return next((name for name, addresses in self.hosts.items() if address in addresses), "")

    def host_endpoint(self, node: str, interface: str) -> Json | None:
        """The host endpoint that stands at an interface, or the one for all of them."""
        own = sorted(
            (h for h in self.of("HostEndpoint") if h["spec"]["node"] == node),
            key=lambda h: str(h["metadata"]["name"]),
        )
        for one in own if interface == "eth0" else ():
            name, expected = one["spec"].get("interfaceName", ""), one["spec"].get("expectedIPs", ())
            if name == interface or (not name and set(expected) & set(self.hosts[node])):
                return one
        return next((h for h in own if h["spec"].get("interfaceName") == "*"), None)

    def _early(self, node: str, interface: str, packet: Packet) -> str:
        """The verdict before connection tracking and translation, of what comes in by an interface."""
        endpoint = self.host_endpoint(node, interface)
        if endpoint is None or (packet.protocol, packet.dport) in _SAFE_IN:
            return ""
        named = endpoint["spec"].get("interfaceName") != "*"  # the others have no untracked policy
        untracked = self.decide(endpoint, "Ingress", "untracked", packet) if named else ""
        return untracked or self.decide(endpoint, "Ingress", "preDNAT", packet)

    def _forwards(self, node: str, packet: Packet, inward: str, outward: str) -> bool:
        early = self._early(node, inward, packet)
        if early == "Deny":
            return False
        coming, going = self.host_endpoint(node, inward), self.host_endpoint(node, outward)
        if coming is not None and not early and self.decide(coming, "Ingress", "forward", packet) == "Deny":
            return False
        return going is None or self.decide(going, "Egress", "forward", packet) != "Deny"

    def _leaves(self, node: str, packet: Packet) -> bool:
        endpoint = self.host_endpoint(node, "eth0")
        if endpoint is None or (packet.protocol, packet.dport) in _SAFE_OUT:
            return True
        if endpoint["spec"].get("interfaceName") != "*" and (
            untracked := self.decide(endpoint, "Egress", "untracked", packet)
        ):
            return untracked == "Allow"
        return self.decide(endpoint, "Egress", "normal", packet) == "Allow"

    def _arrives(self, node: str, packet: Packet) -> bool:
        endpoint = self.host_endpoint(node, "eth0")
        if endpoint is None or (packet.protocol, packet.dport) in _SAFE_IN:
            return True
        early = self._early(node, "eth0", packet)
        return (early or self.decide(endpoint, "Ingress", "normal", packet)) == "Allow"


# --- selectors (2.2) ----------------------------------------------------------------------------

_NAMESPACE, _ACCOUNT = "projectcalico.org/namespace", "projectcalico.org/serviceaccount"


def _joined(*parts: str) -> str:
    given = [f"({part})" for part in parts if part]
    return " && ".join(given)


def _peer_selector(side: Json, namespace: str) -> str:
    """Which endpoints and sets one side of a rule speaks of; '' is not limited to any."""
    spaces, selector = side.get("namespaceSelector", ""), side.get("selector", "")
    accounts = side.get("serviceAccounts", {})
    listed = ", ".join(f'"{name}"' for name in accounts.get("names", ()))
    account = _joined(
        parse(accounts["selector"]).prefixed("pcsa.").canonical if accounts.get("selector") else "",
        f"{_ACCOUNT} in {{{listed}}}" if listed else "",
    )
    where = f"{_NAMESPACE} == '{namespace}'" if namespace else ""
    if spaces:
        where = parse(spaces).prefixed("pcns.").canonical
        where = where.replace("all()", f"has({_NAMESPACE})").replace("global()", f"!has({_NAMESPACE})")
    if not (spaces or selector or side.get("notSelector") or account):
        where = ""
    return _joined(where, account, selector)


def _policy_selector(policy: Json) -> str:
    spec, namespace = policy["spec"], policy["metadata"].get("namespace", "")
    text: str = spec.get("selector", "")
    if policy["kind"] == "NetworkPolicy":
        text = _joined(text, f"{_NAMESPACE} == '{namespace}'")
    elif spaces := spec.get("namespaceSelector", ""):
        text = _joined(text, parse(spaces).prefixed("pcns.").canonical)
        text = text.replace("all()", f"has({_NAMESPACE})")
    if accounts := spec.get("serviceAccountSelector", ""):
        text = _joined(text, parse(accounts).prefixed("pcsa.").canonical)
        if policy["kind"] == "GlobalNetworkPolicy":
            text = text.replace("all()", f"has({_ACCOUNT})")
    return text


# --- small things -------------------------------------------------------------------------------


def _types(policy: Json) -> Sequence[str]:
    spec = policy["spec"]
    if given := spec.get("types"):
        return list(given)
    return [*(["Ingress"] if spec.get("ingress") or not spec.get("egress") else []),
            *(["Egress"] if spec.get("egress") else [])]  # fmt: skip


def _is_of(policy: Json, kind: str) -> bool:
    spec = policy["spec"]
    if spec.get("doNotTrack"):
        return kind == "untracked"
    if spec.get("preDNAT"):
        return kind == "preDNAT"
    return kind == "normal" or (kind == "forward" and bool(spec.get("applyOnForward")))


def _policy_order(policy: Json) -> tuple[float, str]:
    order, meta = policy["spec"].get("order"), policy["metadata"]
    name = f"{meta['name']}/{meta.get('namespace', '')}/{policy['kind']}"
    return (_INF if order is None else order), name


def _speaks_of(rule: Json, version: int) -> bool:
    """A list of networks of the other version only says nothing about this one (2.4)."""
    for side in (rule.get("source", {}), rule.get("destination", {})):
        for nets in (side.get("nets"), side.get("notNets")):
            if nets and all(ip_network(net, strict=False).version != version for net in nets):
                return False
    return True


def _icmp(wanted: Json, packet: Packet) -> bool:
    if packet.protocol != (1 if packet.version == 4 else 58):
        return False
    kind, code = packet.icmp
    return (wanted.get("type", kind), wanted.get("code", code)) == (kind, code)


def _number(protocol: int | str) -> int:
    return int(protocol) if str(protocol).isdecimal() else _PROTOCOLS[str(protocol).lower()]


def _within(address: str, net: str) -> bool:
    network = ip_network(net, strict=False)
    return ip_address(address).version == network.version and ip_address(address) in network
