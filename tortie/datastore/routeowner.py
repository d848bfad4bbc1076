"""Who programs the routes to other nodes' blocks: felix or BGP, decided per pool in this one place.

Both rooms ask owner() and both get the same answer from the same data, so there is never a route that
two fight over and never one that nobody sets. Calico leaves that to two fields which nothing compares:
FelixConfiguration and BGPConfiguration each have `programClusterRoutes` (reference: dataplane facts,
2.4). Here a kind of pool that both claim, or neither, goes to its default owner.

VXLAN is always felix's: its routes need neighbours and forwarding entries that only felix has. The
defaults for the other kinds are those of released Calico, BGP for both. With BIRD 2, IPIP is always
felix's, too: Calico's BIRD 1.6 has a patch to send a path through tunl0, Debian's BIRD 2 has no way to.
"""

from enum import Enum

from tortie.core.speaker import Speaker
from tortie.datastore.types.ippool import IPPoolSpec


class Encapsulation(Enum):
    """The kind of a pool; felix/calc/l3_route_resolver.go's order of precedence."""

    NONE = "none"
    IPIP = "ipip"
    VXLAN = "vxlan"


class Owner(Enum):
    BGP = "bgp"
    FELIX = "felix"
    NOBODY = "nobody"  # pools for load balancers only: no pod is there to be reached


_CLAIMED = {  # value of programClusterRoutes -> kinds it claims besides VXLAN
    "Disabled": frozenset[Encapsulation](),
    "EnabledIPIPOnly": frozenset([Encapsulation.IPIP]),
    "EnabledNoEncapOnly": frozenset([Encapsulation.NONE]),
    "Enabled": frozenset([Encapsulation.IPIP, Encapsulation.NONE]),
}


def encapsulation(pool: IPPoolSpec) -> Encapsulation:
    if pool.vxlanMode not in ("", "Never"):
        return Encapsulation.VXLAN
    if pool.ipipMode not in ("", "Never"):
        return Encapsulation.IPIP
    return Encapsulation.NONE


def owner(pool: IPPoolSpec, felix: str | None, bgp: str | None, speaker: Speaker = "exabgp") -> Owner:
    """Who programs the pool's routes, given both `programClusterRoutes` (None or unknown: not said)."""
    if pool.allowedUses and set(pool.allowedUses) == {"LoadBalancer"}:
        return Owner.NOBODY
    kind = encapsulation(pool)
    if kind is Encapsulation.VXLAN or (kind is Encapsulation.IPIP and speaker == "bird"):
        return Owner.FELIX
    felix_says, bgp_says = _opinion(felix, kind), _opinion(bgp, kind)
    if felix_says is not bgp_says:
        return Owner.FELIX if felix_says or bgp_says is False else Owner.BGP
    return Owner.BGP


def _opinion(value: str | None, kind: Encapsulation) -> bool | None:
    """Whether a setting claims the kind; None if it says nothing."""
    claimed = _CLAIMED.get(value or "")
    return None if claimed is None else kind in claimed
