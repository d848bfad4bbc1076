"""What the agent tells ExaBGP: lines of its command language, few and long.

What one line says is read, packed and described once, however many neighbours are told (exabgp_routes.py):
prefixes with the same attributes go into one, and neighbours that are told the same into its selector.
ExaBGP takes up to 50 of them per turn of its loop. It wants ASCII lines of less than 1 MiB, and sends
attributes exactly as they are written (it prepends no AS where a path is given).

Pure. What to tell whom is decided in outbox.py.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tortie.bgp.events import family_text
from tortie.bgp.route import Announcement, Attributes

FENCE = b"reset\nversion\n"
"""Drops what an earlier run of the helper asked for, then answers at once. What comes after the answer
was asked for by us."""

SESSIONS = b"show neighbor json\n"
ROUTES_IN = b"show adj-rib in json\n"
ROUTES_OUT = b"show adj-rib out json\n"
RELOAD = b"reload\n"
SHUTDOWN = b"shutdown\n"

_PER_LINE = 1000  # prefixes: some 40 kB for IPv6, far from the limit
_SELECTED = 100  # neighbours in one selector


class Change(NamedTuple):
    """What one neighbour is to be told about one prefix; None: withdraw it."""

    peer: str
    prefix: str
    announcement: Announcement | None


def tell(changes: Iterable[Change]) -> Iterator[bytes]:
    """Command lines for a set of changes, withdrawals first. One change per neighbour and prefix."""
    by_content: dict[Announcement | None, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for change in changes:
        by_content[change.announcement][change.peer].append(change.prefix)
    for announcement in sorted(by_content, key=lambda one: one is not None):
        for peers, prefixes in _together(by_content[announcement]):
            for start in range(0, len(prefixes), _PER_LINE):
                yield _line(peers, announcement, prefixes[start : start + _PER_LINE])


def end_of_rib(peer: str) -> bytes:
    return f"neighbor {peer} announce eor {family_text(peer)}\n".encode()


def resend(peer: str) -> bytes:
    """Have ExaBGP send everything again that it believes to have sent."""
    return f"neighbor {peer} flush adj-rib out\n".encode()


def refresh(peer: str) -> bytes:
    """Ask the peer to announce everything again (RFC 2918)."""
    return f"neighbor {peer} announce route-refresh {family_text(peer)}\n".encode()


def description(peer: str) -> bytes:
    """Asks for the configuration of (at least) one neighbour."""
    return f"show neighbor configuration {peer}\n".encode()


def _together(by_peer: dict[str, list[str]]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """Neighbours that are told about the same prefixes, a hundred at a time; a neighbour has one family."""
    by_prefixes: dict[tuple[str, ...], list[str]] = defaultdict(list)  # prefixes -> neighbours
    for peer, prefixes in by_peer.items():
        by_prefixes[tuple(sorted(prefixes))].append(peer)
    for prefixes_once, peers in by_prefixes.items():
        for start in range(0, len(peers), _SELECTED):
            yield peers[start : start + _SELECTED], prefixes_once


def _line(peers: Sequence[str], announcement: Announcement | None, prefixes: Sequence[str]) -> bytes:
    selector = " , ".join(f"neighbor {peer}" for peer in peers)
    if announcement is None:
        # A withdrawal names a next hop only because the grammar asks for one of the right family.
        next_hop = "::" if ":" in prefixes[0] else "0.0.0.0"
        return f"{selector} withdraw attributes next-hop {next_hop} nlri {' '.join(prefixes)}\n".encode()
    told = f"next-hop {announcement.next_hop} {write_attributes(announcement.attributes)}"
    return f"{selector} announce attributes {told} nlri {' '.join(prefixes)}\n".encode()


def write_attributes(attributes: Attributes) -> str:
    """Attributes in the grammar of `announce`; the inverse of events.read_attributes."""
    origin = "incomplete" if attributes.origin is None else attributes.origin.name.lower()
    words = [f"origin {origin}", f"as-path {_as_path(attributes)}"]
    if attributes.med is not None:
        words.append(f"med {attributes.med}")
    if attributes.local_pref is not None:
        words.append(f"local-preference {attributes.local_pref}")
    if attributes.communities:
        words.append(f"community [ {' '.join(f'{high}:{low}' for high, low in attributes.communities)} ]")
    if attributes.large_communities:
        large = " ".join(":".join(map(str, one)) for one in attributes.large_communities)
        words.append(f"large-community [ {large} ]")
    if attributes.originator_id:
        words.append(f"originator-id {attributes.originator_id}")
    if attributes.cluster_list:
        words.append(f"cluster-list [ {' '.join(attributes.cluster_list)} ]")
    return " ".join(words)


def _as_path(attributes: Attributes) -> str:
    """`[ 65001 65002 ] ( 65003 65004 )`: sequences in brackets, sets in parentheses."""
    brackets = {"as-sequence": "[ {} ]", "as-set": "( {} )"}
    parts = [brackets[s.kind].format(" ".join(map(str, s.numbers))) for s in attributes.as_path]
    return " ".join(parts) or "[ ]"
