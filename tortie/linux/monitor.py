"""What changes in the kernel, as typed events: links, addresses, routes.

An event says what one object is now, not what happened to it; whoever keeps a picture of the kernel
subscribes first, lists then, and lists again after an Overrun. The kernel's receive buffer is the
only queue: a consumer that falls behind gets an Overrun, never a growing process.

What the kernel does not say (Linux 6.18):
- IPv4 routes that vanish because their interface goes down or away are not announced; after a
  LinkGone, or a LinkChanged that is no longer running, list the routes again.
- A rename is a LinkChanged with the same index and another name. Two indices can share a name for a
  moment in the order of events; only the index is an identity.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tortie.core.errors import KernelError
from tortie.linux import addresses, links, routes
from tortie.linux.addresses import Address
from tortie.linux.codec import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    Frame,
)
from tortie.linux.links import Link
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.routes import Route

# Multicast groups (RTMGRP_* of linux/rtnetlink.h), to be added up.
LINKS = 0x1
ADDRESSES = 0x10 | 0x100
ROUTES = 0x40 | 0x400

_AT_ONCE = 64  # datagrams read before the loop runs again: a millisecond or two


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The interface is new, or anything about it is: name, flags, MAC, MTU, master."""

    link: Link


@dataclass(frozen=True, slots=True)
class LinkGone:
    """Deleted, or moved to another namespace."""

    link: Link


@dataclass(frozen=True, slots=True)
class AddressChanged:
    address: Address


@dataclass(frozen=True, slots=True)
class AddressGone:
    address: Address


@dataclass(frozen=True, slots=True)
class RouteChanged:
    """The route exists now; it may have replaced another with the same key."""

    route: Route


@dataclass(frozen=True, slots=True)
class RouteGone:
    """The route is deleted. Of an IPv6 multipath route this may be one way only."""

    route: Route


@dataclass(frozen=True, slots=True)
class Overrun:
    """The kernel dropped events: everything known is stale, list again."""


Event = LinkChanged | LinkGone | AddressChanged | AddressGone | RouteChanged | RouteGone | Overrun


class Monitor:
    """Async iterator over events from the moment of construction; for one consumer.

    Watches the namespace of the thread that constructs it, or that of `netlink` (see netns.socket_in
    with `groups`). The socket is closed with the monitor. Raises KernelError if reading fails for
    good; cancelling the consumer is safe.
    """

    def __init__(
        self, groups: int = LINKS | ADDRESSES | ROUTES, *, netlink: NetlinkSocket | None = None
    ) -> None:
        self._netlink = netlink or NetlinkSocket(groups)
        self._events: deque[Event] = deque()

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            await self._readable()
            self._events.extend(self._read())
        return self._events.popleft()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._netlink.fileno(), _resolve, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._netlink.fileno())

    def _read(self) -> Iterable[Event]:
        for _ in range(_AT_ONCE):
            try:
                frames = self._netlink.receive()
            except BlockingIOError:
                return
            except KernelError as err:
                if err.errno not in (errno.ENOBUFS, errno.EMSGSIZE):
                    raise
                yield Overrun()
                continue
            yield from (event for frame in frames if (event := decode(frame)) is not None)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def decode(frame: Frame) -> Event | None:
    """The event a frame tells of; None for what is not configuration or not our subject.

    Raises KernelError for a malformed frame.
    """
    kind, body = frame.kind, frame.body
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        link = links.decode(body)
        return None if link is None else LinkChanged(link) if kind == RTM_NEWLINK else LinkGone(link)
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        address = addresses.decode(body)
        if address is None:
            return None
        return AddressChanged(address) if kind == RTM_NEWADDR else AddressGone(address)
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        route = routes.decode(body)
        return None if route is None else RouteChanged(route) if kind == RTM_NEWROUTE else RouteGone(route)
    return None
