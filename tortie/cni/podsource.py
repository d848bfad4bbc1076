"""Who knows a pod's labels, annotations and ports: the runtime, if it says them, else the Kubernetes API.

The API is the datastore itself or, with etcd, what the network configuration's `kubernetes` section leads
to. One connection is kept for each such section.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tortie.cni import kubevirt
from tortie.cni.identity import Identity
from tortie.cni.kubevirt import Launched
from tortie.cni.nearpods import NearPods
from tortie.cni.netconf import NetConf
from tortie.cni.pods import Pod, told_by_runtime
from tortie.core.errors import ConfigError, ResourceDoesNotExist
from tortie.core.tasks import together
from tortie.datastore import podendpoint
from tortie.datastore.backend import Backend
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.connect import kubernetes_beside
from tortie.datastore.keys import Key, ResourceKey
from tortie.datastore.nativekeys import (
    NamespaceKey,
    PodKey,
    VirtualMachineInstanceKey,
    VirtualMachineKey,
)
from tortie.datastore.types import pod as kube
from tortie.datastore.types.node import Node


class Pods:
    """PodSource. `base` is the configuration of the server's environment, `near` what is known already."""

    def __init__(self, base: DatastoreConfig, near: NearPods | None = None) -> None:
        self._base = base
        self._near = near
        self._apis: dict[DatastoreConfig, Backend] = {}

    async def pod(self, conf: NetConf, identity: Identity) -> Pod:
        """Raises ConfigError if nothing says where the API is, DatastoreError."""
        if conf.args.projectcalico is not None:
            return told_by_runtime(conf.args.projectcalico)
        if self._near is not None and (known := self._near.find(identity)) is not None:
            return told_by_api(*known)
        api = self._api(conf)
        if api is None:
            raise ConfigError(
                "policy.type",
                conf.policy.type,
                f"labels and annotations of pod {identity} are not known: there is no Kubernetes API "
                'with an etcd datastore, and the runtime passes no args."org.projectcalico"',
            )
        pod, namespace = await together(
            api.get(PodKey(identity.namespace, identity.pod)), api.get(NamespaceKey(identity.namespace))
        )
        return told_by_api(pod.value, namespace.value)

    async def launched(self, conf: NetConf, identity: Identity) -> Launched | None:
        api = self._api(conf) if kubevirt.may_launch(identity) else None
        if api is None:
            return None
        near = self._near.find(identity) if self._near is not None else None
        pod = near[0] if near else await _found(api, PodKey(identity.namespace, identity.pod))
        found = kubevirt.launched(pod.metadata) if pod is not None else None
        if found is None or not found.name:
            return found
        instance = await _found(api, VirtualMachineInstanceKey(identity.namespace, found.name))
        # Without its instance, only the VM that would have made it can tell whether another will come.
        name = found.name if instance is None else kubevirt.machine_of(instance.metadata)
        machine = await _found(api, VirtualMachineKey(identity.namespace, name)) if name else None
        return replace(
            found,
            instance=instance.metadata if instance is not None else None,
            machine=machine.metadata if machine is not None else None,
        )

    async def pod_cidrs(self, conf: NetConf, node: str) -> tuple[str, ...]:
        """As the API has them, also where the datastore is etcd: Kubernetes gives them out."""
        api = self._api(conf)
        if api is None:
            return ()
        found: Node = (await api.get(ResourceKey("Node", node))).value
        return found.status.podCIDRs

    def _api(self, conf: NetConf) -> Backend | None:
        config = api_config(self._base, conf)
        if config not in self._apis:
            found = kubernetes_beside(config)
            if found is None:
                return None
            self._apis[config] = found
        return self._apis[config]

    async def close(self) -> None:
        for api in self._apis.values():
            await api.close()
        self._apis.clear()


async def _found(api: Backend, key: Key) -> Any:
    """The object, None if there is none."""
    try:
        return (await api.get(key)).value
    except ResourceDoesNotExist:
        return None


def api_config(base: DatastoreConfig, conf: NetConf) -> DatastoreConfig:
    """`base` with what the network configuration says of the API. Pure."""
    given = {
        "kubeconfig": conf.kubernetes.kubeconfig,
        # The old field held the path as well, which clients add themselves.
        "k8sAPIEndpoint": conf.kubernetes.k8s_api_root or conf.policy.k8s_api_root.partition("/api/")[0],
        "k8sAPIToken": conf.policy.k8s_auth_token,
        "k8sCertFile": conf.policy.k8s_client_certificate,
        "k8sKeyFile": conf.policy.k8s_client_key,
        "k8sCAFile": conf.policy.k8s_certificate_authority,
    }
    return replace(base, **{name: value for name, value in given.items() if value})  # type: ignore[arg-type]


def told_by_api(pod: kube.Pod, namespace: kube.Metadata) -> Pod:
    return Pod(
        labels=pod.metadata.labels,
        annotations=pod.metadata.annotations,
        namespace_labels=namespace.metadata.labels,
        namespace_annotations=namespace.metadata.annotations,
        service_account=pod.spec.serviceAccountName,
        generate_name=pod.metadata.generateName,
        ports=podendpoint.ports(_ports(pod)),
    )


def _ports(pod: kube.Pod) -> Iterator[kube.ContainerPort]:
    for container in (*pod.spec.containers, *pod.spec.initContainers):
        yield from container.ports
