"""Kubernetes' policies, namespaces and service accounts as they are kept in etcd. Pure.

A copy has its source's name with a prefix, by which we know what to delete: nobody else may use these
names (calicoctl refuses them). Pods are not copied, CNI has written their endpoints: only what may change
of a pod that runs - its labels - is brought up to date.
(Reference: kube-controllers/pkg/converter, kube-controllers/pkg/controllers/{networkpolicy,namespace,pod}.)
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from tortie.datastore import validate
from tortie.datastore.keys import Key, ResourceKey
from tortie.datastore.rules import KUBERNETES_POLICY_PREFIX, as_read
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.meta import ObjectMeta, Resource

# controller -> kind and prefix of the names of its copies
SETS = {
    "policy": ("NetworkPolicy", KUBERNETES_POLICY_PREFIX),
    "namespace": ("Profile", "kns."),
    "serviceAccount": ("Profile", "ksa."),
}


@dataclass(slots=True)
class Changes:
    create: list[Resource] = field(default_factory=list)
    update: list[Resource] = field(default_factory=list)  # with the revision of what is stored
    delete: list[Resource] = field(default_factory=list)  # as stored


def is_of(controller: str) -> Callable[[Key], bool]:
    """Whether a key is of the controller's set."""
    kind, prefix = SETS[controller]
    return lambda key: isinstance(key, ResourceKey) and key.kind == kind and key.name.startswith(prefix)


def changes(
    wanted: Mapping[Key, Resource], stored: Mapping[Key, Resource], spared: Collection[Key] = ()
) -> Changes:
    """What makes the copies in etcd like their sources; `spared` have one that cannot be read just now.

    Only the spec is compared, labels and annotations that somebody adds to a copy are left alone.
    """
    result = Changes()
    for key, source in wanted.items():
        copy = validate.with_defaults(_bare(source))
        found = stored.get(key)
        if found is None:
            result.create.append(copy)
            continue
        current = as_read(found)
        if _spec(validate.with_defaults(current)) != _spec(copy):
            result.update.append(structs.replace(current, spec=_spec(copy)))
    result.delete = [found for key, found in stored.items() if key not in wanted and key not in spared]
    return result


def _bare(source: Resource) -> Resource:
    """Without what would change for nothing: revision, UID, times."""
    return structs.replace(source, metadata=ObjectMeta(name=source.name, namespace=source.namespace))


def _spec(resource: Any) -> Any:
    return resource.spec


# --- endpoints ----------------------------------------------------------------------------------


def relabelled(
    endpoints: Iterable[WorkloadEndpoint], pods: Mapping[tuple[str, str], WorkloadEndpoint]
) -> list[WorkloadEndpoint]:
    """The endpoints in etcd whose pod has other labels now. `pods` is (namespace, pod) -> what it is."""
    found = []
    for endpoint in endpoints:
        pod = pods.get((endpoint.namespace, endpoint.spec.pod))
        if endpoint.spec.orchestrator != "k8s" or pod is None or not _same_pod(endpoint, pod):
            continue
        account = pod.spec.serviceAccountName
        if endpoint.labels != pod.labels or endpoint.spec.serviceAccountName != account:
            spec = structs.replace(endpoint.spec, serviceAccountName=account)
            found.append(structs.replace(endpoint.with_metadata(labels=pod.labels), spec=spec))
    return found


def _same_pod(endpoint: WorkloadEndpoint, pod: WorkloadEndpoint) -> bool:
    """A pod of a StatefulSet comes back under its name: while CNI has not written, it is another."""
    ours, theirs = endpoint.spec.containerID, pod.spec.containerID
    if ours and theirs:
        return ours == theirs
    return not pod.spec.ipNetworks or set(pod.spec.ipNetworks) == set(endpoint.spec.ipNetworks)
