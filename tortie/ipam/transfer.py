"""Giving addresses from one handle to others, while they stay allocated all the time.

What a node keeps ready under its own handle becomes a container's. As everywhere, the new handle counts
up before the block is written and the old one down after, so a crash in between leaves a count too high
and never too low; done again, what is done already is passed over.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tortie.core.errors import (
    DatastoreUnreachable,
    ResourceDoesNotExist,
    TortieError,
    Unauthorized,
    UpdateConflict,
)
from tortie.core.tasks import together
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.errors import TooManyConflicts
from tortie.ipam.handles import Handles, Holding
from tortie.ipam.names import clean_handle
from tortie.ipam.release import Releaser
from tortie.ipam.store import RETRIES, Store
from tortie.ipam.turns import Turns
from tortie.ipam.view import View

_PASSING = (TooManyConflicts, UpdateConflict, DatastoreUnreachable, Unauthorized)  # tried again, it may go


@dataclass(frozen=True, slots=True)
class Transfer:
    """One address of a block, and whose it is to be."""

    address: str
    block: str  # CIDR
    handle: str
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError: transfers are read from files, too."""
        if addresses.address(self.address) not in addresses.network(self.block):
            raise ValueError(f"{self.address} is not in {self.block}")


@dataclass(frozen=True, slots=True)
class Missed:
    """A transfer that was not carried out, and the handle that has the address; '' if none has.

    `refused`: the datastore would not have it so, and who has the address is not known.
    """

    wanted: Transfer
    holder: str
    refused: TortieError | None = None


def transferred(block: Block, source: str, wanted: Iterable[Transfer]) -> tuple[Block, list[Transfer]]:
    """The block after the transfers of addresses that `source` really holds, and which these are. Pure."""
    done = []
    for one in wanted:
        if holder_of(block, one.address) != source:
            continue
        owner = AllocationAttribute(handle_id=one.handle, secondary=dict(one.attributes))
        ordinal = blocks.ordinal_of(block, addresses.address(one.address))
        block = blocks.redirected(block, ordinal, owner)
        done.append(one)
    return block, done


def holder_of(block: Block, address: str) -> str:
    """The handle that has an address, '' if none. Pure."""
    found = blocks.attribute_at(block, blocks.ordinal_of(block, addresses.address(address)))
    return clean_handle(found.handle_id) if found is not None else ""


class Transferrer:
    def __init__(self, store: Store, view: View, handles: Handles, releaser: Releaser, turns: Turns) -> None:
        self._store = store
        self._view = view
        self._handles = handles
        self._releaser = releaser
        self._turns = turns

    async def transfer(self, source: str, wanted: Sequence[Transfer]) -> list[Missed]:
        """Carry all out; returns those that `source` did not hold, nor the new handle already.

        Somebody released them behind their holder's back. Those that cannot be are among them; they keep
        no others from it. Raises TooManyConflicts, DatastoreUnreachable, Unauthorized; some may be done.
        """
        cidrs = dict.fromkeys(one.block for one in wanted)
        missed = await together(
            *(self._or_refused(cidr, source, [one for one in wanted if one.block == cidr]) for cidr in cidrs)
        )
        return [one for of_block in missed for one in of_block]

    async def _or_refused(self, cidr: str, source: str, wanted: list[Transfer]) -> list[Missed]:
        """All of a block at once; if that is refused, by the handle, to know which one it is about."""
        try:
            return await self._in_block(cidr, source, wanted)
        except _PASSING:
            raise
        except TortieError as err:
            handles = dict.fromkeys(one.handle for one in wanted)
            if len(handles) == 1:
                return [Missed(one, "", err) for one in wanted]
        missed = []
        for handle in handles:
            missed += await self._or_refused(cidr, source, [one for one in wanted if one.handle == handle])
        return missed

    async def _in_block(self, cidr: str, source: str, wanted: list[Transfer]) -> list[Missed]:
        try:
            read, before, facts = await together(
                self._store.block(cidr), self._handles.find(source), self._view.facts()
            )
        except ResourceDoesNotExist:
            return [Missed(one, "") for one in wanted]
        async with self._turns.take(cidr) as turn, contextlib.AsyncExitStack() as counted:
            holdings: dict[str, Holding] = {}
            kv = turn.newer(read)
            for attempt in range(RETRIES):
                await self._store.pause(attempt)
                block = blocks.normalise(kv.value, self._store.now(), facts.cooldown)
                written, done = transferred(block, source, wanted)
                holders = [Missed(one, holder_of(block, one.address)) for one in wanted if one not in done]
                missed = [one for one in holders if one.holder != one.wanted.handle]
                if not done:
                    return missed
                try:
                    await self._count(holdings, counted, cidr, done)
                    turn.last = await self._store.update_block(kv, written)
                except UpdateConflict as err:
                    kv = await self._store.after_conflict(cidr, err.current)
                    continue
                for holding in holdings.values():
                    holding.keep()
                await self._releaser.count_down(before, written)
                return missed
        raise TooManyConflicts

    async def _count(
        self,
        holdings: dict[str, Holding],
        counted: contextlib.AsyncExitStack,
        cidr: str,
        done: Sequence[Transfer],
    ) -> None:
        """Have every new handle count what it is about to hold."""
        for handle in dict.fromkeys(one.handle for one in done):
            if handle not in holdings:
                holding = self._handles.holding(handle, cidr, 0)
                holdings[handle] = await counted.enter_async_context(holding)
        numbers = {handle: sum(one.handle == handle for one in done) for handle in holdings}
        await together(*(holdings[handle].count(number) for handle, number in numbers.items() if number))
