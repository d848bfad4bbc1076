"""From the full mesh to route reflectors and back, make-before-break: which steps, and which are done.

Invariant: a way that is in use is taken away only after every node has heard, over the new way, all that
the old one told it. So the order is: new sessions, wait for them; new routes, wait for them; then the
old sessions go.

A plan is a function of what is stored and of what the nodes report, and of nothing else: it has no
memory. Interrupted at any point, the same plan says what is left; the plan for the opposite goal undoes
what was done. Pure.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

LABEL, LABEL_VALUE = "route-reflector", "true"  # as in Calico's documentation
PEERING = "route-reflectors"  # name of the BGPPeer
SELECTOR = f"{LABEL} == '{LABEL_VALUE}'"
DEFAULT_AS = 64512  # Calico's
CLUSTER_ID = "244.0.0.1"  # as in Calico's documentation

Verb = Literal[
    "watch", "label", "peer", "cluster-id", "mesh", "unmesh", "uncluster", "unpeer", "unlabel", "unwatch"
]


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node. `sessions`: peer address -> NodeMesh | NodePeer | GlobalPeer, of established ones.

    `heard`: destination -> addresses of the peers that told of it; `direct`: those destinations that the
    node has heard from their origin itself; `relays`: peers that passed on routes of others.
    """

    name: str
    addresses: tuple[str, ...]
    cluster_id: str = ""
    labelled: bool = False
    watched: bool = False  # reports sessions and routes
    sessions: Mapping[str, str] | None = None  # None: nothing was reported yet
    heard: Mapping[str, Collection[str]] | None = None
    direct: frozenset[str] = frozenset()
    relays: frozenset[str] = frozenset()
    as_number: int = DEFAULT_AS


@dataclass(frozen=True, slots=True)
class Observed:
    nodes: Mapping[str, NodeState]
    mesh: bool
    peering: bool  # the BGPPeer to the reflectors exists


@dataclass(frozen=True, slots=True)
class Goal:
    """`reflectors` empty: the full mesh."""

    reflectors: frozenset[str] = frozenset()
    cluster_id: str = CLUSTER_ID


@dataclass(frozen=True, slots=True)
class Step:
    """`left`: what is still to be done or awaited, () when the step is done; `verb` None: only wait."""

    title: str
    effect: str
    left: tuple[str, ...]
    verb: Verb | None = None


def obstacles(observed: Observed, goal: Goal) -> list[str]:
    """Why the goal cannot be pursued."""
    if unknown := sorted(goal.reflectors - observed.nodes.keys()):
        return [f"there is no node {', '.join(unknown)}"]
    others = [node.name for node in _sorted(observed) if node.cluster_id and node.name not in goal.reflectors]
    if goal.reflectors and others:
        return [f"{', '.join(others)} reflect already: name them, too, or go back to the mesh first"]
    if goal.reflectors and len({node.as_number for node in observed.nodes.values()}) > 1:
        numbers = ", ".join(f"{node.name} in {node.as_number}" for node in _sorted(observed))
        return [f"the nodes are in different ASes ({numbers}): reflectors serve one AS (RFC 4456)"]
    if goal.reflectors and len(goal.reflectors) == len(observed.nodes):
        return ["every node would be a reflector"]
    return []


def steps(observed: Observed, goal: Goal) -> list[Step]:
    """All steps to the goal, in order. Take the first that has something left, look again, and so on."""
    reached = _reached(observed, goal) and not any(node.watched for node in observed.nodes.values())
    if not reached:
        return _to_reflectors(observed, goal) if goal.reflectors else _to_mesh(observed)
    return [Step("goal", "the cluster is as it should be", ())]


def _reached(observed: Observed, goal: Goal) -> bool:
    ids = {node.name for node in observed.nodes.values() if node.cluster_id}
    if goal.reflectors:
        return ids == goal.reflectors and observed.peering and not observed.mesh
    return not ids and not observed.peering and observed.mesh and not _names(observed, lambda n: n.labelled)


def _to_reflectors(observed: Observed, goal: Goal) -> list[Step]:
    chosen = [node for node in _sorted(observed) if node.name in goal.reflectors]
    others = [node for node in _sorted(observed) if node.name not in goal.reflectors]
    away = _reached(observed, goal)
    return [
        _watch(observed, away),
        Step(
            f"label {_list(n.name for n in chosen)} with {LABEL}={LABEL_VALUE}",
            "none yet",
            tuple(node.name for node in chosen if not node.labelled),
            "label",
        ),
        Step(
            f"create BGPPeer {PEERING}",
            "every node has sessions with the reflectors, in the place of those of the mesh",
            () if observed.peering else (PEERING,),
            "peer",
        ),
        Step(
            "wait for the sessions with the reflectors",
            "none",
            () if away else tuple(_without_session(_sorted(observed), chosen, of_mesh=False)),
        ),
        Step(
            f"set routeReflectorClusterID {goal.cluster_id} on {_list(n.name for n in chosen)}",
            "they leave the mesh, keep these sessions, and reflect",
            tuple(node.name for node in chosen if node.cluster_id != goal.cluster_id),
            "cluster-id",
        ),
        Step(
            "wait until every node has heard all routes from each reflector",
            "none",
            () if away else tuple(_unheard(others, chosen, observed)),
        ),
        Step(
            "switch nodeToNodeMeshEnabled off",
            "the sessions of the mesh go; traffic does not, its routes are there",
            ("nodeToNodeMeshEnabled",) if observed.mesh else (),
            "unmesh",
        ),
        Step("wait for the sessions of the mesh to go", "none", tuple(_meshed(_watched(observed)))),
        _unwatch(observed),
    ]


