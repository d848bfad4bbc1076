"""YAML in and out. goyaml.json holds what Go's sigs.k8s.io/yaml writes and reads."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tortie.calicoctl import documents, goyaml
from tortie.calicoctl.errors import CommandError

pytestmark = pytest.mark.unit

GO = json.loads((Path(__file__).parent / "goyaml.json").read_text())
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")

ODD_WORDS = ["yes", "1e3", "0x1f", "12:30", "<<", "- a", "a: b", "# c", " ", "two\nlines\n"]
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | FLOATS
    | st.text()
    | st.sampled_from(ODD_WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@pytest.mark.parametrize("case", GO["written"], ids=lambda case: repr(case["value"])[:40])
def test_written_as_go_writes_it(case: dict[str, Any]) -> None:
    assert goyaml.dump(case["value"]) == case["yaml"]


@pytest.mark.parametrize("case", GO["read"], ids=lambda case: repr(case["yaml"])[:40])
def test_read_as_go_reads_it(case: dict[str, Any]) -> None:
    if "error" not in case:
        assert documents.parse(case["yaml"].encode()) == case["value"]
        return
    with pytest.raises(CommandError) as refused:
        documents.parse(case["yaml"].encode())
    assert str(refused.value) == f"error converting YAML to JSON: {case['error']}"


@given(JSON)
@example({"a" * 129: ["x"], "two\nlines": {"b": " \n "}})
@example(["\x85\u2028\u2029", "é " * 60, "'" * 90, {"": []}])
def test_what_is_written_reads_back_and_steers_no_terminal(value: Any) -> None:
    text = goyaml.dump(value)
    assert not STEERING.search(text)
    assert documents.parse(text.encode()) == value


def test_words_that_yaml_11_would_misread_are_quoted_both_ways() -> None:
    assert documents.parse(b"mac: 11:22:33:44:55:06\nday: 2020-01-01") == {
        "mac": "11:22:33:44:55:06",
        "day": "2020-01-01",
    }


# --- documents that mean harm -------------------------------------------------------------------------

_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (_LAUGHS, "document contains excessive aliasing"),
        ("[" * 5000, "exceeded max depth of 100"),
        ("{a: " * 5000, "exceeded max depth of 100"),
        ("- " * 5000, "exceeded max depth of 100"),
        ("!!python/object/apply:os.system [id]", "cannot decode a value tagged"),
        ("!!python/name:os.system x", "cannot decode a value tagged"),
        ("!<tag:yaml.org,2002:binary> aGk=", "cannot decode a value tagged"),
        ("a: \x01", "control characters are not allowed"),
        ("? {a: b}\n: c", "unsupported map key"),
        ("<<: 3", "map merge requires map"),
    ],
)
def test_hostile_documents_are_refused(document: str, problem: str) -> None:
    with pytest.raises(CommandError, match=re.escape(problem)):
        documents.parse(document.encode())


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(CommandError, match="invalid UTF-8"):
        documents.parse(b"a: \xff")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for document in documents.split(data):
        with contextlib.suppress(CommandError):
            documents.parse(document)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a\n---\nb\n", ["a", "b\n"]),
        ("---\na\n--- # comment\nb", ["---\na", "b"]),
        ("a\n---", ["a"]),
        ("a\n--- last line", ["a"]),
        ("", []),
        ("a---b\n", ["a---b\n"]),
    ],
)
def test_documents_of_a_file(text: str, parts: list[str]) -> None:
    assert [part.decode() for part in documents.split(text.encode())] == parts


def test_a_document_has_a_limit() -> None:
    with pytest.raises(CommandError, match="token too long"):
        list(documents.split(b"a: " + b"x" * documents.MAX_DOCUMENT))
