"""The stories of IPAM once more, with custom resources on a real kube-apiserver.

The same functions as in the modules that they come from: what they promise is promised here too.
"""

import asyncio
from collections.abc import Iterator

import pytest

from tests.ipam.ipam_grounds import OnKubernetes, stories
from tests.ipam.ipam_world import World, assert_at_rest, assign, assigned_at, on
from tests.ipam.ipam_world import run as tell
from tests.support.aio import run
from tests.support.kubernetes import ApiServer
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.backend import KV
from tortie.datastore.client import Client
from tortie.datastore.keys import AffinityKey, AffinityList, BlockKey, BlockList, HandleKey
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.types import ipam
from tortie.datastore.types.ippool import IPAMConfiguration
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import BadSequenceNumber

pytestmark = pytest.mark.kernel

_CRD = "/apis/crd.projectcalico.org/v1"


@pytest.fixture(autouse=True)
def ground(apiserver: ApiServer) -> Iterator[None]:
    with on(OnKubernetes(apiserver)):
        yield


globals().update(
    stories(
        "test_removing_a_host_removes_its_old_directory",  # which only etcd can have
        # JSON's integers end at 2^63 in the API server; sequence numbers are times in ns, until 2262.
        "test_27_sequence_numbers_are_exact_up_to_64_bits_and_wrap",
    )
)


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 3])
def test_27_sequence_numbers_are_exact_as_far_as_the_api_server_goes(number: int) -> None:
    async def story() -> None:
        world, a, address = await assigned_at(number)
        assert (await world.block("10.0.0.0/30")).sequenceNumber == number + 1
        near = await a.release_ips([ReleaseRequest(address, "h", number - 1)])
        assert isinstance(near.error, BadSequenceNumber)
        assert (await a.release_ips([ReleaseRequest(address, "h", number)])).error is None

    tell(story())


# --- what is Kubernetes' own --------------------------------------------------------------------


def test_a_write_of_the_same_value_is_seen_by_others(apiserver: ApiServer) -> None:
    """The API server would not write; but who renews a handle's hold tells others that it is alive."""

    async def story() -> None:
        backend = KubernetesBackend(apiserver.config())
        kv = await backend.create(HandleKey("h"), ipam.Handle(block={"10.0.0.0/30": 1}))
        revisions = [kv.revision]
        for _ in range(3):
            kv = await backend.update(KV(kv.key, kv.value, kv.revision, kv.origin))
            revisions.append(kv.revision)
        assert len(set(revisions)) == 4
        assert kv.value == ipam.Handle(block={"10.0.0.0/30": 1})
        await backend.close()

    run(story())


def test_what_calico_began_to_delete_is_finished(apiserver: ApiServer) -> None:
    async def story() -> None:
        world = World()
        key = BlockKey("10.0.0.0/30")
        await world.backend.create(key, ipam.Block(cidr=key.cidr, affinity="host:a"))
        mark = {"spec": {"deleted": True}}
        path, kind = f"{_CRD}/ipamblocks/10-0-0-0-30", "application/merge-patch+json"
        await asyncio.to_thread(apiserver.ask, "PATCH", path, mark, kind)
        assert (await world.backend.list(BlockList())).items == []
        with pytest.raises(ResourceDoesNotExist):
            await world.backend.get(key)
        made = await world.backend.create(key, ipam.Block(cidr=key.cidr, affinity="host:b"))
        assert made.value.affinity == "host:b"
        await world.backend.close()

    run(story())


def test_affinities_of_old_versions_are_found_and_labelled(apiserver: ApiServer) -> None:
    async def story() -> None:
        for host in ("a", "b"):
            spec = {"cidr": "10.0.0.0/30", "node": host, "state": "confirmed", "deleted": "false"}
            name = f"{host}-10-0-0-0-30"
            await asyncio.to_thread(
                apiserver.put_custom, "blockaffinities", "BlockAffinity", name, {}, {"spec": spec}
            )
        backend = KubernetesBackend(apiserver.config())
        for _ in range(2):
            found = await backend.list(AffinityList("a"))
            assert [kv.key for kv in found.items] == [AffinityKey("10.0.0.0/30", "a")]
        stored = await asyncio.to_thread(apiserver.custom, "blockaffinities", "a-10-0-0-0-30")
        assert stored["metadata"]["labels"]["projectcalico.org/affinity-type"] == "host"
        await backend.close()

    run(story())


def test_one_configuration_for_the_allocator_and_for_people(apiserver: ApiServer) -> None:
    async def story() -> None:
        world = World()
        await world.configure(strict_affinity=True, maxBlocksPerHost=3)
        found = await world.client.get(IPAMConfiguration, "default")
        assert (found.spec.strictAffinity, found.spec.maxBlocksPerHost) == (True, 3)
        await world.backend.close()

    run(story())


def test_many_allocators_at_once_never_share_an_address(apiserver: ApiServer) -> None:
    async def story() -> None:
        world = World()
        await world.pool("pool", "10.0.0.0/24", 28)
        await world.nodes("a", "b", "c")
        await world.configure()
        clients = [Client(KubernetesBackend(apiserver.config())) for _ in range(6)]
        jobs = [
            assign(world.allocator("abc"[number % 3], clients[number % 6]), 1, f"h{number}")
            for number in range(40)
        ]
        addresses = [found[0] for found in await asyncio.gather(*jobs)]
        assert len(set(addresses)) == 40
        await assert_at_rest(world)
        for client in (*clients, world.client):
            await client.close()

    run(story())
