"""The text formats of Calico's API: names, labels, interfaces, selectors, ports, protocols, durations.

Limits and patterns are those of libcalico-go/lib/validator/v3 and api/pkg/lib/numorstring. Every pattern
must match the whole text: a trailing newline is part of it.
"""

import re
from typing import Any

from tortie.core.duration import format_duration, parse_duration
from tortie.datastore.regexp import compile_re2
from tortie.datastore.validate.fields import Check, Problems, all_of, integer, matching, parsed, tested

# --- names --------------------------------------------------------------------------------------

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
NAME = rf"{LABEL}(\.{LABEL})*"
MAX_NAME = 253  # RFC 1123 subdomain
MAX_LABEL = 63  # RFC 1123 label

name = matching(NAME, "must consist of lower case alphanumeric characters, '-' or '.', at most 253", MAX_NAME)
_NAME = re.compile(NAME, re.ASCII)


def is_resource_name(text: str) -> bool:
    return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


container_id = matching(r"[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?", "invalid container ID", MAX_NAME)
port_name = tested(
    lambda value: bool(re.fullmatch(r"(?!.*--)(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?", value, re.ASCII)),
    "must be an IANA service name: lower case letters, digits and single '-', with a letter",
    15,  # RFC 6335
)

_LABEL_PART = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_QUALIFIED = re.compile(rf"(?P<prefix>{NAME}/)?(?P<name>{_LABEL_PART})", re.ASCII)
QUALIFIED_NAME = (
    "must consist of alphanumeric characters, '-', '_' or '.', begin and end with an alphanumeric character "
    "and have at most 63 characters, after an optional DNS subdomain prefix and '/'"
)
LABEL_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', must "
    "start and end with an alphanumeric character and have at most 63 characters"
)


def is_qualified_name(text: str) -> bool:
    """Kubernetes' form of label and annotation keys."""
    if len(text) > MAX_NAME + 1 + MAX_LABEL:
        return False
    match = _QUALIFIED.fullmatch(text)
    return (
        match is not None and len(match["name"]) <= MAX_LABEL and len(match["prefix"] or "/") <= MAX_NAME + 1
    )


qualified_name = tested(is_qualified_name, "name part " + QUALIFIED_NAME)
label_value = matching(rf"({_LABEL_PART})?", LABEL_VALUE, MAX_LABEL)

# --- interfaces ---------------------------------------------------------------------------------

_INTERFACE = re.compile(r"[a-zA-Z0-9_.-]{1,15}", re.ASCII)


def is_interface(value: str) -> bool:
    """A name the kernel takes: it refuses the two that mean folders."""
    return _INTERFACE.fullmatch(value) is not None and value not in (".", "..")


interface = tested(is_interface, "invalid interface name")
interface_or_all = tested(lambda value: value == "*" or is_interface(value), "invalid interface name")
interface_filter = matching(r"[a-zA-Z0-9:._+-]{1,15}", "invalid interface filter")
bgp_interface = matching(r"[a-zA-Z0-9_.*-]{1,15}", "invalid interface pattern")
ignored_interface = matching(r"(?!\*$)[a-zA-Z0-9_.*-]{1,15}", "invalid interface pattern")


def _selector(problems: Problems, path: str, value: Any) -> None:
    if any(not c.isprintable() and c != "\t" for c in value):  # a tab is a blank of the language
        problems.add(path, value, "contains control characters")
        return
    # Reading resources needs no selectors, and calicoctl mostly reads.
    from tortie.datastore.selector import SelectorError
    from tortie.datastore.selector import parse as parse_selector

    try:
        parse_selector(value)
    except SelectorError as err:
        problems.add(path, value, str(err))


MAX_SELECTOR = 1024  # characters, the schema's limit


def selector(problems: Problems, path: str, value: Any) -> None:
    if not isinstance(value, str):
        problems.add(path, value, "expected a string")
    elif len(value) > MAX_SELECTOR:
        problems.add(path, value, f"may not be more than {MAX_SELECTOR} characters")
    else:
        _selector(problems, path, value)


def no_global(reason: str) -> Check:
    """For selectors where global() has no meaning; Calico looks for the bare text."""

    def check(problems: Problems, path: str, value: Any) -> None:
        if "global(" in value:
            problems.add(path, value, reason)

    return all_of(selector, check)


