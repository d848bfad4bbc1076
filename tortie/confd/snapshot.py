"""What the datastore holds, as far as BGP needs it: kept up to date from the syncer's updates."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tortie.datastore.keys import AffinityKey, AffinityList, Key, Listing, ResourceKey, ResourceList
from tortie.datastore.nativekeys import ServiceKey, ServiceList, SliceKey, SliceList
from tortie.datastore.syncer import Update
from tortie.datastore.types.bgp import BGPConfiguration, BGPConfigurationSpec, BGPFilter, BGPPeer
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.ipam import Affinity
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.node import Node
from tortie.datastore.types.service import EndpointSlice, Service


@dataclass(slots=True)
class Snapshot:
    """Each dict: name -> object; `affinities`: block -> this node's claim on it.

    `services` and `slices` (EndpointSlices) are Kubernetes' own, `namespace/name` -> object: see beside.py.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    pools: dict[str, IPPool] = field(default_factory=dict)
    bgp: dict[str, BGPConfiguration] = field(default_factory=dict)
    peers: dict[str, BGPPeer] = field(default_factory=dict)
    filters: dict[str, BGPFilter] = field(default_factory=dict)
    felix: dict[str, FelixConfiguration] = field(default_factory=dict)
    affinities: dict[str, Affinity] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    slices: dict[str, EndpointSlice] = field(default_factory=dict)

    def with_services(self, objects: Iterable[tuple[Key, Any]]) -> "Snapshot":
        """The same with the Services and EndpointSlices among these objects."""
        found: dict[type[Key], dict[str, Any]] = {ServiceKey: {}, SliceKey: {}}
        for key, value in objects:
            if isinstance(key, ServiceKey | SliceKey):
                found[type(key)][f"{key.namespace}/{key.name}"] = value
        return replace(self, services=found[ServiceKey], slices=found[SliceKey])

    def apply(self, updates: Iterable[Update]) -> None:
        for update in updates:
            place = self._place(update.key)
            if place is None:
                continue
            table, name = place
            if update.value is None:
                table.pop(name, None)
            else:
                table[name] = update.value

    def _place(self, key: Key) -> tuple[dict[str, Any], str] | None:
        if isinstance(key, AffinityKey):
            return self.affinities, key.cidr
        if not isinstance(key, ResourceKey):
            return None
        tables: dict[str, dict[str, Any]] = {
            "Node": self.nodes,
            "IPPool": self.pools,
            "BGPConfiguration": self.bgp,
            "BGPPeer": self.peers,
            "BGPFilter": self.filters,
            "FelixConfiguration": self.felix,
        }
        table = tables.get(key.kind)
        return None if table is None else (table, key.name)


def listings(node: str) -> list[Listing]:
    """What to follow for a snapshot of this node's view."""
    kinds = ("Node", "IPPool", "BGPConfiguration", "BGPPeer", "BGPFilter", "FelixConfiguration")
    return [*(ResourceList(kind) for kind in kinds), AffinityList(host=node)]


def service_listings(snapshot: Snapshot, cluster_ips: str) -> list[Listing]:
    """What to follow of services: nothing, unless some range of theirs is announced."""
    default = snapshot.bgp.get("default")
    spec = default.spec if default else BGPConfigurationSpec()
    ranges = (*spec.serviceClusterIPs, *spec.serviceExternalIPs, *spec.serviceLoadBalancerIPs)
    # A headless service has no address to announce, and often the most endpoints.
    return [ServiceList(), SliceList(headless=False)] if ranges or cluster_ips else []
