"""The index of matches: always what brute force finds, every change told once, little evaluated."""

import subprocess
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tortie.datastore.selector import Match, Selector, SelectorIndex, parse
from tortie.datastore.selector.ast import Labels

pytestmark = pytest.mark.unit

# --- against brute force, under any sequence of operations ----------------------------------------

ids = st.integers(0, 4)
names = st.sampled_from(["p", "q", "r"])
label_sets = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3)
tests = st.sampled_from(
    [f"{key} {test}" for key in "abc" for test in
     ('== "x"', '!= "x"', 'in {"x", "y"}', 'not in {"x", "y"}', "in {}", 'contains "x"', 'starts with ""')]
    + [f"has({key})" for key in "abc"]
    + ["all()"]
)  # fmt: skip
selector_texts: st.SearchStrategy[str] = st.recursive(
    tests,
    lambda inner: st.one_of(
        inner.map(lambda text: f"!({text})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda texts: f"({' && '.join(texts)})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda texts: f"({' || '.join(texts)})"),
    ),
    max_leaves=5,
)


class AgainstBruteForce(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index: SelectorIndex[int, int] = SelectorIndex()
        self.selectors: dict[int, str] = {}
        self.items: dict[int, tuple[dict[str, str], list[str]]] = {}
        self.parents: dict[str, dict[str, str]] = {}
        self.told: set[tuple[int, int]] = set()  # (selector, item): what the events so far add up to

    def take(self, events: Iterable[Match[int, int]]) -> None:
        for event in events:
            pair = (event.selector, event.item)
            assert (pair in self.told) is not event.started, "told what was known"
            (self.told.add if event.started else self.told.remove)(pair)

    @rule(selector=ids, text=selector_texts)
    def update_selector(self, selector: int, text: str) -> None:
        self.selectors[selector] = text
        self.take(self.index.update_selector(selector, parse(text)))

    @rule(selector=ids)
    def delete_selector(self, selector: int) -> None:
        self.selectors.pop(selector, None)
        self.take(self.index.delete_selector(selector))

    @rule(item=ids, labels=label_sets, parents=st.lists(names, max_size=3))
    def update_item(self, item: int, labels: dict[str, str], parents: list[str]) -> None:
        self.items[item] = (dict(labels), parents)
        self.take(self.index.update_item(item, labels, parents))
        labels.clear()  # the index has made its own copy

    @rule(item=ids)
    def delete_item(self, item: int) -> None:
        self.items.pop(item, None)
        self.take(self.index.delete_item(item))

    @rule(name=names, labels=label_sets)
    def update_parent(self, name: str, labels: dict[str, str]) -> None:
        self.parents[name] = dict(labels)
        self.take(self.index.update_parent(name, labels))
        labels.clear()

    @rule(name=names)
    def delete_parent(self, name: str) -> None:
        self.parents.pop(name, None)
        self.take(self.index.update_parent(name, {}))

    @invariant()
    def the_matches_are_those_of_brute_force(self) -> None:
        expected = {
            (selector, item)
            for selector, text in self.selectors.items()
            for item, (own, parents) in self.items.items()
            if parse(text).evaluate(ChainMap(own, *(self.parents.get(name, {}) for name in parents)))
        }
        assert self.told == expected
        assert {(s, i) for s in self.selectors for i in self.index.items_of(s)} == expected
        assert {(s, i) for i in self.items for s in self.index.selectors_of(i)} == expected

    def teardown(self) -> None:
        """When everything has gone, in whatever order it came, nothing is kept."""
        for item in self.items:
            self.take(self.index.delete_item(item))
        for name in self.parents:
            self.take(self.index.update_parent(name, {}))
        for selector in self.selectors:
            self.take(self.index.delete_selector(selector))
        assert not self.told
        assert not any(map(len, vars(self.index).values())), "something is left over"


AgainstBruteForce.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestAgainstBruteForce = AgainstBruteForce.TestCase


# --- single behaviours ----------------------------------------------------------------------------


def test_unknown_ids_are_no_error() -> None:
    index: SelectorIndex[str, str] = SelectorIndex()
    assert index.delete_item("i") == index.delete_selector("s") == index.update_parent("p", {}) == []
    assert not index.items_of("s") and not index.selectors_of("i")


def test_a_parent_counts_from_when_it_is_known_and_own_labels_shadow_it() -> None:
    index: SelectorIndex[str, str] = SelectorIndex()
    index.update_selector("s", parse("team == 'a'"))
    assert index.update_item("plain", {}, ["kns.x"]) == []
    assert index.update_item("shadowing", {"team": "b"}, ["kns.x"]) == []
    assert index.update_parent("kns.x", {"team": "a"}) == [Match("s", "plain", True)]
    assert index.update_item("shadowing", {}, ["kns.x"]) == [Match("s", "shadowing", True)]
    assert index.update_parent("kns.x", {}) == [Match("s", "plain", False), Match("s", "shadowing", False)]


def test_earlier_parents_shadow_later_ones() -> None:
    index: SelectorIndex[str, str] = SelectorIndex()
    index.update_parent("first", {"team": "a"})
    index.update_parent("second", {"team": "b"})
    index.update_selector("s", parse("team == 'b'"))
    assert index.update_item("i", {}, ["first", "second"]) == []
    assert index.update_item("i", {}, ["second", "first"]) == [Match("s", "i", True)]
    assert index.update_parent("second", {}) == [Match("s", "i", False)]


def test_a_replaced_selector_tells_the_difference_only() -> None:
    index: SelectorIndex[str, int] = SelectorIndex()
    for number in range(4):
        index.update_item(number, {"n": str(number)})
    index.update_selector("s", parse("n in {'0', '1', '2'}"))
    events = index.update_selector("s", parse("n in {'1', '2', '3'}"))
    assert events == [Match("s", 0, False), Match("s", 3, True)]
    assert list(index.items_of("s")) == [1, 2, 3]


def test_the_order_of_events_does_not_depend_on_hashes() -> None:
    program = """if True:
        from tortie.datastore.selector import SelectorIndex, parse
        index = SelectorIndex()
        for n in range(20):
            index.update_selector(f"s{n}", parse(f"a in {{'{n % 3}', 'x', 'y'}} || b != '{n}' && has(c)"))
        print(index.update_parent("p", {"c": "", "a": "x"}))
        for n in range(20):
            print(index.update_item(f"i{n}", {"a": str(n % 5), "b": str(n)}, ["p"]))
        print(index.update_selector("new", parse("a in {'0', '1', '2'} || has(b)")))
        print(index.update_parent("p", {"c": "z"}))
        print(index.delete_item("i3"), index.delete_selector("s3"))
    """
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1 and "Match(selector='s3'" in outputs.pop()


# --- how little is evaluated ----------------------------------------------------------------------


class Counted(Selector):
    """A selector that notes each evaluation."""

    evaluated: list[str] = []  # noqa: RUF012 - shared by all on purpose; emptied by each test

    def evaluate(self, labels: Labels) -> bool:
        self.evaluated.append(self.canonical)
        return super().evaluate(labels)


def evaluated_by(action: Callable[[], Any]) -> list[str]:
    Counted.evaluated.clear()
    action()
    return sorted(Counted.evaluated)


def cluster() -> SelectorIndex[int, int]:
    """1,000 items in 20 namespaces, 200 selectors that all demand the one label that all items have."""
    index: SelectorIndex[int, int] = SelectorIndex()
    for namespace in range(20):
        index.update_parent(f"kns.{namespace}", {"pcns.name": str(namespace), "pcns.team": "a"})
    for number in range(1000):
        index.update_item(
            number,
            {"orchestrator": "k8s", "ns": str(number % 20), "app": str(number % 50)},
            [f"kns.{number % 20}"],
        )
    for number in range(200):
        text = f"orchestrator == 'k8s' && app == '{number % 50}' && ns == '{number % 20}'"
        index.update_selector(number, Counted(parse(text).root))
    return index


def test_a_label_change_evaluates_what_looks_at_the_old_or_the_new_value() -> None:
    index = cluster()
    for number, text in enumerate(
        ["phase == 'a'", "phase == 'b'", "phase == 'c'", "has(phase)", "other != 'x'"]
    ):
        index.update_selector(1000 + number, Counted(parse(text).root))
    base = {"orchestrator": "k8s", "ns": "0", "app": "0"}
    index.update_item(0, base | {"phase": "a"}, ["kns.0"])
    changed = evaluated_by(lambda: index.update_item(0, base | {"phase": "b"}, ["kns.0"]))
    assert changed == ["has(phase)", 'phase == "a"', 'phase == "b"']
    assert evaluated_by(lambda: index.update_item(0, base | {"phase": "b"}, ["kns.0"])) == []
    assert evaluated_by(lambda: index.update_item(0, base | {"phase": "b", "x": "y"}, ["kns.0"])) == []


def test_a_new_item_evaluates_few_selectors_although_all_demand_a_label_it_has() -> None:
    index = cluster()
    labels = {"orchestrator": "k8s", "ns": "3", "app": "3"}
    assert len(evaluated_by(lambda: index.update_item(2000, labels))) <= 12


def test_a_new_selector_evaluates_the_items_with_its_rarest_demand() -> None:
    index = cluster()
    one = Counted(parse("orchestrator == 'k8s' && app in {'7', '8'} && ns == '7'").root)
    assert len(evaluated_by(lambda: index.update_selector(5000, one))) == 40
    inherited = Counted(parse("orchestrator == 'k8s' && pcns.name == '7'").root)
    assert len(evaluated_by(lambda: index.update_selector(5001, inherited))) == 50
    either = Counted(parse("pcns.name == '7' || app == '8'").root)
    assert len(evaluated_by(lambda: index.update_selector(5002, either))) == 70
    replaced = Counted(parse("pcns.name == '7' || app == '9'").root)
    assert len(evaluated_by(lambda: index.update_selector(5002, replaced))) == 90  # old matches once again
    impossible = Counted(parse("app == '7' && ns in {}").root)
    assert evaluated_by(lambda: index.update_selector(5003, impossible)) == []


def test_a_changed_parent_concerns_its_children_and_the_selectors_that_look() -> None:
    index = cluster()
    looking = Counted(parse("pcns.team != 'a'").root)
    index.update_selector(5000, looking)
    events: list[Match[int, int]] = []
    evaluated = evaluated_by(
        lambda: events.extend(index.update_parent("kns.7", {"pcns.name": "7", "pcns.team": "b"}))
    )
    assert evaluated == [looking.canonical] * 50
    assert events == [Match(5000, number, True) for number in range(7, 1000, 20)]
