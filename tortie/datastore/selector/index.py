"""Which selectors match which items, kept up to date under changes of either side.

An item has labels of its own and inherits those of its parents (policy: an endpoint and its profiles);
its own come first, then each parent's in order. Selectors, items and parents may come and go in any
order; a parent that is referenced but not known contributes nothing.

Invariant: after each call, the matches are exactly what evaluating every selector against every item
would give, and the events returned so far, applied in order, say the same, each change once.

What makes it fast is what it leaves out:
- A changed label concerns only selectors that look at it, and at the old or the new value.
- A new item concerns only selectors of which it satisfies the anchor: one restriction (restrictions.py)
  that each selector is filed under.
- A new selector concerns only items that satisfy its narrowest restriction.

Pure: no I/O, no clock, and the same calls in the same order give the same events in the same order.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from tortie.datastore.selector.ast import Labels, Term
from tortie.datastore.selector.buckets import Buckets, Holders
from tortie.datastore.selector.labels import ChainLabels
from tortie.datastore.selector.restrictions import Restriction
from tortie.datastore.selector.selector import Selector

SelectorId = TypeVar("SelectorId", bound=Hashable)
ItemId = TypeVar("ItemId", bound=Hashable)

Change = tuple[str, str | None, str | None]
"""(label, value before, value after), None where it is missing."""


class Match(NamedTuple, Generic[SelectorId, ItemId]):
    """One event: from now on, the selector matches the item, or no longer does."""

    selector: SelectorId
    item: ItemId
    started: bool


Events = list[Match[SelectorId, ItemId]]


@dataclass(slots=True)
class _Selector(Generic[ItemId]):
    selector: Selector
    anchor: Restriction | None  # the restriction it is filed under; None: it has none
    matches: dict[ItemId, None] = field(default_factory=dict)  # items


@dataclass(slots=True)
class _Parent(Generic[ItemId]):
    labels: dict[str, str] = field(default_factory=dict)  # changed in place: items' views look into it
    items: dict[ItemId, None] = field(default_factory=dict)  # those that name it


@dataclass(slots=True)
class _Item(Generic[SelectorId]):
    labels: dict[str, str]
    parents: tuple[str, ...]
    view: ChainLabels  # its labels and, after them, the parents'
    matches: dict[SelectorId, None] = field(default_factory=dict)  # selectors


class SelectorIndex(Generic[SelectorId, ItemId]):
    """All matches between selectors (by their ids) and items (by theirs); parents are named by strings.

    Every changing method returns the events it caused. Deleting what is not there causes none.
    """

    def __init__(self) -> None:
        self._selectors: dict[SelectorId, _Selector[ItemId]] = {}
        self._items: dict[ItemId, _Item[SelectorId]] = {}
        self._parents: dict[str, _Parent[ItemId]] = {}  # those with labels, and those that items name
        self._item_holders: Holders[ItemId] = Holders()
        self._parent_holders: Holders[str] = Holders()
        self._looking_at: Buckets[Term, SelectorId] = Buckets()  # term -> selectors that look at it
        self._anchored: Buckets[Term, SelectorId] = Buckets()  # term -> selectors with it in their anchor
        self._unanchored: dict[SelectorId, None] = {}  # selectors without any restriction

    # --- questions ------------------------------------------------------------------------------

    def items_of(self, selector_id: SelectorId) -> Collection[ItemId]:
        """The items a selector matches now; a live view. Nothing for an unknown selector."""
        found = self._selectors.get(selector_id)
        return found.matches.keys() if found else ()

    def selectors_of(self, item_id: ItemId) -> Collection[SelectorId]:
        """The selectors that match an item now; a live view. Nothing for an unknown item."""
        found = self._items.get(item_id)
        return found.matches.keys() if found else ()

    # --- selectors ------------------------------------------------------------------------------

    def update_selector(self, selector_id: SelectorId, selector: Selector) -> Events[SelectorId, ItemId]:
        """Add a selector, or replace the one of that id: what both match goes on without an event."""
        events: Events[SelectorId, ItemId] = []
        entry = self._selectors.get(selector_id)
        if entry is None:
            entry = self._selectors[selector_id] = _Selector(selector, None)
        elif entry.selector == selector:
            return events
        else:
            self._unfile(selector_id, entry)
            entry.selector = selector
        self._file(selector_id, entry)
        candidates = self._candidate_items(selector.restrictions)
        for item_id in dict.fromkeys([*entry.matches, *candidates]):
            self._judge(selector_id, item_id, self._items[item_id].view, events)
        return events

    def delete_selector(self, selector_id: SelectorId) -> Events[SelectorId, ItemId]:
        entry = self._selectors.pop(selector_id, None)
        if entry is None:
            return []
        self._unfile(selector_id, entry)
        for item_id in entry.matches:
            del self._items[item_id].matches[selector_id]
        return [Match(selector_id, item_id, False) for item_id in entry.matches]

    def _file(self, selector_id: SelectorId, entry: _Selector[ItemId]) -> None:
        for term in entry.selector.terms:
            self._looking_at.add(term, selector_id)
        # The least crowded bucket: all Kubernetes policies demand `projectcalico.org/orchestrator == "k8s"`
        # and an endpoint that satisfies it must not meet them all there.
        entry.anchor = min(entry.selector.restrictions, key=self._crowd, default=None)
        if entry.anchor is None:
            self._unanchored[selector_id] = None
        for term in entry.anchor or ():
            self._anchored.add(term, selector_id)

    def _crowd(self, restriction: Restriction) -> tuple[int, int]:
        """How many selectors an item would meet there at worst; of equals the one with fewer terms."""
        return max((len(self._anchored.get(term)) for term in restriction), default=0), len(restriction)

    def _unfile(self, selector_id: SelectorId, entry: _Selector[ItemId]) -> None:
        for term in entry.selector.terms:
            self._looking_at.discard(term, selector_id)
        self._unanchored.pop(selector_id, None)
        for term in entry.anchor or ():
            self._anchored.discard(term, selector_id)

    def _candidate_items(self, restrictions: Iterable[Restriction]) -> Iterable[ItemId]:
        """No fewer than the items that satisfy all `restrictions`: those that satisfy the rarest."""
        best: Collection[Collection[ItemId]] = [self._items]
        fewest = len(self._items)
        for restriction in restrictions:
            found = [ids for term in restriction for ids in self._carriers(term)]
            if (count := sum(map(len, found))) < fewest:
                best, fewest = found, count
        return dict.fromkeys(item_id for ids in best for item_id in ids)

    def _carriers(self, term: Term) -> list[Collection[ItemId]]:
        """Items that have `term` themselves or from a parent; some of the latter may shadow it."""
        parents = [self._parents[name] for names in self._parent_holders.of(term) for name in names]
        return [*self._item_holders.of(term), *(parent.items for parent in parents)]

    # --- items ----------------------------------------------------------------------------------

    def update_item(
        self, item_id: ItemId, labels: Mapping[str, str], parents: Iterable[str] = ()
    ) -> Events[SelectorId, ItemId]:
        """Add an item, or replace the labels and parents of the one of that id. `labels` is copied."""
        own, names = dict(labels), tuple(parents)
        known = self._items.get(item_id)
        if known is None:
            return self._add_item(item_id, own, names)
        if (own, names) == (known.labels, known.parents):
            return []
        before = known.view.merged()
        self._item_holders.remove(item_id, known.labels)
        self._item_holders.add(item_id, own)
        former, known.labels, known.parents = known.parents, own, names
        known.view = self._adopt(item_id, own, names)
        self._disown(item_id, (name for name in former if name not in names))
        changes = _difference(before, known.view.merged())
        return self._judge_all(self._affected(changes), item_id, known.view)

    def _add_item(
        self, item_id: ItemId, labels: dict[str, str], parents: tuple[str, ...]
    ) -> Events[SelectorId, ItemId]:
        view = self._adopt(item_id, labels, parents)
        self._items[item_id] = _Item(labels, parents, view)
        self._item_holders.add(item_id, labels)
        everything = view.merged()
        candidates = dict(self._unanchored)
        for label, value in everything.items():
            candidates.update(self._anchored.get((label, value)))
            candidates.update(self._anchored.get((label, None)))
        return self._judge_all(candidates, item_id, everything)

    def delete_item(self, item_id: ItemId) -> Events[SelectorId, ItemId]:
        item = self._items.pop(item_id, None)
        if item is None:
            return []
        self._item_holders.remove(item_id, item.labels)
        self._disown(item_id, item.parents)
        for selector_id in item.matches:
            del self._selectors[selector_id].matches[item_id]
        return [Match(selector_id, item_id, False) for selector_id in item.matches]

    def _adopt(self, item_id: ItemId, labels: dict[str, str], parents: tuple[str, ...]) -> ChainLabels:
        """Make `item_id` a child of `parents`; returns its view of all labels."""
        records = [self._parents.setdefault(name, _Parent()) for name in parents]
        for parent in records:
            parent.items[item_id] = None
        return ChainLabels(labels, *(parent.labels for parent in records))

    def _disown(self, item_id: ItemId, parents: Iterable[str]) -> None:
        for name in dict.fromkeys(parents):
            self._parents[name].items.pop(item_id)
            self._drop_if_unused(name)

    # --- parents --------------------------------------------------------------------------------

    def update_parent(self, name: str, labels: Mapping[str, str]) -> Events[SelectorId, ItemId]:
        """Add a parent, or replace the labels of the one of that name; without labels it is gone, and items
        that still name it inherit nothing until it comes back. `labels` is copied."""
        parent = self._parents.setdefault(name, _Parent())
        keys = [label for label, _old, _new in _difference(parent.labels, labels)]
        before = [[self._items[item_id].view.get(key) for key in keys] for item_id in parent.items]
        self._parent_holders.remove(name, parent.labels)
        parent.labels.clear()
        parent.labels.update(labels)
        self._parent_holders.add(name, parent.labels)
        events = self._judge_children(parent, keys, before)
        self._drop_if_unused(name)
        return events

    def _judge_children(
        self, parent: _Parent[ItemId], keys: list[str], before: list[list[str | None]]
    ) -> Events[SelectorId, ItemId]:
        """After a change of a parent's labels `keys`; `before` has each item's values of them until then."""
        events: Events[SelectorId, ItemId] = []
        # changes -> selectors; a cache, because most children see the very same changes
        affected: dict[tuple[Change, ...], Collection[SelectorId]] = {}
        for item_id, old_values in zip(parent.items, before, strict=True):
            view = self._items[item_id].view
            values = ((key, old, view.get(key)) for key, old in zip(keys, old_values, strict=True))
            changes = tuple(change for change in values if change[1] != change[2])
            if changes not in affected:
                affected[changes] = self._affected(changes)
            events += self._judge_all(affected[changes], item_id, view)
        return events

    def _drop_if_unused(self, name: str) -> None:
        parent = self._parents[name]
        if not parent.items and not parent.labels:
            del self._parents[name]

    # --- verdicts -------------------------------------------------------------------------------

    def _affected(self, changes: Iterable[Change]) -> Collection[SelectorId]:
        """Selectors whose verdict about an item may be another one after `changes` of its labels."""
        found: dict[SelectorId, None] = {}
        for label, old, new in changes:
            for value in (old, new):
                if value is not None:
                    found.update(self._looking_at.get((label, value)))
            found.update(self._looking_at.get((label, None)))
        return found

    def _judge_all(
        self, selector_ids: Iterable[SelectorId], item_id: ItemId, labels: Labels
    ) -> Events[SelectorId, ItemId]:
        events: Events[SelectorId, ItemId] = []
        for selector_id in selector_ids:
            self._judge(selector_id, item_id, labels, events)
        return events

    def _judge(
        self,
        selector_id: SelectorId,
        item_id: ItemId,
        labels: Labels,
        events: Events[SelectorId, ItemId],
    ) -> None:
        """Evaluate one pair; record and report the verdict if it is a new one."""
        entry = self._selectors[selector_id]
        matches = entry.selector.evaluate(labels)
        if matches == (item_id in entry.matches):
            return
        if matches:
            entry.matches[item_id] = self._items[item_id].matches[selector_id] = None
        else:
            del entry.matches[item_id], self._items[item_id].matches[selector_id]
        events.append(Match(selector_id, item_id, matches))


def _difference(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """The labels that differ."""
    changed = [(key, old, after.get(key)) for key, old in before.items() if after.get(key) != old]
    return changed + [(key, None, new) for key, new in after.items() if key not in before]
