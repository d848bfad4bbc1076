"""Each step of the choice, and that the order of learning does not matter."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tortie.bgp.bestpath import choose
from tortie.bgp.route import LLGR_STALE, Attributes, Origin, Path, Segment, Source

pytestmark = pytest.mark.unit

_COSTS = {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 0, "10.1.0.1": 50, "10.2.0.1": None}


def _cost(next_hop: str) -> int | None:
    return _COSTS[next_hop]


def _path(peer: str = "10.0.0.1", **changes: Any) -> Path:
    """An eBGP path from AS 65001 whose next hop is the peer."""
    attributes = Attributes(
        as_path=(Segment("as-sequence", changes.pop("as_path", (65001,))),),
        local_pref=changes.pop("local_pref", 100),
        **{name: changes.pop(name) for name in list(changes) if name in Attributes.__struct_fields__},
    )
    base = Path(source=Source.BGP, attributes=attributes, next_hop=peer, peer=peer, ebgp=True, router_id=peer)
    return replace(base, **changes)


_WORSE = _path("10.0.0.2")
_STEPS = [  # the path that must win, and the step that says so; it is worse in later steps
    (_path("10.0.0.3", source=Source.BGP_ELEVATED, local_pref=90), "higher preference"),
    (_path("10.0.0.3", local_pref=101, as_path=(1, 2, 3)), "higher local preference"),
    (_path("10.0.0.3", as_path=(), origin=Origin.INCOMPLETE), "shorter AS path"),
    (_path("10.0.0.3", as_path=(7,), origin=Origin.IGP, med=9), "lower origin"),
    (_path("10.0.0.3", med=4, ebgp=False), "lower MED from the same AS"),
    (_path("10.0.0.3", med=5, next_hop="10.1.0.1"), "eBGP before iBGP"),
    (_path("10.0.0.3", med=5, router_id="10.0.0.9"), "lower metric to the next hop"),
    (_path("10.0.0.3", router_id="10.0.0.1", cluster_list=("1.1.1.1",)), "lower router ID"),
    (_path("10.0.0.3", originator_id="10.0.0.1", router_id="10.0.0.9"), "lower router ID"),
    (_path("10.0.0.3", router_id="10.0.0.2"), "shorter cluster list"),
    (_path("10.0.0.1", router_id="10.0.0.2"), "lower peer address"),
]
_AGAINST = {
    "higher preference": _WORSE,
    "higher local preference": _WORSE,
    "shorter AS path": _WORSE,
    "lower origin": _path("10.0.0.2", as_path=(7,), origin=Origin.EGP),
    "lower MED from the same AS": _path("10.0.0.2", med=5),
    "eBGP before iBGP": _path("10.0.0.2", med=5, ebgp=False),
    "lower metric to the next hop": _path("10.0.0.2", med=5, next_hop="10.1.0.1"),
    "lower router ID": _WORSE,
    "shorter cluster list": _path("10.0.0.2", cluster_list=("1.1.1.1",)),
    "lower peer address": _WORSE,
}


@pytest.mark.parametrize(
    ("better", "step"), _STEPS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_step(better: Path, step: str) -> None:
    worse = _AGAINST[step]
    for order in ([better, worse], [worse, better]):
        choice = choose(order, _cost)
        assert choice is not None
        assert (choice.best, choice.decided_by) == (better, step)


def test_a_long_lived_stale_path_is_the_last_resort() -> None:
    stale = _path("10.0.0.1", communities=(LLGR_STALE,), local_pref=500)
    choice = choose([stale, _WORSE], _cost)
    assert choice is not None and choice.best == _WORSE
    assert (alone := choose([stale], _cost)) is not None and alone.best == stale


def test_an_unreachable_next_hop_does_not_count() -> None:
    unreachable = _path("10.0.0.1", next_hop="10.2.0.1", local_pref=500)
    choice = choose([unreachable, _WORSE], _cost)
    assert choice is not None and (choice.best, choice.decided_by) == (_WORSE, "reachable next hop")
    assert choose([unreachable], _cost) is None
    assert choose([], _cost) is None


def test_own_blocks_win_and_a_pod_that_is_here_beats_its_announcement_elsewhere() -> None:
    """Felix's route to it and one by BGP would have the same key in the kernel, and replace each other for
    ever. Only while it moves away felix's has a metric of its own, and gives way to the pod's new node."""
    block, workload = Path(source=Source.STATIC), Path(source=Source.WORKLOAD)
    elevated, leaving = _path(source=Source.BGP_ELEVATED), Path(source=Source.LEAVING, metric=1025)
    ranks = [block, workload, elevated, leaving, _WORSE]
    for winner, loser in pairwise(ranks):
        choice = choose([loser, winner], _cost)
        assert choice is not None and choice.best == winner
    leftover = Path(source=Source.KERNEL)
    assert (choice := choose([leftover, _WORSE], _cost)) is not None and choice.best == _WORSE


def test_med_counts_only_between_paths_of_one_neighbour() -> None:
    """The example that defeats pairwise comparison: each of three beats another."""
    a = _path("10.0.0.1", med=20, router_id="10.0.0.3")
    b = _path("10.0.0.2", med=10, router_id="10.0.0.9")
    c = _path("10.0.0.3", as_path=(65002,), med=30, router_id="10.0.0.5")
    results = {choose(order, _cost) for order in ([a, b, c], [c, b, a], [b, c, a], [a, c, b])}
    assert len({choice.best for choice in results if choice}) == 1
    assert next(iter(results)).best == c  # type: ignore[union-attr]  # a falls to b's MED, then the lower ID


def test_equal_paths_share() -> None:
    one, two, far = _path("10.0.0.1"), _path("10.0.0.2"), _path("10.0.0.3", next_hop="10.1.0.1")
    choice = choose([two, far, one], _cost)
    assert choice is not None
    assert (choice.best, set(choice.equal)) == (one, {one, two})
    assert choice.equal[0] == choice.best


_some_paths = st.lists(
    st.builds(
        lambda number, source, pref, length, origin, med, ebgp, hop, asn: Path(
            source=source,
            attributes=Attributes(
                as_path=(Segment("as-sequence", (asn,) * length),), local_pref=pref, origin=origin, med=med
            ),
            next_hop=hop,
            peer=f"10.9.0.{number}",
            router_id=f"10.9.0.{number}",
            ebgp=ebgp,
        ),
        st.integers(1, 250),
        st.sampled_from([Source.BGP, Source.BGP_ELEVATED]),
        st.sampled_from([None, 90, 100]),
        st.integers(0, 2),
        st.sampled_from(Origin),
        st.sampled_from([None, 0, 5]),
        st.booleans(),
        st.sampled_from(sorted(_COSTS)),
        st.sampled_from([65001, 65002]),
    ),
    max_size=6,
    unique_by=lambda path: path.peer,
)


@given(_some_paths, st.randoms())
def test_the_order_of_learning_does_not_matter(paths: list[Path], random: Any) -> None:
    choice = choose(paths, _cost)
    shuffled = list(paths)
    random.shuffle(shuffled)
    again = choose(shuffled, _cost)
    if choice is None:
        assert again is None and all(_cost(path.next_hop) is None for path in paths)
        return
    assert again is not None and (again.best, set(again.equal)) == (choice.best, set(choice.equal))
    # Losing paths are irrelevant: without them the same one wins.
    alone = choose(choice.equal, _cost)
    assert alone is not None and alone.best == choice.best
    assert choice.best in paths and set(choice.equal) <= set(paths)
