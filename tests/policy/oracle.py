"""What felix would do: its own calculation and chains for each node, and packets evaluated against them.

The cluster is imaginary: a pod's interface is where its endpoint says, nodes reach each other by eth0.
"""

from collections.abc import Mapping, Sequence

from tests.felix.fakes import FakeClock, FakeTables
from tests.policy.board import Json
from tests.policy.naive import Packet
from tortie.datastore import validate
from tortie.datastore.codec import from_plain
from tortie.datastore.keys import key_of
from tortie.datastore.kinds import KINDS
from tortie.datastore.rules import as_read
from tortie.datastore.syncer import Update
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.meta import Resource
from tortie.felix.calc.graph import Calculation, Inputs
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.hosts import assign
from tortie.felix.dataplane.tables import Tables, TableWriter
from tortie.felix.rules import ir, names
from tortie.felix.rules.evaluate import FORWARDED, INWARD, OUTWARD, Ruleset, Sets, Verdict, evaluate
from tortie.felix.rules.evaluate import Packet as Crossing
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.settings import Failsafe, Settings

_IN = (22, 179, 2379, 2380, 5473, 6443, 6666, 6667)
SETTINGS = Settings(
    endpoint_to_host=ir.RETURN,
    failsafe_in=(*(Failsafe("tcp", port) for port in _IN), Failsafe("udp", 68)),
    failsafe_out=(*(Failsafe("tcp", port) for port in _IN[1:]), Failsafe("udp", 53), Failsafe("udp", 67)),
)
_OF_TOPOLOGY = (names.MASQUERADED_POOLS, names.ALL_POOLS, names.DSCP_SOURCES, names.THIS_HOST)


def resource_of(raw: Json) -> Resource:
    """As readers see what a client has stored. Raises ValidationError."""
    one = validate.with_defaults(from_plain(KINDS[raw["kind"]].type, raw))
    validate.check(one)
    return as_read(one)


class Node:
    """One node's chains and sets, from everything that is in the datastore."""

    def __init__(self, name: str, resources: Sequence[Resource], addresses: Sequence[str]) -> None:
        calculation = Calculation(Inputs(name))
        for one in resources:
            calculation.update(Update("new", key_of(one), one))
        calculation.flush()
        state = calculation.state
        self.problems = dict(state.problems)
        members = {ident: one.v4 | one.v6 for ident, one in state.sets.items()}
        self._sets = Sets({**members, **dict.fromkeys(_OF_TOPOLOGY, ())})
        self._rulesets: dict[int, Ruleset] = {}
        for version in (4, 6):
            duty: Tables = Duty("chains", FakeTables(), interval=0, clock=FakeClock(), rand=lambda: 0.5)
            writer = TableWriter(version, SETTINGS, Features(), duty)
            writer.start(state)
            writer.hosts(assign(state.hosts.values(), {"eth0": addresses}, SETTINGS.workload_prefixes))
            self._rulesets[version] = writer.ruleset()

    def verdict(self, packet: Packet, inward: str, outward: str) -> Verdict:
        """Of a packet that comes by one interface and goes by another; '' is the host itself."""
        path = FORWARDED if inward and outward else INWARD if inward else OUTWARD
        crossing = Crossing(
            packet.src,
            packet.dst,
            packet.protocol,
            packet.sport,
            packet.dport,
            packet.icmp if packet.protocol in (1, 58) else None,
            inward,
            outward,
            src_local=not inward,
            dst_local=not outward,
        )
        return evaluate(self._rulesets[packet.version], self._sets, crossing, path)


class Cluster:
    """All nodes of a set of resources. `hosts`: node -> its addresses."""

    def __init__(self, raws: Sequence[Json], hosts: Mapping[str, Sequence[str]]) -> None:
        resources = [resource_of(raw) for raw in raws]
        self._hosts = hosts
        self._interfaces: dict[str, tuple[str, str]] = {}  # address -> (node, interface), '' for the node's
        for one in resources:
            if isinstance(one, WorkloadEndpoint):
                for net in one.spec.ipNetworks:
                    self._interfaces[net.split("/")[0]] = one.spec.node, one.spec.interfaceName
        for node, addresses in hosts.items():
            self._interfaces |= dict.fromkeys(addresses, (node, ""))
        nodes = {node for node, _interface in self._interfaces.values()}
        self.nodes = {node: Node(node, resources, list(hosts.get(node, ()))) for node in nodes}

    def crossings(self, packet: Packet) -> list[tuple[str, Verdict]]:
        """The verdict of each node the packet passes, up to the one that drops it."""
        (here, come), (there, go) = self._interfaces[packet.src], self._interfaces[packet.dst]
        ways = [(here, come, go)] if here == there else [(here, come, "eth0"), (there, "eth0", go)]
        found: list[tuple[str, Verdict]] = []
        for node, inward, outward in ways:
            found.append((node, self.nodes[node].verdict(packet, inward, outward)))
            if found[-1][1].outcome != "accept":
                break
        return found

    def allowed(self, packet: Packet) -> bool:
        return all(verdict.outcome == "accept" for _, verdict in self.crossings(packet))
