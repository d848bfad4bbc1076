"""One block against a naive model of it: a queue of free ordinals and a table of who holds what."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, structs

from tests.ipam.ipam_world import of_windows
from tortie.core.errors import ResourceAlreadyExists, UpdateConflict, ValidationError
from tortie.datastore import codec
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.ipam import addresses, soundness
from tortie.ipam import block as blocks
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.errors import BadHandle, BadSequenceNumber, IPAMError

pytestmark = pytest.mark.unit

NOW = 1_800_000_000_000_000_000
SECOND = 1_000_000_000
OWNER = Owner("node1")


def block(cidr: str = "10.0.0.0/29", now: int = NOW) -> Block:
    return blocks.new_block(cidr, OWNER, now)


def attribute(handle: str = "h", **secondary: str) -> AllocationAttribute:
    return AllocationAttribute(handle_id=handle, secondary=secondary)


# --- the model ----------------------------------------------------------------------------------


@dataclass
class Model:
    """What a block means, without indexes: order matters only among the free."""

    size: int
    cooldown: int
    number: int
    now: int = NOW
    free: list[int] = field(default_factory=list)
    held: dict[int, AllocationAttribute] = field(default_factory=dict)
    cooling: dict[int, int] = field(default_factory=dict)  # ordinal -> second of its release
    numbers: dict[int, int] = field(default_factory=dict)

    def written(self) -> None:
        self.number = (self.number + 1) % 2**64

    def cool_down(self) -> None:
        for ordinal in sorted(self.cooling):
            if self.cooldown <= 0 or self.cooling[ordinal] * SECOND < self.now - self.cooldown * SECOND:
                del self.cooling[ordinal]
                del self.numbers[ordinal]
                self.free.append(ordinal)

    def take(self, ordinals: Iterable[int], who: AllocationAttribute) -> None:
        for ordinal in ordinals:
            self.free.remove(ordinal)
            self.held[ordinal] = who
            self.numbers[ordinal] = self.number

    def give_back(self, ordinals: Iterable[int]) -> None:
        for ordinal in ordinals:
            del self.held[ordinal]
            self.cooling[ordinal] = self.now // SECOND
            self.numbers[ordinal] = self.number
        self.cool_down()

    def assert_is(self, found: Block) -> None:
        assert list(found.unallocated) == self.free
        for ordinal in range(self.size):
            what = blocks.attribute_at(found, ordinal)
            if ordinal in self.held:
                assert what == self.held[ordinal]
            elif ordinal in self.cooling:
                assert what is not None and what == AllocationAttribute(releasedAt=what.releasedAt)
                assert what.releasedAt is not None
            else:
                assert what is None
            assert blocks.sequence_number(found, ordinal) == self.numbers.get(ordinal, 0)
        assert found.sequenceNumber == self.number
        assert soundness.violations(found, self.now) == []
        assert codec.decode(Block, codec.encode(found)) == found


HANDLES = ["h1", "h2", "H2", "h1\rjunk", "windows-reserved-ipam-handle"]
attributes = st.builds(
    AllocationAttribute,
    handle_id=st.sampled_from([None, *HANDLES]),
    secondary=st.sampled_from([{}, {"pod": "a"}, {"pod": "b", "namespace": "n"}]),
)
steps = st.one_of(
    st.tuples(st.just("assign"), st.integers(0, 5), attributes, st.sets(st.integers(0, 7), max_size=3)),
    st.tuples(st.just("one"), st.integers(0, 7), attributes),
    st.tuples(st.just("release"), st.sets(st.integers(0, 7), min_size=1, max_size=4)),
    st.tuples(st.just("handle"), st.sampled_from(HANDLES)),
    st.tuples(st.just("wait"), st.integers(0, 90)),
)


@given(
    st.sampled_from([-1, 0, 1, 60]),
    st.lists(steps, max_size=25),
    st.sampled_from([NOW, 2**64 - 3, 2**64 - 1]),
)
def test_any_sequence_of_operations_is_what_the_model_says(
    cooldown: int, script: list[tuple[Any, ...]], number: int
) -> None:
    found = structs.replace(block(), sequenceNumber=number)
    model = Model(8, cooldown, number, free=list(range(8)))
    for kind, *arguments in script:
        found = blocks.normalise(found, model.now, cooldown)
        model.cool_down()
        found = _apply(kind, arguments, found, model)
        model.assert_is(found)


def _apply(kind: str, arguments: list[Any], found: Block, model: Model) -> Block:
    match kind, *arguments:
        case "assign", count, who, reserved:
            expected = [o for o in model.free if o not in reserved][:count]
            skip = tuple(range(o, o + 1) for o in reserved)
            after, ordinals = blocks.assign(found, count, who, skip)
            assert list(ordinals) == expected and (after is found) == (not expected)
            model.take(ordinals, who)
        case "one", ordinal, who:
            if ordinal not in model.free:
                with pytest.raises(ResourceAlreadyExists, match="Address already assigned in block"):
                    blocks.assign_ordinal(found, ordinal, who)
                return found
            after = blocks.assign_ordinal(found, ordinal, who)
            model.take([ordinal], who)
        case "release", ordinals:
            held = sorted(o for o in ordinals if o in model.held)
            requests = [ReleaseRequest(blocks.address_at(found, o)) for o in sorted(ordinals)]
            released = blocks.release(found, [*requests, *requests], model.now, model.cooldown)
            assert set(released.unallocated) == {
                blocks.address_at(found, o) for o in ordinals if o not in model.held
            }
            handles = {(model.held[o].handle_id or "").split("\r")[0] for o in held}
            assert set(released.handles) == handles - {""}
            after = released.block
            assert (after is found) == (not held)
            model.give_back(held)
        case "handle", handle:
            wanted = handle.split("\r")[0]
            held = [o for o in sorted(model.held) if (model.held[o].handle_id or "").split("\r")[0] == wanted]
            assert list(blocks.ordinals_of(found, handle)) == held
            after = blocks.release_handle(found, handle, model.now, model.cooldown)
            assert (after is found) == (not held)
            model.give_back(held)
        case _, seconds:
            model.now += seconds * SECOND
            return found
    if after is found:
        return found
    model.written()
    return blocks.advanced(after)


# --- single rules -------------------------------------------------------------------------------


def test_a_new_block_reads_as_calico_writes_it() -> None:
    made = blocks.new_block("10.99.0.16/30", Owner("node-1"), 1_772_352_300_123_456_789)
    assert msgspec.json.decode(codec.encode(made)) == {
        "cidr": "10.99.0.16/30",
        "affinity": "host:node-1",
        "affinity_claim_time": "2026-03-01T08:05:00Z",
        "allocations": [None, None, None, None],
        "unallocated": [0, 1, 2, 3],
        "attributes": [],
        "sequenceNumber": 1_772_352_300_123_456_789,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }


def test_addresses_are_reused_first_in_first_out() -> None:
    found = block("10.0.0.0/30")
    order = []
    for _ in range(9):
        found, (ordinal,) = blocks.assign(found, 1, attribute())
        order.append(ordinal)
        found = blocks.release_handle(found, "h", NOW, 0)
    assert order == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_equal_owners_share_an_attribute_and_the_last_one_takes_it_along() -> None:
    found, _ = blocks.assign(block(), 2, attribute("h", pod="p"))
    found, _ = blocks.assign(found, 1, attribute("h", pod="q"))
    found, _ = blocks.assign(found, 1, attribute("h", pod="p"))
    assert found.allocations[:4] == (0, 0, 1, 0) and len(found.attributes) == 2
    found = blocks.release(found, [ReleaseRequest("10.0.0.2")], NOW, 0).block
    assert found.attributes == (attribute("h", pod="p"),)
    found = blocks.release_handle(found, "h", NOW, 0)
    assert found.attributes == () and blocks.is_empty(found)
    assert found.unallocated == (4, 5, 6, 7, 2, 0, 1, 3)


def test_a_released_address_keeps_only_the_time_until_it_has_cooled() -> None:
    found, _ = blocks.assign(block(), 1, attribute("h", pod="p"))
    found = blocks.release_handle(found, "h", NOW, 60)
    assert found.attributes == (AllocationAttribute(releasedAt="2027-01-15T08:00:00Z"),)
    assert not blocks.is_empty(found) and 0 not in found.unallocated
    assert blocks.normalise(found, NOW + 60 * SECOND, 60) is found
    freed = blocks.normalise(found, NOW + 61 * SECOND, 60)
    assert blocks.is_empty(freed) and freed.unallocated[-1] == 0 and freed.attributes == ()
    assert freed.sequenceNumberForAllocation == {}


def test_a_cooldown_that_was_switched_off_ends_at_once_even_with_a_clock_ahead() -> None:
    found, _ = blocks.assign(block(), 1, attribute())
    found = blocks.release_handle(found, "h", NOW + 3600 * SECOND, 60)
    assert blocks.is_empty(blocks.normalise(found, NOW, 0))


def test_one_failing_guard_releases_nothing() -> None:
    found, _ = blocks.assign(block(), 3, attribute())
    good = ReleaseRequest("10.0.0.0", "h", found.sequenceNumber)
    with pytest.raises(
        BadSequenceNumber, match=r"update conflict: 10.0.0.1: the given sequence number \(7\)"
    ):
        blocks.release(found, [good, ReleaseRequest("10.0.0.1", "h", 7)], NOW, 0)
    with pytest.raises(BadHandle, match=r"the given handle \(other\) does not match \(h\)"):
        blocks.release(found, [good, ReleaseRequest("10.0.0.1", "other")], NOW, 0)
    with pytest.raises(UpdateConflict):  # both guards of a repeated address count
        blocks.release(found, [good, ReleaseRequest("10.0.0.0", "other")], NOW, 0)
    assert blocks.release(found, [good], NOW, 0).handles == ("h",)


def test_a_free_address_has_number_zero() -> None:
    assert blocks.release(block(), [ReleaseRequest("10.0.0.1", "h", 0)], NOW, 0).unallocated == ("10.0.0.1",)
    with pytest.raises(BadSequenceNumber):
        blocks.release(block(), [ReleaseRequest("10.0.0.1", "h", 1)], NOW, 0)


def test_an_address_outside_is_refused() -> None:
    for address in ("10.0.0.8", "9.255.255.255", "fd00::"):
        with pytest.raises(IPAMError, match=f"IP {address} not in block 10.0.0.0/29"):
            blocks.release(block(), [ReleaseRequest(address)], NOW, 0)


def test_sequence_numbers_wrap_after_64_bits() -> None:
    last = structs.replace(block(), sequenceNumber=2**64 - 1)
    assert blocks.advanced(last).sequenceNumber == 0
    found, _ = blocks.assign(last, 1, attribute())
    assert codec.decode(Block, codec.encode(found)).sequenceNumberForAllocation == {"0": 2**64 - 1}


def test_windows_reserve_is_no_use_of_the_block() -> None:
    made = of_windows(blocks.new_block("10.0.0.0/29", OWNER, NOW))
    assert blocks.is_empty(made)
    assert soundness.violations(made) == []


def test_strict_affinity_lets_only_the_owner_take() -> None:
    blocks.check_affinity(block(), OWNER, strict=True)
    blocks.check_affinity(blocks.disowned(block()), OWNER, strict=False)
    with pytest.raises(IPAMError, match="Block host affinity does not match"):
        blocks.check_affinity(block(), Owner("node2"), strict=True)
    with pytest.raises(IPAMError, match="Block host affinity does not match"):
        blocks.check_affinity(block(), Owner("node1", "virtual"), strict=True)
    with pytest.raises(IPAMError, match=r"Attempt to assign from block 10\.0\.0\.0/29 with no affinity"):
        blocks.check_affinity(blocks.disowned(block()), OWNER, strict=True)


def test_owners_are_read_from_affinities() -> None:
    assert Owner.parse("host:node1") == OWNER
    assert Owner.parse("virtual:load-balancer") == Owner("load-balancer", "virtual")
    assert Owner.parse("host:a:b") == Owner("a:b")
    for text in (None, "", "host:", "node1", "rack:7"):
        assert Owner.parse(text) is None


def test_a_claim_without_a_time_is_old() -> None:
    assert blocks.claimed_before(structs.replace(block(), affinity_claim_time=UNSET), 0)
    assert not blocks.claimed_before(block(), NOW - SECOND)
    assert blocks.claimed_before(block(), NOW + SECOND)


@pytest.mark.parametrize("cidr", ["10.0.0.0/20", "fd00::/116", "10.0.0.0/32", "fd00::1/128"])
def test_the_largest_and_the_smallest_blocks(cidr: str) -> None:
    found = block(cidr)
    size = len(found.allocations)
    assert size in (1, 4096)
    found, ordinals = blocks.assign(found, 5000, attribute())
    assert len(ordinals) == size and found.unallocated == ()
    assert blocks.address_at(found, size - 1) == str(addresses.network(cidr)[size - 1])
    assert codec.decode(Block, codec.encode(found)) == found
    assert soundness.violations(found) == []
    assert blocks.is_empty(blocks.release_handle(found, "h", NOW, 0))


# --- blocks as others left them -----------------------------------------------------------------


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=4, max_size=4),
    st.lists(st.integers(-2, 6), max_size=8),
)
def test_lists_that_disagree_are_repaired_so_that_nothing_is_given_twice(
    allocations: list[int | None], unallocated: list[int]
) -> None:
    broken = structs.replace(
        block("10.0.0.0/30"),
        allocations=tuple(allocations),
        unallocated=tuple(unallocated),
        attributes=tuple(attribute(f"h{n}") for n in range(4)),
    )
    fixed = blocks.normalise(broken, NOW, 0)
    assert soundness.violations(fixed) == []
    for ordinal in range(4):
        assert blocks.attribute_at(fixed, ordinal) == blocks.attribute_at(broken, ordinal)
    order = list(dict.fromkeys(o for o in unallocated if 0 <= o < 4 and allocations[o] is None))
    assert list(fixed.unallocated[: len(order)]) == order


def test_a_sound_block_is_left_as_it_is() -> None:
    found, _ = blocks.assign(block(), 3, attribute())
    assert blocks.normalise(found, NOW, 0) is found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cidr": "10.0.0.0/28"}, "does not match its key"),
        ({"allocations": (None,) * 7}, "expected 8 entries"),
        ({"allocations": (0,) + (None,) * 7}, "indexes a nonexistent attribute 0"),
        ({"allocations": (-1,) + (None,) * 7}, "indexes a nonexistent attribute -1"),
        ({"sequenceNumber": -1}, "not an unsigned 64-bit number"),
        ({"sequenceNumberForAllocation": {"0": 2**64}}, "not an unsigned 64-bit number"),
        ({"affinity_claim_time": "yesterday"}, "not an RFC 3339 time"),
        ({"attributes": (AllocationAttribute(releasedAt="2026-13-01T00:00:00Z"),)}, "not an RFC 3339 time"),
    ],
)
def test_what_cannot_be_worked_on_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as caught:
        soundness.ensure_usable(structs.replace(block(), **changes), "10.0.0.0/29")
    assert "IPAMBlock(10.0.0.0/29)" in str(caught.value)


def test_a_block_larger_than_any_is_refused_before_it_is_looked_through() -> None:
    for cidr in ("10.0.0.0/8", "fd00::/64", "::/0"):
        with pytest.raises(ValidationError, match="larger than any block"):
            soundness.ensure_usable(structs.replace(block(), cidr=cidr), cidr)


@pytest.mark.parametrize(
    ("changes", "breach"),
    [
        ({"attributes": (attribute("x"),)}, "attribute index 0 exists but is not indexed by an allocation"),
        ({"unallocated": (0, 1, 2, 3, 4, 5, 6, 6)}, "ordinal 6 appears more than once in Unallocated array"),
        ({"unallocated": (0, 1, 2, 3, 4, 5, 6, 9)}, "ordinal 9 appears in the Unallocated array but is out"),
        (
            {"allocations": (0,) + (None,) * 7, "attributes": (attribute("x"),)},
            "ordinal 0 is allocated but appears in Unallocated",
        ),
        ({"unallocated": (0, 1)}, r"Unallocated \(2\) \+ Allocated \(0\) = 2"),
        ({"affinity": None}, "neither an affinity nor an allocation"),
        ({"allocations": ()}, "expected 8 entries"),
        (
            {
                "allocations": (0,) + (None,) * 7,
                "unallocated": (1, 2, 3, 4, 5, 6, 7),
                "attributes": (AllocationAttribute(releasedAt="2099-01-01T00:00:00Z"),),
            },
            "attribute index 0 has releasedAt in the future, suggesting clock skew",
        ),
    ],
)
def test_breaches_are_told_in_calicoctls_words(changes: dict[str, Any], breach: str) -> None:
    texts = soundness.violations(structs.replace(block(), **changes), NOW)
    assert any(re.search(breach, text) for text in texts), texts
