"""What nftables tables are made of, and what nft says of them."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from tortie.core.errors import KernelError
from tortie.linux.process import Finished, run

Family = Literal["ip", "ip6", "arp"]
Key = tuple[str, str]


class Rule(NamedTuple):
    """The hash in its comment, and the rule's whole text (comment included)."""

    hash: str
    text: str


class Base(NamedTuple):
    """What ties a chain to a hook of the kernel; its policy is always accept."""

    type: str
    hook: str
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    rules: tuple[Rule, ...] = ()
    base: Base | None = None


@dataclass(frozen=True, slots=True)
class Map:
    """From interface to the chain to go to: (interface, chain) of each."""

    elements: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """A chain as read: the hash of each rule, "" for one without."""

    hashes: tuple[str, ...]
    base: Base | None = None
    policy: str = "accept"


Content = Chain | Map | Found

_HASH = re.compile(r"cali:([A-Za-z0-9_-]{16})(?:;|$)")
LINE = re.compile(r"stdin:(\d+):")  # in a complaint: which line of what was given
_MISSING = "No such file or directory"
STRANGE = ("", "")  # stands for a map's element that none of ours could be
_DEADLINE = 60.0  # seconds; a hundred thousand lines take about three


# --- reading ------------------------------------------------------------------------------------


class _ListedChain(msgspec.Struct):
    name: str
    type: str = ""
    hook: str = ""
    prio: int = 0
    policy: str = "accept"


class _ListedRule(msgspec.Struct):
    chain: str
    comment: str = ""


class _Named(msgspec.Struct):
    name: str
    elem: list[msgspec.Raw] = []


class _Listed(msgspec.Struct):
    chain: _ListedChain | None = None
    rule: _ListedRule | None = None
    map: _Named | None = None
    set: _Named | None = None


class _Listing(msgspec.Struct):
    nftables: list[_Listed]


async def nft(*command: str, given: str = "") -> Finished:
    """Raises KernelError if nft is missing or does not answer."""
    return await run("nft", *command, given=given, deadline=_DEADLINE)


async def listing(*command: str) -> bytes | None:
    """What `nft -j list …` says; None if there is no such thing. Raises KernelError."""
    done = await nft("-j", *command)
    if done.status == 0:
        return done.output.encode("utf-8", "surrogateescape")
    if _MISSING in done.complaint:
        return None
    raise KernelError("read", "nftables", text=done.reason)


def _decode(text: bytes) -> list[_Listed]:
    try:
        return msgspec.json.decode(text, type=_Listing).nftables
    except msgspec.DecodeError as err:
        raise KernelError("read", "nftables", text=f"nft lists what cannot be understood: {err}") from err


def parse_table(text: bytes) -> tuple[dict[Key, Found], list[str], list[str]]:
    """The chains of a table as `nft -j -t list table` shows it, and the names of its maps and sets."""
    listed = _decode(text)
    hashes: dict[str, list[str]] = {one.chain.name: [] for one in listed if one.chain is not None}
    for one in listed:
        if one.rule is not None:
            match = _HASH.match(one.rule.comment)
            hashes[one.rule.chain].append(match[1] if match else "")
    chains: dict[Key, Found] = {}
    for chain in (one.chain for one in listed if one.chain is not None):
        base = Base(chain.type, chain.hook, chain.prio) if chain.hook else None
        chains["chain", chain.name] = Found(tuple(hashes[chain.name]), base, chain.policy)
    maps = [one.map.name for one in listed if one.map is not None]
    return chains, maps, [one.set.name for one in listed if one.set is not None]


def parse_map(text: bytes) -> Map:
    """What `nft -j list map` shows of one of ours; elements of other kinds make it unlike any of ours."""
    elements: set[tuple[str, str]] = set()
    for one in _decode(text):
        for raw in one.map.elem if one.map else ():
            try:
                interface, verdict = msgspec.json.decode(
                    raw, type=tuple[str, dict[str, dict[str, str] | None]]
                )
                elements.add((interface, (verdict.get("goto") or {}).get("target", "")))
            except msgspec.ValidationError:
                elements.add(STRANGE)
    return Map(frozenset(elements))
