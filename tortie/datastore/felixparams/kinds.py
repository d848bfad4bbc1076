"""The kinds of Felix parameters: how each is read from text, and from the JSON of a FelixConfiguration.

Text is what environment, file and annotations give; a FelixConfiguration field is turned into the same text
first (`text`), so that there is one parser per kind. Parsers raise ValueError with Calico's reason
(felix/config/param_types.go). None of them does I/O: whether a file exists is for its user to find out.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tortie.core.duration import format_duration, parse_duration
from tortie.datastore.regexp import compile_re2
from tortie.datastore.validate import addresses, fields, formats
from tortie.datastore.validate.fields import Check, Problems


@dataclass(frozen=True, slots=True)
class Kind:
    """`zero` is what the text `none` means; `check` looks at a field's JSON, `text` turns it into text."""

    parse: Callable[[str], Any]
    zero: Any
    check: Check
    text: Callable[[Any], str] = str
    has_none: bool = False  # `none` is an option of its own


def _string(parse: Callable[[str], Any], zero: Any = "") -> Kind:
    """A kind whose JSON is the text itself; `none` is allowed there as well."""

    def check(problems: Problems, path: str, value: Any) -> None:
        if not (isinstance(value, str) and value.lower() == "none"):
            fields.parsed(parse)(problems, path, value)

    return Kind(parse, zero, check)


def _form(pattern: str, reason: str, zero: Any = "") -> Kind:
    compiled = re.compile(pattern, re.ASCII)

    def parse(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(reason)
        return text

    return _string(parse, zero)


# --- truth, numbers, times ----------------------------------------------------------------------

_TRUTH = dict.fromkeys(("true", "1", "yes", "y", "t"), True)  # text in lower case -> its meaning
_TRUTH |= dict.fromkeys(("false", "0", "no", "n", "f"), False)


def _parse_bool(text: str) -> bool:
    if (value := _TRUTH.get(text.lower())) is None:
        raise ValueError("invalid boolean")
    return value


def _bool_text(value: bool) -> str:
    return "true" if value else "false"


BOOL = Kind(_parse_bool, False, fields.boolean, _bool_text)
OPTIONAL_BOOL = Kind(_parse_bool, None, fields.boolean, _bool_text)  # None: not said either way

_GO_INT = re.compile(
    r"[+-]?(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))",
    re.ASCII,
)
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}  # group of _GO_INT -> base
_MAX_DIGITS = 70  # of a 64-bit number, in any base, with its prefix


def _go_int(text: str) -> int:
    """An integer as Go's ParseInt reads it with base 0. Raises ValueError."""
    match = _GO_INT.fullmatch(text) if len(text) <= _MAX_DIGITS else None
    if match is None or match.lastgroup is None:
        raise ValueError("invalid int")
    number = int(match[match.lastgroup], _BASES[match.lastgroup])
    return -number if text[0] == "-" else number


def integer(low: int, high: int = 2**63 - 1) -> Kind:
    def parse(text: str) -> int:
        number = _go_int(text)
        if number < low:
            raise ValueError(f"value must be at least {low}")
        if number > high:
            raise ValueError(f"value must be at most {high}")
        return number

    return Kind(parse, 0, fields.integer(low, high))


_MIN_MARK_BITS = 2  # Felix cannot work with fewer


def _parse_mark(text: str) -> int:
    number = _go_int(text)
    if not 0 <= number <= 0xFFFFFFFF:
        raise ValueError("invalid mark: should be 32-bit int")
    if number.bit_count() < _MIN_MARK_BITS:
        raise ValueError(f"invalid mark: needs to have {_MIN_MARK_BITS} bits set")
    return number


def _check_mark(problems: Problems, path: str, value: Any) -> None:
    fields.all_of(fields.integer(0, 0xFFFFFFFF), _of_text(_parse_mark))(problems, path, value)


def _of_text(parse: Callable[[str], Any]) -> Check:
    def check(problems: Problems, path: str, value: Any) -> None:
        fields.parsed(parse)(problems, path, str(value))

    return check


MARK = Kind(_parse_mark, 0, _check_mark)

_FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)


def _parse_seconds(text: str) -> float:
    if len(text) > _MAX_DIGITS or not _FLOAT.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError("invalid float")
    if abs(float(text)) > formats.MAX_DURATION:
        raise ValueError(f"value must be at most {formats.MAX_DURATION:.0f}")
    return float(text)


_WHOLE = re.compile(r"([0-9]+(ms|s|m|h))*", re.ASCII)


