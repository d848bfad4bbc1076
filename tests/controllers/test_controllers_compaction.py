"""etcd's history is forgotten, one period late."""

import asyncio

import pytest

from tests.support.aio import eventually, run
from tests.support.etcd import Etcd
from tortie.controllers.compaction import keep_compacting
from tortie.core.errors import RevisionGone
from tortie.core.tasks import cancel
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta

pytestmark = pytest.mark.kernel


def test_history_is_forgotten_one_period_late(etcd: Etcd) -> None:
    async def scenario() -> None:
        backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
        client, turn, turns = Client(backend), asyncio.Event(), 0

        async def period(_seconds: float) -> None:
            nonlocal turns
            turns += 1
            await turn.wait()
            turn.clear()

        spec = IPPoolSpec(cidr="10.0.0.0/24")
        made = await client.create(IPPool(metadata=ObjectMeta(name="a"), spec=spec))
        running = asyncio.create_task(keep_compacting(backend, 60.0, period))
        await eventually(lambda: turns == 1)
        changed = await client.update(made.with_metadata(labels={"a": "b"}))
        key = ResourceKey("IPPool", "a")
        turn.set()
        await eventually(lambda: turns == 2)
        assert (await backend.get(key, made.revision)).revision == made.revision  # not forgotten yet
        await client.update(changed.with_metadata(labels={"a": "c"}))
        turn.set()
        await eventually(lambda: turns == 3)
        with pytest.raises(RevisionGone):
            await backend.get(key, made.revision)
        assert (await client.get(IPPool, "a")).labels == {"a": "c"}
        await cancel([running])
        await client.close()

    run(scenario())
