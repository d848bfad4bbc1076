"""bgp.json: all the agent knows of its cluster. Written by confd, read by the agent, made of values only.

exabgp.conf says which sessions exist, this file says what to tell them and what to do with what they
tell us. Both are rendered together; `sessions` is the digest that exabgp.conf carries in each
neighbour's description, so that the agent can ask ExaBGP whether it runs with that file.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from tortie.bgp.filters import Filter, check
from tortie.bgp.prefix import canonical, number
from tortie.bgp.route import NORMAL_METRIC
from tortie.core.errors import ConfigError
from tortie.core.files import read_or_none

FORMAT = 1  # of this file; raised when an older agent could misread a newer file

PREFIX_LIMIT = 250_000
"""Prefixes of one peer. A cluster of 5,000 nodes has some 20,000 blocks; in the agent and in ExaBGP together
a prefix takes about 2 kB, so one peer can take half a gigabyte."""

PREFIX_LIMIT_VARIABLE = "TORTIE_BGP_PREFIX_LIMIT"

NextHopMode = Literal["auto", "self", "keep"]
Tunnel = Literal["never", "always", "cross-subnet"]
PeerKind = Literal["mesh", "global", "node", "workload"]


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class Peer(_Value, frozen=True, kw_only=True):
    """One session. `address` is its name everywhere: a second session to the same address cannot be."""

    address: str
    kind: PeerKind
    local_as: int
    peer_as: int
    local_address: str = ""  # "": whichever the kernel takes
    port: int = 0  # of the peer, for people; 0: 179
    passive: bool = False
    password: bool = False  # whether it has one, for people
    next_hop: NextHopMode = "auto"
    allowed_own_as: int = 0  # how often an AS path may hold our own AS
    client: bool = False  # of ours as its route reflector
    gateway: str = ""  # reachableBy: the peer is behind this neighbour
    filters: tuple[str, ...] = ()  # names, in their order

    @property
    def ebgp(self) -> bool:
        return self.local_as != self.peer_as

    @property
    def session(self) -> tuple[str, str, int, int]:
        """What makes ExaBGP count it as the same neighbour."""
        return self.address, self.local_address, self.local_as, self.peer_as


class Block(_Value, frozen=True, kw_only=True):
    """An address block of this node. Unannounced: it is being given up, but still here."""

    cidr: str
    announced: bool = True


class Pool(_Value, frozen=True, kw_only=True):
    """An IP pool, as far as routes are concerned."""

    cidr: str
    programmed: bool = True  # by us into the kernel; False: by felix, or by nobody
    tunnel: Tunnel = "never"  # through tunl0
    enabled: bool = True
    exported: bool = True  # not disableBGPExport


class Advertisement(_Value, frozen=True, kw_only=True):
    """Communities for what we announce of a prefix: itself and all inside (prefixAdvertisements)."""

    cidr: str
    communities: tuple[tuple[int, int], ...] = ()
    large_communities: tuple[tuple[int, int, int], ...] = ()


class Local(_Value, frozen=True, kw_only=True):
    """This node. `addresses` and `subnets`: the IPv4 one, the IPv6 one, or both; subnets with length."""

    name: str
    router_id: str
    as_number: int
    addresses: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    cluster_id: str = ""  # set: this node is a route reflector

    def address(self, version: int) -> str:
        """Our address of that IP version, "" if there is none."""
        return next((a for a in self.addresses if (":" in a) == (version == 6)), "")


class Config(_Value, frozen=True, kw_only=True):
    format: int = FORMAT
    sessions: str = ""  # digest in exabgp.conf
    local: Local
    peers: tuple[Peer, ...] = ()
    pools: tuple[Pool, ...] = ()
    blocks: tuple[Block, ...] = ()
    services: tuple[str, ...] = ()  # prefixes of services that this node announces
    service_ranges: tuple[str, ...] = ()  # prefixes whose routes stay out of the kernel
    reflected_ranges: tuple[str, ...] = ()  # others' that a route reflector passes on
    filters: tuple[Filter, ...] = ()  # those that peers name
    advertisements: tuple[Advertisement, ...] = ()
    ignored_interfaces: tuple[str, ...] = ()  # whose networks are not told to anybody; globs
    excluded_next_hops: tuple[str, ...] = ()  # reached by WireGuard, felix has their routes
    tunnel_routes_exported: bool = True  # to iBGP: whether routes over tunl0 are BGP's
    normal_metric: int = NORMAL_METRIC  # IPv4; metric of an ordinary workload route
    normal_metric6: int = NORMAL_METRIC
    prefix_limit: int = PREFIX_LIMIT  # that one peer may announce; 0: any number
    restart_time: int = 90  # seconds we wait for peers after our own start
    log_severity: str = "info"

    def normal(self, version: int) -> int:
        return self.normal_metric if version == 4 else self.normal_metric6


def prefix_limit(environment: Mapping[str, str]) -> int:
    """TORTIE_BGP_PREFIX_LIMIT. Raises ConfigError."""
    given = environment.get(PREFIX_LIMIT_VARIABLE) or str(PREFIX_LIMIT)
    if not (given.isascii() and given.isdigit()):
        raise ConfigError(PREFIX_LIMIT_VARIABLE, given, "not a number of prefixes, nor 0 for any")
    return int(given)


def encode(config: Config) -> bytes:
    """The file's content: readable, and the same for the same configuration."""
    return msgspec.json.format(msgspec.json.encode(config), indent=1) + b"\n"


def decode(data: bytes, where: str) -> Config:
    """Raises ConfigError naming the file and the field."""
    try:
        config = msgspec.json.decode(data, type=Config)
        _check(config)
    except (msgspec.DecodeError, ValueError) as err:
        raise ConfigError(where, "", str(err)) from err
    return config


def handed_over(before: Config, after: Config) -> list[str]:
    """The pools whose routes were ours to program and are felix's now."""
    theirs = {pool.cidr for pool in after.pools if not pool.programmed}
    return [pool.cidr for pool in before.pools if pool.programmed and pool.cidr in theirs]


def load(path: str) -> Config | None:
    """The file's content, None if it does not exist yet. Raises ConfigError."""
    data = read_or_none(path)
    return None if data is None else decode(data, path)


def _check(config: Config) -> None:
    """The file may have been edited: whatever reaches ExaBGP's pipe or the kernel must be well-formed."""
    if config.format != FORMAT:
        raise ValueError(f"format {config.format}, this version reads {FORMAT}")
    for address in [config.local.router_id, *config.local.addresses, *config.excluded_next_hops]:
        number(address)
    prefixes = [*(b.cidr for b in config.blocks), *(p.cidr for p in config.pools), *config.local.subnets]
    for cidr in [*prefixes, *(one.cidr for one in config.advertisements), *config.services]:
        if canonical(cidr) != cidr:
            raise ValueError(f"{cidr!r} is not in canonical form")
    for cidr in (*config.service_ranges, *config.reflected_ranges):
        if canonical(cidr) != cidr:
            raise ValueError(f"{cidr!r} is not in canonical form")
    for one in config.filters:
        check(one)
    known = {one.name for one in config.filters}
    for peer in config.peers:
        if unknown := set(peer.filters) - known:
            raise ValueError(f"peer {peer.address} names filters that are not here: {sorted(unknown)}")
        for address in filter(None, [peer.local_address, peer.gateway]):
            number(address)
        if canonical(peer.address).partition("/")[0] != peer.address:
            raise ValueError(f"{peer.address!r} is not in canonical form")
    if len({peer.address for peer in config.peers}) != len(config.peers):
        raise ValueError("two sessions with one peer address")
