"""What we believe of what peers tell us, and what we tell whom.

Import checks follow RFC 4271, 4456 and 7606, export follows Calico's BIRD filters in their order
(reference: BGP facts, 3.1, 3.2, 9.1, 9.3). Every refusal carries its reason in words, for status.

Pure functions over one path and one peer at a time. What does not depend on the prefix is asked apart
from what does: ten thousand prefixes with the same path need the first only once.
"""

import re
from collections.abc import Iterable

from msgspec.structs import replace

from tortie.bgp import filters
from tortie.bgp.config import Config, Peer
from tortie.bgp.filters import Clause, Direction
from tortie.bgp.prefix import Network, network, version
from tortie.bgp.route import (
    DEFAULT_LOCAL_PREF,
    INT_MAX,
    NO_ADVERTISE,
    NO_EXPORT,
    NO_EXPORT_SUBCONFED,
    Announcement,
    Attributes,
    Path,
    Received,
    Source,
    prepend,
)

_UNKNOWN_NEXT_HOP = "no-nexthop"  # ExaBGP's word for a missing NEXT_HOP
_TUNNELS = re.compile(r".*\.cali(co)?")  # vxlan.calico, wireguard.cali: felix's own routes
_BPF = re.compile(r"bpf.*\.cali")


class Policy:
    """The configuration, prepared."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._blocks = [(network(b.cidr), b.announced) for b in config.blocks]
        self._hidden_pools = [network(p.cidr) for p in config.pools if not p.exported]
        self._services = [network(cidr) for cidr in config.services]
        if config.local.cluster_id:
            self._services += map(network, config.reflected_ranges)
        self._enabled_pools = [network(p.cidr) for p in config.pools if p.enabled]
        self._advertised = [(network(one.cidr), one) for one in config.advertisements]
        self._filters = {one.name: one for one in config.filters}
        self._clauses: dict[tuple[object, ...], tuple[Clause, ...]] = {}  # (filters, direction, version)

    def clauses(self, peer: Peer, direction: Direction) -> tuple[Clause, ...]:
        """The rules of the peer's filters for its family, in order."""
        if not peer.filters:
            return ()
        family = version(peer.address)
        key = (peer.filters, direction, family)
        if key not in self._clauses:
            named = [self._filters[name] for name in peer.filters]
            self._clauses[key] = filters.chain(named, direction, family)
        return self._clauses[key]

    # --- import ---------------------------------------------------------------------------------

    def accept(self, peer: Peer, router_id: str, received: Received) -> Path | str:
        """The path as a candidate for best path, or why it is refused. `router_id` is the peer's."""
        attributes = received.attributes
        if refusal := self._refusal(peer, received):
            return refusal
        if peer.ebgp or attributes.local_pref is None:  # RFC 4271, 5.1.5: meaningless from another AS
            attributes = replace(attributes, local_pref=DEFAULT_LOCAL_PREF)
        path = Path(
            source=Source.BGP,
            attributes=attributes,
            next_hop=received.next_hop,
            peer=peer.address,
            ebgp=peer.ebgp,
            router_id=router_id,
        )
        return self.rated(path)

    def rated(self, path: Path) -> Path:
        """A learned path with the preference that its LOCAL_PREF gives it."""
        elevated = path.priority < self.config.normal(version(path.peer))
        return replace(path, source=Source.BGP_ELEVATED if elevated else Source.BGP)

    def _refusal(self, peer: Peer, received: Received) -> str:
        local, attributes = self.config.local, received.attributes
        if attributes.origin is None or received.next_hop == _UNKNOWN_NEXT_HOP:
            return "mandatory attribute missing"  # RFC 7606, 3 d: treat as withdrawn
        if peer.ebgp and not attributes.as_path:  # ExaBGP shows an empty and a missing one alike
            return "empty AS path from another AS"
        own = sum(segment.numbers.count(peer.local_as) for segment in attributes.as_path)
        if own > peer.allowed_own_as:
            return f"own AS {peer.local_as} in AS path"  # RFC 4271, 9.1.2
        if received.next_hop in local.addresses:
            return "own address as next hop"  # RFC 4271, 5.1.3
        if peer.ebgp:
            return ""
        if attributes.originator_id == local.router_id:
            return "own route reflected"  # RFC 4456, 8
        if local.cluster_id and local.cluster_id in attributes.cluster_list:
            return "own cluster in cluster list"
        return ""

    # --- export ---------------------------------------------------------------------------------

    def announce(self, path: Path, peer: Peer, source: Peer | None) -> Announcement | str:
        """What `peer` is told of a best path, whatever the prefix, or why it is told nothing.

        `source` is the session the path came from, None for a local path.
        """
        if refusal := self._may_not_pass(path, peer, source):
            return refusal
        next_hop = self._next_hop(path, peer, source)
        if not next_hop:
            return "no own address as next hop"
        attributes = self._for_ebgp(path, peer) if peer.ebgp else self._for_ibgp(path, peer, source)
        return Announcement(attributes, next_hop)

    def takes_learned(self, peer: Peer) -> bool:
        """Whether routes of any other session may go to this one: then our table must be whole before
        we say that we have told all (RFC 4724, 4.1)."""
        others = [other for other in self.config.peers if other.address != peer.address]
        return any(not _split_horizon(other, peer) for other in others)

    def _may_not_pass(self, path: Path, peer: Peer, source: Peer | None) -> str:
        communities = path.attributes.communities
        if path.peer == peer.address:
            return "learned from this peer"
        if NO_ADVERTISE in communities:
            return "community no-advertise"
        if peer.ebgp and (NO_EXPORT in communities or NO_EXPORT_SUBCONFED in communities):
            return "community no-export"
        if path.local:
            return ""
        if source is None:
            return "its session is gone"
        if reason := _split_horizon(source, peer):
            return reason
        if peer.client and self.config.local.cluster_id in path.attributes.cluster_list:
            return "the client's cluster has seen it"
        return ""

    def withheld(self, net: Network, path: Path, peer: Peer) -> str:
        """Why the peer is not told of this prefix, which no filter accepted; "" if it is.

        Calico's export filter, calico_export_to_bgp_peers, step by step.
        """
        if _inside(net, self._hidden_pools):
            return "disableBGPExport"
        if not peer.ebgp and path.interface:
            if _TUNNELS.fullmatch(path.interface):
                return f"felix's route over {path.interface}"
            if path.interface == "tunl0" and not self.config.tunnel_routes_exported:
                return "felix's route over tunl0"
        if _BPF.fullmatch(path.interface):
            return f"route over {path.interface}"
        for block, announced in self._blocks:
            if block.contains(net):
                if net == block:
                    return "" if announced else "block is being released"
                moving = path.priority < self.config.normal(net.version)
                return "" if moving else "inside own block"
        if _inside(net, self._services):
            return ""
        return "" if _inside(net, self._enabled_pools) else "outside enabled pools"

    def advertisements(self, net: Network) -> tuple[int, ...]:
        """Which of the configured advertisements hold the prefix; all of them add communities."""
        return tuple(number for number, (cidr, _) in enumerate(self._advertised) if cidr.contains(net))

    def marked(self, attributes: Attributes, applying: Iterable[int]) -> Attributes:
        """The attributes with the communities of these advertisements."""
        standard, large = set(attributes.communities), set(attributes.large_communities)
        for number in applying:
            standard.update(self._advertised[number][1].communities)
            large.update(self._advertised[number][1].large_communities)
        return replace(
            attributes, communities=tuple(sorted(standard)), large_communities=tuple(sorted(large))
        )

    def _next_hop(self, path: Path, peer: Peer, source: Peer | None) -> str:
        """A workload is reached by its node: other nodes know no other way."""
        own = peer.local_address or self.config.local.address(version(peer.address))
        if path.local or peer.next_hop == "self" or (source is not None and source.kind == "workload"):
            return own
        if peer.next_hop == "keep" or not peer.ebgp:
            return path.next_hop
        return own

    def _for_ibgp(self, path: Path, peer: Peer, source: Peer | None) -> Attributes:
        attributes = path.attributes
        if path.local:
            return replace(attributes, local_pref=INT_MAX - path.metric)
        if source is not None and not source.ebgp and source.local_as == peer.local_as:
            return replace(  # reflected: RFC 4456, 8
                attributes,
                originator_id=attributes.originator_id or path.router_id,
                cluster_list=(self.config.local.cluster_id, *attributes.cluster_list),
            )
        return attributes

    def _for_ebgp(self, path: Path, peer: Peer) -> Attributes:
        learned_med = None if path.local or path.attributes.med is None else 0
        return replace(
            path.attributes,
            as_path=prepend(peer.local_as, path.attributes.as_path),
            med=learned_med,
            local_pref=None,
            originator_id="",
            cluster_list=(),
        )


def _split_horizon(source: Peer, peer: Peer) -> str:
    """RFC 4456, 6, with Calico's twist that the rule holds between sessions of the same local AS."""
    if source.ebgp or peer.ebgp or source.client or peer.client or source.local_as != peer.local_as:
        return ""
    return "iBGP route, peer is no client"


def _inside(net: Network, others: Iterable[Network]) -> bool:
    return any(other.contains(net) for other in others)
