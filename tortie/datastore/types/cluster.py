"""ClusterInformation, FelixConfiguration and KubeControllersConfiguration.

The two configuration kinds have very many fields that are read by name in one place each (their
parameter tables), so their specs are plain JSON here and are checked by those tables.
"""

from typing import Any

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


class KubeControllersConfiguration(Resource, frozen=True, kw_only=True, tag="KubeControllersConfiguration"):
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}
