"""Kubernetes' quantities ("10M", "1.5Gi", "2e6") as whole numbers."""

import re
from fractions import Fraction

_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,2}))?", re.ASCII
)
_SUFFIXES = {name: Fraction(1000) ** power for power, name in enumerate(["n", "u", "m", "", "k", "M", "G", "T", "P", "E"], -3)}  # fmt: skip  # noqa: E501
_SUFFIXES |= {f"{name}i": Fraction(1024) ** power for power, name in enumerate("KMGTPE", 1)}
_LONGEST = 64  # characters; a quantity has at most 18 digits


def parse_quantity(text: str) -> int | None:
    """The value, rounded up as Kubernetes does; None if it is no quantity."""
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        return None
    number, suffix, exponent = match.groups()
    value = Fraction(number if number[-1] != "." else number + "0")
    value *= Fraction(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    return -((-value.numerator) // value.denominator)
