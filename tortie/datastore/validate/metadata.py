"""Names, namespaces, labels and annotations of every kind, and the stricter names of some.

Field names and most reasons are those of Calico's validator (validateObjectMeta and its like).
"""

import re
from collections.abc import Mapping

from tortie.datastore.kinds import KINDS
from tortie.datastore.types.meta import Resource
from tortie.datastore.validate.fields import Problems, text
from tortie.datastore.validate.formats import (
    LABEL,
    LABEL_VALUE,
    MAX_LABEL,
    MAX_NAME,
    NAME,
    QUALIFIED_NAME,
    is_qualified_name,
    is_resource_name,
    label_value,
    timestamp,
)

__all__ = ["LABEL", "MAX_NAME", "NAME", "check_annotations", "check_labels", "check_metadata"]

_MAX_ANNOTATIONS = 256 * 1024  # bytes of all keys and values together, Kubernetes' limit
_SHORT = "name must consist of lower case alphanumeric characters or '-' (regex: " + LABEL + ")"
_DOTTED = "name must consist of lower case alphanumeric characters, '-' or '.' (regex: " + NAME + ")"
_SINGLETON = "name must be 'default'"
_CONFIG = "name must be 'default' or 'node.<node name>'"

_name = re.compile(NAME, re.ASCII)
_POLICY = rf"{LABEL}(\.{LABEL})?|(knp|ossg)\.default\.{NAME}"
_STRICTER: dict[str, tuple[re.Pattern[str], int, str]] = {  # kind -> form of its name, longest, the reason
    kind: (re.compile(pattern, re.ASCII), most, reason)
    for kinds, pattern, most, reason in [
        (("NetworkPolicy", "StagedNetworkPolicy"), _POLICY, MAX_NAME, _SHORT),
        (("GlobalNetworkPolicy", "StagedGlobalNetworkPolicy"), rf"({LABEL}\.)?{LABEL}", MAX_NAME, _SHORT),
        (("Tier",), LABEL, MAX_LABEL, _SHORT),
        (
            ("IPAMConfiguration", "ClusterInformation", "KubeControllersConfiguration"),
            "default",
            MAX_NAME,
            _SINGLETON,
        ),
        (("BGPConfiguration",), rf"default|node\.{NAME}", MAX_NAME, _CONFIG),
    ]
    for kind in kinds
}
# kind -> label that the client reserves for its own use there
_RESERVED_LABELS = dict.fromkeys(("NetworkSet", "GlobalNetworkSet"), "projectcalico.org/namespace")
_line = text(MAX_NAME)


def check_metadata(resource: Resource, problems: Problems) -> None:
    metadata = resource.metadata
    _check_name(resource, problems)
    _check_namespace(resource, problems)
    check_labels(metadata.labels, problems)
    if (label := _RESERVED_LABELS.get(resource.KIND)) in metadata.labels:
        problems.add("Metadata.Labels (label)", label, f"{label} is not a valid label name")
    check_annotations(metadata.annotations, problems)
    for field in ("creationTimestamp", "deletionTimestamp"):
        if value := getattr(metadata, field):
            timestamp(problems, f"Metadata.{field[0].upper()}{field[1:]}", value)
    for field, value in (("UID", metadata.uid), ("GenerateName", metadata.generateName)):
        _line(problems, f"Metadata.{field}", value)


def _check_name(resource: Resource, problems: Problems) -> None:
    name = resource.metadata.name
    pattern, most, reason = _STRICTER.get(resource.KIND, (_name, MAX_NAME, _DOTTED))
    if not name:
        generated = " (GenerateName is not supported)" if resource.metadata.generateName else ""
        problems.add("Metadata.Name", name, "field must be set for a Create request" + generated)
    elif len(name) > most:
        problems.add("Metadata.Name", name, f"name is too long by {len(name) - most} bytes")
    elif not pattern.fullmatch(name):
        problems.add("Metadata.Name", name, reason)


def _check_namespace(resource: Resource, problems: Problems) -> None:
    namespace = resource.metadata.namespace
    if not KINDS[resource.KIND].namespaced:
        if namespace:
            problems.add("Metadata.Namespace", namespace, "namespace should not be specified for this kind")
    elif not namespace:
        problems.add("Metadata.Namespace", None, "namespace is not specified on namespaced resource")
    elif not is_resource_name(namespace):
        problems.add("Metadata.Namespace", namespace, _DOTTED.replace("name", "namespace", 1))


def check_labels(labels: Mapping[str, str], problems: Problems, where: str = "Metadata.Labels") -> None:
    for key, value in labels.items():
        if not is_qualified_name(key):
            problems.add(f"{where} (label)", key, "name part " + QUALIFIED_NAME)
        elif value:
            found = Problems()
            label_value(found, f"{where} (value)", value)
            for wrong in found.found:
                problems.add(wrong.field, f"{key}: {value}", LABEL_VALUE)


def check_annotations(
    annotations: Mapping[str, str], problems: Problems, where: str = "Metadata.Annotations"
) -> None:
    size = 0
    for key, value in annotations.items():
        if not is_qualified_name(key.lower()):
            problems.add(f"{where} (key)", key, "name part " + QUALIFIED_NAME)
        size += len(key.encode()) + len(value.encode(errors="replace"))
    if size > _MAX_ANNOTATIONS:
        excess = f"total size of annotations is too large by {size - _MAX_ANNOTATIONS} bytes"
        problems.add(f"{where} (key)", f"{len(annotations)} annotations", excess)
