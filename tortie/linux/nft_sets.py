"""Makes the sets in an nftables table of ours what they should be. A Target keyed by set name.

What it relies on and gives:
- All changes of members in one pass are one transaction, which comes before the table's own: a rule written
  afterwards finds its set whole, and no packet sees a set half changed.
- A set that a rule still names cannot be deleted; its key then fails and is tried again.
- The kernel cannot change the type of a set. One of another type is deleted and made anew, which fails
  while a rule names it. (The ids of felix's sets imply their type.)
- Networks are an interval set, in which nothing may overlap: a network inside another one is left out, and
  comes back when the other goes.

Members are compared as text: the caller gives them as the kernel prints them (addresses of inet_ntop,
networks without host bits, single addresses without prefix length, `address,protocol:port`).
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from tortie.core.errors import KernelError
from tortie.linux.generation import generation
from tortie.linux.ipsets import IPSet, SetType
from tortie.linux.nft_elements import Change, change, span
from tortie.linux.nft_table import LINE, Family, listing, nft
from tortie.linux.overtaken import Writes

_AT_ONCE = 1000  # members in one line: enough to be fast, and short enough to read in an error
_MAX_DELETED = 500  # sets deleted in one transaction, Calico's
_BLOCKING = 2000  # changed members from which on the loop shall not wait for the kernel: some 5 ms
_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}  # where nft finds no names for them
_STRANGE = "?"  # stands for an element that none of ours could be


class NftSet(msgspec.Struct):
    name: str
    type: str | list[str]
    flags: list[str] = []
    elem: list[Any] = []


class _Listed(msgspec.Struct):
    set: NftSet | None = None


class _Listing(msgspec.Struct):
    nftables: list[_Listed]


class SetTarget:
    """reconcile.Target[str, IPSet] for the sets of one table; also what its TableTarget knows of them."""

    def __init__(self, family: Family, table: str) -> None:
        self._table = f"{family} {table}"
        self._version = 4 if family == "ip" else 6
        self._known: dict[
            str, IPSet | None
        ] = {}  # name -> as read or written last; None: no set of our kinds
        self._writes = Writes()
        self._generation: int | None = None  # that was read last, if nothing was written since
        self._vanished = False  # when read last, sets that stood before were gone altogether

    async def read(self) -> Mapping[str, IPSet]:
        """All sets in the table. Raises KernelError, also if a write overtakes it."""
        if (number := generation()) is not None and number == self._generation:
            return self._shown()
        mark = self._writes.mark()
        text = await listing("list", "sets", "table", *self._table.split())
        known = {} if text is None else await asyncio.to_thread(self._parse, text)
        self._writes.check(mark, "nftables sets")
        self._vanished |= bool(self._known) and not known
        for name, found in known.items():
            before = self._known.get(name)
            if before == found:  # the same object for an unchanged set: comparing it later costs nothing
                known[name] = before
        self._known, self._generation = known, number
        return self._shown()

    def _shown(self) -> dict[str, IPSet]:
        return {name: found or IPSet("hash:ip", 0) for name, found in self._known.items()}

    def _parse(self, text: bytes) -> dict[str, IPSet | None]:
        try:
            listed = msgspec.json.decode(text, type=_Listing).nftables
        except msgspec.DecodeError as err:
            raise KernelError("read", "nftables sets", text=f"cannot be understood: {err}") from err
        return {one.set.name: parse_set(one.set, self._version) for one in listed if one.set is not None}

    async def apply(self, update: Mapping[str, IPSet], delete: Collection[str]) -> Mapping[str, str]:
        self._generation = None
        with self._writes.under_way():
            return await self._apply(update, delete)

    async def _apply(self, update: Mapping[str, IPSet], delete: Collection[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        new = [name for name, wanted in update.items() if not self._fits(self._known.get(name), wanted)]
        odd = [name for name in update if name not in new and self._is_odd(name)]
        lines = {name: list(self._made(name, update[name])) for name in new}
        lines |= {name: list(self._refilled(name, update[name])) for name in odd}
        await self._run(lines, failed)
        await self._fill(
            {name: wanted for name, wanted in update.items() if name not in failed and name not in odd},
            new,
            failed,
        )
        self._known.update({name: wanted for name, wanted in update.items() if name not in failed})
        names = sorted(delete)
        for start in range(0, len(names), _MAX_DELETED):
            some = names[start : start + _MAX_DELETED]
            await self._run({name: [f"delete set {self._table} {name}"] for name in some}, failed)
        for name in names:
            if name not in failed:
                self._known.pop(name, None)
        return failed

    def same(self, desired: IPSet, actual: IPSet) -> bool:
        if desired is actual:
            return True
        return _kind(desired) == _kind(actual) and _elements(desired) == _elements(actual)

    def take_vanished(self) -> bool:
        """Whether all sets were found gone since this was asked last."""
        vanished, self._vanished = self._vanished, False
        return vanished

    # --- for the table ----------------------------------------------------------------------------

    @property
    def names(self) -> Collection[str]:
        return self._known.keys()

    def creation(self, names: Collection[str]) -> Iterator[str]:
        for name in names:
            if (known := self._known.get(name)) is not None:
                yield from self._new(name, known)

    # --- lines ------------------------------------------------------------------------------------

    def _new(self, name: str, wanted: IPSet) -> Iterator[str]:
        yield f"add set {self._table} {name} {{ {_shape(wanted)} }}"
        yield from self._elements("add", name, _elements(wanted))

    def _fits(self, known: IPSet | None, wanted: IPSet) -> bool:
        return known is not None and _kind(known) == _kind(wanted)

    def _is_odd(self, name: str) -> bool:
        """Whether the set has members that we could not even name to delete them."""
        known = self._known.get(name)
        return known is not None and _STRANGE in known.members

    def _made(self, name: str, wanted: IPSet) -> Iterator[str]:
        """Without members yet."""
        if name in self._known:
            yield f"delete set {self._table} {name}"
        yield f"add set {self._table} {name} {{ {_shape(wanted)} }}"

    def _refilled(self, name: str, wanted: IPSet) -> Iterator[str]:
        """Both in one transaction: rules look into it."""
        yield f"flush set {self._table} {name}"
        yield from self._elements("add", name, _elements(wanted))

    async def _fill(self, update: Mapping[str, IPSet], new: Collection[str], failed: dict[str, str]) -> None:
        """Change members. A new set that cannot be filled goes again: no rule may find it half done."""
        changes: dict[str, Change] = {}
        for name, wanted in update.items():
            known = None if name in new else self._known[name]
            before, after = frozenset() if known is None else _elements(known), _elements(wanted)
            if before != after:
                changes[name] = Change(wanted.type, after - before, before - after)
        table = self._table.split()[1]
        if sum(len(one.add) + len(one.delete) for one in changes.values()) > _BLOCKING:
            refused = await asyncio.to_thread(change, self._version, table, changes)
        else:
            refused = change(self._version, table, changes)
        failed |= refused
        await self._run({name: [f"delete set {self._table} {name}"] for name in new if name in refused}, {})

    def _elements(self, verb: str, name: str, members: Collection[str]) -> Iterator[str]:
        texts = list(map(_element, members))
        for start in range(0, len(texts), _AT_ONCE):
            yield f"{verb} element {self._table} {name} {{ {', '.join(texts[start : start + _AT_ONCE])} }}"

    async def _run(self, lines: Mapping[str, list[str]], failed: dict[str, str]) -> None:
        """One transaction for all; a set whose line is refused fails, and the others go on without it."""
        pending = {name: own for name, own in lines.items() if own}
        while pending:
            numbered = [(name, line) for name, own in pending.items() for line in own]
            text = "\n".join([f"add table {self._table}", *(line for _, line in numbered), ""])
            done = await nft("-f", "-", given=text)
            if done.status == 0:
                return
            culprits = {int(match[1]) - 2 for match in LINE.finditer(done.complaint)}
            names = {numbered[number][0] for number in culprits if 0 <= number < len(numbered)}
            if not names:
                failed.update(dict.fromkeys(pending, " ".join(done.reason.split())))
                return
            for name in names:
                failed[name] = " ".join(done.reason.split())
                del pending[name]


def _kind(one: IPSet) -> tuple[SetType, int]:
    """What the kernel cannot change. (It knows no limit of members here.)"""
    return one.type, one.version


def _shape(wanted: IPSet) -> str:
    address = _ADDRESS[wanted.version]
    if wanted.type == "hash:ip,port":
        return f"type {address} . inet_proto . inet_service;"
    return f"type {address}; flags interval;" if wanted.type == "hash:net" else f"type {address};"


def _element(member: str) -> str:
    """`10.0.0.1,tcp:80` in the language's words; what is no member is made to be refused."""
    address, comma, rest = member.partition(",")
    protocol, _, port = rest.partition(":")
    return f"{address} . {protocol} . {port}" if comma else address


