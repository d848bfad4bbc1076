"""The table of v3 kinds: where each is stored and whether it is namespaced. Everything else about a
kind (columns, validation, aliases) hangs on its name in the place that needs it.
"""

from dataclasses import dataclass

from tortie.datastore.types import bgp, cluster, endpoint, ippool, node, policy
from tortie.datastore.types.meta import Resource


@dataclass(frozen=True, slots=True)
class Kind:
    """`plural` is the etcd path segment and the CRD's name."""

    type: type[Resource]
    plural: str
    namespaced: bool = False

    @property
    def name(self) -> str:
        return self.type.KIND


_ALL = [
    Kind(bgp.BGPConfiguration, "bgpconfigurations"),
    Kind(bgp.BGPFilter, "bgpfilters"),
    Kind(bgp.BGPPeer, "bgppeers"),
    Kind(ippool.BlockAffinity, "blockaffinities"),
    Kind(node.CalicoNodeStatus, "caliconodestatuses"),
    Kind(cluster.ClusterInformation, "clusterinformations"),
    Kind(cluster.FelixConfiguration, "felixconfigurations"),
    Kind(policy.GlobalNetworkPolicy, "globalnetworkpolicies"),
    Kind(policy.GlobalNetworkSet, "globalnetworksets"),
    Kind(endpoint.HostEndpoint, "hostendpoints"),
    Kind(ippool.IPAMConfiguration, "ipamconfigurations"),
    Kind(ippool.IPPool, "ippools"),
    Kind(ippool.IPReservation, "ipreservations"),
    Kind(cluster.KubeControllersConfiguration, "kubecontrollersconfigurations"),
    Kind(endpoint.LiveMigration, "livemigrations", namespaced=True),
    Kind(policy.NetworkPolicy, "networkpolicies", namespaced=True),
    Kind(policy.NetworkSet, "networksets", namespaced=True),
    Kind(node.Node, "nodes"),
    Kind(policy.Profile, "profiles"),
    Kind(policy.StagedGlobalNetworkPolicy, "stagedglobalnetworkpolicies"),
    Kind(policy.StagedKubernetesNetworkPolicy, "stagedkubernetesnetworkpolicies", namespaced=True),
    Kind(policy.StagedNetworkPolicy, "stagednetworkpolicies", namespaced=True),
    Kind(policy.Tier, "tiers"),
    Kind(endpoint.WorkloadEndpoint, "workloadendpoints", namespaced=True),
]

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}  # kind name -> its row
BY_PLURAL: dict[str, Kind] = {kind.plural: kind for kind in _ALL}  # etcd path segment -> its row
