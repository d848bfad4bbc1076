"""Makes one nftables table what it should be, in one atomic transaction, and looks at no other table.

A Target for the reconciler. Its keys are (kind, name), kind being "chain" or "map"; the table's sets are
those of nft_sets.py, which shares it.

What it relies on and gives:
- The table is ours alone: what stands in it and is not wanted goes. No other table is ever listed, so
  nothing that others write there can disturb us, however new to this nft it may be.
- Each rule carries the comment `cali:<hash>`, and the hash covers all rules before it in its chain. Reading
  is therefore comparing hashes; the kernel's rewording of a rule never matters.
- Everything that differs is written at once, whether asked for or not: the kernel takes the transaction as
  a whole or leaves everything as it was. A changed chain is flushed and filled again within it. Once all is
  written, only what is asked for can differ, and nothing else is looked at.
- After five failures in a row the table is deleted and built anew, sets included, in that same transaction:
  packets meet the old rules or the new ones, single ones amid the kernel's work a drop, and nothing that
  stood in the way survives.
- A chain that the kernel refuses and that may be replaced (`expendable`) is written as a single drop, so
  that it neither opens nor holds up the rest; its key fails with the kernel's reason.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Protocol

from tortie.linux import refused
from tortie.linux.generation import generation
from tortie.linux.nft_table import (
    LINE,
    STRANGE,
    Chain,
    Content,
    Family,
    Found,
    Key,
    Map,
    Rule,
    listing,
    nft,
    parse_map,
    parse_table,
)
from tortie.linux.overtaken import Writes
from tortie.linux.process import Finished

_DROP = (Rule("", "drop"),)
_NONE: frozenset[tuple[str, str]] = frozenset()
_PATIENCE = 5  # failures in a row before the table is built anew, Calico's


class TableSets(Protocol):
    """What a table has to know of its sets, to bring back those that vanished with it."""

    @property
    def names(self) -> Collection[str]:
        """Of those that should be standing."""

    def creation(self, names: Collection[str]) -> Iterator[str]:
        """The lines that make them, members included."""


class NoSets:
    names: Collection[str] = ()

    def creation(self, _names: Collection[str]) -> Iterator[str]:
        return iter(())


class TableTarget:
    """reconcile.Target[Key, Content] for one table.

    Once `wanted` is what the reconciler wants altogether, all of it is written that differs; before that,
    only what is asked for.
    """

    def __init__(
        self,
        family: Family,
        name: str,
        sets: TableSets | None = None,
        *,
        expendable: Callable[[str], bool] = lambda _chain: False,
    ) -> None:
        self._table = f"{family} {name}"
        self._sets = sets or NoSets()
        self._expendable = expendable
        self._known: dict[Key, Content] = {}  # as read or written last
        self._lost: list[str] = []  # sets that were not there when the table was read last
        self._failures = 0  # transactions refused in a row
        self._writes = Writes()
        self._generation: int | None = None  # that was read last, if nothing was written since
        self._settled = False  # all that is wanted stood after the last transaction
        self.wanted: Mapping[Key, Content] | None = None

    async def read(self) -> Mapping[Key, Content]:
        """Everything in the table but its sets. Raises KernelError, also if a write overtakes it."""
        if (number := generation()) is not None and number == self._generation:
            return dict(self._known)
        mark, standing = self._writes.mark(), set(self._sets.names)
        text = await listing("-t", "list", "table", *self._table.split())
        chains, maps, sets = ({}, [], []) if text is None else await asyncio.to_thread(parse_table, text)
        known: dict[Key, Content] = dict(chains)
        for name in maps:
            listed = await listing("list", "map", *self._table.split(), name)
            known["map", name] = Map() if listed is None else parse_map(listed)
        self._writes.check(mark, f"table {self._table}")
        self._known, self._settled, self._generation = known, False, number
        # Sets that came or went while this was read are none that somebody took away.
        self._lost = [name for name in self._sets.names if name in standing and name not in sets]
        return dict(known)

    async def holds(self, *chains: str) -> bool:
        """Whether rules of ours stand in any of these. Raises KernelError."""
        await self.read()
        found = (self._known.get(("chain", chain)) for chain in chains)
        return any(isinstance(one, Found) and any(one.hashes) for one in found)

    async def apply(self, update: Mapping[Key, Content], delete: Collection[Key]) -> Mapping[Key, str]:
        """One transaction for everything that differs, `update` and `delete` among it."""
        replaced: dict[Key, str] = {}  # chains the kernel refused -> its reason
        wanted = self.wanted
        if wanted is None:
            wanted = {key: content for key, content in self._known.items() if key not in delete} | dict(
                update
            )
        self._generation = None
        touched = dict.fromkeys([*update, *delete] if self._settled else [*wanted, *self._known])
        self._settled = False
        closed: list[Key] = []  # without having been tried
        while True:
            lines = list(self._transaction(wanted, touched, replaced))
            done = await self._run(lines)
            if done.status == 0:
                break
            culprits = self._refused(done, lines)
            if not all(self._may_replace(key, replaced) for key in culprits) or not culprits:
                self._failures += 1
                return dict.fromkeys([*update, *delete], " ".join(done.reason.split()))
            replaced.update(culprits)
            if len(replaced) >= refused.MAX_REPLACED and not closed:
                written = dict.fromkeys(key for key, _ in lines if key is not None and key in wanted)
                closed = [key for key in written if self._may_replace(key, replaced)]
                refused.close(closed, replaced)
        self._failures, self._lost = 0, []
        for key in touched:
            if key in wanted:
                self._known[key] = Found(("",)) if key in replaced else wanted[key]
            else:
                self._known.pop(key, None)

        async def write(keys: Collection[Key]) -> Mapping[Key, str]:
            lines = list(self._transaction(wanted, keys, ()))
            done = await self._run(lines)
            if done.status == 0:
                self._known.update((key, wanted[key]) for key in keys)
                return {}
            return self._refused(done, lines) or dict.fromkeys(keys, " ".join(done.reason.split()))

        await refused.open_again(closed, replaced, write)
        self._settled = self.wanted is not None and not replaced
        return {key: f"drops everything instead: {why}" for key, why in replaced.items()}

    async def _run(self, lines: Iterable[tuple[Key | None, str]]) -> Finished:
        with self._writes.under_way():
            return await nft("-f", "-", given="".join(f"{line}\n" for _, line in lines))

    def same(self, desired: Content, actual: Content) -> bool:
        if desired is actual or desired == actual:
            return True
        if not isinstance(desired, Chain) or not isinstance(actual, Found):
            return False
        expected = tuple(rule.hash for rule in desired.rules)
        return (actual.hashes, actual.base, actual.policy) == (expected, desired.base, "accept")

    # --- what the kernel said -------------------------------------------------------------------

    def _refused(self, done: Finished, lines: list[tuple[Key | None, str]]) -> dict[Key, str]:
        """The chains whose lines the kernel complains about; empty if it is about anything else."""
        found: dict[Key, str] = {}
        for match in LINE.finditer(done.complaint):
            number = int(match[1])
            key = lines[number - 1][0] if 0 < number <= len(lines) else None
            if key is None:
                return {}
            found.setdefault(key, " ".join(done.complaint[match.end() :].split("\n")[0].split()))
        return found

    def _may_replace(self, key: Key, replaced: Mapping[Key, str]) -> bool:
        return key[0] == "chain" and key not in replaced and self._expendable(key[1])

    # --- the transaction ------------------------------------------------------------------------

    def _transaction(
        self, wanted: Mapping[Key, Content], touched: Collection[Key], replaced: Collection[Key]
    ) -> Iterator[tuple[Key | None, str]]:
        """All its lines, each with the key it belongs to. Only what is `touched` may differ."""
        rebuild = self._failures >= _PATIENCE or self._rehooked(wanted, touched)
        known: Mapping[Key, Content] = {} if rebuild else self._known
        yield None, f"add table {self._table}"
        if rebuild:
            yield from self._unhooking()
            yield None, f"delete table {self._table}"
            yield None, f"add table {self._table}"
        dirty = {
            key: wanted[key]
            for key in (wanted if rebuild else touched)
            if key in wanted
            and (key not in known or key in replaced or not self.same(wanted[key], known[key]))
        }
        chains = {key: content for key, content in dirty.items() if isinstance(content, Chain)}
        maps = {key: content for key, content in dirty.items() if isinstance(content, Map)}
        gone = [key for key in touched if key in known and key not in wanted]
        yield from self._map_removals(maps, known)
        yield from self._chain_starts(chains, known)
        for line in self._sets.creation(self._sets.names if rebuild else self._lost):
            yield None, line
        for key, chain in chains.items():
            for rule in _DROP if key in replaced else chain.rules:
                yield key, f"add rule {self._table} {key[1]} {rule.text}"
        yield from self._map_additions(maps, known)
        yield from self._removals(gone)

    def _unhooking(self) -> Iterator[tuple[None, str]]:
        """Base chains first: the kernel (6.18) empties maps at once, but rules stay till their hook goes.

        With a large table as a whole that is a millisecond in which every packet falls through to a drop.
        """
        for key, content in self._known.items():
            if not isinstance(content, Map) and content.base is not None:
                yield None, f"add chain {self._table} {key[1]}"
                yield None, f"delete chain {self._table} {key[1]}"

    def _rehooked(self, wanted: Mapping[Key, Content], touched: Collection[Key]) -> bool:
        """Whether a base chain stands at the wrong hook, which only a new table can mend."""
        pairs = ((wanted.get(key), self._known.get(key)) for key in touched)
        return any(
            isinstance(content, Chain) and isinstance(before, Found) and before.base != content.base
            for content, before in pairs
        )

    def _map_removals(
        self, maps: Mapping[Key, Map], known: Mapping[Key, Content]
    ) -> Iterator[tuple[Key, str]]:
        for key, wanted in maps.items():
            before = known.get(key)
            if not isinstance(before, Map):
                yield key, f"add map {self._table} {key[1]} {{ type ifname : verdict; }}"
            elif STRANGE in before.elements:
                yield key, f"flush map {self._table} {key[1]}"
            elif stale := before.elements - wanted.elements:
                yield key, f"delete element {self._table} {key[1]} {{ {_listed_keys(stale)} }}"

    def _map_additions(
        self, maps: Mapping[Key, Map], known: Mapping[Key, Content]
    ) -> Iterator[tuple[Key, str]]:
        for key, wanted in maps.items():
            before = known.get(key)
            kept = before.elements if isinstance(before, Map) else _NONE
            kept = _NONE if STRANGE in kept else kept
            if new := sorted(wanted.elements - kept):
                text = ", ".join(f'"{interface}" : goto {chain}' for interface, chain in new)
                yield key, f"add element {self._table} {key[1]} {{ {text} }}"

    def _chain_starts(
        self, chains: Mapping[Key, Chain], known: Mapping[Key, Content]
    ) -> Iterator[tuple[Key, str]]:
        for key, chain in chains.items():
            hook = ""
            if chain.base is not None:
                kind, where, priority = chain.base
                hook = f" {{ type {kind} hook {where} priority {priority}; policy accept; }}"
            yield key, f"add chain {self._table} {key[1]}{hook}"
            if key in known:
                yield key, f"flush chain {self._table} {key[1]}"

    def _removals(self, gone: Collection[Key]) -> Iterator[tuple[Key, str]]:
        """Emptied first, as one may lead to another."""
        chains = [key for key in gone if key[0] == "chain"]
        for key in chains:
            yield key, f"flush chain {self._table} {key[1]}"
        for key in gone:
            if key[0] == "map":
                yield key, f"flush map {self._table} {key[1]}"
        for key in chains:
            yield key, f"delete chain {self._table} {key[1]}"
        for key in gone:
            if key[0] == "map":
                yield key, f"delete map {self._table} {key[1]}"


def _listed_keys(elements: Collection[tuple[str, str]]) -> str:
    return ", ".join(f'"{interface}"' for interface, _ in sorted(elements))


class StrayTable:
    """reconcile.Target for a table that is to go as a whole; its one key is its name."""

    def __init__(self, family: Family, name: str) -> None:
        self._table = f"{family} {name}"

    async def read(self) -> Mapping[str, None]:
        """Raises KernelError."""
        found = await listing("-t", "list", "table", *self._table.split())
        return {} if found is None else {self._table: None}

    async def apply(self, _update: Mapping[str, None], delete: Collection[str]) -> Mapping[str, str]:
        """Rules go before the rest: of a table that goes as a whole, the kernel (6.18) empties the maps
        at once, and what its rules still see falls through to a drop."""
        for verb in ("flush", "delete"):
            done = await nft(
                "-f", "-", given="".join(f"add table {one}\n{verb} table {one}\n" for one in delete)
            )
            if done.status != 0:
                return dict.fromkeys(delete, done.reason)
        return {}

    def same(self, _desired: None, _actual: None) -> bool:
        return True
