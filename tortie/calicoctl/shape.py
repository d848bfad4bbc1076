"""Plain data of a file into the shape of a resource's type, as Go's strict JSON decoding does it. Pure.

Field names match in any case; an unquoted number or boolean where text belongs becomes text (`rack: 7`);
a field the type does not have is an error. What the types cannot know (values) is validation's.
"""

from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import UnsetType, structs

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.gonumber import format_float
from tortie.datastore.types.meta import ObjectMeta, Resource

# Written by Kubernetes and by older tools, of no meaning to a datastore client; Go knows and drops them.
_IGNORED_METADATA = {"managedFields", "selfLink"}

# The shape of specs that are plain JSON in datastore.types: an object's fields, each with its own shape.
# A list has the shape of its items; None is a value, or an object with free names.
Shape = Mapping[str, Any] | None

_LABEL_SELECTOR = {
    "matchLabels": None,
    "matchExpressions": {"key": None, "operator": None, "values": None},
}
_PEER = {
    "podSelector": _LABEL_SELECTOR,
    "namespaceSelector": _LABEL_SELECTOR,
    "ipBlock": {"cidr": None, "except": None},
}
_PORT = {"protocol": None, "port": None, "endPort": None}
_PERIODIC = {"reconcilerPeriod": None}
_TEMPLATE = dict.fromkeys(
    ["generateName", "interfaceCIDRs", "interfacePattern", "labels", "annotations", "nodeSelector"]
)
_CONTROLLERS = {
    "node": {
        "reconcilerPeriod": None,
        "syncLabels": None,
        "hostEndpoint": {"autoCreate": None, "createDefaultHostEndpoint": None, "templates": _TEMPLATE},
        "leakGracePeriod": None,
    },
    "policy": _PERIODIC,
    "workloadEndpoint": _PERIODIC,
    "serviceAccount": _PERIODIC,
    "namespace": _PERIODIC,
    "loadBalancer": {"assignIPs": None},
    "migration": {"policyNameMigrator": None},
}
_PLAIN: dict[str, Shape] = {  # kind -> the shape of its spec
    "StagedKubernetesNetworkPolicy": {
        "stagedAction": None,
        "podSelector": _LABEL_SELECTOR,
        "ingress": {"ports": _PORT, "from": _PEER},
        "egress": {"ports": _PORT, "to": _PEER},
        "policyTypes": None,
    },
    "KubeControllersConfiguration": {
        "logSeverityScreen": None,
        "healthChecks": None,
        "etcdV3CompactionPeriod": None,
        "prometheusMetricsPort": None,
        "debugProfilePort": None,
        "controllers": _CONTROLLERS,
    },
}


def shaped(kind: type[msgspec.Struct], raw: Any) -> Any:
    """`raw` with its names and scalars as `kind` wants them. Raises CommandError for an unknown field."""
    if not isinstance(raw, dict):
        return raw
    fields, spelling = _fields(kind)
    result: dict[str, Any] = {}
    for given, value in raw.items():
        name = given if given in fields else spelling.get(given.lower())
        if name is not None:
            result[name] = _fitted(fields[name], value)
        elif not (issubclass(kind, ObjectMeta) and given in _IGNORED_METADATA):
            raise _unknown(given)
    if issubclass(kind, Resource) and "spec" in result and (plain := _plain_shape(kind.KIND)):
        result["spec"] = _like(plain, result["spec"])
    return result


def _unknown(name: str) -> CommandError:
    return CommandError(f'error unmarshaling JSON: while decoding JSON: json: unknown field "{name}"')


_FIELDS: dict[type[msgspec.Struct], tuple[dict[str, list[Any]], dict[str, str]]] = {}


def _fields(kind: type[msgspec.Struct]) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Field -> the types it may have; name in lower case -> field."""
    if kind not in _FIELDS:
        typed = {field.encode_name: _options(field.type) for field in structs.fields(kind)}
        if issubclass(kind, Resource):
            del typed["·origin"]
            typed["kind"] = []
        _FIELDS[kind] = typed, {name.lower(): name for name in typed}
    return _FIELDS[kind]


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [part for part in get_args(annotation) if part not in (type(None), UnsetType)]
    return [annotation]


def _fitted(options: list[Any], value: Any) -> Any:
    if isinstance(value, bool | int | float) and options == [str]:
        return _text(value)
    if isinstance(value, float) and value.is_integer() and int in options:
        return int(value)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return shaped(option, value)
        origin, inner = get_origin(option), get_args(option)
        if origin is tuple and isinstance(value, list):
            items = _options(inner[0])
            return [_fitted(items, item) for item in value]
        if origin is dict and isinstance(value, dict):
            items = _options(inner[1])
            return {key: _fitted(items, item) for key, item in value.items()}
    return value


def _text(value: float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else format_float(value)


def _plain_shape(kind: str) -> Shape:
    if kind != "FelixConfiguration":
        return _PLAIN.get(kind)
    from tortie.datastore.felixparams import BY_FIELD  # a large table that only this kind needs

    return dict.fromkeys([*BY_FIELD, "nodeSelector"])


def _like(shape: Shape, value: Any) -> Any:
    if shape is None:
        return value
    if isinstance(value, list):
        return [_like(shape, item) for item in value]
    if not isinstance(value, dict):
        return value
    spelling = {name.lower(): name for name in shape}
    result: dict[str, Any] = {}
    for given, item in value.items():
        name = given if given in shape else spelling.get(given.lower())
        if name is None:
            raise _unknown(given)
        result[name] = _like(shape[name], item)
    return result
