"""What one workload endpoint needs of the kernel besides chains, and whether it has it.

Routes, permanent ARP entries, sysctls and limits of bandwidth go onto the endpoint's interface once that
is there and running. They depend on nothing but the endpoint, its interface and the configuration, so
they are computed anew whenever one of these changed, and handed over as the full set.

One thing is remembered: how far an endpoint is with its live migration, on which its routes depend.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tortie.felix.calc import canonical
from tortie.felix.calc.model import Workload, WorkloadId, version_of
from tortie.felix.dataplane import sysctls
from tortie.felix.dataplane.interfaces import Interface
from tortie.felix.dataplane.movements import Movements, Phase
from tortie.felix.dataplane.neighbours import Key as NeighbourKey
from tortie.felix.dataplane.neighbours import Neighbours
from tortie.felix.dataplane.routes import Candidate, RouteClass, RouteTable
from tortie.felix.dataplane.shaping import Shape, Shapes, bucket
from tortie.felix.dataplane.sysctls import Sysctls
from tortie.linux.routes import PROTOCOL_BOOT, SCOPE_LINK, Route

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wiring:
    """What configuration says about the interfaces of workloads."""

    versions: frozenset[int] = frozenset((4, 6))
    protocol: int = PROTOCOL_BOOT
    metrics: tuple[int, int] = (0, 1024)  # of routes to workloads, IPv4 and IPv6
    elevated: tuple[int, int] = (512, 512)  # of those to workloads that have just moved here
    leaving: tuple[int, int] = (1025, 1025)  # of those to workloads that may run elsewhere by now
    patience: float = 30.0  # seconds that routes stay elevated after the migration
    sources: tuple[str, str] = ("", "")  # preferred source addresses, IPv4 and IPv6
    rp_filter: str = "1"
    routes: bool = True

    def metric(self, version: int, phase: Phase = Phase.BASE) -> int:
        if phase is Phase.LEAVING:
            return self.leaving[version == 6]
        elevated = phase in (Phase.LIVE, Phase.SETTLING)
        return (self.elevated if elevated else self.metrics)[version == 6]

    def source(self, version: int) -> str | None:
        return self.sources[version == 6] or None


def workload_routes(
    workload: Workload, ifindex: int, wiring: Wiring, phase: Phase = Phase.BASE
) -> list[Route]:
    """One for each of its addresses, and for each floating address that leads to it.

    None while its guest is waited for (live migration).
    """
    if not wiring.routes or phase is Phase.TARGET:
        return []
    nets = [*workload.nets, *(canonical.cidr(one.external) for one in workload.floating_ips)]
    return [
        Route(
            net,
            ifindex=ifindex,
            scope=SCOPE_LINK,
            protocol=wiring.protocol,
            metric=wiring.metric(version_of(net), phase),
            src=wiring.source(version_of(net)),
        )
        for net in dict.fromkeys(nets)
        if version_of(net) in wiring.versions
    ]


def neighbour_entries(workload: Workload, ifindex: int) -> dict[NeighbourKey, str]:
    if not workload.mac:
        return {}
    return {(ifindex, canonical.address_of(net)): workload.mac for net in workload.nets_of(4)}


@dataclass(slots=True)
class _Wired:
    """What was asked for one endpoint."""

    workload: Workload
    interface: Interface | None
    neighbours: dict[NeighbourKey, str]
    sysctls: dict[str, str]
    shaped: bool = False  # its bandwidth is limited


class EndpointWiring:
    def __init__(
        self,
        wiring: Wiring,
        routes: RouteTable,
        neighbours: Neighbours,
        parameters: Sysctls,
        shapes: Shapes,
        find: Callable[[str], Interface | None],
        clock: Callable[[], float],
    ) -> None:
        """`find(name)`: the interface of that name, None if there is none."""
        self._wiring = wiring
        self._routes, self._neighbours, self._sysctls = routes, neighbours, parameters
        self._shapes, self._find, self._clock = shapes, find, clock
        self._movements = Movements(wiring.patience)
        self._wired: dict[WorkloadId, _Wired] = {}
        self._on: dict[str, WorkloadId] = {}  # interface -> its endpoint

    def on(self, interface: str) -> WorkloadId | None:
        return self._on.get(interface)

    def known(self) -> Iterable[WorkloadId]:
        return self._wired.keys()

    def interface(self, ident: WorkloadId) -> str:
        return self._wired[ident].workload.interface

    def update(self, ident: WorkloadId, workload: Workload | None) -> None:
        """Ask for what an endpoint needs as things stand now; None: it is gone."""
        self._move(ident, workload)
        before = self._wired.pop(ident, None)
        if before is not None and self._on.get(before.workload.interface) == ident:
            del self._on[before.workload.interface]
        after = None if workload is None else self._wire(ident, workload)
        if before is not None and after is not None and before.interface != after.interface:
            self._doubt(after)
        for key in (before.neighbours if before else {}).keys() - (after.neighbours if after else {}).keys():
            self._neighbours.drop(key)
        for name in (before.sysctls if before else {}).keys() - (after.sysctls if after else {}).keys():
            self._sysctls.drop(name)
        if before is not None and (after is None or after.interface is None or not after.shaped):
            self._shapes.drop(before.workload.interface)
        if after is None:
            self._routes.want(ident, ())

    def _wire(self, ident: WorkloadId, workload: Workload) -> _Wired:
        interface = self._find(workload.interface)
        wired = _Wired(workload, interface, {}, {})
        candidates: list[Candidate] = []
        if interface is not None and interface.running:
            phase = self._movements.phase(ident)
            routes = workload_routes(workload, interface.ifindex, self._wiring, phase)
            candidates = [Candidate(RouteClass.LOCAL_WORKLOAD, route) for route in routes]
            if phase is not Phase.TARGET:
                wired.neighbours = neighbour_entries(workload, interface.ifindex)
            else:
                every = (workload_routes(workload, 0, self._wiring, other) for other in Phase)
                self._routes.refuse({route.key for one in every for route in one})
            rp_filter = "0" if workload.spoofed_sources else self._wiring.rp_filter
            wired.sysctls = sysctls.workload(interface.name, self._wiring.versions, rp_filter)
            wired.shaped = self._shape(workload, interface)
        self._routes.want(ident, candidates)
        for key, mac in wired.neighbours.items():
            self._neighbours.put(key, mac)
        for name, value in wired.sysctls.items():
            self._sysctls.put(name, value)
        self._wired[ident] = wired
        self._on[workload.interface] = ident
        return wired

    def _shape(self, workload: Workload, interface: Interface) -> bool:
        """Whether there is a limit."""
        limits = (workload.ingress, workload.egress)
        shape = Shape(*(bucket(limit, interface.mtu) for limit in limits))
        if shape != Shape():
            self._shapes.put(interface.name, shape)
        return shape != Shape()

    def _doubt(self, wired: _Wired) -> None:
        """An interface that is new, or was down, has forgotten what it was told."""
        for name in wired.sysctls:
            self._sysctls.observe(name, None)
        for key in wired.neighbours:
            self._neighbours.observe(key, None)
        if wired.shaped:
            self._shapes.forget()

    # --- live migrations ------------------------------------------------------------------------

    def adopt(self, targets: Iterable[Workload], standing: Iterable[Route]) -> None:
        """At a start: a target with the routes of one whose guest runs here is that already.

        Calico's felix takes them away until the migration is over.
        """
        there = {(route.ifindex, route.key) for route in standing}
        for workload in targets:
            interface = self._find(workload.interface)
            if interface is None:
                continue
            usual, elevated = (
                {(interface.ifindex, one.key) for one in workload_routes(workload, 0, self._wiring, phase)}
                for phase in (Phase.BASE, Phase.LIVE)
            )
            if there & (elevated - usual):
                self._move(workload.id, workload)
                self.announced(workload.id)

    def targets(self) -> dict[WorkloadId, Interface]:
        """Those whose guest is waited for, and the interface that it will be heard on."""
        wired = {ident: self._wired[ident].interface for ident in self._movements.targets()}
        return {ident: interface for ident, interface in wired.items() if interface is not None}

    def announced(self, ident: WorkloadId) -> bool:
        """The guest runs here; whether update() has something to do about it."""
        changed = self._movements.announced(ident)
        if changed:
            _log.info("%s has moved here, its routes come first", ident)
        return changed

    def settle(self) -> set[WorkloadId]:
        """Those that update() has to look at because their time is over."""
        settled = self._movements.settle(self._clock())
        for ident in settled:
            _log.info("live migration of %s: over, its routes are as any other's", ident)
        return settled

    def next_due(self) -> float:
        return self._movements.next_due()

    def _move(self, ident: WorkloadId, workload: Workload | None) -> None:
        before = self._movements.phase(ident)
        if workload is None:
            self._movements.gone(ident)
        else:
            self._movements.take(ident, workload.migration, self._clock())
        if (now := self._movements.phase(ident)) is not before:
            _log.info("live migration of %s: %s, was %s", ident, now.value, before.value)

    # --- how it stands --------------------------------------------------------------------------

    def trouble(self, ident: WorkloadId, route_reason: Callable[[Candidate], str]) -> str:
        """Why an endpoint is not up; '' if it is."""
        wired = self._wired[ident]
        if wired.interface is None:
            return f"interface {wired.workload.interface} does not exist"
        if not wired.interface.running:
            return f"interface {wired.workload.interface} is not running"
        for name in wired.sysctls:
            if reason := self._sysctls.reason(name):
                return f"sysctl {name}: {reason}"
        for candidate in self._routes.wanted_by(ident):
            if reason := route_reason(candidate):
                return f"route {candidate.route.dst}: {reason}"
        if wired.shaped and (reason := self._shapes.reason(wired.interface.name)):
            return f"bandwidth: {reason}"
        return ""
