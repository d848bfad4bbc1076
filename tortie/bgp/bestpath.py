"""Which of several paths to a prefix is best: the steps as a table, the first difference decides.

Order and meaning follow RFC 4271, 9.1.2.2, with Calico's BIRD where that leaves a choice (reference:
BGP facts, 9.2). Paths are eliminated step by step, not compared in pairs: the result does not depend
on the order in which they were learned, which with MED a pairwise comparison cannot promise.

Pure. It does not know how a next hop is reached; the caller passes that in.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tortie.bgp.prefix import number
from tortie.bgp.route import DEFAULT_LOCAL_PREF, LLGR_STALE, Origin, Path

Cost = Callable[[str], int | None]
"""Metric of the way to a next hop (RFC 4271, 9.1.2.2 e), None if it cannot be reached."""


ONLY_PATH = "only path"


class Choice(NamedTuple):
    """`best` first among `equal`, the paths that may share the traffic; `decided_by` names the last step
    that left somebody behind ("only path" if none did)."""

    best: Path
    equal: tuple[Path, ...]
    decided_by: str


class Step(NamedTuple):
    name: str
    key: Callable[[Path, Cost], Any]  # lower is better


def _local_pref(path: Path, _cost: Cost) -> int:
    given = path.attributes.local_pref
    return -(DEFAULT_LOCAL_PREF if given is None else given)


def _origin(path: Path, _cost: Cost) -> int:
    return Origin.INCOMPLETE if path.attributes.origin is None else path.attributes.origin


def _igp_metric(path: Path, cost: Cost) -> int:
    return 0 if path.local else cost(path.next_hop) or 0


def _identifier(path: Path, _cost: Cost) -> int:
    return number(path.attributes.originator_id or path.router_id)[1]


_MED = "lower MED from the same AS"  # the one step that compares only within groups

STEPS_TO_EQUAL = (  # paths that are the same up to here may share the traffic
    Step("higher preference", lambda path, cost: -path.source),
    Step("not long-lived stale", lambda path, cost: LLGR_STALE in path.attributes.communities),
    Step("higher local preference", _local_pref),
    Step("shorter AS path", lambda path, cost: path.attributes.path_length),
    Step("lower origin", _origin),
    Step(_MED, lambda path, cost: path.attributes.med or 0),
    Step("eBGP before iBGP", lambda path, cost: not path.ebgp),
    Step("lower metric to the next hop", _igp_metric),
)
TIE_BREAKERS = (
    Step("lower router ID", _identifier),
    Step("shorter cluster list", lambda path, cost: len(path.attributes.cluster_list)),
    Step("lower peer address", lambda path, cost: number(path.peer) if path.peer else (0, 0)),
)


def choose(paths: Sequence[Path], cost: Cost) -> Choice | None:
    """The best of `paths` and those equal to it; None if no path has a reachable next hop."""
    left = [path for path in paths if path.local or cost(path.next_hop) is not None]
    if not left:
        return None
    decided_by = ONLY_PATH if len(paths) == 1 else "" if len(left) == len(paths) else "reachable next hop"
    if len(left) == 1:
        return Choice(left[0], (left[0],), decided_by)
    left, decided_by = _eliminate(left, STEPS_TO_EQUAL, cost, decided_by)
    final, decided_by = _eliminate(left, TIE_BREAKERS, cost, decided_by)
    best = final[0]
    return Choice(best, (best, *(path for path in left if path is not best)), decided_by)


def _eliminate(
    paths: list[Path], steps: Iterable[Step], cost: Cost, decided_by: str
) -> tuple[list[Path], str]:
    for step in steps:
        if len(paths) == 1:
            break
        groups = _by_neighbour_as(paths) if step.name == _MED else [paths]
        left = [path for group in groups for path in _lowest(group, step, cost)]
        if len(left) < len(paths):
            paths, decided_by = left, step.name
    return paths, decided_by


def _lowest(paths: list[Path], step: Step, cost: Cost) -> list[Path]:
    keys = [step.key(path, cost) for path in paths]
    lowest = min(keys)
    return [path for path, key in zip(paths, keys, strict=True) if key == lowest]


def _by_neighbour_as(paths: Iterable[Path]) -> list[list[Path]]:
    groups: dict[int, list[Path]] = defaultdict(list)  # neighbouring AS -> its paths
    for path in paths:
        groups[path.attributes.neighbour_as].append(path)
    return list(groups.values())
