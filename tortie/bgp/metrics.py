"""The agent's status as Prometheus metrics, in its text format. Pure."""

from collections.abc import Iterable, Iterator

from tortie.bgp.status import PeerStatus, Status
from tortie.core import exposition
from tortie.core.exposition import Metric


def text(status: Status | None) -> str:
    """`status` None: no agent runs."""
    metrics = [Metric("tortie_bgp_up", "Whether the BGP agent runs.", [({}, float(status is not None))])]
    if status is not None:
        metrics += [*_of_sessions(status.peers), *_of_routes(status)]
    return exposition.text(metrics)


def _of_sessions(peers: Iterable[PeerStatus]) -> Iterator[Metric]:
    counts: dict[tuple[str, str], int] = {}  # (family, state) -> sessions
    for peer in peers:
        key = str(peer.family), peer.bgp_state
        counts[key] = counts.get(key, 0) + 1
    states = [({"family": family, "state": state}, float(n)) for (family, state), n in sorted(counts.items())]
    yield Metric("tortie_bgp_sessions", "Sessions by family and state.", states)
    for name, meaning in (
        ("up", "Whether the session is Established."),
        ("since", "Unix time of the last change between up and down."),
        ("received", "Prefixes that the peer announces, stale ones included."),
        ("stale", "Prefixes kept while the peer restarts."),
        ("over_limit", "Whether the peer announces more prefixes than it may."),
        ("rejected", "Prefixes that the peer announces and import refuses."),
        ("announced", "Prefixes that were sent to the peer."),
    ):
        samples = [({"peer": peer.address, "type": peer.type}, _value(peer, name)) for peer in peers]
        yield Metric(f"tortie_bgp_peer_{name}", meaning, samples)
    reasons = [
        ({"peer": peer.address, "reason": reason}, float(count))
        for peer in peers
        for reason, count in peer.rejected_because.items()
    ]
    yield Metric("tortie_bgp_peer_rejected_by", "Rejected prefixes by reason or filter rule.", reasons)


def _value(peer: PeerStatus, name: str) -> float:
    return float(peer.state == "up") if name == "up" else float(getattr(peer, name))


def _of_routes(status: Status) -> Iterator[Metric]:
    routes = status.routes
    yield Metric("tortie_bgp_routes", "Kernel routes that are wanted.", [({}, float(routes.wanted))])
    if status.speaker == "bird":
        return  # it tells no more
    yield Metric("tortie_bgp_routes_failed", "Of those, refused by the kernel.", [({}, float(routes.failed))])
    yield Metric(
        "tortie_bgp_prefixes_left_out", "Prefixes without a kernel route.", [({}, float(routes.left_out))]
    )
    yield Metric(
        "tortie_bgp_convergence_seconds",
        "How long the last change of routes took, from the first report to the kernel.",
        [({}, status.convergence)],
    )
