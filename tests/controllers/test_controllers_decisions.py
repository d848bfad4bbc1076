"""The small decisions: empty blocks, labels of nodes, the Lease, metrics."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tortie.controllers import election, emptyblocks, metrics
from tortie.controllers.election import Seen
from tortie.controllers.garbage import allocations_of
from tortie.controllers.labels import kubernetes_name, labelled
from tortie.controllers.leaks import id_of
from tortie.core import exposition
from tortie.datastore.kubernetes.nodes import KUBE_LABELS
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeSpec, OrchRef
from tortie.ipam import block as blocks
from tortie.ipam.addresses import network
from tortie.ipam.block import Owner
from tortie.ipam.pools import Pool
from tortie.ipam.ranges import Ranges

pytestmark = pytest.mark.unit


N1 = Owner("n1")


def block(cidr: str, owner: Owner | None = N1, used: int = 0, **attributes: str) -> Block:
    made = blocks.new_block(cidr, owner or N1, 1_000_000_000)
    for ordinal in range(used):
        attribute = AllocationAttribute(handle_id=f"h{ordinal}", secondary={"node": "n1"} | attributes)
        made = blocks.assign_ordinal(made, ordinal, attribute)
    return made if owner is not None else blocks.disowned(made)


# --- empty blocks -------------------------------------------------------------------------------


def released(*stored: Block, grace: float = 10.0) -> list[str]:
    first = emptyblocks.look(stored, {}, 100.0, grace)
    assert not first.release
    return [one.cidr for one in emptyblocks.look(stored, first.since, 110.0, grace).release]


def test_a_node_keeps_one_block_of_each_version() -> None:
    four = [block("10.0.0.0/30"), block("10.0.0.4/30"), block("10.0.0.8/30", used=1)]
    assert released(*four) == ["10.0.0.0/30", "10.0.0.4/30"]
    assert released(*four[:2]) == ["10.0.0.0/30"]
    assert released(four[0], block("fd00::/126")) == []
    assert released(four[0], block("10.0.0.4/30", Owner("n2"))) == []


def test_blocks_of_nobody_and_of_services_stay() -> None:
    virtual = Owner("load-balancer", "virtual")
    assert released(block("10.0.0.0/30", None), block("10.0.0.4/30", None)) == []
    assert released(block("10.0.0.0/30", virtual), block("10.0.0.4/30", virtual)) == []


def test_a_block_must_be_seen_empty_over_the_grace_period() -> None:
    stored = block("10.0.0.0/30"), block("10.0.0.4/30", used=1)
    first = emptyblocks.look(stored, {}, 100.0, 10.0)
    assert first.next_at == 110.0
    written = blocks.advanced(stored[0])  # it was used meanwhile
    later = emptyblocks.look((written, stored[1]), first.since, 110.0, 10.0)
    assert (later.release, later.next_at) == ([], 120.0)
    assert emptyblocks.look(stored, first.since, 1e9, 0.0).release == []


# --- labels of nodes ----------------------------------------------------------------------------


def node(labels: dict[str, str], copied: str | None = None) -> Node:
    annotations = {"other": "x"} | ({} if copied is None else {KUBE_LABELS: copied})
    refs = (OrchRef(nodeName="k1", orchestrator="k8s"),)
    meta = ObjectMeta(name="n1", labels=labels, annotations=annotations)
    return Node(metadata=meta, spec=NodeSpec(orchRefs=refs))


def test_labels_are_copied_beside_a_persons() -> None:
    first = labelled(node({"mine": "1"}), {"rack": "a", "zone": "b"})
    assert first.labels == {"mine": "1", "rack": "a", "zone": "b"}
    assert first.metadata.annotations == {"other": "x", KUBE_LABELS: '{"rack":"a","zone":"b"}'}
    second = labelled(first, {"rack": "c"})
    assert second.labels == {"mine": "1", "rack": "c"}
    assert labelled(second, {"rack": "c"}) is second


def test_a_broken_annotation_takes_nothing_away() -> None:
    assert labelled(node({"a": "1"}, copied="[]"), {"b": "2"}).labels == {"a": "1", "b": "2"}


LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"))


@given(LABELS, LABELS, LABELS)
def test_the_last_labels_win_whatever_was_before(own: Any, first: Any, second: Any) -> None:
    """Own labels that Kubernetes never had stay; those it had and lost go."""
    twice = labelled(labelled(node(own), first), second)
    kept = {name: value for name, value in own.items() if name not in first}
    assert twice.labels == kept | second


def test_which_kubernetes_node_a_node_is() -> None:
    assert kubernetes_name(node({})) == "k1"
    foreign = OrchRef(nodeName="x", orchestrator="openstack")
    assert kubernetes_name(structs.replace(node({}), spec=NodeSpec(orchRefs=(foreign,)))) == ""


# --- the Lease ----------------------------------------------------------------------------------


def test_a_lease_is_taken_over_only_when_it_is_silent_for_its_time() -> None:
    lease = election.new("kube-system", "x", "a", 1_700_000_000.25)
    assert lease["spec"]["renewTime"] == "2023-11-14T22:13:20.250000Z"
    known = election.seen(lease, Seen(), 50.0)
    assert not election.may_take(lease, known, "b", 64.9)
    assert election.may_take(lease, known, "b", 65.0)
    assert election.may_take(lease, known, "a", 50.0)
    renewed = election.taken(lease, "a", 1_700_000_001.0)
    assert election.seen(renewed, known, 60.0).since == 60.0
    assert renewed["spec"].get("leaseTransitions", 0) == lease["spec"].get("leaseTransitions", 0)
    theirs = election.taken(renewed, "b", 1_700_000_020.0)
    assert theirs["spec"]["holderIdentity"] == "b" and theirs["spec"]["leaseTransitions"] == 1
    free = election.given_up(theirs)
    assert election.may_take(free, election.seen(free, known, 61.0), "c", 61.0)


@given(st.integers(0, 2**32))
def test_two_never_lead_at_once(seed: int) -> None:
    """Candidates look and write at random moments, sometimes fail; who leads has renewed in time."""
    rand, now = random.Random(seed), 0.0
    lease: dict[str, Any] = {}
    known = {name: Seen() for name in "abc"}
    until = dict.fromkeys("abc", 0.0)  # while it believes that it leads
    for _ in range(200):
        now += rand.random() * 4
        me = rand.choice("abc")
        known[me] = election.seen(lease, known[me], now)
        if rand.random() < 0.2 or not election.may_take(lease, known[me], me, now):
            continue
        lease = election.taken(lease, me, now)  # by compare-and-swap: no other write was in between
        known[me] = election.seen(lease, known[me], now)
        until[me] = now + election.GIVE_UP_AFTER
        assert sum(end > now for end in until.values()) == 1


# --- metrics ------------------------------------------------------------------------------------


def test_metrics() -> None:
    pool = Pool("p", network("10.0.0.0/24"), 30, True)
    one = block("10.0.0.0/30", used=2)
    lent = block("10.0.0.4/30", Owner("n2"), used=1)
    stray = block("10.9.0.0/30", Owner("n1"), used=1)
    stored = [(each, allocations_of(each)) for each in (one, lent, stray)]
    suspects = {id_of(stored[0][1][0])}
    counts = metrics.count(stored, [pool], ["n1", "n2", 'n"3'], suspects, Ranges([network("10.0.0.64/30")]))
    text = exposition.text(metrics.figures(counts, {("p", "n1"): 4}))
    lines = set(text.splitlines())
    assert {
        'ipam_allocations_in_use{ippool="p",node="n1"} 3',
        'ipam_allocations_in_use{ippool="p",node="n2"} 0',
        'ipam_allocations_in_use{ippool="p",node="n\\"3"} 0',
        'ipam_allocations_in_use{ippool="no_ippool",node="n1"} 1',
        'ipam_allocations_borrowed{ippool="p",node="n1"} 1',
        'ipam_blocks{ippool="p",node="n2"} 1',
        'ipam_allocations_gc_candidates{ippool="p",node="n1"} 1',
        'ipam_allocations_gc_reclamations{ippool="p",node="n1"} 4',
        'ipam_ippool_size{ippool="p"} 256',
        'ipam_ippool_reserved{ippool="p"} 4',
        'ipam_allocations_per_node{node="n1"} 4',
        'ipam_allocations_borrowed_per_node{node="n1"} 1',
        'ipam_blocks_per_node{node="n1"} 2',
        "# TYPE ipam_allocations_gc_reclamations counter",
    } <= lines
    assert text.endswith("\n")
