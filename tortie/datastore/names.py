"""Names that are computed: WorkloadEndpoint resources, host-side interfaces, length-limited kernel names.

All pure; CNI, felix and the controllers must come to the same result independently.
Sources: libcalico-go/lib/names/workloadendpoint.go, lib/hash/unique_id.go and
lib/backend/k8s/conversion/workload_endpoint_default.go.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.selector import unique_id
from tortie.datastore.types.endpoint import WorkloadEndpoint

__all__ = [
    "EndpointIds",
    "build_endpoint_name",
    "endpoint_name_prefix",
    "host_interface",
    "ids_of",
    "interface_prefixes",
    "length_limited",
    "parse_endpoint_name",
    "unique_id",
]

DEFAULT_INTERFACE_PREFIX = "cali"
_INTERFACE_DIGITS = 11  # "cali" and 11 characters fill the kernel's 15

# --- WorkloadEndpoint resources -----------------------------------------------------------------

_THIRD = {"k8s": "pod", "cni": "containerID", "libnetwork": "orchestrator"}  # orchestrator -> third segment
_OTHER_THIRD = "workload"  # of any other orchestrator


@dataclass(frozen=True, slots=True)
class EndpointIds:
    """What identifies an endpoint inside its namespace; which are used depends on the orchestrator."""

    node: str = ""
    orchestrator: str = ""
    endpoint: str = ""
    workload: str = ""
    pod: str = ""
    containerID: str = ""

    def segments(self) -> list[tuple[str, str]]:
        """The name's four segments in order, as (field, value)."""
        names = ["node", "orchestrator", _THIRD.get(self.orchestrator, _OTHER_THIRD), "endpoint"]
        return [(name, getattr(self, name)) for name in names]


def ids_of(endpoint: WorkloadEndpoint) -> EndpointIds:
    return EndpointIds(**{field.name: getattr(endpoint.spec, field.name) for field in fields(EndpointIds)})


def build_endpoint_name(ids: EndpointIds) -> str:
    """`<node>-<orchestrator>-<…>-<endpoint>`, dashes inside a segment doubled.

    Raises ValidationError naming each identifier that is missing or begins or ends with a dash.
    """
    wrong = [FieldError(field, value, reason) for field, value, reason in _problems(ids) if reason]
    if wrong:
        raise ValidationError(wrong)
    return "-".join(_escape(value) for _field, value in ids.segments())


def _problems(ids: EndpointIds) -> list[tuple[str, str, str]]:
    return [
        (field, value, "" if value else "field should be assigned")
        if not (value.startswith("-") or value.endswith("-"))
        else (field, value, f"field must not {'begin' if value.startswith('-') else 'end'} with a '-'")
        for field, value in ids.segments()
    ]


def endpoint_name_prefix(ids: EndpointIds) -> str:
    """The start of the names of all endpoints with these identifiers, up to the first that is empty.

    Others may start so too (`pod-` is also the start of `pod--1`): compare parse_endpoint_name() as well.
    Raises ValidationError without a node.
    """
    if not ids.node:
        raise ValidationError([FieldError("node", "", "field should be assigned")])
    known: list[str] = []
    for _field, value in ids.segments():
        if not value:
            return "-".join(known) + "-"
        known.append(_escape(value))
    return "-".join(known)


def parse_endpoint_name(name: str) -> EndpointIds | None:
    """The identifiers in a full name, None if it is not one that build_endpoint_name() gives."""
    segments = _split(name)
    if len(segments) != 4:
        return None
    node, orchestrator, third, endpoint = segments
    named = {"node": node, "orchestrator": orchestrator, "endpoint": endpoint}
    ids = EndpointIds(**{_THIRD.get(orchestrator, _OTHER_THIRD): third} | named)
    return (
        ids
        if "-".join(_escape(value) for _field, value in ids.segments()) == name and all(segments)
        else None
    )


def _escape(segment: str) -> str:
    return segment.replace("-", "--")


def _split(name: str) -> list[str]:
    """Left to right: a pair of dashes is a literal one, a single dash separates."""
    segments, position = [""], 0
    while position < len(name):
        if name.startswith("--", position):
            segments[-1] += "-"
            position += 2
            continue
        if name[position] == "-":
            segments.append("")
        else:
            segments[-1] += name[position]
        position += 1
    return segments


# --- interfaces ---------------------------------------------------------------------------------


def interface_prefixes(environ: Mapping[str, str]) -> list[str]:
    """The prefixes of workload interfaces, from FELIX_INTERFACEPREFIX (a comma list)."""
    given = environ.get("FELIX_INTERFACEPREFIX", "")
    return [prefix for prefix in given.split(",") if prefix] or [DEFAULT_INTERFACE_PREFIX]


def host_interface(
    namespace: str = "",
    pod: str = "",
    *,
    container_id: str = "",
    prefix: str = DEFAULT_INTERFACE_PREFIX,
) -> str:
    """The host-side name of a pod's interface; of a container's if there is no pod."""
    if pod:
        digest = hashlib.sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()
        return prefix + digest[:_INTERFACE_DIGITS]
    return prefix + container_id[:_INTERFACE_DIGITS]


# --- kernel objects -----------------------------------------------------------------------------


def length_limited(prefix: str, suffix: str, limit: int) -> str:
    """prefix + suffix, or prefix + "_" + a hash of the suffix where that is longer than `limit`.

    A name of exactly `limit` whose suffix begins with "_" is hashed too: it could be another's hash.
    Raises ValueError if nothing of the hash would fit.
    """
    suffix = suffix or "_"
    if len(prefix) + len(suffix) < limit or (len(prefix) + len(suffix) == limit and suffix[0] != "_"):
        return prefix + suffix
    room = limit - 1 - len(prefix)
    if room < 1:
        raise ValueError(f"no room for a hash behind {prefix!r} within {limit} characters")
    digest = base64.urlsafe_b64encode(hashlib.sha256(suffix.encode()).digest()).decode().rstrip("=")
    return f"{prefix}_{digest[:room]}"
