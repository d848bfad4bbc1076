"""Addresses that a node has ready for its next pods, so that ADD waits for no allocation.

The ready ones are allocated under a handle of the node's own, which is where they are remembered: a
restart finds them there. ADD takes one out of memory, notes in a file whose it is now, and goes on; the
datastore hears of the new owner in the background (given.py).

What a crash can do. An address is either the node's, or a container's; in between it is the node's with
a note. At start the notes are carried out first, and only what has none is ready. Notes are in /run: a
reboot, after which there are no containers, forgets them, and the addresses are ready again. An address
that an endpoint names is never ready, whatever the notes say.

What a person can do. Somebody may release an address that is ready: the blocks are watched, so it is not
ready any more a moment later. One that was given out in that moment is assigned to its container anew; if
another has it by then, it is lost: the container's ADD fails, or, if it has answered (later.py), the
container has no network. No endpoint is written before its address is known to be the container's.

Everything is in one event loop, and the datastore is written by run() alone.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Collection, Mapping

from tortie.cni.blockwatch import BlockWatch
from tortie.cni.given import Given
from tortie.cni.warmplan import Counters, Marks, change, metrics
from tortie.core import exposition
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ResourceDoesNotExist, TortieError
from tortie.core.files import write_atomic
from tortie.core.paths import Paths
from tortie.datastore.client import Client
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.ipam import Block
from tortie.ipam import addresses, pools
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import IPAMError
from tortie.ipam.names import NODE, NOTE, TYPE, WARM_TYPE, warm_handle
from tortie.ipam.requests import Assigned, AutoAssign, AutoAssigned
from tortie.ipam.transfer import holder_of
from tortie.ipam.view import View

_log = logging.getLogger(__name__)

AGAIN = Backoff(first=0.25, cap=10.0)  # the datastore is away: nodes must not all return at once
_SHORT = 10.0  # seconds before full pools are asked again; an address may come free any time
_USED = 300.0  # seconds before all endpoints are asked again who uses an address that is kept ready


class WarmPool:
    """`allocator` is that of this node; make it in a running event loop."""

    def __init__(self, allocator: Allocator, client: Client, view: View, paths: Paths, marks: Marks) -> None:
        self.allocator = allocator
        self.node = allocator.host
        self._client = client
        self._view = view
        self._metrics_path = paths.warm_metrics
        self._marks = marks
        self._handle = warm_handle(self.node)
        self._clock = asyncio.get_running_loop().time
        self.ready: dict[int, dict[str, str]] = {4: {}, 6: {}}  # IP version -> address -> its block
        self._seen: dict[str, Block | None] = {}  # CIDR -> the block as last seen during a question
        # IP version -> when an address was last needed; IPv6 is kept from the first time it is asked for.
        self._needed: dict[int, float] = {4: self._clock()} if marks.high else {}
        self._not_before: dict[int, float] = {}  # IP version -> when full pools are asked again
        self._told: set[int] = set()  # IP versions of which it was said that there are too few addresses
        self._begun = False  # whether `ready` has once been what the datastore says
        self._used: dict[str, str] = {}  # address that is not ready for it -> the endpoint that uses it
        self._ask_at = math.inf  # when to ask again
        self._sure = False  # whether it is now, as far as is known
        self._watch = BlockWatch(client.backend, self._saw)
        self._wake = asyncio.Event()
        self.counters = Counters()
        self.given = Given(allocator, paths, self.counters, wanted=self._wake.set, freed=self._look_again)

    # --- what ADD and DEL ask -------------------------------------------------------------------

    @property
    def on(self) -> bool:
        return self._marks.high > 0

    @property
    def sure(self) -> bool:
        """Whether the datastore answers, as far as is known, and what it says is ready is."""
        return self._sure

    def take(
        self, version: int, handle: str, attributes: Mapping[str, str], suits: Callable[[str], bool]
    ) -> str | None:
        """A ready address with its block's prefix length, from now on the handle's; None if none suits."""
        self._needed[version] = self._clock()
        self._wake.set()
        for address, block in self.ready[version].items():
            if not suits(address):
                continue
            try:
                self.given.give(address, block, handle, attributes)
            except OSError as err:
                _log.warning("cannot note whose %s is, it is not used: %s", address, err)
                return None
            del self.ready[version][address]
            self.counters.taken += 1
            return f"{address}/{block.rpartition('/')[2]}"
        self.counters.missed += 1
        return None

    # --- keeping --------------------------------------------------------------------------------

    async def run(self, datastore_is_there: asyncio.Event) -> None:
        """Until cancelled: write new owners, keep the number of ready addresses between the marks."""
        await datastore_is_there.wait()
        try:
            await self._keep()
        finally:
            await self._watch.close()

    async def _keep(self) -> None:
        retry = Retry(AGAIN)
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
        if not self._sure or self._clock() >= self._ask_at:
            await self._look()
        await self.given.hand_over()
        for version in (4, 6):
            await self._level(version)
        self._watch.follow({block for ready in self.ready.values() for block in ready.values()})

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
        if self._used:
            ends.append(self._ask_at)
        timeout = max(0.0, min(ends) - self._clock()) if ends else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    async def _look(self) -> None:
        """Take what the datastore says for true: what is ready."""
        self._seen.clear()
        try:
            held = await self.allocator.held_by_block(self._handle)
        except ResourceDoesNotExist:
            held = {}
        blocks = {address: cidr for cidr, of_block in held.items() for address in of_block}
        # What has become ready since the start, no endpoint names.
        await self._ask_who_uses(self._used if self._begun else blocks)
        self.ready = {4: {}, 6: {}}
        for address, cidr in blocks.items():
            if self._may_be_ready(address):
                self.ready[6 if ":" in address else 4][address] = cidr
        self._begun = self._sure = True
        self._see_again()

    def _see_again(self) -> None:
        """What was seen while a question was under way can be newer than its answer."""
        for cidr, block in list(self._seen.items()):
            self._saw(cidr, block)

    def _saw(self, cidr: str, block: Block | None) -> None:
        """A state of a block that ready addresses are of; it can be one from before they were got."""
        self._seen[cidr] = block
        ready = self.ready[6 if ":" in cidr else 4]
        mine = [address for address, of_block in ready.items() if of_block == cidr]
        gone = [one for one in mine if block is None or holder_of(block, one) != self._handle]
        for address in gone:
            del ready[address]
        if gone:
            self._look_again()

    def _look_again(self) -> None:
        self._sure = False
        self._wake.set()

    async def _ask_who_uses(self, doubtful: Collection[str]) -> None:
        """Which of these addresses an endpoint names, of any node."""
        listed = (await self._client.list(WorkloadEndpoint)).items if doubtful else ()
        used = {network.partition("/")[0]: one.name for one in listed for network in one.spec.ipNetworks}
        before, self._used = self._used, {one: used[one] for one in doubtful if one in used}
        self._ask_at = self._clock() + _USED if self._used else math.inf
        for address, name in self._used.items():
            if address not in before:
                _log.warning("%s is kept ready, yet endpoint %s uses it: left alone", address, name)

    def _may_be_ready(self, address: str) -> bool:
        return address not in self._used and not self.given.spoken_for(address)

    # --- up and down ----------------------------------------------------------------------------

    async def _level(self, version: int) -> None:
        ready, now = self.ready[version], self._clock()
        if doomed := await self._of_no_use(version):
            await self._give_back(version, doomed)
        if version not in self._needed and not ready:
            return
        wanted = change(len(ready), self._marks, now - self._needed.get(version, -math.inf))
        if wanted < 0:
            await self._give_back(version, list(ready)[wanted:])
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
        self._seen.clear()
        done = await self.allocator.auto_assign(request)
        part = done.v4 if version == 4 else done.v6
        self._put(version, part)
        self._see_again()
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
            if self._may_be_ready(address):  # else somebody has released it, yet it is another's still
                self.ready[version][address] = addresses.block_around(addresses.address(address), int(length))

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

    async def _of_no_use(self, version: int) -> list[str]:
        """Addresses of pools that nobody may use any more: they suit nobody, and others are not got."""
        if not (ready := self.ready[version]):
            return []
        usable = pools.enabled((await self._view.facts()).pools, version)
        return [one for one in ready if pools.containing(usable, addresses.address(one)) is None]

    async def _give_back(self, version: int, doomed: list[str]) -> None:
        """Where it is their number that matters, the newest, so that those ready longest are used first."""
        for address in doomed:
            del self.ready[version][address]
        requests = [ReleaseRequest(address, self._handle) for address in doomed]
        outcome = await self.allocator.release_ips(requests)
        if outcome.error is not None:
            raise outcome.error
        _log.info("gave back %d ready IPv%d addresses", len(doomed), version)

    def _publish(self) -> None:
        """Metrics as a file for node_exporter's textfile collector; none where nothing is kept ready."""
        if not self.on:
            return
        numbers = {version: len(ready) for version, ready in self.ready.items()}
        text = exposition.text(metrics(numbers, len(self.given.underway), self._marks, self.counters))
        try:
            write_atomic(self._metrics_path, text)
        except OSError as err:
            _log.warning("cannot write %s: %s", self._metrics_path, err)
