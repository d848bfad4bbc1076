"""Text to tokens, exactly as Calico's selector/tokenizer cuts them.

Blanks are space and tab only. Words such as `in` or `contains` are operators only straight after a label,
and `has(`, `all(`, `global(` are calls only elsewhere, so that all of them may also be names of labels.
One pass, each character looked at a fixed number of times.
"""

import re
from enum import Enum
from typing import NamedTuple

from tortie.datastore.selector.errors import SelectorError

MAX_LABEL_LENGTH = 512  # bytes of a label's name, Calico's limit; the characters allowed are ASCII


class Kind(Enum):
    """What a token is; the value is how a message names it."""

    LABEL = "label"
    STRING = "string"
    HAS = "has"
    ALL = "all()"
    GLOBAL = "global()"
    EQUALS = "=="
    NOT_EQUALS = "!="
    CONTAINS = "contains"
    STARTS_WITH = "starts with"
    ENDS_WITH = "ends with"
    IN = "in"
    NOT_IN = "not in"
    NOT = "!"
    AND = "&&"
    OR = "||"
    LPAREN = "("
    RPAREN = ")"
    LBRACE = "{"
    RBRACE = "}"
    COMMA = ","
    END = "end of selector"


class Token(NamedTuple):
    """One token; `value` is the label of LABEL and HAS, the literal of STRING, and empty otherwise."""

    kind: Kind
    value: str
    position: int  # of its first character in the text

    def __str__(self) -> str:
        return f"{self.kind.value} {self.value!r}" if self.value else self.kind.value


_CALLS = {"has": Kind.HAS, "all": Kind.ALL, "global": Kind.GLOBAL}  # name -> its kind
_SHOWN = 40  # characters shown of a label that is too long
_BLANKS = re.compile(r"[ \t]*")
_SYMBOL = re.compile(r"==|!=|&&|\|\||[(){},!]")
_LABEL = re.compile(r"[A-Za-z0-9_./-]+")
_CALL = re.compile(r"(has|all|global)\(")
# An operator does not end where a label's name could go on: `a inb` is not `a in b`.
_WORD_OPERATOR = re.compile(
    r"(contains|starts[ \t]*with|ends[ \t]*with|not[ \t]*in|in)(?![A-Za-z0-9_./-])",
)
_WORD_OPERATORS = {  # the operator without its blanks -> its kind
    "contains": Kind.CONTAINS,
    "startswith": Kind.STARTS_WITH,
    "endswith": Kind.ENDS_WITH,
    "notin": Kind.NOT_IN,
    "in": Kind.IN,
}


def valid_label(label: str) -> bool:
    """Whether `label` can be the name of a label in a selector."""
    return _LABEL.fullmatch(label) is not None and len(label) <= MAX_LABEL_LENGTH


def tokenize(text: str) -> list[Token]:
    """All tokens of `text`, the last one END. Raises SelectorError."""
    scanner = _Scanner(text)
    tokens = [scanner.next(after=None)]
    while tokens[-1].kind is not Kind.END:
        tokens.append(scanner.next(after=tokens[-1]))
    return tokens


class _Scanner:
    """A text and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def next(self, after: Token | None) -> Token:
        """The next token; `after` is the one before it."""
        self._skip(_BLANKS)
        start = self._position
        if start == len(self._text):
            return Token(Kind.END, "", start)
        if symbol := self._skip(_SYMBOL):
            return Token(Kind(symbol[0]), "", start)
        first = self._text[start]
        if first in "\"'":
            return Token(Kind.STRING, self._literal(first), start)
        if first in "=&|":
            raise self._error(f"expected {first}{first}")
        if after is not None and after.kind is Kind.LABEL:
            return Token(self._word_operator(after.value), "", start)
        if call := self._skip(_CALL):
            return self._call(call[1], start)
        return Token(Kind.LABEL, self._label(), start)

    def _literal(self, quote: str) -> str:
        """Up to the same quote again; there is no way to escape one."""
        start = self._position + 1
        end = self._text.find(quote, start)
        if end < 0:
            raise self._error("unterminated string")
        self._position = end + 1
        return self._text[start:end]

    def _word_operator(self, label: str) -> Kind:
        operator = self._skip(_WORD_OPERATOR)
        if operator is None:
            raise self._error(f'expected operator after label "{label}"')
        return _WORD_OPERATORS["".join(operator[1].split())]

    def _call(self, name: str, start: int) -> Token:
        """The rest of `has(label)`, `all()` or `global()`."""
        self._skip(_BLANKS)
        argument = self._label() if name == "has" else ""
        self._skip(_BLANKS)
        if not self._text.startswith(")", self._position):
            raise self._error(f"no closing ')' after {name}(")
        self._position += 1
        return Token(_CALLS[name], argument, start)

    def _label(self) -> str:
        start = self._position
        label = self._skip(_LABEL)
        if label is None:
            raise self._error("expected identifier")
        if len(label[0]) > MAX_LABEL_LENGTH:
            raise SelectorError(f"label too long: {label[0][:_SHOWN]}…", start, self._text)
        return label[0]

    def _skip(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Read what `pattern` matches here, if anything."""
        if found := pattern.match(self._text, self._position):
            self._position = found.end()
        return found

    def _error(self, reason: str) -> SelectorError:
        return SelectorError(reason, self._position, self._text)
