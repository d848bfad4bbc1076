"""The selector language: the reference's vectors, what is and is not a selector, what errors say."""

import sys
from collections import ChainMap
from collections.abc import Mapping

import pytest

from tortie.core.errors import TortieError
from tortie.datastore.selector import (
    ALL,
    NOTHING,
    ChainLabels,
    SelectorError,
    normalise,
    parse,
    unique_id,
)
from tortie.datastore.selector.ast import MAX_DEPTH

pytestmark = pytest.mark.unit


# --- canonical text and id ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical", "identifier"),
    [
        ("", "all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"),
        (" \t", "all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"),
        ("all()", "all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"),
        ("(all())", "all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"),
        (
            '! (a == "b"&&! c != "d")',
            '!(a == "b" && !c != "d")',
            "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w",
        ),
        ("! (has( b)||! has(a ))", "!(has(b) || !has(a))", "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q"),
        # Printed by Calico's own parser, for what the published vectors leave open.
        (
            '!(!has(a)) && b in {"x",}',
            '(!!has(a) && b in {"x"})',
            "s:8ZMDQfaS1pv_qmeXtpn6tD0oZfhUsofReFSA8Q",
        ),
    ],
)
def test_canonical_text_and_id_are_calicos(text: str, canonical: str, identifier: str) -> None:
    selector = parse(text)
    assert (selector.canonical, selector.id) == (canonical, identifier)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a=='x'", 'a == "x"'),
        ("a\t!= 'x'", 'a != "x"'),
        ("""a == "it's" """, """a == "it's\""""),
        ("""a == 'say "x"'""", """a == 'say "x"'"""),
        ("""a in {'"', "'"}""", """a in {'"', "'"}"""),
        ("a contains''", 'a contains ""'),
        ("a startswith 'x'", 'a starts with "x"'),
        ("a starts \t with'x'", 'a starts with "x"'),
        ("a endswith 'x'", 'a ends with "x"'),
        ("a ends with 'x'", 'a ends with "x"'),
        ("a in{}", "a in {}"),
        ("a notin { }", "a not in {}"),
        ("a not \t in {'c','a',\t'b','a',}", 'a not in {"a", "b", "c"}'),
        # By bytes of UTF-8, where U+FFFF comes before U+1D11E; by UTF-16 it would not.
        ("a in {'\U0001d11e', '\uffff', 'é', 'z', 'Z'}", 'a in {"Z", "z", "é", "\uffff", "\U0001d11e"}'),
        ("all( \t)", "all()"),
        ("global( )", "global()"),
        ("has(\ta )", "has(a)"),
        ("!!has(a)", "has(a)"),
        ("! ! !has(a)", "!has(a)"),
        ("!(!(!has(a)))", "!!!has(a)"),
        ("((has(a)))", "has(a)"),
        ("has(a)&&has(b)||has(c)", "((has(a) && has(b)) || has(c))"),
        ("has(a)||has(b)&&has(c)", "(has(a) || (has(b) && has(c)))"),
        ("(has(a) && has(b)) && has(c)", "((has(a) && has(b)) && has(c))"),
        ("has(a) && has(b) && has(c)", "(has(a) && has(b) && has(c))"),
        ("has(a) || has(a)", "(has(a) || has(a))"),
        ("!has(a) && has(b)", "(!has(a) && has(b))"),
        # Words are operators only where an operator is due.
        ('in in {"in"}', 'in in {"in"}'),
        ('not not in {"not"}', 'not not in {"not"}'),
        ('has == "all"', 'has == "all"'),
        ('all contains "x" && global != "y"', '(all contains "x" && global != "y")'),
        ('contains contains "x"', 'contains contains "x"'),
        ('startswith starts with "x"', 'startswith starts with "x"'),
        ('hash == "x"', 'hash == "x"'),
        ('-./_0 == "x"', '-./_0 == "x"'),
        ('a == "a\n\x00b"', 'a == "a\n\x00b"'),
        (f'{"l" * 512} == "x"', f'{"l" * 512} == "x"'),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical


