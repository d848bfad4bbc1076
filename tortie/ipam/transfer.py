"""Giving addresses from one handle to others, while they stay allocated all the time.

What a node keeps ready under its own handle becomes a container's. As everywhere, the new handle counts
up before the block is written and the old one down after, so a crash in between leaves a count too high
and never too low; done again, what is done already is passed over.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tortie.core.errors import ResourceDoesNotExist, UpdateConflict
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.errors import TooManyConflicts
from tortie.ipam.handles import Handles, Holding
from tortie.ipam.names import clean_handle
from tortie.ipam.release import Releaser
from tortie.ipam.store import RETRIES, Store, together
from tortie.ipam.turns import Turns
from tortie.ipam.view import View

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One address of a block, and whose it is to be."""

    address: str
    block: str  # CIDR
    handle: str
    attributes: Mapping[str, str] = field(default_factory=dict)


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

    async def transfer(self, source: str, wanted: Sequence[Transfer]) -> None:
        """Carry all out; what `source` does not hold any more is left alone. Raises TooManyConflicts."""
        cidrs = dict.fromkeys(one.block for one in wanted)
        await together(
            *(self._in_block(cidr, source, [one for one in wanted if one.block == cidr]) for cidr in cidrs)
        )

    async def _in_block(self, cidr: str, source: str, wanted: list[Transfer]) -> None:
        try:
            read, before, facts = await together(
                self._store.block(cidr), self._handles.find(source), self._view.facts()
            )
        except ResourceDoesNotExist:
            return  # nobody holds anything there
        async with self._turns.take(cidr) as turn, contextlib.AsyncExitStack() as counted:
            holdings: dict[str, Holding] = {}
            kv = turn.newer(read)
            for attempt in range(RETRIES):
                await self._store.pause(attempt)
                block = blocks.normalise(kv.value, self._store.now(), facts.cooldown)
                written, done = transferred(block, source, wanted)
                for one in wanted:
                    if one not in done and (holder := holder_of(block, one.address)) != one.handle:
                        # Somebody released it behind our back: there may be a second user by now.
                        _log.error("%s is used by %s, but held by %r", one.address, one.handle, holder)
                if not done:
                    return
                try:
                    await self._count(holdings, counted, cidr, done)
                    turn.last = await self._store.update_block(kv, written)
                except UpdateConflict as err:
                    kv = await self._store.after_conflict(cidr, err.current)
                    continue
                for holding in holdings.values():
                    holding.keep()
                await self._releaser.count_down(before, written)
                return
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
