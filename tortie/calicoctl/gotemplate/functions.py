"""The functions of a template: text/template's own, and calicoctl's join, joinAndTruncate and config.

`and` and `or` are not here: they evaluate only as many arguments as they need (see execute).
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus

from tortie.calicoctl.gotemplate.printf import sprintf
from tortie.calicoctl.gotemplate.values import NO_VALUE, PlainStruct, is_true, text_of, type_name


class CallProblem(Exception):
    """A function refuses its arguments; the text says why."""


Function = Callable[..., Any]
_ESCAPES = {'"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"}


def functions(cluster_as: str) -> dict[str, Function]:
    """Name -> function; `cluster_as` is what `config "asnumber"` gives."""

    def config(name: str) -> str:
        if str(name).lower() != "asnumber":
            raise CallProblem(f"unhandled config type {name!r}")
        return cluster_as

    return {**_BUILT_IN, "join": _join, "joinAndTruncate": _join_and_truncate, "config": config}


# --- calicoctl's ------------------------------------------------------------------------------------


def _join(items: Any, separator: str) -> str:
    return _join_and_truncate(items, separator, 0)


def _join_and_truncate(items: Any, separator: str, most: int) -> str:
    if items is None or items is NO_VALUE:
        return ""
    if isinstance(items, dict):
        parts = sorted(f"{text_of(key)}={text_of(value)}" for key, value in items.items())
    else:
        parts = [text_of(item) for item in items] if isinstance(items, list | tuple) else [text_of(items)]
    text = separator.join(parts)
    return text[: max(most - 3, 0)] + "..." if 0 < most < len(text) else text


# --- text/template's --------------------------------------------------------------------------------


_NOTHING = (None, NO_VALUE)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    return "string" if isinstance(value, str) else ""


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise CallProblem("missing argument for comparison")
    for other in others:
        a, b = _kind(first), _kind(other)
        if first in _NOTHING or other in _NOTHING:
            if first in _NOTHING and other in _NOTHING:
                return True
        elif not a or not b:
            if isinstance(first, dict | list) or isinstance(other, dict | list):
                raise CallProblem(f"non-comparable type {text_of(first)}: {type_name(first)}")
            if first == other:
                return True
        elif a != b:
            raise _incompatible(first, other)
        elif first == other:
            return True
    return False


def _incompatible(first: Any, second: Any) -> CallProblem:
    return CallProblem(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}")


def _less(first: Any, second: Any) -> bool:
    a, b = _kind(first), _kind(second)
    if not a or not b or a == "bool":
        raise CallProblem("invalid type for comparison")
    if a != b:
        raise _incompatible(first, second)
    return bool(first < second)


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list | tuple) or (isinstance(value, dict) and not isinstance(value, PlainStruct)):
        return len(value)
    if value is None or value is NO_VALUE:
        raise CallProblem("len of nil pointer")
    raise CallProblem(f"len of type {type_name(value)}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            if not isinstance(key, str):
                raise CallProblem(f"value has type {type_name(key)}; should be string")
            value = value.get(key, NO_VALUE)
        elif isinstance(value, list | tuple | str):
            position = _position(key, len(value) - 1)
            value = value.encode()[position] if isinstance(value, str) else value[position]
        elif value is None or value is NO_VALUE:
            raise CallProblem("index of untyped nil")
        else:
            raise CallProblem(f"can't index item of type {type_name(value)}")
    return value


def _position(key: Any, last: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise CallProblem(f"cannot index slice/array with type {type_name(key)}")
    if not 0 <= key <= last:
        raise CallProblem(f"index out of range: {key}")
    return key


def _slice(value: Any, *bounds: Any) -> Any:
    if len(bounds) > 3:
        raise CallProblem(f"too many slice indexes: {len(bounds)}")
    if not isinstance(value, str | list | tuple):
        raise CallProblem(f"can't slice item of type {type_name(value)}")
    size = len(value)
    numbers = [_position(bound, size) for bound in bounds]
    start, end = (numbers + [0, size][len(numbers) :])[:2]
    if start > end:
        raise CallProblem(f"invalid slice index: {start} > {end}")
    return value[start:end]


def _print(*values: Any) -> str:
    """fmt.Sprint: a space between operands of which neither is a string."""
    parts = []
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            parts.append(" ")
        parts.append(_text(value))
    return "".join(parts)


def _println(*values: Any) -> str:
    return " ".join(map(_text, values)) + "\n"


def _text(value: Any) -> str:
    return "<nil>" if value is NO_VALUE else text_of(value)


def _html(*values: Any) -> str:
    return "".join(_ESCAPES.get(character, character) for character in _print(*values))


def _js(*values: Any) -> str:
    short = {"\\": "\\\\", "'": "\\'", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    hidden = {"<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D"}
    return "".join(short.get(c) or hidden.get(c) or c for c in _print(*values))


_BUILT_IN: dict[str, Function] = {
    "eq": _equal,
    "ne": lambda a, b: not _equal(a, b),
    "lt": _less,
    "le": lambda a, b: _less(a, b) or _equal(a, b),
    "gt": lambda a, b: not (_less(a, b) or _equal(a, b)),
    "ge": lambda a, b: not _less(a, b),
    "not": lambda value: not is_true(value),
    "len": _length,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "printf": lambda form, *values: sprintf(form, values),
    "println": _println,
    "html": _html,
    "js": _js,
    "urlquery": lambda *values: quote_plus(_print(*values), safe="-_.~"),
}
