"""Keeps the picture of this host's interfaces up to date from the kernel's events; the edge under Interfaces.

Subscribes first, then reads: nothing is missed. After lost events, and at intervals, everything is read
again. (Reference: dataplane sheet 2.6.)
"""

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable

from tortie.core import tasks
from tortie.core.errors import KernelError
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.linux import addresses, links
from tortie.linux.monitor import (
    AddressChanged,
    AddressGone,
    Event,
    LinkChanged,
    LinkGone,
    Monitor,
    Overrun,
    RouteChanged,
    RouteGone,
)
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.routes import Route

_CALM = 0.2  # seconds to wait when interfaces change faster than they can be listed


class InterfaceWatch:
    """`noticed()` is called when something may have to be done; the other callbacks pass events on.

    `route_seen(route, exists)` says whether the route is of interest: BGP may change thousands that are not.
    """

    def __init__(
        self,
        interfaces: Interfaces,
        netlink: NetlinkSocket,
        *,
        interval: float,
        noticed: Callable[[], None],
        link_gone: Callable[[int], None],
        route_seen: Callable[[Route, bool], bool],
        lost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interfaces, self._netlink, self._interval = interfaces, netlink, interval
        self._noticed, self._link_gone, self._route_seen, self._lost = noticed, link_gone, route_seen, lost
        self._clock = clock
        self._doubtful = asyncio.Event()  # events were lost: read again without waiting for the interval
        self.scanned = False

    async def run(self) -> None:
        """For ever. Raises KernelError if the kernel cannot be watched: a new start is the answer."""
        with Monitor() as monitor:
            following = asyncio.create_task(self._follow(monitor), name="interface events")
            rereading = asyncio.create_task(self._reread_at_intervals(), name="interface scan")
            try:
                done, _ = await asyncio.wait([following, rereading], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                await tasks.cancel([following, rereading])

    async def _follow(self, monitor: Monitor) -> None:
        async for event in monitor:
            if self._take(event):
                self._noticed()

    def reread(self) -> None:
        """Raises KernelError, with EINTR if the lists kept changing while they were read."""
        self.interfaces.reread(links.dump(self._netlink), addresses.dump(self._netlink), self._clock())
        self.scanned = True
        self._noticed()

    async def _reread_at_intervals(self) -> None:
        while True:
            self._doubtful.clear()
            try:
                self.reread()
            except KernelError as err:
                if err.errno != errno.EINTR:
                    raise
                await asyncio.sleep(_CALM)  # a hundred pods are starting: their events tell us meanwhile
                continue
            with contextlib.suppress(TimeoutError):  # the interval is over
                async with asyncio.timeout(self._interval or None):
                    await self._doubtful.wait()

    def _take(self, event: Event) -> bool:
        now = self._clock()
        match event:
            case LinkChanged(link):
                self.interfaces.link_changed(link, now)
            case LinkGone(link):
                self.interfaces.link_gone(link.ifindex)
                self._link_gone(link.ifindex)
            case AddressChanged(address):
                self.interfaces.address_changed(address)
            case AddressGone(address):
                self.interfaces.address_gone(address, now)
            case RouteChanged(route):
                return self._route_seen(route, True)
            case RouteGone(route):
                return self._route_seen(route, False)
            case Overrun():
                self._doubtful.set()
                self._lost()
        return True
