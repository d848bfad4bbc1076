"""networking.k8s.io/v1 NetworkPolicy to NetworkPolicy (conversion.go, K8sNetworkPolicyToCalico)."""

from collections.abc import Iterable
from typing import Any

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.codec import from_plain
from tortie.datastore.kubernetes.conversion import Conversion, RuleError, convert_rules
from tortie.datastore.kubernetes.metadata import converted_metadata
from tortie.datastore.kubernetes.ports import ANY, by_protocol, port_or_range, protocol_name
from tortie.datastore.kubernetes.ports import Port as RulePort
from tortie.datastore.kubernetes.selectors import namespace_selector, pod_selector
from tortie.datastore.kubernetes.types import (
    EgressRule,
    IngressRule,
    IPBlock,
    KubernetesNetworkPolicy,
    NetworkPolicySpec,
    Peer,
    Port,
)
from tortie.datastore.types.policy import EntityRule, NetworkPolicy, Rule
from tortie.datastore.types.policy import NetworkPolicySpec as ConvertedSpec
from tortie.datastore.validate.addresses import parse_cidr
from tortie.datastore.validate.policy import DEFAULT_TIER

# All of them stand together, with room for Calico's own before and after.
_ORDER = 1000.0


def convert_network_policy(raw: Any) -> Conversion[NetworkPolicy]:
    """The v3 policy under the object's own name and namespace.

    A rule that cannot be converted is left out and told of: it could only have allowed something.
    Raises ValidationError if the object has not the form of a NetworkPolicy.
    """
    found = from_plain(KubernetesNetworkPolicy, raw)
    spec = found.spec
    try:
        selector = pod_selector(spec.podSelector)
    except RuleError as err:
        raise ValidationError([FieldError("NetworkPolicy.spec.podSelector", None, str(err))]) from err
    ingress, refused_in = convert_rules(spec.ingress, _ingress, lambda _rule: ())
    egress, refused_out = convert_rules(spec.egress, _egress, lambda _rule: ())
    policy = NetworkPolicy(
        metadata=converted_metadata(found.metadata, found.metadata.name, found.metadata.namespace),
        spec=ConvertedSpec(
            tier=DEFAULT_TIER,
            order=_ORDER,
            selector=selector,
            ingress=ingress,
            egress=egress,
            types=_types(spec),
        ),
    )
    return Conversion(found.metadata.name, policy, refused_in + refused_out)


def _types(spec: NetworkPolicySpec) -> tuple[str, ...]:
    """Objects older than the field have none, and speak of ingress alone."""
    return tuple(kind for kind in ("Ingress", "Egress") if kind in spec.policyTypes) or ("Ingress",)


def _ingress(rule: IngressRule) -> Iterable[Rule]:
    for protocol, ports in _ports(rule.ports):
        for peer in _peers(rule.peers):
            yield _allow(protocol, peer, EntityRule(ports=ports))


def _egress(rule: EgressRule) -> Iterable[Rule]:
    for protocol, ports in _ports(rule.ports):
        for peer in _peers(rule.peers, ports):
            yield _allow(protocol, EntityRule(), peer)


def _allow(protocol: str, source: EntityRule, destination: EntityRule) -> Rule:
    return Rule(action="Allow", protocol=protocol or None, source=source, destination=destination)


def _ports(ports: tuple[Port, ...]) -> list[tuple[str, tuple[int | str, ...]]]:
    entries: list[tuple[str, RulePort | None]] = [
        (
            protocol_name("TCP" if port.protocol is None else port.protocol),
            None if port.port is None else port_or_range(port.port, port.endPort),
        )
        for port in ports
    ]
    return by_protocol(entries or [(ANY, None)])


def _peers(peers: tuple[Peer, ...], ports: tuple[int | str, ...] = ()) -> list[EntityRule]:
    """Nobody named means everybody."""
    if not peers:
        return [EntityRule(ports=ports)]
    return [_peer(peer, ports) for peer in peers]


def _peer(peer: Peer, ports: tuple[int | str, ...]) -> EntityRule:
    if peer.ipBlock is not None:  # the API does not allow selectors beside it
        return _block(peer.ipBlock, ports)
    return EntityRule(
        selector=pod_selector(peer.podSelector),
        namespaceSelector=namespace_selector(peer.namespaceSelector),
        ports=ports,
    )


def _block(block: IPBlock, ports: tuple[int | str, ...]) -> EntityRule:
    return EntityRule(nets=(_net(block.cidr),), notNets=tuple(map(_net, block.excepted)), ports=ports)


def _net(cidr: str) -> str:
    """Masked. Calico goes on without what it cannot read, which would allow more than was written."""
    found = parse_cidr(cidr)
    if found is None:
        raise RuleError(f"invalid CIDR address: {cidr}")
    return str(found[1])
