"""Services, what is behind them, and Secrets, as they are read from the API. Pure.

Behind a service are its EndpointSlices; a cluster that is too old for these has one Endpoints object
for each service, which is read as the one slice that says the same.
"""

from collections.abc import Iterator

import msgspec

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import codec
from tortie.datastore.backend import KV
from tortie.datastore.kubernetes import types as kube
from tortie.datastore.nativekeys import SecretKey, ServiceKey, SliceKey
from tortie.datastore.types.service import (
    SERVICE_LABEL,
    Conditions,
    Endpoint,
    EndpointSlice,
    Secret,
    Service,
    family_of,
)

DISCOVERY = "/apis/discovery.k8s.io"
_VERSIONS = ("v1", "v1beta1")  # of it, the better first


class _GroupVersion(msgspec.Struct, frozen=True):
    version: str = ""


class _Group(msgspec.Struct, frozen=True):
    versions: tuple[_GroupVersion, ...] = ()


def slices_version(group: bytes | None) -> str:
    """The version of EndpointSlices to use, of the API's answer about their group; '' if there is none."""
    served = {one.version for one in codec.decode(_Group, group).versions} if group else set()
    return next((version for version in _VERSIONS if version in served), "")


def read_service(raw: bytes) -> KV:
    """Raises ValidationError, as all below."""
    found = codec.decode(Service, raw)
    meta = found.metadata
    return KV(ServiceKey(meta.namespace, meta.name), found, meta.resourceVersion)


def read_slice(raw: bytes) -> KV:
    found = codec.decode(EndpointSlice, raw)
    meta = found.metadata
    return KV(SliceKey(meta.namespace, meta.name), found, meta.resourceVersion)


def read_endpoints(raw: bytes) -> KV:
    """An Endpoints object, which has its service's name and one family."""
    found = codec.decode(kube.Endpoints, raw)
    meta, endpoints = found.metadata, tuple(_endpoints(found))
    family = family_of(endpoints[0].addresses[0]) if endpoints else ""
    labels = meta.labels | {SERVICE_LABEL: meta.name}
    same = EndpointSlice(
        metadata=msgspec.structs.replace(meta, labels=labels), addressType=family, endpoints=endpoints
    )
    return KV(SliceKey(meta.namespace, meta.name), same, meta.resourceVersion)


def _endpoints(found: kube.Endpoints) -> Iterator[Endpoint]:
    for subset in found.subsets:
        for ready, addresses in ((True, subset.addresses), (False, subset.notReadyAddresses)):
            for one in addresses:
                yield Endpoint(
                    addresses=(one.ip,),
                    conditions=Conditions(ready=ready),
                    nodeName=one.nodeName,
                    ports=subset.ports,
                )


def read_secret(raw: bytes) -> KV:
    """What is wrong with one is said without any of its content."""
    try:
        found = codec.decode(Secret, raw)
    except ValidationError as err:
        raise ValidationError([FieldError("Secret", "…", "cannot be read")]) from err
    meta = found.metadata
    return KV(SecretKey(meta.namespace, meta.name), found, meta.resourceVersion)
