"""What an unquoted YAML word means to Go's YAML library, version 2, which Calico reads and writes with.

The reader needs it for input, the writer to know which strings must be quoted. Pure.
"""

import math
import re

Scalar = None | bool | int | float | str

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"], True),
    **dict.fromkeys(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"], False),
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **dict.fromkeys([".nan", ".NaN", ".NAN"], float("nan")),
    **dict.fromkeys([".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"], float("inf")),
    **dict.fromkeys(["-.inf", "-.Inf", "-.INF"], float("-inf")),
}
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"
    r"([Tt][0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}([.,][0-9]+)?(Z|[-+][0-9]{2}:[0-9]{2})"
    r"| [0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}([.,][0-9]+)?)?",
    re.ASCII,
)
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", re.ASCII)
_INT64, _UINT64 = 2**63, 2**64
_LONGEST_NUMBER = 512  # characters; keeps hostile digits away from quadratic conversions


def resolve(text: str) -> Scalar:
    """The value of an unquoted word; a timestamp is its text, as for Calico."""
    if text in _WORDS:
        return _WORDS[text]
    if text and text[0] in "+-.0123456789" and len(text) <= _LONGEST_NUMBER:
        plain = text if text[0] == "." else text.replace("_", "")
        if _INTEGER.fullmatch(plain) and (whole := _integer(plain)) is not None:
            return whole
        if _FLOAT.fullmatch(plain) and not math.isinf(number := float(plain)):
            return number
    return text


def _integer(plain: str) -> int | None:
    """As strconv.ParseInt with base 0, then ParseUint; None beyond 64 bits."""
    sign, digits = (plain[0], plain[1:]) if plain[0] in "+-" else ("", plain)
    if len(digits) > 1 and digits[0] == "0" and digits[1] not in "xXbBoO":
        digits = "0o" + digits[1:]
    number = int(digits, 0)
    if sign:
        number = -number if sign == "-" else number
        return number if -_INT64 <= number < _INT64 else None
    return number if number < _UINT64 else None


def needs_quotes(text: str) -> bool:
    """Whether the string, written plainly, would read as something else (also in YAML 1.1 generally)."""
    if text == "<<":
        return True
    value = resolve(text)
    return not isinstance(value, str) or bool(_TIMESTAMP.fullmatch(text)) or bool(_BASE_60.fullmatch(text))