# --- protocols and ports ------------------------------------------------------------------------

_PROTOCOLS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}  # name -> number
_WITH_PORTS = {6, 17, 132}
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,5}):([0-9]{1,5})", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,3}", re.ASCII)
PORT_RANGE = "port range invalid, port number must be between 1 and 65535"


def protocol_number(value: int | str | None) -> int | None:
    """The IP protocol number, None if the value is no protocol of Calico's."""
    number = canonical_number(value)
    if isinstance(number, int) and not isinstance(number, bool):
        return number if 1 <= number <= 255 else None
    return _PROTOCOLS.get(number) if isinstance(number, str) else None


def has_ports(value: int | str | None) -> bool:
    return protocol_number(value) in _WITH_PORTS


def protocol(problems: Problems, path: str, value: Any) -> None:
    if protocol_number(value) is None:
        number = isinstance(canonical_number(value), int)
        problems.add(path, value, "protocol number invalid" if number else "protocol name invalid")


def port(problems: Problems, path: str, value: Any) -> None:
    """A number, `min:max` or a name, as rules have them."""
    if isinstance(value, str) and not _PORT.fullmatch(value) and not _RANGE.fullmatch(value):
        port_name(problems, path, value)
    else:
        numeric_port(problems, path, value)


def numeric_port(problems: Problems, path: str, value: Any) -> None:
    """A number or `min:max`."""
    if (found := port_range(value)) is None:
        problems.add(path, value, "expected a port number or a range <min>:<max>")
    elif not 1 <= found[0] <= 65535 or not 1 <= found[1] <= 65535:
        problems.add(path, value, PORT_RANGE)
    elif found[0] > found[1]:
        problems.add(path, value, "port range invalid")


def port_range(value: Any) -> tuple[int, int] | None:
    """Both ends of a port or port range, in the order given; None for a port's name and anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, str) and _PORT.fullmatch(value):
        return int(value), int(value)
    if isinstance(value, str) and (match := _RANGE.fullmatch(value)):
        return int(match[1]), int(match[2])
    return None


def canonical_port(value: int | str) -> int | str:
    """As Calico writes it: a number where one suffices."""
    found = port_range(value)
    if found is None:
        return value
    return found[0] if found[0] == found[1] else f"{found[0]}:{found[1]}"


def canonical_number(value: Any) -> Any:
    """Numeric text as the number, as Calico writes protocols and DSCP values."""
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


port_number = integer(1, 65535)

_DSCP = {"DF": 0, "EF": 46} | {f"CS{n}": 8 * n for n in range(7)}  # name -> code point (RFC 2474, 2597, 3246)
_DSCP |= {f"AF{c}{d}": 8 * c + 2 * d for c in range(1, 5) for d in range(1, 4)}


def dscp_value(value: int | str) -> int | None:
    """The code point of a number or a name in any case; None if it is neither."""
    number = canonical_number(value)
    if isinstance(number, int) and not isinstance(number, bool):
        return number if 0 <= number <= 63 else None
    return _DSCP.get(number.upper()) if isinstance(number, str) else None


def dscp(problems: Problems, path: str, value: Any) -> None:
    if dscp_value(value) is None:
        problems.add(path, value, "DSCP must be between 0 and 63 or DF, EF, AF11 to AF43, CS0 to CS6")


# --- other text ---------------------------------------------------------------------------------

regexp = parsed(compile_re2)


MAX_DURATION = 2**63 / 1e9  # seconds, 292 years: a Go duration is an int64 of nanoseconds


def _is_duration(value: str) -> None:
    seconds = parse_duration(value)
    if not 0 <= seconds < MAX_DURATION:
        raise ValueError("should not be negative" if seconds < 0 else "is too long")


duration = parsed(_is_duration)


def canonical_duration(value: Any) -> Any:
    """As Go writes it (`90s` is `1m30s`); fractions of milliseconds and what is no duration stay."""
    try:
        seconds = parse_duration(value) if isinstance(value, str) else 0.0
    except ValueError:
        return value
    text = format_duration(seconds) if 0 < seconds < MAX_DURATION else "0s"
    return text if isinstance(value, str) and parse_duration(text) == seconds else value


timestamp = matching(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})",
    "must be an RFC 3339 time",
)
