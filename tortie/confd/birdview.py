"""A context as one BIRD daemon needs it: one family, in the order in which BIRD's filters ask. Pure.

There are two daemons, one per family, as Calico has them: each has its own file and socket (bird.cfg and
bird.ctl, bird6.cfg and bird6.ctl), so that runbooks and calicoctl's find both, and an edit that concerns one
family is not even read by the other. BIRD 2 could do both in one process; a second one costs 3 MB.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tortie.bgp.config import Advertisement, Config
from tortie.bgp.prefix import Version, is_link_local, network, number, version
from tortie.bgp.route import INT_MAX
from tortie.confd import birdfilter
from tortie.confd.birdfilter import Function
from tortie.confd.context import LISTEN_PORT, Context, Neighbor
from tortie.confd.sessions import Session, session_name
from tortie.core.errors import ConfigError

_UNQUOTABLE = frozenset(b'"\n\0')  # BIRD's strings end with a quote, know no escapes and stay on their line
_MOST_HOPS = 256  # TTL security asks for a TTL of 256 - hops

# BGPConfiguration's logSeverityScreen -> what BIRD writes, and what it tells of its protocols
_LOG: Mapping[str, tuple[str, str]] = {
    "debug": ("all", "all"),
    "info": ("all", "{ states }"),
    "warning": ("{ warning, error, auth, fatal, bug }", "off"),
    "error": ("{ error, auth, fatal, bug }", "off"),
    "fatal": ("{ fatal, bug }", "off"),
    "none": ("{ fatal, bug }", "off"),
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """One `protocol bgp`."""

    neighbor: Neighbor
    name: str
    imports: tuple[str, ...]  # functions of its filters
    exports: tuple[str, ...]
    local_address: str  # "": whichever the kernel takes
    next_hop: str  # for what workloads announce: ours, for other nodes know no other way to them; "": unknown

    @property
    def internal(self) -> bool:
        return not self.neighbor.session.peer.ebgp

    @property
    def hops(self) -> int:
        """TTL security's; 0: none."""
        ttl = self.neighbor.session.minimum_ttl
        return _MOST_HOPS - ttl if ttl else 0


@dataclass(frozen=True, slots=True)
class Programming:
    """What the kernel filter says of a pool's prefixes."""

    cidr: str
    accept: bool


@dataclass(frozen=True, slots=True)
class Inside:
    """Peers that are in one AS with us, between which routes pass by reflection alone (RFC 4456, 6)."""

    local_as: int
    addresses: tuple[str, ...]
    strangers: tuple[str, ...]  # those of them that are no clients


@dataclass(frozen=True, slots=True)
class Daemon:
    """All that the template needs. Prefixes and addresses are of the one family."""

    version: Version
    enabled: bool  # the node has an address of the family
    listen: int  # port; 0: BIRD's own, the standard port
    bind_to_node: bool  # listen on the node's address alone; then every session has it, for BIRD binds once
    config: Config
    log: str
    debug: str
    restart_wait: int  # seconds for peers to come back to a daemon that was restarted
    protocols: tuple[Protocol, ...]
    workloads: tuple[str, ...]  # addresses of those that are peers
    inside: tuple[Inside, ...]
    functions: tuple[Function, ...]
    programming: tuple[Programming, ...]  # the most specific pools first
    hidden_pools: tuple[str, ...]
    enabled_pools: tuple[str, ...]
    blocks: tuple[tuple[str, bool], ...]  # with whether they are announced
    statics: tuple[str, ...]  # blackholes: blocks and services
    gateways: tuple[tuple[str, str], ...]  # peer -> the neighbour that it is behind
    services: tuple[str, ...]  # prefixes that may be announced
    service_ranges: tuple[str, ...]
    excluded_next_hops: tuple[str, ...]
    advertisements: tuple[Advertisement, ...]
    normal: int  # metric
    most: int = INT_MAX


