"""What rules mean, written from the specification and sharing no code with felix: the second oracle.

(Reference: policy sheet 2.4, 3.) Sets are given as plain lists of members.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network

from tortie.felix.calc.model import Profile, Rule, Side
from tortie.felix.rules.evaluate import Packet

Members = Mapping[str, Sequence[str]]
_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "udplite": 136}


def rule_matches(rule: Rule, packet: Packet, members: Members) -> bool:
    version = 6 if ":" in packet.src else 4
    if rule.ip_version not in (0, version) or not _concerns(rule, version):
        return False
    if rule.protocol is not None and _number(rule.protocol) != packet.protocol:
        return False
    if rule.not_protocol is not None and _number(rule.not_protocol) == packet.protocol:
        return False
    if rule.icmp is not None and not _icmp(rule.icmp, packet, version):
        return False
    if rule.not_icmp is not None and (
        packet.protocol != _own_icmp(version) or _icmp(rule.not_icmp, packet, version)
    ):
        return False
    source = _side_matches(rule.src, packet.src, packet.sport, packet, members)
    return source and _side_matches(rule.dst, packet.dst, packet.dport, packet, members)


def _concerns(rule: Rule, version: int) -> bool:
    """Networks of the other version only, or everything excluded: nothing is said about this version."""
    everything = "0.0.0.0/0" if version == 4 else "::/0"
    for side in (rule.src, rule.dst):
        for nets in (side.nets, side.not_nets):
            if nets and all(ip_network(net).version != version for net in nets):
                return False
        if everything in side.not_nets:
            return False
    return True


def _side_matches(side: Side, address: str, port: int, packet: Packet, members: Members) -> bool:
    if side.nets and not any(_within(address, net) for net in side.nets):
        return False
    if any(_within(address, net) for net in side.not_nets):
        return False
    if not all(_member(address, members[one]) for one in side.sets):
        return False
    if any(_member(address, members[one]) for one in side.not_sets):
        return False
    if not all(_port_member(address, port, packet, members[one]) for one in side.service_sets):
        return False
    if side.ports or side.port_sets:
        numeric = any(low <= port <= high for low, high in side.ports)
        named = any(_port_member(address, port, packet, members[one]) for one in side.port_sets)
        if not (numeric or named):
            return False
    if any(low <= port <= high for low, high in side.not_ports):
        return False
    return not any(_port_member(address, port, packet, members[one]) for one in side.not_port_sets)


def _within(address: str, net: str) -> bool:
    network = ip_network(net)
    return ip_address(address).version == network.version and ip_address(address) in network


def _member(address: str, members: Sequence[str]) -> bool:
    return any(_within(address, member) for member in members)


def _port_member(address: str, port: int, packet: Packet, members: Sequence[str]) -> bool:
    protocol = {6: "tcp", 17: "udp", 132: "sctp"}.get(packet.protocol)
    return f"{address},{protocol}:{port}" in members


def _icmp(wanted: tuple[int, int | None], packet: Packet, version: int) -> bool:
    if packet.protocol != _own_icmp(version) or packet.icmp is None:
        return False
    return packet.icmp[0] == wanted[0] and wanted[1] in (None, packet.icmp[1])


def _own_icmp(version: int) -> int:
    return 1 if version == 4 else 58


def _number(protocol: int | str) -> int:
    return _NUMBERS[protocol] if isinstance(protocol, str) else protocol


def verdict_of_rules(rules: Sequence[Rule], packet: Packet, members: Members) -> str:
    """allow, deny, pass or '' for a list of rules, first hit wins; a log rule decides nothing."""
    for rule in rules:
        if rule.action != "log" and rule_matches(rule, packet, members):
            return rule.action
    return ""


def verdict_of_profiles(profiles: Sequence[Profile], ingress: bool, packet: Packet, members: Members) -> str:
    """The first profile that allows or denies; a pass only ends its own profile; nobody: deny."""
    for profile in profiles:
        verdict = verdict_of_rules(profile.inbound if ingress else profile.outbound, packet, members)
        if verdict in ("allow", "deny"):
            return verdict
    return "deny"
