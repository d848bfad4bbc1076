"""pytest's view of tests/support/etcd.py; conftest.py hands these fixtures to every test."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.support.etcd import Etcd
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend


@pytest.fixture(scope="session")
def etcd_process() -> Iterator[Etcd]:
    """One server for the whole run; tests take it as `etcd`."""
    server = Etcd().start()
    yield server
    server.close()


@pytest.fixture
def etcd(etcd_process: Etcd) -> Etcd:
    """A running etcd with an empty keyspace. A test may kill or stop it; it is running for the next."""
    if not etcd_process.running:
        etcd_process.restart()
    etcd_process.wipe()
    return etcd_process


@pytest.fixture
def backend(etcd: Etcd) -> Iterator[EtcdBackend]:
    """An EtcdBackend on an empty keyspace."""
    opened = EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
    yield opened
    asyncio.run(opened.close())


@pytest.fixture
def make_etcd() -> Iterator[Callable[..., Etcd]]:
    """Starts further servers with flags of their own: `make_etcd("--auth-token-ttl=1")`."""
    made: list[Etcd] = []

    def make(*flags: str, scheme: str = "http") -> Etcd:
        made.append(Etcd(*flags, scheme=scheme))
        return made[-1].start()

    yield make
    for server in made:
        server.close()
