"""The stories of IPAM once more, with custom resources on a real kube-apiserver.

The same functions as in the modules that they come from: what they promise is promised here too. Only
those stay away that look into the memory of the datastore in memory.
"""

import asyncio
from collections.abc import Iterator

import pytest

from tests.ipam import test_ipam_cases_blocks, test_ipam_cases_pools, test_ipam_cases_release
from tests.ipam.ipam_world import World, assert_at_rest, assign, on
from tests.support.aio import run
from tests.support.kubernetes import ApiServer
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.backend import KV, Backend
from tortie.datastore.client import Client
from tortie.datastore.keys import AffinityKey, AffinityList, BlockKey, BlockList, HandleKey
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.types import ipam
from tortie.datastore.types.ippool import IPAMConfiguration
from tortie.datastore.types.node import Node

pytestmark = pytest.mark.kernel

_CRD = "/apis/crd.projectcalico.org/v1"


class OnKubernetes:
    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def backend(self) -> Backend:
        return KubernetesBackend(self._server.config())

    async def node(self, client: Client, name: str, labels: dict[str, str]) -> Node:
        body = {"metadata": {"name": name, "labels": labels}}
        await asyncio.to_thread(self._server.ask, "POST", "/api/v1/nodes", body)
        return await client.get(Node, name)

    async def label(self, _client: Client, name: str, labels: dict[str, str]) -> None:
        """Where they come from: what a node has of Kubernetes' own is not ours to take away."""
        path = f"/api/v1/nodes/{name}"
        old = (await asyncio.to_thread(self._server.ask, "GET", path))["metadata"].get("labels", {})
        patch = {"metadata": {"labels": dict.fromkeys(old) | labels}}
        await asyncio.to_thread(self._server.ask, "PATCH", path, patch, "application/merge-patch+json")


@pytest.fixture(autouse=True)
def ground(apiserver: ApiServer) -> Iterator[None]:
    with on(OnKubernetes(apiserver)):
        yield


_ELSEWHERE = {
    # They step in before a write, or put bytes that the API server would not hold.
    "test_13_a_failing_reclaim_goes_on_with_the_next_block",
    "test_13_a_silent_datastore_ends_reclaiming_with_its_error",
    "test_23_an_invalid_pool_is_used_by_nobody_and_named_where_there_is_no_other",
    "test_35_the_last_address_of_an_ownerless_block_takes_it_along",
    "test_38_reserved_addresses_are_passed_over",
    "test_68_old_data_reads_as_host_confirmed_old_and_empty",
    "test_removing_a_host_removes_its_old_directory",
    # JSON's integers end at 2^63 in the API server; sequence numbers are times in ns, until 2262.
    "test_27_sequence_numbers_are_exact_up_to_64_bits_and_wrap",
}

for _module in (test_ipam_cases_blocks, test_ipam_cases_pools, test_ipam_cases_release):
    globals().update(
        {
            name: story
            for name, story in vars(_module).items()
            if name[:5] == "test_" and name not in _ELSEWHERE
        }
    )


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
