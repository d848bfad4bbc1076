"""One rule of a policy or profile: what is wrong in it, wherever it stands, and its spelling.

What depends on the place (ingress or egress, namespaced or global) is in policy.py. Reasons are those of
Calico's validators and of the schema's rules.
"""

from typing import Any

from msgspec import structs

from tortie.datastore.types.policy import EntityRule, HTTPPath, Rule
from tortie.datastore.validate.addresses import net, parse_cidr_or_ip
from tortie.datastore.validate.fields import (
    Check,
    Problems,
    all_of,
    integer,
    is_empty,
    listing,
    one_of,
    struct,
    text,
)
from tortie.datastore.validate.formats import (
    canonical_number,
    canonical_port,
    has_ports,
    name,
    no_global,
    port,
    port_range,
    protocol,
    protocol_number,
    selector,
)
from tortie.datastore.validate.metadata import check_annotations

_ICMP, _TCP, _ICMPV6 = 1, 6, 58  # IANA protocol numbers
_PORTS_NEED_PROTOCOL = "rules that specify ports must set protocol to TCP or UDP or SCTP"
_NUMBERS_NEED_PROTOCOL = "rules with numeric port or port range must set protocol to TCP or UDP or SCTP"
_CATCH_ALL = {"0.0.0.0/0", "::/0"}


def canonical_rule(rule: Rule) -> Rule:
    """Ports and protocols as Calico writes them; what is wrong stays."""
    return structs.replace(
        rule,
        protocol=canonical_number(rule.protocol),
        notProtocol=canonical_number(rule.notProtocol),
        source=_canonical_entity(rule.source),
        destination=_canonical_entity(rule.destination),
    )


def _canonical_entity(entity: EntityRule) -> EntityRule:
    return structs.replace(
        entity,
        ports=tuple(map(canonical_port, entity.ports)),
        notPorts=tuple(map(canonical_port, entity.notPorts)),
    )


# --- one side of a rule -------------------------------------------------------------------------


def _only_global(problems: Problems, path: str, value: str) -> None:
    if "global(" in value and "".join(value.split()) != "global()":
        problems.add(path, value, "global() cannot be combined with other selectors")


def _services_rules(problems: Problems, path: str, entity: EntityRule) -> None:
    """A service stands alone: its endpoints are its addresses."""
    if entity.services is None:
        return
    if not entity.services.name:
        problems.add(f"{path}.services.name", None, "services must specify a service name")
    for others, what in [
        (("namespaceSelector",), "NamespaceSelector"),
        (("serviceAccounts",), "ServiceAccounts"),
        (("selector", "notSelector"), "Selector/NotSelector"),
        (("nets", "notNets"), "Nets/NotNets"),
    ]:
        for other in others:
            if not is_empty(getattr(entity, other)):
                problems.add(f"{path}.{other}", None, f"cannot specify {what} and Services on the same rule")


_rule_selector = no_global("global() can only be used in an EntityRule namespaceSelector")
_nets = listing(net, most=256, unique=True)
_ports = listing(port, most=50)
_entity = struct(
    {
        "nets": _nets,
        "notNets": _nets,
        "selector": _rule_selector,
        "notSelector": selector,
        "namespaceSelector": all_of(selector, _only_global),
        "services": struct({"name": name, "namespace": name}),
        "ports": _ports,
        "notPorts": _ports,
        "serviceAccounts": struct({"names": listing(name, unique=True), "selector": selector}),
    },
    _services_rules,
)

# --- HTTP, ICMP ---------------------------------------------------------------------------------


def _http_path(problems: Problems, path: str, value: HTTPPath) -> None:
    wanted = value.exact or value.prefix
    if value.exact and value.prefix:
        reason = "Invalid path match. Both 'exact' and 'prefix' are set"
    elif not wanted:
        reason = "Invalid path match. Either 'exact' or 'prefix' must be set"
    elif not wanted.startswith("/") or set("? #") & set(wanted):
        reason = "Invalid path. (must start with `/` and not contain `?` or `#`"
    else:
        return
    problems.add(path, wanted, reason)


_http = struct(
    {
        "methods": listing(text(64), most=20, unique=True),
        "paths": listing(struct({"exact": text(), "prefix": text()}, _http_path), most=20),
    }
)


