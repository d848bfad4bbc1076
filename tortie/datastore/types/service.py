"""Kubernetes Services and EndpointSlices, with the fields that are read and no others."""

import msgspec

from tortie.datastore.types.meta import ObjectMeta

SERVICE_LABEL = "kubernetes.io/service-name"  # of an EndpointSlice: the Service it belongs to


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Attribute names are the JSON names, as in the v3 types."""


class ServiceSpec(_Part, frozen=True, kw_only=True):
    type: str = "ClusterIP"  # ClusterIP | NodePort | LoadBalancer | ExternalName
    clusterIP: str = ""  # None: headless
    clusterIPs: tuple[str, ...] = ()
    externalIPs: tuple[str, ...] = ()
    loadBalancerIP: str = ""
    externalTrafficPolicy: str = ""  # Cluster | Local; "" reads as Cluster
    ipFamilies: tuple[str, ...] = ()  # IPv4 | IPv6


class Ingress(_Part, frozen=True, kw_only=True):
    ip: str = ""


class LoadBalancer(_Part, frozen=True, kw_only=True):
    ingress: tuple[Ingress, ...] = ()


class ServiceStatus(_Part, frozen=True, kw_only=True):
    loadBalancer: LoadBalancer = LoadBalancer()


class Service(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class Conditions(_Part, frozen=True, kw_only=True):
    ready: bool | None = None  # None: ready


class Endpoint(_Part, frozen=True, kw_only=True):
    conditions: Conditions = Conditions()
    nodeName: str = ""


class EndpointSlice(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    addressType: str = ""  # IPv4 | IPv6 | FQDN
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def service(self) -> tuple[str, str]:
        """(namespace, name) of its Service."""
        return self.metadata.namespace, self.metadata.labels.get(SERVICE_LABEL, "")
