"""From an interface's name to its endpoint's chain: a tree one level deep, cheap for hundreds of endpoints.

Names that share their first differing character share a child chain. Whatever matches no name meets the
end rules, which stand in the root and in every child because the way down is a goto. For workloads the
end rule denies: traffic of an interface that felix does not know, or not yet, is dropped, also while
felix is not running. (Reference: policy sheet 5.5; felix/rules/dispatch.go.)
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from tortie.felix.rules import ir, names
from tortie.felix.rules.ir import Chain, Goto, Interface, Rule
from tortie.felix.rules.settings import Settings

ANY_INTERFACE = "any-interface-at-all"  # stands for the endpoint of `*` in chain names


def workload_dispatch(interfaces: Collection[str], settings: Settings) -> list[Chain]:
    """Both directions, for the filter table."""
    end = (_unknown(settings),)
    origin = {name: names.chain(names.FROM_WORKLOAD, name) for name in interfaces}
    to = {name: names.chain(names.TO_WORKLOAD, name) for name in interfaces}
    return [
        *_tree(names.FROM_WORKLOAD_DISPATCH, "in", origin, end),
        *_tree(names.TO_WORKLOAD_DISPATCH, "out", to, end),
    ]


def workload_maps(interfaces: Collection[str], settings: Settings) -> list[Chain]:
    """The same for renderers that have maps: one look-up each, however many endpoints there are."""
    ordered = sorted(interfaces)
    origin = tuple((name, names.chain(names.FROM_WORKLOAD, name)) for name in ordered)
    to = tuple((name, names.chain(names.TO_WORKLOAD, name)) for name in ordered)
    end = _unknown(settings)
    return [
        Chain(names.FROM_WORKLOAD_DISPATCH, (Rule(action=ir.Dispatch("in", origin)), end)),
        Chain(names.TO_WORKLOAD_DISPATCH, (Rule(action=ir.Dispatch("out", to)), end)),
    ]


def rate_dispatch(interfaces: Collection[str]) -> list[Chain]:
    """To the chains that count what workloads get; who has no such limit is none of theirs."""
    targets = {name: names.chain(names.WORKLOAD_RATE, name) for name in interfaces}
    return _tree(names.WORKLOAD_RATE_DISPATCH, "out", targets, ())


def _unknown(settings: Settings) -> Rule:
    return Rule((), settings.filter_deny, ("Unknown interface",))


def host_dispatch(
    table: str, inward: Collection[str], outward: Collection[str], settings: Settings
) -> list[Chain]:
    """Both directions of host endpoints in one table; in the filter table forwarded traffic as well.

    `inward` and `outward`: the interfaces whose endpoints have chains there for packets that come in, go
    out. ANY_INTERFACE among them stands for all that are not named.
    """
    found = [
        *_host_tree(names.FROM_HOST_DISPATCH, "in", names.FROM_HOST, inward),
        *_host_tree(names.TO_HOST_DISPATCH, "out", names.TO_HOST, outward, _skipped(table, settings)),
    ]
    if table == ir.FILTER:
        found += _host_tree(names.FROM_FORWARD_DISPATCH, "in", names.FROM_HOST_FORWARD, inward)
        found += _host_tree(names.TO_FORWARD_DISPATCH, "out", names.TO_HOST_FORWARD, outward)
    return found


def _host_tree(
    root: str,
    direction: Literal["in", "out"],
    prefix: str,
    interfaces: Collection[str],
    before_any: Sequence[Rule] = (),
) -> list[Chain]:
    targets = {name: names.chain(prefix, name) for name in interfaces if name != ANY_INTERFACE}
    rest = Rule(action=Goto(names.chain(prefix, ANY_INTERFACE)))
    end = (*before_any, rest) if ANY_INTERFACE in interfaces else ()
    return _tree(root, direction, targets, end)


def _skipped(table: str, settings: Settings) -> list[Rule]:
    """Mangle sees what the host sends to its own workloads, which no endpoint of `*` is to judge."""
    return _skip_workloads(settings) if table == ir.MANGLE else []


def _skip_workloads(settings: Settings) -> list[Rule]:
    comment = "Skip egress WHEP policy for traffic to local workload"
    return [
        Rule((Interface("out", prefix, prefix=True),), ir.RETURN, (comment,))
        for prefix in settings.workload_prefixes
    ]


def _tree(
    root: str, direction: Literal["in", "out"], targets: Mapping[str, str], end: tuple[Rule, ...]
) -> list[Chain]:
    """`targets`: interface -> chain to go to. The root comes last."""
    ordered = sorted(targets)
    common = _common_start(ordered[0], ordered[-1]) if len(ordered) > 1 else ""
    buckets: dict[str, list[str]] = {}  # name up to the character that tells names apart -> names
    for name in ordered:
        buckets.setdefault(name[: len(common) + 1], []).append(name)
    children: list[Chain] = []
    rules: list[Rule] = []
    for start, members in buckets.items():
        here = [Rule((Interface(direction, name),), Goto(targets[name])) for name in members]
        if len(members) == 1:
            rules += here
            continue
        child = f"{root}-{start[len(common) :]}"
        rules.append(Rule((Interface(direction, start, prefix=True),), Goto(child)))
        children.append(Chain(child, (*here, *end)))
    return [*children, Chain(root, (*rules, *end))]


def _common_start(first: str, last: str) -> str:
    """Of the first and the last of sorted names, and so of all between."""
    differing = (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differing, min(len(first), len(last)))]