def _elements(one: IPSet) -> frozenset[str]:
    return uncovered(one.members) if one.type == "hash:net" else one.members


def uncovered(members: frozenset[str]) -> frozenset[str]:
    """The networks that lie in no other; single addresses are without a prefix length. Pure.

    Members among which is one that is no network are left as they are: they are refused later.
    """
    if _STRANGE in members or "/" not in " ".join(members):  # a search of each costs five times as much
        return members
    return _without_covered(members)


@lru_cache(maxsize=4)  # a change of one member asks for the old set and the new one, twice
def _without_covered(members: frozenset[str]) -> frozenset[str]:
    try:
        nets = {member: _number(member) for member in members}
    except (OSError, ValueError):
        return members
    covers: dict[int, set[int]] = {}  # bits left of the network's address -> the networks, as numbers
    for number, free in nets.values():
        if free:
            covers.setdefault(free, set()).add(number)
    return frozenset(member for member, (number, free) in nets.items() if not _covered(number, free, covers))


def _number(net: str) -> tuple[int, int]:
    """A network's address as a number, and how many bits of it are free."""
    first, _ = span(net)
    free = len(first) * 8 - int(net.partition("/")[2] or len(first) * 8)
    return int.from_bytes(first), free


def _covered(number: int, free: int, covers: Mapping[int, set[int]]) -> bool:
    return any(wider > free and number >> wider << wider in nets for wider, nets in covers.items())


def parse_set(listed: NftSet, version: int) -> IPSet | None:
    """A set as listed; None if it is of no kind we use."""
    address = _ADDRESS[version]
    kind: SetType
    if listed.type == [address, "inet_proto", "inet_service"] and not listed.flags:
        kind = "hash:ip,port"
    elif listed.type == address and listed.flags in ([], ["interval"]):
        kind = "hash:net" if listed.flags else "hash:ip"
    else:
        return None
    return IPSet(kind, version, frozenset(_members(listed.elem)))


def _members(elements: Iterable[Any]) -> Iterator[str]:
    for one in elements:
        match one:
            case str():
                yield one
            case {"prefix": {"addr": address, "len": length}}:
                yield f"{address}/{length}"
            case {"concat": [address, protocol, port]}:
                yield f"{address},{_PROTOCOLS.get(protocol, protocol)}:{port}"
            case _:  # a range, an element that ends by itself, …
                yield _STRANGE
