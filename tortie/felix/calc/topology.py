"""Pools, nodes and blocks: what is masqueraded, who the nodes are, which routes are felix's.

Pure functions of whole sets, recomputed when one of them changed: pools and nodes change rarely, and of a
block only who has its addresses counts. (Reference: dataplane sheet 2.2-2.4, 3.1, 5;
felix/calc/l3_route_resolver.go, vxlan_resolver.go.)
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tortie.datastore.routeowner import Encapsulation, encapsulation
from tortie.datastore.types.ipam import Block
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.node import Node
from tortie.felix.calc import canonical
from tortie.felix.calc.model import BlockRoute, Pool, Vtep, version_of

_KEY_SIZE = 32  # bytes, of WireGuard's keys
_CONFIRMED = ("", "confirmed")  # affinity states that count; '' is data of old versions


# --- pools --------------------------------------------------------------------------------------


def pool(resource: IPPool) -> Pool:
    """Raises ValidationError."""
    spec = resource.spec
    return Pool(
        canonical.cidr(spec.cidr, "cidr"),
        spec.natOutgoing,
        tuple(spec.allowedUses) == ("LoadBalancer",),
    )


@dataclass(frozen=True, slots=True)
class Carriage:
    """How packets to a pool's addresses travel between nodes; `always` also within a subnet."""

    encapsulation: Encapsulation
    always: bool

    @property
    def plain(self) -> bool:
        return self.encapsulation is Encapsulation.NONE


def carriage(resource: IPPool) -> Carriage:
    spec = resource.spec
    kind = encapsulation(spec)
    mode = spec.vxlanMode if kind is Encapsulation.VXLAN else spec.ipipMode
    return Carriage(kind, mode == "Always")


