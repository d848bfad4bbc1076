"""Which defaulting and which checks belong to which kind."""

from collections.abc import Callable
from typing import Any, TypeVar

from tortie.core.errors import ValidationError
from tortie.datastore.types.meta import Resource
from tortie.datastore.validate import bgp, bgpfilter, cluster, endpoint, ippool, kubepolicy, node, policy
from tortie.datastore.validate.fields import Check, Problems
from tortie.datastore.validate.metadata import check_metadata

R = TypeVar("R", bound=Resource)


# The table of Felix parameters is large: only who meets a FelixConfiguration pays for it.


def _felix_defaults(configuration: Any) -> Any:
    from tortie.datastore.validate import felix

    return felix.defaults(configuration)


def _felix_check(problems: Problems, path: str, configuration: Any) -> None:
    from tortie.datastore.validate import felix

    felix.configuration(problems, path, configuration)


_DEFAULTS: dict[str, Callable[[Any], Any]] = {  # kind name -> fills in what a writer may leave out
    "BGPConfiguration": bgp.configuration_defaults,
    "BGPFilter": bgpfilter.filter_defaults,
    "BGPPeer": bgp.peer_defaults,
    "FelixConfiguration": _felix_defaults,
    "GlobalNetworkPolicy": policy.policy_defaults,
    "HostEndpoint": endpoint.host_defaults,
    "IPPool": ippool.pool_defaults,
    "IPReservation": ippool.reservation_defaults,
    "KubeControllersConfiguration": cluster.controllers_defaults,
    "NetworkPolicy": policy.policy_defaults,
    "Profile": policy.profile_defaults,
    "StagedGlobalNetworkPolicy": policy.policy_defaults,
    "StagedKubernetesNetworkPolicy": kubepolicy.defaults,
    "StagedNetworkPolicy": policy.policy_defaults,
    "Tier": policy.tier_defaults,
    "WorkloadEndpoint": endpoint.workload_defaults,
}
_CHECKS: dict[str, Check] = {  # kind name -> what is wrong with a whole resource, but for its metadata
    "BGPConfiguration": bgp.configuration,
    "BGPFilter": bgpfilter.bgp_filter,
    "BGPPeer": bgp.peer,
    "BlockAffinity": ippool.affinity,
    "CalicoNodeStatus": node.node_status,
    "ClusterInformation": cluster.information,
    "FelixConfiguration": _felix_check,
    "GlobalNetworkPolicy": policy.global_policy,
    "GlobalNetworkSet": policy.network_set,
    "HostEndpoint": endpoint.host,
    "IPAMConfiguration": ippool.ipam,
    "IPPool": ippool.pool,
    "IPReservation": ippool.reservation,
    "KubeControllersConfiguration": cluster.controllers,
    "LiveMigration": endpoint.migration,
    "NetworkPolicy": policy.network_policy,
    "NetworkSet": policy.network_set,
    "Node": node.node,
    "Profile": policy.profile,
    "StagedGlobalNetworkPolicy": policy.staged_global_policy,
    "StagedKubernetesNetworkPolicy": kubepolicy.staged_policy,
    "StagedNetworkPolicy": policy.staged_policy,
    "Tier": policy.tier,
    "WorkloadEndpoint": endpoint.workload,
}


def with_defaults(resource: R) -> R:
    """A copy with every default that Calico writes into the stored object, and values in Calico's spelling.

    Never refuses anything: what is wrong stays as it is, for check() to name.
    """
    fill = _DEFAULTS.get(resource.KIND)
    return fill(resource) if fill else resource


def check(resource: Resource) -> None:
    """Raises ValidationError naming every wrong field of the resource."""
    problems = Problems()
    check_metadata(resource, problems)
    _CHECKS[resource.KIND](problems, "", resource)
    if problems.found:
        raise ValidationError(problems.found)
