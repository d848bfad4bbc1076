"""Ready addresses that containers were given, until the datastore knows whose they are.

A note in a file says from the gift on whose an address is now; the datastore hears of it by hand_over(),
which the warm pool calls in its rounds. An address that turns out to be another's is lost, and stays in
`lost` until the container is gone.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tortie.cni.notes import Notes
from tortie.cni.protocol import Code
from tortie.cni.warmplan import Counters
from tortie.core.errors import CniError, ResourceAlreadyExists, TortieError
from tortie.core.paths import Paths
from tortie.ipam.allocator import Allocator
from tortie.ipam.errors import IPAMError, TooManyConflicts
from tortie.ipam.names import warm_handle
from tortie.ipam.requests import AssignAddress
from tortie.ipam.transfer import Missed, Transfer

_log = logging.getLogger(__name__)

_FLUSH_LIMIT = 15.0  # seconds a call waits for its address's owner to be written; see later.py for why


@dataclass(frozen=True, slots=True)
class Gift:
    """An address on its way to a container. `noted`: a former process gave it, perhaps long ago.

    `done` is set once nothing more will be tried by itself: the address has arrived, or is lost, or the
    datastore refused to have it so. In the last case the reason is in it, and the address stays the node's,
    not ready for anybody.
    """

    transfer: Transfer
    done: asyncio.Future[str]
    noted: bool


class Given:
    """`wanted()` is called when somebody waits for hand_over(), `freed()` when a gift was for nobody.

    Make it in a running event loop.
    """

    def __init__(
        self,
        allocator: Allocator,
        paths: Paths,
        counters: Counters,
        *,
        wanted: Callable[[], None],
        freed: Callable[[], None],
    ) -> None:
        self._allocator = allocator
        self._handle = warm_handle(allocator.host)
        self._notes = Notes(paths.warm_notes, Transfer)
        self._counters = counters
        self._wanted, self._freed = wanted, freed
        self.underway: dict[str, Gift] = {}  # address -> whose it becomes
        # (address, handle that was given it) -> why it is not the handle's: as a rule who has it
        self.lost: dict[tuple[str, str], str] = {}
        self._arrivals: dict[str, set[str]] = {}  # handle -> addresses known to have become its own
        self._barred: set[str] = set()  # addresses whose note cannot be read
        for address, noted in self._notes.read():
            if noted is None or noted.address != address:
                self._barred.add(address)
            else:
                self._start(noted, noted=True)

    # --- what the warm pool asks ----------------------------------------------------------------

    def give(self, address: str, block: str, handle: str, attributes: Mapping[str, str]) -> None:
        """From now on the address is the handle's. Raises OSError; it is not then."""
        transfer = Transfer(address, block, handle, attributes)
        self._notes.write(address, transfer)
        self._start(transfer)

    def spoken_for(self, address: str) -> bool:
        """Whether it cannot be ready, though it is the node's."""
        return address in self.underway or address in self._barred

    def handles(self) -> set[str]:
        """Who has been given any that the datastore has yet to hear of."""
        return {gift.transfer.handle for gift in self.underway.values()}

    # --- what ADD and DEL ask -------------------------------------------------------------------

    def transfers(self, handle: str) -> tuple[Transfer, ...]:
        """What the handle has been given and the datastore has yet to hear of."""
        return tuple(gift.transfer for gift in self.underway.values() if gift.transfer.handle == handle)

    def give_again(self, transfers: Iterable[Transfer]) -> None:
        """Have it written, whether it is already or not; the containers are known to be there."""
        for one in transfers:
            self._barred.discard(one.address)
            before = self.underway.get(one.address)
            if before is not None and before.transfer.handle != one.handle:
                self._lose(one, f"it was given to {before.transfer.handle}")
            elif before is not None and not before.done.done():
                self.underway[one.address] = replace(before, noted=False)
            else:
                self._start(one)
        self._wanted()

    async def make_sure(self, handle: str) -> None:
        """Wait until the handle has what it was given. Raises CniError if that takes long or cannot be."""
        await self.flush(handle)
        if lost := self.lost_by(handle):
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"{', '.join(lost)}, which this node had ready, was released by somebody",
            )
        if missing := self.missing(self.transfers(handle)):
            raise CniError(Code.INTERNAL, missing)

    def missing(self, transfers: Iterable[Transfer]) -> str:
        """'' if all of them are known to be carried out, else about the first that is not."""
        for one in transfers:
            if one.address not in self._arrivals.get(one.handle, ()):
                gift = self.underway.get(one.address)
                why = gift.done.result() if gift is not None and gift.done.done() else ""
                return f"{one.address} is not assigned to {one.handle}" + (f": {why}" if why else "")
        return ""

    def lost_by(self, handle: str) -> list[str]:
        """Addresses that the handle was given and does not have, and why not."""
        return sorted(f"{address} ({why})" for (address, loser), why in self.lost.items() if loser == handle)

    def forget(self, handle: str) -> None:
        """The container is gone."""
        self.lost = {key: why for key, why in self.lost.items() if key[1] != handle}
        self._arrivals.pop(handle, None)
        for one in self.transfers(handle):
            self.never_was(one.address, handle)

    def never_was(self, address: str, handle: str) -> bool:
        """Whether what was given did not become the handle's; if the node still holds it, it may be ready."""
        gift = self.underway.get(address)
        if gift is None or gift.transfer.handle != handle:
            return (address, handle) in self.lost
        if gift.done.done():
            self._end(address)
            self._freed()
        return gift.done.done()

    async def flush(self, handle: str) -> None:
        """Wait until the datastore knows what the handle has been given, or has refused to know it.

        Raises CniError if it takes long.
        """
        waiting = [gift.done for gift in self.underway.values() if gift.transfer.handle == handle]
        if not waiting:
            return
        self._wanted()
        _, late = await asyncio.wait(waiting, timeout=_FLUSH_LIMIT)
        if late:
            raise CniError(Code.TRY_AGAIN_LATER, f"the addresses of {handle} are not written yet")

    # --- telling the datastore ------------------------------------------------------------------

    async def hand_over(self) -> None:
        """Raises TortieError; a write may have happened then."""
        batch = [gift.transfer for gift in self.underway.values() if not gift.done.done()]
        if not batch:
            return
        missed = await self._allocator.transfer(self._handle, batch)
        for one in batch:
            if not any(other.wanted == one for other in missed):
                self._arrived(one)
        for other in missed:
            if other.refused is None:
                await self._assign_anew(other)
            else:
                self._refused(other.wanted, other.refused)

    async def _assign_anew(self, missed: Missed) -> None:
        """Somebody released what was ready and given to a container: it must not become another's."""
        one = missed.wanted
        if missed.holder:
            self._lose(one, f"{missed.holder} has it")
        elif self.underway[one.address].noted:
            self._end(one.address)  # it may be the container that is gone
            return
        else:
            request = AssignAddress(one.address, one.handle, one.attributes, host=self._allocator.host)
            try:
                await self._allocator.assign_ip(request)
            except TooManyConflicts:
                raise  # nobody need have it: it is tried again
            except (ResourceAlreadyExists, IPAMError) as err:
                self._lose(one, str(err))
            else:
                _log.warning("somebody released %s, which %s uses: assigned again", one.address, one.handle)
                self._arrived(one)
                return
        self._end(one.address)

    def _start(self, transfer: Transfer, *, noted: bool = False) -> None:
        done = asyncio.get_running_loop().create_future()
        self.underway[transfer.address] = Gift(transfer, done, noted)
        self._arrivals.get(transfer.handle, set()).discard(transfer.address)

    def _arrived(self, transfer: Transfer) -> None:
        self._arrivals.setdefault(transfer.handle, set()).add(transfer.address)
        self._end(transfer.address)

    def _refused(self, transfer: Transfer, err: TortieError) -> None:
        _log.error("%s cannot be assigned to %s: %s", transfer.address, transfer.handle, err)
        self.underway[transfer.address].done.set_result(str(err))

    def _lose(self, transfer: Transfer, why: str) -> None:
        self.lost[transfer.address, transfer.handle] = why
        self._counters.lost += 1
        _log.error("%s was given to %s, but is not its own: %s", transfer.address, transfer.handle, why)

    def _end(self, address: str) -> None:
        """It is on its way no more."""
        self._notes.remove(address)
        gift = self.underway.pop(address)
        if not gift.done.done():
            gift.done.set_result("")
