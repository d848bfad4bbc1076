"""What controllers see of a cluster: our datastore by its feed, Kubernetes' objects without an API server."""

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.support.aio import eventually
from tortie.controllers.feed import Feed
from tortie.core.errors import ResourceDoesNotExist, UpdateConflict
from tortie.core.tasks import cancel
from tortie.datastore.backend import KV, Backend, Listed
from tortie.datastore.keys import BlockList, Key, ResourceList
from tortie.datastore.nativekeys import PodKey, ServiceKey
from tortie.datastore.syncer import Batch, SyncStatus, Update
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.pod import Pod, PodIP, PodSpec, PodStatus
from tortie.datastore.types.service import Ingress, Service, ServiceSpec

_OURS = (
    "Node",
    "IPPool",
    "IPReservation",
    "ClusterInformation",
    "HostEndpoint",
    "Profile",
    "WorkloadEndpoint",
)


class Seen:
    """`native` is what the feed of Kubernetes' objects knows, `live` what its API would answer now."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.ours = Feed(backend, [BlockList(), *map(ResourceList, _OURS)])
        self.native = Feed(backend, [])
        self.live = Live()

    async def follow(self) -> None:
        """The feed of ours as it is now."""
        self.ours.in_sync = False
        following = asyncio.create_task(self.ours.run())
        try:
            await eventually(lambda: self.ours.in_sync)
            listed = await self._backend.list(BlockList())
            await eventually(lambda: len(self.ours.of("BlockKey")) == len(listed.items))
        finally:
            await cancel([following])

    def kubernetes(self, *objects: tuple[Key, Any]) -> None:
        """Known to the feed and to the API."""
        self.live.objects |= dict(objects)
        updates = [Update("new", key, value) for key, value in objects]
        self.native.apply(Batch(updates, SyncStatus.IN_SYNC))

    def forgotten(self, *keys: Key) -> None:
        """The feed says that they are gone; the API is not asked."""
        self.native.apply(Batch([Update("deleted", key, None) for key in keys], SyncStatus.IN_SYNC))


class Live:
    """The API server: answers what it has, and is written to."""

    def __init__(self) -> None:
        self.objects: dict[Key, Any] = {}
        self.ingress: list[tuple[str, tuple[str, ...]]] = []

    async def get(self, key: Key) -> Any:
        await asyncio.sleep(0)
        if key not in self.objects:
            raise ResourceDoesNotExist(key)
        return KV(key, self.objects[key], "1")

    async def list(self, what: Any) -> Any:
        return Listed([KV(key, value, "1") for key, value in self.objects.items() if what.contains(key)], "1")

    async def set_ingress(self, key: ServiceKey, revision: str, ingress: Sequence[Ingress]) -> None:
        if self.objects[key].metadata.resourceVersion != revision:
            raise UpdateConflict(key)
        self.ingress.append((key.name, tuple(one.ip for one in ingress)))


def pod(name: str, address: str, node: str = "n1") -> tuple[Key, Pod]:
    status = PodStatus(phase="Running", podIP=address, podIPs=(PodIP(ip=address),))
    meta = ObjectMeta(name=name, namespace="shop")
    return PodKey("shop", name), Pod(metadata=meta, spec=PodSpec(nodeName=node), status=status)


def service(uid: str = "u", **spec: Any) -> tuple[ServiceKey, Service]:
    meta = ObjectMeta(name="web", namespace="shop", uid=uid, resourceVersion="1")
    fields = {"type": "LoadBalancer", "ipFamilies": ("IPv4",)} | spec
    return ServiceKey("shop", "web"), Service(metadata=meta, spec=ServiceSpec(**fields))
