"""Notices that the host's own addresses changed, and has the Node resource follow.

Driven by netlink, with a slow poll behind it (AUTODETECT_POLL_INTERVAL); needs no datastore itself:
only when something really changed is the refreshing process run. Changes are left to settle first,
so that an address which is replaced, or a DHCP client that restarts, causes one look and not three.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial

from tortie.core import tasks
from tortie.linux import monitor
from tortie.node import hostaddresses
from tortie.node.autodetect import EXCLUDED, HostAddress

_log = logging.getLogger(__name__)

_SETTLE = 2.0  # seconds of quiet before a change is acted on


class AddressWatch:
    def __init__(
        self,
        changed: Callable[[], Awaitable[None]],
        poll_interval: float,
        read: Callable[[], list[HostAddress]] = hostaddresses.read,
    ) -> None:
        """`changed()` is awaited once per settled change; if it raises nothing the change is dealt with."""
        self._changed = changed
        self._poll = poll_interval
        self._read = read
        self._known = self._fingerprint()

    async def run(self) -> None:
        woken = asyncio.Event()
        listener = asyncio.create_task(
            tasks.supervise("listening for addresses", partial(self._listen, woken))
        )
        try:
            while True:
                try:
                    async with asyncio.timeout(self._poll):
                        await woken.wait()
                except TimeoutError:
                    pass  # time for the slow poll
                else:
                    woken.clear()
                    await asyncio.sleep(_SETTLE)
                await self._look()
        finally:
            await tasks.cancel([listener])

    async def _listen(self, woken: asyncio.Event) -> None:
        with monitor.Monitor(monitor.ADDRESSES) as events:
            async for _ in events:  # whatever it is, a look tells more than the event
                woken.set()

    async def _look(self) -> None:
        if (now := self._fingerprint()) != self._known:
            _log.info("the host's addresses changed: %s -> %s", sorted(self._known), sorted(now))
            await self._changed()
            self._known = now

    def _fingerprint(self) -> frozenset[tuple[str, str]]:
        """(interface, address) of everything that is not a workload's, a tunnel's or another engine's."""
        return frozenset(
            (address.interface, address.cidr)
            for address in self._read()
            if not any(re.search(pattern, address.interface) for pattern in EXCLUDED)
        )
