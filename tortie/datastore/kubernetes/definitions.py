"""The definitions of our custom resources, crd.projectcalico.org/v1, made from the types that read them.

Schemas say what form an object has, so that `kubectl apply` refuses what nobody could read. Unknown
fields are kept everywhere: a newer version may have written them. What the values may be is checked by
calicoctl and, again, by whoever reads them.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from tortie.core.errors import DatastoreUnreachable
from tortie.datastore.kinds import KINDS
from tortie.datastore.kubernetes.api import Api, Refused
from tortie.datastore.kubernetes.customresource import WITH_STATUS, cr_kind
from tortie.datastore.kubernetes.ipamresource import HandleSpec
from tortie.datastore.types import ipam
from tortie.datastore.types.meta import ASNumber

GROUP = "crd.projectcalico.org"
_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_SERVED_AFTER = 60.0  # seconds; a server has worked out all definitions in ten at most
_LOOK = 0.2  # seconds between two looks
# Kinds that the API has of its own: nodes, pods, namespaces and service accounts, KubeVirt's migrations.
_NO_CRD = {"Node", "WorkloadEndpoint", "Profile", "LiveMigration"}
_SHORT_NAMES = {  # kind -> what kubectl also understands
    "BGPConfiguration": ["bgpconfig", "bgpconfigs"],
    "BlockAffinity": ["affinity", "affinities"],
    "ClusterInformation": ["clusterinfo", "clusterinfos"],
    "FelixConfiguration": ["felixconfig", "felixconfigs"],
    "GlobalNetworkPolicy": ["gnp", "cgnp"],
    "GlobalNetworkSet": ["gns"],
    "HostEndpoint": ["hep", "heps"],
    "KubeControllersConfiguration": ["kcc", "kccs"],
    "NetworkPolicy": ["cnp", "caliconetworkpolicy"],
    "StagedGlobalNetworkPolicy": ["sgnp"],
    "StagedKubernetesNetworkPolicy": ["sknp"],
    "StagedNetworkPolicy": ["scnp", "snp"],
}
_COLUMNS: dict[str, list[tuple[str, str, str]]] = {  # kind -> columns of `kubectl get`: title, type, path
    "BGPConfiguration": [("Mesh", "boolean", "nodeToNodeMeshEnabled"), ("ASN", "string", "asNumber")],
    "BGPPeer": [("Peer IP", "string", "peerIP"), ("Node", "string", "node"), ("ASN", "string", "asNumber")],
    "BlockAffinity": [("CIDR", "string", "cidr"), ("Node", "string", "node"), ("State", "string", "state")],
    "CalicoNodeStatus": [("Node", "string", "node")],
    "ClusterInformation": [
        ("Version", "string", "calicoVersion"),
        ("Ready", "boolean", "datastoreReady"),
        ("GUID", "string", "clusterGUID"),
    ],
    "GlobalNetworkPolicy": [("Tier", "string", "tier"), ("Order", "number", "order")],
    "HostEndpoint": [("Node", "string", "node"), ("Interface", "string", "interfaceName")],
    "IPAMBlock": [("CIDR", "string", "cidr"), ("Affinity", "string", "affinity")],
    "IPAMConfiguration": [("Strict", "boolean", "strictAffinity")],
    "IPAMHandle": [("Handle", "string", "handleID")],
    "IPPool": [
        ("CIDR", "string", "cidr"),
        ("IPIP", "string", "ipipMode"),
        ("VXLAN", "string", "vxlanMode"),
        ("NAT", "boolean", "natOutgoing"),
        ("Disabled", "boolean", "disabled"),
        ("Selector", "string", "nodeSelector"),
    ],
    "NetworkPolicy": [("Tier", "string", "tier"), ("Order", "number", "order")],
    "StagedGlobalNetworkPolicy": [("Tier", "string", "tier"), ("Action", "string", "stagedAction")],
    "StagedNetworkPolicy": [("Tier", "string", "tier"), ("Action", "string", "stagedAction")],
    "Tier": [("Order", "number", "order"), ("Default action", "string", "defaultAction")],
}


class BlockSpec(ipam.Block, frozen=True, kw_only=True):
    """As the Kubernetes datastore names its fields; strictAffinity is a relic that Calico still writes."""

    affinityClaimTime: str = ""
    strictAffinity: bool = False


_IPAM: dict[str, tuple[str, type[msgspec.Struct]]] = {  # kind -> plural, spec
    "IPAMBlock": ("ipamblocks", BlockSpec),
    "IPAMHandle": ("ipamhandles", HandleSpec),
}


def definitions() -> list[dict[str, Any]]:
    """All of them, in the order of their names."""
    found = []
    for kind, row in KINDS.items():
        if kind not in _NO_CRD:
            fields = {field.name: field.type for field in _struct(row.type).fields}
            plural = "ipamconfigs" if kind == "IPAMConfiguration" else row.plural
            status = schema(fields["status"]) if kind in WITH_STATUS and "status" in fields else None
            if kind in WITH_STATUS and status is None:
                status = _anything()
            found.append(_definition(kind, plural, row.namespaced, schema(fields["spec"]), status))
    for kind, (plural, spec) in _IPAM.items():
        found.append(_definition(kind, plural, False, schema(inspect.type_info(spec)), None))
    return sorted(found, key=lambda one: str(one["metadata"]["name"]))


def _struct(kind: type[msgspec.Struct]) -> inspect.StructType:
    info = inspect.type_info(kind)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{kind} is no struct")
    return info


def _definition(
    kind: str, plural: str, namespaced: bool, spec: dict[str, Any], status: dict[str, Any] | None
) -> dict[str, Any]:
    properties = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": spec,
    }
    version: dict[str, Any] = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": properties | ({"status": status} if status else {}),
                "x-kubernetes-preserve-unknown-fields": True,
            }
        },
    }
    if status:
        version["subresources"] = {"status": {}}
    version["additionalPrinterColumns"] = [
        *(
            {"name": title, "type": type_, "jsonPath": f".spec.{path}"}
            for title, type_, path in _COLUMNS.get(kind, [])
        ),
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
    name = cr_kind(kind)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": plural,
                "singular": name.lower(),
                **({"shortNames": _SHORT_NAMES[kind]} if kind in _SHORT_NAMES else {}),
            },
            "scope": "Namespaced" if namespaced else "Cluster",
            "preserveUnknownFields": False,
            "versions": [version],
        },
    }


_SCALARS: list[tuple[Any, dict[str, Any]]] = [  # types -> their schema
    ((inspect.StrType, inspect.LiteralType), {"type": "string"}),
    (inspect.IntType, {"type": "integer", "format": "int64"}),
    (inspect.FloatType, {"type": "number"}),
    (inspect.BoolType, {"type": "boolean"}),
]


# --- schemas ------------------------------------------------------------------------------------


def schema(info: inspect.Type) -> dict[str, Any]:
    """The structural schema of a type."""
    if isinstance(info, inspect.UnionType):
        return _union([one for one in info.types if not isinstance(one, inspect.NoneType)], info)
    if isinstance(info, inspect.StructType):
        required = [field.encode_name for field in info.fields if field.required]
        return {
            "type": "object",
            "properties": {field.encode_name: schema(field.type) for field in info.fields},
            **({"required": required} if required else {}),
            "x-kubernetes-preserve-unknown-fields": True,
        }
    if isinstance(info, inspect.DictType):
        values = schema(info.value_type)
        if not isinstance(info.value_type, inspect.AnyType):
            return {"type": "object", "additionalProperties": values, "nullable": True}
        return {**_anything(), "nullable": True}
    if isinstance(info, inspect.VarTupleType | inspect.ListType):
        return {"type": "array", "items": schema(info.item_type), "nullable": True}
    if isinstance(info, inspect.CustomType) and info.cls is ASNumber:
        return {"x-kubernetes-int-or-string": True}  # read as 65000, "65000" and "0.65000"
    return _scalar(info)


def _scalar(info: inspect.Type) -> dict[str, Any]:
    """Null is what Go writes for a pointer that points nowhere; readers take it for absent."""
    for kinds, found in _SCALARS:
        if isinstance(info, kinds):
            return {**found, "nullable": True}
    if isinstance(info, inspect.AnyType):
        return {"x-kubernetes-preserve-unknown-fields": True}
    raise TypeError(f"no schema for {info}")


def _union(types: list[inspect.Type], info: inspect.UnionType) -> dict[str, Any]:
    if len(types) == 1:
        return schema(types[0]) | {"nullable": True}
    kinds = {type(one) for one in types}
    if kinds == {inspect.IntType, inspect.StrType}:
        return {"x-kubernetes-int-or-string": True}
    if kinds == {inspect.IntType, inspect.FloatType}:
        return {"type": "number", "nullable": True}
    if kinds == {inspect.BoolType, inspect.StrType}:
        return {"type": "string", "nullable": True}  # BlockAffinity's `deleted`, text in this datastore
    raise TypeError(f"no schema for {info}")


def _anything() -> dict[str, Any]:
    return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


# --- in a cluster -------------------------------------------------------------------------------


async def install(api: Api) -> None:
    """Create all definitions, replace those of other versions, and wait until all are served.

    Raises DatastoreError. (calicoctl/calicoctl/commands/datastore/migrate/import.go, importCRDs.)
    """
    for one in definitions():
        await _put(api, one)
    try:
        async with asyncio.timeout(_SERVED_AFTER):
            for one in definitions():
                plural = one["spec"]["names"]["plural"]
                while not await _is_served(api, plural):  # noqa: ASYNC110 - a server tells nothing
                    await asyncio.sleep(_LOOK)
    except TimeoutError:
        raise DatastoreUnreachable("the definitions are there, but not served yet") from None


async def _put(api: Api, definition: Mapping[str, Any]) -> None:
    try:
        await api.create(_PATH, definition)
    except Refused as err:
        if err.reason != "AlreadyExists":
            raise
        path = f"{_PATH}/{definition['metadata']['name']}"
        there = msgspec.json.decode(await api.get(path))["metadata"]["resourceVersion"]
        metadata = {**definition["metadata"], "resourceVersion": there}
        await api.replace(path, {**definition, "metadata": metadata})


async def _is_served(api: Api, plural: str) -> bool:
    try:
        await api.get(f"/apis/{GROUP}/v1/{plural}", {"limit": "1"})
    except Refused as err:
        if err.status != 404:
            raise
        return False
    return True