def test_equality_is_that_of_the_canonical_text() -> None:
    one, same, other = parse("a in {'x','y'}"), parse('(a  in {"y", "x"})'), parse("a in {'x'}")
    assert one == same and hash(one) == hash(same) and one.id == same.id
    assert one != other and one.id != other.id and one != "a in {'x','y'}"
    assert str(one) == 'a in {"x", "y"}' and repr(one) == """Selector('a in {"x", "y"}')"""


def test_unique_ids_are_made_of_prefix_and_content() -> None:
    assert unique_id("s", "all()") == parse("").id
    assert unique_id("n", "all()").startswith("n:") and unique_id("n", "all()")[2:] != parse("").id[2:]


def test_normalise_leaves_what_it_cannot_read() -> None:
    assert normalise(" a=='x'\n") == 'a == "x"'
    assert normalise(" a=='x \n") == "a=='x"


# --- evaluation -----------------------------------------------------------------------------------

_MISSING: Mapping[str, str] = {"b": "xy"}


@pytest.mark.parametrize(
    ("text", "selected", "not_selected"),
    [
        ('a == "x"', [{"a": "x"}], [{"a": "X"}, {"a": "xx"}, {"a": ""}, _MISSING]),
        ('a == ""', [{"a": ""}], [{"a": "x"}, _MISSING]),
        ('a != "x"', [{"a": "X"}, {"a": ""}, _MISSING], [{"a": "x"}]),
        ('a in {"x", "y"}', [{"a": "x"}, {"a": "y"}], [{"a": "xy"}, _MISSING]),
        ('a not in {"x", "y"}', [{"a": "xy"}, _MISSING], [{"a": "x"}, {"a": "y"}]),
        ("a in {}", [], [{"a": ""}, _MISSING]),
        ("a not in {}", [{"a": ""}, _MISSING], []),
        ('a contains "xy"', [{"a": "xy"}, {"a": "axyb"}], [{"a": "x"}, {"a": "XY"}, _MISSING]),
        ('a contains ""', [{"a": ""}, {"a": "x"}], [_MISSING]),
        ('a starts with "xy"', [{"a": "xyz"}, {"a": "xy"}], [{"a": "x"}, {"a": "axy"}, _MISSING]),
        ('a ends with "xy"', [{"a": "zxy"}, {"a": "xy"}], [{"a": "y"}, {"a": "xya"}, _MISSING]),
        ('a contains "é"', [{"a": "café"}], [{"a": "cafe\u0301"}]),
        ("has(a)", [{"a": ""}, {"a": "x"}], [_MISSING, {}]),
        ("!has(a)", [_MISSING, {}], [{"a": ""}]),
        ("all()", [{}, _MISSING], []),
        ("global()", [{}, _MISSING], []),
        ("!all()", [], [{}, _MISSING]),
        ('!a == "x"', [{"a": "y"}, {}], [{"a": "x"}]),
        ('!a != "x"', [{"a": "x"}], [{"a": "y"}, {}]),
        ('has(b) && a != "x" || a == "x"', [_MISSING, {"a": "x"}], [{}, {"a": "y"}]),
    ],
)
def test_evaluation(
    text: str, selected: list[Mapping[str, str]], not_selected: list[Mapping[str, str]]
) -> None:
    selector = parse(text)
    assert [labels for labels in [*selected, *not_selected] if selector.evaluate(labels)] == selected


def test_constants() -> None:
    assert ALL.evaluate({}) and not NOTHING.evaluate({"a": "x"})


def test_inherited_labels_are_found_in_order() -> None:
    own, first, second = {"a": "own"}, {"a": "first", "b": "first"}, {"b": "second", "c": ""}
    labels = ChainLabels(own, first, second)
    assert parse('a == "own" && b == "first" && c == "" && !has(d)').evaluate(labels)
    assert dict(labels) == dict(ChainMap(own, first, second)) == labels.merged()
    assert len(labels) == 3 and "c" in labels and "d" not in labels and labels.get("d", 0) == 0
    with pytest.raises(KeyError):
        labels["d"]
    del own["a"]
    assert parse('a == "first"').evaluate(labels)


