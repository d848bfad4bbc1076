"""From BGPFilter resources to what the agent evaluates (reference: BGP facts, 1.4).

A filter with a wrong rule cannot be had in part: without that rule it could let pass what it was made
to stop. Its peers get no filter of that name, and reject everything in its place. Pure.
"""

from collections.abc import Iterable, Mapping

from tortie.bgp.filters import Filter, Operation, Rule
from tortie.bgp.prefix import network
from tortie.datastore.types.bgp import BGPFilter, FilterOperation, FilterRule
from tortie.datastore.validate.bgp import is_community

_DENY = (Rule(accept=False),)


def selected(
    resources: Mapping[str, BGPFilter], names: Iterable[str], problems: list[str]
) -> tuple[Filter, ...]:
    """The filters of these names that exist, by name."""
    return tuple(_filter(resources[name], problems) for name in sorted(set(names)) if name in resources)


def _filter(resource: BGPFilter, problems: list[str]) -> Filter:
    spec, name = resource.spec, resource.name
    try:
        return Filter(
            name=name,
            import4=tuple(_rule(rule, 4) for rule in spec.importV4),
            export4=tuple(_rule(rule, 4) for rule in spec.exportV4),
            import6=tuple(_rule(rule, 6) for rule in spec.importV6),
            export6=tuple(_rule(rule, 6) for rule in spec.exportV6),
        )
    except ValueError as err:
        problems.append(f"BGPFilter {name}: {err}; its peers exchange no routes")
        return Filter(name=name, import4=_DENY, export4=_DENY, import6=_DENY, export6=_DENY)


def _rule(rule: FilterRule, version: int) -> Rule:
    """Raises ValueError."""
    if rule.action not in ("Accept", "Reject"):
        raise ValueError(f"action {rule.action!r}")
    cidr, operator, lengths = "", "In", None
    if rule.cidr:
        net = network(rule.cidr)
        if net.version != version:
            raise ValueError(f"cidr {rule.cidr!r} is not IPv{version}")
        if rule.matchOperator not in ("Equal", "NotEqual", "In", "NotIn"):
            raise ValueError(f"matchOperator {rule.matchOperator!r}")
        cidr, operator = str(net), rule.matchOperator
        if (given := rule.prefixLength) is not None:
            least = net.length if given.min is None else max(net.length, given.min)
            lengths = (least, net.bits if given.max is None else min(net.bits, given.max))
    if rule.peerType not in ("", "iBGP", "eBGP"):
        raise ValueError(f"peerType {rule.peerType!r}")
    if rule.source not in ("", "RemotePeers"):
        raise ValueError(f"source {rule.source!r}")
    return Rule(
        accept=rule.action == "Accept",
        cidr=cidr,
        operator=operator,  # type: ignore[arg-type]  # one of the four, see above
        lengths=lengths,
        remote=bool(rule.source),
        interface=rule.interface,
        community=community(rule.communities.values[0])
        if rule.communities and rule.communities.values
        else (),
        as_path=tuple(map(int, rule.asPathPrefix)),
        priority=rule.priority or 0,
        peer=rule.peerType,  # type: ignore[arg-type]
        operations=tuple(map(_operation, rule.operations)),
    )


def _operation(given: FilterOperation) -> Operation:
    if given.addCommunity is not None:
        return Operation(add_community=community(given.addCommunity.value or ""))
    if given.prependASPath is not None:
        return Operation(prepend=tuple(map(int, given.prependASPath.prefix)))
    if given.setPriority is not None and given.setPriority.value:
        return Operation(priority=given.setPriority.value)
    raise ValueError("an operation without a field")


def community(text: str) -> tuple[int, ...]:
    """Two numbers of 16 bits or three of 32 from `aa:nn` or `aa:nn:mm`. Raises ValueError."""
    if not is_community(text):
        raise ValueError(f"community {text!r} is neither aa:nn of 16 bits nor aa:nn:mm of 32 bits each")
    return tuple(map(int, text.split(":")))
