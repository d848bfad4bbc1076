"""All that the templates need, from a snapshot, as frozen values: the decisions are made here, once.

Everything that reaches a file is made of parsed parts: addresses as the kernel prints them, numbers as
numbers, names from our own alphabet. Nothing a person stored passes as text, except passwords, which
render.py writes in base64 for ExaBGP, and quoted for BIRD. Pure.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

from msgspec.structs import replace

from tortie.bgp.config import PREFIX_LIMIT, Block, Config, Local, Pool, Tunnel
from tortie.bgp.prefix import canonical
from tortie.confd import bgpfilter
from tortie.confd.bgppeer import Resources
from tortie.confd.cluster import Cluster, view
from tortie.confd.communities import advertisements
from tortie.confd.localpeers import LocalPeer
from tortie.confd.services import advertised
from tortie.confd.sessions import RESTART_TIME, Session, combine, mesh, own_as
from tortie.confd.snapshot import Snapshot
from tortie.core.errors import ConfigError
from tortie.core.speaker import Speaker
from tortie.datastore import felixparams, routeowner
from tortie.datastore.routeowner import Owner
from tortie.datastore.types.ippool import IPPoolSpec

LISTEN_PORT = 179  # BGP's
_MAX_PASSWORD = 80  # bytes, TCP_MD5SIG_MAXKEYLEN of the kernel
_TUNNELS: Mapping[str, Tunnel] = {"Always": "always", "CrossSubnet": "cross-subnet"}

_Owns = Callable[[IPPoolSpec], Owner]

Secrets = Mapping[tuple[str, str], bytes]
"""(Secret, key) -> value. Empty where there is nothing to hold secrets, as with etcd alone."""

FelixLayers = Mapping[felixparams.Source, Mapping[str, str]]
"""Where a felix parameter was set -> raw parameters."""


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One `neighbor` section of exabgp.conf."""

    session: Session
    router_id: str
    listen: int  # port; 0: cannot listen, the address is not known
    password: bytes = b""


@dataclass(frozen=True, slots=True)
class Context:
    """`config` lacks only the digest of exabgp.conf; `problems` say what was left out and why."""

    neighbors: tuple[Neighbor, ...]
    config: Config
    agent: tuple[str, ...]  # command line of the helper
    problems: tuple[str, ...] = ()
    bind_to_node: bool = False  # listen on the node's address alone (ExaBGP always does)
    listen: int = LISTEN_PORT  # of this node


def build(
    snapshot: Snapshot,
    node: str,
    router_id: str = "",
    secrets: Secrets | None = None,
    felix_local: FelixLayers | None = None,
    cluster_ips: str = "",
    prefix_limit: int = PREFIX_LIMIT,
    kube_node: str = "",
    speaker: Speaker = "exabgp",
    local_peers: Iterable[LocalPeer] = (),
) -> Context:
    """`felix_local`: felix's settings that are not in the datastore; for `cluster_ips` and `kube_node` see
    services.py.

    Raises ConfigError if nothing can be rendered at all: the node is unknown, the router ID wrong.
    """
    problems: list[str] = []
    cluster = view(snapshot, node, router_id, problems)
    resources = Resources(cluster, snapshot.peers.values(), snapshot.filters, problems)
    written = chain(resources.everywhere(), resources.here(), resources.workloads(local_peers))
    sessions = combine(cluster, written, chain(resources.mirrored(), mesh(cluster)), problems)
    neighbors = tuple(_neighbors(cluster, sessions, {} if secrets is None else secrets, problems))
    names = [name for neighbor in neighbors for name in neighbor.session.peer.filters]
    felix = _felix_says(snapshot, node, felix_local or {}, problems)
    owner = partial(
        routeowner.owner, felix=felix, bgp=cluster.settings.program_cluster_routes, speaker=speaker
    )
    services = advertised(snapshot, node, cluster_ips, problems, kube_node)
    config = Config(
        local=_local(cluster),
        peers=tuple(replace(one.session.peer, password=bool(one.password)) for one in neighbors),
        pools=tuple(_pools(snapshot, owner, problems)),
        blocks=tuple(_blocks(snapshot)),
        services=services.routes,
        service_ranges=services.unprogrammed,
        reflected_ranges=services.reflected,
        filters=bgpfilter.selected(snapshot.filters, names, problems),
        advertisements=advertisements(snapshot.bgp, node, problems),
        ignored_interfaces=cluster.settings.ignored_interfaces,
        excluded_next_hops=tuple(_wireguard_peers(cluster)),
        tunnel_routes_exported=_bgp_owns_tunnels(snapshot, owner),
        normal_metric=cluster.settings.normal_metrics[4],
        normal_metric6=cluster.settings.normal_metrics[6],
        prefix_limit=prefix_limit,
        restart_time=max((one.session.restart_time for one in neighbors), default=RESTART_TIME),
        log_severity=cluster.settings.log_severity,
    )
    agent = (sys.executable, "-m", "tortie.bgp.agent")
    settings = cluster.settings
    return Context(
        neighbors, config, agent, tuple(problems), settings.bind_to_node, settings.listen_port or LISTEN_PORT
    )


