"""From BGPPeer resources to the sessions of this node (reference: BGP facts, 2.3, 2.4).

A resource is for some nodes (`node`, `nodeSelector`, or all) and names far ends: one address
(`peerIP`) or some nodes (`peerSelector`). Where a far end is this node, the resource implies the mirror
image of each of those sessions here, unless `reversePeering` is Manual.

Pure; a resource with a wrong value is noted in `problems` and gives no session.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from tortie.bgp.config import NextHopMode, Peer, PeerKind
from tortie.bgp.prefix import Version, canonical, number, version
from tortie.confd.cluster import Cluster, NodeView, seconds
from tortie.confd.localpeers import LocalPeer
from tortie.confd.sessions import HOLD_TIME, Session, own_as, port_of, restart_time, session_name
from tortie.datastore import selector
from tortie.datastore.types.bgp import BGPPeer
from tortie.datastore.validate.addresses import parse_peer

_STANDARD_PORT = 179


@dataclass(frozen=True, slots=True)
class _FarEnd:
    address: str
    port: int  # 0: standard
    peer_as: int
    local_as: int
    node: NodeView | None = None  # None: no node of this cluster
    shown_port: int = 0  # part of the session's name
    allowed_own_as: int = 0


class Resources:
    """All BGPPeers, seen from this node."""

    def __init__(
        self, cluster: Cluster, resources: Iterable[BGPPeer], filters: Container[str], problems: list[str]
    ) -> None:
        """`filters`: names of the BGPFilters that exist."""
        self._cluster = cluster
        self._filters = filters
        self._problems = problems
        ordered = sorted(resources, key=lambda one: one.name)
        self._usable = [one for one in ordered if not one.spec.localWorkloadSelector]
        self._for_workloads = {one.name: one for one in ordered if one.spec.localWorkloadSelector}
        self._by_address = {
            address: node for node in cluster.nodes.values() for address in node.addresses.values()
        }

    def everywhere(self) -> Iterator[Session]:
        """Of resources for all nodes."""
        for resource in self._usable:
            if not resource.spec.node and not resource.spec.nodeSelector:
                yield from self._forward(resource, "global")

    def here(self) -> Iterator[Session]:
        """Of resources for some nodes, of which this is one."""
        for resource in self._usable:
            if (resource.spec.node or resource.spec.nodeSelector) and self._is_for(
                resource, self._cluster.me
            ):
                yield from self._forward(resource, "node")

    def mirrored(self) -> Iterator[Session]:
        """Implied by resources that have other nodes peer with this one."""
        me = self._cluster.me
        for resource in self._usable:
            if resource.spec.reversePeering == "Manual" or not self._names(resource, me):
                continue
            for node in self._cluster.nodes.values():
                if node.name != me.name and self._is_for(resource, node):
                    yield from self._sessions_to(resource, node, "node")

    def workloads(self, found: Iterable[LocalPeer]) -> Iterator[Session]:
        """Of resources for workloads of this node, which dial us at the address that felix set there.

        Of the resource count the AS numbers and the filters (reference: BGP facts, 2.3).
        """
        for one in found:
            resource = self._for_workloads.get(one.resource)
            if resource is None or not self._is_for(resource, self._cluster.me):
                continue
            for net in one.nets:
                yield from self._to_workload(resource, net)

    def _to_workload(self, resource: BGPPeer, net: str) -> Iterator[Session]:
        try:
            address = canonical(net).partition("/")[0]
        except ValueError:
            return  # felix's file was not felix's
        spec, family = resource.spec, version(address)
        own = self._cluster.settings.local_peering.get(family)
        if own is None:
            self._note(resource, f"BGPConfiguration has no localWorkloadPeeringIPV{family} to peer with")
            return
        local_as = own_as(self._cluster) if spec.localASNumber is None else int(spec.localASNumber)
        peer = Peer(
            address=address,
            kind="workload",
            local_as=local_as,
            peer_as=int(spec.asNumber),
            local_address=own,
            passive=True,
            client=bool(self._cluster.me.cluster_id) and local_as == int(spec.asNumber),
            filters=tuple(self._named_filters(resource)),
        )
        yield Session(peer, session_name("workload", address))

    # --- which nodes ----------------------------------------------------------------------------

    def _is_for(self, resource: BGPPeer, node: NodeView) -> bool:
        spec = resource.spec
        if spec.node:
            return spec.node == node.name
        return not spec.nodeSelector or self._selects(resource, spec.nodeSelector, node)

    def _names(self, resource: BGPPeer, node: NodeView) -> bool:
        """Whether the node is a far end of the resource; by address it must have the AS and the port, too."""
        spec = resource.spec
        if spec.peerSelector:
            return self._selects(resource, spec.peerSelector, node)
        try:
            address, port = peer_address(spec.peerIP)
        except ValueError:
            return False  # noted on the way forward
        if address not in node.addresses.values():
            return False
        if port and port != (port_of(node, self._cluster) or _STANDARD_PORT):
            return False
        return int(spec.asNumber) in (0, self._as_of(node))

    def _selects(self, resource: BGPPeer, text: str, node: NodeView) -> bool:
        try:
            return selector.parse(text).evaluate(node.labels)
        except selector.SelectorError as err:
            self._note(resource, f"selector {text!r}: {err}")
            return False

    def _as_of(self, node: NodeView) -> int:
        return self._cluster.settings.as_number if node.as_number is None else node.as_number

    # --- far ends -------------------------------------------------------------------------------

    def _forward(self, resource: BGPPeer, kind: PeerKind) -> Iterator[Session]:
        spec = resource.spec
        if spec.peerSelector:
            for node in self._cluster.nodes.values():
                if node.name != self._cluster.me.name and self._selects(resource, spec.peerSelector, node):
                    yield from self._sessions_to(resource, node, kind)
        elif spec.peerIP and (far := self._far_end(resource)) is not None:
            yield from self._session(resource, kind, far)

    def _sessions_to(self, resource: BGPPeer, node: NodeView, kind: PeerKind) -> Iterator[Session]:
        for address in node.addresses.values():
            port = port_of(node, self._cluster)
            far = _FarEnd(address, port, self._as_of(node), own_as(self._cluster), node)
            yield from self._session(resource, kind, far)

    def _far_end(self, resource: BGPPeer) -> _FarEnd | None:
        """Of a resource with an address. AS 0 can only be meant for a node, whose AS is known."""
        spec = resource.spec
        try:
            address, port = peer_address(spec.peerIP)
        except ValueError as err:
            self._note(resource, f"spec.peerIP = {spec.peerIP!r}: {err}")
            return None
        node = self._by_address.get(address)
        peer_as = int(spec.asNumber) or (self._as_of(node) if node else 0)
        if not peer_as:
            self._note(resource, "spec.asNumber is missing")
            return None
        known_port = port_of(node, self._cluster) if node and peer_as == self._as_of(node) else 0
        local_as = own_as(self._cluster) if spec.localASNumber is None else int(spec.localASNumber)
        allowed = max(0, spec.numAllowedLocalASNumbers or 0)
        return _FarEnd(address, port or known_port, peer_as, local_as, node, port, allowed)

    # --- sessions -------------------------------------------------------------------------------

    def _session(self, resource: BGPPeer, kind: PeerKind, far: _FarEnd) -> Iterator[Session]:
        """One, or none where this node has no address of the family."""
        spec, family = resource.spec, version(far.address)
        own = self._cluster.me.addresses.get(family)
        if own is None:
            return
        secret = spec.password.secretKeyRef if spec.password else None
        passive = far.node is not None and far.address > own
        peer = Peer(
            address=far.address,
            kind=kind,
            local_as=far.local_as,
            peer_as=far.peer_as,
            # a passive session has no source to leave open: the far end dials our node's address
            local_address="" if spec.sourceAddress == "None" and not passive else own,
            port=far.port,
            passive=passive,
            next_hop=_next_hop_mode(resource, far),
            allowed_own_as=far.allowed_own_as,
            client=self._is_client(far),
            gateway=self._gateway(resource, family),
            filters=tuple(self._named_filters(resource)),
        )
        yield Session(
            peer,
            session_name(kind, far.address, far.shown_port),
            hold_time=self._hold_time(resource),
            restart_time=restart_time(self._seconds(resource, "maxRestartTime")),
            password=(secret.name, secret.key) if secret else None,
            minimum_ttl=256 - min(spec.ttlSecurity, 255) if spec.ttlSecurity and spec.ttlSecurity > 0 else 0,
            between_nodes=far.node is not None,
        )

    def _is_client(self, far: _FarEnd) -> bool:
        """A reflector reflects to everybody of its AS but reflectors of its own cluster."""
        mine = self._cluster.me.cluster_id
        return (
            bool(mine) and far.local_as == far.peer_as and (far.node is None or far.node.cluster_id != mine)
        )

    def _gateway(self, resource: BGPPeer, family: Version) -> str:
        given = resource.spec.reachableBy
        if not given:
            return ""
        try:
            if number(given)[0] == family:
                return canonical(given).partition("/")[0]
        except ValueError:
            pass
        self._note(resource, f"spec.reachableBy = {given!r}: not an IPv{family} address")
        return ""

    def _named_filters(self, resource: BGPPeer) -> Iterator[str]:
        """One that does not exist is left out, as in Calico: it appears with the resource."""
        for name in resource.spec.filters:
            if name in self._filters:
                yield name
            else:
                self._note(resource, f"there is no BGPFilter {name!r}")

    def _hold_time(self, resource: BGPPeer) -> int:
        """ExaBGP sends a keep-alive every third of the hold time, and knows no other setting."""
        every = self._seconds(resource, "keepaliveTime")
        return min(max(3 * every, 3), 65535) if every else HOLD_TIME

    def _seconds(self, resource: BGPPeer, field: str) -> int | None:
        given = getattr(resource.spec, field)
        return seconds(given, f"BGPPeer {resource.name}: spec.{field}", self._problems) if given else None

    def _note(self, resource: BGPPeer, problem: str) -> None:
        note = f"BGPPeer {resource.name}: {problem}"
        if note not in self._problems:
            self._problems.append(note)


def _next_hop_mode(resource: BGPPeer, far: _FarEnd) -> NextHopMode:
    """nextHopMode holds everywhere, keepOriginalNextHop (deprecated) on eBGP only."""
    spec = resource.spec
    if spec.nextHopMode == "Self":
        return "self"
    if spec.nextHopMode == "Keep" or (spec.keepOriginalNextHop and far.local_as != far.peer_as):
        return "keep"
    return "auto"


def peer_address(text: str) -> tuple[str, int]:
    """Canonical address and port (0: none given) of `ip`, `v4:port` or `[v6]:port`. Raises ValueError."""
    parsed = parse_peer(text)
    if parsed is None:
        raise ValueError("must be <IP>, <IPv4>:<port> or [<IPv6>]:<port>")
    return canonical(str(parsed[0])).partition("/")[0], parsed[1]
