"""What holds for every kind and any content: nothing hostile passes, defaults and storage are stable."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, structs

from tests.support.resources import resource
from tortie.core.errors import ValidationError
from tortie.datastore import codec, validate
from tortie.datastore.kinds import KINDS
from tortie.datastore.rules import as_read

pytestmark = pytest.mark.unit

# Values that are legal somewhere, and what makes them illegal there.
legal = st.sampled_from(
    [
        "a", "default", "node-1", "10.0.0.0/8", "10.0.0.1", "fd00::/64", "all()", "a == 'b'", "eth0",
        "cali*", "TCP",
        "http", "80", "1:2", "Allow", "Never", "Enabled", "90s", "Info", "ee:ee:ee:ee:ee:ee", "1:1",
        "^eth.*", "EF",
        "In", "Accept", "x=y", "Ingress", "Egress", "Pass", "kns.shop", "",
    ]
)  # fmt: skip
spice = st.sampled_from(
    ["\n", "\x00", "\x1b[31m", "\r", "\t", "'", '"', "`", ";", "{", "\u2028", "١", "\x85", "\\"]
)
strings = legal | st.text(max_size=12) | st.builds(lambda a, b, c: a + b + c, legal, spice, legal)
numbers = st.sampled_from([0, 1, -1, 4, 6, 26, 80, 65_535, 65_536, 2**31, 2**63 - 1]) | st.integers(
    -5, 70_000
)
scalars = strings | numbers | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)


def _shaped(annotation: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """JSON of about the shape of a struct's field, so that much of it decodes."""
    struct = codec._struct_of(annotation)
    text = str(annotation)
    if struct is not None and depth < 5:
        members = {
            field.encode_name: _shaped(field.type, depth + 1)
            for field in structs.fields(struct)
            if field.encode_name not in ("·origin", "metadata", "kind", "apiVersion")
        }
        inner: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional=members)
    elif "dict" in text:
        inner = st.dictionaries(strings, scalars, max_size=2)
    elif "bool" in text:
        inner = st.booleans()
    elif "ASNumber" in text:
        inner = st.integers(0, 2**32 - 1)
    elif "int" in text and "str" in text:
        inner = strings | numbers
    elif "int" in text or "float" in text:
        inner = numbers
    else:
        inner = strings
    return st.lists(inner, max_size=2) if "tuple" in text else inner


BODIES = {  # kind -> bodies of about its shape
    name: st.fixed_dictionaries(
        {},
        optional={
            field.encode_name: _shaped(field.type)
            for field in structs.fields(kind.type)
            if field.encode_name in ("spec", "status")
        },
    )
    for name, kind in KINDS.items()
}


def candidate(kind: str, body: dict[str, Any], name: str, labels: dict[str, str]) -> Any:
    """A resource with defaults, None if the body is not even of the kind."""
    try:
        made = resource(kind, body.get("spec"), status=body.get("status"), name=name, labels=labels)
    except ValidationError:
        return None
    return validate.with_defaults(made)


# Text that people read and nothing is built from: messages and annotations may have any content.
_FREE = ("annotations", "message", "environmentVars", "origin", "runningConfig")


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a resource that something may be built from, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _FREE:
                yield path, str(name)
                yield from texts(item, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, path)


labels = st.dictionaries(strings, strings, max_size=2)


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=legal | strings, labels=labels)
def test_nothing_that_is_accepted_holds_control_characters(
    kind: str, data: st.DataObject, name: str, labels: dict[str, str]
) -> None:
    made = candidate(kind, data.draw(BODIES[kind]), name, labels)
    if made is None:
        return
    try:
        validate.check(made)
    except ValidationError:
        return
    for path, text in texts(json.loads(codec.encode(made))):
        # A tab is a blank of the selector language; no other place has a use for one.
        allowed = text.replace("\t", "") if "elector" in path else text
        assert allowed.isprintable() or not _is_checked(kind, path), (path, text)


def _is_checked(kind: str, path: str) -> bool:
    """Fields of the future and what only reports carry are stored unread; what is read is checked."""
    if kind == "FelixConfiguration":
        return path.startswith((".metadata", ".spec.nodeSelector"))  # its fields have tests of their own
    reports = ("agent", "routes", "bgp", "lastUpdated", "runningConfig")
    return not path.startswith(tuple(f".status.{name}" for name in reports))


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=40, deadline=None)
@given(data=st.data(), labels=labels)
def test_defaults_storage_and_reading_are_stable(
    kind: str, data: st.DataObject, labels: dict[str, str]
) -> None:
    made = candidate(kind, data.draw(BODIES[kind]), "default", labels)
    if made is None:
        return
    plain = structs.replace(made, origin=UNSET)
    assert structs.replace(validate.with_defaults(plain), origin=UNSET) == plain, "defaults are idempotent"
    stored = codec.encode(made)
    read = codec.decode(type(made), stored)
    assert codec.encode(validate.with_defaults(read)) == stored, "what was stored is stored the same again"
    seen = as_read(read)
    assert as_read(seen) == seen or seen.name != read.name, "reading is idempotent"


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=strings)
def test_any_content_is_accepted_or_refused_in_one_printable_line_each(
    kind: str, data: st.DataObject, name: str
) -> None:
    made = candidate(kind, data.draw(BODIES[kind]), name, {})
    if made is None:
        return
    try:
        validate.check(made)
    except ValidationError as err:
        lines = str(err).split("\n")
        assert all(line.isprintable() and len(line) < 2500 for line in lines)
        assert len(lines) == 1 or len(lines) == len(err.fields) + 1
