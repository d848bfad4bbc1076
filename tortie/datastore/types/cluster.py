"""ClusterInformation, FelixConfiguration and KubeControllersConfiguration.

FelixConfiguration has very many fields that are read by name in one place (the table of its parameters), so
its spec is plain JSON here and is checked by that table.
"""

from typing import Any

from msgspec import UNSET, UnsetType

from tortie.datastore.types.meta import Resource, Spec


class ClusterInformationSpec(Spec, frozen=True, kw_only=True):
    clusterGUID: str = ""
    clusterType: str = ""
    calicoVersion: str = ""
    datastoreReady: bool | None = None
    variant: str = ""


class ClusterInformation(Resource, frozen=True, kw_only=True, tag="ClusterInformation"):
    spec: ClusterInformationSpec = ClusterInformationSpec()


class FelixConfiguration(Resource, frozen=True, kw_only=True, tag="FelixConfiguration"):
    spec: dict[str, Any] = {}


class HostEndpointTemplate(Spec, frozen=True, kw_only=True):
    generateName: str = ""
    interfaceCIDRs: tuple[str, ...] = ()
    interfacePattern: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    nodeSelector: str = ""


class AutoHostEndpoints(Spec, frozen=True, kw_only=True):
    autoCreate: str = ""  # Enabled | Disabled, as are the other switches here
    createDefaultHostEndpoint: str = ""
    templates: tuple[HostEndpointTemplate, ...] = ()


class NodeController(Spec, frozen=True, kw_only=True):
    reconcilerPeriod: str | None = None
    syncLabels: str = ""
    hostEndpoint: AutoHostEndpoints | None = None
    leakGracePeriod: str | None = None


class PeriodicController(Spec, frozen=True, kw_only=True):
    reconcilerPeriod: str | None = None


class LoadBalancerController(Spec, frozen=True, kw_only=True):
    assignIPs: str = ""  # AllServices | RequestedServicesOnly


class MigrationController(Spec, frozen=True, kw_only=True):
    policyNameMigrator: str = ""


class Controllers(Spec, frozen=True, kw_only=True):
    """A controller that is absent does not run."""

    node: NodeController | None = None
    policy: PeriodicController | None = None
    workloadEndpoint: PeriodicController | None = None
    serviceAccount: PeriodicController | None = None
    namespace: PeriodicController | None = None
    loadBalancer: LoadBalancerController | None = None
    migration: MigrationController | None = None


class KubeControllersConfigurationSpec(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """`controllers` is always written."""

    logSeverityScreen: str | UnsetType = UNSET
    healthChecks: str | UnsetType = UNSET
    etcdV3CompactionPeriod: str | UnsetType = UNSET
    prometheusMetricsPort: int | UnsetType = UNSET
    controllers: Controllers = Controllers()
    debugProfilePort: int | UnsetType = UNSET


class KubeControllersConfiguration(Resource, frozen=True, kw_only=True, tag="KubeControllersConfiguration"):
    spec: KubeControllersConfigurationSpec = KubeControllersConfigurationSpec()
    status: dict[str, Any] = {}
