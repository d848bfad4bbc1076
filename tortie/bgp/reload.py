"""Making ExaBGP run with the exabgp.conf on disk, and being sure that it does.

ExaBGP answers `reload` before it has done it, and drops it in silence while routes are unsent or a
signal is being handled. So the file carries a digest in each neighbour's description, and we ask for
that until it is the right one. Before a session is removed, its peer has been told to forget our
routes: with graceful restart a removed session just falls silent, and the peer would keep them.

It does no I/O: an Edge does.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

_log = logging.getLogger(__name__)

_DRAIN = 5.0  # seconds for withdrawals to leave before a session goes; a dead peer must not stop a reload
_ASK_AFTER = 0.2  # seconds a reload takes before it is worth asking
_ASKS = 3  # questions per reload, then it counts as dropped
_FIRST_RETRY, _LAST_RETRY = 0.5, 8.0  # seconds between a failed reload and the next
_HOPELESS = 8  # reloads in a row without effect, about half a minute: then only a restart helps


class Edge(Protocol):
    async def digest(self) -> str | None:
        """Of the configuration ExaBGP runs with; "" if it has no sessions, None if it cannot be told."""

    async def drain(self, seconds: float) -> None:
        """Return when nothing is on its way to any peer, or after that time."""

    def order_reload(self) -> None:
        """Tell ExaBGP to read its file."""

    async def restart(self) -> None:
        """Have ExaBGP started again, if the file on disk is good."""


class Reload:
    def __init__(self, edge: Edge, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.wanted: str | None = None  # digest; None: no configuration yet, "": one without sessions
        self.state = "waiting for a configuration"
        self.pausing = False  # no new announcements should be made: ExaBGP would drop the reload
        self._edge = edge
        self._sleep = sleep
        self._changed = asyncio.Event()

    def want(self, digest: str) -> None:
        """The file on disk has this digest."""
        if digest != self.wanted:
            self.wanted = digest
            self.state = "asking ExaBGP what it runs with"
            self._changed.set()

    async def run(self, loaded: Callable[[], None]) -> None:
        """For ever; `loaded()` whenever ExaBGP has come to run with what is on disk."""
        while True:
            await self._changed.wait()
            failures = 0
            while not (await self._is_loaded() or await self._reload()):
                failures += 1
                await self._complain(failures)
            self._changed.clear()  # no sooner: whoever calls run() again after an error has the same to do
            self.state = "loaded"
            loaded()

    async def _is_loaded(self) -> bool:
        return await self._edge.digest() == self.wanted

    async def _reload(self) -> bool:
        """One try; whether it took effect."""
        self.pausing = True
        try:
            self.state = "withdrawals are leaving"
            await self._edge.drain(_DRAIN)
            self.state = "reloading"
            self._edge.order_reload()
            for _ in range(_ASKS):
                await self._sleep(_ASK_AFTER)
                if await self._is_loaded():
                    return True
            return False
        finally:
            self.pausing = False

    async def _complain(self, failures: int) -> None:
        self.state = f"ExaBGP dropped the reload {failures} times, trying again"
        if failures == 2:  # one is an everyday thing while routes are being sent
            _log.warning("ExaBGP does not take its new configuration; trying again")
        if failures % _HOPELESS == 0:
            _log.error("ExaBGP has not taken its configuration %d times: it must be restarted", failures)
            await self._edge.restart()
        await self._sleep(min(_FIRST_RETRY * 2 ** min(failures - 1, _HOPELESS), _LAST_RETRY))
