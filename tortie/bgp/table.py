"""The table as people ask for it: every path to every prefix, whether it is in use, and why not.

The agent serves it on a socket of its own, one route a line of JSON, to whoever connects; it is too
large to be written into bgp-status.json each time something changes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Literal

import msgspec

from tortie.core.errors import PeerError

Origin = Literal["static", "direct", "kernel", "peer"]

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
