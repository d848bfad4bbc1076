"""A Go template's text into tokens."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tortie.calicoctl.errors import CommandError

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\r\n]+)
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<raw>`[^`]*`)
    | (?P<char>'(?:[^'\\\n]|\\[^\n]+?)')
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+
          |(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9_]+)?))
    | (?P<field>\.[^\W\d]\w*)
    | (?P<variable>\$\w*)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign>:=|[=|(),.])
    """,
    re.VERBOSE,
)
_KEYWORDS = {
    "block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """`kind`: text, open, close, end, keyword, or a group of the pattern above."""

    kind: str
    text: str
    at: int


class SyntaxProblem(CommandError):
    """The template cannot be parsed; told with its line."""

    def __init__(self, source: str, at: int, reason: str) -> None:
        super().__init__(f"template: get:{source.count(chr(10), 0, at) + 1}: {reason}")


def tokens(source: str) -> Iterator[Token]:
    """Raises SyntaxProblem. Text beside `{{- ` and ` -}}` comes trimmed, comments do not come."""
    at, trim = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        if trim:
            text = text.lstrip(" \t\r\n")
        if start < 0:
            if text:
                yield Token("text", text, at)
            yield Token("end", "", len(source))
            return
        inside = start + 2
        if source.startswith("{{-", start) and source[start + 3 : start + 4] in tuple(" \t\r\n"):
            text, inside = text.rstrip(" \t\r\n"), start + 3
        if text:
            yield Token("text", text, at)
        if source.startswith("/*", inside) or source.startswith("/*", _skip(source, inside)):
            at, trim = _comment(source, inside)
            continue
        yield Token("open", "{{", start)
        at = inside
        while (close := _closing(source, at)) is None:
            token = _next(source, at)
            at += len(token.text)
            yield token
        yield Token("close", "}}", at)
        at, trim = close


def _skip(source: str, at: int) -> int:
    while at < len(source) and source[at] in " \t\r\n":
        at += 1
    return at


def _closing(source: str, at: int) -> tuple[int, bool] | None:
    """Where text goes on if the action ends here, and whether that is trimmed."""
    if source.startswith("}}", at):
        return at + 2, False
    spaces = _skip(source, at)
    if spaces > at and source.startswith("-}}", spaces):
        return spaces + 3, True
    return None


def _comment(source: str, at: int) -> tuple[int, bool]:
    end = source.find("*/", at)
    if end < 0:
        raise SyntaxProblem(source, at, "unclosed comment")
    if (close := _closing(source, end + 2)) is None:
        raise SyntaxProblem(source, at, "comment ends before closing delimiter")
    return close


def _next(source: str, at: int) -> Token:
    if at >= len(source):
        raise SyntaxProblem(source, at, "unclosed action")
    match = _TOKEN.match(source, at)
    if match is None or match.lastgroup is None:
        unfinished = {'"': "unterminated quoted string", "`": "unterminated raw quoted string"}
        reason = unfinished.get(source[at], f"unexpected {source[at]!a} in command".replace("'", '"'))
        raise SyntaxProblem(source, at, reason)
    kind = "keyword" if match.lastgroup == "word" and match[0] in _KEYWORDS else match.lastgroup
    return Token(kind, match[0], at)
