"""Updates under traffic: what is allowed before, between and after is not lost, what is denied does not pass.

Between two states the kernel passes through others: IP sets first, then one table after the other. The
evaluator says what each of them does to a packet; a flow about which they all agree must not notice.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from random import Random
from typing import Any

import pytest

from tests.felix.cluster_lab import Cluster, members_of, path_of
from tests.felix.node_lab import Node
from tests.felix.traffic import Flow, Sent, Traffic
from tests.felix.worlds import PODS, WAYS, a_world, ghost_object, pod_object
from tests.netns_lab import Namespace
from tortie.datastore.keys import ResourceKey, key_of
from tortie.datastore.validate import with_defaults
from tortie.felix.rules import ir
from tortie.felix.rules.evaluate import Ruleset, Sets, evaluate

pytestmark = pytest.mark.kernel

UPDATES = 500  # in each dataplane
_AT_ONCE = (1, 1, 2, 2, 3, 5)  # updates that felix learns of together
_MOST_SETS = 3  # changed at once, of which all orders are looked at
_GHOSTS = range(20, 24)  # endpoints that come and go

FLOWS = [
    Flow(
        source.name, target.name, source.address(version), target.address(version), dport,
        source.interface, target.interface,
    )
    for source, target in WAYS
    for version, dport in ((4, 53), (4, 80), (6, 80))
]  # fmt: skip


@pytest.fixture(params=["nft", "nftables"])
def cluster(make_netns: Callable[[], Namespace], request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(Node(make_netns), request.param)
    yield made
    made.close()


@pytest.fixture
def traffic(cluster: Cluster) -> Iterator[Callable[[], Traffic]]:
    made: list[Traffic] = []

    def make() -> Traffic:
        made.append(Traffic(cluster.namespaces, FLOWS))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- what may happen on the way ---------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """What stands in the kernel at one moment, as felix knows it. `known`: the pods that have endpoints."""

    rules: Mapping[int, Ruleset]
    members: Mapping[str, frozenset[str]]
    known: frozenset[str]

    @cached_property
    def sets(self) -> Sets:
        return Sets(self.members)

    @classmethod
    def of(cls, cluster: Cluster) -> "Standing":
        state = cluster.calc.state
        known = {one.interface for one in state.workloads.values()}
        return cls(cluster.rulesets(), members_of(state), frozenset(known))

    def passes(self, flow: Flow) -> bool:
        """A pod without an endpoint has no route either."""
        pods = {name for name in (flow.in_interface, flow.out_interface) if name.startswith("cali")}
        packet = flow.packet(1)
        if not pods <= self.known:
            return False
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
    found = [before, after]
    found += [
        Standing(before.rules, {**both, **dict(zip(changed, chosen, strict=True))}, before.known)
        for chosen in (product(*ways) if changed else ())
    ]
    for table in ir.TABLES:
        done = ir.TABLES[: ir.TABLES.index(table) + 1]
        if _differ(before.rules, after.rules, table):
            mixed = {version: _mixed(before.rules[version], after.rules[version], done) for version in (4, 6)}
            found.append(Standing(mixed, both, before.known))
    return found


def _differ(one: Mapping[int, Ruleset], other: Mapping[int, Ruleset], table: str) -> bool:
    def own(rules: Ruleset) -> dict[tuple[str, str], Any]:
        return {key: content for key, content in rules.items() if key[0] == table}

    return any(own(one[version]) != own(other[version]) for version in one)


def _mixed(old: Ruleset, new: Ruleset, done: tuple[str, ...]) -> Ruleset:
    """The tables `done` as they are to be, the others as they were."""
    parts = [(key, one) for key, one in old.items() if key[0] not in done]
    return dict(parts + [(key, one) for key, one in new.items() if key[0] in done])


class Change:
    """From one standing to the next."""

    def __init__(self, before: Standing, after: Standing) -> None:
        self._before, self._after = before, after
        self._told: dict[Flow, bool | None] = {}

    @cached_property
    def _moments(self) -> list[Standing]:
        return on_the_way(self._before, self._after)

    def does(self, flow: Flow) -> bool | None:
        """Whether the flow passes at every moment; None if not all of them say the same."""
        if flow not in self._told:
            verdicts = {one.passes(flow) for one in self._moments}
            self._told[flow] = verdicts.pop() if len(verdicts) == 1 else None
        return self._told[flow]


@dataclass
class History:
    """What stood when. The changes are one after another."""

    stands: list[Standing]
    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    @cached_property
    def changes(self) -> list[Change]:
        pairs = zip(self.stands, self.stands[1:], strict=False)
        return [Change(one, other) for one, other in pairs]

    def expected(self, packet: Sent) -> bool | None:
        """What must become of a packet, whichever of the standings on its way it met; None: anything."""
        first = bisect_left(self.ended, packet.began)
        last = bisect_right(self.began, packet.ended)
        if first == last:
            return self.stands[first].passes(packet.flow)
        verdicts = {change.does(packet.flow) for change in self.changes[first:last]}
        return verdicts.pop() if len(verdicts) == 1 else None


def a_step(rand: Random, objects: Mapping[ResourceKey, Any]) -> dict[ResourceKey, Any]:
    """The objects with one of them written, added or deleted."""
    other = a_world(rand)
    key = rand.choice(sorted({*objects, *other}, key=str))
    changed = dict(objects)
    if key.kind == "WorkloadEndpoint":
        ghost, labels = rand.random() < 0.5, {"app": rand.choice(["web", "db", "x"]), "old": "yes"}
        one = ghost_object(rand.choice(_GHOSTS), labels) if ghost else pod_object(rand.choice(PODS), labels)
        one = with_defaults(one)
        if key_of(one) in objects and rand.random() < (0.5 if ghost else 0.15):
            del changed[key_of(one)]
        else:
            changed[key_of(one)] = one
    elif key in other:
        changed[key] = other[key]
    else:
        del changed[key]
    return changed


def test_updates_are_not_noticed_by_whom_they_do_not_concern(
    cluster: Cluster, traffic: Callable[[], Traffic]
) -> None:
    rand = Random(1)
    objects = a_world(rand)
    cluster.become(objects)
    history = History([Standing.of(cluster)])
    packets, done = traffic(), 0
    packets.round()
    while done < UPDATES:
        for _ in range(rand.choice(_AT_ONCE)):
            objects = a_step(rand, objects)
            cluster.tell(objects)
            done += 1
        began, ended = packets.during(cluster.apply)
        history.began.append(began)
        history.ended.append(ended)
        history.stands.append(Standing.of(cluster))
    packets.round()
    wrong, judged = [], Counter[bool]()
    for one in packets.end():
        expected = history.expected(one)
        if expected is not None:
            judged[expected] += 1
            if one.arrived != expected:
                wrong.append((one, expected))
    assert not wrong, wrong[:20]
    assert min(judged[True], judged[False]) > 1000, "of both kinds there must be many"


OPENING, CLOSING = "accept", "drop"


def disturb(cluster: Cluster, dataplane: str, verdict: str, packets: Traffic) -> None:
    """Somebody's rule before all of ours, for as long as 100 packets take: 50 ms."""
    if dataplane == "nftables":
        chain = "ip calico filter-FORWARD"
        cluster.node.ns.sh(f"nft insert rule {chain} {verdict}")
        packets.more(100)
        handle = cluster.node.ns.sh(f"nft -a list chain {chain}").split(" # handle ")[2].split()[0]
        cluster.node.ns.sh(f"nft delete rule {chain} handle {handle}")
    else:
        cluster.node.ns.sh(f"iptables-nft -I FORWARD -j {verdict.upper()}")
        packets.more(100)
        cluster.node.ns.sh("iptables-nft -D FORWARD 1")


@pytest.mark.parametrize("verdict", [OPENING, CLOSING])
def test_a_moment_of_opening_or_closing_would_be_noticed(
    cluster: Cluster, traffic: Callable[[], Traffic], request: pytest.FixtureRequest, verdict: str
) -> None:
    """The control of the test above."""
    cluster.become(a_world(Random(1)))
    history = History([Standing.of(cluster)])
    packets = traffic()
    packets.round()
    disturb(cluster, request.node.callspec.params["cluster"], verdict, packets)
    packets.round()
    wrong = [one for one in packets.end() if one.arrived != history.expected(one)]
    assert {one.arrived for one in wrong} == {verdict == OPENING}
