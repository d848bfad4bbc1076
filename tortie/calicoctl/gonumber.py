"""Numbers as Go prints them."""

import math

_EXPONENT_FROM = 6  # Go: %e is used from this exponent on when the shortest form is asked for


def format_float(number: float) -> str:
    """The shortest form that reads back, with an exponent for what is below 0.0001 or has a million.

    strconv.FormatFloat(number, 'g', -1, 64), which is also what %v prints: 10.5, 100000, 1e+06.
    """
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    if number == 0:
        return "-0" if math.copysign(1, number) < 0 else "0"
    sign, digits, exponent = _shortest(number)
    if exponent < -4 or exponent >= _EXPONENT_FROM:
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{sign}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    whole = digits[: exponent + 1].ljust(exponent + 1, "0")
    rest = digits[exponent + 1 :]
    return sign + whole + ("." + rest if rest else "")


def _shortest(number: float) -> tuple[str, str, int]:
    """Sign, shortest digits, and the exponent of the first digit."""
    sign = "-" if number < 0 else ""
    mantissa, _, exponent = f"{abs(number)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + (int(exponent) if exponent else 0)
    leading = len(whole + fraction) - len(digits)
    digits = digits.rstrip("0") or "0"
    return sign, digits, point - leading - 1


def format_significant(number: float, digits: int) -> str:
    """%.{digits}g of Go and C: 65531, 9.2234e+18."""
    return f"{float(number):.{digits}g}"
