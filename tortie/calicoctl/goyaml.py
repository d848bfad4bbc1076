"""YAML as Go's library writes it (sigs.k8s.io/yaml over go-yaml 2), so that files can be compared.

Keys in natural order, lists not indented below their key, strings that would read as something else in
double quotes, other awkward strings in single quotes, long lines folded after column 80. Only plain JSON
data goes in. Control characters never come out raw. Pure.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any

from tortie.calicoctl.gonumber import format_float
from tortie.calicoctl.goscalar import needs_quotes

_WIDTH = 80
_LONGEST_SIMPLE_KEY = 128  # bytes; a longer key is written as `? key`
_UNPRINTABLE = re.compile("[^\n\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd]|[\u2028\u2029]")
_BREAK = re.compile("[\n\r\x85\u2028\u2029]")
_PLAIN_FORBIDDEN = re.compile(r"[#,\[\]{}&*!|>'\"%@`]|[?:-](\s|$)|---|\.\.\.")  # at the start
_PLAIN_BREAKING = re.compile(r":(\s|$)|\s#")  # anywhere
_ESCAPES = {
    "\0": "0", "\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r",
    "\x1b": "e", '"': '"', "\\": "\\", "\x85": "N", "\u2028": "L", "\u2029": "P",
}  # fmt: skip
_ESCAPED = re.compile(rf'{_UNPRINTABLE.pattern}|["\\\n]')


def dump(value: Any) -> str:
    """One document, ending in a newline."""
    writer = _Writer()
    writer.node(value, -2, in_mapping=False)
    writer.line(0)
    return "".join(writer.parts)


class _Writer:
    """A pen on a line: `whitespace` and `indention` say what stands before it."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.column = 0
        self.whitespace = True  # a space, or nothing, stands before the pen
        self.indention = True  # nothing but indentation and `-` `?` `:` stands before the pen

    def put(self, text: str) -> None:
        self.parts.append(text)
        self.column += len(text)

    def line(self, indent: int) -> None:
        """Move to this column of a line on which nothing but indicators stands."""
        if not self.indention or self.column > indent or (self.column == indent and not self.whitespace):
            self.parts.append("\n")
            self.column = 0
        if self.column < indent:
            self.put(" " * (indent - self.column))
        self.whitespace = self.indention = True

    def indicator(self, text: str, *, apart: bool, keeps_indention: bool) -> None:
        self.put(" " + text if apart and not self.whitespace else text)
        self.whitespace = False
        self.indention = self.indention and keeps_indention

    def node(self, value: Any, indent: int, *, in_mapping: bool) -> None:
        if isinstance(value, dict) and value:
            self.mapping(value, indent + 2)
        elif isinstance(value, list) and value:
            self.sequence(value, indent if in_mapping and not self.indention else indent + 2)
        elif isinstance(value, dict | list):
            self.indicator("{}" if isinstance(value, dict) else "[]", apart=True, keeps_indention=False)
        else:
            self.scalar(value, max(indent, 0) + 2)

    def mapping(self, value: dict[str, Any], indent: int) -> None:
        for key in _sorted(value):
            self.line(indent)
            if not _BREAK.search(key) and len(key.encode("utf-8", "surrogatepass")) <= _LONGEST_SIMPLE_KEY:
                self.scalar(key, indent + 2, is_key=True)
                self.indicator(":", apart=False, keeps_indention=False)
            else:
                self.indicator("?", apart=True, keeps_indention=True)
                self.scalar(key, indent + 2)
                self.line(indent)
                self.indicator(":", apart=True, keeps_indention=True)
            self.node(value[key], indent, in_mapping=True)

    def sequence(self, value: list[Any], indent: int) -> None:
        for item in value:
            self.line(indent)
            self.indicator("-", apart=True, keeps_indention=True)
            self.node(item, indent, in_mapping=False)

    def scalar(self, value: Any, indent: int, *, is_key: bool = False) -> None:
        if isinstance(value, str):
            self.string(value, indent, is_key)
        else:
            self.indicator(_plain_value(value), apart=True, keeps_indention=False)

    def string(self, text: str, indent: int, is_key: bool) -> None:
        fold = not is_key
        odd = _UNPRINTABLE.search(text) is not None or " \n" in text
        if "\n" in text and not odd and not text.endswith(" ") and fold:
            self.literal(text, indent)
            return
        elif "\n" in text or odd or needs_quotes(text):
            self.double_quoted(text, indent, fold)
        elif _is_plain(text):
            self.folded(text, indent, fold)
        else:
            quoted = text.replace("'", "''")
            self.folded(f"'{quoted}'", indent, fold, inner=True)
        self.whitespace = self.indention = False

    def folded(self, text: str, indent: int, fold: bool, inner: bool = False) -> None:
        """Plain or single-quoted text: broken at single spaces that stand beyond the width."""
        if not self.whitespace:
            self.put(" ")
        if not fold or self.column + len(text) <= _WIDTH:
            self.put(text)
            return
        start = 0
        # A space right inside the quotes is content at the edge, where no line may end.
        first, last = (2, len(text) - 2) if inner else (0, len(text))
        for space in re.finditer(" +", text):
            at = space.start()
            if len(space[0]) > 1 or not first <= at < last:
                continue
            if self.column + at - start > _WIDTH:
                self.put(text[start:at])
                self._break(indent)
                start = at + 1
        self.put(text[start:])

    def double_quoted(self, text: str, indent: int, fold: bool) -> None:
        if not self.whitespace:
            self.put(" ")
        self.put('"')
        spaces = False
        at, end = 0, len(text)
        while at < end:
            if text[at] == " ":
                if fold and not spaces and self.column > _WIDTH and 0 < at < end - 1:
                    self._break(indent)
                    if text[at + 1] == " ":
                        self.put("\\")
                else:
                    self.put(" ")
                spaces, at = True, at + 1
            else:
                run = text.find(" ", at)
                run = end if run < 0 else run
                self.put(_ESCAPED.sub(_escaped, text[at:run]))
                spaces, at = False, run
        self.put('"')

    def literal(self, text: str, indent: int) -> None:
        if not self.whitespace:
            self.put(" ")
        self.put("|" + ("2" if text[0] in " \n" else "") + _chomping(text) + "\n")
        lines = text.split("\n")
        ends = lines.pop() if lines[-1] == "" else None
        body = "\n".join(" " * indent + line if line else "" for line in lines)
        self.parts.append(body + "\n" if ends is not None else body)
        self.column = 0 if ends is not None else indent + len(lines[-1])
        self.whitespace = self.indention = ends is not None

    def _break(self, indent: int) -> None:
        self.parts.append("\n" + " " * indent)
        self.column = indent


