"""Go's fmt.Sprintf for the values a template has: strings, numbers, booleans, lists, maps, nil."""

import re
from collections.abc import Sequence
from typing import Any

from tortie.calicoctl.gotemplate.values import NO_VALUE, text_of, type_name

_VERB = re.compile(r"%([-+# 0]*)(\d+|\*)?(?:\.(\d+|\*)?)?(.?)", re.DOTALL)
_WIDEST = 1000  # characters; Go's limit is 10^6, nobody reads a million columns


def sprintf(form: str, arguments: Sequence[Any]) -> str:
    """Never raises for what the arguments are: Go tells a mistake in the text, as `%!d(string=x)`."""
    rest = list(arguments)

    def verb(match: re.Match[str]) -> str:
        flags, width, precision, letter = match[1], match[2], match[3], match[4]
        wide = _size(width, rest)
        exact = _size(precision, rest) if "." in match[0][: len(match[0]) - len(letter)] else None
        if "." in match[0][: len(match[0]) - len(letter)] and exact is None:
            exact = 0
        if letter == "%":
            return "%"
        if not letter:
            return "%!(NOVERB)"
        if not rest:
            return f"%!{letter}(MISSING)"
        return _padded(_formatted(letter, flags, exact, rest.pop(0)), flags, wide)

    text = _VERB.sub(verb, form)
    if rest:
        text += "%!(EXTRA " + ", ".join(f"{type_name(a)}={text_of(a)}" for a in rest) + ")"
    return text


def _size(given: str | None, rest: list[Any]) -> int | None:
    if given != "*":
        return min(int(given), _WIDEST) if given else None
    return min(abs(rest.pop(0)), _WIDEST) if rest and isinstance(rest[0], int) else None


def _padded(text: str, flags: str, width: int | None) -> str:
    if width is None or len(text) >= width:
        return text
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags and re.fullmatch(r"[-+]?[0-9][0-9a-fA-F.e+-]*", text):
        sign = text[0] if text[0] in "+-" else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.rjust(width, "0" if "0" in flags else " ")


def _formatted(letter: str, flags: str, precision: int | None, value: Any) -> str:
    wrong = f"%!{letter}({type_name(value)}={text_of(value)})"
    if letter == "v":
        return "<nil>" if value is NO_VALUE else _with_sign(text_of(value), flags, value)
    if letter == "T":
        return type_name(value)
    if value is None or value is NO_VALUE:
        return f"%!{letter}(<nil>)"
    if isinstance(value, list | tuple):
        return "[" + " ".join(_formatted(letter, flags, precision, item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = ((key, _formatted(letter, flags, precision, value[key])) for key in sorted(value))
        return (
            "map["
            + " ".join(f"{_formatted(letter, flags, precision, key)}:{item}" for key, item in pairs)
            + "]"
        )
    if isinstance(value, bool):
        return text_of(value) if letter == "t" else wrong
    if isinstance(value, int):
        return _integer(letter, flags, int(value)) or wrong
    if isinstance(value, float):
        return _float(letter, flags, precision, value) or wrong
    if isinstance(value, str):
        return _string(letter, flags, precision, value) or (wrong if letter not in "sqxX" else "")
    return text_of(value) if letter == "s" else wrong


def _with_sign(text: str, flags: str, value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "+" + text if is_number and "+" in flags and not text.startswith("-") else text


def _integer(letter: str, flags: str, value: int) -> str:
    forms = {"d": "d", "b": "b", "o": "o", "x": "x", "X": "X"}
    if letter == "c":
        return chr(value) if 0 <= value < 0x110000 else "\ufffd"
    if letter == "U":
        return f"U+{value:04X}"
    if letter == "q":
        return _quoted(chr(value), "'") if 0 <= value < 0x110000 else "'\ufffd'"
    if letter not in forms:
        return ""
    prefix = {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(letter, "") if "#" in flags else ""
    sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
    return f"{sign}{prefix}{abs(value):{forms[letter]}}"


def _float(letter: str, flags: str, precision: int | None, value: float) -> str:
    if letter not in "eEfFgG":
        return ""
    if letter in "gG" and precision is None:
        text = text_of(value)
    else:
        text = f"{value:.{6 if precision is None else precision}{letter}}"
    return _with_sign(text, flags, value)


def _string(letter: str, flags: str, precision: int | None, value: str) -> str:
    text = value if precision is None else value[:precision]
    match letter:
        case "s":
            return text_of(text)
        case "q":
            return (
                f"`{text}`" if "#" in flags and "`" not in text and text.isprintable() else _quoted(text, '"')
            )
        case "x":
            return text.encode().hex(" ") if " " in flags else text.encode().hex()
        case "X":
            return text.encode().hex(" ").upper() if " " in flags else text.encode().hex().upper()
    return ""


def _quoted(text: str, quote: str) -> str:
    """strconv.Quote"""
    short = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v"}

    def shown(character: str) -> str:
        if character in (quote, "\\"):
            return "\\" + character
        if character in short:
            return "\\" + short[character]
        if character.isprintable():
            return character
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"

    return quote + "".join(map(shown, text)) + quote
