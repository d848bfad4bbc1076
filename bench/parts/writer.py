"""What a benchmark writes to etcd while something follows it."""

import asyncio
from collections.abc import Iterable

from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import Key
from tortie.datastore.types.meta import Resource
from tortie.lab.etcd import Etcd


class Writer:
    """A connection to etcd that stays open: opening one takes longer than what is measured."""

    def __init__(self, etcd: Etcd) -> None:
        self._loop = asyncio.Runner()
        self._backend = self._loop.run(self._open(etcd))

    async def _open(self, etcd: Etcd) -> EtcdBackend:
        return EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))

    def put(self, *objects: tuple[Key, Resource]) -> None:
        self._loop.run(self._put(objects))

    async def _put(self, objects: Iterable[tuple[Key, Resource]]) -> None:
        """Several at a time, as each waits for the disk."""
        waiting = iter(objects)

        async def work() -> None:
            for key, value in waiting:
                await self._backend.apply(key, value)

        await asyncio.gather(*(work() for _ in range(16)))

    def close(self) -> None:
        self._loop.run(self._backend.close())
        self._loop.close()
