"""This node's pods and all namespaces, as the Kubernetes API tells of each change: an ADD need not ask.

Only a pod whose UID the runtime names is taken from here. One of that name may be another's, which is gone
already or of which nothing has been told yet; then the API is asked, as without.
"""

import contextlib
import logging

from tortie.cni.identity import Identity
from tortie.datastore.backend import Backend
from tortie.datastore.nativekeys import NamespaceKey, NamespaceList, PodKey, PodList
from tortie.datastore.syncer import Syncer, SyncStatus
from tortie.datastore.types import pod as kube

_log = logging.getLogger(__name__)


class NearPods:
    def __init__(self, api: Backend, node: str) -> None:
        """`node` is this node's name in Kubernetes."""
        self._api = api
        self._listings = (PodList(node), NamespaceList())
        self._pods: dict[PodKey, kube.Pod] = {}
        self._namespaces: dict[NamespaceKey, kube.Metadata] = {}
        self._in_sync = False

    async def run(self) -> None:
        """Follow until cancelled; begun again, everything is learnt anew."""
        self._in_sync = False
        self._pods.clear()
        self._namespaces.clear()
        async with contextlib.aclosing(Syncer(self._api, self._listings).batches()) as batches:
            async for batch in batches:
                for update in batch.updates:
                    of_kind: dict[object, object] = (
                        self._pods if isinstance(update.key, PodKey) else self._namespaces  # type: ignore[assignment]
                    )
                    if update.value is None:
                        of_kind.pop(update.key, None)
                    else:
                        of_kind[update.key] = update.value
                before, self._in_sync = self._in_sync, batch.status is SyncStatus.IN_SYNC
                if self._in_sync and not before:
                    _log.info("%d of this node's pods are known", len(self._pods))

    def find(self, identity: Identity) -> tuple[kube.Pod, kube.Metadata] | None:
        """The pod and its namespace, if it is known for sure that they are these."""
        if not (self._in_sync and identity.uid):
            return None
        pod = self._pods.get(PodKey(identity.namespace, identity.pod))
        namespace = self._namespaces.get(NamespaceKey(identity.namespace))
        if pod is None or namespace is None or pod.metadata.uid != identity.uid:
            return None
        return pod, namespace
