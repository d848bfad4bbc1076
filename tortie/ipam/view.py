"""What the allocator must know besides blocks: configuration, pools, reservations, node labels.

Two ways to know it. DirectView reads it for each request: right for a command that runs once.
SyncedView keeps it in memory, fed by a Syncer: right for a server that assigns an address per pod, which
then needs three round trips per address and not eight.

What a stale view can do, and why that is harmless. A view is never part of a decision about one address
or one block: those rest on compare-and-swap of the block. It only says where to look.
- A pool disabled or deleted a moment ago: an address may still come from it, exactly as from an
  allocator that read the pool just before. Deleting a pool therefore waits between disabling it and
  releasing its blocks (cluster.py). The pod keeps its address.
- A node or namespace label, or a selector, changed: the same; the block's affinity is given back when it
  is empty (release.py, assign.py).
- A new reservation: an address handed out before it was seen counts as held before, and stays held.
- The configuration (strict affinity, limits, cooldown): the old rule holds a moment longer.
One thing would not be harmless: claiming a block by a pool that has since been deleted and created anew
with another block size, because two blocks would then contain the same address. Hence claims ask for
`fresh` facts, and refuse a CIDR that overlaps an existing block of another size (walk.py).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tortie.core.errors import ResourceDoesNotExist, ValidationError
from tortie.core.tasks import together
from tortie.datastore.client import Client
from tortie.datastore.keys import (
    IPAMConfigKey,
    IPAMConfigList,
    Listing,
    ResourceKey,
    ResourceList,
    key_of,
)
from tortie.datastore.syncer import Batch, Syncer, SyncStatus
from tortie.datastore.types.ipam import DEFAULT_IPAM_CONFIG, IPAMConfig
from tortie.datastore.types.ippool import IPPool, IPReservation
from tortie.datastore.types.node import Node
from tortie.ipam.pools import Pool, pool_of
from tortie.ipam.ranges import Ranges
from tortie.ipam.reserved import reserved_ranges

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Facts:
    """`pools` are all that can be read, also disabled ones, in the order of their names."""

    config: IPAMConfig = DEFAULT_IPAM_CONFIG
    pools: tuple[Pool, ...] = ()
    reserved: Ranges = field(default_factory=Ranges)

    @property
    def cooldown(self) -> int:
        """Seconds a released address rests."""
        return self.config.ipCooldownSeconds


class View(Protocol):
    async def facts(self, *, fresh: bool = False) -> Facts:
        """`fresh`: as the datastore has it now. Raises DatastoreUnreachable."""

    async def labels(self, node: str) -> Mapping[str, str]:
        """A node's labels. Raises ResourceDoesNotExist."""


def facts_from(
    config: IPAMConfig, pools: list[IPPool], reservations: list[IPReservation]
) -> tuple[Facts, list[str]]:
    """Typed facts, and a complaint for each thing that is unusable and therefore left out. Pure."""
    reserved, complaints = reserved_ranges(reservations)
    usable = []
    for pool in pools:
        try:
            usable.append(pool_of(pool))
            fault = usable[-1].fault
        except ValidationError as err:
            fault = str(err)
        if fault:
            complaints.append(f"ignoring {key_of(pool).path()}, which is invalid: {fault}")
    return Facts(config, tuple(sorted(usable, key=lambda pool: pool.name)), reserved), complaints


async def read_config(client: Client) -> IPAMConfig:
    """The stored configuration, or the default one; reading never writes."""
    try:
        config: IPAMConfig = (await client.backend.get(IPAMConfigKey())).value
    except ResourceDoesNotExist:
        return DEFAULT_IPAM_CONFIG
    return config


class _Complaints:
    """Says what is wrong once, and again after it was put right meanwhile."""

    def __init__(self) -> None:
        self._said: set[str] = set()  # what has been logged and still holds

    def say(self, complaints: Iterable[str]) -> None:
        found = set(complaints)
        for text in sorted(found - self._said):
            _log.warning("%s", text)
        self._said = found


class DirectView:
    """Reads everything each time it is asked."""

    def __init__(self, client: Client, complaints: _Complaints | None = None) -> None:
        self._client = client
        self._complaints = complaints or _Complaints()

    async def facts(self, *, fresh: bool = False) -> Facts:
        config, pools, reservations = await together(
            self._config(), self._client.list(IPPool), self._client.list(IPReservation)
        )
        facts, complaints = facts_from(config, pools.items, reservations.items)
        self._complaints.say(complaints)
        return facts

    async def _config(self) -> IPAMConfig:
        """What cannot be read counts as absent, as it does for a SyncedView, whose Syncer reports it."""
        try:
            return await read_config(self._client)
        except ValidationError as err:
            _log.debug("using the default IPAM configuration: %s", err)
            return DEFAULT_IPAM_CONFIG

    async def labels(self, node: str) -> Mapping[str, str]:
        return (await self._client.get(Node, node)).labels


class SyncedView:
    """Remembers what a Syncer tells; reads directly until that is complete, and what it does not follow.

    Feed it either by run(), or from a Syncer shared with others: follow `listings`, apply() each batch.
    """

    def __init__(self, client: Client, host: str) -> None:
        self._client = client
        self._complaints = _Complaints()
        self._direct = DirectView(client, self._complaints)
        self._host = host
        self._pools: dict[str, IPPool] = {}  # name -> pool
        self._reservations: dict[str, IPReservation] = {}  # name -> reservation
        self._labels: Mapping[str, str] | None = None  # of our own node; None: there is no such node
        self._config = DEFAULT_IPAM_CONFIG
        self._facts: Facts | None = None  # derived from the above; None: something changed since
        self.in_sync = False
        self.listings: tuple[Listing, ...] = (
            ResourceList("IPPool"),
            ResourceList("IPReservation"),
            ResourceList("Node", name=host),
            IPAMConfigList(),
        )

    async def run(self) -> None:
        """Follow the datastore until cancelled."""
        async for batch in Syncer(self._client.backend, self.listings).batches():
            self.apply(batch)

    def apply(self, batch: Batch) -> None:
        """Take over one batch; keys that do not belong here are passed over."""
        for update in batch.updates:
            match update.key:
                case ResourceKey("IPPool", name):
                    _put(self._pools, name, update.value)
                case ResourceKey("IPReservation", name):
                    _put(self._reservations, name, update.value)
                case ResourceKey("Node", name) if name == self._host:
                    self._labels = update.value.labels if update.value is not None else None
                    continue
                case IPAMConfigKey():
                    self._config = update.value or DEFAULT_IPAM_CONFIG
                case _:
                    continue
            self._facts = None
        self.in_sync = batch.status is SyncStatus.IN_SYNC

    async def facts(self, *, fresh: bool = False) -> Facts:
        if fresh or not self.in_sync:
            return await self._direct.facts()
        if self._facts is None:
            self._facts, complaints = facts_from(
                self._config, list(self._pools.values()), list(self._reservations.values())
            )
            self._complaints.say(complaints)
        return self._facts

    async def labels(self, node: str) -> Mapping[str, str]:
        # A node that has just been made may be there and not known yet.
        if not self.in_sync or node != self._host or self._labels is None:
            return await self._direct.labels(node)
        return self._labels


def _put(table: dict[str, T], name: str, value: T | None) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value
