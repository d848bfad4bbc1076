"""What would happen to a packet: a third renderer of the intermediate form, which runs it.

Pure. It serves tests as the oracle for what the kernel should do, and people as the explanation of what
it does: every verdict comes with the rules that were met. Rate limits count as not yet reached, and
rules of others in the kernel's chains do not exist.
"""

import ipaddress
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol

from tortie.felix.rules import ir
from tortie.felix.rules.ir import Chain, Hook

Ruleset = Mapping[tuple[str, str], Chain | Hook]
"""(table, chain) -> what stands there; a Hook where the chain is the kernel's own."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Outcome = Literal["accept", "drop", "reject"]

# The kernel's chains a packet meets, in order: nat only decides for a connection's first packet.
FORWARDED = (
    (ir.RAW, "PREROUTING"),
    (ir.MANGLE, "PREROUTING"),
    (ir.NAT, "PREROUTING"),
    (ir.FILTER, "FORWARD"),
    (ir.MANGLE, "POSTROUTING"),
    (ir.NAT, "POSTROUTING"),
)
INWARD = (*FORWARDED[:3], (ir.FILTER, "INPUT"))
OUTWARD = ((ir.RAW, "OUTPUT"), (ir.NAT, "OUTPUT"), (ir.FILTER, "OUTPUT"), *FORWARDED[4:])

_NUMBERS = {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "udplite": 136}
_PORT_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_MAX_DEPTH = 64  # jumps within jumps; ours reach five


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as rules see it. `state` is the connection's; the flags say what routing would."""

    src: str
    dst: str
    protocol: int = 6
    sport: int = 0
    dport: int = 0
    icmp: tuple[int, int] | None = None
    in_interface: str = ""
    out_interface: str = ""
    state: str = "NEW"
    dnatted: bool = False
    reverse_path_ok: bool = True
    src_local: bool = False
    dst_local: bool = False
    src_of_out_interface: bool = False
    mark: int = 0

    @property
    def version(self) -> int:
        return 6 if ":" in self.src else 4


@dataclass(slots=True)
class Verdict:
    """`rule` is the rule that decided, None if the packet fell through to the policy of kernel chains.

    `path`: every rule that matched, as (table, chain, number from 1). `changes`: actions other than
    marks and jumps that were taken on the way.
    """

    outcome: Outcome
    mark: int
    rule: tuple[str, str, int] | None = None
    path: list[tuple[str, str, int]] = field(default_factory=list)
    changes: list[ir.Action] = field(default_factory=list)


@lru_cache(maxsize=4096)
def _parsed(address: str) -> Address:
    return ipaddress.ip_address(address)


@lru_cache(maxsize=4096)
def _network(cidr: str) -> Network:
    return ipaddress.ip_network(cidr)


class Contents(Protocol):
    """What is in IP sets, by their ids."""

    def __getitem__(self, ident: str, /) -> Collection[str]:
        """Raises KeyError for a set that does not exist."""


class Sets:
    """The members of IP sets by id, made ready for asking when they are asked for."""

    def __init__(self, members: Contents) -> None:
        """Members are addresses, CIDRs, or `address,protocol:port`."""
        self._members = members
        # set -> the networks in it, by IP version and how many bits of their addresses are free
        self._nets: dict[str, dict[tuple[int, int], set[int]]] = {}

    def holds(self, ident: str, address: str) -> bool:
        """Raises KeyError for a set that does not exist: the kernel refuses such a rule."""
        if ident not in self._nets:
            self._nets[ident] = _by_width(self._members[ident])
        one = _parsed(address)
        return any(
            version == one.version and int(one) >> free in nets
            for (version, free), nets in self._nets[ident].items()
        )

    def holds_port(self, ident: str, address: str, protocol: int, port: int) -> bool:
        return f"{address},{_PORT_PROTOCOLS.get(protocol, protocol)}:{port}" in self._members[ident]


def _by_width(members: Collection[str]) -> dict[tuple[int, int], set[int]]:
    found: dict[tuple[int, int], set[int]] = {}
    for member in members:
        if "," not in member:
            net = ipaddress.ip_network(member)
            free = net.max_prefixlen - net.prefixlen
            found.setdefault((net.version, free), set()).add(int(net.network_address) >> free)
    return found


def evaluate(
    ruleset: Ruleset, sets: Sets, packet: Packet, path: Collection[tuple[str, str]] = FORWARDED
) -> Verdict:
    """Run a packet through the kernel chains of `path`. Raises KeyError for a chain that is missing."""
    verdict = Verdict("accept", packet.mark)
    for table, chain in path:
        if table == ir.NAT and packet.state != "NEW":
            continue
        walk = _Walk(ruleset, sets, packet, table, verdict)
        outcome = walk.hook(chain)
        if outcome in ("drop", "reject"):
            verdict.outcome = outcome
            return verdict
    return verdict


