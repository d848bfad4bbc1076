"""Resources and plain data as a Go template sees them: fields by Go's names, Go's truth, Go's print.

Strings leave the data here, and here they lose their control characters: the template's own text keeps
its newlines, a name from the datastore does not steer the terminal.
"""

from typing import Any, Final

import msgspec
from msgspec import UNSET, structs

from tortie.calicoctl.errors import printable
from tortie.calicoctl.gonumber import format_float
from tortie.calicoctl.listing import Listing
from tortie.datastore.types.meta import API_VERSION, ObjectMeta, Resource


class _NoValue:
    """What a map has under a key that it has not."""


NO_VALUE: Final = _NoValue()


class PlainStruct(dict[str, Any]):
    """Plain JSON that is a struct in Go: an absent field is nil, names match in any case."""


class NoField(Exception):
    """The value has no such field; the text says why."""


_GO_NAMES = {  # Go field in lower case -> JSON name, where they differ
    "bpfconntrackcleanupmode": "bpfconntrackmode",
    "externalnodescidrlist": "externalnodeslist",
    "wireguardpersistentkeepalive": "wireguardkeepalive",
}


def field(value: Any, name: str) -> Any:
    """Raises NoField. Go's names and, beyond Go, the names of the JSON are understood."""
    match value:
        case Listing():
            return _listing_field(value, name)
        case Resource():
            return _resource_field(value, name)
        case msgspec.Struct():
            return _struct_field(value, name)
        case PlainStruct():
            wanted = _GO_NAMES.get(name.lower(), name.lower())
            return next((_as_struct(item) for key, item in value.items() if key.lower() == wanted), None)
        case dict():
            found = clean(value.get(name))
            return NO_VALUE if found is None else found
        case None:
            raise NoField(f"nil pointer evaluating {name}")
        case _NoValue():
            return NO_VALUE
    raise NoField(f"can't evaluate field {name} in type {type_name(value)}")


def clean(value: Any) -> Any:
    """The value, its strings and those of its lists and maps without control characters."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return type(value)((printable(key), clean(item)) for key, item in value.items())
    return value


def _as_struct(value: Any) -> Any:
    return PlainStruct(clean(value)) if isinstance(value, dict) else clean(value)


def _listing_field(listing: Listing, name: str) -> Any:
    match name.lower():
        case "items":
            return list(listing.items)
        case "kind":
            return f"{listing.kind}List"
        case "apiversion":
            return API_VERSION
        case "resourceversion":
            return listing.revision
        case "listmeta" | "metadata":
            return PlainStruct(resourceVersion=listing.revision)
    raise NoField(f"can't evaluate field {name} in type *v3.{listing.kind}List")


def _resource_field(resource: Resource, name: str) -> Any:
    match name.lower():
        case "kind":
            return resource.KIND
        case "objectmeta":
            return resource.metadata
        case "typemeta":
            return PlainStruct(kind=resource.KIND, apiVersion=resource.apiVersion)
        case "origin":
            raise NoField(f"can't evaluate field {name} in type *v3.{resource.KIND}")
    try:
        found = _struct_field(resource, name)
    except NoField:
        try:  # Go promotes the fields of the embedded metadata
            return _struct_field(resource.metadata, name)
        except NoField:
            raise NoField(f"can't evaluate field {name} in type *v3.{resource.KIND}") from None
    return _as_struct(found)


def _struct_field(value: msgspec.Struct, name: str) -> Any:
    wanted = name.lower()
    for attribute in value.__struct_fields__:
        if attribute.lower() == wanted:
            found = getattr(value, attribute)
            if found is UNSET:
                return None
            is_time = isinstance(value, ObjectMeta) and attribute.endswith("Timestamp")
            return clean(_time(found) if is_time else found)
    raise NoField(f"can't evaluate field {name} in type {type_name(value)}")


def _time(text: str | None) -> str | None:
    """2026-03-01T08:00:00Z as Go prints a time."""
    return text and text.replace("T", " ").replace("Z", " +0000 UTC")


def type_name(value: Any) -> str:
    match value:
        case None:
            return "<nil>"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case Listing():
            return f"*v3.{value.kind}List"
        case Resource():
            return f"*v3.{value.KIND}"
        case msgspec.Struct():
            return f"v3.{type(value).__name__}"
        case dict():
            return "map[string]interface {}"
    return "[]interface {}"


def is_true(value: Any) -> bool:
    if isinstance(value, msgspec.Struct | Listing | PlainStruct):
        return True
    return value is not NO_VALUE and value is not UNSET and bool(value)


def text_of(value: Any) -> str:
    """%v"""
    match value:
        case None | _NoValue() | msgspec.UnsetType():
            return "<no value>" if isinstance(value, _NoValue) else "<nil>"
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return format_float(value)
        case str():
            return value
        case dict():
            return "map[" + " ".join(f"{text_of(k)}:{text_of(value[k])}" for k in sorted(value)) + "]"
        case list() | tuple():
            return "[" + " ".join(map(text_of, value)) + "]"
        case Listing():
            return "{" + " ".join(map(text_of, value.items)) + "}"
        case msgspec.Struct():
            parts = [clean(getattr(value, f.name)) for f in structs.fields(value) if f.name != "origin"]
            return "{" + " ".join(map(text_of, parts)) + "}"
    return printable(str(value))