# --- what others need to know about a selector ----------------------------------------------------


def test_prefix_goes_before_every_label_and_nothing_else() -> None:
    selector = parse(
        "!(a == 'a' && b != 'b' || c contains 'c' || d starts with 'd' || e ends with 'e') "
        "&& f in {'f'} && g not in {'g'} && has(h) && all() && global()"
    )
    before = selector.canonical
    assert selector.prefixed("pcns.").canonical == (
        '(!((pcns.a == "a" && pcns.b != "b") || pcns.c contains "c" || pcns.d starts with "d" || '
        'pcns.e ends with "e") && pcns.f in {"f"} && pcns.g not in {"g"} && has(pcns.h) && all() && global())'
    )
    assert selector.canonical == before


def test_a_prefix_may_not_make_a_name_too_long() -> None:
    selector = parse(f"has({'l' * 507})")
    assert selector.prefixed("pcns.").label_keys == {"pcns." + "l" * 507}
    with pytest.raises(SelectorError, match=r"label too long with prefix 'pcns\.\.'"):
        selector.prefixed("pcns..")


def test_label_keys_are_all_names_even_of_tests_that_are_constant() -> None:
    assert parse("a == '' && !(has(b) || c in {}) && all()").label_keys == {"a", "b", "c"}
    assert ALL.label_keys == frozenset()


@pytest.mark.parametrize("text", ["global()", "has(a) && !(b == '' || global())"])
def test_global_is_seen_wherever_it_stands(text: str) -> None:
    assert parse(text).has_global


def test_global_in_a_literal_or_a_name_is_none() -> None:
    assert not parse("global == 'global()' || all()").has_global


# --- what is not a selector -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ("a", "unexpected end of string looking for op", 1),
        ("a ", "unexpected end of string looking for op", 2),
        ("a ==", "expected string", 4),
        ("a == b", "expected string", 5),
        ("a contains b", "expected string", 11),
        ("a starts with b", "expected string", 14),
        ("a == {'x'}", "expected string", 5),
        ("a in 'x'", "expected set literal", 5),
        ("a in", "expected set literal", 4),
        ("a in {'x'", "expected }", 9),
        ("a in {'x' 'y'}", "expected }", 10),
        ("a in {,}", "expected }", 6),
        ("a in {'x',,}", "expected }", 10),
        ("a in {b}", "expected }", 6),
        ("'x' == a", "unexpected token: string 'x'", 0),
        ("a b", 'expected operator after label "a"', 2),
        ("a inb {}", 'expected operator after label "a"', 2),
        ("a containsx 'y'", 'expected operator after label "a"', 2),
        ("a not i {}", 'expected operator after label "a"', 2),
        ("a %", 'expected operator after label "a"', 2),
        ("a === 'x'", "expected ==", 4),
        ("a = 'x'", "expected ==", 2),
        ("has(a) & has(b)", "expected &&", 7),
        ("has(a) | has(b)", "expected ||", 7),
        ("a && has(b)", "expected == or != not: &&", 2),
        ("a(b)", "expected == or != not: (", 1),
        ("has (a)", "expected == or != not: (", 4),
        ("has(a) &&", "unexpected token: end of selector", 9),
        ("has(a) && && has(b)", "unexpected token: &&", 10),
        ("!", "unexpected token: end of selector", 1),
        ("()", "unexpected token: )", 1),
        ("(", "unexpected token: end of selector", 1),
        (")", "unexpected token: )", 0),
        ("(has(a)", "expected )", 7),
        ("(has(a) has(b))", "expected )", 8),
        ("has(a))", "unexpected content at end of selector )", 6),
        ("has(a) has(b)", "unexpected content at end of selector has 'b'", 7),
        ("has(", "expected identifier", 4),
        ("has()", "expected identifier", 4),
        ("has('a')", "expected identifier", 4),
        ("has(a", "no closing ')' after has(", 5),
        ("has(a b)", "no closing ')' after has(", 6),
        ("all(x)", "no closing ')' after all(", 4),
        ("global(", "no closing ')' after global(", 7),
        ("a == 'x", "unterminated string", 5),
        ("a == 'x\"", "unterminated string", 5),
        ("a == 'x'\n", "expected identifier", 8),
        ("has(a)\xa0", "expected identifier", 6),
        ("é == 'x'", "expected identifier", 0),
        ("a == '\ud800'", "not valid Unicode", 6),
        (f"{'l' * 513} == 'x'", f"label too long: {'l' * 40}…", 0),
        (f"all() && has({'l' * 513})", f"label too long: {'l' * 40}…", 13),
    ],
)
def test_errors_say_what_and_where(text: str, reason: str, position: int) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert (caught.value.reason, caught.value.position, caught.value.text) == (reason, position, text)


