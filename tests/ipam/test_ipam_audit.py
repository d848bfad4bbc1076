"""Who has which address against who uses it, and what reports agree may be released."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import of_windows
from tortie.core.errors import ConfigError
from tortie.datastore.types.cluster import ClusterInformation, ClusterInformationSpec
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.ipam import addresses, reports
from tortie.ipam import block as blocks
from tortie.ipam.audit import RESERVED_FOR_WINDOWS, Audit, Books, StoredBlock, Use, audit
from tortie.ipam.block import Owner, ReleaseRequest

pytestmark = pytest.mark.unit

NOW = 1_800_000_000_000_000_000
NODE1 = Owner("node1")


def block(*handles: str, cidr: str = "10.0.0.0/29", owner: Owner = NODE1) -> Block:
    """A block whose first addresses have these handles."""
    made = blocks.new_block(cidr, owner, NOW)
    for handle in handles:
        attribute = AllocationAttribute(handle_id=handle, secondary={"node": "node1", "pod": handle})
        made, _ = blocks.assign(made, 1, attribute)
    return made


def books(*stored: Block, **changes: Any) -> Books:
    """Books in which everything is right, but for the changes."""
    found = [StoredBlock(f"/block/{one.cidr.replace('/', '-')}", one) for one in stored]
    handles = {a.handle_id: "7" for one in stored for a in one.attributes if a.handle_id}
    right = Books(
        blocks=found,
        uses=[Use(address, f"Workload({address})") for one in stored for address in taken(one)],
        pools=[addresses.network("10.0.0.0/24")],
        handles=handles,
        affinities={(Owner.parse(one.affinity), one.cidr) for one in stored},  # type: ignore[misc]
        nodes={"node1"},
    )
    return Books(**{field: changes.get(field, getattr(right, field)) for field in Books.__slots__})


def taken(one: Block) -> Iterable[str]:
    return (blocks.address_at(one, o) for o, index in enumerate(one.allocations) if index is not None)


def look(*stored: Block, **changes: Any) -> Audit:
    return audit(books(*stored, **changes), NOW)


def test_books_that_agree_are_no_problem() -> None:
    found = look(block("a", "b"))
    assert found.problems == 0
    assert (found.good_handles, found.by_node) == (2, [("node1", 2)])


def test_an_address_nobody_uses_is_leaked_unless_it_cools_down() -> None:
    two = block("a", "b")
    assert look(two, uses=[Use("10.0.0.1", "Node(node1)")]).leaked == ["10.0.0.0"]
    cooling = blocks.release(two, [ReleaseRequest("10.0.0.0")], NOW, cooldown=60).block
    assert look(cooling, uses=[Use("10.0.0.1", "Node(node1)")]).leaked == []


def test_an_address_in_use_must_be_allocated_and_in_a_pool() -> None:
    found = look(block(), uses=[Use("10.0.0.3", "a"), Use("10.0.0.2", "b"), Use("192.0.2.1", "c")])
    assert (found.missing, found.outside) == (["10.0.0.2", "10.0.0.3"], ["192.0.2.1"])
    assert look(block(), uses=[Use("10.0.0.3", "a")], pools=[addresses.network("fd00::/64")]).missing == []


def test_two_users_of_one_address_are_told_one_that_says_it_twice_is_not() -> None:
    assert look(block("a"), uses=[Use("10.0.0.0", "x"), Use("10.0.0.0", "y")]).double == ["10.0.0.0"]
    assert look(block("a"), uses=[Use("10.0.0.0", "x"), Use("10.0.0.0", "x")]).double == []


def test_handles_without_addresses_are_leaked_and_addresses_without_handles_are_told() -> None:
    found = look(block("a"), handles={"b": "9"})
    assert (found.leaked_handles, found.missing_handles, found.problems) == ({"b": "9"}, ["a"], 1)


def test_what_windows_keeps_for_itself_is_in_use() -> None:
    found = look(of_windows(block()), uses=[], handles={})
    assert (found.problems, found.uses["10.0.0.7"]) == (0, [RESERVED_FOR_WINDOWS])
    assert found.allocations["10.0.0.0"][0].in_use and found.allocations["10.0.0.0"][0].handle == ""


def test_ready_addresses_are_their_nodes_until_an_endpoint_has_them() -> None:
    ready = block("warm-pool-node1", "warm-pool-node1")
    found = look(ready, uses=[Use("10.0.0.1", "pod")])
    assert found.uses == {"10.0.0.0": ["Warm pool of Node(node1)"], "10.0.0.1": ["pod"]}
    assert found.problems == 0
    assert look(ready, uses=[], nodes=set()).leaked == ["10.0.0.0", "10.0.0.1"]


def test_a_stopped_vms_address_is_not_leaked() -> None:
    """Else it would be released from a report, and the VM started with another."""
    made, _ = blocks.assign(block("c"), 1, AllocationAttribute(handle_id="net.vmi.shop.vm"))
    attributes = {"node": "node1", "vmi-name": "other"}
    made, _ = blocks.assign(made, 1, AllocationAttribute(handle_id="other", secondary=attributes))
    found = look(made, uses=[Use("10.0.0.2", "Workload(shop/virt-launcher-other)")])
    assert (found.leaked, found.uses["10.0.0.1"]) == (["10.0.0.0"], ["VM of net.vmi.shop.vm"])
    assert found.double == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"nodes": set()}, []),  # orphaned: told elsewhere
        ({"affinities": set()}, ["block 10.0.0.0/29 belongs to host:node1, which has no affinity for it"]),
        ({"affinities": set(), "unsettled": {(NODE1, "10.0.0.0/29")}}, []),
        (
            {"affinities": {(NODE1, "10.0.0.0/29"), (Owner("node2"), "10.0.0.0/29")}},
            ["host:node2 has an affinity for block 10.0.0.0/29, which belongs to host:node1"],
        ),
        (
            {"affinities": {(NODE1, "10.0.0.0/29"), (NODE1, "10.0.0.8/29")}},
            ["host:node1 has an affinity for block 10.0.0.8/29, which does not exist"],
        ),
    ],
)
def test_affinities_and_blocks_must_agree(change: dict[str, Any], told: list[str]) -> None:
    assert look(block(), **change).inconsistent == told


def test_a_block_of_a_node_that_is_gone_is_orphaned_one_of_a_virtual_owner_is_not() -> None:
    assert look(block(), nodes=set()).orphaned == [("10.0.0.0/29", "node1")]
    assert look(block(owner=Owner("load-balancer", "virtual")), nodes=set()).orphaned == []


def test_blocks_of_two_sizes_may_not_overlap() -> None:
    found = look(block(), block(cidr="10.0.0.0/28"), block(cidr="10.0.0.16/28"))
    assert found.inconsistent == ["block 10.0.0.0/29 overlaps block 10.0.0.0/28"]


def test_an_unreadable_block_is_invalid_and_its_affinity_no_second_problem() -> None:
    stored = [StoredBlock("/x/block/10.0.0.0-29", None, "malformed JSON")]
    found = audit(books(block(), blocks=stored), NOW)
    assert found.invalid == [("/x/block/10.0.0.0-29", "malformed JSON")]
    assert found.inconsistent == []


def test_a_borrowed_address_counts_for_the_node_that_uses_it() -> None:
    (one,) = look(block("a", owner=Owner("node2")), nodes={"node1", "node2"}).allocations["10.0.0.0"]
    assert (one.node, one.borrowed) == ("node1", True)


# --- reports --------------------------------------------------------------------------------------

CLUSTER = ClusterInformation(
    metadata=ObjectMeta(name="default", resourceVersion="5"),
    spec=ClusterInformationSpec(clusterGUID="guid", clusterType="k8s", datastoreReady=False),
)


def report(found: Audit) -> reports.Report:
    return reports.load(reports.dump(found, CLUSTER, "v1").encode(), "r.json")


def test_a_report_has_calicos_fields() -> None:
    written = json.loads(reports.dump(look(block("a"), uses=[]), CLUSTER, "v1"))
    (one,) = written.pop("allocations")["10.0.0.0"]
    assert one == {
        "ip": "10.0.0.0", "handle": "a", "sequenceNumber": NOW, "pod": "a", "node": "node1",
        "inUse": False, "owners": None,
    }  # fmt: skip
    assert written == {
        "version": "v1", "clusterGUID": "guid", "datastoreLocked": True,
        "clusterInformationRevision": "5", "clusterType": "k8s",
    }  # fmt: skip


def test_only_what_every_report_calls_leaked_is_released() -> None:
    """In the second report 10.0.0.3 has been given anew since, and 10.0.0.4 to somebody else."""
    first = look(
        block("a", "b", "c", "d", "e"),
        uses=[Use("10.0.0.2", "pod")],
        handles={"x": "1", "y": "1", "z": "1"},
    )
    again = block("a", "b", "c", "d", "f")
    numbers = {**again.sequenceNumberForAllocation, "3": NOW + 1}
    again = structs.replace(again, sequenceNumberForAllocation=numbers)
    second = look(again, uses=[Use("10.0.0.1", "pod")], handles={"x": "1", "y": "2"})
    agreed = reports.common([report(first), report(second)])
    assert agreed.addresses == (ReleaseRequest("10.0.0.0", "a", NOW),)
    assert agreed.handles == {"x": "1"}
    assert reports.common([]).addresses == ()


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"allocations":[]}', b'{"allocations":{"a":[{"ip":1}]}}', b'{"version":"\xff"}']
)
def test_what_is_no_report_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError):
        reports.load(text, "r.json")
