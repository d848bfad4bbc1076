"""Ports of Kubernetes rules, grouped by protocol as Calico's rules need them."""

import re
from collections.abc import Iterable, Sequence

from tortie.datastore.kubernetes.conversion import RuleError

Port = tuple[int, int] | str  # first and last port, or a port's name
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)
_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_PROTOCOLS = {name.lower(): name for name in ("TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "UDPLite")}
ANY = ""  # the protocol of a group that is not limited to one


def port_range(first: int, last: int) -> Port:
    """Raises RuleError unless both are ports, in order."""
    for port in (first, last):
        if not 0 <= port <= 65535:  # Calico takes 0 here and refuses it when the policy is validated
            raise RuleError(f"failed to parse k8s port: invalid port format ({port})")
    if first > last:
        reason = f"minimum port number ({first}) is greater than maximum port number ({last}) in port range"
        raise RuleError(f"failed to parse k8s port: {reason}")
    return first, last


def port_name(name: str) -> Port:
    if not _NAME.fullmatch(name):
        raise RuleError(f"failed to parse k8s port: invalid name for named port ({name})")
    return name


def port_or_range(port: int | str, end: int | None) -> Port:
    """A number, in text or not, perhaps the first of a range, or a name."""
    text = str(port)
    if _NUMBER.fullmatch(text) and len(text) <= 20:  # longer ones are no port either, and costly to read
        first = int(text)
        return port_range(first, first if end is None else end)
    # A range has no name: Calico reads `name:end` as one, which a name cannot be.
    return port_name(text if end is None else f"{text}:{end}")


def protocol_name(name: str) -> str:
    """In Calico's spelling."""
    return _PROTOCOLS.get(name.lower(), name)


def by_protocol(entries: Iterable[tuple[str, Port | None]]) -> list[tuple[str, tuple[int | str, ...]]]:
    """(protocol, its ports as a v3 rule has them), sorted; no ports means all of them.

    An entry without a port covers all of its protocol; without protocol and port, everything.
    """
    groups: dict[str, list[Port] | None] = {}  # protocol -> its ports, None for all
    for protocol, port in entries:
        if port is None and protocol == ANY:
            return [(ANY, ())]
        if port is None:
            groups[protocol] = None
        elif (group := groups.setdefault(protocol, [])) is not None:
            group.append(port)
    return [(protocol, simplified(groups[protocol] or ())) for protocol in sorted(groups)]


def simplified(ports: Sequence[Port]) -> tuple[int | str, ...]:
    """The same ports in as few ranges as possible, names first.

    With fewer than two port numbers nothing can be joined, and the order stays.
    """
    numeric = sorted(port for port in ports if not isinstance(port, str))
    if sum(last - first + 1 for first, last in numeric) <= 1 or len(ports) <= 1:
        return tuple(map(_written, ports))
    joined: list[tuple[int, int]] = []
    for first, last in numeric:
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    names = [port for port in ports if isinstance(port, str)]
    return (*names, *map(_written, joined))


def _written(port: Port) -> int | str:
    if isinstance(port, str):
        return port
    first, last = port
    return first if first == last else f"{first}:{last}"
