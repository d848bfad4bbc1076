"""What a route is to us: path attributes, where a path came from, what goes out. Values without behaviour."""

from enum import IntEnum
from typing import NamedTuple

import msgspec

INT_MAX = 2147483647  # metric and LOCAL_PREF are mirror images around it in Calico
DEFAULT_LOCAL_PREF = 100  # RFC 4271, 5.1.5 leaves it open; BIRD's and everybody's
NORMAL_METRIC = 1024  # Calico's NormalRoutePriority unless configured

NO_EXPORT = (65535, 65281)  # RFC 1997
NO_ADVERTISE = (65535, 65282)
NO_EXPORT_SUBCONFED = (65535, 65283)
LLGR_STALE = (65535, 6)  # RFC 9494


class Origin(IntEnum):
    """RFC 4271, 5.1.1; lower is better."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


class Segment(NamedTuple):
    """One AS_PATH segment; `kind` as-sequence or as-set (ExaBGP shows confederations' as such)."""

    kind: str
    numbers: tuple[int, ...]


def prepend(as_number: int, path: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """RFC 4271, 5.1.2 b: into the leading sequence, or a new one before a set."""
    if path and path[0].kind == "as-sequence" and len(path[0].numbers) < 255:  # one octet of length
        return (Segment("as-sequence", (as_number, *path[0].numbers)), *path[1:])
    return (Segment("as-sequence", (as_number,)), *path)


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """Path attributes (RFC 4271, 1997, 4456, 8092); None or empty means absent.

    An empty `as_path` is what iBGP has for routes of the own AS.
    """

    origin: Origin | None = Origin.IGP
    as_path: tuple[Segment, ...] = ()
    med: int | None = None
    local_pref: int | None = None
    communities: tuple[tuple[int, int], ...] = ()
    large_communities: tuple[tuple[int, int, int], ...] = ()
    originator_id: str = ""
    cluster_list: tuple[str, ...] = ()

    @property
    def path_length(self) -> int:
        """RFC 4271, 9.1.2.2 a: a set counts as one."""
        return sum(1 if segment.kind == "as-set" else len(segment.numbers) for segment in self.as_path)

    @property
    def neighbour_as(self) -> int:
        """The AS the path was learned from; 0 for a path that never left this one."""
        for segment in self.as_path:
            if segment.kind == "as-sequence" and segment.numbers:
                return segment.numbers[0]
        return 0


class Received(NamedTuple):
    """A path as a peer announced it, before any import check."""

    attributes: Attributes
    next_hop: str


class Source(IntEnum):
    """Where a path comes from; the value is its preference, higher wins (Calico's BIRD, bird.cfg)."""

    KERNEL = 10  # a kernel route through a gateway, of felix or of the host's owner
    BGP = 100
    LEAVING = 120  # WORKLOAD with a metric behind normal ones: a pod that is moving away, by felix
    BGP_ELEVATED = 150  # LOCAL_PREF above that of a normal route: a pod that is moving
    WORKLOAD = 200  # a kernel route straight to an interface: a pod is here, whoever else claims it
    STATIC = 240  # own blocks
    DIRECT = 241  # networks that this node is connected to


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """One way to a prefix that passed import: a candidate for best path."""

    source: Source
    attributes: Attributes = Attributes()
    next_hop: str = ""  # "" for local paths
    peer: str = ""  # address of the session; "" for local paths
    ebgp: bool = False
    router_id: str = "0.0.0.0"  # of the peer
    metric: int = NORMAL_METRIC  # kernel metric of local paths
    interface: str = ""  # of local paths that are kernel routes

    @property
    def local(self) -> bool:
        return not self.peer

    @property
    def priority(self) -> int:
        """Calico's route priority, lower wins: a metric, or its mirror image in LOCAL_PREF."""
        given = self.attributes.local_pref
        return self.metric if self.local or given is None else INT_MAX - given


class Announcement(NamedTuple):
    """What one peer is to be told about a prefix."""

    attributes: Attributes
    next_hop: str
