"""Real datastores for the stories of IPAM: etcd, and custom resources on a kube-apiserver.

What MemoryBackend lets a test do, these do too: step in before an operation (`before`), and put what
nobody could write through us (`put_raw`, which takes etcd's path and JSON on both).
"""

import asyncio
import json
from typing import Any

import msgspec

from tests.ipam import (
    test_ipam_cases_blocks,
    test_ipam_cases_controllers,
    test_ipam_cases_pools,
    test_ipam_cases_release,
    test_ipam_operations,
    test_ipam_vm,
)
from tests.support.etcd import Etcd
from tests.support.kubernetes import ApiServer
from tests.support.memory_backend import Before
from tortie.datastore.backend import KV, Backend, Listed
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import AffinityKey, BlockKey, Key, Listing, ResourceKey, parse
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.kubernetes.ipamresource import resource_name
from tortie.datastore.types.node import Node

_MERGE = "application/merge-patch+json"


def stories(*but: str) -> dict[str, Any]:
    """The tests of these modules by their names, for another module to run on its own ground."""
    modules = (
        test_ipam_cases_blocks, test_ipam_cases_controllers, test_ipam_cases_pools,
        test_ipam_cases_release, test_ipam_operations, test_ipam_vm,
    )  # fmt: skip
    found = {name: story for m in modules for name, story in vars(m).items() if name[:5] == "test_"}
    return {name: story for name, story in found.items() if name not in but}


class Watched:
    """Implements datastore.backend.Backend on another one. `before` is awaited first, if set."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.before: Before | None = None
        self.refused = inner.refused
        self.watch = inner.watch
        self.close = inner.close

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        await self._enter("create", key)
        return await self._inner.create(key, value)

    async def update(self, kv: KV) -> KV:
        await self._enter("update", kv.key)
        return await self._inner.update(kv)

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        await self._enter("apply", key)
        return await self._inner.apply(key, value, ttl)

    async def delete(self, key: Key, revision: str = "") -> KV:
        await self._enter("delete", key)
        return await self._inner.delete(key, revision)

    async def get(self, key: Key, revision: str = "") -> KV:
        await self._enter("get", key)
        return await self._inner.get(key, revision)

    async def list(self, what: Listing, revision: str = "") -> Listed:
        await self._enter("list", what)
        return await self._inner.list(what, revision)

    def serves(self, what: Listing) -> bool:
        return self._inner.serves(what)

    async def _enter(self, operation: str, what: Any) -> None:
        if self.before is not None:
            await self.before(operation, what)


class OnEtcd:
    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._open: list[Backend] = []

    def backend(self) -> Backend:
        backend = _InEtcd(self._etcd)
        self._open.append(backend)
        return backend

    async def node(self, client: Client, name: str, labels: dict[str, str]) -> Node:
        node = Node().with_metadata(name=name, labels=labels)
        return await client.create(node)

    async def label(self, client: Client, name: str, labels: dict[str, str]) -> None:
        await client.update((await client.get(Node, name)).with_metadata(labels=labels))

    async def close(self) -> None:
        while self._open:
            await self._open.pop().close()


class _InEtcd(Watched):
    def __init__(self, etcd: Etcd) -> None:
        super().__init__(EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,))))
        self._etcd = etcd

    async def put_raw(self, path: str, text: str) -> None:
        await asyncio.to_thread(self._etcd.put, path, text)

    async def raw(self, path: str) -> bytes:
        return (await asyncio.to_thread(self._etcd.entries, path))[path]


class OnKubernetes:
    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._open: list[Backend] = []

    def backend(self) -> Backend:
        backend = _InKubernetes(self._server)
        self._open.append(backend)
        return backend

    async def node(self, client: Client, name: str, labels: dict[str, str]) -> Node:
        body = {"metadata": {"name": name, "labels": labels}}
        await asyncio.to_thread(self._server.ask, "POST", "/api/v1/nodes", body)
        return await client.get(Node, name)

    async def label(self, _client: Client, name: str, labels: dict[str, str]) -> None:
        """Where they come from: what a node has of Kubernetes' own is not ours to take away."""
        path = f"/api/v1/nodes/{name}"
        old = (await asyncio.to_thread(self._server.ask, "GET", path))["metadata"].get("labels", {})
        patch = {"metadata": {"labels": dict.fromkeys(old) | labels}}
        await asyncio.to_thread(self._server.ask, "PATCH", path, patch, _MERGE)

    async def close(self) -> None:
        while self._open:
            await self._open.pop().close()


class _InKubernetes(Watched):
    def __init__(self, server: ApiServer) -> None:
        super().__init__(KubernetesBackend(server.config()))
        self._server = server

    async def put_raw(self, path: str, text: str) -> None:
        plural, kind, name = _place(parse(path))
        value = json.loads(text or "{}")
        await asyncio.to_thread(
            self._server.put_custom, plural, kind, name, {}, {"spec": _spec(parse(path), value)}
        )

    async def raw(self, path: str) -> bytes:
        plural, _, name = _place(parse(path))
        found = await asyncio.to_thread(self._server.custom, plural, name)
        return json.dumps(found["spec"], separators=(",", ":")).encode()


def _place(key: Key | None) -> tuple[str, str, str]:
    """Plural, kind and name of the custom resource that holds a key's value."""
    if isinstance(key, ResourceKey):
        return f"{key.kind.lower()}s", key.kind, key.name
    if isinstance(key, BlockKey):
        return "ipamblocks", "IPAMBlock", resource_name(key)
    assert isinstance(key, AffinityKey), key
    return "blockaffinities", "BlockAffinity", resource_name(key)


def _spec(key: Key | None, value: dict[str, Any]) -> dict[str, Any]:
    if isinstance(key, ResourceKey):
        found: dict[str, Any] = value["spec"]
        return found
    return value | ({"cidr": key.cidr, "node": key.host} if isinstance(key, AffinityKey) else {})
