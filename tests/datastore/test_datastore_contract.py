"""The same scenarios over the datastore in memory, a real etcd and a real kube-apiserver.

What tests trust must be true, and what IPAM and syncers build on must hold wherever they run.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any, Protocol

import pytest
from msgspec import structs

from tests.support.aio import run
from tests.support.etcd import Etcd
from tests.support.kubernetes import ApiServer
from tests.support.memory_backend import MemoryBackend
from tests.support.replay import next_events
from tests.support.resources import resource
from tortie.core.errors import (
    OperationNotSupported,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    RevisionGone,
    UpdateConflict,
    ValidationError,
)
from tortie.datastore.backend import KV, Backend, WatchEvent
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.initialize import ensure_default_configuration, ensure_initialized
from tortie.datastore.keys import (
    BlockKey,
    BlockList,
    HandleKey,
    HandleList,
    Key,
    ResourceKey,
    ResourceList,
    parse,
)
from tortie.datastore.kinds import KINDS
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.types import ipam
from tortie.datastore.types.cluster import ClusterInformation
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.policy import GlobalNetworkPolicy, Tier

POOLS = ResourceList("IPPool")
PREFIX = "/calico/resources/v3/projectcalico.org/"


class Store(Protocol):
    """A datastore and what only a test may do to it."""

    backend: Backend

    async def put(self, path: str, data: str) -> None: ...
    async def read(self, path: str) -> bytes: ...
    async def compact(self) -> None: ...


class _Memory:
    def __init__(self) -> None:
        self.backend: Backend = MemoryBackend()

    async def put(self, path: str, data: str) -> None:
        assert isinstance(self.backend, MemoryBackend)
        await self.backend.put_raw(path, data)

    async def read(self, path: str) -> bytes:
        assert isinstance(self.backend, MemoryBackend)
        return self.backend.raw(path) or b""

    async def compact(self) -> None:
        assert isinstance(self.backend, MemoryBackend)
        self.backend.compact()


class _Real:
    def __init__(self, server: Etcd) -> None:
        self.server = server
        self.backend: Backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(server.endpoint,)))

    async def put(self, path: str, data: str) -> None:
        await asyncio.to_thread(self.server.put, path, data)

    async def read(self, path: str) -> bytes:
        return (await asyncio.to_thread(self.server.entries, path)).get(path, b"")

    async def compact(self) -> None:
        await asyncio.to_thread(self.server.compact)


class _Kubernetes:
    """Paths and JSON are etcd's here too; what the API server itself would never hold becomes what it can."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.backend: Backend = KubernetesBackend(server.config())

    async def put(self, path: str, data: str) -> None:
        key = parse(path)
        if not isinstance(key, ResourceKey):
            return  # an object is always one of a collection and has a name
        row = KINDS[key.kind]
        try:
            body = json.loads(data)
        except ValueError:
            body = {"spec": data}
        annotation = {"projectcalico.org/metadata": json.dumps(body.pop("metadata", {}))}
        put = self.server.put_custom
        await asyncio.to_thread(put, row.plural, key.kind, key.name, {"annotations": annotation}, body)

    async def read(self, path: str) -> bytes:
        """Of the metadata that stand in an annotation only the name is there in etcd too."""
        key = parse(path)
        assert isinstance(key, ResourceKey)
        found = await asyncio.to_thread(self.server.custom, KINDS[key.kind].plural, key.name)
        metadata = json.loads(found["metadata"]["annotations"]["projectcalico.org/metadata"])
        name = json.dumps({"name": metadata["name"]}, separators=(",", ":"))
        found["metadata"]["annotations"]["projectcalico.org/metadata"] = name
        return json.dumps(found).encode()

    async def compact(self) -> None:
        # In this thread: the server ends with the one that started it.
        self.server.forget_history()


@pytest.fixture(
    params=[
        pytest.param("memory", marks=pytest.mark.unit),
        pytest.param("etcd", marks=pytest.mark.kernel),
        pytest.param("kubernetes", marks=pytest.mark.kernel),
    ]
)
def store(request: pytest.FixtureRequest) -> Iterator[Callable[[], Store]]:
    """Opens the datastore; to be called inside the running loop."""
    if request.param == "kubernetes":
        apiserver: ApiServer = request.getfixturevalue("apiserver")
        yield lambda: _Kubernetes(apiserver)
        return
    server: Etcd | None = request.getfixturevalue("etcd") if request.param == "etcd" else None
    yield lambda: _Memory() if server is None else _Real(server)


Open = Callable[[], Store]


def pool_key(name: str) -> ResourceKey:
    return ResourceKey("IPPool", name)