def _code_needs_type(problems: Problems, path: str, icmp: Any) -> None:
    if icmp.code is not None and icmp.type is None:
        problems.add(f"{path}.code", icmp.code, "ICMP code specified without an ICMP type")


_icmp_fields = struct({"type": integer(0, 254), "code": integer(0, 255)}, _code_needs_type)

# --- the rule as a whole ------------------------------------------------------------------------


def _ports_rules(problems: Problems, path: str, rule: Rule) -> None:
    for side in ("source", "destination"):
        for field in ("ports", "notPorts"):
            ports = getattr(getattr(rule, side), field)
            where = f"{path}.{side}.{field}"
            if rule.protocol is None:
                if any(port_range(value) for value in ports):
                    problems.add(where, _joined(ports), _NUMBERS_NEED_PROTOCOL)
            elif ports and not has_ports(rule.protocol):
                problems.add(where, _joined(ports), _PORTS_NEED_PROTOCOL)
    if rule.destination.services is not None:
        for field in ("ports", "notPorts"):
            if ports := getattr(rule.destination, field):
                reason = "ports and notPorts cannot be specified with services"
                problems.add(f"{path}.destination.{field}", _joined(ports), reason)


def _joined(values: tuple[Any, ...]) -> str:
    return "[" + " ".join(map(str, values)) + "]"


def _family_rules(problems: Problems, path: str, rule: Rule) -> None:
    """All nets of a rule are of one IP version, that of the rule if it says one."""
    seen: set[int] = set()
    for side in ("source", "destination"):
        for field in ("nets", "notNets"):
            nets, where = getattr(getattr(rule, side), field), f"{path}.{side}.{field}"
            versions = set()
            for index, value in enumerate(nets):
                if (parsed := parse_cidr_or_ip(value)) is None:
                    continue  # named already
                if "/" not in value:
                    problems.add(f"{where}[{index}]", value, "invalid CIDR")
                versions.add(parsed[1].version)
                if field == "notNets" and str(parsed[1]) in _CATCH_ALL:
                    reason = "catch-all CIDR in negation creates logical contradiction (matches no traffic)"
                    problems.add(f"{where}[{index}]", value, reason)
            if rule.ipVersion is not None and versions - {rule.ipVersion}:
                problems.add(where, _joined(nets), "rule IP version doesn't match CIDR version")
            if versions and len(seen | versions) > 1:
                problems.add(where, _joined(nets), "rule contains both IPv4 and IPv6 CIDRs")
            seen |= versions


def _icmp_rules(problems: Problems, path: str, rule: Rule) -> None:
    if rule.icmp is not None and protocol_number(rule.protocol) not in (_ICMP, _ICMPV6):
        problems.add(f"{path}.protocol", rule.protocol, "ICMP fields require protocol to be ICMP or ICMPv6")
    for field in ("protocol", "notProtocol"):
        for number, label, version in [(_ICMP, "ICMP", 4), (_ICMPV6, "ICMPv6", 6)]:
            if protocol_number(getattr(rule, field)) == number and rule.ipVersion not in (None, version):
                reason = f"protocol {label} requires ipVersion {version}"
                problems.add(f"{path}.ipVersion", rule.ipVersion, reason)


def _http_rules(problems: Problems, path: str, rule: Rule) -> None:
    if rule.http is None:
        return
    if rule.protocol is not None and protocol_number(rule.protocol) != _TCP:
        reason = "rules with HTTP match must have protocol TCP or unset"
        problems.add(f"{path}.protocol", rule.protocol, reason)
    if rule.action != "Allow":
        problems.add(f"{path}.action", rule.action, "HTTP match is only valid on Allow rules")


def _ip_version(problems: Problems, path: str, value: Any) -> None:
    if value not in (4, 6):
        problems.add(path, value, "supported values: 4, 6")


def _annotations(problems: Problems, path: str, value: Any) -> None:
    check_annotations(value, problems, path)


rule: Check = struct(
    {
        "action": one_of("Allow", "Deny", "Log", "Pass"),
        "ipVersion": _ip_version,
        "protocol": protocol,
        "notProtocol": protocol,
        "icmp": _icmp_fields,
        "notICMP": _icmp_fields,
        "source": _entity,
        "destination": _entity,
        "http": _http,
        "metadata": struct({"annotations": _annotations}),
    },
    _ports_rules,
    _family_rules,
    _icmp_rules,
    _http_rules,
    required=("action",),
)
