"""Rules of the API as rules of the model: selectors become IP sets, everything else is checked and plain.

Compiled once, when the profile or policy that holds them is read. A rule that cannot be understood raises
ValidationError: its owner then denies, because leaving one rule out could open what it was to close.
(Reference: policy sheet 2.2-2.4; felix/calc/rule_scanner.go, updateprocessors/rules.go.)
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from tortie.datastore.selector import ALL, Selector, SelectorError, parse, unique_id
from tortie.datastore.types import policy as v3
from tortie.felix.calc import canonical, model
from tortie.felix.calc.canonical import refuse

NAMESPACE = "projectcalico.org/namespace"
SERVICE_ACCOUNT = "projectcalico.org/serviceaccount"
_QUOTED_OR_CALL = re.compile(r"\"[^\"]*\"|'[^']*'|all\(\)|global\(\)")
_ICMP_PROTOCOLS = {"icmp": 4, 1: 4, "icmpv6": 6, 58: 6}  # protocol -> the IP version it belongs to


# --- where the members of a set come from -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SelectorSource:
    """All addresses of whatever the selector matches."""

    selector: Selector
    kind: model.SetKind = "net"

    @property
    def id(self) -> str:
        return self.selector.id


@dataclass(frozen=True, slots=True)
class PortSource:
    """Address and port of each endpoint that matches and has a port of that name."""

    selector: Selector
    protocol: str  # tcp, udp, sctp or any
    name: str
    kind: model.SetKind = "ip,port"

    @property
    def id(self) -> str:
        return unique_id("n", f"{self.selector.id},{self.protocol},{self.name}")


@dataclass(frozen=True, slots=True)
class ServiceSource:
    """The endpoints behind a Kubernetes service, `namespace/name`."""

    service: str
    with_ports: bool

    @property
    def kind(self) -> model.SetKind:
        return "ip,port" if self.with_ports else "net"

    @property
    def id(self) -> str:
        return unique_id("svc" if self.with_ports else "svcnoport", self.service)


Source = SelectorSource | PortSource | ServiceSource


# --- rules --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compiled:
    """Rules and the sets they name, by id."""

    rules: tuple[model.Rule, ...]
    sources: dict[str, Source]


def compile_rules(rules: Iterable[v3.Rule], namespace: str = "") -> Compiled:
    """`namespace` is that of the policy they are in, '' for profiles and global policies."""
    sources: dict[str, Source] = {}
    return Compiled(tuple(_compile(rule, namespace, sources) for rule in rules), sources)


def _compile(rule: v3.Rule, namespace: str, sources: dict[str, Source]) -> model.Rule:
    protocol = None if rule.protocol is None else canonical.protocol(rule.protocol)
    not_protocol = None
    if rule.notProtocol is not None:
        not_protocol = canonical.protocol(rule.notProtocol, "notProtocol")
    icmp, not_icmp = _icmp(rule.icmp, "icmp"), _icmp(rule.notICMP, "notICMP")
    if (icmp or not_icmp) and protocol not in _ICMP_PROTOCOLS:
        raise refuse("icmp", protocol, "protocol must be ICMP or ICMPv6 when ICMP fields are given")
    return model.Rule(
        action=_action(rule.action),
        ip_version=_version(rule, protocol, not_protocol),
        protocol=protocol,
        not_protocol=not_protocol,
        icmp=icmp,
        not_icmp=not_icmp,
        src=_side(rule.source, "source", protocol, namespace, sources),
        dst=_side(rule.destination, "destination", protocol, namespace, sources),
        annotations=tuple(sorted(rule.metadata.annotations.items())) if rule.metadata else (),
    )


def _action(action: str) -> model.RuleAction:
    match action.lower():
        case "allow":
            return "allow"
        case "deny":
            return "deny"
        case "pass" | "next-tier":
            return "pass"
        case "log":
            return "log"
    raise refuse("action", action, "must be Allow, Deny, Log or Pass")


def _version(rule: v3.Rule, protocol: int | str | None, not_protocol: int | str | None) -> int:
    """What is said, or what the name of an ICMP protocol implies; numbers imply nothing."""
    if rule.ipVersion is not None:
        if rule.ipVersion not in (4, 6):
            raise refuse("ipVersion", rule.ipVersion, "must be 4 or 6")
        return rule.ipVersion
    for name in (protocol, not_protocol):
        if isinstance(name, str) and name in _ICMP_PROTOCOLS:
            return _ICMP_PROTOCOLS[name]
    return 0


def _icmp(fields: v3.ICMPFields | None, where: str) -> tuple[int, int | None] | None:
    if fields is None or (fields.type is None and fields.code is None):
        return None
    kind, code = fields.type, fields.code
    if kind is None or not 0 <= kind <= 254 or (code is not None and not 0 <= code <= 255):
        raise refuse(where, f"{kind}/{code}", "ICMP type must be 0-254, code 0-255 and only with a type")
    return kind, code


def _side(
    entity: v3.EntityRule,
    where: str,
    protocol: int | str | None,
    namespace: str,
    sources: dict[str, Source],
) -> model.Side:
    positive, negative = selectors(entity, namespace)
    ports, named = _split_ports(entity.ports, protocol, f"{where}.ports")
    not_ports, not_named = _split_ports(entity.notPorts, protocol, f"{where}.notPorts")
    kind = "any" if protocol is None else canonical.PORT_PROTOCOLS.get(protocol, "any")
    port_sources = [PortSource(positive or ALL, kind, name) for name in named]
    not_port_sources = [PortSource(positive or ALL, kind, name) for name in not_named]
    plain: list[Source] = []
    # With named ports alone the selector is already part of their sets.
    if positive is not None and (ports or not named):
        plain.append(SelectorSource(positive))
    services: list[Source] = []
    if entity.services is not None and entity.services.name:
        service = f"{entity.services.namespace or namespace}/{entity.services.name}"
        if where == "source":
            plain.append(ServiceSource(service, with_ports=False))
        else:
            services.append(ServiceSource(service, with_ports=True))
    not_plain = [] if negative is None else [SelectorSource(negative)]
    for source in [*port_sources, *not_port_sources, *plain, *services, *not_plain]:
        sources[source.id] = source
    return model.Side(
        nets=tuple(canonical.cidr(net, f"{where}.nets") for net in entity.nets),
        sets=_ids(plain),
        ports=ports,
        port_sets=_ids(port_sources),
        service_sets=_ids(services),
        not_nets=tuple(canonical.cidr(net, f"{where}.notNets") for net in entity.notNets),
        not_sets=_ids(not_plain),
        not_ports=not_ports,
        not_port_sets=_ids(not_port_sources),
    )


def _ids(sources: Iterable[Source]) -> tuple[str, ...]:
    return tuple(source.id for source in sources)


def _split_ports(
    given: Iterable[int | str], protocol: int | str | None, where: str
) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    """Numeric ranges, and names; numbers mean nothing without a protocol that has ports."""
    parsed = [canonical.ports(value, where) for value in given]
    ranges = tuple(one for one in parsed if isinstance(one, tuple))
    if ranges and (protocol is None or protocol not in canonical.PORT_PROTOCOLS):
        raise refuse(where, protocol or "", "rules that specify ports must set protocol to TCP, UDP or SCTP")
    return ranges, tuple(one for one in parsed if isinstance(one, str))


# --- selectors ----------------------------------------------------------------------------------


def selectors(entity: v3.EntityRule, namespace: str) -> tuple[Selector | None, Selector | None]:
    """(what the side must match, what it must not); both given become one positive selector."""
    positive = parse_selector(_scoped(entity, namespace), "selector")
    negative = parse_selector(entity.notSelector, "notSelector")
    if positive is not None and negative is not None:
        return parsed(conjunction(positive.canonical, f"!({negative.canonical})")), None
    return positive, negative


def _scoped(entity: v3.EntityRule, namespace: str) -> str:
    """The selector with the namespaces and service accounts that the entity is limited to.

    A namespaced policy's rules look into its own namespace as soon as any selector is used.
    """
    within = ""
    if entity.namespaceSelector:
        within = namespace_clause(entity.namespaceSelector)
    elif namespace:
        within = equals(NAMESPACE, namespace)
    own = parse_selector(entity.selector, "selector")
    parts = [_service_accounts(entity.serviceAccounts), own.canonical if own else ""]
    selector = conjunction(*parts)
    if within and (selector or entity.notSelector or entity.namespaceSelector):
        return conjunction(within, selector)
    return selector


def namespace_clause(text: str) -> str:
    """A selector over namespaces as one over what lives in them."""
    words = {"all()": f"has({NAMESPACE})", "global()": f"!has({NAMESPACE})"}
    return replace_calls(prefixed(text, "pcns.", "namespaceSelector"), words)


def replace_calls(text: str, words: Mapping[str, str]) -> str:
    """`all()` and `global()` as other words; what is written in quotes stays."""
    return _QUOTED_OR_CALL.sub(lambda match: words.get(match[0], match[0]), text)


def _service_accounts(match: v3.ServiceAccountMatch | None) -> str:
    if match is None:
        return ""
    parts = []
    if match.selector:
        parts.append(prefixed(match.selector, "pcsa.", "serviceAccounts.selector"))
    if match.names:
        names = ", ".join(_quoted(name, "serviceAccounts.names") for name in match.names)
        parts.append(f"{SERVICE_ACCOUNT} in {{{names}}}")
    return conjunction(*parts)


# Selectors are put together as text, as in Calico: the ids of sets depend on it. Each part is a whole
# selector by itself before it becomes one, or a stray bracket could reach from one into the next.


def conjunction(*parts: str) -> str:
    """What all of the parts say; empty ones say nothing."""
    said = [part for part in parts if part]
    return said[0] if len(said) == 1 else " && ".join(f"({part})" for part in said)


def equals(label: str, value: str) -> str:
    return f"{label} == {_quoted(value, label)}"


def _quoted(value: str, where: str) -> str:
    """Raises ValidationError for a value that the language cannot write."""
    if "'" not in value:
        return f"'{value}'"
    if '"' in value:
        raise refuse(where, value, "holds both kinds of quotes")
    return f'"{value}"'


def prefixed(text: str, prefix: str, where: str) -> str:
    """The canonical text of a selector over labels that begin with `prefix`."""
    try:
        return parsed(text).prefixed(prefix).canonical
    except SelectorError as err:
        raise refuse(where, text, str(err)) from err


def parse_selector(text: str, where: str) -> Selector | None:
    """None for an empty text: it asks for nothing."""
    if not text:
        return None
    try:
        return parsed(text)
    except SelectorError as err:
        raise refuse(where, text, str(err)) from err


@lru_cache(maxsize=4096)  # more than most clusters have
def parsed(text: str) -> Selector:
    """The rules of a cluster say the same few selectors again and again. Raises SelectorError."""
    return parse(text)