# --- nodes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """A node's address of each family with the prefix length it was given, '' if it has none.

    `vteps`: its ends of VXLAN tunnels, by IP version; none where it has no tunnel address. `keys`: its
    public keys for WireGuard, in base64, likewise; `wireguard`: the addresses its pools gave it for that.
    `tunnels`: all addresses of tunnel devices.
    """

    v4: str = ""
    v6: str = ""
    vteps: tuple[tuple[int, Vtep], ...] = ()
    keys: tuple[tuple[int, str], ...] = ()
    wireguard: tuple[tuple[int, str], ...] = ()
    tunnels: tuple[str, ...] = ()

    def of(self, version: int) -> str:
        """The bare address."""
        return canonical.address_of(self.v4 if version == 4 else self.v6)

    def vtep(self, version: int) -> Vtep | None:
        return next((vtep for one, vtep in self.vteps if one == version), None)

    def key(self, version: int) -> str:
        return dict(self.keys).get(version, "")

    def wireguard_address(self, version: int) -> str:
        return dict(self.wireguard).get(version, "")


def node_addresses(node: Node) -> NodeAddresses:
    """From BGP's fields; a node without them has its internal, else its external addresses.

    A tunnel ends only at addresses from BGP's fields, as in Calico. Raises ValidationError.
    """
    bgp = node.spec.bgp
    v4, v6 = (bgp.ipv4Address, bgp.ipv6Address) if bgp is not None else ("", "")
    vteps = tuple(_vteps(node, v4, v6))
    for kind in ("InternalIP", "ExternalIP"):
        for one in node.spec.addresses:
            if one.type == kind:
                v4 = v4 or (one.address if version_of(one.address) == 4 else "")
                v6 = v6 or (one.address if version_of(one.address) == 6 else "")
    wireguard = tuple(_wireguard_addresses(node))
    keys = ((4, _key(node.status.wireguardPublicKey)), (6, _key(node.status.wireguardPublicKeyV6)))
    return NodeAddresses(
        _checked(v4),
        _checked(v6),
        vteps,
        tuple((version, key) for version, key in keys if key),
        wireguard,
        tuple(_tunnel_addresses(node, wireguard)),
    )


def _wireguard_addresses(node: Node) -> Iterable[tuple[int, str]]:
    if (spec := node.spec.wireguard) is not None:
        for version, text in ((4, spec.interfaceIPv4Address), (6, spec.interfaceIPv6Address)):
            if text and version_of(text) == version:  # else it could be on no device of this version
                yield version, canonical.address(canonical.address_of(text), "WireGuard interface address")


def _tunnel_addresses(node: Node, wireguard: Iterable[tuple[int, str]]) -> Iterable[str]:
    spec = node.spec
    ipip = spec.bgp.ipv4IPIPTunnelAddr if spec.bgp is not None else ""
    for text in (ipip, spec.ipv4VXLANTunnelAddr, spec.ipv6VXLANTunnelAddr):
        if text:
            yield canonical.address(canonical.address_of(text), "tunnel address")
    yield from (address for _, address in wireguard)


def _key(text: str) -> str:
    """A key that is none, or all zero as Calico writes it for none, is ''."""
    try:
        raw = b64decode(text, validate=True)
    except ValueError:
        return ""
    return b64encode(raw).decode() if len(raw) == _KEY_SIZE and any(raw) else ""


def _vteps(node: Node, v4: str, v6: str) -> Iterable[tuple[int, Vtep]]:
    spec = node.spec
    for version, own, tunnel, mac in (
        (4, v4, spec.ipv4VXLANTunnelAddr, spec.vxlanTunnelMACAddr),
        (6, v6, spec.ipv6VXLANTunnelAddr, spec.vxlanTunnelMACAddrV6),
    ):
        if own and tunnel:
            yield (
                version,
                Vtep(
                    canonical.address(canonical.address_of(tunnel), "VXLAN tunnel address"),
                    canonical.mac(mac, "vxlanTunnelMACAddr") if mac else vtep_mac(node.name, version),
                    canonical.address_of(_checked(own)),
                ),
            )


def vtep_mac(node: str, version: int) -> str:
    """The MAC of a node's VXLAN device: every node can tell it from the name (felix/calc/vxlan_resolver.go).

    The first byte marks it as locally administered, for one device.
    """
    digest = hashlib.sha1((node if version == 4 else f"{node}-v6").encode(), usedforsecurity=False).digest()
    return (b"f" + digest[:5]).hex(":")


def _checked(text: str) -> str:
    """Host bits stay: the address matters, its prefix length says what is in the same subnet."""
    if not text:
        return ""
    address, slash, length = text.partition("/")
    canonical.cidr(text, "address")
    return f"{canonical.address(address, 'address')}{slash}{length}"


def same_subnet(local: NodeAddresses, remote: str) -> bool:
    """Whether a remote node's address lies in the local node's subnet, by the local prefix length."""
    own = local.v4 if version_of(remote) == 4 else local.v6
    return "/" in own and canonical.contains(canonical.cidr(own), remote)


# --- blocks -------------------------------------------------------------------------------------


def blackholes(affinities: Mapping[str, str], felix_owns: Iterable[str]) -> frozenset[str]:
    """Own blocks to blackhole: those confirmed (`affinities`: CIDR -> state) in pools felix owns.

    Never a single address: that is the route of the workload which has it.
    """
    owned = list(felix_owns)
    return frozenset(
        block
        for block, state in affinities.items()
        if state in _CONFIRMED
        and not canonical.is_single(block)
        and any(canonical.contains(cidr, block) for cidr in owned)
    )


def owners(block: Block, net: str) -> dict[str, str]:
    """Destination -> the node that has it: the block, and the single addresses in use elsewhere.

    `net`: the block's canonical CIDR. A block without an affinity belongs to ''.
    """
    owner = (block.affinity or "").removeprefix("host:")
    return {net: owner, **_borrowed(block, net, owner)}


def _borrowed(block: Block, net: str, owner: str) -> dict[str, str]:
    import ipaddress  # only nodes where felix writes these routes need it

    base: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    found: dict[str, str] = {}
    for ordinal, index in enumerate(block.allocations):
        if index is None or not 0 <= index < len(block.attributes):
            continue
        node = block.attributes[index].secondary.get("node", "")
        if node and node != owner:
            base = base or ipaddress.ip_network(net)
            if ordinal < base.num_addresses:
                found[canonical.cidr(str(base[ordinal]))] = node
    return found


def merged(holdings: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Network -> its node; of nodes that have the same, the first by name counts, as in Calico."""
    found = sorted(((node, net) for held in holdings for net, node in held.items()), reverse=True)
    return {net: node for node, net in found}


def block_routes(
    owners: Mapping[str, str],
    nodes: Mapping[str, NodeAddresses],
    local: str,
    pools: Mapping[str, Carriage],
) -> dict[str, BlockRoute]:
    """The ways to what other nodes have, by destination.

    `owners`: block or address -> its node; `pools`: CIDR of each pool whose routes are felix's -> how its
    packets travel. Nothing leads to a node whose address is not known.
    """
    own = nodes.get(local, NodeAddresses())
    nets = [(canonical.network(cidr), way) for cidr, way in pools.items()]
    near: dict[str, bool] = {}  # address of a node -> whether it is in the own subnet
    routes: dict[str, BlockRoute] = {}
    for dst, name in owners.items():
        version, node = version_of(dst), nodes.get(name)
        gateway = "" if node is None or name == local else node.of(version)
        if node is None or not gateway or (way := _carriage_of(dst, nets)) is None:
            continue
        if gateway not in near:
            near[gateway] = same_subnet(own, gateway)
        vtep = node.vtep(version) if way.encapsulation is Encapsulation.VXLAN else None
        direct = way.plain or (near[gateway] and not way.always)
        routes[dst] = BlockRoute(
            dst, name, gateway, way.encapsulation, direct, "" if vtep is None else vtep.address
        )
    return routes


def _carriage_of(net: str, pools: Iterable[tuple[canonical.Network, Carriage]]) -> Carriage | None:
    """Of the most specific pool that holds the network."""
    network = canonical.network(net)
    holding = [(cidr.length, way) for cidr, way in pools if cidr.holds(network)]
    return max(holding, key=lambda one: one[0])[1] if holding else None
