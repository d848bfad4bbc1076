"""Parameter kinds whose JSON is an object, a map or a list of objects: key-value lists, timeouts, tables."""

import re
from collections.abc import Mapping
from typing import Any

from tortie.core.duration import parse_duration
from tortie.datastore.felixparams.kinds import DURATION, Kind
from tortie.datastore.validate import fields, formats
from tortie.datastore.validate.fields import Problems

# --- key=value lists ----------------------------------------------------------------------------

_PAIR = re.compile(r"\s*(\w+)=(.*)", re.ASCII)


def _parse_pairs(text: str) -> dict[str, str]:
    pairs = {}
    for item in text.split(","):
        if not item.strip():
            continue
        if (match := _PAIR.fullmatch(item)) is None:
            raise ValueError(f"invalid items [{item}]")
        pairs[match[1]] = match[2]
    return pairs


def _pairs_text(value: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value[key]}" for key in sorted(value))


PAIRS = Kind(_parse_pairs, {}, fields.parsed(_parse_pairs))
FEATURE_FLAGS = Kind(
    _parse_pairs,
    {},
    fields.matching(r"([a-zA-Z0-9_-]+=(true|false|),)*([a-zA-Z0-9_-]+=(true|false|))?"),
)
INTERFACE_MAP = Kind(_parse_pairs, {}, fields.mapping(formats.interface, fields.text()), _pairs_text)

_CONNTRACK = {  # field of bpfConntrackTimeouts -> its name in the list
    "creationGracePeriod": "CreationGracePeriod",
    "tcpSynSent": "TCPSynSent",
    "tcpEstablished": "TCPEstablished",
    "tcpFinsSeen": "TCPFinsSeen",
    "tcpResetSeen": "TCPResetSeen",
    "udpTimeout": "UDPTimeout",
    "genericTimeout": "GenericTimeout",
    "icmpTimeout": "ICMPTimeout",
}
_timeout = fields.matching(r"([0-9]+(\.[0-9]*)?(ms|s|h|m|us))+|Auto", "must be a duration or Auto", 64)
CONNTRACK_TIMEOUTS = Kind(
    _parse_pairs,
    {},
    fields.struct(dict.fromkeys(_CONNTRACK, _timeout)),
    lambda value: ",".join(f"{_CONNTRACK[key]}={value[key]}" for key in _CONNTRACK if value.get(key)),
)

# --- time-outs of health reporters --------------------------------------------------------------


def _parse_timeouts(text: str) -> dict[str, float]:
    """Reporter -> seconds."""
    pairs = _parse_pairs(text)
    return {key: parse_duration(value.strip()) for key, value in pairs.items()}


_override = fields.struct(
    {"name": fields.matching(r"[a-zA-Z0-9_ -]+", most=253), "timeout": DURATION},
    required=("name", "timeout"),
)
REPORTER_TIMEOUTS = Kind(
    _parse_timeouts,
    {},
    fields.listing(_override),
    lambda value: ",".join(f"{entry['name']}={entry['timeout']}" for entry in value),
)

# --- routing tables -----------------------------------------------------------------------------

Tables = tuple[int, int]
"""First and last index of a range of kernel routing tables."""

_MAX_TABLE = 0xFFFFFFFF  # the kernel's largest table index
_MAX_TABLES = 0xFFFF  # more than this many would cost too much to go through
_OLD_TABLES = (1, 250)  # what the older, single range may use: below the kernel's own tables
_RANGE = re.compile(r"([0-9]{1,10})-([0-9]{1,10})", re.ASCII)


def _parse_table_range(text: str) -> Tables:
    match = _RANGE.fullmatch(text)
    if match is None or not _OLD_TABLES[0] <= int(match[1]) <= int(match[2]) <= _OLD_TABLES[1]:
        raise ValueError("must be a range of route table indices within 1-250")
    return int(match[1]), int(match[2])


def _parse_table_ranges(text: str) -> tuple[Tables, ...]:
    ranges = []
    for part in re.split(r"[, ]+", text.strip(", ")):
        if (match := _RANGE.fullmatch(part)) is None:
            raise ValueError("must be a list of route-table ranges")
        ranges.append((int(match[1]), int(match[2])))
    if reason := _wrong_tables(ranges):
        raise ValueError(reason)
    return tuple(ranges)


def _wrong_tables(ranges: list[Tables]) -> str:
    if any(first < 1 for first, _last in ranges):
        return "cannot target indices < 1"
    if any(first > last for first, last in ranges):
        return "min value cannot be greater than max value"
    if any(last > _MAX_TABLE for _first, last in ranges):
        return "max index too high"
    if sum(last - first + 1 for first, last in ranges) > _MAX_TABLES:
        return "targets too many tables"
    return ""


_table_range = fields.struct({"min": fields.integer(), "max": fields.integer()}, required=("min", "max"))


def _check_table_range(problems: Problems, path: str, value: Any) -> None:
    if not _OLD_TABLES[0] <= value["min"] <= value["max"] <= _OLD_TABLES[1]:
        text = f"{value['min']}-{value['max']}"
        problems.add(path, text, "must be a range of route table indices within 1..250")


def _check_table_ranges(problems: Problems, path: str, value: Any) -> None:
    ranges = [(entry["min"], entry["max"]) for entry in value]
    if reason := _wrong_tables(ranges):
        problems.add(path, _ranges_text(value), reason)


def _range_text(value: Mapping[str, int]) -> str:
    return f"{value['min']}-{value['max']}"


def _ranges_text(value: list[Mapping[str, int]]) -> str:
    return ",".join(map(_range_text, value))


TABLE_RANGE = Kind(
    _parse_table_range, None, fields.all_of(_table_range, _check_table_range), _range_text
)  # None: not given
TABLE_RANGES = Kind(
    _parse_table_ranges,
    (),
    fields.all_of(fields.listing(_table_range), _check_table_ranges),
    _ranges_text,
)
