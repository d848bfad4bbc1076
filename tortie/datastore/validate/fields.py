"""The words in which the checks of all kinds are written: each looks at one value and names what is wrong.

A Check is given the value and its path (`spec.importV4[2].cidr`, as in the YAML); `struct` and `listing`
carry it into the depth. Empty values - what a writer may leave out - are never looked at; `required` says
where that is wrong. Types are checked too, because FelixConfiguration carries plain JSON as its spec.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tortie.core.errors import FieldError

MAX_TEXT = 1024  # characters; the schema's limit for selectors, and more than any path or name needs

_MAX_NUMBER = 1.7e308  # just below the largest float64


class Problems:
    """Collects the wrong fields of one resource, so that a user sees all of them at once."""

    def __init__(self) -> None:
        self.found: list[FieldError] = []

    def add(self, field: str, value: object, reason: str) -> None:
        self.found.append(FieldError(field, value, reason))


Check = Callable[[Problems, str, Any], None]


def is_empty(value: Any) -> bool:
    """Whether a writer may as well have left this out; an object without members is said to be there."""
    return value is None or value is msgspec.UNSET or (isinstance(value, (str, Sequence)) and not value)


# --- single values ------------------------------------------------------------------------------


def text(most: int = MAX_TEXT) -> Check:
    """Any one line of text."""

    def check(problems: Problems, path: str, value: Any) -> None:
        if not isinstance(value, str):
            problems.add(path, value, "expected a string")
        elif len(value) > most:
            problems.add(path, value, f"may not be more than {most} characters")
        elif not value.isprintable():  # control characters, line ends, halves of surrogate pairs
            problems.add(path, value, "contains control characters")

    return check


def tested(test: Callable[[str], bool], reason: str, most: int = MAX_TEXT) -> Check:
    """A string that passes `test`."""
    line = text(most)

    def check(problems: Problems, path: str, value: Any) -> None:
        before = len(problems.found)
        line(problems, path, value)
        if len(problems.found) == before and not test(value):
            problems.add(path, value, reason)

    return check


def parsed(parse: Callable[[str], Any], most: int = MAX_TEXT) -> Check:
    """A string that `parse` does not refuse by a ValueError; its text is the reason."""
    line = text(most)

    def check(problems: Problems, path: str, value: Any) -> None:
        before = len(problems.found)
        line(problems, path, value)
        if len(problems.found) == before:
            try:
                parse(value)
            except ValueError as err:
                problems.add(path, value, str(err))

    return check


def matching(pattern: str, reason: str = "", most: int = MAX_TEXT) -> Check:
    """A string that is wholly of this (ASCII) form."""
    compiled = re.compile(pattern, re.ASCII)
    return tested(
        lambda value: compiled.fullmatch(value) is not None, reason or f"should match '^{pattern}$'", most
    )


def one_of(*options: str, any_case: bool = False) -> Check:
    supported = "supported values: " + ", ".join(f'"{option}"' for option in options)
    allowed = {option.lower() for option in options} if any_case else set(options)

    def check(problems: Problems, path: str, value: Any) -> None:
        if not isinstance(value, str) or (value.lower() if any_case else value) not in allowed:
            problems.add(path, value, supported)

    return check


def integer(low: int | None = None, high: int | None = None) -> Check:
    """A whole number between both limits; without limits what fits Go's int64."""
    least, most = (-(2**63) if low is None else low), (2**63 - 1 if high is None else high)

    def check(problems: Problems, path: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            problems.add(path, value, "expected an integer")
        elif value < least:
            problems.add(path, value, f"should be greater than or equal to {least}")
        elif value > most:
            problems.add(path, value, f"should be less than or equal to {most}")

    return check


def number(problems: Problems, path: str, value: Any) -> None:
    """Whatever a Go float64 holds that also has a place in JSON."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _MAX_NUMBER:
        problems.add(path, value, "expected a number")


def boolean(problems: Problems, path: str, value: Any) -> None:
    if not isinstance(value, bool):
        problems.add(path, value, "expected true or false")


def anything(_problems: Problems, _path: str, _value: Any) -> None:
    """Nothing that could be wrong."""


# --- compositions -------------------------------------------------------------------------------


def listing(each: Check, *, most: int | None = None, unique: bool = False) -> Check:
    """A list; with `unique` a set, as the schema's list type `set`."""

    def check(problems: Problems, path: str, value: Any) -> None:
        if isinstance(value, str) or not isinstance(value, Sequence):
            problems.add(path, value, "expected a list")
            return
        if most is not None and len(value) > most:
            problems.add(path, f"{len(value)} items", f"must have at most {most} items")
            return
        for index, item in enumerate(value):
            each(problems, f"{path}[{index}]", item)
        if unique:
            for index in _repeated(value):
                problems.add(f"{path}[{index}]", value[index], "Duplicate value")

    return check


def _repeated(values: Iterable[Any]) -> Iterable[int]:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if repr(value) in seen:
            yield index
        seen.add(repr(value))


def mapping(key: Check, value: Check) -> Check:
    """A map from text to text; both sides are checked under the map's own path."""

    def check(problems: Problems, path: str, content: Any) -> None:
        if not isinstance(content, Mapping):
            problems.add(path, content, "expected a map")
            return
        for name, item in content.items():
            key(problems, f"{path} (key)", name)
            value(problems, f"{path}.{name}", item)

    return check


def struct(fields: Mapping[str, Check], *rules: Check, required: Iterable[str] = ()) -> Check:
    """An object with these fields (others are not looked at), then rules about it as a whole."""

    def check(problems: Problems, path: str, value: Any) -> None:
        if not isinstance(value, msgspec.Struct | Mapping):
            problems.add(path, value, "expected an object")
            return
        for name in required:
            if is_empty(member(value, name)):
                problems.add(at(path, name), None, "Required value")
        for name, look in fields.items():
            if not is_empty(item := member(value, name)):
                look(problems, at(path, name), item)
        for rule in rules:
            rule(problems, path, value)

    return check


def all_of(*checks: Check) -> Check:
    """Every check in turn, until one finds something."""

    def check(problems: Problems, path: str, value: Any) -> None:
        before = len(problems.found)
        for look in checks:
            if len(problems.found) == before:
                look(problems, path, value)

    return check


def at(path: str, name: str) -> str:
    """The path of a member of what is at `path` ('' is the whole resource); `from_` is written `from`."""
    name = name.removesuffix("_")
    return f"{path}.{name}" if path else name


def member(value: Any, name: str) -> Any:
    """A field of a struct or of plain JSON; None if there is none."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
