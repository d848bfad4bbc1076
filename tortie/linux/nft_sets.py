"""Makes the sets in an nftables table of ours what they should be. A Target keyed by set name.

What it relies on and gives:
- All changes of one pass are one transaction, which comes before the table's own: a rule written afterwards
  finds its set whole, and no packet sees a set half changed.
- A set that a rule still names cannot be deleted; its key then fails and is tried again.
- The kernel cannot change the type of a set. One of another type is deleted and made anew, which fails
  while a rule names it. (The ids of felix's sets imply their type.)
- Networks are an interval set, in which nothing may overlap: a network inside another one is left out, and
  comes back when the other goes.

Members are compared as text: the caller gives them as the kernel prints them (addresses of inet_ntop,
networks without host bits, single addresses without prefix length, `address,protocol:port`).
"""

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from tortie.core.errors import KernelError
from tortie.linux.ipsets import IPSet, SetType
from tortie.linux.nftables import LINE, Family, listing, nft

_AT_ONCE = 1000  # members in one line: enough to be fast, and short enough to read in an error
_MAX_DELETED = 500  # sets deleted in one transaction, Calico's
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
        self._vanished = False  # when read last, sets that stood before were gone altogether

    async def read(self) -> Mapping[str, IPSet]:
        """All sets in the table. Raises KernelError."""
        text = await listing("list", "sets", "table", *self._table.split())
        known = {} if text is None else self._parse(text)
        self._vanished |= bool(self._known) and not known
        for name, found in known.items():
            before = self._known.get(name)
            if before == found:  # the same object for an unchanged set: comparing it later costs nothing
                known[name] = before
        self._known = known
        return {name: found or IPSet("hash:ip", 0) for name, found in known.items()}

    def _parse(self, text: bytes) -> dict[str, IPSet | None]:
        try:
            listed = msgspec.json.decode(text, type=_Listing).nftables
        except msgspec.DecodeError as err:
            raise KernelError("read", "nftables sets", text=f"cannot be understood: {err}") from err
        return {one.set.name: parse_set(one.set, self._version) for one in listed if one.set is not None}

    async def apply(self, update: Mapping[str, IPSet], delete: Collection[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        await self._run({name: list(self._changes(name, wanted)) for name, wanted in update.items()}, failed)
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

    def _changes(self, name: str, wanted: IPSet) -> Iterator[str]:
        known = self._known.get(name)
        if known is not None and _kind(known) == _kind(wanted):
            before, after = _elements(known), _elements(wanted)
            if _STRANGE in before:
                yield f"flush set {self._table} {name}"
                before = frozenset()
            # In this order, as a network may take the place of those inside it.
            yield from self._elements("delete", name, before - after)
            yield from self._elements("add", name, after - before)
            return
        if name in self._known:
            yield f"delete set {self._table} {name}"
        yield from self._new(name, wanted)

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
    """The networks that lie in no other; single addresses are without a prefix length. Pure."""
    nets = [member for member in members if "/" in member]
    if not nets or _STRANGE in members:
        return members
    covers: dict[int, set[int]] = {}  # prefix length -> the networks of that length, as numbers
    spans: list[tuple[int, int, str]] = []
    width = 128 if ":" in nets[0] else 32
    for member in members:
        address, _, bits = member.partition("/")
        spans.append((int(ipaddress.ip_address(address)), int(bits or width), member))
    for number, length, _ in spans:
        if length < width:
            covers.setdefault(length, set()).add(number)
    return frozenset(
        member for number, length, member in spans if not _covered(number, length, width, covers)
    )


def _covered(number: int, length: int, width: int, covers: Mapping[int, set[int]]) -> bool:
    return any(
        shorter < length and number >> (width - shorter) << (width - shorter) in nets
        for shorter, nets in covers.items()
    )


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