def _chomping(text: str) -> str:
    if not text.endswith("\n"):
        return "-"
    return "+" if text == "\n" or text.endswith("\n\n") else ""


def _plain_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else format_float(value)


def _is_plain(text: str) -> bool:
    return not (
        text.startswith(" ")
        or text.endswith(" ")
        or _PLAIN_FORBIDDEN.match(text)
        or _PLAIN_BREAKING.search(text)
    )


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in _ESCAPES:
        return "\\" + _ESCAPES[character]
    code = ord(character)
    return f"\\x{code:02X}" if code <= 0xFF else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def _sorted(keys: Iterable[str]) -> list[str]:
    ordered = list(keys)
    if all(key.isascii() and key.isalpha() for key in ordered):
        return sorted(ordered)
    return sorted(ordered, key=functools.cmp_to_key(_natural))


def _natural(a: str, b: str) -> int:
    """Go-yaml's order of keys: digits by their number, letters after everything else."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x == y:
            continue
        if x.isalpha() and y.isalpha():
            return -1 if x < y else 1
        if x.isalpha() or y.isalpha():
            return 1 if x.isalpha() else -1
        left, right = _number_at(a, b, index), _number_at(b, a, index)
        if left != right:
            return -1 if left < right else 1
        return -1 if x < y else 1
    return len(a) - len(b)


def _number_at(text: str, other: str, index: int) -> tuple[int, int]:
    """The number that the digits from here form, and where they end.

    Where one of the two strings has a 0 here, digits before the difference count as a leading 1.
    """
    prefix = ""
    if "0" in (text[index], other[index]):
        before = re.search(r"\d*$", text[:index])
        prefix = "1" if before and before[0].strip("0") else ""
    digits = re.match(r"\d*", text[index:])
    run = digits[0] if digits else ""
    return int(prefix + run or "0"), index + len(run)
