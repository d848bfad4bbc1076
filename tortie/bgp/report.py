"""The agent's state as a Status: what calicoctl and readiness are shown. Pure."""

from itertools import islice

from tortie.bgp.bestpath import Choice
from tortie.bgp.config import PeerKind
from tortie.bgp.fib import LOCAL_WORKLOAD
from tortie.bgp.reload import Reload
from tortie.bgp.router import Router
from tortie.bgp.session import Session
from tortie.bgp.status import PeerStatus, PeerType, RouteStatus, Status
from tortie.core.reconcile import Reconciler, State
from tortie.linux.routes import Route, RouteKey

_TYPES: dict[PeerKind, PeerType] = {
    "mesh": "node-to-node mesh",
    "node": "node specific",
    "global": "global",
    "workload": "local workload",
}
_EXAMPLES = 20  # prefixes or reasons named of each sort: enough to find the rule that is behind them


def report(
    router: Router,
    routes: Reconciler[RouteKey, Route],
    reload: Reload,
    started: float,
    now: float,
    error: str,
) -> Status:
    """`now` and `started` are times of day, `error` says why bgp.json could not be read."""
    local = router.config.local if router.config else None
    sessions = [session for session in router.sessions.values() if session.peer is not None]
    return Status(
        started=started,
        updated=now,
        node=local.name if local else "",
        router_id=local.router_id if local else "",
        as_number=local.as_number if local else 0,
        configuration=reload.state,
        configuration_error=error,
        starting=router.startup is None or not router.startup.over,
        peers=tuple(_peer(router, session) for session in sorted(sessions, key=lambda one: one.address)),
        routes=_routes(router, routes),
    )


def _peer(router: Router, session: Session) -> PeerStatus:
    assert session.peer is not None
    state = session.state
    if not session.up and session.peer.passive and state in ("Idle", "Active"):
        state = "Passive"
    rejected = router.decider.refusals.counts(session.address)
    info = state if session.up or not session.last_error else f"{state} {session.last_error}"
    return PeerStatus(
        address=session.address,
        type=_TYPES[session.peer.kind],
        family=6 if session.version == 6 else 4,
        port=session.peer.port,
        state="up" if session.up else "start",
        since=session.since,
        bgp_state=state,
        info=info,
        last_error=session.last_error,
        last_error_at=session.last_error_at,
        last_notification=session.last_notification,
        hold_time=session.hold_time,
        received=router.rib.count(session.address),
        stale=router.rib.stale_count(session.address),
        over_limit=router.rib.over(session.address),
        rejected=sum(rejected.values()),
        rejected_because=dict(islice(rejected.items(), _EXAMPLES)),
        announced=session.outbox.sent_count,
        end_of_rib=session.end_of_rib_received,
    )


def _routes(router: Router, routes: Reconciler[RouteKey, Route]) -> RouteStatus:
    failures = [one.reason for one in routes.statuses().values() if one.state is State.FAILED]
    without = router.decider.reasons
    told = ((prefix, why) for prefix, why in without.items() if why != LOCAL_WORKLOAD)
    decided = ((prefix, _decided(choice)) for prefix, choice in router.decider.contested.items())
    return RouteStatus(
        wanted=len(routes.desired),
        failed=len(failures),
        reason=failures[0] if failures else "",
        left_out=len(without),
        left_out_because=dict(islice(told, _EXAMPLES)),
        contested=len(router.decider.contested),
        decided_by=dict(islice(decided, _EXAMPLES)),
    )


def _decided(choice: Choice) -> str:
    if len(choice.equal) > 1:
        return "shared by " + ", ".join(sorted(path.next_hop for path in choice.equal))
    return f"via {choice.best.next_hop or 'this node'}: {choice.decided_by}"
