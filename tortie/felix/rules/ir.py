"""The one intermediate form of rules: chains of matches and an action, as plain data.

Policies, profiles and Calico's static chains become this once (policy.py, static.py, endpoints.py,
dispatch.py, nat.py). Renderers turn it into iptables or nftables text; evaluate.py runs packets
through it. It knows no syntax, no set's kernel name and no address family: IP sets are named by
their logical ids, and chains by the names every renderer uses.

A rule matches if all its matches do; without an action it counts packets only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Side = Literal["src", "dst"]

RAW, MANGLE, NAT, FILTER = "raw", "mangle", "nat", "filter"
TABLES = (RAW, MANGLE, NAT, FILTER)  # in the order in which a packet meets them


# --- matches ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """packet mark & mask == value."""

    value: int
    mask: int
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """The packet came in (or goes out) by an interface of that name, or whose name begins so."""

    direction: Literal["in", "out"]
    name: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """By number, or by a name that iptables and nft know (lower case)."""

    protocol: int | str
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Net:
    side: Side
    cidr: str
    negate: bool = False


@dataclass(frozen=True, slots=True)
class InSet:
    """The address is in an IP set; with `ports`, address, protocol and port of that side are."""

    side: Side
    id: str
    ports: bool = False
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Ports:
    """Inclusive ranges; at most 15 slots (a single port takes one, a range two) for multiport's sake."""

    side: Side
    ranges: tuple[tuple[int, int], ...]
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Port:
    """One destination port, tested by the protocol's own match: the rule must also have a Protocol."""

    port: int


@dataclass(frozen=True, slots=True)
class Icmp:
    """ICMP of IP `version` with that type and, unless None, that code."""

    version: int
    type: int
    code: int | None = None
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Conntrack:
    """The connection is in one of these states: RELATED, ESTABLISHED, NEW, INVALID."""

    states: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dnatted:
    """The connection's destination was translated."""

    negate: bool = False


@dataclass(frozen=True, slots=True)
class ReversePathFailed:
    """The way back to the source would not be the interface it came by; the mark takes part."""


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """The address is one of this host; `of_interface`: of the interface the packet leaves by."""

    side: Side
    negate: bool = False
    of_interface: bool = False


@dataclass(frozen=True, slots=True)
class RateLimit:
    """True as long as the rule fires at most `rate` times (`5/minute`), after a burst; burst 0: default."""

    rate: str
    burst: int = 0


Match = (
    Mark
    | Interface
    | Protocol
    | Net
    | InSet
    | Ports
    | Port
    | Icmp
    | Conntrack
    | Dnatted
    | ReversePathFailed
    | LocalAddress
    | RateLimit
)


# --- actions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accept:
    pass


@dataclass(frozen=True, slots=True)
class Drop:
    pass


@dataclass(frozen=True, slots=True)
class Reject:
    """Answers with an ICMP error; exists in the filter table only."""


@dataclass(frozen=True, slots=True)
class Return:
    pass


@dataclass(frozen=True, slots=True)
class Jump:
    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """A jump that returns to where this chain would return to."""

    chain: str


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Goes on, as Goto does, in the chain of the interface the packet came in (goes out) by.

    `chains`: (interface, chain). Without one for its interface the packet meets the next rule. For renderers
    that have maps; a chain holds at most one, which bears the chain's name.
    """

    direction: Literal["in", "out"]
    chains: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SetMark:
    """mark = (mark & ~mask) | value."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class NoTrack:
    pass


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Source becomes the outgoing interface's address; `ports` is `low-high` or ''."""

    ports: str = ""


@dataclass(frozen=True, slots=True)
class Snat:
    address: str
    ports: str = ""

    @property
    def target(self) -> str:
        """As iptables and nft write it."""
        if not self.ports:
            return self.address
        return f"[{self.address}]:{self.ports}" if ":" in self.address else f"{self.address}:{self.ports}"


@dataclass(frozen=True, slots=True)
class Dnat:
    address: str


@dataclass(frozen=True, slots=True)
class Log:
    prefix: str


@dataclass(frozen=True, slots=True)
class SetDscp:
    value: int


@dataclass(frozen=True, slots=True)
class MarkWithinRate:
    """Set the mark bits on packets within `rate` per second; those above pass unmarked."""

    rate: int
    burst: int
    mark: int


@dataclass(frozen=True, slots=True)
class ResetAboveConnections:
    """Answer new TCP connections with a reset while more than `count` exist."""

    count: int


Action = (
    Accept
    | Drop
    | Reject
    | Return
    | Jump
    | Goto
    | Dispatch
    | SetMark
    | NoTrack
    | Masquerade
    | Snat
    | Dnat
    | Log
    | SetDscp
    | MarkWithinRate
    | ResetAboveConnections
)


# --- rules and chains ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """`comments` are for people; renderers escape them."""

    matches: tuple[Match, ...] = ()
    action: Action | None = None
    comments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    rules: tuple[Rule, ...] = ()

    @property
    def targets(self) -> Iterator[str]:
        """The chains this one leads to."""
        for rule in self.rules:
            if isinstance(rule.action, (Jump, Goto)):
                yield rule.action.chain
            elif isinstance(rule.action, Dispatch):
                yield from (chain for _, chain in rule.action.chains)

    @property
    def sets(self) -> Iterator[str]:
        """The ids of the IP sets its rules look into."""
        return (match.id for rule in self.rules for match in rule.matches if isinstance(match, InSet))


@dataclass(frozen=True, slots=True)
class Hook:
    """Our rules in one of the kernel's own chains: before and after what others have there.

    `first` is placed at the end instead (before `last`) where the user asked for append mode.
    """

    first: tuple[Rule, ...] = ()
    last: tuple[Rule, ...] = ()

    @property
    def targets(self) -> Iterator[str]:
        return Chain("", self.first + self.last).targets


# Words for what is written often.
ACCEPT, DROP, REJECT, RETURN, NO_TRACK = Accept(), Drop(), Reject(), Return(), NoTrack()


def set_bits(bits: int) -> SetMark:
    return SetMark(bits, bits)


def clear_bits(bits: int) -> SetMark:
    return SetMark(0, bits)


def all_set(bit: int) -> Mark:
    return Mark(bit, bit)


def all_clear(bits: int) -> Mark:
    return Mark(0, bits)


def any_set(bits: int) -> Mark:
    return Mark(0, bits, negate=True)
