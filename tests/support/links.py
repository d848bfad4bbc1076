"""Links to etcd for tests, of any patience, and the smallest requests there are."""

from dataclasses import replace
from typing import Any

from tests.support.etcd import free_port
from tortie.datastore import etcdproto as proto
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcdchannel import Timing
from tortie.datastore.etcdlink import EtcdLink

PATIENT = Timing(dial=90.0, call=90.0, quiet=60.0, silent=60.0)  # whatever else the machine has to do
QUICK = Timing(dial=1.0, call=0.5, quiet=0.2, silent=0.3)  # for what is never answered
READ = proto.range_(b"k")
WRITE = proto.put(b"k", b"v")


def link_to(*endpoints: str, timing: Timing = PATIENT, first: int = 0, **more: Any) -> EtcdLink:
    return EtcdLink(DatastoreConfig(etcdEndpoints=endpoints, **more), timing, first)


def wait_for(link: EtcdLink, **seconds: float) -> None:
    """From now on it has this patience: little, when no answer will come, else it would be the machine's."""
    link._timing = replace(link._timing, **seconds)


async def read(link: EtcdLink, key: bytes = b"k") -> list[bytes]:
    reply = await link.call(proto.RANGE, proto.range_(key))
    return [entry.value for entry in reply.entries]


def closed_port() -> str:
    return f"http://127.0.0.1:{free_port()}"
