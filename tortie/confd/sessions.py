"""The sessions of this node: what BGPPeer resources say, and the full mesh (reference: BGP facts, 2.1-2.5).

ExaBGP can have one session per address, so the first of these wins: global peers, node-specific peers,
peerings implied by resources of the far side, the mesh; within each, by name. What is said in a
resource comes before the mesh, so that a mesh can be taken away from under it without a flap.

Between two nodes one side listens and the other connects, by Calico's comparison of addresses as
strings. Calico forgets that for peerSelector, where both connect and collide; here it holds for all.

Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from msgspec import structs

from tortie.bgp.config import Peer, PeerKind
from tortie.confd.cluster import Cluster, NodeView

HOLD_TIME = 90
"""Seconds. RFC 4271 suggests it, GoBGP and MetalLB have it, BIRD negotiates down to it from 240: a dead node
is noticed in a minute and a half, not in four (Calico's users have asked for that since 2021)."""

RESTART_TIME = 90
"""Seconds that peers keep the routes of a restarting node: no longer than the hold time (RFC 4724, 5), so
that a node which was stopped for good has lost its routes by then as well."""

_MAX_RESTART_TIME = 4095  # twelve bits, RFC 4724, 3


@dataclass(frozen=True, slots=True)
class Session:
    """A peer for bgp.json, and what else exabgp.conf says about its session."""

    peer: Peer
    name: str = field(compare=False)
    hold_time: int = HOLD_TIME
    restart_time: int = RESTART_TIME  # seconds; 0: no graceful restart
    password: tuple[str, str] | None = None  # Secret, key
    minimum_ttl: int = 0  # 0: no TTL security
    between_nodes: bool = False  # the far end is a node of this cluster


def mesh(cluster: Cluster) -> Iterator[Session]:
    """Every node with every other, except route reflectors."""
    me, settings = cluster.me, cluster.settings
    if not settings.mesh or me.cluster_id:
        return
    for node in cluster.nodes.values():
        if node.name == me.name or node.cluster_id:
            continue
        for family, address in node.addresses.items():
            if family not in me.addresses or address == me.addresses[family]:
                continue
            peer = Peer(
                address=address,
                kind="mesh",
                local_as=own_as(cluster),
                peer_as=own_as(cluster) if node.as_number is None else node.as_number,
                local_address=me.addresses[family],
                port=port_of(node, cluster),
                passive=address > me.addresses[family],
            )
            yield Session(
                peer,
                session_name("mesh", address),
                restart_time=restart_time(settings.mesh_restart_time),
                password=settings.mesh_password,
                between_nodes=True,
            )


def combine(
    cluster: Cluster, written: Iterable[Session], implied: Iterable[Session], problems: list[str]
) -> tuple[Session, ...]:
    """One session per address, the first that is found; of those written in resources for this node, a
    second that says something else is a problem."""
    found: dict[str, Session] = {}  # peer address -> its session
    own = cluster.me.addresses.values()
    for session in written:
        address = session.peer.address
        known = found.setdefault(address, session)
        alike = replace(known, peer=structs.replace(known.peer, kind=session.peer.kind))
        if session != alike and address not in own:
            problems.append(f"{session.name}: there is a session to {address} already, {known.name}")
    for session in implied:
        found.setdefault(session.peer.address, session)
    return tuple(found[address] for address in sorted(found.keys() - own))


def own_as(cluster: Cluster) -> int:
    mine = cluster.me.as_number
    return cluster.settings.as_number if mine is None else mine


def port_of(node: NodeView, cluster: Cluster) -> int:
    """Where a node listens; 0: the standard port."""
    return node.listen_port or cluster.settings.cluster_listen_port or 0


def restart_time(configured: int | None) -> int:
    return RESTART_TIME if configured is None else min(configured, _MAX_RESTART_TIME)


_PREFIXES: dict[PeerKind, str] = {
    "mesh": "Mesh",
    "global": "Global",
    "node": "Node",
    "workload": "Local_Workload",
}


def session_name(kind: PeerKind, address: str, port: int = 0) -> str:
    """Calico's protocol name: `Mesh_10_0_0_2`, `Global_10_0_0_3_port_166`; the port only if one was given."""
    plain = address.replace(".", "_").replace(":", "_")
    return f"{_PREFIXES[kind]}_{plain}" + (f"_port_{port}" if port else "")