def pool(name: str, cidr: str = "10.0.0.0/24") -> IPPool:
    return IPPool(metadata=ObjectMeta(name=name), spec=IPPoolSpec(cidr=cidr))


async def events(backend: Backend, revision: str, count: int) -> list[WatchEvent]:
    """The next `count` events that are not bookmarks."""
    async with asyncio.timeout(200):
        return await next_events(backend.watch(POOLS, revision), count)


# --- the backend contract -----------------------------------------------------------------------


def test_compare_and_swap(store: Open) -> None:
    async def scenario() -> None:
        opened = store()
        backend = opened.backend
        first = await backend.create(pool_key("a"), pool("a"))
        with pytest.raises(ResourceAlreadyExists) as exists:
            await backend.create(pool_key("a"), pool("a"))
        assert exists.value.current.revision == first.revision
        second = await backend.update(KV(first.key, pool("a", "10.1.0.0/24"), first.revision))
        assert int(second.revision) > int(first.revision)
        with pytest.raises(UpdateConflict) as conflict:
            await backend.update(KV(first.key, pool("a"), first.revision))
        assert conflict.value.current.value.spec.cidr == "10.1.0.0/24"
        with pytest.raises(UpdateConflict):
            await backend.delete(first.key, first.revision)
        assert (await backend.delete(first.key, second.revision)).value.spec.cidr == "10.1.0.0/24"
        for missing in (backend.update(second), backend.delete(first.key), backend.get(first.key)):
            with pytest.raises(ResourceDoesNotExist):
                await missing
        with pytest.raises(ValidationError):
            await backend.update(KV(first.key, pool("a"), "not a revision"))
        await backend.close()

    run(scenario())


def test_the_past_can_be_read_until_it_is_compacted(store: Open) -> None:
    async def scenario() -> None:
        opened = store()
        backend = opened.backend
        first = await backend.create(pool_key("a"), pool("a"))
        await backend.update(KV(first.key, pool("a", "10.1.0.0/24"), first.revision))
        await backend.create(pool_key("b"), pool("b"))
        assert (await backend.get(first.key, first.revision)).value.spec.cidr == "10.0.0.0/24"
        assert [kv.key for kv in (await backend.list(POOLS, first.revision)).items] == [first.key]
        await opened.compact()
        with pytest.raises(RevisionGone):
            await backend.list(POOLS, first.revision)
        with pytest.raises(RevisionGone):
            await events(backend, first.revision, 1)
        await backend.close()

    run(scenario())


def test_lists_are_in_key_order_and_name_what_is_broken(store: Open) -> None:
    async def scenario() -> None:
        opened = store()
        backend = opened.backend
        for name in ("b", "a.b", "a"):
            await backend.create(pool_key(name), pool(name))
        await opened.put(PREFIX + "ippools/broken", '{"kind":"IPPool","spec":{"cidr":7}}')
        await opened.put(
            PREFIX + "ippools/forged", '{"kind":"IPPool","metadata":{"name":"a","resourceVersion":"9"}}'
        )
        await opened.put(PREFIX + "ippools/x/y", "{}")  # not a key of ours
        listed = await backend.list(POOLS)
        keys: list[Key] = [kv.key for kv in listed.items]
        assert keys == [pool_key(name) for name in ("a", "a.b", "b", "forged")]
        forged = listed.items[-1].value
        assert forged.name == "forged" and forged.revision == listed.items[-1].revision != "9"
        assert [broken.key for broken in listed.broken] == [pool_key("broken")]
        with pytest.raises(ValidationError):
            await backend.get(pool_key("broken"))
        assert (await backend.delete(pool_key("broken"))).value is None
        await backend.close()

    run(scenario())


def test_one_object_is_listed_and_watched_alone(store: Open) -> None:
    async def scenario() -> None:
        backend = store().backend
        for name in ("one", "one-more", "two"):
            await backend.create(pool_key(name), pool(name))
        alone = ResourceList("IPPool", name="one")
        listed = await backend.list(alone)
        assert [kv.key for kv in listed.items] == [pool_key("one")]
        await backend.delete(pool_key("one-more"))
        await backend.delete(pool_key("one"))
        async with aclosing(backend.watch(alone, listed.revision)) as found:  # type: ignore[type-var]
            event = await anext(event async for event in found if event.type != "bookmark")
        assert (event.type, _key(event)) == ("deleted", pool_key("one"))
        await backend.close()

    run(scenario())


