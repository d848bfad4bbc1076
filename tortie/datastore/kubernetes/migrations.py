"""KubeVirt's VirtualMachineInstanceMigrations as LiveMigrations. Pure.

A migration counts from the moment its target may have a pod, so that felix knows of it before the pod has
an endpoint, and until it has succeeded. One that failed counts on: its source stays what it was.
(Reference: libcalico-go/lib/backend/k8s/resources/livemigration.go, as of Calico 3.33.)
"""

import re

import msgspec

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import codec
from tortie.datastore.backend import KV
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.endpoint import (
    LiveMigration,
    LiveMigrationSource,
    LiveMigrationSpec,
    LiveMigrationTarget,
    WorkloadIdentifier,
)
from tortie.datastore.types.meta import ObjectMeta

_COUNTING = ("Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Failed")  # phases
# Labels of a VM's pods: its name, since KubeVirt 1.7 and before, and the migration whose target the pod is.
_NAME, _OLD_NAME, _JOB = "vmi.kubevirt.io/id", "vm.kubevirt.io/name", "kubevirt.io/migrationJobUID"
_PLAIN = re.compile(r"[0-9A-Za-z]([-.0-9A-Za-z]{0,251}[0-9A-Za-z])?", re.ASCII)  # what may stand in quotes


class _Spec(msgspec.Struct, frozen=True):
    vmiName: str = ""


class _State(msgspec.Struct, frozen=True):
    sourcePod: str = ""


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""
    migrationState: _State | None = None


class _Migration(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: _Spec = _Spec()
    status: _Status = _Status()


def read_migration(raw: bytes) -> KV:
    """Without a value while it does not count. Raises ValidationError."""
    found = codec.decode(_Migration, raw)
    meta = found.metadata
    key = ResourceKey("LiveMigration", meta.name, meta.namespace)
    counts = found.status.phase in _COUNTING and found.spec.vmiName and meta.uid
    return KV(key, _live_migration(found) if counts else None, meta.resourceVersion)


def _live_migration(found: _Migration) -> LiveMigration:
    meta, name, state = found.metadata, found.spec.vmiName, found.status.migrationState
    for field, text in (("spec.vmiName", name), ("metadata.uid", meta.uid)):
        if _PLAIN.fullmatch(text) is None:
            raise ValidationError([FieldError(f"VirtualMachineInstanceMigration.{field}", text, "invalid")])
    selector = f"({_NAME} == '{name}' || {_OLD_NAME} == '{name}') && {_JOB} == '{meta.uid}'"
    source = None
    if state is not None and state.sourcePod:
        pod = WorkloadIdentifier(orchestratorID="k8s", workloadID=f"{meta.namespace}/{state.sourcePod}")
        source = LiveMigrationSource(workload=pod)
    return LiveMigration(
        metadata=ObjectMeta(
            name=meta.name, namespace=meta.namespace, uid=meta.uid, resourceVersion=meta.resourceVersion
        ),
        spec=LiveMigrationSpec(source=source, target=LiveMigrationTarget(selector=selector)),
    )