def _local(cluster: Cluster) -> Local:
    me = cluster.me
    return Local(
        name=me.name,
        router_id=cluster.router_id,
        as_number=own_as(cluster),
        addresses=tuple(me.addresses.values()),
        subnets=tuple(me.subnets.values()),
        cluster_id=me.cluster_id,
    )


def _neighbors(
    cluster: Cluster, sessions: tuple[Session, ...], secrets: Secrets, problems: list[str]
) -> Iterator[Neighbor]:
    listen = cluster.settings.listen_port or LISTEN_PORT
    for session in sessions:
        password = _password(session, secrets, problems)
        if password is None:
            continue
        own = session.peer.local_address
        yield Neighbor(session, cluster.router_id, listen if own else 0, password)


def _password(session: Session, secrets: Secrets, problems: list[str]) -> bytes | None:
    """b"" for none; None if the session cannot be had. A missing secret means none, as in Calico."""
    if session.password is None:
        return b""
    secret, key = session.password
    found = secrets.get(session.password)
    if found is None:
        problems.append(f"{session.name}: no key {key!r} in secret {secret!r}, peering without a password")
        return b""
    if not 0 < len(found) <= _MAX_PASSWORD:
        problems.append(f"{session.name}: the password has {len(found)} bytes, not 1 to {_MAX_PASSWORD}")
        return None
    return found


# --- pools and blocks ---------------------------------------------------------------------------


def _pools(snapshot: Snapshot, owner: _Owns, problems: list[str]) -> Iterator[Pool]:
    for name, pool in sorted(snapshot.pools.items()):
        try:
            cidr = canonical(pool.spec.cidr)
        except ValueError as err:
            problems.append(f"IPPool {name}: spec.cidr: {err}")
            continue
        yield Pool(
            cidr=cidr,
            programmed=owner(pool.spec) is Owner.BGP,
            tunnel=_TUNNELS.get(pool.spec.ipipMode, "never"),
            enabled=not pool.spec.disabled,
            exported=not pool.spec.disableBGPExport,
        )


def _felix_says(snapshot: Snapshot, node: str, local: FelixLayers, problems: list[str]) -> str | None:
    """Felix's programClusterRoutes as felix itself reads it on this node; None if nobody set it."""
    stored = felixparams.datastore_layers(snapshot.felix.values(), node, snapshot.nodes.get(node))
    try:
        resolved = felixparams.resolve_stored(local, stored, node)
    except ConfigError as err:  # felix will not start with it, and say more
        problems.append(f"felix's configuration: {err}")
        return None
    name = "ProgramClusterRoutes"
    return None if resolved.sources[name] is felixparams.Source.DEFAULT else str(resolved[name])


def _bgp_owns_tunnels(snapshot: Snapshot, owner: _Owns) -> bool:
    """Whether routes over tunl0 are BGP's: then it may tell peers of them."""
    tunnelled = [p for p in snapshot.pools.values() if p.spec.ipipMode in _TUNNELS]
    return all(owner(pool.spec) is not Owner.FELIX for pool in tunnelled)


def _blocks(snapshot: Snapshot) -> Iterator[Block]:
    """Blocks that are ours. One that is being claimed is not yet, one that is being released still is."""
    for cidr, affinity in sorted(snapshot.affinities.items()):
        if affinity.deleted or affinity.state not in ("", "confirmed", "pendingDeletion"):
            continue
        yield Block(cidr=canonical(cidr), announced=affinity.state != "pendingDeletion")


def _wireguard_peers(cluster: Cluster) -> Iterator[str]:
    """Addresses of other nodes that this one reaches by WireGuard; felix has those routes."""
    for node in cluster.nodes.values():
        if node.name == cluster.me.name:
            continue
        for version, address in node.addresses.items():
            if version in node.wireguard and version in cluster.me.wireguard:
                yield address
