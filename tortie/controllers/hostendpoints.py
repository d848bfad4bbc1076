"""The host endpoints that a node is to have by itself, as the configuration wishes. Pure.

They carry the node's labels and a profile that allows everything, so that they change nothing until a
policy selects them. (Reference: kube-controllers/pkg/controllers/node/hostendpoints.go.)
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network

from msgspec import structs

from tortie.controllers.settings import HostEndpointSettings
from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.regexp import compile_re2
from tortie.datastore.selector import SelectorError, parse
from tortie.datastore.types.cluster import HostEndpointTemplate
from tortie.datastore.types.endpoint import HostEndpoint, HostEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeWireguardSpec
from tortie.datastore.validate.addresses import parse_cidr_or_ip
from tortie.ipam import addresses

CREATED_BY, US = "projectcalico.org/created-by", "calico-kube-controllers"  # label of all that are ours
_PROFILE = "projectcalico-default-allow"
_SUFFIX = "auto-hep"
_LONGEST = 253  # characters of a name, DNS's
_WHERE = "KubeControllersConfiguration.spec.controllers.node.hostEndpoint.templates"


def is_ours(endpoint: HostEndpoint) -> bool:
    return endpoint.labels.get(CREATED_BY) == US


def wanted(nodes: Iterable[Node], settings: HostEndpointSettings) -> dict[str, HostEndpoint]:
    """All of them by name; none if they are switched off. Raises ValidationError for a wrong template."""
    found = (one for node in nodes for one in _of_node(node, settings)) if settings.create else ()
    return {one.name: one for one in found}


def same(wanted: HostEndpoint, actual: HostEndpoint) -> bool:
    """In what is ours of it; somebody may add ports and profiles."""
    return (
        wanted.labels == actual.labels
        and wanted.metadata.annotations == actual.metadata.annotations
        and wanted.spec.node == actual.spec.node
        and wanted.spec.expectedIPs == actual.spec.expectedIPs
        and wanted.spec.interfaceName == actual.spec.interfaceName
    )


def merged(wanted: HostEndpoint, actual: HostEndpoint) -> HostEndpoint:
    """The actual one made to be the same."""
    spec = structs.replace(
        actual.spec,
        node=wanted.spec.node,
        expectedIPs=wanted.spec.expectedIPs,
        interfaceName=wanted.spec.interfaceName,
    )
    changed = actual.with_metadata(labels=wanted.labels, annotations=wanted.metadata.annotations)
    return structs.replace(changed, spec=spec)


# --- of one node --------------------------------------------------------------------------------


def _of_node(node: Node, settings: HostEndpointSettings) -> Iterator[HostEndpoint]:
    own = known_addresses(node)
    if settings.default:
        yield _endpoint(node, endpoint_name(node.name), own, "*")
    for template in settings.templates:
        if _selects(template, node.labels):
            yield from _of_template(node, template, own)


def _of_template(node: Node, template: HostEndpointTemplate, own: list[str]) -> Iterator[HostEndpoint]:
    inside = _inside(own, template.interfaceCIDRs)
    if not template.interfacePattern:
        if inside:  # an endpoint without an interface is found by its addresses
            yield _endpoint(node, endpoint_name(node.name, template.generateName), inside, "", template)
        return
    pattern = _pattern(template.interfacePattern)
    for interface in node.spec.interfaces:
        if pattern.search(interface.name):
            name = endpoint_name(node.name, template.generateName, interface.name)
            both = list(dict.fromkeys([*inside, *interface.addresses]))
            yield _endpoint(node, name, both, interface.name, template)


def _endpoint(
    node: Node, name: str, expected: list[str], interface: str, template: HostEndpointTemplate | None = None
) -> HostEndpoint:
    """Labels of the template replace the node's; annotations are the template's alone."""
    labels = node.labels | (template.labels if template else {}) | {CREATED_BY: US}
    return HostEndpoint(
        metadata=ObjectMeta(name=name, labels=labels, annotations=template.annotations if template else {}),
        spec=HostEndpointSpec(
            node=node.name, expectedIPs=tuple(expected), interfaceName=interface, profiles=(_PROFILE,)
        ),
    )


def endpoint_name(node: str, template: str = "", interface: str = "") -> str:
    """Calico's names; one that is too long becomes a digest."""
    name = "-".join(part for part in (node, template, interface, _SUFFIX) if part)
    if len(name) <= _LONGEST:
        return name
    digest = base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode().rstrip("=")
    return f"{digest.translate(str.maketrans('', '', '-_.'))}-{_SUFFIX}".lower()


def known_addresses(node: Node) -> list[str]:
    """All that are known of a node, without prefix lengths, each once, in Calico's order."""
    bgp, wireguard = node.spec.bgp or NodeBGPSpec(), node.spec.wireguard or NodeWireguardSpec()
    texts = [
        bgp.ipv4Address,
        bgp.ipv6Address,
        bgp.ipv4IPIPTunnelAddr,
        node.spec.ipv4VXLANTunnelAddr,
        node.spec.ipv6VXLANTunnelAddr,
        wireguard.interfaceIPv4Address,
        wireguard.interfaceIPv6Address,
        *(one.address for one in node.spec.addresses if one.type == "InternalIP"),
        *(address for interface in node.spec.interfaces for address in interface.addresses),
    ]
    parsed = (parse_cidr_or_ip(text) for text in texts if text)
    return list(dict.fromkeys(str(found[0]) for found in parsed if found is not None))


def _inside(own: Iterable[str], cidrs: Iterable[str]) -> list[str]:
    nets = []
    for cidr in cidrs:
        try:
            nets.append(ip_network(cidr, strict=False))
        except ValueError as err:
            raise ValidationError([FieldError(f"{_WHERE}.interfaceCIDRs", cidr, str(err))]) from err
    parsed = [addresses.address(text) for text in own]
    return [str(one) for one in parsed if any(one.version == net.version and one in net for net in nets)]


def _selects(template: HostEndpointTemplate, labels: Mapping[str, str]) -> bool:
    try:
        return parse(template.nodeSelector).evaluate(labels)
    except SelectorError as err:
        raise ValidationError(
            [FieldError(f"{_WHERE}.nodeSelector", template.nodeSelector, str(err))]
        ) from err


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return compile_re2(text)
    except ValueError as err:
        raise ValidationError([FieldError(f"{_WHERE}.interfacePattern", text, str(err))]) from err
