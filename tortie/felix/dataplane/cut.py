"""Cuts tracked connections that the rules would not let begin any more. Tortie's own, and off by default.

Rules let established connections go on, as Calico's do: a policy that begins to deny them only stops new
ones. With CutDeniedFlows each connection is held against the rules that have just been written, as if its
first packet came now, and forgotten by the kernel if they would drop it. Its next packet is then judged by
policy as a new one: in TCP it is none that could begin a connection, whichever side sends it, because the
kernel is told not to guess (nf_conntrack_tcp_loose). Where any packet can begin one, as in UDP, the answers
of a cut connection go through if policy lets their sender begin such a connection.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from tortie.core.errors import KernelError
from tortie.felix.calc import canonical
from tortie.felix.calc.model import Workload
from tortie.felix.rules import ir
from tortie.felix.rules.evaluate import Packet, Ruleset, Sets, evaluate
from tortie.linux import conntrack_table as conntrack
from tortie.linux import route_lookup
from tortie.linux.conntrack_table import Connection, Ends
from tortie.linux.netlink import NetlinkSocket

_log = logging.getLogger(__name__)

_AT_ONCE = 100  # connections judged before the loop runs again: some 5 ms
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV)

Place = str
"""The interface behind which an address is; HOST for the host's own."""

HOST: Place = ""

# The kernel's chains a connection's first packet meets, before addresses are translated and after.
_Way = Literal["forwarded", "inward", "outward"]
_BEFORE: dict[_Way, tuple[tuple[str, str], ...]] = {
    "forwarded": ((ir.RAW, "PREROUTING"), (ir.MANGLE, "PREROUTING")),
    "inward": ((ir.RAW, "PREROUTING"), (ir.MANGLE, "PREROUTING")),
    "outward": ((ir.RAW, "OUTPUT"),),
}
_AFTER: dict[_Way, tuple[tuple[str, str], ...]] = {
    "forwarded": ((ir.FILTER, "FORWARD"), (ir.MANGLE, "POSTROUTING")),
    "inward": ((ir.FILTER, "INPUT"),),
    "outward": ((ir.FILTER, "OUTPUT"), (ir.MANGLE, "POSTROUTING")),
}


# --- the decision -------------------------------------------------------------------------------


class Judge:
    """Says of connections of one IP version whether the rules would let them begin. Pure but for `find`."""

    def __init__(self, rules: Ruleset, sets: Sets, find: Callable[[str], Place | None]) -> None:
        """`find(address)`: where it is, None if nobody can say; such connections are let be."""
        self._rules, self._sets, self._find = rules, sets, find
        self._sport_matters = _reads_source_ports(rules)
        self._told: dict[tuple[object, ...], bool] = {}

    def denies(self, connection: Connection) -> bool:
        if connection.expected:  # belongs to another, whatever its ports
            return False
        original, reply = connection.original, connection.reply
        sport = original.sport if self._sport_matters else 0
        key = (connection.protocol, original._replace(sport=sport), reply.src, reply.sport)
        if key not in self._told:
            try:
                self._told[key] = self._denied(connection.protocol, original, reply)
            except KeyError:  # a rule on a set that is not there: the kernel refused it, and says so
                self._told[key] = False
        return self._told[key]

    def _denied(self, protocol: int, original: Ends, reply: Ends) -> bool:
        source, target = self._find(original.src), self._find(reply.src)
        if source is None or target is None or source == target == HOST:
            return False
        way: _Way = "outward" if source == HOST else "inward" if target == HOST else "forwarded"
        moved = (original.dst, original.dport) != (reply.src, reply.sport) and original.icmp is None
        packet = Packet(
            original.src,
            original.dst,
            protocol,
            original.sport,
            original.dport,
            original.icmp,
            source,
            target,
            dnatted=moved,
            src_local=source == HOST,
            dst_local=target == HOST,
        )
        early = evaluate(self._rules, self._sets, packet, _BEFORE[way])
        if early.outcome != "accept":
            return True
        packet = replace(packet, dst=reply.src, mark=early.mark)
        if moved:
            packet = replace(packet, dport=reply.sport)
        return evaluate(self._rules, self._sets, packet, _AFTER[way]).outcome != "accept"


def _reads_source_ports(rules: Ruleset) -> bool:
    chains = (one.first + one.last if isinstance(one, ir.Hook) else one.rules for one in rules.values())
    return any(
        (isinstance(match, ir.Ports) or (isinstance(match, ir.InSet) and match.ports)) and match.side == "src"
        for rules_of_chain in chains
        for rule in rules_of_chain
        for match in rule.matches
    )


# --- the deed -----------------------------------------------------------------------------------


class Cutter:
    def __init__(self, netlink: NetlinkSocket, name_of: Callable[[int], str]) -> None:
        """`netlink`: answers questions about routes; `name_of(ifindex)`: an interface's name."""
        self._netlink, self._name_of = netlink, name_of

    async def cut(self, version: int, rules: Ruleset, sets: Sets, workloads: Iterable[Workload]) -> None:
        """Hold all connections against `rules`; if they cannot be listed or deleted, that is said."""
        try:
            count = await self._cut(version, rules, sets, workloads)
        except KernelError as err:
            _log.warning("IPv%d connections that policy denies now may go on: %s", version, err)
            return
        if count:
            _log.info("cut %d IPv%d connections that policy denies now", count, version)

    async def _cut(self, version: int, rules: Ruleset, sets: Sets, workloads: Iterable[Workload]) -> int:
        places: dict[str, Place | None] = {
            canonical.address_of(net): one.interface for one in workloads for net in one.nets
        }

        def find(address: str) -> Place | None:
            if address not in places:
                places[address] = self._ask(address)
            return places[address]

        judge = Judge(rules, sets, find)
        denied: list[Connection] = []
        with conntrack.open_socket() as door:
            for number, connection in enumerate(conntrack.dump(door, version)):
                if judge.denies(connection):
                    denied.append(connection)
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
            conntrack.delete(door, denied)
        return len(denied)

    def _ask(self, address: str) -> Place | None:
        try:
            way = route_lookup.lookup(self._netlink, address)
        except KernelError as err:
            if err.errno not in _UNREACHABLE:
                raise
            return None
        if way.local:
            return HOST
        return (self._name_of(way.ifindex) or None) if way.unicast else None
