"""`bgp peers` and `bgp routes`: of any node through its CalicoNodeStatus, of this host from its BGP agent.

Calico has neither; the columns follow `node status` and CalicoNodeStatus.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from msgspec import UNSET

from tortie.bgp import ask
from tortie.bgp.status import Status, since
from tortie.bgp.table import TableRoute
from tortie.calicoctl import rootonly, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable
from tortie.calicoctl.session import Session
from tortie.core.errors import ConfigError, PeerError
from tortie.core.tables import boxed
from tortie.datastore.types.node import CalicoNodeStatus, Node

_PEERS = ["Node", "Peer address", "Peer type", "State", "Since"]
_ROUTES = ["Node", "Type", "Destination", "Gateway", "Interface", "Learned from"]
_OWN_PEERS = ["Peer address", "Peer type", "State", "Since", "Received", "Rejected", "Announced", "Info"]
_OWN_ROUTES = ["", "Destination", "Gateway", "Interface", "Learned from", "Why"]

Row = list[str]


def peers(call: Call) -> None:
    if call.flags["local"]:
        call.out(own_peers(_own_status(), time.time()))
    else:
        _show(call, "BGP", _PEERS, _peer_rows)


def routes(call: Call) -> None:
    if call.flags["local"]:
        _own_status()
        try:
            found = asyncio.run(ask.routes())
        except PeerError as err:
            raise CommandError(str(err)) from err
        call.out(own_routes(found))
    else:
        _show(call, "Routes", _ROUTES, _route_rows)


def _own_status() -> Status:
    """Raises CommandError unless there is an agent on this host."""
    rootonly.require()
    try:
        found = ask.status()
    except ConfigError as err:
        raise CommandError(str(err)) from err
    if found is None:
        raise CommandError("The BGP backend process (BIRD) is not running.")
    return found


def _show(
    call: Call, wanted: str, heading: Sequence[str], rows: Callable[[CalicoNodeStatus], Iterable[Row]]
) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        client = current.client()
        statuses = (await client.list(CalicoNodeStatus)).items
        known = {node.name for node in (await client.list(Node)).items}
        if unknown := sorted(set(call.words) - known):
            raise CommandError(f"there is no node {', '.join(unknown)}")
        nodes = sorted(set(call.words) or known)
        chosen = choose(statuses, wanted, nodes)
        call.out(boxed(heading, [_printable(row) for one in chosen for row in rows(one)]))
        if missing := sorted(set(nodes) - {one.spec.node for one in chosen}):
            call.err(
                f"Warning: nothing is known of {', '.join(missing)}: it takes a CalicoNodeStatus with "
                f"spec.node, spec.classes [{wanted}] and spec.updatePeriodSeconds"
            )

    session.run(call, work)


# --- pure -----------------------------------------------------------------------------------------


def choose(
    statuses: Iterable[CalicoNodeStatus], wanted: str, nodes: Collection[str]
) -> list[CalicoNodeStatus]:
    """For each of the nodes the newest status that has the class, in the nodes' order."""
    newest: dict[str, CalicoNodeStatus] = {}  # node -> its status
    for one in statuses:
        if wanted not in one.spec.classes or one.spec.node not in nodes or not one.status.lastUpdated:
            continue
        known = newest.get(one.spec.node)
        if known is None or (known.status.lastUpdated or "") < one.status.lastUpdated:
            newest[one.spec.node] = one
    return [newest[node] for node in nodes if node in newest]


def _peer_rows(one: CalicoNodeStatus) -> Iterator[Row]:
    for found in (one.status.bgp.peersV4, one.status.bgp.peersV6):
        for peer in () if found is UNSET else found:
            yield [one.spec.node, peer.peerIP, peer.type, peer.state or "Passive", peer.since]


def _route_rows(one: CalicoNodeStatus) -> Iterator[Row]:
    for route in (*one.status.routes.routesV4, *one.status.routes.routesV6):
        source = route.learnedFrom
        learned = f"{source.sourceType} {source.peerIP}".strip()
        yield [one.spec.node, route.type, route.destination, route.gateway, route.interface, learned]


def own_peers(found: Status, now: float) -> str:
    """This host's sessions, with counts, and below them why prefixes were rejected."""
    rows = [
        [
            peer.address,
            peer.type,
            peer.state,
            since(peer.since, now),
            str(peer.received),
            str(peer.rejected),
            str(peer.announced),
            peer.info,
        ]
        for peer in found.peers
    ]
    text = boxed(_OWN_PEERS, [_printable(row) for row in rows], right=(4, 5, 6))
    for peer in found.peers:
        for reason, count in peer.rejected_because.items():
            text += f"{peer.address}: {count} rejected: {printable(reason)}\n"
    return text


def own_routes(found: Iterable[TableRoute]) -> str:
    """This host's table; used paths are marked as BIRD marks them."""
    rows = [
        [
            "*" if one.used else "",
            one.prefix,
            one.next_hop or "N/A",
            one.interface,
            one.peer or one.origin,
            one.reason,
        ]
        for one in found
    ]
    return boxed(_OWN_ROUTES, [_printable(row) for row in rows])


def _printable(row: Row) -> Row:
    return [printable(cell) for cell in row]
