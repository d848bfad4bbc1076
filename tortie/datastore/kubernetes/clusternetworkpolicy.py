"""policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy to GlobalNetworkPolicy (clusternetworkpolicy.go)."""

from collections.abc import Iterable
from typing import Any

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.codec import from_plain
from tortie.datastore.kubernetes.conversion import Conversion, RuleError, convert_rules
from tortie.datastore.kubernetes.metadata import converted_metadata
from tortie.datastore.kubernetes.ports import ANY, Port, by_protocol, port_name, port_range
from tortie.datastore.kubernetes.selectors import namespace_selector, pod_selector
from tortie.datastore.kubernetes.types import (
    ClusterEgressRule,
    ClusterIngressRule,
    ClusterNetworkPolicy,
    ClusterPeer,
    DestinationPort,
    Protocol,
    ProtocolPort,
    Subject,
)
from tortie.datastore.types.policy import (
    EntityRule,
    GlobalNetworkPolicy,
    GlobalNetworkPolicySpec,
    Rule,
    RuleMetadata,
)
from tortie.datastore.validate.addresses import parse_cidr

_TIERS = {"Admin": "kube-admin", "Baseline": "kube-baseline"}  # of the API -> of ours
_ACTIONS = {"Accept": "Allow", "Deny": "Deny", "Pass": "Pass"}  # of the API -> of a v3 rule
_ClusterRule = ClusterIngressRule | ClusterEgressRule
_RULE_NAME = "name"  # annotation that keeps a rule's name


def convert_cluster_network_policy(raw: Any) -> Conversion[GlobalNetworkPolicy]:
    """The v3 policy under the object's own name; none without a known tier and a subject.

    A rule that cannot be converted becomes one that denies everything, unless it could only have
    accepted. Raises ValidationError if the object has not the form of a ClusterNetworkPolicy.
    """
    found = from_plain(ClusterNetworkPolicy, raw)
    name, spec = found.metadata.name, found.spec
    try:
        selectors = _subject(spec.subject)
    except RuleError as err:
        raise ValidationError([FieldError("ClusterNetworkPolicy.spec.subject", None, str(err))]) from err
    if spec.tier not in _TIERS or selectors is None:
        return Conversion(name, None)
    ingress, refused_in = convert_rules(spec.ingress, _ingress, _closed)
    egress, refused_out = convert_rules(spec.egress, _egress, _closed)
    directions = (("Ingress", ingress), ("Egress", egress))
    policy = GlobalNetworkPolicy(
        metadata=converted_metadata(found.metadata, name),
        spec=GlobalNetworkPolicySpec(
            tier=_TIERS[spec.tier],
            order=float(spec.priority),
            namespaceSelector=selectors[0],
            selector=selectors[1],
            ingress=ingress,
            egress=egress,
            # Both tiers pass by default: a direction without rules has nothing to decide.
            types=tuple(direction for direction, rules in directions if rules),
        ),
    )
    return Conversion(name, policy, refused_in + refused_out)


def _subject(subject: Subject) -> tuple[str, str] | None:
    """Selector of namespaces and of pods; None if there is no subject."""
    if subject.namespaces is not None:
        return namespace_selector(subject.namespaces), pod_selector(None)
    if subject.pods is not None:
        return namespace_selector(subject.pods.namespaceSelector), pod_selector(subject.pods.podSelector)
    return None


def _closed(rule: _ClusterRule) -> Iterable[Rule]:
    """What a denial or a pass would have kept from rules further down must not reach them."""
    return [Rule(action="Deny")] if rule.action in ("Deny", "Pass") else []


def _ingress(rule: ClusterIngressRule) -> list[Rule]:
    return [
        _rule(rule, protocol, _peer(peer, "From"), EntityRule(ports=ports))
        for protocol, ports in _ports(rule)
        for peer in rule.peers
    ]


def _egress(rule: ClusterEgressRule) -> list[Rule]:
    return [
        _rule(rule, protocol, EntityRule(), _peer(peer, "To", ports))
        for protocol, ports in _ports(rule)
        for peer in rule.peers
    ]


def _rule(rule: _ClusterRule, protocol: str, source: EntityRule, destination: EntityRule) -> Rule:
    return Rule(
        action=_ACTIONS[rule.action],
        protocol=protocol or None,
        source=source,
        destination=destination,
        metadata=RuleMetadata(annotations={_RULE_NAME: rule.name}) if rule.name else None,
    )


def _ports(rule: _ClusterRule) -> list[tuple[str, tuple[int | str, ...]]]:
    """Raises RuleError, for an unknown action too: it is looked at first."""
    if rule.action not in _ACTIONS:
        raise RuleError(f"unsupported cluster network policy action {rule.action}")
    # One by one: an entry that covers everything ends the list, whatever follows.
    return by_protocol(map(_port, rule.protocols or [Protocol()]))


def _port(protocol: Protocol) -> tuple[str, Port | None]:
    given: list[tuple[str, ProtocolPort | None]] = [
        ("TCP", protocol.tcp),
        ("UDP", protocol.udp),
        ("SCTP", protocol.sctp),
    ]
    for name, port in given:
        if port is not None:
            return name, _number(port.destinationPort)
    return ANY, port_name(protocol.destinationNamedPort) if protocol.destinationNamedPort else None


def _number(port: DestinationPort | None) -> Port | None:
    if port is None or not (port.number or port.range):
        return None
    if port.number:
        return port_range(port.number, port.number)
    return port_range(port.range.start, port.range.end) if port.range else None


def _peer(peer: ClusterPeer, field: str, ports: tuple[int | str, ...] = ()) -> EntityRule:
    """Networks are known to egress rules only, and limit the pods further if both are given."""
    networks = peer.networks if field == "To" else ()
    if peer.namespaces is None and peer.pods is None and not networks:
        raise RuleError(f"none of supported fields in '{field}' is set.")
    selector, namespaces = "", namespace_selector(peer.namespaces)
    if peer.pods is not None:
        selector = pod_selector(peer.pods.podSelector)
        namespaces = namespace_selector(peer.pods.namespaceSelector)
    return EntityRule(
        selector=selector, namespaceSelector=namespaces, nets=tuple(map(_net, networks)), ports=ports
    )


def _net(cidr: str) -> str:
    found = parse_cidr(cidr)
    if found is None:
        raise RuleError(f"invalid CIDR in ANP rule: invalid CIDR address: {cidr}")
    return str(found[1])