def daemon(context: Context, family: Version, problems: list[str]) -> Daemon:
    """What cannot be said in BIRD's language is left out and noted. Raises ConfigError."""
    config = context.config
    blocks = [block for block in config.blocks if version(block.cidr) == family]
    pools = [pool for pool in config.pools if version(pool.cidr) == family]
    services = _only(config.services, family)
    reflected = _only(config.reflected_ranges, family) if config.local.cluster_id else ()
    single = 32 if family == 4 else 128
    wide = [block.cidr for block in blocks if network(block.cidr).length < single]
    protocols = tuple(_protocols(context, family, problems))
    log, debug = _LOG.get(config.log_severity.lower(), _LOG["info"])
    specific = sorted(pools, key=lambda pool: -network(pool.cidr).length)
    return Daemon(
        version=family,
        enabled=bool(config.local.address(family)),
        listen=0 if context.listen == LISTEN_PORT else context.listen,
        bind_to_node=context.bind_to_node,
        config=config,
        log=log,
        debug=debug,
        restart_wait=max(1, config.restart_time),
        protocols=protocols,
        workloads=tuple(
            one.address for one in config.peers if one.kind == "workload" and version(one.address) == family
        ),
        inside=tuple(_inside(protocols)),
        functions=tuple(birdfilter.functions(config.filters, family)),
        programming=tuple(Programming(pool.cidr, pool.programmed) for pool in specific),
        hidden_pools=tuple(pool.cidr for pool in pools if not pool.exported),
        enabled_pools=tuple(pool.cidr for pool in pools if pool.enabled),
        blocks=tuple((block.cidr, block.announced) for block in blocks),
        statics=(*wide, *services),
        gateways=tuple(_gateways(protocols)),
        services=(*services, *(cidr for cidr in reflected if cidr not in services)),
        service_ranges=_only(config.service_ranges, family),
        excluded_next_hops=_only(config.excluded_next_hops, family),
        advertisements=tuple(one for one in config.advertisements if version(one.cidr) == family),
        normal=config.normal(family),
    )


def _only(texts: tuple[str, ...], family: Version) -> tuple[str, ...]:
    return tuple(text for text in texts if version(text) == family)


def _protocols(context: Context, family: Version, problems: list[str]) -> Iterator[Protocol]:
    named = {one.name: one for one in context.config.filters}
    own = context.config.local.address(family)
    for neighbor in context.neighbors:
        peer = neighbor.session.peer
        if version(peer.address) != family:
            continue
        local_address = peer.local_address or (own if context.bind_to_node else "")
        if reason := _unsayable(neighbor, local_address):
            problems.append(f"{neighbor.session.name}: {reason}")
            continue
        filters = [named[name] for name in peer.filters]
        yield Protocol(
            neighbor,
            _name(neighbor.session),
            birdfilter.calls(filters, "import", family),
            birdfilter.calls(filters, "export", family),
            local_address,
            "" if peer.kind == "workload" else peer.local_address or own,
        )


def _name(session: Session) -> str:
    """Of two nodes' session always the same, whoever asks for it: BIRD starts one anew whose name changes."""
    return session_name("mesh", session.peer.address) if session.between_nodes else session.name


def _unsayable(neighbor: Neighbor, local_address: str) -> str:
    """Why BIRD would refuse the whole file for this session, "" if it would not."""
    peer = neighbor.session.peer
    if _UNQUOTABLE & set(neighbor.password):
        return "BIRD takes no password with a quote or a newline"
    if not (peer.local_as and peer.peer_as):
        return "BIRD takes no AS number 0"
    for address in filter(None, (peer.address, local_address)):
        if not number(address)[1] or is_link_local(address):
            return f"BIRD has no session with {address}: nobody has it everywhere"
    return ""


def _inside(protocols: tuple[Protocol, ...]) -> Iterator[Inside]:
    peers = [one.neighbor.session.peer for one in protocols if one.internal]
    for local_as in sorted({peer.local_as for peer in peers}):
        mine = [peer for peer in peers if peer.local_as == local_as]
        strangers = tuple(peer.address for peer in mine if not peer.client)
        yield Inside(local_as, tuple(peer.address for peer in mine), strangers)


def _gateways(protocols: tuple[Protocol, ...]) -> Iterator[tuple[str, str]]:
    for one in protocols:
        peer = one.neighbor.session.peer
        if peer.gateway:
            yield peer.address, peer.gateway


def quoted(password: object) -> str:
    """A password as BIRD reads it, each byte a character of Latin 1."""
    if not isinstance(password, bytes) or _UNQUOTABLE & set(password):
        raise ConfigError("bird.cfg", "password", "has characters that end BIRD's strings")
    return '"' + password.decode("latin-1") + '"'
