"""Kubernetes nodes as v3 Nodes, and back as annotations of the Kubernetes node. Pure.

A Kubernetes node changes all the time; what is ours of it are annotations, written by a few. Two
writers meet when one has changed annotations that the other has read: see `ours`.
(Reference: Calico data model, 3.5; libcalico-go/lib/backend/k8s/resources/node.go.)
"""

from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any

import msgspec

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.kubernetes import types as kube
from tortie.datastore.types.meta import ASNumber, ObjectMeta
from tortie.datastore.types.node import (
    Node,
    NodeAddress,
    NodeBGPSpec,
    NodeInterface,
    NodeSpec,
    NodeStatus,
    NodeWireguardSpec,
    OrchRef,
)
from tortie.datastore.validate.addresses import parse_cidr_or_ip, parse_ip

_PREFIX = "projectcalico.org/"
_LABELS, _ANNOTATIONS = f"{_PREFIX}labels", f"{_PREFIX}annotations"
KUBE_LABELS = f"{_PREFIX}kube-labels"  # which labels are Kubernetes', as JSON; never stored on a node there
_ASN, _INTERFACES = f"{_PREFIX}ASNumber", f"{_PREFIX}Interfaces"
_ADDRESS_TYPES = ("InternalIP", "ExternalIP")

# field -> annotation, by the struct they are in
_BGP = {
    "ipv4Address": "IPv4Address",
    "ipv6Address": "IPv6Address",
    "ipv4IPIPTunnelAddr": "IPv4IPIPTunnelAddr",
    "routeReflectorClusterID": "RouteReflectorClusterID",
}
_TUNNELS = {
    "ipv4VXLANTunnelAddr": "IPv4VXLANTunnelAddr",
    "vxlanTunnelMACAddr": "VXLANTunnelMACAddr",
    "ipv6VXLANTunnelAddr": "IPv6VXLANTunnelAddr",
    "vxlanTunnelMACAddrV6": "VXLANTunnelMACAddrV6",
}
_WIREGUARD = {
    "interfaceIPv4Address": "IPv4WireguardInterfaceAddr",
    "interfaceIPv6Address": "IPv6WireguardInterfaceAddr",
}
_STATUS = {"wireguardPublicKey": "WireguardPublicKey", "wireguardPublicKeyV6": "WireguardPublicKeyV6"}

_OURS = (
    _LABELS,
    _ANNOTATIONS,
    _ASN,
    _INTERFACES,
    *(_PREFIX + name for group in (_BGP, _TUNNELS, _WIREGUARD, _STATUS) for name in group.values()),
)


def ours(annotations: Mapping[str, str]) -> dict[str, str]:
    """The part of a node's annotations that a v3 Node is stored in."""
    return {name: annotations[name] for name in _OURS if name in annotations}


# --- from the API -------------------------------------------------------------------------------


def calico_node(found: kube.Node, use_pod_cidr: bool = False) -> Node:
    """What readers see; annotations that cannot be understood count as absent."""
    meta = found.metadata
    bgp = _bgp(meta.annotations)
    wireguard = _fields(meta.annotations, _WIREGUARD, _is_ip)
    if use_pod_cidr and found.spec.podCIDRs:
        # Without our IPAM the tunnel has the first address of what the node was given.
        address = _first_address(found.spec.podCIDRs[0])
        bgp["ipv4IPIPTunnelAddr"] = address
        has_key = bool(meta.annotations.get(_PREFIX + _STATUS["wireguardPublicKey"]))
        wireguard = {"interfaceIPv4Address": address} if has_key else {}
    return Node(
        metadata=ObjectMeta(
            name=meta.name,
            uid=meta.uid,
            resourceVersion=meta.resourceVersion,
            creationTimestamp=meta.creationTimestamp,
            labels=_strings(meta.annotations, _LABELS) | meta.labels,
            annotations=_strings(meta.annotations, _ANNOTATIONS) | {KUBE_LABELS: _json(meta.labels)},
        ),
        spec=NodeSpec(
            bgp=NodeBGPSpec(**bgp) if bgp else None,
            wireguard=NodeWireguardSpec(**wireguard) if wireguard else None,
            orchRefs=(OrchRef(nodeName=meta.name, orchestrator="k8s"),),
            addresses=tuple(_addresses(found, bgp)),
            interfaces=_interfaces(meta.annotations),
            **_fields(meta.annotations, _TUNNELS),
        ),
        status=NodeStatus(podCIDRs=found.spec.podCIDRs, **_fields(meta.annotations, _STATUS)),
    )


