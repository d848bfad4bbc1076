"""Updates under traffic: what is allowed before, between and after is not lost, what is denied does not pass.

Between two states the kernel passes through others: IP sets first, then one table after the other. The
evaluator says what each of them does to a packet; a flow about which they all agree must not notice.
"""

import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from random import Random
from typing import Any

import pytest

from tests.felix.cluster_lab import Cluster, members_of, path_of
from tests.felix.node_lab import Node
from tests.felix.packets import Ear, Mouth
from tests.felix.worlds import PODS, WAYS, Place, a_world, pod_object
from tests.netns_lab import Namespace, eventually
from tortie.datastore.keys import ResourceKey, key_of
from tortie.datastore.validate import with_defaults
from tortie.felix.rules import ir
from tortie.felix.rules.evaluate import Packet, Ruleset, Sets, evaluate

pytestmark = pytest.mark.kernel

UPDATES = 100
_PAUSE = 0.001  # seconds between packets
_SLACK = 15  # packets that are left to arrive before and after a change
_CALM = 40  # packets between two changes
_FIRST_PORT, _LAST_PORT = 1024, 65000  # no port is used twice: each packet is a connection of its own
_MOST_SETS = 3  # changed at once, of which all orders are looked at


@dataclass(frozen=True)
class Flow:
    """One kind of packet; each is the first of a connection of its own."""

    source: Place
    target: Place
    version: int
    dport: int

    def packet(self, sport: int) -> Packet:
        return Packet(
            self.source.address(self.version), self.target.address(self.version), 17, sport, self.dport, None,
            self.source.interface, self.target.interface,
        )  # fmt: skip


FLOWS = [Flow(*way, version, dport) for way in WAYS for version in (4, 6) for dport in (53, 80)]


