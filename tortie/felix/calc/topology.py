"""Pools, nodes and blocks: what is masqueraded, who the nodes are, which routes are felix's.

Pure functions of whole sets, recomputed when one of them changed: pools and nodes change rarely, and a
cluster has few of them. (Reference: dataplane sheet 2.2-2.4, 5; felix/calc/l3_route_resolver.go.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tortie.datastore.types.ipam import Block
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.node import Node
from tortie.felix.calc import canonical
from tortie.felix.calc.model import BlockRoute, Pool, version_of

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


# --- nodes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """A node's address of each family with the prefix length it was given, '' if it has none.

    `vtep`: the IP versions for which it is a VXLAN tunnel endpoint.
    """

    v4: str = ""
    v6: str = ""
    vtep: frozenset[int] = frozenset()

    def of(self, version: int) -> str:
        """The bare address."""
        return canonical.address_of(self.v4 if version == 4 else self.v6)


def node_addresses(node: Node) -> NodeAddresses:
    """From BGP's fields; a node without them has its internal, else its external addresses.

    Raises ValidationError.
    """
    bgp = node.spec.bgp
    v4, v6 = (bgp.ipv4Address, bgp.ipv6Address) if bgp is not None else ("", "")
    tunnels = {(4, v4, node.spec.ipv4VXLANTunnelAddr), (6, v6, node.spec.ipv6VXLANTunnelAddr)}
    vtep = frozenset(version for version, own, tunnel in tunnels if own and tunnel)
    for kind in ("InternalIP", "ExternalIP"):
        for one in node.spec.addresses:
            if one.type == kind:
                v4 = v4 or (one.address if version_of(one.address) == 4 else "")
                v6 = v6 or (one.address if version_of(one.address) == 6 else "")
    return NodeAddresses(_checked(v4), _checked(v6), vtep)


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


def block_routes(
    blocks: Mapping[str, Block],
    nodes: Mapping[str, NodeAddresses],
    local: str,
    pools: Mapping[str, bool],
) -> dict[str, BlockRoute]:
    """Untunnelled routes to what other nodes have, by destination. `blocks` are by canonical CIDR.

    `pools`: CIDR of a pool whose routes are felix's -> whether only nodes in the own subnet are reached
    without a tunnel. A block goes to the node it is affine to; an address borrowed by another node goes
    there by itself.
    """
    own = nodes.get(local, NodeAddresses())
    routes: dict[str, BlockRoute] = {}
    for net, block in blocks.items():
        subnet_only = [within for cidr, within in pools.items() if canonical.contains(cidr, net)]
        if not subnet_only:
            continue
        owner = (block.affinity or "").removeprefix("host:")
        for dst, node in {net: owner, **_borrowed(block, net, owner)}.items():
            gateway = nodes[node].of(version_of(net)) if node in nodes else ""
            reachable = gateway and (not all(subnet_only) or same_subnet(own, gateway))
            if reachable and node != local:
                routes[dst] = BlockRoute(dst, node, gateway)
    return routes


def _borrowed(block: Block, net: str, owner: str) -> dict[str, str]:
    """Single addresses of a block that are in use elsewhere -> the node."""
    import ipaddress  # only nodes where felix writes these routes need it

    base = ipaddress.ip_network(net)
    found: dict[str, str] = {}
    for ordinal, index in enumerate(block.allocations):
        if index is None or not 0 <= index < len(block.attributes) or ordinal >= base.num_addresses:
            continue
        node = block.attributes[index].secondary.get("node", "")
        if node and node != owner:
            found[canonical.cidr(str(base[ordinal]))] = node
    return found
