"""The tree of a selector: one small frozen class for each kind of node.

A node knows three things: whether labels satisfy it, how Calico writes it in canonical form, and how it
looks with a prefix before every label name. The rules are those of Calico's parser/ast.go: a test of a
label that is missing is false, except that `!=` and `not in` are then true.

All functions recurse once per level of the tree and nowhere else (no generators or comprehensions in
between, they would be levels of their own), so MAX_DEPTH bounds the use of Python's stack.
It does not know the text: reading it is tokenizer.py's and parser.py's work.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

MAX_DEPTH = 400
"""Levels a tree may have.

The cheapest level in text is `!(…)`, three characters, so the 1,024 characters that the API grants a
selector cannot reach 341; the rest is room for the few levels which joining two selectors adds. Python
raises RecursionError at 1,000 frames, of which 400 leave the greater part to the callers.
"""

Term = tuple[str, str | None]
"""(label, value): the label has that value; value None: it has any value at all."""


Labels = Mapping[str, str]
"""What a selector is evaluated against; ChainLabels (labels.py) if some are inherited."""


class Node(ABC):
    """One operator with its operands."""

    __slots__ = ()

    @abstractmethod
    def evaluate(self, labels: Labels) -> bool:
        """Whether `labels` satisfy this node."""

    @abstractmethod
    def write(self, out: list[str]) -> None:
        """Append the canonical text, in pieces."""

    def prefixed(self, prefix: str) -> "Node":
        """The same tree with `prefix` before every label name."""
        return self

    def operands(self) -> tuple["Node", ...]:
        return ()

    def terms(self) -> tuple[Term, ...]:
        """What a test of a label looks at: while none of these comes or goes, the verdict stays.

        Value None stands for any change of the label. Other nodes look at nothing themselves.
        """
        return ()


@dataclass(frozen=True, slots=True)
class All(Node):
    """`all()`: true."""

    def evaluate(self, labels: Labels) -> bool:
        return True

    def write(self, out: list[str]) -> None:
        out.append("all()")


@dataclass(frozen=True, slots=True)
class Global(Node):
    """`global()`: true; whoever converts a policy gives it its meaning before it comes to evaluation."""

    def evaluate(self, labels: Labels) -> bool:
        return True

    def write(self, out: list[str]) -> None:
        out.append("global()")


@dataclass(frozen=True, slots=True)
class LabelTest(Node):
    """A test of one label: everything but constants, negation and junctions."""

    label: str

    def terms(self) -> tuple[Term, ...]:
        return ((self.label, None),)


@dataclass(frozen=True, slots=True)
class Has(LabelTest):
    """`has(label)`."""

    def evaluate(self, labels: Labels) -> bool:
        return labels.get(self.label) is not None

    def write(self, out: list[str]) -> None:
        out.append(f"has({self.label})")

    def prefixed(self, prefix: str) -> Node:
        return Has(prefix + self.label)


@dataclass(frozen=True, slots=True)
class ValueTest(LabelTest):
    """`label OPERATOR "value"`, what the next five have in common."""

    value: str
    operator: ClassVar[str]

    def write(self, out: list[str]) -> None:
        out.append(f"{self.label} {self.operator} {_quoted(self.value)}")

    def prefixed(self, prefix: str) -> Node:
        return type(self)(prefix + self.label, self.value)


class Equals(ValueTest):
    __slots__ = ()
    operator = "=="

    def evaluate(self, labels: Labels) -> bool:
        return labels.get(self.label) == self.value

    def terms(self) -> tuple[Term, ...]:
        return ((self.label, self.value),)


class NotEquals(ValueTest):
    __slots__ = ()
    operator = "!="

    def evaluate(self, labels: Labels) -> bool:
        return labels.get(self.label) != self.value

    def terms(self) -> tuple[Term, ...]:
        return ((self.label, self.value),)


class Contains(ValueTest):
    __slots__ = ()
    operator = "contains"

    def evaluate(self, labels: Labels) -> bool:
        found = labels.get(self.label)
        return found is not None and self.value in found


class StartsWith(ValueTest):
    __slots__ = ()
    operator = "starts with"

    def evaluate(self, labels: Labels) -> bool:
        found = labels.get(self.label)
        return found is not None and found.startswith(self.value)


class EndsWith(ValueTest):
    __slots__ = ()
    operator = "ends with"

    def evaluate(self, labels: Labels) -> bool:
        found = labels.get(self.label)
        return found is not None and found.endswith(self.value)


@dataclass(frozen=True, slots=True)
class SetTest(LabelTest):
    """`label OPERATOR {"value", …}`, what `in` and `not in` have in common."""

    values: frozenset[str]
    operator: ClassVar[str]

    def write(self, out: list[str]) -> None:
        # Go sorts by bytes. Python sorts by code points, which for UTF-8 is the same order.
        values = ", ".join(map(_quoted, sorted(self.values)))
        out.append(f"{self.label} {self.operator} {{{values}}}")

    def prefixed(self, prefix: str) -> Node:
        return type(self)(prefix + self.label, self.values)

    def terms(self) -> tuple[Term, ...]:
        return tuple((self.label, value) for value in sorted(self.values))


class In(SetTest):
    __slots__ = ()
    operator = "in"

    def evaluate(self, labels: Labels) -> bool:
        return labels.get(self.label) in self.values


class NotIn(SetTest):
    __slots__ = ()
    operator = "not in"

    def evaluate(self, labels: Labels) -> bool:
        return labels.get(self.label) not in self.values


@dataclass(frozen=True, slots=True)
class Not(Node):
    """`!operand`."""

    operand: Node

    def evaluate(self, labels: Labels) -> bool:
        return not self.operand.evaluate(labels)

    def write(self, out: list[str]) -> None:
        out.append("!")
        self.operand.write(out)

    def prefixed(self, prefix: str) -> Node:
        return Not(self.operand.prefixed(prefix))

    def operands(self) -> tuple[Node, ...]:
        return (self.operand,)


@dataclass(frozen=True, slots=True)
class Junction(Node):
    """Two or more operands in the order they were written, what And and Or have in common."""

    parts: tuple[Node, ...]
    operator: ClassVar[str]

    def write(self, out: list[str]) -> None:
        before = "("
        for part in self.parts:
            out.append(before)
            part.write(out)
            before = f" {self.operator} "
        out.append(")")

    def prefixed(self, prefix: str) -> Node:
        parts = []
        for part in self.parts:  # not a comprehension: that would be a frame per level
            parts.append(part.prefixed(prefix))
        return type(self)(tuple(parts))

    def operands(self) -> tuple[Node, ...]:
        return self.parts


class And(Junction):
    __slots__ = ()
    operator = "&&"

    def evaluate(self, labels: Labels) -> bool:
        for part in self.parts:  # noqa: SIM110 - all() of a generator is a frame per level
            if not part.evaluate(labels):
                return False
        return True


class Or(Junction):
    __slots__ = ()
    operator = "||"

    def evaluate(self, labels: Labels) -> bool:
        for part in self.parts:  # noqa: SIM110 - any() of a generator is a frame per level
            if part.evaluate(labels):
                return True
        return False


def walk(root: Node) -> Iterator[tuple[Node, int]]:
    """Every node with its level (the root's is 1), a node before its operands. Needs no stack."""
    waiting = [(root, 1)]
    while waiting:
        node, level = waiting.pop()
        yield node, level
        waiting.extend((operand, level + 1) for operand in node.operands())


def _quoted(value: str) -> str:
    """A literal; no value that was read from text holds both kinds of quotes."""
    return f"'{value}'" if '"' in value else f'"{value}"'