def _whole_duration(value: str) -> None:
    spelled = format_duration(parse_duration(value))
    if not _WHOLE.fullmatch(spelled) or parse_duration(spelled) != parse_duration(value):
        raise ValueError("must be whole numbers with units ms, s, m or h, such as 1m30s")


DURATION = formats.duration
WHOLE_DURATION = fields.all_of(DURATION, fields.parsed(_whole_duration))  # what the schema takes mostly


def _decimal(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


SECONDS = Kind(_parse_seconds, 0.0, WHOLE_DURATION, lambda value: _decimal(parse_duration(value)))
MILLISECONDS = Kind(  # the value is in seconds all the same
    lambda text: _parse_seconds(text) / 1000,
    0.0,
    WHOLE_DURATION,
    lambda value: _decimal(parse_duration(value) * 1000),
)

# --- one of several, and plain text -------------------------------------------------------------


def one_of(*options: str, check: Check | None = None) -> Kind:
    """`check` where the schema of the field takes other spellings than exactly these."""
    canonical = {option.lower(): option for option in options}

    def parse(text: str) -> str:
        if text.lower() not in canonical:
            raise ValueError("unknown option")
        return canonical[text.lower()]

    return Kind(parse, "", check or fields.one_of(*options), has_none="none" in canonical)


def any_case(*options: str) -> Kind:
    """Options that the schema takes in any case."""
    return one_of(*options, check=fields.one_of(*options, any_case=True))


def _parse_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("invalid string")
    return text


LINE = _string(_parse_line)
FILE = _string(_parse_line)
LOG_PREFIX = Kind(
    _parse_line, "", fields.matching(r"([a-zA-Z0-9%: /_-])*", most=1024), str
)  # the schema is narrower than Felix
HOSTNAME = _form(r"[a-zA-Z0-9_.-]{1,253}", "invalid hostname")
HOST_ADDRESS = _form(r"[a-zA-Z0-9:._+-]{1,64}", "invalid host address")
AUTHORITY = _form(r"[^:/\s]{1,253}:[0-9]{1,5}", "invalid URL authority")
LOG_RATE = _form(r"([1-9][0-9]{0,3}/(second|minute|hour|day))?", "invalid log rate limit")
INTERFACE = _form(r"[a-zA-Z0-9:._+-]{1,15}", "invalid Linux interface parameter")


def _parse_interface(text: str) -> str:
    if not formats.is_interface(text):
        raise ValueError("invalid Linux interface name")
    return text


INTERFACE_NAME = _string(_parse_interface)
_REGION_PREFIX = "openstack-region-"  # of the namespace that a region becomes; both fit one DNS label


def _parse_region(text: str) -> str:
    longest = formats.MAX_LABEL - len(_REGION_PREFIX)
    if len(text) > longest:
        raise ValueError(f"the value of OpenstackRegion must be {longest} chars or fewer")
    if not re.fullmatch(formats.LABEL, text, re.ASCII):
        raise ValueError("must be a valid DNS label")
    return text


REGION = _string(_parse_region)
REGEXP = _string(compile_re2, None)


def _parse_dscp(text: str) -> int:
    if (value := formats.dscp_value(text)) is None:
        raise ValueError("is not a valid DSCP value")
    return value


DSCP = Kind(_parse_dscp, 0, formats.dscp)

# --- addresses ----------------------------------------------------------------------------------


def _ip(version: int) -> Kind:
    def parse(text: str) -> str:
        address = addresses.parse_ip(text)
        if address is None or address.version != version:
            raise ValueError(f"must be a valid IPv{version} address")
        return str(address)

    return _string(parse)


IPV4, IPV6 = _ip(4), _ip(6)


def _split(text: str) -> list[str]:
    return [part.strip(" ") for part in text.split(",") if part.strip(" ")]


def _parse_cidrs(text: str) -> tuple[str, ...]:
    networks = []
    for part in _split(text):
        if (found := addresses.parse_cidr_or_ip(part)) is None:
            raise ValueError(f"invalid CIDR or IP {part}")
        networks.append(str(found[1]))
    return tuple(networks)


CIDRS = Kind(_parse_cidrs, (), fields.listing(addresses.cidr), ",".join)
IPV4_CIDRS = Kind(_parse_cidrs, (), fields.listing(addresses.cidrv4), ",".join)


def _parse_endpoints(text: str) -> tuple[str, ...]:
    endpoints = []
    for part in _split(text):
        try:
            url = urlsplit(part)
        except ValueError as err:
            raise ValueError(f"{part} is not a valid URL") from err
        if url.path not in ("", "/") or url.query or url.fragment or url.username or not url.netloc:
            raise ValueError(
                "endpoint contained unsupported URL part; expected http(s)://hostname:port only."
            )
        endpoints.append(f"{url.scheme}://{url.netloc}/")
    if len({endpoint.split(":")[0] for endpoint in endpoints}) > 1:
        raise ValueError("all endpoints must have the same scheme")
    return tuple(endpoints)


ENDPOINTS = _string(_parse_endpoints, ())

# --- ports --------------------------------------------------------------------------------------


class ProtoPort(NamedTuple):
    """A port that failsafe rules leave open; net '' is anywhere."""

    protocol: str  # tcp | udp
    port: int
    net: str = ""


_PROTO_PORT = re.compile(
    r"(?:(?P<protocol>[A-Za-z]+):)?(?:(?:\[(?P<v6>[^]]*)\]|(?P<v4>[0-9./]+)):)?(?P<port>[0-9]{1,5})", re.ASCII
)


def _parse_proto_ports(text: str) -> tuple[ProtoPort, ...]:
    return tuple(_proto_port(part) for part in _split(text))


def _proto_port(text: str) -> ProtoPort:
    if (match := _PROTO_PORT.fullmatch(text)) is None:
        raise ValueError("ports should be <protocol>:<net>:<number> or <protocol>:<number> or <number>")
    protocol, net, port = (match["protocol"] or "tcp").lower(), match["v6"] or match["v4"], int(match["port"])
    if protocol not in ("tcp", "udp"):
        raise ValueError(f"unknown protocol: {protocol}")
    if port > 65535:
        raise ValueError("ports must be in range 0-65535")
    if not net:
        return ProtoPort(protocol, port)
    if (found := addresses.parse_cidr_or_ip(net)) is None:
        raise ValueError(f"invalid CIDR or IP {net}")
    return ProtoPort(protocol, port, str(found[1]))


def _proto_ports_text(value: list[dict[str, Any]]) -> str:
    """An empty list is `none`: without failsafe ports, where an absent field means the default ones."""
    return ",".join(map(_proto_port_text, value)) or "none"


def _proto_port_text(entry: dict[str, Any]) -> str:
    net = entry.get("net") or ""
    where = f"[{net}]:" if ":" in net else f"{net}:" if net else ""
    return f"{str(entry.get('protocol') or 'tcp').lower()}:{where}{entry.get('port')}"


_proto_port_check = fields.struct(
    {
        # Felix knows no failsafe ports for SCTP, so a field that Calico stores would stop it.
        "protocol": fields.one_of("TCP", "UDP", any_case=True),
        "port": fields.integer(0, 65535),
        "net": addresses.cidr,
    },
    required=("port",),
)
PROTO_PORTS = Kind(_parse_proto_ports, (), fields.listing(_proto_port_check), _proto_ports_text)


def _parse_port_range(text: str) -> tuple[int, int]:
    found = formats.port_range(text)
    if found is None or found[0] > found[1] or found[1] > 65535:
        raise ValueError(f"{text} is not a valid port range")
    return found


def _parse_port_ranges(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(map(_parse_port_range, text.split(",")))


PORT_RANGE = Kind(_parse_port_range, None, formats.numeric_port)  # None: not restricted
_MAX_NODE_PORT_RANGES = 7  # an iptables multiport match holds 15 ports, a range takes two
NODE_PORT_RANGES = Kind(
    _parse_port_ranges,
    (),
    fields.listing(formats.numeric_port, most=_MAX_NODE_PORT_RANGES),
    lambda value: ",".join(map(str, value)) or "none",
)

# --- interfaces ---------------------------------------------------------------------------------


def _parse_prefixes(text: str) -> tuple[str, ...]:
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,15}(,[a-zA-Z0-9_-]{1,15})*", text, re.ASCII):
        raise ValueError("invalid Linux interface name")
    return tuple(text.split(","))


INTERFACE_PREFIXES = _string(_parse_prefixes, ())


def _parse_interfaces(text: str) -> tuple[re.Pattern[str], ...]:
    """Names, and regular expressions between slashes."""
    patterns = []
    for part in text.split(","):
        if re.fullmatch(r"/\S+/", part):
            patterns.append(compile_re2(part[1:-1]))
        elif re.fullmatch(r"[a-zA-Z0-9_-]{1,15}", part, re.ASCII):
            patterns.append(compile_re2(f"^{part}$"))
        else:
            raise ValueError("list contains invalid Linux interface name or regex pattern")
    return tuple(patterns)


INTERFACES = _string(_parse_interfaces, ())


def _parse_filters(text: str) -> tuple[str, ...]:
    for part in _split(text):
        INTERFACE.parse(part)
    return tuple(_split(text))


INTERFACE_FILTERS = Kind(_parse_filters, (), fields.listing(formats.interface_filter), ",".join)
