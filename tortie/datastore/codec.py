"""JSON to typed values and back, the one way everything passes the datastore's border.

Decoding accepts what Go accepts (null for lists, maps and structs; unknown fields) and keeps the
JSON it read. Encoding lays the typed value over that JSON, so that fields which this version does
not know survive a read-modify-write. Output is Go's JSON: struct order, sorted maps, HTML escapes.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import UNSET, structs

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.types.meta import ASNumber, Resource

S = TypeVar("S", bound=msgspec.Struct)

MAX_OBJECT_BYTES = 1_500_000  # etcd's default request limit: nothing larger can be stored
_CONTAINERS = (dict, list)
_MAX_DEPTH = 64  # deeper than any API object; keeps hostile nesting away from the recursions below


def decode(kind: type[S], data: bytes) -> S:
    """Parse one stored value. Raises ValidationError naming the field when it is not a `kind`."""
    if len(data) > MAX_OBJECT_BYTES:
        raise _invalid(kind, f"{len(data)} bytes", f"larger than {MAX_OBJECT_BYTES} bytes")
    if not issubclass(kind, Resource):
        # IPAM's blocks are large and read for each address. What is not right at once, as a null for
        # an empty list, is looked at more closely below.
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return msgspec.json.decode(data or b"{}", type=kind)
    try:
        raw = msgspec.json.decode(data or b"{}")  # an empty value is {} in old data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise _invalid(kind, data[:64].decode("utf-8", "replace"), f"malformed JSON: {err}") from err
    # What has neither nulls nor depth need not be searched for them: most objects, at half their cost.
    plain = b"null" not in data and data.count(b"{") + data.count(b"[") <= _MAX_DEPTH
    return _typed(kind, raw if plain else _cleaned(kind, raw))


def from_plain(kind: type[S], raw: Any) -> S:
    """A typed value from decoded JSON or YAML. Raises ValidationError."""
    return _typed(kind, _cleaned(kind, raw))


def _typed(kind: type[S], clean: Any) -> S:
    if not isinstance(clean, dict):
        raise _invalid(kind, type(clean).__name__, "expected a JSON object")
    try:
        value = msgspec.convert(clean, kind, dec_hook=_from_builtin)
    except msgspec.ValidationError as err:
        raise ValidationError([_field_error(kind, clean, err)]) from err
    if isinstance(value, Resource):
        return structs.replace(value, origin=clean)
    return value


def encode(value: msgspec.Struct, origin: dict[str, Any] | None = None) -> bytes:
    """Go-style JSON of a value; unknown fields of its `origin` (a Resource carries its own) are kept."""
    if isinstance(value, Resource) or any(unknown_fields(type(value), origin)):
        text = msgspec.json.encode(_sorted_maps(type(value), to_plain(value, origin)))
    else:  # IPAM's blocks again: the same bytes at a twentieth of the cost
        text = msgspec.json.encode(value, enc_hook=int, order="deterministic")
    return text.replace(b"&", rb"\u0026").replace(b"<", rb"\u003c").replace(b">", rb"\u003e")


def to_plain(value: msgspec.Struct, origin: dict[str, Any] | None = None) -> dict[str, Any]:
    """The value as plain JSON data, with the unknown fields of its origin."""
    if isinstance(value, Resource):
        if isinstance(value.origin, dict):
            origin = value.origin
        value = structs.replace(value, origin=UNSET)
    # Through JSON, because to_builtins would leave tuples. ASNumber is the only custom type.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value, enc_hook=int))
    if isinstance(value, Resource):  # msgspec puts a subclass's fields before its base's
        plain = {name: plain.pop(name) for name in ("kind", "apiVersion", "metadata")} | plain
    return _overlay(type(value), plain, origin) if origin else plain


def unknown_fields(kind: type[msgspec.Struct], raw: Any, path: str = "") -> Iterator[str]:
    """Paths of fields in `raw` that `kind` does not have; the strict reading calicoctl does."""
    if not isinstance(raw, dict):
        return
    known = _fields(kind)
    for name, value in raw.items():
        if name == "kind" and issubclass(kind, Resource):
            continue
        if name not in known:
            yield f"{path}{name}"
            continue
        for index, (struct, item) in enumerate(_struct_values(known[name], value)):
            where = f"{path}{name}[{index}]." if isinstance(value, list) else f"{path}{name}."
            yield from unknown_fields(struct, item, where)


def _overlay(kind: type[msgspec.Struct], plain: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    known = _fields(kind)
    merged = dict(plain)
    for name, old in origin.items():
        if name not in known:
            if name != "kind":
                merged[name] = old
        elif isinstance(old, dict) and isinstance(merged.get(name), dict):
            if (struct := _struct_of(known[name])) is not None:
                merged[name] = _overlay(struct, merged[name], old)
        elif isinstance(old, list) and isinstance(merged.get(name), list):
            struct = _struct_of(known[name])
            # Items of a list have no identity: only an unchanged length says they still correspond.
            if struct is not None and len(old) == len(merged[name]):
                merged[name] = [
                    _overlay(struct, new, item) if isinstance(new, dict) and isinstance(item, dict) else new
                    for new, item in zip(merged[name], old, strict=True)
                ]
    return merged


_FIELDS: dict[type[msgspec.Struct], dict[str, Any]] = {}  # struct -> JSON name -> type


def _fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
    if kind not in _FIELDS:
        _FIELDS[kind] = {field.encode_name: field.type for field in structs.fields(kind)}
    return _FIELDS[kind]


@cache  # one entry for each field type of our structs
def _struct_of(annotation: Any) -> type[msgspec.Struct] | None:
    """The struct inside `S`, `S | None` or `tuple[S, ...]`, if there is one."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, msgspec.Struct) else None
    for part in get_args(annotation):
        if part is not Ellipsis and (struct := _struct_of(part)) is not None:
            return struct
    return None


