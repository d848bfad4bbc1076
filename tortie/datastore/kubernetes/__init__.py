"""Objects of the Kubernetes API as the v3 resources they stand for, converted as Calico converts them.

The face, all pure:
- `convert_network_policy(raw)`: networking.k8s.io/v1 NetworkPolicy -> NetworkPolicy.
- `convert_cluster_network_policy(raw)`: policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy ->
  GlobalNetworkPolicy.
- `namespace_profile(raw)` and `service_account_profile(raw)`: the profiles that carry their labels.
- `Conversion`: a policy, and the rules of it that could not be converted.

`raw` is decoded JSON. Reference: libcalico-go/lib/backend/k8s/conversion.
"""

from tortie.datastore.kubernetes.clusternetworkpolicy import convert_cluster_network_policy
from tortie.datastore.kubernetes.conversion import Conversion, RefusedRule
from tortie.datastore.kubernetes.networkpolicy import convert_network_policy
from tortie.datastore.kubernetes.profiles import namespace_profile, service_account_profile

__all__ = [
    "Conversion",
    "RefusedRule",
    "convert_cluster_network_policy",
    "convert_network_policy",
    "namespace_profile",
    "service_account_profile",
]
