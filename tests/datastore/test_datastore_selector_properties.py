"""The selector language against an oracle: random trees, written down in random ways.

A tree here is nested tuples, for which this file has its own evaluator and its own canonical writer, both
straight from the reference's table and knowing nothing of the code under test.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tortie.datastore.selector import SelectorError, parse

pytestmark = pytest.mark.unit

Tree = tuple[Any, ...]

# --- the oracle -----------------------------------------------------------------------------------


def verdict(tree: Tree, labels: dict[str, str]) -> bool:
    kind, *rest = tree
    if kind in ("all", "global"):
        return True
    if kind == "not":
        return not verdict(rest[0], labels)
    if kind == "and":
        return all(verdict(operand, labels) for operand in rest)
    if kind == "or":
        return any(verdict(operand, labels) for operand in rest)
    if kind == "has":
        return rest[0] in labels
    key, operand = rest
    if key not in labels:
        return kind in ("!=", "not in")
    value = labels[key]
    answers: dict[str, bool] = {
        "==": value == operand,
        "!=": value != operand,
        "in": value in operand,
        "not in": value not in operand,
        "contains": any(value[i : i + len(operand)] == operand for i in range(len(value) + 1)),
        "starts with": value[: len(operand)] == operand,
        "ends with": value[max(len(value) - len(operand), 0) :] == operand,
    }
    return answers[kind]


def canonical(tree: Tree) -> str:
    kind, *rest = tree
    if kind in ("all", "global"):
        return f"{kind}()"
    if kind == "has":
        return f"has({rest[0]})"
    if kind == "not":
        return "!" + canonical(rest[0])
    if kind in ("and", "or"):
        return "(" + {"and": " && ", "or": " || "}[kind].join(map(canonical, rest)) + ")"
    if kind in ("in", "not in"):
        ordered = sorted(set(rest[1]), key=lambda value: value.encode())
        return f"{rest[0]} {kind} {{{', '.join(map(quoted, ordered))}}}"
    return f"{rest[0]} {kind} {quoted(rest[1])}"


def quoted(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


def without_double_negation(tree: Tree) -> Tree:
    """What the canonical text says when it is read again: `!!x` is `x`."""
    kind, *rest = tree
    if kind == "not" and rest[0][0] == "not":
        return without_double_negation(rest[0][1])
    if kind in ("not", "and", "or"):
        return (kind, *map(without_double_negation, rest))
    return tree


# --- random trees, labels and ways of writing -----------------------------------------------------

KEYS = ["a", "b", "in", "has", "x.y/z-1_0"]
VALUES = ["", "x", "xy", "yx", "xyx", "'", '"', "é", "\uffff", "\U0001d11e", "\n", "&& all()"]
keys = st.sampled_from(KEYS)
values = st.sampled_from(VALUES)
label_sets = st.dictionaries(keys, values)

leaves = st.one_of(
    st.sampled_from([("all",), ("global",)]),
    st.tuples(st.just("has"), keys),
    st.tuples(st.sampled_from(["==", "!=", "contains", "starts with", "ends with"]), keys, values),
    st.tuples(st.sampled_from(["in", "not in"]), keys, st.lists(values, max_size=4).map(tuple)),
)


def branches(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    several = st.lists(children, min_size=2, max_size=4)
    return st.one_of(
        children.map(lambda operand: ("not", operand)),
        several.map(lambda operands: ("and", *operands)),
        several.map(lambda operands: ("or", *operands)),
    )


trees: st.SearchStrategy[Tree] = st.recursive(leaves, branches, max_leaves=12)

Draw = Callable[[st.SearchStrategy[Any]], Any]
blanks = st.sampled_from(["", "", " ", "\t", " \t "])
some_blanks = st.sampled_from([" ", "\t", "  "])


def written(draw: Draw, tree: Tree, inside: str = "") -> str:
    """One of the many texts that mean `tree`; `inside` is the kind of the operator around it."""
    kind, *rest = tree
    text = _written(draw, kind, rest)
    needed = (kind in ("and", "or") and inside in ("and", "not", kind)) or (kind == inside == "not")
    parentheses = needed + draw(st.sampled_from([0, 0, 0, 1, 2]))
    for _ in range(parentheses):
        text = f"({draw(blanks)}{text}{draw(blanks)})"
    if (parentheses or kind not in ("and", "or", "not")) and draw(st.booleans()):
        text = f"!{draw(blanks)}!{text}"
    return f"{draw(blanks)}{text}{draw(blanks)}"


def _written(draw: Draw, kind: str, rest: list[Any]) -> str:
    if kind in ("all", "global"):
        return f"{kind}({draw(blanks)})"
    if kind == "has":
        return f"has({draw(blanks)}{rest[0]}{draw(blanks)})"
    if kind == "not":
        return "!" + written(draw, rest[0], "not")
    if kind in ("and", "or"):
        return {"and": "&&", "or": "||"}[kind].join(written(draw, operand, kind) for operand in rest)
    if kind in ("in", "not in"):
        commas = [f"{literal(draw, value)}{draw(blanks)}" for value in rest[1]]
        trailing = draw(st.sampled_from(["", ","])) if commas else ""
        operand = f"{{{draw(blanks)}{f',{draw(blanks)}'.join(commas)}{trailing}{draw(blanks)}}}"
    else:
        operand = literal(draw, rest[1])
    operator = draw(blanks).join(kind.split())
    before = draw(blanks) if kind in ("==", "!=") else draw(some_blanks)
    return f"{rest[0]}{before}{operator}{draw(blanks)}{operand}"


def literal(draw: Draw, value: str) -> str:
    quotes = [quote for quote in "\"'" if quote not in value]
    quote = draw(st.sampled_from(quotes))
    return f"{quote}{value}{quote}"


@st.composite
def texts_of_trees(draw: Draw) -> tuple[Tree, str]:
    tree = draw(trees)
    return tree, written(draw, tree)


# --- the properties -------------------------------------------------------------------------------


@given(texts_of_trees())
def test_whatever_the_writing_the_canonical_text_is_the_trees(case: tuple[Tree, str]) -> None:
    tree, text = case
    assert parse(text).canonical == canonical(tree)


@given(texts_of_trees(), st.lists(label_sets, min_size=1, max_size=6))
def test_evaluation_is_the_oracles(case: tuple[Tree, str], labels: list[dict[str, str]]) -> None:
    tree, text = case
    selector = parse(text)
    for one in labels:
        assert selector.evaluate(one) == verdict(tree, one)


@given(trees)
def test_canonical_text_is_a_fixed_point(tree: Tree) -> None:
    reread = parse(canonical(tree))
    assert reread.canonical == canonical(without_double_negation(tree))
    assert parse(reread.canonical) == reread and parse(reread.canonical).id == reread.id


@given(trees, label_sets)
def test_a_prefix_changes_names_only(tree: Tree, labels: dict[str, str]) -> None:
    prefixed = parse(canonical(tree)).prefixed("pcns.")
    assert prefixed.evaluate({"pcns." + key: value for key, value in labels.items()}) == verdict(tree, labels)
    assert all(key.startswith("pcns.") for key in prefixed.label_keys)


@given(trees, label_sets)
def test_what_is_selected_satisfies_every_restriction(tree: Tree, labels: dict[str, str]) -> None:
    if verdict(tree, labels):
        for restriction in parse(canonical(tree)).restrictions:
            assert any(key in labels and value in (None, labels[key]) for key, value in restriction)


@given(trees, label_sets, label_sets)
def test_a_verdict_changes_only_with_a_term(tree: Tree, one: dict[str, str], two: dict[str, str]) -> None:
    if verdict(tree, one) != verdict(tree, two):
        assert any(
            one.get(key) != two.get(key) and (value is None or value in (one.get(key), two.get(key)))
            for key, value in parse(canonical(tree)).terms
        )


pieces = st.sampled_from(
    ["a", "in", "not", "has(", "all(", "global()", "==", "!=", "=", "!", "&&", "||", "&", "(", ")", "{", "}",
     ",", '"x"', "'", '"', " ", "\t", "\n", "contains", "starts with", "endswith", "notin", "é", "%"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(pieces, max_size=12).map("".join), st.lists(pieces).map(" ".join)))
@example("\ud800")
def test_any_text_is_a_selector_or_the_one_error(text: str) -> None:
    try:
        selector = parse(text)
    except SelectorError as err:
        assert 0 <= err.position <= len(text)
    else:
        assert parse(selector.canonical).evaluate({}) == selector.evaluate({})
