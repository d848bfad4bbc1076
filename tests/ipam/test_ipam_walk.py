"""Where a host starts to look, the order it looks in, and which block it takes."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.ipam import addresses, walk
from tortie.ipam.gorand import draw_below
from tortie.ipam.pools import Pool
from tortie.ipam.ranges import Ranges
from tortie.ipam.walk import Choice, Seen

pytestmark = pytest.mark.unit


def pool(cidr: str, block_size: int) -> Pool:
    return Pool("pool", ip_network(cidr), block_size, enabled=True)


def ranges(*cidrs: str) -> Ranges:
    return Ranges(ip_network(cidr) for cidr in cidrs)


# --- the start ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("node1", 3957252814), ("node2", 3957252813), ("", 2166136261)])
def test_fnv1(name: str, value: int) -> None:
    assert walk.fnv1(name) == value


@pytest.mark.parametrize(
    ("host", "starts"),
    [
        ("node1", [2, 154, 666, 2887]),
        ("node2", [0, 44, 416, 1621]),
        ("host-a", [0, 216, 216, 3582]),
    ],
)
def test_a_host_starts_where_calico_starts(host: str, starts: list[int]) -> None:
    sizes = (4, 256, 1024, 4096)  # blocks per pool
    found = [walk.start_index(pool("10.0.0.0/10", 10 + n.bit_length() - 1), host, lambda: 0.0) for n in sizes]
    assert found == starts


@pytest.mark.parametrize("limit", [1, 2, 3, 2**32, 2**63, 2**64, 2**90])
def test_a_draw_is_below_its_limit_and_always_the_same(limit: int) -> None:
    drawn = draw_below(limit, 42)
    assert 0 <= drawn < limit and draw_below(limit, 42) == drawn


def test_draws_reach_beyond_one_word() -> None:
    assert any(draw_below(2**90, seed) >= 2**64 for seed in range(3))


def test_hosts_spread_over_the_pool() -> None:
    starts = [walk.start_index(pool("10.0.0.0/16", 26), f"node-{n}", lambda: 0.0) for n in range(200)]
    assert len(set(starts)) > 170  # 1024 blocks: some 18 collisions are expected


def test_single_addresses_start_by_chance() -> None:
    assert walk.start_index(pool("10.0.0.0/24", 32), "node1", lambda: 0.5) == 128
    assert walk.start_index(pool("fd00::/120", 128), "node1", lambda: 0.999) == 255


def test_a_pool_of_one_block_and_one_smaller_than_a_block() -> None:
    assert walk.start_index(pool("10.0.0.0/26", 26), "node1", lambda: 0.9) == 0
    small = pool("10.0.0.0/28", 26)
    assert walk.block_count(small) == 0
    assert list(walk.around(small, 0, Ranges())) == []


# --- the order ----------------------------------------------------------------------------------


@given(st.integers(0, 15), st.lists(st.integers(0, 255), max_size=4), st.integers(24, 32))
def test_every_block_once_from_the_start_and_round(start: int, reserved: list[int], length: int) -> None:
    where = pool("10.0.0.0/24", 28)
    held = ranges(*(f"10.0.0.{n >> (32 - length) << (32 - length)}/{length}" for n in reserved))
    plain = [f"10.0.0.{16 * ((start + n) % 16)}/28" for n in range(16)]
    expected = [cidr for cidr in plain if not all(a in held for a in ip_network(cidr))]
    assert [str(net) for net in walk.around(where, start, held)] == expected


def test_a_reserved_stretch_without_end_is_jumped_over() -> None:
    where = pool("fd00::/48", 122)
    first = next(walk.around(where, 0, ranges("fd00::/49")))
    assert str(first) == "fd00:0:0:8000::/122"


def test_blocks_know_their_index() -> None:
    where = pool("fd00::/48", 122)
    for index in (0, 5, 2**74 - 1):
        assert walk.index_of(where, walk.block_at(where, index)) == index


# --- the choice ---------------------------------------------------------------------------------

POOL = pool("10.0.0.0/28", 30)
MINE, OTHER = "host:a", "host:b"


def seen(owner: str | None, free: int = 4, *, empty: bool = False, old: bool = True) -> Seen:
    return Seen(owner, free, empty, old)


@pytest.mark.parametrize(
    ("blocks", "choice"),
    [
        ({}, Choice("10.0.0.4/30")),
        ({"10.0.0.4/30": seen(OTHER)}, Choice("10.0.0.8/30")),
        ({"10.0.0.4/30": seen(MINE, 0)}, Choice("10.0.0.8/30")),
        ({"10.0.0.4/30": seen(MINE, 1)}, Choice("10.0.0.4/30")),  # became ours meanwhile
        ({"10.0.0.4/30": None}, Choice("10.0.0.8/30")),  # unreadable: exists, cannot be used
        ({"10.0.0.0/30": seen(None, empty=True)}, Choice("10.0.0.4/30")),
    ],
)
def test_the_first_block_that_can_be_had(blocks: dict[str, Seen | None], choice: Choice) -> None:
    assert walk.choose_block([(POOL, 1)], blocks, MINE, Ranges()) == choice


def full_but(**special: Seen) -> dict[str, Seen | None]:
    blocks: dict[str, Seen | None] = {f"10.0.0.{n}/30": seen(OTHER, 0) for n in (0, 4, 8, 12)}
    return blocks | {f"10.0.0.{name[1:]}/30": value for name, value in special.items()}


def test_empty_blocks_of_others_come_last_and_in_order() -> None:
    blocks = full_but(b0=seen(OTHER, empty=True), b12=seen(None, empty=True), b4=seen(OTHER, 3))
    choice = walk.choose_block([(POOL, 2)], blocks, MINE, Ranges())
    assert choice == Choice(None, ("10.0.0.12/30", "10.0.0.0/30"))


def test_young_or_wholly_reserved_empty_blocks_are_not_asked_for() -> None:
    blocks = full_but(b0=seen(OTHER, empty=True, old=False), b4=seen(OTHER, 0, empty=True))
    assert walk.choose_block([(POOL, 0)], blocks, MINE, Ranges()) == Choice(None)


def test_pools_are_tried_in_order() -> None:
    second = pool("10.1.0.0/30", 30)
    assert walk.choose_block([(second, 0), (POOL, 0)], {}, MINE, Ranges()) == Choice("10.1.0.0/30")
    taken: dict[str, Seen | None] = {"10.1.0.0/30": seen(OTHER)}
    assert walk.choose_block([(second, 0), (POOL, 0)], taken, MINE, Ranges()) == Choice("10.0.0.0/30")


def test_a_block_of_another_size_is_never_overlapped() -> None:
    blocks: dict[str, Seen | None] = {"10.0.0.0/29": seen(None, 3), "10.0.0.8/32": seen(OTHER, 0)}
    assert walk.choose_block([(POOL, 0)], blocks, MINE, Ranges()) == Choice("10.0.0.12/30")
    assert walk.overlaps_misfit(POOL, ip_network("10.0.0.4/30"), blocks)
    assert not walk.overlaps_misfit(POOL, ip_network("10.0.0.12/30"), blocks)


def test_existing_blocks_are_borrowed_from_in_the_hosts_order() -> None:
    blocks: dict[str, Seen | None] = {
        "10.0.0.0/30": seen(OTHER),
        "10.0.0.4/30": seen(OTHER, 0),
        "10.0.0.8/30": seen(MINE),
        "10.0.0.12/30": None,
        "10.0.0.0/29": seen(OTHER),
        "10.9.0.0/30": seen(OTHER),
        "fd00::/122": seen(OTHER),
    }
    assert walk.existing(POOL, 1, blocks) == ["10.0.0.8/30", "10.0.0.0/30"]


# --- ranges -------------------------------------------------------------------------------------

cidrs = st.builds(
    lambda n, length: str(ip_network((0x0A000000 + (n >> (32 - length) << (32 - length)), length))),
    st.integers(0, 255),
    st.integers(25, 32),
)


@given(st.lists(cidrs, max_size=8), cidrs)
def test_ranges_are_sets_of_addresses(members: list[str], question: str) -> None:
    held = ranges(*members)
    everything = {address for cidr in members for address in ip_network(cidr)}
    net = addresses.network(question)
    inside = [address in everything for address in net]
    assert [address in held for address in net] == inside
    assert held.covers(net) == all(inside) and held.overlaps(net) == any(inside)
    assert held.count_in(net) == sum(inside)
    assert [any(o in part for part in held.ordinals(net)) for o in range(net.num_addresses)] == inside
    assert held.with_networks([net]).count_in(ip_network("10.0.0.0/24")) == len(everything | set(net))


def test_versions_do_not_mix() -> None:
    held = ranges("0.0.0.0/0", "::/64")
    assert not held.covers(ip_network("1::/64")) and held.covers(ip_network("::/65"))
    assert held.count_in(ip_network("::/0")) == 2**64
    assert held and not Ranges()
