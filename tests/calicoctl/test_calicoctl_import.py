"""What `datastore migrate export` prints arrives in an empty datastore, and nowhere else."""

import asyncio
import io
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.calicoctl.test_calicoctl_runbook import RUNBOOKS, read
from tests.support.memory_backend import MemoryBackend
from tortie.calicoctl import migrateimport
from tortie.calicoctl.errors import CommandError
from tortie.datastore.client import Client
from tortie.datastore.keys import AffinityKey, BlockKey, HandleKey
from tortie.datastore.types.cluster import ClusterInformation
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.node import Node
from tortie.datastore.types.policy import NetworkPolicy

pytestmark = pytest.mark.unit


def exported() -> bytes:
    """The export of the runbook, as it was printed."""
    book = read(next(path for path in RUNBOOKS if path.stem == "datastore-node"))
    steps = [step for step in book.steps if step.line == "datastore migrate export"]
    printed = next(step.expected for step in steps if len(step.expected) > 10)
    return "".join(line[2:].removesuffix("$") + "\n" for line in printed).encode()


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(story)


def test_everything_arrives_under_the_old_clusters_guid_and_locked() -> None:
    async def story() -> None:
        client, out = Client(MemoryBackend()), io.StringIO()
        await migrateimport.carry_out(client, migrateimport.parts(exported(), "f"), out.write)
        assert out.getvalue() == (
            "Datastore locked.\nSuccessfully applied 7 resource(s)\nImporting IPAM resources\n"
            "Successfully applied 3 IPAM resource(s)\nDatastore information successfully imported. Please "
            "refer to the datastore migration documentation for next steps.\n"
        )
        cluster = (await client.get(ClusterInformation, "default")).spec
        assert (cluster.clusterGUID, cluster.datastoreReady) == ("GUID", False)
        assert (await client.get(IPPool, "pool")).spec.cidr == "10.0.0.0/24"
        assert (await client.get(NetworkPolicy, "web", "shop")).spec.selector == "app == 'web'"
        assert (await client.get(Node, "kube-a")).spec.bgp is not None
        block = (await client.backend.get(BlockKey("10.0.0.0/30"))).value
        assert block.affinity == "host:kube-a" and block.attributes[0].handle_id == "ipip-tunnel-addr-kube-a"
        await client.backend.get(AffinityKey("10.0.0.0/30", "kube-a"))
        await client.backend.get(HandleKey("ipip-tunnel-addr-kube-a"))

    run(story())


def test_a_datastore_that_is_in_use_is_left_alone() -> None:
    async def story() -> None:
        client = Client(MemoryBackend())
        found = migrateimport.parts(exported(), "f")
        await migrateimport.carry_out(client, found, io.StringIO().write)
        with pytest.raises(CommandError, match="found existing Calico IPPool resource"):
            await migrateimport.carry_out(client, found, io.StringIO().write)

    run(story())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "improperly formatted"),
        (b"===\n===\n===\n", "improperly formatted"),
        (b"kind: Nothing\n===\n{}\n===\n{}", "unknown resource type"),
        (b"===\n{}\n===\nnot json", "Expecting value"),
        (b'===\n{}\n===\n{"blocks":[{"Key":"/etc/passwd","Value":{}}]}', "is no key of IPAM"),
        (b'===\n{}\n===\n{"blocks":[{"Value":{}}]}', "'Key'"),
    ],
)
def test_a_file_that_export_has_not_printed_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        migrateimport.parts(data, "f")