@dataclass(slots=True)
class _Walk:
    """One packet in one table; its mark, which alone changes on the way, is in the verdict."""

    ruleset: Ruleset
    sets: Sets
    packet: Packet
    table: str
    verdict: Verdict

    def hook(self, name: str) -> Outcome | None:
        hook = self.ruleset.get((self.table, name))
        if not isinstance(hook, Hook):
            return None
        return self._rules(name, hook.first + hook.last, 0)

    def _rules(self, chain: str, rules: tuple[ir.Rule, ...], depth: int) -> Outcome | None:
        if depth > _MAX_DEPTH:
            raise ValueError(f"chain {chain} leads to itself")
        for number, rule in enumerate(rules, 1):
            if not all(map(self._holds, rule.matches)):
                continue
            self.verdict.path.append((self.table, chain, number))
            outcome, ends = self._act(rule.action, depth)
            if outcome is not None and self.verdict.path[-1] == (self.table, chain, number):
                self._decided(outcome, chain, number)
            if outcome is not None or ends:
                return outcome
        return None

    def _holds(self, match: ir.Match) -> bool:
        if isinstance(match, ir.Mark):
            return (self.verdict.mark & match.mask == match.value) != match.negate
        return matches(match, self.packet, self.sets)

    def _decided(self, outcome: Outcome, chain: str, number: int) -> None:
        """The filter table has the last word on letting through, any table on not doing so."""
        if outcome != "accept" or self.table == ir.FILTER:
            self.verdict.rule = (self.table, chain, number)

    def _act(self, action: ir.Action | None, depth: int) -> tuple[Outcome | None, bool]:
        """The outcome if the action decides, and whether the chain ends here."""
        match action:
            case ir.Accept():
                return "accept", True
            case ir.Drop():
                return "drop", True
            case ir.Reject():
                return "reject", True
            case ir.Return():
                return None, True
            case ir.Jump(name) | ir.Goto(name):
                target = self.ruleset[self.table, name]
                if not isinstance(target, Chain):
                    raise KeyError(name)
                return self._rules(name, target.rules, depth + 1), isinstance(action, ir.Goto)
            case ir.Dispatch(direction, chains):
                name = self.packet.in_interface if direction == "in" else self.packet.out_interface
                chain = dict(chains).get(name)
                return (None, False) if chain is None else self._act(ir.Goto(chain), depth)
            case ir.SetMark(value, mask):
                self.verdict.mark = (self.verdict.mark & ~mask) | value
            case ir.MarkWithinRate(mark=mark):
                self.verdict.mark |= mark
            case ir.Masquerade() | ir.Snat() | ir.Dnat():
                self.verdict.changes.append(action)
                return "accept", True  # a translation ends the nat table
            case None:
                pass
            case other:
                self.verdict.changes.append(other)
        return None, False


# --- matches ------------------------------------------------------------------------------------


def matches(match: ir.Match, packet: Packet, sets: Sets) -> bool:
    """Whether one match of a rule holds for a packet; those of its mark are the walk's own."""
    found = _TESTS[type(match)](match, packet, sets)
    return found != getattr(match, "negate", False)


def _side(side: ir.Side, packet: Packet) -> tuple[str, int]:
    return (packet.src, packet.sport) if side == "src" else (packet.dst, packet.dport)


def _interface(match: ir.Interface, packet: Packet, _sets: Sets) -> bool:
    name = packet.in_interface if match.direction == "in" else packet.out_interface
    return name.startswith(match.name) if match.prefix else name == match.name


def _net(match: ir.Net, packet: Packet, _sets: Sets) -> bool:
    return _parsed(_side(match.side, packet)[0]) in _network(match.cidr)


def _in_set(match: ir.InSet, packet: Packet, sets: Sets) -> bool:
    address, port = _side(match.side, packet)
    if match.ports:
        return sets.holds_port(match.id, address, packet.protocol, port)
    return sets.holds(match.id, address)


def _ports(match: ir.Ports, packet: Packet, _sets: Sets) -> bool:
    port = _side(match.side, packet)[1]
    return any(low <= port <= high for low, high in match.ranges)


def _icmp(match: ir.Icmp, packet: Packet, _sets: Sets) -> bool:
    if packet.icmp is None or packet.version != match.version:
        return False
    kind, code = packet.icmp
    return kind == match.type and match.code in (None, code)


def _local(match: ir.LocalAddress, packet: Packet, _sets: Sets) -> bool:
    if match.of_interface:
        return packet.src_of_out_interface
    return packet.src_local if match.side == "src" else packet.dst_local


_TESTS: dict[type, Callable[[Any, Packet, Sets], bool]] = {  # kind of match -> its test, not negated
    ir.Interface: _interface,
    ir.Protocol: lambda match, packet, _: _NUMBERS.get(match.protocol, match.protocol) == packet.protocol,
    ir.Net: _net,
    ir.InSet: _in_set,
    ir.Ports: _ports,
    ir.Port: lambda match, packet, _: packet.dport == match.port,
    ir.Icmp: _icmp,
    ir.Conntrack: lambda match, packet, _: packet.state in match.states,
    ir.Dnatted: lambda match, packet, _: packet.dnatted,
    ir.ReversePathFailed: lambda match, packet, _: not packet.reverse_path_ok,
    ir.LocalAddress: _local,
    ir.RateLimit: lambda match, packet, _: True,
}


def reachable(ruleset: Ruleset) -> Iterator[tuple[str, str]]:
    """The (table, chain) of every chain that some hook leads to. Raises KeyError for one that is missing."""
    pending = [
        (table, target)
        for (table, _), one in ruleset.items()
        if isinstance(one, Hook)
        for target in one.targets
    ]
    seen: set[tuple[str, str]] = set()
    while pending:
        key = pending.pop()
        if key not in seen:
            seen.add(key)
            yield key
            pending += [(key[0], target) for target in ruleset[key].targets]
