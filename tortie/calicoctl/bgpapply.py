"""`bgp plan` shows the way between full mesh and route reflectors, `bgp apply` goes it.

What to do is bgpplan.py's; here the cluster is looked at and each step carried out. Sessions and routes
are known from CalicoNodeStatus resources, made for the purpose and deleted at the end.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from msgspec import UNSET
from msgspec.structs import replace

from tortie.calicoctl import session
from tortie.calicoctl.bgpplan import (
    DEFAULT_AS,
    LABEL,
    LABEL_VALUE,
    PEERING,
    SELECTOR,
    Goal,
    NodeState,
    Observed,
    Step,
    Verb,
    obstacles,
    steps,
)
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable
from tortie.calicoctl.session import Session
from tortie.core.duration import parse_duration
from tortie.core.errors import ResourceDoesNotExist, UpdateConflict
from tortie.datastore.client import Client
from tortie.datastore.types.bgp import BGPConfiguration, BGPPeer, BGPPeerSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import (
    CalicoNodeStatus,
    CalicoNodeStatusSpec,
    CalicoNodeStatusStatus,
    Node,
    NodeBGPSpec,
)

_WATCH = "bgp-plan."  # prefix of our CalicoNodeStatus resources
_PERIOD = 1  # seconds between reports
_PAUSE = 1.0  # seconds between looks while something is awaited
_SHOWN = 3  # things of which a step says that they are left
_TRIES = 5  # of a write that others get in the way of


def plan(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        observed, goal = await observe(current.client()), _goal(call)
        _refuse(observed, goal)
        for number, step in enumerate(steps(observed, goal), 1):
            call.out(f"{number}. [{' ' if step.left else 'x'}] {step.title}\n")
            call.out(f"       effect: {step.effect}\n")
            if step.left:
                call.out(f"       left: {_left(step)}\n")

    session.run(call, work)


def apply(call: Call) -> None:
    try:
        patience = parse_duration(call.flags["timeout"])
    except ValueError as err:
        raise CommandError(f"invalid --timeout: {err}") from err

    async def work(current: Session) -> None:
        await current.check_version()
        goal = _goal(call)
        await pursue(current.client(), goal, patience, call.out)

    session.run(call, work)


def _goal(call: Call) -> Goal:
    """Raises CommandError unless exactly one goal is given."""
    names = frozenset(filter(None, call.flags["reflectors"].split(",")))
    if bool(names) == call.flags["mesh"]:
        raise CommandError("give either --reflectors NODE,NODE or --mesh")
    return Goal(names, call.flags["cluster-id"])


def _refuse(observed: Observed, goal: Goal) -> None:
    if found := obstacles(observed, goal):
        raise CommandError("; ".join(found))


def _left(step: Step) -> str:
    more = len(step.left) - _SHOWN
    return printable("; ".join(step.left[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


async def pursue(client: Client, goal: Goal, patience: float, out: Callable[[str], None]) -> None:
    """Take one step after the other. Raises CommandError if one takes longer than `patience` seconds."""
    begun, deadline = "", 0.0
    while True:
        observed = await observe(client)
        _refuse(observed, goal)
        step = next((step for step in steps(observed, goal) if step.left), None)
        if step is None:
            out("The cluster is as it should be.\n")
            return
        if step.title != begun:
            begun, deadline = step.title, time.monotonic() + patience
            out(f"{step.title}\n")
        if step.verb is not None:
            await _VERBS[step.verb](client, goal, observed)
        elif time.monotonic() > deadline:
            raise CommandError(
                f"gave up after {patience:.0f} s: {step.title}: {_left(step)}\n"
                "Nothing that is in use was taken away. The same command goes on from here; "
                "the one with the opposite goal undoes what was done."
            )
        else:
            await asyncio.sleep(_PAUSE)


# --- looking --------------------------------------------------------------------------------------


async def observe(client: Client) -> Observed:
    statuses = {one.name: one for one in (await client.list(CalicoNodeStatus)).items}
    nodes = (await client.list(Node)).items
    default = await _configuration(client)
    cluster_as = (
        DEFAULT_AS if default is None or default.spec.asNumber is None else int(default.spec.asNumber)
    )
    addresses = {node.name: _addresses(node) for node in nodes}
    members = {address for mine in addresses.values() for address in mine}
    found = {
        node.name: _state(node, addresses[node.name], members, statuses.get(_WATCH + node.name), cluster_as)
        for node in nodes
        if addresses[node.name]
    }
    peers = {one.name for one in (await client.list(BGPPeer)).items}
    mesh = default is None or default.spec.nodeToNodeMeshEnabled is not False
    return Observed(found, mesh, PEERING in peers)


def _addresses(node: Node) -> tuple[str, ...]:
    bgp = node.spec.bgp or NodeBGPSpec()
    return tuple(one.partition("/")[0] for one in (bgp.ipv4Address, bgp.ipv6Address) if one)


def _state(
    node: Node,
    addresses: tuple[str, ...],
    members: Collection[str],
    status: CalicoNodeStatus | None,
    cluster_as: int,
) -> NodeState:
    bgp = node.spec.bgp or NodeBGPSpec()
    state = NodeState(
        node.name,
        addresses,
        bgp.routeReflectorClusterID,
        node.metadata.labels.get(LABEL) == LABEL_VALUE,
        status is not None,
        as_number=cluster_as if bgp.asNumber is None else int(bgp.asNumber),
    )
    if status is None or not status.status.lastUpdated:
        return state
    return _with_report(state, status.status, members)


def _with_report(state: NodeState, told: CalicoNodeStatusStatus, members: Collection[str]) -> NodeState:
    """Only routes that a node of the cluster told of count; `members`: the nodes' addresses."""
    peers = [peer for found in (told.bgp.peersV4, told.bgp.peersV6) if found is not UNSET for peer in found]
    routes = [*told.routes.routesV4, *told.routes.routesV6]
    learned = [(one, one.learnedFrom.peerIP) for one in routes if one.learnedFrom.peerIP in members]
    heard: dict[str, set[str]] = {}  # destination -> peers
    for route, peer in learned:
        heard.setdefault(route.destination, set()).add(peer)
    return dataclasses.replace(
        state,
        sessions={peer.peerIP: peer.type for peer in peers if peer.state == "Established"},
        heard=heard,
        direct=frozenset(route.destination for route, peer in learned if route.gateway == peer),
        relays=frozenset(peer for route, peer in learned if route.gateway != peer),
    )


