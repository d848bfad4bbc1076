"""Local workload endpoints: which of them are enforced, when several claim the same interface.

Of those on one interface the one with the smallest id is active; the others are shadowed and wait for it
to go (felix/dataplane/linux/endpoint_mgr.go). Pure.
"""

from collections.abc import Iterator

from tortie.felix.calc.model import Workload, WorkloadId

Change = tuple[WorkloadId, Workload | None, Workload | None]
"""(id, active form before, active form now); None where it was or is not active."""


class LocalWorkloads:
    def __init__(self) -> None:
        self._all: dict[WorkloadId, Workload] = {}  # valid ones, active or shadowed
        self._claims: dict[str, set[WorkloadId]] = {}  # interface -> who wants it
        self._active: dict[str, Workload] = {}  # interface -> who has it

    def update(self, ident: WorkloadId, workload: Workload | None) -> list[Change]:
        """Add, replace or delete one; returns what that changed, what ends before what begins."""
        before = self._all.pop(ident, None)
        if before is not None:
            claims = self._claims[before.interface]
            claims.discard(ident)
            if not claims:
                del self._claims[before.interface]
        if workload is not None:
            self._all[ident] = workload
            self._claims.setdefault(workload.interface, set()).add(ident)
        interfaces = {one.interface for one in (before, workload) if one is not None}
        changes = [change for name in sorted(interfaces) for change in self._settle(name)]
        return _joined(changes)

    def _settle(self, interface: str) -> Iterator[Change]:
        """Give an interface to the smallest id that claims it."""
        had = self._active.get(interface)
        claims = self._claims.get(interface)
        has = self._all[min(claims)] if claims else None
        if had == has:
            return
        if has is None:
            del self._active[interface]
        else:
            self._active[interface] = has
        if had is not None and (has is None or had.id != has.id):
            yield had.id, had, None
            had = None
        if has is not None:
            yield has.id, had, has


def _joined(changes: list[Change]) -> list[Change]:
    """One change per id: an endpoint that moved to another interface ended on one and began on the other."""
    first: dict[WorkloadId, Workload | None] = {}
    last: dict[WorkloadId, Workload | None] = {}
    for ident, before, after in changes:
        if before is not None or ident not in first:
            first[ident] = before
        if after is not None or ident not in last:
            last[ident] = after
    ordered = sorted(first, key=lambda ident: last[ident] is not None)
    return [(ident, first[ident], last[ident]) for ident in ordered]
