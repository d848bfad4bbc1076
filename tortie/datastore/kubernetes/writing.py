"""What is sent to the API for a write, and what stands in the way of one. Pure."""

from typing import Any, cast

import msgspec

from tortie.core.errors import DatastoreError, OperationNotSupported, ResourceDoesNotExist
from tortie.datastore.backend import KV, MANAGED_ELSEWHERE, Broken
from tortie.datastore.codec import from_plain
from tortie.datastore.keys import Key, ResourceKey
from tortie.datastore.kubernetes import nodes
from tortie.datastore.kubernetes.api import Refused
from tortie.datastore.kubernetes.customresource import to_custom_resource
from tortie.datastore.kubernetes.ipamresource import custom_resource
from tortie.datastore.kubernetes.reading import metadata_of
from tortie.datastore.kubernetes.sources import Place, interpret
from tortie.datastore.types.meta import Resource
from tortie.datastore.types.node import Node


def kind(key: Key) -> str:
    """A resource's; '' of what is none."""
    return key.kind if isinstance(key, ResourceKey) else ""


def refuse_read_only(operation: str, key: Key, place: Place) -> None:
    """Raises OperationNotSupported for what is Kubernetes' own."""
    if not place.source.ours:
        raise OperationNotSupported(operation, key, MANAGED_ELSEWHERE)


def body(
    operation: str,
    key: Key,
    place: Place,
    value: Any,
    revision: str = "",
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The object to send. Raises OperationNotSupported for what is Kubernetes' own."""
    refuse_read_only(operation, key, place)
    if not isinstance(key, ResourceKey):
        return custom_resource(cast(Any, key), value, revision, origin)
    made = to_custom_resource(key, cast(Resource, value), revision)
    if not revision:
        made["metadata"].pop("uid", None)  # the server gives it
    return made


def unbound(value: msgspec.Struct) -> msgspec.Struct:
    """Without the UID of another life of the object."""
    return value.with_metadata(uid="") if isinstance(value, Resource) else value


def preconditions(revision: str) -> dict[str, Any]:
    """What a deletion carries, so that it is of this revision only."""
    return {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"resourceVersion": revision}}


def stored(key: Key, place: Place, raw: bytes) -> KV | None:
    """What is stored now, without a value if that is unreadable; None if it counts as gone."""
    one = interpret(place.source, raw)
    if isinstance(one, Broken):
        return KV(key, None, metadata_of(raw).resourceVersion)
    return one if one is not None and one.value is not None else None


def missing(key: Key, err: Refused) -> DatastoreError:
    """The refusal in the words of the contract: there is no such object, or whatever else it says."""
    return ResourceDoesNotExist(key, err.message) if err.status == 404 else err


def still_as_read(value: Node, current: Node) -> bool:
    """Whether what is ours of a node is what `value` was made from. Who never read it does not compare."""
    if not isinstance(value.origin, dict):
        return True
    return nodes.node_annotations(from_plain(Node, value.origin)) == nodes.node_annotations(current)