def _to_mesh(observed: Observed) -> list[Step]:
    reflectors = [node for node in _sorted(observed) if node.cluster_id]
    plain = [node for node in _sorted(observed) if not node.cluster_id]
    everybody = _sorted(observed)
    away = _reached(observed, Goal())
    return [
        _watch(observed, away),
        Step(
            "switch nodeToNodeMeshEnabled on",
            "nodes that are no reflectors have sessions with each other again",
            () if observed.mesh else ("nodeToNodeMeshEnabled",),
            "mesh",
        ),
        Step(
            "wait until they have heard all routes from their origins",
            "none",
            () if away else (*_without_session(plain, plain), *_indirect(plain)),
        ),
        Step(
            f"remove routeReflectorClusterID from {_list(n.name for n in reflectors)}",
            "they reflect no more",
            tuple(node.name for node in reflectors),
            "uncluster",
        ),
        Step(
            "wait until nobody reflects, and every node has heard all routes from their origins",
            "none",
            ()
            if away
            else (
                *_without_session(everybody, everybody),
                *_indirect(everybody),
                *(f"{address} on {node.name}" for node in everybody for address in sorted(node.relays)),
            ),
        ),
        Step(
            f"delete BGPPeer {PEERING}",
            "its sessions go on as sessions of the mesh",
            (PEERING,) if observed.peering else (),
            "unpeer",
        ),
        Step(
            f"remove the label {LABEL}",
            "none",
            tuple(_names(observed, lambda node: node.labelled)),
            "unlabel",
        ),
        _unwatch(observed),
    ]


# --- what is left ---------------------------------------------------------------------------------


def _watch(observed: Observed, away: bool) -> Step:
    """`away`: the goal is reached, only the end of the reports may be left."""
    missing = () if away else tuple(_names(observed, lambda node: not node.watched))
    return Step("have every node report its sessions and routes", "none", missing, "watch")


def _unwatch(observed: Observed) -> Step:
    return Step("end these reports", "none", tuple(_names(observed, lambda node: node.watched)), "unwatch")


def _without_session(
    nodes: Iterable[NodeState], peers: Collection[NodeState], *, of_mesh: bool = True
) -> Iterable[str]:
    """Pairs without an established session, in each family that both have.

    Not `of_mesh`: one of the mesh does not count, for it would go with the mesh.
    """
    for node in nodes:
        for peer in peers:
            if peer.name == node.name:
                continue
            for address in peer.addresses:
                shared = any(_family(own) == _family(address) for own in node.addresses)
                kind = (node.sessions or {}).get(address)
                if shared and (kind is None or (kind == "NodeMesh" and not of_mesh)):
                    yield f"{node.name} with {peer.name} ({address})"


def _unheard(
    nodes: Iterable[NodeState], reflectors: Collection[NodeState], observed: Observed
) -> Iterable[str]:
    """Routes of other nodes that a node has heard, but not from each reflector of that family."""
    members = {address for node in observed.nodes.values() for address in node.addresses}
    for node in nodes:
        if node.heard is None:
            yield f"{node.name} has not reported"
            continue
        for destination, peers in sorted(node.heard.items()):
            if not members & set(peers):
                continue  # of the world outside: the mesh did not bring it
            for reflector in reflectors:
                speaking = [a for a in reflector.addresses if _family(a) == _family(destination)]
                if speaking and not set(speaking) & set(peers):
                    yield f"{destination} from {reflector.name} on {node.name}"


def _indirect(nodes: Iterable[NodeState]) -> Iterable[str]:
    for node in nodes:
        if node.heard is None:
            yield f"{node.name} has not reported"
            continue
        for destination in sorted(node.heard.keys() - node.direct):
            yield f"{destination} on {node.name}"


def _meshed(nodes: Iterable[NodeState]) -> Iterable[str]:
    for node in nodes:
        for address, kind in sorted((node.sessions or {}).items()):
            if kind == "NodeMesh":
                yield f"{node.name} with {address}"


def _watched(observed: Observed) -> list[NodeState]:
    return [node for node in _sorted(observed) if node.watched]


def _names(observed: Observed, condition: Callable[[NodeState], bool]) -> list[str]:
    return [node.name for node in _sorted(observed) if condition(node)]


def _sorted(observed: Observed) -> list[NodeState]:
    return [observed.nodes[name] for name in sorted(observed.nodes)]


def _family(text: str) -> int:
    return 6 if ":" in text else 4


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "no node"
