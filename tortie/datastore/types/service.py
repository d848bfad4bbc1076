"""Kubernetes Services, EndpointSlices and Secrets, with the fields that are read and no others."""

from typing import Any

import msgspec

from tortie.datastore.types.meta import ObjectMeta

SERVICE_LABEL = "kubernetes.io/service-name"  # of an EndpointSlice: the Service it belongs to
_HOSTNAME_LABEL = "kubernetes.io/hostname"  # in an endpoint's topology: its node, before nodeName was


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Attribute names are the JSON names, as in the v3 types."""


class ServiceSpec(_Part, frozen=True, kw_only=True):
    type: str = "ClusterIP"  # ClusterIP | NodePort | LoadBalancer | ExternalName
    clusterIP: str = ""  # None: headless
    clusterIPs: tuple[str, ...] = ()
    externalIPs: tuple[str, ...] = ()
    loadBalancerIP: str = ""
    loadBalancerClass: str = ""  # whose load balancer it is to be; "": anybody's
    ipFamilyPolicy: str = ""  # SingleStack | PreferDualStack | RequireDualStack
    externalTrafficPolicy: str = ""  # Cluster | Local; "" reads as Cluster
    ipFamilies: tuple[str, ...] = ()  # IPv4 | IPv6; servers before 1.21 do not say

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its cluster IPs; servers before 1.20 know one only."""
        return self.clusterIPs or (self.clusterIP,)

    @property
    def families(self) -> tuple[str, ...]:
        """IPv4 and IPv6, as far as the service has an address of it."""
        return self.ipFamilies or tuple(map(family_of, self.addresses))


class Ingress(_Part, frozen=True, kw_only=True):
    """`hostname` and the others are what somebody else's load balancer has; kept when we write ours."""

    ip: str = ""
    hostname: str = ""
    ipMode: str = ""
    ports: tuple[dict[str, Any], ...] = ()


class LoadBalancer(_Part, frozen=True, kw_only=True):
    ingress: tuple[Ingress, ...] = ()


class ServiceStatus(_Part, frozen=True, kw_only=True):
    loadBalancer: LoadBalancer = LoadBalancer()


class Service(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


# --- what is behind a service -------------------------------------------------------------------


class Conditions(_Part, frozen=True, kw_only=True):
    ready: bool | None = None  # None: ready


class EndpointPort(_Part, frozen=True, kw_only=True):
    port: int | None = None  # None: any
    protocol: str = "TCP"  # TCP | UDP | SCTP


class Endpoint(_Part, frozen=True, kw_only=True):
    addresses: tuple[str, ...] = ()
    conditions: Conditions = Conditions()
    nodeName: str = ""
    topology: dict[str, str] = {}  # of v1beta1
    ports: tuple[EndpointPort, ...] | None = None  # instead of its slice's; only of old Endpoints

    @property
    def node(self) -> str:
        return self.nodeName or self.topology.get(_HOSTNAME_LABEL, "")


class EndpointSlice(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    addressType: str = ""  # IPv4 | IPv6 | FQDN
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()

    @property
    def service(self) -> tuple[str, str]:
        """(namespace, name) of its Service."""
        return self.metadata.namespace, self.metadata.labels.get(SERVICE_LABEL, "")


def family_of(address: str) -> str:
    """IPv4 or IPv6, as an EndpointSlice's addressType has it."""
    return "IPv6" if ":" in address else "IPv4"


# --- passwords ----------------------------------------------------------------------------------


class Secret(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, bytes] = {}  # key -> value; base64 in JSON
