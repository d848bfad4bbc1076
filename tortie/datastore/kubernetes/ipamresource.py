"""IPAM's objects as custom resources, and back. Pure.

Their values are the same as in etcd with other names for some fields; the key is in the spec, because
a resource's name is only made from it. `deleted: true` marks an object that a Calico component is
about to delete (it deletes in two steps): for us it is gone already.
(Reference: Calico data model, 3.3; libcalico-go/lib/backend/k8s/resources/ipam_*.go.)
"""

import base64
import hashlib
import ipaddress
from typing import Any

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import codec
from tortie.datastore.keys import AffinityKey, BlockKey, HandleKey, IPAMConfigKey, Key, ip_version
from tortie.datastore.kubernetes.customresource import GROUP_VERSION
from tortie.datastore.types import ipam
from tortie.datastore.types.meta import Spec

IPAMKey = BlockKey | AffinityKey | HandleKey | IPAMConfigKey

_KINDS: dict[type[Any], str] = {  # type of key -> kind of its custom resource
    BlockKey: "IPAMBlock",
    AffinityKey: "BlockAffinity",
    HandleKey: "IPAMHandle",
    IPAMConfigKey: "IPAMConfig",
}
_LONGEST_NAME = 253  # characters, of a Kubernetes object
_HASH_DIGITS = 11  # of a name that had to be cut, Calico's
HOST_LABEL = "projectcalico.org/hostname-hash"
TYPE_LABEL = "projectcalico.org/affinity-type"
VERSION_LABEL = "projectcalico.org/ip-version"

# field in etcd -> field here; what is not named is the same
_BLOCK_FIELDS = {"affinity_claim_time": "affinityClaimTime"}
_CONFIG_FIELDS = {"strict_affinity": "strictAffinity", "auto_allocate_blocks": "autoAllocateBlocks"}


class _AffinitySpec(Spec, frozen=True, kw_only=True):
    state: str = ""
    node: str = ""
    type: str = ""
    cidr: str = ""
    deleted: bool | str = ""  # "true" and "false", as the field once was


class HandleSpec(Spec, frozen=True, kw_only=True):
    handleID: str = ""
    block: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it
    deleted: bool = False


# --- names --------------------------------------------------------------------------------------


def resource_name(key: IPAMKey) -> str:
    if isinstance(key, BlockKey):
        return _cidr_name(key.cidr)
    if isinstance(key, AffinityKey):
        return affinity_name(key.host, key.cidr)
    return key.handle.lower() if isinstance(key, HandleKey) else "default"


def _cidr_name(cidr: str) -> str:
    return cidr.replace(".", "-").replace(":", "-").replace("/", "-")


def affinity_name(host: str, cidr: str) -> str:
    network = _cidr_name(cidr)
    name = f"{host}-{network}"
    if len(name) < _LONGEST_NAME:
        return name
    digest = hashlib.sha256(f"{host}+{network}".encode()).hexdigest()[:_HASH_DIGITS]
    return f"{host[: _LONGEST_NAME - 1 - len(network) - _HASH_DIGITS - 2]}-{network}-{digest}"


def host_hash(host: str) -> str:
    """A label's value that says which host: a name may be too long or have other characters."""
    return base64.b32encode(hashlib.sha3_256(host.encode()).digest()).decode().rstrip("=")


def affinity_labels(host: str, owner_type: str, version: int) -> dict[str, str]:
    return {HOST_LABEL: host_hash(host), TYPE_LABEL: owner_type, VERSION_LABEL: str(version)}


# --- to the API ---------------------------------------------------------------------------------


def custom_resource(
    key: IPAMKey, value: Any, revision: str = "", origin: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The object to send; with a revision it replaces one that still has it."""
    metadata: dict[str, Any] = {"name": resource_name(key)}
    if revision:
        metadata["resourceVersion"] = revision
    if isinstance(key, AffinityKey):
        metadata["labels"] = affinity_labels(key.host, key.owner_type, ip_version(key.cidr))
    return {
        "apiVersion": GROUP_VERSION,
        "kind": _KINDS[type(key)],
        "metadata": metadata,
        "spec": to_spec(key, value, origin),
    }


def to_spec(key: IPAMKey, value: Any, origin: dict[str, Any] | None) -> dict[str, Any]:
    """The spec of the object to send, with the unknown fields of what was read before."""
    plain = codec.to_plain(value, origin)
    if isinstance(key, BlockKey):
        spec = _renamed(plain, _BLOCK_FIELDS) | {"strictAffinity": False}  # constant since Calico 3.0
        return {name: field for name, field in spec.items() if name != "affinity" or field is not None}
    if isinstance(key, AffinityKey):
        text = {"deleted": "true" if value.deleted else "false"}
        return plain | text | {"node": key.host, "type": key.owner_type, "cidr": key.cidr}
    if isinstance(key, HandleKey):
        return plain | {"handleID": key.handle}
    return {"strictAffinity": False, "autoAllocateBlocks": False} | _renamed(plain, _CONFIG_FIELDS)


def _renamed(plain: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in plain.items()}


# --- from the API -------------------------------------------------------------------------------


def from_spec(kind: type[Any], spec: dict[str, Any]) -> tuple[Key, Any, dict[str, Any]]:
    """Key, value and origin of a block, affinity, handle or configuration. Raises ValidationError."""
    if kind is ipam.Block:
        plain = _renamed(spec, {here: there for there, here in _BLOCK_FIELDS.items()})
        plain.pop("strictAffinity", None)
        block = codec.from_plain(ipam.Block, plain)
        return BlockKey(_canonical(block.cidr)), block, plain
    if kind is ipam.Affinity:
        return _affinity(spec)
    if kind is ipam.Handle:
        handle = codec.from_plain(HandleSpec, spec)
        value = ipam.Handle(block=handle.block, deleted=handle.deleted)
        rest = {name: field for name, field in spec.items() if name != "handleID"}
        return HandleKey(handle.handleID), value, rest
    plain = _renamed(spec, {here: there for there, here in _CONFIG_FIELDS.items()})
    return IPAMConfigKey(), codec.from_plain(ipam.IPAMConfig, plain), plain


def _affinity(spec: dict[str, Any]) -> tuple[Key, Any, dict[str, Any]]:
    found = codec.from_plain(_AffinitySpec, spec)
    deleted = found.deleted in (True, "true")
    key = AffinityKey(_canonical(found.cidr), found.node, found.type or "host")
    rest = {name: field for name, field in spec.items() if name not in ("node", "type", "cidr")}
    return key, ipam.Affinity(state=found.state, deleted=deleted), rest | {"deleted": deleted}


def _canonical(cidr: str) -> str:
    try:
        return str(ipaddress.ip_network(cidr))
    except ValueError as err:
        raise ValidationError([FieldError("spec.cidr", cidr, str(err))]) from err
