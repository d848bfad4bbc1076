"""What ExaBGP writes to its helper, as typed events: one line in, one event out.

JSON lines are session events, and answers to `show adj-rib … json` and `show neighbor json`. Other
lines are answers in text, of which two matter: the version, and the descriptions in
`show neighbor configuration`. Traps of the format are absorbed here (ExaBGP 5.0.15, api.compact):

- The two flags of the graceful restart capability carry each other's names.
- `state` in `show neighbor json` is `down` for the first second of a session; `fsm` is right.
- Communities are numbers in events and text in listings. Empty and absent look the same.

Pure, and quick: tens of thousands of prefixes per second pass here. Extended communities, aggregator
and unknown attributes are not carried: listings and events write them in different ways.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tortie.bgp.prefix import Version, canonical
from tortie.bgp.route import Attributes, Origin, Received, Segment
from tortie.core.errors import PeerError

FAMILIES: Mapping[str, Version] = {"ipv4 unicast": 4, "ipv6 unicast": 6}  # in updates -> IP version
_CAPABILITY_FAMILIES: Mapping[str, Version] = {"ipv4/unicast": 4, "ipv6/unicast": 6}  # in OPENs
_GRACEFUL_RESTART, _MULTIPROTOCOL = "64", "1"  # capability codes, RFC 4724, 4760


@dataclass(frozen=True, slots=True)
class Up:
    peer: str


@dataclass(frozen=True, slots=True)
class Down:
    """The session, or an attempt at one, ended."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    """The session's state machine moved; `state` in RFC 4271's words (Idle … Established)."""

    peer: str
    state: str


@dataclass(frozen=True, slots=True)
class Open:
    """The peer's OPEN. `restart_time` in seconds, None without graceful restart; `forwarding` per version."""

    peer: str
    as_number: int
    hold_time: int
    router_id: str
    versions: frozenset[Version]
    restart_time: int | None = None
    restarting: bool = False
    forwarding: Mapping[int, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Update:
    """Prefixes announced (Received) or withdrawn (None); `sent`: by ExaBGP to the peer, not by it."""

    peer: str
    sent: bool
    told: dict[str, Received | None]


@dataclass(frozen=True, slots=True)
class EndOfRib:
    peer: str
    sent: bool
    version: Version


@dataclass(frozen=True, slots=True)
class Listed:
    """One route of an adj-RIB listing."""

    peer: str
    prefix: str
    path: Received


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A session as `show neighbor json` has it."""

    peer: str
    established: bool
    seconds: int  # established since
    router_id: str
    hold_time: int  # seconds, what the peer offered
    graceful: bool  # both sides have graceful restart


@dataclass(frozen=True, slots=True)
class Neighbours:
    """All sessions ExaBGP has; also marks the end of what was asked for before it."""

    all: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """A description in `show neighbor configuration`."""

    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The answer to `version`: what follows was not asked for by an earlier run of the helper."""

    version: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """ExaBGP ends."""


Event = Up | Down | State | Open | Update | EndOfRib | Listed | Neighbours | Described | Ready | Shutdown

# --- ExaBGP's JSON ------------------------------------------------------------------------------


class _Update(msgspec.Struct):
    attribute: msgspec.Raw = msgspec.Raw(b"{}")
    announce: dict[str, dict[str, list[str | dict[str, Any]]]] = {}
    withdraw: dict[str, list[str | dict[str, Any]]] = {}


class _EndOfRib(msgspec.Struct):
    afi: str
    safi: str


class _Message(msgspec.Struct):
    update: _Update | None = None
    eor: _EndOfRib | None = None


class _Address(msgspec.Struct):
    peer: str


class _Neighbor(msgspec.Struct):
    address: _Address
    direction: str = ""
    state: str = ""
    reason: str = ""
    message: _Message | None = None
    open: msgspec.Raw = msgspec.Raw(b"")


class _Line(msgspec.Struct):
    type: str
    neighbor: _Neighbor | None = None
    notification: str = ""


class _Nlri(msgspec.Struct):
    prefix: str
    family: dict[str, str]
    nexthop: str | None = None


class _Route(msgspec.Struct):
    nlri: _Nlri
    attributes: msgspec.Raw = msgspec.Raw(b"{}")


class _ListedLine(msgspec.Struct):
    peer: dict[str, str]
    route: _Route


_event = msgspec.json.Decoder(_Line)
_listed = msgspec.json.Decoder(_ListedLine)
_any = msgspec.json.Decoder()
_description = re.compile(rb'\s*description "([^"]*)";')
_version = re.compile(rb"exabgp (\S+)")
_attributes: dict[bytes, Attributes] = {}  # JSON of attributes -> their value; many paths share few sets
_REMEMBERED = 10_000  # attribute sets, some 10 MB


def parse(line: bytes) -> Event | None:
    """The event in a line; None if it says nothing to us. Raises PeerError if it cannot be understood."""
    if not line:
        return None
    try:
        if line.startswith(b'{ "exabgp"'):
            return _session_event(_event.decode(line))
        if line.startswith(b'{"peer"'):
            return _listed_route(_listed.decode(line))
        if line.startswith(b"["):
            return Neighbours(tuple(_neighbour(one) for one in _any.decode(line)))
    except (msgspec.DecodeError, ValueError, KeyError, TypeError) as err:
        raise PeerError(f"ExaBGP wrote a line that cannot be understood ({err}): {line[:200]!r}") from err
    if match := _description.fullmatch(line):
        return Described(match[1].decode("ascii", "replace"))
    if match := _version.fullmatch(line):
        return Ready(match[1].decode("ascii", "replace"))
    return None


def _session_event(line: _Line) -> Event | None:
    neighbor = line.neighbor
    if neighbor is None:
        return Shutdown() if line.notification == "shutdown" else None
    peer = neighbor.address.peer
    if neighbor.message is not None:
        return _message(peer, neighbor.direction == "send", neighbor.message)
    if line.type == "state":
        if neighbor.state == "up":
            return Up(peer)
        return Down(peer, neighbor.reason) if neighbor.state == "down" else None
    if line.type == "fsm":
        return State(peer, _STATES.get(neighbor.state, neighbor.state.capitalize()))
    return _open(peer, _any.decode(neighbor.open)) if line.type == "open" else None


_STATES = {"OPENSENT": "OpenSent", "OPENCONFIRM": "OpenConfirm"}  # the two that capitalize() gets wrong


def _message(peer: str, sent: bool, message: _Message) -> Event | None:
    if message.eor is not None:
        version = FAMILIES.get(f"{message.eor.afi} {message.eor.safi}")
        return EndOfRib(peer, sent, version) if version else None
    if message.update is None:
        return None
    told: dict[str, Received | None] = {}
    for family, prefixes in message.update.withdraw.items():  # before announcements, RFC 4271, 4.3
        if family in FAMILIES:
            told.update(dict.fromkeys(_prefixes(prefixes)))
    for family, by_next_hop in message.update.announce.items():
        if family in FAMILIES:
            attributes = _known(bytes(message.update.attribute))
            for next_hop, prefixes in by_next_hop.items():
                told.update(dict.fromkeys(_prefixes(prefixes), Received(attributes, next_hop)))
    return Update(peer, sent, told)


def _prefixes(told: list[str | dict[str, Any]]) -> Iterator[str]:
    """One by one as ExaBGP writes them, or all in one, in the kernel's form, as exabgp_prefixes.py does."""
    for one in told:
        if isinstance(one, str):
            yield canonical(one)
        elif "prefixes" in one:
            yield from one["prefixes"].split()
        else:
            yield canonical(one["nlri"])


def _open(peer: str, told: dict[str, Any]) -> Open:
    capabilities = told["capabilities"]
    families = capabilities.get(_MULTIPROTOCOL, {}).get("families", ["ipv4/unicast"])
    graceful = capabilities.get(_GRACEFUL_RESTART)
    forwarding: dict[int, bool] = {
        _CAPABILITY_FAMILIES[family]: "restart" in flags  # sic: the F bit
        for family, flags in (graceful or {}).get("address-family-flags", {}).items()
        if family in _CAPABILITY_FAMILIES
    }
    return Open(
        peer,
        told["asn"],
        told["hold_time"],
        told["router_id"],
        frozenset(_CAPABILITY_FAMILIES[f] for f in families if f in _CAPABILITY_FAMILIES),
        graceful["time"] if graceful else None,
        bool(graceful) and "forwarding" in graceful.get("restart-flags", []),  # sic: the R bit
        forwarding,
    )


def _listed_route(line: _ListedLine) -> Listed | None:
    nlri = line.route.nlri
    if f"{nlri.family.get('afi')} {nlri.family.get('safi')}" not in FAMILIES:
        return None
    path = Received(_known(bytes(line.route.attributes)), nlri.nexthop or "no-nexthop")
    return Listed(line.peer["address"], canonical(nlri.prefix), path)


def _neighbour(one: dict[str, Any]) -> Neighbour:
    remote = one["peer"]
    return Neighbour(
        remote["address"],
        one["fsm"] == "ESTABLISHED",
        one["duration"],
        remote["id"] or "",
        remote["hold"] or 0,
        bool(remote["capabilities"].get("graceful-restart")),
    )


# --- attributes ---------------------------------------------------------------------------------


def _known(data: bytes) -> Attributes:
    found = _attributes.get(data)
    if found is None:
        if len(_attributes) >= _REMEMBERED:
            _attributes.clear()
        found = _attributes[data] = read_attributes(_any.decode(data))
    return found


def read_attributes(told: Mapping[str, Any]) -> Attributes:
    """Attributes as in an event or in a listing. Raises ValueError, KeyError, TypeError."""
    origin = told.get("origin")
    segments = told.get("as-path", {}).values()
    return Attributes(
        origin=None if origin is None else Origin[origin.upper()],
        as_path=tuple(_segment(one) for one in segments if one["value"]),
        med=told.get("med"),
        local_pref=told.get("local-preference"),
        communities=tuple(sorted(_community(one) for one in told.get("community", ()))),
        large_communities=tuple(sorted(_large(one) for one in told.get("large-community", ()))),
        originator_id=told.get("originator-id", ""),
        cluster_list=tuple(_words(told.get("cluster-list", ()))),
    )


def _segment(told: Mapping[str, Any]) -> Segment:
    return Segment("as-set" if told["element"] == "as-set" else "as-sequence", tuple(told["value"]))


_WELL_KNOWN = {  # ExaBGP's names in listings -> RFC 1997, 3765, 7999
    "no-export": (65535, 65281),
    "no-advertise": (65535, 65282),
    "no-export-subconfed": (65535, 65283),
    "no-peer": (65535, 65284),
    "blackhole": (65535, 666),
}


def _community(told: str | list[int]) -> tuple[int, int]:
    if isinstance(told, str):
        if told in _WELL_KNOWN:
            return _WELL_KNOWN[told]
        told = [int(part) for part in told.split(":")]
    high, low = told
    return high, low


def _large(told: str | list[int]) -> tuple[int, int, int]:
    if isinstance(told, str):
        told = [int(part) for part in told.split(":")]
    one, two, three = told
    return one, two, three


def _words(told: str | list[str]) -> list[str]:
    """A list, or the same as text: `[ 1.1.1.1 2.2.2.2 ]`."""
    return told.strip("[] ").split() if isinstance(told, str) else list(told)


def family_text(address: str) -> str:
    """ExaBGP's words for the one family a session carries."""
    return "ipv6 unicast" if ":" in address else "ipv4 unicast"
