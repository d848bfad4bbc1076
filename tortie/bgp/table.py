"""The table as people ask for it: every path to every prefix, whether it is in use, and why not.

The agent serves it on a socket of its own, one route a line of JSON, to whoever connects; it is too
large to be written into bgp-status.json each time something changes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from tortie.bgp.bestpath import Choice
from tortie.bgp.route import Path, Source
from tortie.bgp.router import Router
from tortie.core.errors import PeerError
from tortie.linux.routes import NextHop, Route, RouteKey, RouteType

Origin = Literal["static", "direct", "kernel", "peer"]

_ORIGINS: Mapping[Source, Origin] = {
    Source.STATIC: "static",
    Source.DIRECT: "direct",
    Source.KERNEL: "kernel",
    Source.WORKLOAD: "kernel",
}
_PAUSE_AFTER = 500  # routes made before the agent's other work has a turn: some 5 ms
_LINE = 1 << 20  # bytes; far more than any route has
_PATIENCE = 10.0  # seconds for a table of a hundred thousand routes


class TableRoute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One path to one prefix. `used`: traffic takes it, alone or with others."""

    prefix: str
    origin: Origin
    peer: str = ""  # address of the session it was learned on
    next_hop: str = ""
    interface: str = ""  # or `blackhole`; "" if the path has no kernel route
    used: bool = False
    reason: str = ""  # what decided, or why it is not used


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


# --- the socket ---------------------------------------------------------------------------------


async def write(writer: asyncio.StreamWriter, routes: Iterable[TableRoute]) -> None:
    """Give one caller all of them, with pauses. Raises ConnectionError if he does not stay."""
    for count, route in enumerate(routes, 1):
        writer.write(msgspec.json.encode(route) + b"\n")
        if count % _PAUSE_AFTER == 0:
            await writer.drain()
            await asyncio.sleep(0)
    await writer.drain()


async def read(path: str) -> list[TableRoute]:
    """The whole table. Raises PeerError if nobody answers there, or not in time."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return [route async for route in _lines(path)]
    except (OSError, TimeoutError, msgspec.DecodeError) as err:
        raise PeerError(f"the BGP agent does not tell its routes: {err or 'no answer'}") from err


async def _lines(path: str) -> AsyncIterator[TableRoute]:
    reader, writer = await asyncio.open_unix_connection(path, limit=_LINE)
    try:
        while line := await reader.readline():
            yield msgspec.json.decode(line, type=TableRoute)
    finally:
        writer.close()
