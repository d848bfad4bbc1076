"""Who is reached through WireGuard, and what lies behind each node: the decisions, as pure functions.

A node is a peer if its address and its key are known and no other node claims the same key. What it has -
its blocks, single addresses it borrowed, its tunnel addresses - goes to it encrypted; what nodes without a
usable key have is sent as if there were no WireGuard, and so is what this node has itself.

Other nodes' own addresses come last: those who do not know this node's key drop what it encrypts, and
among them may be those that could tell it to them. So until this node's own entry in the datastore shows
the key of its device, packets to them go plain.
(Reference: dataplane sheet 3.6; felix/wireguard/wireguard.go, felix/dataplane/linux/wireguard_mgr.go.)
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tortie.felix.calc import canonical
from tortie.felix.calc.model import version_of
from tortie.felix.calc.topology import NodeAddresses


@dataclass(frozen=True, slots=True)
class Peer:
    """`endpoint`: the node's address. `allowed`: all that it may send from and is sent."""

    node: str
    endpoint: str
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """`peers`: public key -> peer. `ways`: destination -> whether it is reached through WireGuard.

    `disputed`: nodes whose key is claimed by others as well.
    """

    peers: Mapping[str, Peer] = field(default_factory=dict)
    ways: Mapping[str, bool] = field(default_factory=dict)
    disputed: frozenset[str] = frozenset()


def holders(
    version: int,
    owners: Mapping[str, str],
    nodes: Mapping[str, NodeAddresses],
    local: str,
    *,
    encrypt_host: bool = False,
) -> dict[str, frozenset[str]]:
    """Node -> the networks of one IP version that are to be found at it.

    `owners`: block or single address -> its node. `encrypt_host`: other nodes' own addresses as well.
    """
    whose = {net: node for net, node in owners.items() if node and version_of(net) == version}
    for name, node in nodes.items():
        own = node.of(version) if encrypt_host and name != local else ""
        for address in (*node.tunnels, own):
            if address and version_of(address) == version:
                whose[canonical.cidr(address)] = name
    found: dict[str, set[str]] = {}
    for net, name in whose.items():
        found.setdefault(name, set()).add(net)
    found[local] = _uncovered(found.get(local, set()))
    return {name: frozenset(nets) for name, nets in found.items()}


def _uncovered(nets: Iterable[str]) -> set[str]:
    """Without the single addresses that lie in another of the networks."""
    nets = set(nets)
    blocks = [canonical.network(net) for net in nets if not canonical.is_single(net)]
    return {
        net
        for net in nets
        if not canonical.is_single(net) or not any(block.holds(canonical.network(net)) for block in blocks)
    }


def plan(
    version: int,
    own_key: str,
    held: Mapping[str, frozenset[str]],
    nodes: Mapping[str, NodeAddresses],
    local: str,
) -> Plan:
    """`own_key`: the device's public key. `held`: holders()'."""
    keys = {name: key for name, node in nodes.items() if name != local and (key := node.key(version))}
    claims = Counter([*keys.values(), own_key])
    peers = {
        key: Peer(name, nodes[name].of(version), held.get(name, frozenset()))
        for name, key in keys.items()
        if claims[key] == 1 and nodes[name].of(version)
    }
    behind = {peer.node for peer in peers.values()}
    told = nodes.get(local, NodeAddresses()).key(version) == own_key
    plain = set() if told else {canonical.cidr(peer.endpoint) for peer in peers.values()}
    ways = {net: name in behind and net not in plain for name, nets in held.items() for net in nets}
    return Plan(peers, ways, frozenset(name for name, key in keys.items() if claims[key] > 1))
