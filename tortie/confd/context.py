"""All that the templates need, from a snapshot, as frozen values: the decisions are made here, once.

Everything that reaches a file is made of parsed parts: addresses as the kernel prints them, numbers as
numbers, names from our own alphabet. Nothing a person stored passes as text, except passwords, which
render.py writes in base64. Pure.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tortie.bgp.config import PREFIX_LIMIT, Block, Config, Local, Pool, Tunnel
from tortie.bgp.prefix import canonical
from tortie.confd import bgpfilter
from tortie.confd.bgppeer import Resources
from tortie.confd.cluster import Cluster, view
from tortie.confd.communities import advertisements
from tortie.confd.services import advertised
from tortie.confd.sessions import RESTART_TIME, Session, combine, mesh, own_as
from tortie.confd.snapshot import Snapshot
from tortie.core.errors import ConfigError
from tortie.datastore import felixparams, routeowner
from tortie.datastore.routeowner import Owner
from tortie.datastore.types.ippool import IPPool

_MAX_PASSWORD = 80  # bytes, TCP_MD5SIG_MAXKEYLEN of the kernel
_TUNNELS: Mapping[str, Tunnel] = {"Always": "always", "CrossSubnet": "cross-subnet"}

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


def build(
    snapshot: Snapshot,
    node: str,
    router_id: str = "",
    secrets: Secrets | None = None,
    felix_local: FelixLayers | None = None,
    cluster_ips: str = "",
    prefix_limit: int = PREFIX_LIMIT,
) -> Context:
    """`felix_local`: felix's settings that are not in the datastore; `cluster_ips`: see services.py.

    Raises ConfigError if nothing can be rendered at all: the node is unknown, the router ID wrong.
    """
    problems: list[str] = []
    cluster = view(snapshot, node, router_id, problems)
    resources = Resources(cluster, snapshot.peers.values(), snapshot.filters, problems)
    sources = (resources.everywhere(), resources.here(), resources.mirrored(), mesh(cluster))
    sessions = combine(cluster, sources, problems)
    neighbors = tuple(_neighbors(cluster, sessions, {} if secrets is None else secrets, problems))
    names = [name for neighbor in neighbors for name in neighbor.session.peer.filters]
    felix = _felix_says(snapshot, node, felix_local or {}, problems)
    services = advertised(snapshot, node, cluster_ips, problems)
    config = Config(
        local=_local(cluster),
        peers=tuple(neighbor.session.peer for neighbor in neighbors),
        pools=tuple(_pools(snapshot, cluster, felix, problems)),
        blocks=tuple(_blocks(snapshot)),
        services=services.routes,
        service_ranges=services.unprogrammed,
        reflected_ranges=services.reflected,
        filters=bgpfilter.selected(snapshot.filters, names, problems),
        advertisements=advertisements(snapshot.bgp, node, problems),
        ignored_interfaces=cluster.settings.ignored_interfaces,
        excluded_next_hops=tuple(_wireguard_peers(cluster)),
        tunnel_routes_exported=_bgp_owns_tunnels(snapshot, cluster, felix),
        normal_metric=cluster.settings.normal_metrics[4],
        normal_metric6=cluster.settings.normal_metrics[6],
        prefix_limit=prefix_limit,
        restart_time=max((one.session.restart_time for one in neighbors), default=RESTART_TIME),
        log_severity=cluster.settings.log_severity,
    )
    return Context(neighbors, config, (sys.executable, "-m", "tortie.bgp.agent"), tuple(problems))


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
    listen = cluster.settings.listen_port or 179
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


def _pools(snapshot: Snapshot, cluster: Cluster, felix: str | None, problems: list[str]) -> Iterator[Pool]:
    for name, pool in sorted(snapshot.pools.items()):
        try:
            cidr = canonical(pool.spec.cidr)
        except ValueError as err:
            problems.append(f"IPPool {name}: spec.cidr: {err}")
            continue
        yield Pool(
            cidr=cidr,
            programmed=_owner(pool, felix, cluster) is Owner.BGP,
            tunnel=_TUNNELS.get(pool.spec.ipipMode, "never"),
            enabled=not pool.spec.disabled,
            exported=not pool.spec.disableBGPExport,
        )


def _owner(pool: IPPool, felix: str | None, cluster: Cluster) -> Owner:
    return routeowner.owner(pool.spec, felix, cluster.settings.program_cluster_routes)


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


def _bgp_owns_tunnels(snapshot: Snapshot, cluster: Cluster, felix: str | None) -> bool:
    """Whether routes over tunl0 are BGP's: then it may tell peers of them."""
    tunnelled = [p for p in snapshot.pools.values() if p.spec.ipipMode in _TUNNELS]
    return all(_owner(pool, felix, cluster) is not Owner.FELIX for pool in tunnelled)


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
