"""Kubernetes Pods, and what is read for its metadata alone: the fields that are read and no others."""

import msgspec

from tortie.datastore.types.meta import ObjectMeta


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Attribute names are the JSON names, as in the v3 types."""


class Metadata(_Part, frozen=True, kw_only=True):
    """What every object has: here to read namespaces and service accounts, whose specs do not matter."""

    metadata: ObjectMeta = ObjectMeta()


class ContainerPort(_Part, frozen=True, kw_only=True):
    name: str = ""
    protocol: str = ""
    containerPort: int = 0
    hostPort: int = 0
    hostIP: str = ""


class Container(_Part, frozen=True, kw_only=True):
    ports: tuple[ContainerPort, ...] = ()


class PodIP(_Part, frozen=True, kw_only=True):
    ip: str = ""


class PodSpec(_Part, frozen=True, kw_only=True):
    nodeName: str = ""
    hostNetwork: bool = False
    serviceAccountName: str = ""
    containers: tuple[Container, ...] = ()
    initContainers: tuple[Container, ...] = ()


class PodStatus(_Part, frozen=True, kw_only=True):
    phase: str = ""
    reason: str = ""
    podIP: str = ""
    podIPs: tuple[PodIP, ...] = ()


class Pod(_Part, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
