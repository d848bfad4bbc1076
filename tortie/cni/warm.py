"""Addresses that a node has ready for its next pods, so that ADD waits for no allocation.

The ready ones are allocated under a handle of the node's own, which is where they are remembered: a
restart finds them there. ADD takes one out of memory, notes in a file whose it is now, and goes on; the
datastore hears of the new owner in the background (ipam/transfer.py).

What a crash can do. An address is either the node's, or a container's; in between it is the node's with
a note. At start the notes are carried out first, and only what has none is ready. Notes are in /run: a
reboot, after which there are no containers, forgets them, and the addresses are ready again. An address
that an endpoint names is never ready, whatever the notes say.

Everything is in one event loop, and the datastore is written by run() alone.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tortie.cni.protocol import Code
from tortie.cni.warmnotes import Notes
from tortie.cni.warmplan import Counters, Marks, change, metrics
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import CniError, ResourceDoesNotExist, TortieError
from tortie.core.files import write_atomic
from tortie.core.paths import Paths
from tortie.datastore.client import Client
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.ipam import addresses, pools
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import IPAMError
from tortie.ipam.names import NODE, NOTE, TYPE, WARM_TYPE, warm_handle
from tortie.ipam.requests import Assigned, AutoAssign, AutoAssigned
from tortie.ipam.transfer import Transfer
from tortie.ipam.view import View

_log = logging.getLogger(__name__)

_AGAIN = Backoff(first=0.25, cap=10.0)  # the datastore is away: nodes must not all return at once
_SHORT = 10.0  # seconds before full pools are asked again; an address may come free any time
_FLUSH_LIMIT = 15.0  # seconds a DEL waits for its address's owner to be written: a datastore call takes ten


@dataclass(frozen=True, slots=True)
class _Given:
    """An address on its way to a container."""

    transfer: Transfer
    done: asyncio.Future[None]


class WarmPool:
    """`allocator` is that of this node; make it in a running event loop."""

    def __init__(self, allocator: Allocator, client: Client, view: View, paths: Paths, marks: Marks) -> None:
        self.allocator = allocator
        self.node = allocator.host
        self._client = client
        self._view = view
        self._metrics_path = paths.warm_metrics
        self._notes = Notes(paths.warm_notes)
        self._marks = marks
        self._handle = warm_handle(self.node)
        self._clock = asyncio.get_running_loop().time
        self.ready: dict[int, dict[str, str]] = {4: {}, 6: {}}  # IP version -> address -> its block
        self.given: dict[str, _Given] = {}  # address -> whose it becomes
        self._barred: set[str] = set()  # addresses whose note cannot be read
        # IP version -> when an address was last needed; IPv6 is kept from the first time it is asked for.
        self._needed: dict[int, float] = {4: self._clock()} if marks.high else {}
        self._not_before: dict[int, float] = {}  # IP version -> when full pools are asked again
        self._told: set[int] = set()  # IP versions of which it was said that there are too few addresses
        self._sure = False  # whether `ready` is what the datastore says
        self._wake = asyncio.Event()
        self.counters = Counters()
        for address, noted in self._notes.read():
            if noted is None:
                self._barred.add(address)
            else:
                self._give(noted)

    # --- what ADD and DEL ask -------------------------------------------------------------------

    @property
    def on(self) -> bool:
        return self._marks.high > 0

    def owes(self, handle: str) -> bool:
        """Whether the datastore has yet to hear of an address of this handle."""
        return any(given.transfer.handle == handle for given in self.given.values())

    def take(
        self, version: int, handle: str, attributes: Mapping[str, str], suits: Callable[[str], bool]
    ) -> str | None:
        """A ready address with its block's prefix length, from now on the handle's; None if none suits."""
        self._needed[version] = self._clock()
        self._wake.set()
        for address, block in self.ready[version].items():
            if not suits(address):
                continue
            transfer = Transfer(address, block, handle, attributes)
            try:
                self._notes.write(transfer)
            except OSError as err:
                _log.warning("cannot note whose %s is, it is not used: %s", address, err)
                return None
            del self.ready[version][address]
            self._give(transfer)
            self.counters.taken += 1
            return f"{address}/{block.rpartition('/')[2]}"
        self.counters.missed += 1
        return None

    async def flush(self, handle: str) -> None:
        """Wait until the datastore knows what the handle has been given. Raises CniError if it takes long."""
        waiting = [given.done for given in self.given.values() if given.transfer.handle == handle]
        if not waiting:
            return
        self._wake.set()
        _, late = await asyncio.wait(waiting, timeout=_FLUSH_LIMIT)
        if late:
            raise CniError(Code.TRY_AGAIN_LATER, f"the addresses of {handle} are not written yet")

    # --- keeping --------------------------------------------------------------------------------

    async def run(self, datastore_is_there: asyncio.Event) -> None:
        """Until cancelled: write new owners, keep the number of ready addresses between the marks."""
        await datastore_is_there.wait()
        retry = Retry(_AGAIN)
        while True:
            self._wake.clear()
            try:
                await self._round()
            except TortieError as err:
                self._sure = False  # a write may have happened
                delay = retry.wait()
                if retry.failures == 1:
                    _log.warning("cannot keep addresses ready, trying again: %s", err)
                await asyncio.sleep(delay)
                continue
            if retry.failures:
                _log.info("addresses are kept ready again")
                retry.reset()
            self._publish()
            await self._pause()

    async def _round(self) -> None:
        if not self._sure:
            await self._look()
        await self._hand_over()
        for version in (4, 6):
            await self._level(version)

    async def _pause(self) -> None:
        """Until something is needed, or enough time has passed to give some back or ask full pools again."""
        ends = [
            self._needed.get(version, -math.inf) + self._marks.idle
            for version, ready in self.ready.items()
            if len(ready) > self._marks.low
        ]
        ends += [
            self._not_before[version]
            for version, ready in self.ready.items()
            if len(ready) < self._marks.low and version in self._not_before
        ]
        timeout = max(0.0, min(ends) - self._clock()) if ends else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    async def _look(self) -> None:
        """Take what the datastore says for true: what is ready, and what has been handed over."""
        try:
            held = await self.allocator.held_by_block(self._handle)
        except ResourceDoesNotExist:
            held = {}
        blocks = {address: cidr for cidr, of_block in held.items() for address in of_block}
        used = await self._used() if blocks else {}
        for address in [address for address in self.given if address not in blocks]:
            self._arrived(address)
        self.ready = {4: {}, 6: {}}
        for address, cidr in blocks.items():
            if address in self.given or address in self._barred:
                continue
            if address in used:
                _log.warning("%s is kept ready, yet endpoint %s uses it: left alone", address, used[address])
                continue
            self.ready[6 if ":" in address else 4][address] = cidr
        self._sure = True

    async def _used(self) -> dict[str, str]:
        """Address -> the endpoint that names it, of all nodes."""
        listed = await self._client.list(WorkloadEndpoint)
        return {
            network.partition("/")[0]: one.name for one in listed.items for network in one.spec.ipNetworks
        }

    async def _hand_over(self) -> None:
        batch = [given.transfer for given in self.given.values()]
        if not batch:
            return
        await self.allocator.transfer(self._handle, batch)
        for transfer in batch:
            self._arrived(transfer.address)

    def _give(self, transfer: Transfer) -> None:
        self.given[transfer.address] = _Given(transfer, asyncio.get_running_loop().create_future())

    def _arrived(self, address: str) -> None:
        try:
            self._notes.remove(address)
        except OSError as err:
            # Left, it would be carried out again at the next start, and find nothing to do.
            _log.warning("cannot remove the note of %s: %s", address, err)
        given = self.given.pop(address)
        if not given.done.done():
            given.done.set_result(None)

    # --- up and down ----------------------------------------------------------------------------

    async def _level(self, version: int) -> None:
        ready, now = self.ready[version], self._clock()
        if version not in self._needed and not ready:
            return
        wanted = change(len(ready), self._marks, now - self._needed.get(version, -math.inf))
        if wanted < 0:
            await self._give_back(version, -wanted)
        elif wanted and now >= self._not_before.get(version, -math.inf):
            await self._get(version, wanted)

    async def _get(self, version: int, count: int) -> None:
        self._not_before[version] = self._clock() + _SHORT  # unless it turns out that there are enough
        if not pools.enabled((await self._view.facts()).pools, version):
            return
        request = AutoAssign(
            use=pools.WORKLOAD,
            num4=count if version == 4 else 0,
            num6=count if version == 6 else 0,
            handle=self._handle,
            attributes={NODE: self.node, TYPE: WARM_TYPE, NOTE: self._marks.note},
        )
        done = await self.allocator.auto_assign(request)
        part = done.v4 if version == 4 else done.v6
        self._put(version, part)
        if done.error is not None and not isinstance(done.error, IPAMError):
            raise done.error
        if done.error is None and part is not None and not part.shortage:
            del self._not_before[version]
            self._told.discard(version)
            return
        await self._tell_shortage(version, request, done)

    def _put(self, version: int, part: Assigned | None) -> None:
        for text in part.addresses if part is not None else ():
            address, _, length = text.partition("/")
            self.ready[version][address] = _block_of(address, int(length))

    async def _tell_shortage(self, version: int, request: AutoAssign, done: AutoAssigned) -> None:
        self.counters.short += 1
        if version not in self._told:
            self._told.add(version)
            why = await self.allocator.why_not(request, version)
            part = done.v4 if version == 4 else done.v6
            text = done.error or (part.shortage if part is not None else "")
            _log.warning(
                "only %d IPv%d addresses are ready: %s; %s", len(self.ready[version]), version, text, why
            )

    async def _give_back(self, version: int, count: int) -> None:
        """The newest ones, so that those ready longest are used first."""
        ready = self.ready[version]
        doomed = [ready.popitem()[0] for _ in range(count)]
        requests = [ReleaseRequest(address, self._handle) for address in doomed]
        outcome = await self.allocator.release_ips(requests)
        if outcome.error is not None:
            raise outcome.error
        _log.info("gave back %d ready IPv%d addresses", count, version)

    def _publish(self) -> None:
        """Metrics as a file for node_exporter's textfile collector; none where nothing is kept ready."""
        if not self.on:
            return
        numbers = {version: len(ready) for version, ready in self.ready.items()}
        try:
            write_atomic(self._metrics_path, metrics(numbers, len(self.given), self._marks, self.counters))
        except OSError as err:
            _log.warning("cannot write %s: %s", self._metrics_path, err)


def _block_of(address: str, length: int) -> str:
    return addresses.block_around(addresses.address(address), length)