def _fields(
    annotations: Mapping[str, str], fields: Mapping[str, str], valid: Callable[[str], bool] = bool
) -> dict[str, Any]:
    found = {field: annotations.get(_PREFIX + name, "") for field, name in fields.items()}
    return {field: value for field, value in found.items() if valid(value)}


def _bgp(annotations: Mapping[str, str]) -> dict[str, Any]:
    addresses = _fields(annotations, _BGP, lambda value: parse_cidr_or_ip(value) is not None)
    try:
        number = ASNumber(annotations.get(_ASN, ""))
    except ValueError:
        return addresses
    return {"asNumber": number, **addresses}


def _is_ip(value: str) -> bool:
    return parse_ip(value) is not None


def _first_address(cidr: str) -> str:
    try:
        return str(ip_network(cidr)[0] + 1)
    except ValueError as err:
        raise ValidationError([FieldError("Node.spec.podCIDR", cidr, str(err))]) from err


def _addresses(found: kube.Node, bgp: Mapping[str, Any]) -> list[NodeAddress]:
    own = [bgp[field] for field in ("ipv4Address", "ipv6Address") if field in bgp]
    return [
        *(NodeAddress(address=address, type="CalicoNodeIP") for address in own),
        *(
            NodeAddress(address=one.address, type=one.type)
            for one in found.status.addresses
            if one.type in _ADDRESS_TYPES
        ),
    ]


def _interfaces(annotations: Mapping[str, str]) -> tuple[NodeInterface, ...]:
    found = _decoded(annotations, _INTERFACES, tuple[NodeInterface, ...]) or ()
    return tuple(
        NodeInterface(name=one.name, addresses=tuple(filter(_is_ip, one.addresses))) for one in found
    )


def _strings(annotations: Mapping[str, str], name: str) -> dict[str, str]:
    return _decoded(annotations, name, dict[str, str]) or {}


def _decoded(annotations: Mapping[str, str], name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(annotations.get(name, ""), type=kind)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


# --- to the API ---------------------------------------------------------------------------------


def node_annotations(node: Node) -> dict[str, str | None]:
    """Every annotation of ours as it must be to store this node; None: it must not be there."""
    labels, annotations = _own_metadata(node.metadata)
    bgp, wireguard = node.spec.bgp or NodeBGPSpec(), node.spec.wireguard or NodeWireguardSpec()
    stored: dict[str, str | None] = {
        _LABELS: _json(labels) if labels else None,
        _ANNOTATIONS: _json(annotations) if annotations else None,
        _ASN: None if bgp.asNumber is None else str(int(bgp.asNumber)),
        _INTERFACES: _json(node.spec.interfaces) if node.spec.interfaces else None,
    }
    for struct, fields in (
        (bgp, _BGP),
        (node.spec, _TUNNELS),
        (wireguard, _WIREGUARD),
        (node.status, _STATUS),
    ):
        stored |= {_PREFIX + name: getattr(struct, field) or None for field, name in fields.items()}
    return stored


def _own_metadata(metadata: ObjectMeta) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations without what was taken over from the Kubernetes node when it was read."""
    inherited = _strings(metadata.annotations, KUBE_LABELS)
    labels = {name: value for name, value in metadata.labels.items() if inherited.get(name) != value}
    return labels, {name: value for name, value in metadata.annotations.items() if name != KUBE_LABELS}