def test_an_error_can_be_acted_on() -> None:
    with pytest.raises(TortieError) as caught:
        parse("role = 'db' && tier == 'back'")
    assert str(caught.value) == (
        "expected == at character 6 (\"= 'db' && tier == 'b…\") of selector \"role = 'db' && tier == 'back'\""
    )
    with pytest.raises(SelectorError, match=r"^expected string at character 8 \(the end\) of selector"):
        parse("role ==")


def test_an_error_is_safe_to_print() -> None:
    with pytest.raises(SelectorError) as caught:
        parse("a == 'x' \n\x1b[31m" + "x" * 10_000)
    text = str(caught.value)
    assert len(text) < 400 and text.isprintable()


# --- hostile input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "!" * 100_000,
        "(" * 100_000,
        ")" * 100_000,
        "(" * 50_000 + "has(a)" + ")" * 49_999,
        "(!" * 50_000,
        "!(" * 5_000 + "has(a)" + ")" * 5_000,
        "(has(a)&&" * 5_000 + "has(a)" + ")" * 5_000,
        "(all()||all()&&!" * 5_000 + "has(a)" + ")" * 5_000,
        "has(a)&&" * 50_000,
        "a in {" + "'x'," * 50_000,
        "{" * 100_000,
        "'" + '"' * 100_000,
        "a not" + " " * 100_000,
        "a starts" + " \t" * 50_000 + "wit",
        "has(" + " " * 100_000,
        "has(" + "l" * 100_000,
        "a" * 100_000 + " == 'x'",
        "=" * 100_000,
    ],
)
def test_hostile_text_is_refused_by_the_one_error(text: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("!" * 100_000 + "has(a)", "has(a)"),
        ("(" * 100_000 + "has(a)" + ")" * 100_000, "has(a)"),
        ("!(" * 339 + "all()" + ")" * 339, "!" * 339 + "all()"),  # the deepest tree in 1,024 characters
        ("a in {" + "'x'," * 50_000 + "}", 'a in {"x"}'),
    ],
)
def test_long_text_that_is_a_selector_is_read(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical


@pytest.mark.parametrize(
    ("open_level", "innermost", "levels_per_opening"),
    [("!(", "has(a)", 1), ("(has(b) && ", "has(a)", 1), ("!(has(c) || has(b) && ", "has(a)", 3)],
)
def test_the_deepest_tree_can_be_used_in_every_way(
    open_level: str, innermost: str, levels_per_opening: int
) -> None:
    count = (MAX_DEPTH - 1) // levels_per_opening
    selector = parse(open_level * count + innermost + ")" * count)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(_stack_depth() + 500)  # what a deep caller leaves: half of Python's 1,000
    try:
        selector.evaluate({"a": "x", "b": "x"})
        assert parse(selector.prefixed("p.").canonical).label_keys <= {"p.a", "p.b", "p.c"}
        assert selector.terms and selector.restrictions is not None and not selector.has_global
    finally:
        sys.setrecursionlimit(before)
    with pytest.raises(SelectorError, match="nested more than 400 levels deep"):
        parse(open_level * (count + levels_per_opening) + innermost + ")" * (count + levels_per_opening))


def _stack_depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth
