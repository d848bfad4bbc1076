"""Plain data of a file into the shape of a resource's type, as Go's strict JSON decoding does it. Pure.

Field names match in any case; an unquoted number or boolean where text belongs becomes text (`rack: 7`);
a field the type does not have is an error. What the types cannot know (values) is validation's.
"""

from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import UnsetType, structs

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.gonumber import format_float
from tortie.datastore.types.meta import ObjectMeta, Resource

# Written by Kubernetes and by older tools, of no meaning to a datastore client; Go knows and drops them.
_IGNORED_METADATA = {"managedFields", "selfLink"}


def shaped(kind: type[msgspec.Struct], raw: Any) -> Any:
    """`raw` with its names and scalars as `kind` wants them. Raises CommandError for an unknown field."""
    if not isinstance(raw, dict):
        return raw
    fields = _fields(kind)
    result: dict[str, Any] = {}
    for given, value in raw.items():
        name = given if given in fields else fields.get(given.lower(), "")
        if name:
            result[name] = _fitted(fields[name], value) if fields[name] is not None else value
        elif not (issubclass(kind, ObjectMeta) and given in _IGNORED_METADATA):
            raise CommandError(f'error unmarshaling JSON: while decoding JSON: json: unknown field "{given}"')
    return result


_FIELDS: dict[type[msgspec.Struct], dict[str, Any]] = {}  # struct -> field -> type; lower case -> field


def _fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
    if kind not in _FIELDS:
        typed = {field.encode_name: field.type for field in structs.fields(kind)}
        if issubclass(kind, Resource):
            typed = {"kind": None, **{name: of for name, of in typed.items() if name != "·origin"}}
        # A name in lower case leads to the field's own spelling; of one already so, to its type.
        _FIELDS[kind] = {name.lower(): name for name in typed} | typed
    return _FIELDS[kind]


def _fitted(annotation: Any, value: Any) -> Any:
    if value is None:
        return None
    options = list(_options(annotation))
    if isinstance(value, bool | int | float) and options == [str]:
        return _text(value)
    if isinstance(value, float) and value.is_integer() and int in options:
        return int(value)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return shaped(option, value)
        origin, inner = get_origin(option), get_args(option)
        if origin is tuple and isinstance(value, list):
            return [_fitted(inner[0], item) for item in value]
        if origin is dict and isinstance(value, dict):
            return {key: _fitted(inner[1], item) for key, item in value.items()}
    return value


def _options(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, UnionType):
        yield from (part for part in get_args(annotation) if part not in (type(None), UnsetType))
    else:
        yield annotation


def _text(value: float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else format_float(value)
