"""Resources of Calico's v1 API as v3 resources. Pure.

Both are plain data here; whoever decodes the result checks it. What v1 did with names, tags and the word
`next-tier` is told by Calico 3.29, the last to have the command (libcalico-go/lib/upgrade/converters).
"""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from tortie.calicoctl import v1names
from tortie.calicoctl.errors import CommandError
from tortie.core.errors import ValidationError
from tortie.datastore.names import EndpointIds, build_endpoint_name
from tortie.datastore.types.meta import API_VERSION

Plain = dict[str, Any]

_NAMESPACE = ("calico/k8s_ns", "projectcalico.org/namespace")  # the label of a namespace's name: v1's, v3's
_ACTIONS = {word.lower(): word for word in ("Allow", "Deny", "Log", "Pass")} | {
    "": "Allow",
    "next-tier": "Pass",
}
_PROTOCOLS = {word.lower(): word for word in ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")}


def convert(kind: str, document: Plain) -> Plain:
    """A v1 document of this kind as a v3 one. Raises CommandError for what cannot be converted."""
    converter = _CONVERTERS.get(kind.lower())
    if converter is None:
        raise CommandError(f"conversion for the resource type '{kind}' is not supported")
    meta, spec = (_mapping(document.get(part), part) for part in ("metadata", "spec"))
    try:
        name, metadata, made = converter(meta, spec)
    except (TypeError, AttributeError, ValueError) as err:
        named = f" {meta['name']}" if meta.get("name") else ""
        raise CommandError(f"the {kind}{named} cannot be converted: {err}") from err
    kind = _V3_KINDS[kind.lower()]
    metadata = {key: value for key, value in ({"name": name} | metadata).items() if value}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": _without_empty(made)}


def _mapping(value: Any, name: str) -> Plain:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CommandError(f"{name}: expected an object")
    return value


def _without_empty(spec: Plain) -> Plain:
    return {name: value for name, value in spec.items() if value not in (None, "", [], {})}


# --- each kind: its name, the rest of its metadata, its spec ----------------------------------------


def _bgp_peer(meta: Plain, spec: Plain) -> tuple[str, Plain, Plain]:
    scope, node = meta.get("scope"), v1names.node_name(meta.get("node") or "")
    if scope not in ("global", "node"):
        raise CommandError("insufficient identifiers, missing 'scope'")
    if (scope == "node") != bool(node):
        raise CommandError("With Node scope a Node must be defined, with Global scope none")
    address = ipaddress.ip_address(meta.get("peerIP") or "")
    name = v1names.address_name(address)
    made = {"peerIP": str(address), "asNumber": spec.get("asNumber"), "node": node}
    return f"{node}.{name}" if node else name, {}, made


def _host_endpoint(meta: Plain, spec: Plain) -> tuple[str, Plain, Plain]:
    node = v1names.node_name(meta.get("node") or "")
    addresses = [ipaddress.ip_address(text) for text in spec.get("expectedIPs") or ()]
    made = {
        "node": node,
        "interfaceName": spec.get("interfaceName"),
        "expectedIPs": [str(one) for one in sorted(addresses, key=lambda one: one.version)],
        "profiles": list(map(v1names.profile_name, spec.get("profiles") or ())),
        "ports": _ports(spec),
    }
    name = v1names.resource_name(f"{node}.{meta.get('name') or ''}")
    return name, {"labels": meta.get("labels")}, made


def _ip_pool(meta: Plain, spec: Plain) -> tuple[str, Plain, Plain]:
    cidr = str(ipaddress.ip_network(meta.get("cidr") or "", strict=False))
    ipip = _mapping(spec.get("ipip"), "ipip")
    mode = "CrossSubnet" if str(ipip.get("mode") or "").lower() == "cross-subnet" else "Always"
    made = {
        "cidr": cidr,
        "blockSize": 122 if ":" in cidr else 26,
        "ipipMode": mode if ipip.get("enabled") else "Never",
        "vxlanMode": "Never",
        "natOutgoing": bool(spec.get("nat-outgoing")),
        "disabled": bool(spec.get("disabled")),
        "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    }
    return v1names.cidr_name(cidr), {}, made


def _node(meta: Plain, spec: Plain) -> tuple[str, Plain, Plain]:
    bgp = _mapping(spec.get("bgp"), "bgp")
    if bgp and not (bgp.get("ipv4Address") or bgp.get("ipv6Address")):
        raise CommandError("Invalid NodeBGPSpec, missing address")
    addresses = {
        field: str(ipaddress.ip_interface(bgp[field]))
        for field in ("ipv4Address", "ipv6Address")
        if bgp.get(field)
    }
    made = {
        "bgp": _without_empty(addresses | {"asNumber": bgp.get("asNumber")}),
        "orchRefs": spec.get("orchRefs"),
    }
    return v1names.node_name(meta.get("name") or ""), {}, made


def _policy(meta: Plain, spec: Plain) -> tuple[str, Plain, Plain]:
    tier = v1names.name_without_dots(meta.get("tier") or "") or "default"
    ingress, egress = spec.get("ingress") or [], spec.get("egress") or []
    types = [str(one).capitalize() for one in spec.get("types") or ()]
    if not types:
        types = ["Ingress"] * bool(ingress or not egress) + ["Egress"] * bool(egress)
    made = {
        "tier": tier,
        "order": spec.get("order"),
        "selector": _selector(spec.get("selector")),
        "ingress": list(map(_rule, ingress)),
        "egress": list(map(_rule, egress)),
        "doNotTrack": bool(spec.get("doNotTrack")) or None,
        "preDNAT": bool(spec.get("preDNAT")) or None,
        "applyOnForward": bool(spec.get("doNotTrack") or spec.get("preDNAT")) or None,
        "types": types,
    }
    name = f"{tier}.{v1names.name_without_dots(meta.get('name') or '')}"
    return name, {"annotations": meta.get("annotations"), "labels": {"projectcalico.org/tier": tier}}, made


def _profile(meta: Plain, spec: Plain) -> tuple[str, Plain, Plain]:
    labels = dict(_mapping(meta.get("labels"), "labels"))
    name = v1names.profile_name(meta.get("name") or "")
    for tag in meta.get("tags") or ():
        if tag in labels:
            raise CommandError(
                f"Tag: '{tag}' and Label '{tag} == {labels[tag]}' have the same value for Profile: {name}. "
                "Change the Label key before proceeding"
            )
        labels[tag] = ""
    rules = {side: list(map(_rule, spec.get(side) or ())) for side in ("ingress", "egress")}
    return name, {}, rules | {"labelsToApply": labels}


def _tier(meta: Plain, spec: Plain) -> tuple[str, Plain, Plain]:
    return v1names.resource_name(meta.get("name") or ""), {}, {"order": spec.get("order")}


def _workload_endpoint(meta: Plain, spec: Plain) -> tuple[str, Plain, Plain]:
    workload, kind = meta.get("workload") or "", meta.get("orchestrator") or ""
    namespace, pod, container = "default", "", ""
    if kind == "k8s":
        namespace, dot, pod = workload.partition(".")
        if not dot:
            raise CommandError(
                f"malformed k8s workload ID '{workload}': workload was not added through the Calico CNI "
                "plugin and cannot be converted"
            )
        workload, container = "", meta.get("activeInstanceID") or ""
    elif kind == "cni":
        workload, container = "", workload
    else:
        workload = kind if kind == "libnetwork" else v1names.resource_name(workload)
    made = {
        "orchestrator": v1names.resource_name(kind),
        "workload": workload,
        "node": v1names.node_name(meta.get("node") or ""),
        "pod": pod,
        "containerID": container,
        "endpoint": v1names.resource_name(meta.get("name") or ""),
        "ipNetworks": [_network(text) for text in spec.get("ipNetworks") or ()],
        "ipNATs": spec.get("ipNATs"),
        "ipv4Gateway": spec.get("ipv4Gateway"),
        "ipv6Gateway": spec.get("ipv6Gateway"),
        "profiles": list(map(v1names.profile_name, spec.get("profiles") or ())),
        "interfaceName": spec.get("interfaceName"),
        "mac": spec.get("mac"),
        "ports": _ports(spec),
        "allowSpoofedSourcePrefixes": spec.get("allow_spoofed_source_prefixes"),
    }
    labels = {
        _NAMESPACE[1] if key == _NAMESPACE[0] else key: v for key, v in (meta.get("labels") or {}).items()
    }
    return _endpoint_name(made), {"namespace": namespace, "labels": labels}, made


def _endpoint_name(spec: Mapping[str, Any]) -> str:
    ids = EndpointIds(
        node=spec["node"], orchestrator=spec["orchestrator"], endpoint=spec["endpoint"],
        workload=spec["workload"], pod=spec["pod"], containerID=spec["containerID"],
    )  # fmt: skip
    try:
        return build_endpoint_name(ids)
    except ValidationError as err:
        raise CommandError(str(err)) from err


# --- rules ----------------------------------------------------------------------------------------


def _rule(found: Any) -> Plain:
    rule = _mapping(found, "rule")
    action = str(rule.get("action") or "").lower()
    made = {
        "action": _ACTIONS.get(action, rule.get("action")),
        "ipVersion": rule.get("ipVersion"),
        "protocol": _protocol(rule.get("protocol")),
        "icmp": rule.get("icmp"),
        "notProtocol": _protocol(rule.get("notProtocol")),
        "notICMP": rule.get("notICMP"),
        "source": _entity(_mapping(rule.get("source"), "source")),
        "destination": _entity(_mapping(rule.get("destination"), "destination")),
    }
    return _without_empty(made)


def _entity(entity: Plain) -> Plain:
    made: Plain = {}
    for nets, net, selector, tag, ports in (
        ("nets", "net", "selector", "tag", "ports"),
        ("notNets", "notNet", "notSelector", "notTag", "notPorts"),
    ):
        single = [entity[net]] if entity.get(net) else []
        made[nets] = [_network(text) for text in [*single, *(entity.get(nets) or ())]]
        made[selector] = _with_tag(_selector(entity.get(selector)), entity.get(tag))
        made[ports] = entity.get(ports)
    return _without_empty(made)


def _with_tag(selector: str, tag: str | None) -> str:
    """v3 has no tags: a profile gives them as labels without a value."""
    if not tag:
        return selector
    return f"({selector}) && {tag} == ''" if selector else f"{tag} == ''"


def _selector(text: str | None) -> str:
    return (text or "").replace(*_NAMESPACE)


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))


def _protocol(value: Any) -> Any:
    return _PROTOCOLS.get(value.lower(), value) if isinstance(value, str) else value


def _ports(spec: Plain) -> list[Plain]:
    found = [_mapping(port, "port") for port in spec.get("ports") or ()]
    return [port | {"protocol": _protocol(port.get("protocol"))} for port in found]


_CONVERTERS: dict[str, Callable[[Plain, Plain], tuple[str, Plain, Plain]]] = {
    "bgppeer": _bgp_peer,
    "hostendpoint": _host_endpoint,
    "ippool": _ip_pool,
    "node": _node,
    "policy": _policy,
    "profile": _profile,
    "tier": _tier,
    "workloadendpoint": _workload_endpoint,
}
_V3_KINDS = {  # v1 kind in lower case -> v3 kind
    "bgppeer": "BGPPeer",
    "hostendpoint": "HostEndpoint",
    "ippool": "IPPool",
    "node": "Node",
    "policy": "GlobalNetworkPolicy",
    "profile": "Profile",
    "tier": "Tier",
    "workloadendpoint": "WorkloadEndpoint",
}
