"""v3 resources as custom resources of crd.projectcalico.org/v1, and back. Pure.

The custom resource is another object than the v3 resource it holds, so its metadata are others: ours
stand as JSON in one annotation. What we were given as `origin` keeps fields that this version does not
know. (Reference: Calico data model, 3.2; libcalico-go/lib/backend/k8s/resources/resources.go.)
"""

from typing import Any

import msgspec

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import codec
from tortie.datastore.keys import ResourceKey
from tortie.datastore.kinds import KINDS
from tortie.datastore.kubernetes.metadata import converted_uid
from tortie.datastore.types.meta import API_VERSION, ObjectMeta, Resource

GROUP_VERSION = "crd.projectcalico.org/v1"
WITH_STATUS = {  # kinds whose status is a subresource, which the main write leaves as it is
    "CalicoNodeStatus",
    "IPPool",
    "KubeControllersConfiguration",
    "Tier",
}
_METADATA = "projectcalico.org/metadata"  # the annotation
_OURS = ("projectcalico.org/", "operator.tigera.io/")  # parts of keys that stay on the custom resource
_CR_KINDS = {"IPAMConfiguration": "IPAMConfig"}  # v3 kind -> kind of its custom resource, where it differs
_NAME_KEPT = {"NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"}
_NOT_STORED = ("namespace", "resourceVersion", "uid", "selfLink", "managedFields", "generation")


def cr_kind(kind: str) -> str:
    return _CR_KINDS.get(kind, kind)


# --- to the API ---------------------------------------------------------------------------------


def to_custom_resource(key: ResourceKey, value: Resource, revision: str = "") -> dict[str, Any]:
    """The object to send; with a revision it replaces one that still has it. Raises ValidationError."""
    plain = codec.to_plain(value)
    return {
        **plain,
        "kind": cr_kind(key.kind),
        "apiVersion": GROUP_VERSION,
        "metadata": _stored_metadata(key, plain.get("metadata") or {}, revision),
    }


def _stored_metadata(key: ResourceKey, ours: dict[str, Any], revision: str) -> dict[str, Any]:
    labels, annotations = ours.get("labels") or {}, dict(ours.get("annotations") or {})
    annotations.pop(_METADATA, None)  # the name, as etcd has it; here it stands in the JSON itself
    inner = {name: value for name, value in ours.items() if name not in _NOT_STORED}
    inner |= {"name": ours.get("name", ""), "annotations": annotations}
    inner["ownerReferences"] = [_owner(ref, "to") for ref in ours.get("ownerReferences") or []]
    if key.kind not in _NAME_KEPT:
        del inner["name"]
    inner = {name: value for name, value in inner.items() if value}
    text = msgspec.json.encode(inner, order="sorted").decode()
    stored = {
        "name": key.name,
        "namespace": key.namespace,
        "resourceVersion": revision,
        "uid": converted_uid(str(ours.get("uid") or "")),
        "labels": {name: value for name, value in labels.items() if _is_ours(name)},
        "annotations": {name: value for name, value in annotations.items() if _is_ours(name)}
        | {_METADATA: text},
    }
    return {name: value for name, value in stored.items() if value}


def _is_ours(key: str) -> bool:
    return any(part in key for part in _OURS)


def _owner(ref: dict[str, Any], direction: str) -> dict[str, Any]:
    """An owner that is ours is another object on the other side. Old data name it by its v3 group."""
    wanted, other = (GROUP_VERSION, (API_VERSION,)) if direction == "to" else (
        API_VERSION,
        (GROUP_VERSION, API_VERSION),
    )  # fmt: skip
    if ref.get("apiVersion") not in other:
        return ref
    return ref | {"apiVersion": wanted, "uid": converted_uid(str(ref.get("uid") or ""))}


# --- from the API -------------------------------------------------------------------------------


def from_custom_resource(key: ResourceKey, raw: dict[str, Any]) -> Resource:
    """The v3 resource under `key`. Raises ValidationError naming the field that cannot be understood."""
    metadata = raw.get("metadata") or {}
    body = {name: value for name, value in raw.items() if name != "metadata"}
    body |= {"kind": key.kind, "apiVersion": API_VERSION, "metadata": _read_metadata(key, metadata)}
    return codec.from_plain(KINDS[key.kind].type, body)


def _read_metadata(key: ResourceKey, stored: dict[str, Any]) -> dict[str, Any]:
    annotations = dict(stored.get("annotations") or {})
    text = annotations.pop(_METADATA, "")
    inner = _inner(text)
    name = inner.get("name")
    if key.kind in _NAME_KEPT and name:
        # As in etcd: who reads decides which name counts (rules.py), the key says where it is stored.
        annotations[_METADATA] = msgspec.json.encode({"name": name}).decode()
    read = {field: value for field, value in inner.items() if field not in _NOT_STORED}
    read |= {
        "name": key.name,
        "namespace": key.namespace,
        "resourceVersion": stored.get("resourceVersion", ""),
        "uid": converted_uid(stored.get("uid") or ""),
        "creationTimestamp": inner.get("creationTimestamp") or stored.get("creationTimestamp"),
        "labels": (stored.get("labels") or {}) | (inner.get("labels") or {}),
        "annotations": annotations | _without_metadata(inner.get("annotations")),
        "ownerReferences": [_owner(ref, "from") for ref in inner.get("ownerReferences") or []],
    }
    if stored.get("deletionTimestamp"):
        read["deletionTimestamp"] = stored["deletionTimestamp"]
    return read


def _without_metadata(annotations: dict[str, str] | None) -> dict[str, str]:
    return {name: value for name, value in (annotations or {}).items() if name != _METADATA}


def _inner(text: str) -> dict[str, Any]:
    """Our metadata in the annotation, as plain JSON of the right form. Raises ValidationError."""
    try:
        plain = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        reason = f"malformed JSON: {err}"
        raise ValidationError([FieldError(f"metadata.annotations[{_METADATA}]", text, reason)]) from err
    meta = codec.from_plain(ObjectMeta, plain)
    if not meta.ownerReferences and not meta.finalizers:
        return plain if isinstance(plain, dict) else {}
    return {**plain, "ownerReferences": [dict(ref) for ref in meta.ownerReferences]}
