"""RE2 regular expressions, which Calico's configuration is written in, as Python patterns.

The result means the same; what only one of the two languages has is refused. Python's matcher can take time
exponential in the length of what it is given: match names of interfaces and the like, nothing longer.
"""

import re

_MAX_REGEXP = 1024  # characters; the longest default (an interface pattern) has 60
_CLASSES = {  # POSIX class inside [...] -> the characters, as RE2 defines them
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_TOKEN = re.compile(
    r"""\\(?P<escape>.)
      | \[:(?P<class>\^?[a-z]+):\]
      | (?P<group>\(\?(?:P<[A-Za-z_][A-Za-z0-9_]*>|<[A-Za-z_][A-Za-z0-9_]*>|[imsU]*(?:-[imsU]+)?[:)]))
      | (?P<other>\(\?)
      | (?P<possessive>(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})\+)
      | (?P<plain>.)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = set("dDsSwWbBAtnrfvax") | set(r"\.+*?()|[]{}^$-/_ ,:;'\"#%&=~`!@<>")  # the same in both languages


def compile_re2(text: str) -> re.Pattern[str]:
    """The Python pattern for an RE2 one. Raises ValueError: invalid, or not expressible."""
    if len(text) > _MAX_REGEXP:
        raise ValueError(f"regular expression is longer than {_MAX_REGEXP} characters")
    try:
        return re.compile(_translate(text), re.ASCII)
    except (re.error, OverflowError, RecursionError) as err:
        raise ValueError(f"invalid regular expression: {err}") from err


def _translate(text: str) -> str:
    pieces: list[str] = []
    in_class, flags = False, ""
    for match in _TOKEN.finditer(text):
        piece = match[0]
        if match["escape"]:
            piece = _escape(match["escape"])
        elif in_class:
            piece = _in_class(match, pieces[-1])
            in_class = piece != "]" or pieces[-1] in ("[", "[^")
        elif match["group"]:
            piece, new = _group(match["group"])
            if new and pieces:
                raise ValueError("flags are only supported at the start of a regular expression")
            flags += new
        elif match["other"] or match["possessive"]:
            raise ValueError(f"invalid or unsupported syntax: {piece}")
        elif piece == "$" and "m" not in flags:
            piece = r"\Z"  # Python's $ also matches before a last newline
        elif piece == "[":
            in_class = True
        pieces.append(piece)
        if in_class and piece == "^" and pieces[-2] == "[":
            pieces[-2:] = ["[^"]  # so that a ] right after it is seen to be the first character
    return "".join(pieces)


def _escape(character: str) -> str:
    if character == "z":
        return r"\Z"
    if character not in _ESCAPES:
        raise ValueError(f"invalid escape sequence: \\{character}")
    return "\\" + character


def _in_class(match: re.Match[str], before: str) -> str:
    piece = match[0]
    if name := match["class"]:
        if name.lstrip("^") not in _CLASSES or name.startswith("^"):
            raise ValueError(f"invalid character class: {piece}")
        return _CLASSES[name]
    if match["plain"] is None:  # "(?" and the like are plain characters here
        return piece
    # Python reserves these, and two dashes, for operations on sets.
    return "\\" + piece if piece in "[&|~" or piece == before == "-" else piece


def _group(group: str) -> tuple[str, str]:
    """A group's opening as Python writes it, and the flags it sets for the rest."""
    if group.startswith("(?<"):
        return "(?P" + group[2:], ""
    if "U" in group or ("-" in group and group.endswith(")")):
        raise ValueError(f"unsupported flags: {group}")
    return group, (group[2:-1] if group.endswith(")") else "")
