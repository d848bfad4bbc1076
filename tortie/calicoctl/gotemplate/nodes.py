"""The syntax tree of a Go template. Positions are offsets into the text, for errors."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    at: int


@dataclass(frozen=True, slots=True)
class Literal(Node):
    """A string, number or boolean; `source` is how it was written."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Nil(Node):
    pass


@dataclass(frozen=True, slots=True)
class Dot(Node):
    pass


@dataclass(frozen=True, slots=True)
class Field(Node):
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable(Node):
    """`$`, `$x` or `$x.Field`."""

    name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Function(Node):
    name: str


@dataclass(frozen=True, slots=True)
class Chain(Node):
    """Fields of a parenthesised pipeline."""

    of: "Pipe"
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command(Node):
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Pipe(Node):
    """Commands, each given the value of the one before; then the variables that take the result."""

    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    assigns: bool = False  # `=` to variables that exist, not `:=`


@dataclass(frozen=True, slots=True)
class Text(Node):
    text: str


@dataclass(frozen=True, slots=True)
class Action(Node):
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch(Node):
    """if, with or range."""

    keyword: str
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Jump(Node):
    keyword: str  # break | continue


@dataclass(frozen=True, slots=True)
class Include(Node):
    """{{template "name" pipeline}}"""

    name: str
    pipe: Pipe | None


def source(node: Node) -> str:
    """The node as Go writes it into errors."""
    match node:
        case Literal():
            return node.source
        case Nil():
            return "nil"
        case Dot():
            return "."
        case Field():
            return "".join(f".{name}" for name in node.names)
        case Variable():
            return ".".join((node.name, *node.names))
        case Function():
            return node.name
        case Chain():
            return f"({source(node.of)})" + "".join(f".{name}" for name in node.names)
        case Command():
            return " ".join(
                f"({source(part)})" if isinstance(part, Pipe) else source(part) for part in node.arguments
            )
        case Pipe():
            sign = " = " if node.assigns else " := "
            start = ", ".join(node.variables) + sign if node.variables else ""
            return start + " | ".join(map(source, node.commands))
        case Include():
            return f'{{{{template "{node.name}"{" " + source(node.pipe) if node.pipe else ""}}}}}'
    return type(node).__name__.lower()
