"""How far the workloads of this node are with their live migrations. Pure: the clock's reading is given.

A workload that is the target of one begins without routes, for its guest still runs elsewhere. When the
guest announces itself (ARP, RARP) it runs here, and its routes come before all others, until the network
has had time to learn where it is: `patience` seconds from the end of the migration.

                what came   base     target    live      settling  leaving
    it became   target      target                                 target
    the guest   announced            live
    it became   none                 settling  settling
    it became   source      leaving  leaving   leaving   leaving
    the time    over                                     base
    it is       gone                 base      base      base      base

(Reference: dataplane sheet 1.4; felix/dataplane/linux/live_migration.go, whose TimeWait is `settling`.)
`leaving` is Calico's base: there every workload's route has a metric that an elevated one precedes, here
only a source's has, and keeps it until the workload is gone, for its guest may run elsewhere by now.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Literal

from tortie.felix.calc.model import MigrationRole, WorkloadId

Event = Literal["target", "source", "none", "announced", "over", "gone"]


class Phase(Enum):
    BASE = "no migration"
    TARGET = "target"
    LIVE = "live"
    SETTLING = "settling"
    LEAVING = "source"


_NEXT = {  # (phase, what came) -> phase; no entry: nothing changes
    (Phase.BASE, "target"): Phase.TARGET,
    (Phase.TARGET, "announced"): Phase.LIVE,
    (Phase.TARGET, "none"): Phase.SETTLING,  # the announcement was missed
    (Phase.LIVE, "none"): Phase.SETTLING,
    (Phase.SETTLING, "over"): Phase.BASE,
    (Phase.LEAVING, "target"): Phase.TARGET,
    **{(phase, "source"): Phase.LEAVING for phase in Phase},
    **{(phase, "gone"): Phase.BASE for phase in Phase},
}


@dataclass(frozen=True, slots=True)
class Movement:
    phase: Phase = Phase.BASE
    until: float = inf  # when it is over, by the clock; only while settling


def after(movement: Movement, event: Event, now: float, patience: float) -> Movement:
    phase = _NEXT.get((movement.phase, event), movement.phase)
    if phase is movement.phase:
        return movement
    return Movement(phase, now + patience if phase is Phase.SETTLING else inf)


_AT_REST = Movement()


class Movements:
    """All of them; those at rest are not kept."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._roles: dict[WorkloadId, MigrationRole] = {}  # as last told
        self._movements: dict[WorkloadId, Movement] = {}

    def phase(self, ident: WorkloadId) -> Phase:
        return self._movements.get(ident, _AT_REST).phase

    def targets(self) -> Iterable[WorkloadId]:
        """Those whose announcement is waited for."""
        return [ident for ident, one in self._movements.items() if one.phase is Phase.TARGET]

    def take(self, ident: WorkloadId, role: MigrationRole, now: float) -> None:
        """What part a workload has now; only that it is another one than before counts."""
        if self._roles.get(ident, "none") != role:
            self._roles[ident] = role
            self._pass(ident, role, now)

    def gone(self, ident: WorkloadId) -> None:
        self._roles.pop(ident, None)
        self._pass(ident, "gone", 0.0)

    def announced(self, ident: WorkloadId) -> bool:
        """Its guest has spoken; whether that changes anything."""
        return self._pass(ident, "announced", 0.0)

    def settle(self, now: float) -> set[WorkloadId]:
        """Those that have had their time by now."""
        over = {ident for ident, one in self._movements.items() if one.until <= now}
        for ident in over:
            self._pass(ident, "over", now)
        return over

    def next_due(self) -> float:
        """When settle() will have something to do."""
        return min((one.until for one in self._movements.values()), default=inf)

    def _pass(self, ident: WorkloadId, event: Event, now: float) -> bool:
        before = self._movements.pop(ident, _AT_REST)
        movement = after(before, event, now, self._patience)
        if movement != _AT_REST:
            self._movements[ident] = movement
        return movement != before