class Traffic:
    """Sends packets of all flows in turn, without end, and notes which of them arrive where.

    `phase` is even while nothing changes, and odd from a little before a change to a little after it.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.phase = 0
        self.sent: list[tuple[int, Flow, int]] = []  # (phase, flow, port)
        self._arrived: set[tuple[str, int, int]] = set()  # (place, IP version, port)
        self._stop = threading.Event()
        self._mouths = {name: Mouth(ns) for name, ns in cluster.namespaces.items()}
        self._ears = {name: Ear(ns) for name, ns in cluster.namespaces.items()}
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._hear)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        for port in range(_FIRST_PORT, _LAST_PORT):
            if self._stop.wait(_PAUSE):
                return
            flow, phase = FLOWS[port % len(FLOWS)], self.phase
            self._mouths[flow.source.name].send(flow.packet(port), port)
            self.sent.append((phase, flow, port))

    def _hear(self) -> None:
        owners = {one: name for name, ear in self._ears.items() for one in ear.sockets}
        while True:
            ready = select.select(list(owners), (), (), 0.2)[0]
            for one in ready:
                seen = self._ears[owners[one]].read(one)
                self._arrived.update((owners[one], version, port) for version, _, port in seen)
            if not ready and self._stop.is_set():
                return

    def more(self, count: int) -> None:
        """Let so many more packets go."""
        target = len(self.sent) + count
        eventually(lambda: len(self.sent) >= target)

    def around(self, change: Callable[[], None]) -> None:
        self.phase += 1
        self.more(_SLACK)
        change()
        self.more(_SLACK)
        self.phase += 1

    def arrived(self, flow: Flow, port: int) -> bool:
        return (flow.target.name, flow.version, port) in self._arrived

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def close(self) -> None:
        self.end()
        for mouth in self._mouths.values():
            mouth.close()
        for ear in self._ears.values():
            ear.close()


@pytest.fixture(params=["nft", "nftables"])
def cluster(make_netns: Callable[[], Namespace], request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(Node(make_netns), request.param)
    yield made
    made.close()


@pytest.fixture
def traffic(cluster: Cluster) -> Iterator[Callable[[], Traffic]]:
    made: list[Traffic] = []

    def make() -> Traffic:
        made.append(Traffic(cluster))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- what may happen on the way ---------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """What stands in the kernel at one moment, as felix knows it."""

    rules: Mapping[int, Ruleset]
    members: Mapping[str, frozenset[str]]

    @cached_property
    def sets(self) -> Sets:
        return Sets(self.members)

    @classmethod
    def of(cls, cluster: Cluster) -> "Standing":
        return cls(cluster.rulesets(), members_of(cluster.calc.state))

    def passes(self, packet: Packet) -> bool:
        return evaluate(self.rules[packet.version], self.sets, packet, path_of(packet)).outcome == "accept"


def on_the_way(before: Standing, after: Standing) -> list[Standing]:
    """Everything that stands from the one to the other: sets change in any order, then table after table."""
    kept = before.members.keys() & after.members.keys()
    changed = [ident for ident in kept if before.members[ident] != after.members[ident]]
    ways = [
        (before.members[one], before.members[one] | after.members[one], after.members[one]) for one in changed
    ]
    if len(changed) > _MOST_SETS:
        return []
    both = {**before.members, **after.members}
    found = [
        Standing(before.rules, {**both, **dict(zip(changed, chosen, strict=True))})
        for chosen in product(*ways)
    ]
    for table in ir.TABLES:
        done = ir.TABLES[: ir.TABLES.index(table) + 1]
        if not _differ(before.rules, after.rules, table):
            continue
        mixed = {version: _mixed(before.rules[version], after.rules[version], done) for version in (4, 6)}
        found.append(Standing(mixed, both))
    return found


def _differ(one: Mapping[int, Ruleset], other: Mapping[int, Ruleset], table: str) -> bool:
    def own(rules: Ruleset) -> dict[tuple[str, str], Any]:
        return {key: content for key, content in rules.items() if key[0] == table}

    return any(own(one[version]) != own(other[version]) for version in one)


def _mixed(old: Ruleset, new: Ruleset, done: tuple[str, ...]) -> Ruleset:
    """The tables `done` as they are to be, the others as they were."""
    parts = [(key, one) for key, one in old.items() if key[0] not in done]
    return dict(parts + [(key, one) for key, one in new.items() if key[0] in done])


def steady(before: Standing, after: Standing) -> dict[Flow, bool]:
    """The flows that no moment of a change may treat otherwise than all others, and how they are treated."""
    moments = on_the_way(before, after)
    found = {flow: {one.passes(flow.packet(1)) for one in moments} for flow in FLOWS}
    return {flow: verdicts.pop() for flow, verdicts in found.items() if len(verdicts) == 1}


def a_step(rand: Random, objects: Mapping[ResourceKey, Any]) -> dict[ResourceKey, Any]:
    """The objects with one of them written, added or deleted."""
    other = a_world(rand)
    key = rand.choice(sorted({*objects, *other}, key=str))
    changed = dict(objects)
    if key.kind == "WorkloadEndpoint":  # its labels only: who is where stays
        place = rand.choice(PODS)
        labels = {"app": rand.choice(["web", "db", "x"]), "old": rand.choice(["yes", "no"])}
        one = with_defaults(pod_object(place, labels))
        changed[key_of(one)] = one
    elif key in other:
        changed[key] = other[key]
    else:
        del changed[key]
    return changed


@pytest.mark.parametrize("seed", [1, 2])
def test_updates_are_not_noticed_by_whom_they_do_not_concern(
    cluster: Cluster, traffic: Callable[[], Traffic], seed: int
) -> None:
    rand = Random(seed)
    objects = a_world(rand)
    cluster.become(objects)
    for source, target in WAYS:  # neighbours know each other before it counts
        for version in (4, 6):
            cluster.mouths[source.name].send(Flow(source, target, version, 9).packet(1023), 0)
    stands = [Standing.of(cluster)]
    packets = traffic()
    for _ in range(UPDATES):
        packets.more(_CALM)
        objects = a_step(rand, objects)
        cluster.tell(objects)
        packets.around(cluster.apply)
        stands.append(Standing.of(cluster))
    packets.end()
    wrong, judged = [], Counter[bool]()
    calm = [{flow: one.passes(flow.packet(1)) for flow in FLOWS} for one in stands]
    changing = [steady(one, other) for one, other in pairwise(stands)]
    for phase, flow, port in packets.sent:
        expected = (changing if phase % 2 else calm)[phase // 2].get(flow)
        if expected is not None:
            judged[expected] += 1
            if packets.arrived(flow, port) != expected:
                wrong.append((phase, flow.source.name, flow.target.name, flow.version, flow.dport, expected))
    assert not wrong, wrong[:20]
    assert min(judged[True], judged[False]) > 1000, "of both kinds there must be many"
