"""Works while it holds the Lease, and only then."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from tortie.controllers import election
from tortie.controllers.election import GIVE_UP_AFTER, RENEW_EVERY, Seen
from tortie.core.errors import DatastoreError, ResourceDoesNotExist, UpdateConflict
from tortie.core.tasks import cancel

_log = logging.getLogger(__name__)


class Leases(Protocol):
    """Where the Lease is: the Kubernetes API."""

    async def lease(self, namespace: str, name: str) -> dict[str, Any]: ...

    async def write_lease(self, lease: Mapping[str, Any]) -> dict[str, Any]: ...


class Leader:
    def __init__(
        self, leases: Leases, namespace: str, name: str, me: str, wall: Callable[[], float] = time.time
    ) -> None:
        """`me` is unique among all that may lead; `wall` is Unix time in seconds, for people to read."""
        self._leases = leases
        self._where = (namespace, name)
        self._me = me
        self._wall = wall
        self._seen = Seen()
        self._lease: dict[str, Any] | None = None  # as we wrote it last
        self._problem: DatastoreError | None = None

    async def check(self) -> None:
        """Raises DatastoreError while the Lease can be neither had nor seen to be another's."""
        if self._problem is not None:
            raise self._problem

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, work while it is renewed, and begin anew when it is lost. Ends with `work`."""
        while True:
            await self._acquire()
            _log.info("%s leads", self._me)
            working = asyncio.ensure_future(work())
            renewing = asyncio.ensure_future(self._renew())
            try:
                done, _ = await asyncio.wait([working, renewing], return_when=asyncio.FIRST_COMPLETED)
                if working in done:
                    return working.result()
                renewing.result()
            finally:
                await cancel([working, renewing])
                await self._give_up()
            _log.error("%s has lost the Lease, and stops working", self._me)

    async def _acquire(self) -> None:
        told: set[str] = set()
        while not await self._try(told):  # noqa: ASYNC110 - a Lease is looked at, it tells nothing
            await asyncio.sleep(RENEW_EVERY)

    async def _renew(self) -> None:
        """Returns when the Lease is somebody else's, or could not be renewed for too long."""
        loop = asyncio.get_running_loop()
        renewed, told = loop.time(), set[str]()
        while loop.time() < renewed + GIVE_UP_AFTER:
            await asyncio.sleep(RENEW_EVERY)
            began = loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(renewed + GIVE_UP_AFTER - began):
                    if await self._try(told):
                        told.clear()
                        renewed = began
            if not election.may_take(self._lease or {}, self._seen, self._me, began):
                return

    async def _try(self, told: set[str]) -> bool:
        """Take or renew the Lease; False if it is another's, or could not be written."""
        try:
            mine = await self._attempt()
        except UpdateConflict as err:
            _log.debug("another was faster: %s", err)
            return False
        except DatastoreError as err:
            self._problem = err
            if str(err) not in told:
                _log.warning("cannot have the Lease %s/%s: %s", *self._where, err)
            told.add(str(err))
            return False
        self._problem = None
        return mine

    async def _attempt(self) -> bool:
        now = asyncio.get_running_loop().time()
        try:
            found = await self._leases.lease(*self._where)
        except ResourceDoesNotExist:
            wanted = election.new(*self._where, self._me, self._wall())
        else:
            self._seen, self._lease = election.seen(found, self._seen, now), found
            if not election.may_take(found, self._seen, self._me, now):
                return False
            wanted = election.taken(found, self._me, self._wall())
        self._lease = await self._leases.write_lease(wanted)
        self._seen = election.seen(self._lease, self._seen, now)
        return True

    async def _give_up(self) -> None:
        if self._lease is None or election.record_of(self._lease)[0] != self._me:
            return
        try:
            async with asyncio.timeout(RENEW_EVERY):
                await self._leases.write_lease(election.given_up(self._lease))
        except (DatastoreError, TimeoutError) as err:
            _log.info("the Lease is not given up, it runs out: %s", err)
