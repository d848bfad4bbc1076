"""What a CalicoNodeStatus says of this node, from what the BGP agent reports (reference: BGP facts, 6.2).

ExaBGP speaks in both families, so both of Calico's daemons have its state; two BIRDs are shown as one, too.
If it is gone, that is what the status says; Calico would leave what it wrote last. Pure.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from tortie import __version__
from tortie.bgp import status as bgp
from tortie.bgp.prefix import version
from tortie.bgp.status import Status, since
from tortie.bgp.table import TableRoute
from tortie.datastore.types.node import (
    AgentStatus,
    BGPDaemonStatus,
    BGPStatus,
    CalicoNodeStatusStatus,
    LearnedFrom,
    PeerStatus,
    RoutesStatus,
    RouteStatus,
)

_TYPES: Mapping[bgp.PeerType, str] = {
    "node-to-node mesh": "NodeMesh",
    "node specific": "NodePeer",
    "global": "GlobalPeer",
}  # Calico has no word for local workloads, and leaves them out
_SOURCES = {"static": "Static", "direct": "Direct", "kernel": "Kernel"}
_MOST_ROUTES = 4000  # of a family: with 150 bytes each, both fit into etcd's 1.5 MB


def build(
    classes: Collection[str], agent: Status | None, table: Sequence[TableRoute], now: float
) -> CalicoNodeStatusStatus:
    """`classes` of the spec, Agent, BGP and Routes; `agent` None: it does not run; `now`: Unix time."""
    return CalicoNodeStatusStatus(
        lastUpdated=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        agent=_agent(agent) if "Agent" in classes else AgentStatus(),
        bgp=_bgp(agent, now) if "BGP" in classes and agent else BGPStatus(),
        routes=_routes(agent, table) if "Routes" in classes and agent else RoutesStatus(),
    )


def _agent(agent: Status | None) -> AgentStatus:
    if agent is None:
        gone = BGPDaemonStatus(state="NotReady")
        return AgentStatus(birdV4=gone, birdV6=gone)
    daemon = BGPDaemonStatus(
        state="Ready" if agent.configuration == "loaded" else "NotReady",
        version=agent.version or f"Tortie {__version__}",
        routerID=agent.router_id,
        lastBootTime=_moment(agent.started),
        lastReconfigurationTime=_moment(agent.configured),
    )
    return AgentStatus(birdV4=daemon, birdV6=daemon)


def _moment(seconds: float) -> str:
    """As BIRD writes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def _bgp(agent: Status, now: float) -> BGPStatus:
    shown = [one for one in agent.peers if one.type in _TYPES]
    peers = {family: [one for one in shown if one.family == family] for family in (4, 6)}
    up = {family: sum(one.state == "up" for one in mine) for family, mine in peers.items()}
    return BGPStatus(
        numberEstablishedV4=up[4],
        numberNotEstablishedV4=len(peers[4]) - up[4],
        numberEstablishedV6=up[6],
        numberNotEstablishedV6=len(peers[6]) - up[6],
        peersV4=tuple(_peer(one, now) for one in peers[4]),
        peersV6=tuple(_peer(one, now) for one in peers[6]),
    )


def _peer(peer: bgp.PeerStatus, now: float) -> PeerStatus:
    state = "" if peer.bgp_state == "Passive" else peer.bgp_state  # no word of the protocol, as in Calico
    return PeerStatus(peerIP=peer.address, type=_TYPES[peer.type], state=state, since=since(peer.since, now))


def _routes(agent: Status, table: Iterable[TableRoute]) -> RoutesStatus:
    mesh = {peer.address for peer in agent.peers if peer.type == "node-to-node mesh"}
    found: dict[int, list[RouteStatus]] = {4: [], 6: []}
    for route in table:
        mine = found[version(route.prefix)]
        if len(mine) < _MOST_ROUTES:
            mine.append(_route(route, mesh))
    return RoutesStatus(routesV4=tuple(found[4]), routesV6=tuple(found[6]))


def _route(route: TableRoute, mesh: Collection[str]) -> RouteStatus:
    source = _SOURCES.get(route.origin) or ("NodeMesh" if route.peer in mesh else "BGPPeer")
    return RouteStatus(
        type="FIB" if route.used else "RIB",
        destination=route.prefix,
        gateway=route.next_hop or "N/A",
        interface=route.interface,
        learnedFrom=LearnedFrom(sourceType=source, peerIP=route.peer),
    )
