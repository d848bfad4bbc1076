"""What BIRD 2 prints, read: `show status`, `show protocols all`, `show route`. Pure.

Columns and words are those of nest/proto.c, nest/rt-table.c and proto/bgp/bgp.c. What is not recognised is
passed over: another version of BIRD may say more.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(slots=True)
class Daemon:
    """`show status`. Times are seconds since 1970, 0.0 if unknown."""

    version: str = ""
    router_id: str = ""
    booted: float = 0.0
    configured: float = 0.0
    recovering: bool = False  # from a restart: routes of the last run are kept and peers waited for


@dataclass(slots=True)
class Protocol:
    """One of `show protocols all`; `info` is the last column, blanks made one."""

    name: str
    kind: str  # BGP, Kernel, Static …
    state: str
    since: float
    info: str
    details: dict[str, str] = field(default_factory=dict)  # label -> text, of BGP and of the channel

    def count(self, word: str) -> int:
        """Of the channel's routes: imported, filtered, exported, preferred."""
        match = re.search(rf"(\d+) {word}\b", self.details.get("Routes", ""))
        return int(match[1]) if match else 0


@dataclass(slots=True)
class Route:
    """One path; `hops`: (gateway or "", interface)."""

    prefix: str
    protocol: str
    kind: str  # unicast, blackhole, unreachable, prohibit
    best: bool
    hops: list[tuple[str, str]] = field(default_factory=list)


_STATUS = {
    "Router ID is ": "router_id",
    "Last reboot on ": "booted",
    "Last reconfiguration on ": "configured",
}


def daemon(lines: Iterable[str]) -> Daemon:
    found = Daemon()
    for line in lines:
        if line.startswith("BIRD "):
            found.version = line.removeprefix("BIRD ").strip()
        for start, name in _STATUS.items():
            if line.startswith(start):
                text = line.removeprefix(start).strip()
                setattr(found, name, text if name == "router_id" else moment(text))
        if line.startswith("Graceful restart recovery in progress"):
            found.recovering = True
    return found


# name, kind, table, state, since and info; the first five are single words in our configuration
_PROTOCOL = re.compile(r"(\S+) +(\S+) +(\S+) +(\S+) +(\d\S*(?: \d\d:\S+)?) *(.*)")
_DETAIL = re.compile(r" +([A-Z][A-Za-z0-9 ]*): *(.*)")


def protocols(lines: Iterable[str]) -> Iterator[Protocol]:
    current: Protocol | None = None
    for line in lines:
        if current is not None and (detail := _DETAIL.match(line)):
            current.details.setdefault(detail[1], detail[2].strip())
        elif not line.startswith(" ") and (head := _PROTOCOL.fullmatch(line.rstrip())):
            if current is not None:
                yield current
            info = " ".join(head[6].split())
            current = Protocol(head[1], head[2], head[4], moment(head[5]), info)
    if current is not None:
        yield current


_ROUTE = re.compile(r"(\S*) +(\w+) \[(\S+) [^]]*\] *([*!]?)")
_HOP = re.compile(r"\t(?:via (\S+) on|dev) (\S+)")


def routes(lines: Iterable[str]) -> Iterator[Route]:
    """A further path to a prefix is printed without it."""
    current: Route | None = None
    prefix = ""
    for line in lines:
        if current is not None and (hop := _HOP.match(line)):
            current.hops.append((hop[1] or "", hop[2]))
        elif head := _ROUTE.match(line):
            if current is not None:
                yield current
            prefix = head[1] or prefix
            current = Route(prefix, head[3], head[2], bool(head[4]))
    if current is not None:
        yield current


def moment(text: str) -> float:
    """A local time of day with its date, as Unix time; 0.0 if it is not of that form."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
