"""Plain data of a file into the shape of a resource's type, as Go's strict JSON decoding does it. Pure.

Field names match in any case; an unquoted number or boolean where text belongs becomes text (`rack: 7`);
a field the type does not have is an error. What the types cannot know (values) is validation's.
"""

from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import UnsetType, structs

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.gonumber import format_float
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.meta import ObjectMeta, Resource

# Written by Kubernetes and by older tools, of no meaning to a datastore client; Go knows and drops them.
_IGNORED_METADATA = {"managedFields", "selfLink"}


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
    if kind is FelixConfiguration and isinstance(spec := result.get("spec"), dict):
        result["spec"] = _felix_spec(spec)
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


def _felix_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Its fields are a table, and what they may hold is a matter of validation."""
    from tortie.datastore.felixparams import BY_FIELD  # a large table that only this kind needs

    known = {*BY_FIELD, "nodeSelector"}
    spelling = {name.lower(): name for name in known}
    result: dict[str, Any] = {}
    for given, value in spec.items():
        name = given if given in known else spelling.get(given.lower())
        if name is None:
            raise _unknown(given)
        result[name] = value
    return result
