"""Calico's selector language: which labels does a text such as `app == "web" && has(tier)` select.

The face:
- `parse(text)` gives a `Selector` or raises `SelectorError`; `normalise(text)` gives canonical text and
  never raises. Any string may be given to both, of any origin: they take time in proportion to its length.
- `Selector`: `evaluate(labels)`, `canonical`, `id` (Calico's, `s:…`), `prefixed(prefix)`, `label_keys`,
  `has_global`; equal by canonical text. `ALL` selects everything, `NOTHING` nothing.
- `ChainLabels(own, parent, …)`: labels with inheritance, for `evaluate`.
- `SelectorIndex`: the matches between many selectors and many items with parents, kept up to date by
  re-evaluating only what a change can affect; reports each `Match` that started or stopped.
- `unique_id(prefix, content)`: Calico's digest for ids, of which the selector id is one.

Reference: projectcalico/calico, libcalico-go/lib/selector and felix/labelindex.
"""

from tortie.datastore.selector.errors import SelectorError
from tortie.datastore.selector.index import Match, SelectorIndex
from tortie.datastore.selector.labels import ChainLabels
from tortie.datastore.selector.parser import normalise, parse
from tortie.datastore.selector.selector import Selector, unique_id

ALL = parse("all()")
NOTHING = parse("!all()")

__all__ = [
    "ALL",
    "NOTHING",
    "ChainLabels",
    "Match",
    "Selector",
    "SelectorError",
    "SelectorIndex",
    "normalise",
    "parse",
    "unique_id",
]
