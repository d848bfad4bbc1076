"""What stands behind each Kubernetes service, from its EndpointSlices. Pure and incremental.

Readiness is not looked at, as in Calico: who may be talked to is policy's to say, who can answer is not.
(Reference: policy facts, 3.6; felix/serviceindex.)
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tortie.core.errors import ValidationError
from tortie.datastore.nativekeys import SliceKey
from tortie.datastore.types.service import EndpointSlice
from tortie.felix.calc import canonical


@dataclass(frozen=True, slots=True)
class _Part:
    """What one slice contributes, as IP sets have it: addresses, and addresses with ports."""

    service: str  # namespace/name
    nets: frozenset[str]
    ports: frozenset[str]


class ServiceIndex:
    """`tell(service, nets, ports)` is called with all that stands behind a service when that changes."""

    def __init__(self, tell: Callable[[str, Iterable[str], Iterable[str]], None]) -> None:
        self._tell = tell
        self._parts: dict[SliceKey, _Part] = {}
        self._slices: dict[str, set[SliceKey]] = {}  # service -> its slices

    def update(self, key: SliceKey, value: EndpointSlice | None) -> None:
        """Add, replace or (None) delete a slice; one that changes its service leaves the former one."""
        before, after = self._parts.pop(key, None), None if value is None else _part(value)
        if before is not None:
            slices = self._slices[before.service]
            slices.discard(key)
            if not slices:
                del self._slices[before.service]
        if after is not None:
            self._parts[key] = after
            self._slices.setdefault(after.service, set()).add(key)
        if before != after:
            for service in {part.service for part in (before, after) if part is not None}:
                self._review(service)

    def _review(self, service: str) -> None:
        parts = [self._parts[key] for key in self._slices.get(service, ())]
        nets = frozenset[str]().union(*(part.nets for part in parts))
        self._tell(service, nets, frozenset[str]().union(*(part.ports for part in parts)))


def _part(value: EndpointSlice) -> _Part:
    nets, ports = set(), set()
    for endpoint in value.endpoints:
        usable = value.ports if endpoint.ports is None else endpoint.ports
        for address in _addresses(endpoint.addresses):
            nets.add(address)
            for port in usable:
                # A port without a number means any, which an IP set cannot say: as in Calico it means none.
                if port.port is not None and 0 < port.port < 65536:
                    protocol = canonical.PORT_PROTOCOLS.get(port.protocol.lower(), "tcp")
                    ports.add(f"{address},{protocol}:{port.port}")
    return _Part("/".join(value.service), frozenset(nets), frozenset(ports))


def _addresses(given: Iterable[str]) -> Iterator[str]:
    """In the kernel's form; a slice may hold names of hosts instead."""
    for text in given:
        try:
            yield canonical.address(text)
        except ValidationError:
            continue
