"""Every path to every prefix as a table row: whether it is in use, and why not. Pure."""

from collections.abc import Iterator, Mapping

from tortie.bgp.bestpath import Choice
from tortie.bgp.route import Path, Source
from tortie.bgp.router import Router
from tortie.bgp.table import Origin, TableRoute
from tortie.linux.routes import NextHop, Route, RouteKey, RouteType

_ORIGINS: Mapping[Source, Origin] = {
    Source.STATIC: "static",
    Source.DIRECT: "direct",
    Source.KERNEL: "kernel",
    Source.WORKLOAD: "kernel",
    Source.LEAVING: "kernel",
}


def rows(router: Router, kernel: Mapping[RouteKey, Route], names: Mapping[int, str]) -> Iterator[TableRoute]:
    """By prefix, used ones first. `kernel`: the routes that we want; `names`: of interfaces by index."""
    decider = router.decider
    for prefix in sorted(router.rib.prefixes()):
        choice = decider.choices.get(prefix)
        route = kernel.get(Route(prefix).key)
        without = decider.reasons.get(prefix, "")
        if choice is not None:
            for path in choice.equal:
                yield _used(prefix, path, choice, route, without, names)
        yield from _unused(router, prefix, choice)


def _used(
    prefix: str,
    path: Path,
    choice: Choice,
    route: Route | None,
    without: str,
    names: Mapping[int, str],
) -> TableRoute:
    return TableRoute(
        prefix=prefix,
        origin=_ORIGINS.get(path.source, "peer"),
        peer=path.peer,
        next_hop=path.next_hop,
        interface=path.interface or _interface(route, path.next_hop, names),
        used=not without or path.local,
        reason=without or choice.decided_by,
    )


def _interface(route: Route | None, next_hop: str, names: Mapping[int, str]) -> str:
    if route is None:
        return ""
    if route.type is RouteType.BLACKHOLE:
        return "blackhole"
    hop: NextHop | None = next((hop for hop in route.hops if hop.gateway == next_hop), None)
    hop = hop or next(iter(route.hops), None)
    return names.get(hop.ifindex or 0, "") if hop else ""


def _unused(router: Router, prefix: str, choice: Choice | None) -> Iterator[TableRoute]:
    """Paths that lost, or that were not believed."""
    equal = {path.peer for path in choice.equal} if choice else set()
    refused = router.decider.refusals.of(prefix)
    lost = f"another is better: {choice.decided_by}" if choice else "next hop unreachable"
    local = router.rib.local(prefix)
    if local is not None and "" not in equal:
        origin = _ORIGINS.get(local.source, "kernel")
        yield TableRoute(prefix=prefix, origin=origin, interface=local.interface, reason=lost)
    for peer, received in sorted(router.rib.received(prefix).items()):
        if peer not in equal:
            yield TableRoute(
                prefix=prefix,
                origin="peer",
                peer=peer,
                next_hop=received.next_hop,
                reason=refused.get(peer, lost),
            )
