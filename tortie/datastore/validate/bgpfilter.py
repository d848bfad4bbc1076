"""BGPFilter: import and export rules of one IP version each."""

from typing import Any

from msgspec import structs

from tortie.datastore.types.bgp import BGPFilter, FilterRule
from tortie.datastore.validate.addresses import canonical_cidr, netv4, netv6
from tortie.datastore.validate.bgp import MAX_PRIORITY, is_community
from tortie.datastore.validate.fields import (
    Check,
    Problems,
    anything,
    integer,
    listing,
    one_of,
    struct,
    tested,
)
from tortie.datastore.validate.formats import bgp_interface


def filter_defaults(filter_: BGPFilter) -> BGPFilter:
    fields = ("exportV4", "importV4", "exportV6", "importV6")
    rules = {field: tuple(map(_canonical, getattr(filter_.spec, field))) for field in fields}
    return structs.replace(filter_, spec=structs.replace(filter_.spec, **rules))


def _canonical(rule: FilterRule) -> FilterRule:
    return structs.replace(rule, cidr=canonical_cidr(rule.cidr))


# The schema's pattern for these has no leading zeros and is otherwise that of BGPConfiguration.
_community = tested(
    lambda value: is_community(value) and all(str(int(part)) == part for part in value.split(":")),
    "must be aa:nn of 16 bits or aa:nn:mm of 32 bits each",
    32,
)
_priority = integer(1, MAX_PRIORITY)


def _one_action(problems: Problems, path: str, operation: Any) -> None:
    chosen = [name for name in ("addCommunity", "prependASPath", "setPriority") if getattr(operation, name)]
    if len(chosen) != 1:
        problems.add(
            path, " ".join(chosen), "must be exactly one of addCommunity, prependASPath, setPriority"
        )


_operation = struct(
    {
        "addCommunity": struct({"value": _community}, required=("value",)),
        "prependASPath": struct({"prefix": listing(anything, most=10)}, required=("prefix",)),
        "setPriority": struct({"value": _priority}, required=("value",)),
    },
    _one_action,
)


def _rules(problems: Problems, path: str, rule: FilterRule) -> None:
    if bool(rule.cidr) != bool(rule.matchOperator):
        problems.add(
            f"{path}.matchOperator", rule.matchOperator,
            "cidr and matchOperator must both be set or both be empty",
        )  # fmt: skip
    if rule.prefixLength is not None and not rule.cidr:
        problems.add(f"{path}.cidr", None, "cidr is required when prefixLength is set")
    if rule.prefixLength is not None:
        least, most = rule.prefixLength.min, rule.prefixLength.max
        if least is not None and most is not None and least > most:
            problems.add(f"{path}.prefixLength.min", least, f"must not be greater than max ({most})")
    if rule.operations and rule.action != "Accept":
        reason = "operations may only be used with action Accept"
        problems.add(f"{path}.operations", rule.action, reason)


def _rule(cidr: Check, longest: int) -> Check:
    length = integer(0, longest)
    return struct(
        {
            "cidr": cidr,
            "prefixLength": struct({"min": length, "max": length}),
            "source": one_of("RemotePeers"),
            "interface": bgp_interface,
            "matchOperator": one_of("Equal", "NotEqual", "In", "NotIn"),
            "peerType": one_of("eBGP", "iBGP"),
            "communities": struct({"values": listing(_community, most=1)}, required=("values",)),
            "asPathPrefix": listing(anything),
            "priority": _priority,
            "action": one_of("Accept", "Reject"),
            "operations": listing(_operation, most=10),
        },
        _rules,
        required=("action",),
    )


_v4, _v6 = listing(_rule(netv4, 32)), listing(_rule(netv6, 128))
bgp_filter: Check = struct(
    {"spec": struct({"exportV4": _v4, "importV4": _v4, "exportV6": _v6, "importV6": _v6})}
)
