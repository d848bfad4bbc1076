"""What labels must have before a selector can match them: how an index finds the few worth evaluating.

Calico has the same idea (LabelRestrictions in parser/ast.go), per label name and joined by "and". Here a
restriction is a list of terms of which labels must satisfy at least one, so `a == "1" || b == "2"`, about
which Calico's form can say nothing, is restricted as well. Negation is pushed down to the tests.
"""

from tortie.datastore.selector import ast
from tortie.datastore.selector.ast import Term

Restriction = tuple[Term, ...]
"""Labels that match have at least one of these; the empty one says that none can match."""

_IMPOSSIBLE: Restriction = ()


def restrictions(node: ast.Node, negated: bool = False) -> tuple[Restriction, ...]:
    """All known restrictions of `node` (of its negation, if `negated`); each one holds by itself."""
    match node:
        case ast.Not(operand):
            return restrictions(operand, not negated)
        case ast.And(parts) | ast.Or(parts):
            of_parts = []
            for part in parts:  # not a comprehension: that would be a frame per level
                of_parts.append(restrictions(part, negated))
            return _of_and(of_parts) if isinstance(node, ast.And) is not negated else _of_or(of_parts)
        case ast.All() | ast.Global():
            return (_IMPOSSIBLE,) if negated else ()
        case ast.NotEquals() | ast.NotIn():
            return (node.terms(),) if negated else ()
        case _:  # the tests that are false for a label that is missing
            return () if negated else (node.terms(),)


def _of_and(of_parts: list[tuple[Restriction, ...]]) -> tuple[Restriction, ...]:
    """Whatever restricts one part restricts the whole."""
    return tuple(restriction for part in of_parts for restriction in part)


def _of_or(of_parts: list[tuple[Restriction, ...]]) -> tuple[Restriction, ...]:
    """One restriction of each part, joined, restricts the whole: the narrowest of each, the next, and so on.

    Only as many as the part with the fewest has (none, if a part has none): all combinations would
    restrict no more tightly and be exponentially many.
    """
    ranked = [sorted(part, key=_width) for part in of_parts]
    return tuple(_join(combination) for combination in zip(*ranked, strict=False))


def _join(combination: tuple[Restriction, ...]) -> Restriction:
    return tuple(dict.fromkeys(term for restriction in combination for term in restriction))


def _width(restriction: Restriction) -> tuple[bool, int]:
    """Narrow ones first: few values rather than many, and any values rather than "the label is there"."""
    return any(value is None for _label, value in restriction), len(restriction)