def _struct_values(annotation: Any, value: Any) -> Iterator[tuple[type[msgspec.Struct], Any]]:
    if (struct := _struct_of(annotation)) is not None:
        for item in value if isinstance(value, list) else [value]:
            yield struct, item


def _sorted_maps(kind: type[msgspec.Struct] | None, plain: Any) -> Any:
    """Maps sorted by key, structs left in field order (unknown fields sorted after them).

    `plain` is a map or a list. Blocks hold hundreds of numbers: those must not cost a call each.
    """
    if isinstance(plain, list):
        return [_sorted_maps(kind, item) if isinstance(item, _CONTAINERS) else item for item in plain]
    known = _fields(kind) if kind else {}
    names = [name for name in plain if name in known or (name == "kind" and kind)]
    names += sorted(plain.keys() - names)
    return {
        name: _sorted_maps(_struct_of(known.get(name)), value) if isinstance(value, _CONTAINERS) else value
        for name, value in zip(names, map(plain.__getitem__, names), strict=True)
    }


def _cleaned(kind: type, raw: Any) -> Any:
    """`raw` without its nulls. Raises ValidationError, which names the field where there is one."""
    try:
        return _without_nulls(raw)
    except ValidationError:
        for path, scalar in _scalars(raw, kind.__name__):
            if reason := _not_json(scalar):
                raise ValidationError([FieldError(path, ascii(scalar), reason)]) from None
        raise


def _scalars(raw: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every scalar and where it is; what is nested too deep is left out."""
    if not isinstance(raw, _CONTAINERS):
        yield path, raw
    elif depth <= _MAX_DEPTH:
        if isinstance(raw, dict):
            for name, value in raw.items():
                yield from _scalars(value, f"{path}.{name}", depth + 1)
        else:
            for index, value in enumerate(raw):
                yield from _scalars(value, f"{path}[{index}]", depth + 1)


def _without_nulls(raw: Any, depth: int = 0) -> Any:
    """Drop object members that are null: in Go that means the zero value. List items stay."""
    if depth > _MAX_DEPTH:
        raise ValidationError([FieldError("JSON", "…", f"nested deeper than {_MAX_DEPTH}")])
    if isinstance(raw, dict):
        if any(_not_json(name) for name in raw):
            raise ValidationError([FieldError("JSON", "…", "a name is not valid Unicode")])
        return {
            # Plain text is most of what there is, and costs no call here.
            name: value if type(value) is str and value.isascii() else _without_nulls(value, depth + 1)
            for name, value in raw.items()
            if value is not None
        }
    if isinstance(raw, list):
        return [  # of a block's many small numbers and nulls none costs a call
            item
            if item is None or (type(item) is int and 0 <= item < 2**32)
            else _without_nulls(item, depth + 1)
            for item in raw
        ]
    if reason := _not_json(raw):
        raise ValidationError([FieldError("JSON", ascii(raw), reason)])
    return raw


def _not_json(scalar: Any) -> str:
    """Why a scalar, which may come from YAML, cannot be stored or not be read by Go; '' if it can."""
    if isinstance(scalar, int):
        return "" if -(2**63) <= scalar < 2**64 else "integer does not fit 64 bits"
    if isinstance(scalar, float):
        return "" if math.isfinite(scalar) else "not a number that JSON has"
    if isinstance(scalar, str) and not scalar.isascii():
        try:
            scalar.encode()
        except UnicodeEncodeError:
            return "not valid Unicode"
    return ""


def _from_builtin(kind: type, value: Any) -> Any:
    if kind is ASNumber:
        return ASNumber(value)
    raise TypeError(f"no decoder for {kind}")


def _invalid(kind: type, value: str, reason: str) -> ValidationError:
    return ValidationError([FieldError(kind.__name__, value, reason)])


def _field_error(kind: type, raw: Any, err: msgspec.ValidationError) -> FieldError:
    """msgspec says "Expected `int`, got `str` - at `$.spec.blockSize`"; we name field and value first."""
    match = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", str(err), re.DOTALL)
    reason, path = (match[1], match[2] or "") if match else (str(err), "")
    return FieldError(".".join(filter(None, [kind.__name__, path])), _value_at(raw, path), reason)


def _value_at(raw: Any, path: str) -> object:
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(raw, dict) and step in raw:
            raw = raw[step]
        elif isinstance(raw, list) and step.isdecimal() and int(step) < len(raw):
            raw = raw[int(step)]
        else:  # a map key or "[...]": the last value that can be named is close enough to find it
            break
    return raw