async def _configuration(client: Client) -> BGPConfiguration | None:
    try:
        return await client.get(BGPConfiguration, "default")
    except ResourceDoesNotExist:
        return None


# --- doing: each may be repeated, and does only what is left --------------------------------------


async def _watch(client: Client, _goal: Goal, observed: Observed) -> None:
    for node in observed.nodes.values():
        if not node.watched:
            spec = CalicoNodeStatusSpec(
                node=node.name, classes=("BGP", "Routes"), updatePeriodSeconds=_PERIOD
            )
            await client.create(CalicoNodeStatus(metadata=ObjectMeta(name=_WATCH + node.name), spec=spec))


async def _unwatch(client: Client, _goal: Goal, observed: Observed) -> None:
    for node in observed.nodes.values():
        if node.watched:
            await client.delete(CalicoNodeStatus, _WATCH + node.name)


async def _label(client: Client, goal: Goal, _observed: Observed) -> None:
    for name in sorted(goal.reflectors):
        await _change(client, name, lambda node: _labelled(node, {LABEL: LABEL_VALUE}))


async def _unlabel(client: Client, _goal: Goal, observed: Observed) -> None:
    for node in observed.nodes.values():
        if node.labelled:
            await _change(client, node.name, lambda one: _labelled(one, {}))


def _labelled(node: Node, added: Mapping[str, str]) -> Node:
    others = {key: value for key, value in node.metadata.labels.items() if key != LABEL}
    return node.with_metadata(labels={**others, **added})


async def _peer(client: Client, _goal: Goal, _observed: Observed) -> None:
    """With the mesh's password and restart time: these sessions take the place of the mesh's."""
    default = await _configuration(client)
    spec = BGPPeerSpec(nodeSelector="all()", peerSelector=SELECTOR)
    if default is not None:
        spec = replace(
            spec,
            password=default.spec.nodeMeshPassword,
            maxRestartTime=default.spec.nodeMeshMaxRestartTime,
        )
    await client.create(BGPPeer(metadata=ObjectMeta(name=PEERING), spec=spec))


async def _unpeer(client: Client, _goal: Goal, _observed: Observed) -> None:
    await client.delete(BGPPeer, PEERING)


async def _cluster(client: Client, goal: Goal, _observed: Observed) -> None:
    for name in sorted(goal.reflectors):
        await _change(client, name, lambda node: _reflecting(node, goal.cluster_id))


async def _uncluster(client: Client, _goal: Goal, observed: Observed) -> None:
    for node in observed.nodes.values():
        if node.cluster_id:
            await _change(client, node.name, lambda one: _reflecting(one, ""))


def _reflecting(node: Node, cluster_id: str) -> Node:
    bgp = replace(node.spec.bgp or NodeBGPSpec(), routeReflectorClusterID=cluster_id)
    return replace(node, spec=replace(node.spec, bgp=bgp))


async def _mesh(client: Client, _goal: Goal, _observed: Observed) -> None:
    await _set_mesh(client, True)


async def _unmesh(client: Client, _goal: Goal, _observed: Observed) -> None:
    await _set_mesh(client, False)


async def _set_mesh(client: Client, enabled: bool) -> None:
    default = await _configuration(client)
    if default is None:
        made = BGPConfiguration(metadata=ObjectMeta(name="default"))
        await client.create(replace(made, spec=replace(made.spec, nodeToNodeMeshEnabled=enabled)))
    else:
        await client.update(replace(default, spec=replace(default.spec, nodeToNodeMeshEnabled=enabled)))


async def _change(client: Client, name: str, how: Callable[[Node], Node]) -> None:
    """A node's resource is written by others, too: a conflict means to read it again."""
    for attempt in range(1, _TRIES + 1):
        stored = await client.get(Node, name)
        changed = how(stored)
        if changed == stored:
            return
        try:
            await client.update(changed)
        except UpdateConflict:
            if attempt == _TRIES:
                raise
            continue
        return


_VERBS: Mapping[Verb, Callable[[Client, Goal, Observed], Awaitable[None]]] = {
    "watch": _watch,
    "label": _label,
    "peer": _peer,
    "cluster-id": _cluster,
    "unmesh": _unmesh,
    "mesh": _mesh,
    "uncluster": _uncluster,
    "unpeer": _unpeer,
    "unlabel": _unlabel,
    "unwatch": _unwatch,
}
