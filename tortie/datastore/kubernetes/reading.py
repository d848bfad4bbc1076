"""What objects of the API are of ours, from their JSON, and the keys of those that cannot be read. Pure.

Everything here raises ValidationError for what cannot be understood.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import structs

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import codec
from tortie.datastore.backend import KV
from tortie.datastore.keys import BlockKey, Key, ResourceKey
from tortie.datastore.kubernetes import nodes, pods
from tortie.datastore.kubernetes import types as kube
from tortie.datastore.kubernetes.clusternetworkpolicy import convert_cluster_network_policy
from tortie.datastore.kubernetes.customresource import from_custom_resource
from tortie.datastore.kubernetes.ipamresource import from_spec
from tortie.datastore.kubernetes.networkpolicy import convert_network_policy
from tortie.datastore.kubernetes.profiles import namespace_profile, service_account_profile
from tortie.datastore.rules import KUBERNETES_POLICY_PREFIX
from tortie.datastore.types.meta import ObjectMeta, Resource

CLUSTER_POLICY_PREFIX = "kcnp."  # of a ClusterNetworkPolicy's name, then its tier: Calico 3.32's
# A block's name as a CIDR: no other separator than the dash is left (ipamresource.resource_name).
_BLOCK_NAME = re.compile(r"(?:([0-9]+)-([0-9]+)-([0-9]+)-([0-9]+)|([0-9a-f-]+?))-([0-9]+)", re.ASCII)


class _Meta(msgspec.Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


def metadata_of(raw: bytes) -> ObjectMeta:
    """Raises ValidationError."""
    return codec.decode(_Meta, raw).metadata


def _kv(key: ResourceKey, value: Resource | None, revision: str) -> KV:
    return KV(key, value and value.with_metadata(resourceVersion=revision), revision)


def _plain(raw: bytes) -> dict[str, Any]:
    try:
        plain = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ValidationError([FieldError("JSON", None, f"malformed: {err}")]) from err
    if not isinstance(plain, dict):
        raise ValidationError([FieldError("JSON", None, "expected an object")])
    return plain


def read_custom(kind: str, raw: bytes) -> KV:
    plain = _plain(raw)
    meta = codec.from_plain(_Meta, {"metadata": plain.get("metadata")}).metadata
    key = ResourceKey(kind, meta.name, meta.namespace)
    return _kv(key, from_custom_resource(key, plain), meta.resourceVersion)


def read_ipam(kind: type[Any], raw: bytes) -> KV:
    plain = _plain(raw)
    meta = codec.from_plain(_Meta, {"metadata": plain.get("metadata")}).metadata
    spec = plain.get("spec") or {}
    if not isinstance(spec, dict):
        raise ValidationError([FieldError(f"{kind.__name__}.spec", spec, "expected an object")])
    key, value, origin = from_spec(kind, spec)
    gone = getattr(value, "deleted", False)
    return KV(key, None if gone else value, meta.resourceVersion, origin)


def read_node(use_pod_cidr: bool, raw: bytes) -> KV:
    found = codec.decode(kube.Node, raw)
    key = ResourceKey("Node", found.metadata.name)
    node = nodes.calico_node(found, use_pod_cidr)
    # What it was read as tells later whether somebody else has changed it (see backend.py).
    return _kv(key, structs.replace(node, origin=codec.to_plain(node)), found.metadata.resourceVersion)


def read_endpoint(raw: bytes) -> KV | None:
    pod = pods.decode_pod(raw)
    key = pods.endpoint_key(pod)
    if key is None:
        return None
    return _kv(key, pods.pod_endpoint(key, pod), pod.metadata.resourceVersion)


def read_namespace_profile(raw: bytes) -> KV:
    return _of_profile(namespace_profile(_plain(raw)))


def read_account_profile(raw: bytes) -> KV:
    return _of_profile(service_account_profile(_plain(raw)))


def _of_profile(profile: Any) -> KV:
    key = ResourceKey("Profile", profile.name)
    return KV(key, profile, profile.revision)


def read_network_policy(raw: bytes) -> KV:
    plain = _plain(raw)
    found = convert_network_policy(plain)
    meta = metadata_of(raw)
    key = ResourceKey("NetworkPolicy", KUBERNETES_POLICY_PREFIX + meta.name, meta.namespace)
    policy = found.policy and found.policy.with_metadata(name=key.name)
    return _kv(key, policy, meta.resourceVersion)


def read_cluster_policy(raw: bytes) -> KV | None:
    found = convert_cluster_network_policy(_plain(raw))
    if found.policy is None:
        return None
    meta = metadata_of(raw)
    key = ResourceKey("GlobalNetworkPolicy", f"{CLUSTER_POLICY_PREFIX}{found.policy.spec.tier}.{meta.name}")
    return _kv(key, found.policy.with_metadata(name=key.name), meta.resourceVersion)


# --- keys of what cannot be read ----------------------------------------------------------------


def named(kind: str) -> Callable[[str, str], Key | None]:
    return lambda namespace, name: ResourceKey(kind, name, namespace)


def profile_key(name: str) -> Key:
    return ResourceKey("Profile", name)


def policy_key(namespace: str, name: str) -> Key:
    return ResourceKey("NetworkPolicy", KUBERNETES_POLICY_PREFIX + name, namespace)


def block_key(_namespace: str, name: str) -> Key | None:
    match = _BLOCK_NAME.fullmatch(name)
    if match is None:
        return None
    address = ".".join(match.group(1, 2, 3, 4)) if match[1] else match[5].replace("-", ":")
    return BlockKey(f"{address}/{match[6]}")
