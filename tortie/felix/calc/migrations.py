"""Which part the workloads of this node have in live migrations. Pure.

Whoever a migration's selector matches is its target, then whom it names as that, then whom it names as the
source. (Reference: felix/calc/live_migration_calculator.go.)
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tortie.datastore.keys import ResourceKey
from tortie.datastore.selector import SelectorError, SelectorIndex, parse
from tortie.datastore.types.endpoint import (
    LiveMigration,
    LiveMigrationSource,
    LiveMigrationTarget,
    WorkloadEndpointIdentifier,
    WorkloadIdentifier,
)
from tortie.felix.calc.canonical import refuse
from tortie.felix.calc.model import MigrationRole, WorkloadId

_KUBERNETES = "k8s"  # orchestrator whose workloads' names say enough: a pod is on one node only


class Named(NamedTuple):
    """Whom a migration names: one endpoint, or ('') all of a workload's."""

    node: str
    orchestrator: str
    workload: str
    endpoint: str = ""


def _named(given: WorkloadIdentifier) -> Named:
    node = "" if given.orchestratorID == _KUBERNETES else given.hostname
    endpoint = given.endpointID if isinstance(given, WorkloadEndpointIdentifier) else ""
    return Named(node, given.orchestratorID, given.workloadID, endpoint)


class Migrations:
    """`changed` names the workloads whose part may be another since it was last taken."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.changed: set[WorkloadId] = set()
        self._workloads: set[WorkloadId] = set()
        self._index: SelectorIndex[ResourceKey, WorkloadId] = SelectorIndex()
        self._targets: dict[ResourceKey, Named] = {}
        self._sources: dict[ResourceKey, Named] = {}

    # --- what changes ---------------------------------------------------------------------------

    def update(self, key: ResourceKey, migration: LiveMigration | None) -> None:
        """Add, replace or delete one. Raises ValidationError; the migration then counts as gone."""
        source = (migration and migration.spec.source) or LiveMigrationSource()
        target = (migration and migration.spec.target) or LiveMigrationTarget()
        self._select(key, target.selector or "")
        self._name(self._targets, key, target.workloadEndpoint)
        self._name(self._sources, key, source.workload or source.workloadEndpoint)

    def _select(self, key: ResourceKey, text: str) -> None:
        if text:
            try:
                events = self._index.update_selector(key, parse(text))
            except SelectorError as err:
                self.update(key, None)
                raise refuse("spec.target.selector", text, str(err)) from err
        else:
            events = self._index.delete_selector(key)
        self.changed.update(ident for _key, ident, _started in events)

    def _name(
        self, names: dict[ResourceKey, Named], key: ResourceKey, given: WorkloadIdentifier | None
    ) -> None:
        before, after = names.pop(key, None), None if given is None else _named(given)
        if after is not None:
            names[key] = after
        if after != before:
            named = {before, after}
            self.changed.update(one for one in self._workloads if not named.isdisjoint(self._names_of(one)))

    def update_workload(self, ident: WorkloadId, labels: Mapping[str, str], profiles: Iterable[str]) -> None:
        """Add or replace one of this node."""
        self._workloads.add(ident)
        self.changed.update(one for _key, one, _started in self._index.update_item(ident, labels, profiles))

    def delete_workload(self, key: WorkloadId | str) -> None:
        """What is no workload's was never known."""
        if isinstance(key, WorkloadId):
            self._workloads.discard(key)
            self._index.delete_item(key)

    def update_profile_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """Labels that every workload with this profile inherits."""
        self.changed.update(one for _key, one, _started in self._index.update_parent(name, labels))

    # --- the question ---------------------------------------------------------------------------

    def role_of(self, ident: WorkloadId) -> MigrationRole:
        names = self._names_of(ident)
        if self._index.selectors_of(ident) or not names.isdisjoint(self._targets.values()):
            return "target"
        return "none" if names.isdisjoint(self._sources.values()) else "source"

    def _names_of(self, ident: WorkloadId) -> set[Named]:
        """What a migration may call it."""
        node = "" if ident.orchestrator == _KUBERNETES else self._node
        whole = Named(node, ident.orchestrator, ident.workload)
        return {whole, whole._replace(endpoint=ident.endpoint)}