def test_a_watch_tells_everything_after_a_revision_in_order(store: Open) -> None:
    async def scenario() -> None:
        opened = store()
        backend = opened.backend
        start = (await backend.create(pool_key("a"), pool("a"))).revision
        await backend.update(KV(pool_key("a"), pool("a", "10.1.0.0/24"), start))
        await backend.create(HandleKey("h"), ipam.Handle())  # not watched
        await opened.put(PREFIX + "ippools/a", "{")
        told = asyncio.create_task(events(backend, start, 4))
        await asyncio.sleep(0)
        await backend.delete(pool_key("a"))
        await backend.create(pool_key("b"), pool("b"))
        found = await told
        assert [(event.type, _key(event)) for event in found] == [
            ("set", pool_key("a")), ("broken", pool_key("a")), ("deleted", pool_key("a")),
             ("set", pool_key("b")),
        ]  # fmt: skip
        assert [int(event.revision) for event in found] == sorted(int(event.revision) for event in found)
        await backend.close()

    run(scenario())


def _key(event: WatchEvent) -> Key | None:
    return event.kv.key if event.kv else event.broken.key if event.broken else None


def test_ipam_objects_and_leases(store: Open) -> None:
    async def scenario() -> None:
        opened = store()
        backend = opened.backend
        block = ipam.Block(cidr="10.0.0.0/30", allocations=(None,) * 4, unallocated=(0, 1, 2, 3))
        kv = await backend.create(BlockKey("10.0.0.0/30"), block)
        again = await backend.get(kv.key)
        assert again.value == block and again.origin is not None
        await backend.update(
            KV(kv.key, structs.replace(block, sequenceNumber=5), again.revision, again.origin)
        )
        assert [found.value.sequenceNumber for found in (await backend.list(BlockList(4))).items] == [5]
        assert (await backend.list(BlockList(6))).items == []
        await backend.apply(HandleKey("h"), ipam.Handle(block={"10.0.0.0/30": 1}), ttl=60)
        await backend.apply(HandleKey("h"), ipam.Handle(block={"10.0.0.0/30": 2}))
        assert [found.value.block for found in (await backend.list(HandleList())).items] == [
            {"10.0.0.0/30": 2}
        ]
        await backend.close()

    run(scenario())


# --- the client and its rules -------------------------------------------------------------------


def test_rules_hold(store: Open) -> None:
    async def scenario() -> None:
        opened = store()
        client = Client(opened.backend)
        await client.create(resource("IPPool", {"cidr": "10.0.0.0/16"}, name="a"))
        with pytest.raises(ValidationError, match="overlaps"):
            await client.create(resource("IPPool", {"cidr": "10.0.0.0/24"}, name="b"))
        with pytest.raises(ResourceDoesNotExist):
            await client.create(resource("GlobalNetworkPolicy", name="p"))
        await ensure_initialized(client, "v3.33.0", "k8s")
        policy: Any = await client.create(resource("GlobalNetworkPolicy", name="p", annotations={"a": "b"}))
        stored = json.loads(await opened.read(PREFIX + "globalnetworkpolicies/p"))
        assert stored["metadata"]["annotations"]["projectcalico.org/metadata"] == '{"name":"p"}'
        assert (await client.get(GlobalNetworkPolicy, "p")).metadata.annotations == {"a": "b"}
        assert policy.spec.types == ("Ingress",)
        with pytest.raises(OperationNotSupported):
            await client.delete(Tier, "default")
        await client.delete(GlobalNetworkPolicy, "p")
        await client.close()

    run(scenario())


def test_many_nodes_start_at_once(store: Open) -> None:
    async def node(client: Client, number: int) -> None:
        await ensure_initialized(client, "v3.33.0", f"type{number % 4}")
        await ensure_default_configuration(client, f"n{number % 3}")

    async def scenario() -> None:
        client = Client(store().backend)
        await asyncio.gather(*(node(client, number) for number in range(12)))
        information = await client.get(ClusterInformation, "default")
        assert sorted(information.spec.clusterType.split(",")) == ["type0", "type1", "type2", "type3"]
        assert len((await client.list(Tier)).items) == 3
        await client.close()

    run(scenario())


def test_writers_who_read_before_lose_no_update(store: Open) -> None:
    async def add_label(client: Client, number: int) -> None:
        while True:
            found = await client.get(IPPool, "a")
            try:
                await client.update(found.with_metadata(labels=found.labels | {f"l{number}": "x"}))
                return
            except UpdateConflict:
                continue

    async def scenario() -> None:
        client = Client(store().backend)
        await client.create(resource("IPPool", {"cidr": "10.0.0.0/16"}, name="a"))
        await asyncio.gather(*(add_label(client, number) for number in range(8)))
        assert len((await client.get(IPPool, "a")).labels) == 8
        await client.close()

    run(scenario())
