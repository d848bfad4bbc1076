"""What every cluster holds: created once, by whoever comes first, however many come at once."""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from tests.support.memory_backend import MemoryBackend
from tests.support.resources import resource
from tortie.core.errors import DatastoreUnreachable
from tortie.datastore.client import Client
from tortie.datastore.initialize import ensure_default_configuration, ensure_initialized, merged_types
from tortie.datastore.types.bgp import BGPConfiguration
from tortie.datastore.types.cluster import ClusterInformation, FelixConfiguration
from tortie.datastore.types.ippool import IPAMConfiguration
from tortie.datastore.types.policy import Tier

pytestmark = pytest.mark.unit


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def client(backend: MemoryBackend) -> Client:
    return Client(backend)


def test_an_empty_datastore(client: Client) -> None:
    async def scenario() -> None:
        await ensure_initialized(client, "v3.33.0", "k8s,bgp", lambda: "0" * 32)
        information = await client.get(ClusterInformation, "default")
        spec = information.spec
        assert (spec.clusterGUID, spec.clusterType, spec.calicoVersion) == ("0" * 32, "k8s,bgp", "v3.33.0")
        assert spec.datastoreReady is True
        tiers = {
            tier.name: (tier.spec.order, tier.spec.defaultAction) for tier in (await client.list(Tier)).items
        }
        assert tiers == {
            "default": (1_000_000, "Deny"), "kube-admin": (1_000, "Pass"),
            "kube-baseline": (10_000_000, "Pass"),
        }  # fmt: skip

    asyncio.run(scenario())


def test_guids_are_random_and_of_32_digits(client: Client) -> None:
    async def guid(backend: MemoryBackend) -> str:
        await ensure_initialized(Client(backend), "", "")
        return (await Client(backend).get(ClusterInformation, "default")).spec.clusterGUID

    first, second = asyncio.run(guid(MemoryBackend())), asyncio.run(guid(MemoryBackend()))
    assert first != second and len(first) == 32 and set(first) <= set("0123456789abcdef")


def test_a_second_time_writes_nothing(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        await ensure_initialized(client, "v3.33.0", "k8s")
        await ensure_default_configuration(client, "n1")
        before = {path: backend.raw(path) for path in backend.paths()}
        writes: list[str] = []

        async def record(operation: str, _what: Any) -> None:
            if operation == "update":
                writes.append(operation)

        backend.before = record
        await ensure_initialized(client, "v3.33.0", "k8s")
        await ensure_initialized(client, "", "")
        await ensure_default_configuration(client, "n1")
        assert {path: backend.raw(path) for path in backend.paths()} == before and writes == []

    asyncio.run(scenario())


def test_what_is_there_is_completed_and_a_lock_stays(client: Client) -> None:
    async def scenario() -> None:
        locked = {
            "datastoreReady": False,
            "clusterType": "k8s",
            "calicoVersion": "v3.1.0",
            "variant": "Calico",
        }
        await client.create(resource("ClusterInformation", locked))
        await ensure_initialized(client, "v3.33.0", "bgp,k8s", lambda: "1" * 32)
        spec = (await client.get(ClusterInformation, "default")).spec
        assert (spec.datastoreReady, spec.clusterType, spec.calicoVersion) == (False, "k8s,bgp", "v3.33.0")
        assert (spec.clusterGUID, spec.variant) == ("1" * 32, "Calico")

    asyncio.run(scenario())


def test_a_changed_built_in_tier_is_left_alone(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        body = '{"kind":"Tier","spec":{"order":5}}'
        await backend.put_raw("/calico/resources/v3/projectcalico.org/tiers/default", body)
        await ensure_initialized(client, "", "")
        assert (await client.get(Tier, "default")).spec.order == 5

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("known", "added", "merged"),
    [
        ("", "", ""), ("", "a,b", "a,b"), ("a", "", "a"), ("a,b", "b,c", "a,b,c"), ("a", "a", "a"),
        ("a,a", "", "a,a"), ("a,", ",b", "a,b"),
    ],
)  # fmt: skip
def test_cluster_types_are_collected(known: str, added: str, merged: str) -> None:
    assert merged_types(known, added) == merged


def test_default_configuration_of_a_node(client: Client) -> None:
    async def scenario() -> None:
        await ensure_default_configuration(client, "n1")
        felix = (await client.get(FelixConfiguration, "default")).spec
        assert (felix["reportingInterval"], felix["logSeverityScreen"]) == ("0s", "Info")
        own = (await client.get(FelixConfiguration, "node.n1")).spec
        assert own["defaultEndpointToHostAction"] == "Return"
        bgp = (await client.get(BGPConfiguration, "default")).spec
        assert bgp.nodeToNodeMeshEnabled is None and bgp.asNumber is None
        allocation = (await client.get(IPAMConfiguration, "default")).spec
        assert (allocation.autoAllocateBlocks, allocation.strictAffinity) == (True, False)
        assert allocation.kubeVirtVMAddressPersistence == "Enabled"

    asyncio.run(scenario())


def test_values_that_somebody_set_stay(client: Client) -> None:
    async def scenario() -> None:
        given = {"reportingInterval": "30s", "healthPort": 5}
        await client.create(resource("FelixConfiguration", given, name="default"))
        await ensure_default_configuration(client, "n1")
        felix = (await client.get(FelixConfiguration, "default")).spec
        assert (felix["reportingInterval"], felix["healthPort"]) == ("30s", 5)
        assert felix["logSeverityScreen"] == "Info"

    asyncio.run(scenario())


def test_many_nodes_at_once(backend: MemoryBackend) -> None:
    async def node(number: int) -> None:
        client = Client(backend)
        await ensure_initialized(client, "v3.33.0", f"k8s,type{number % 3}")
        await ensure_default_configuration(client, f"n{number}")

    async def scenario() -> None:
        await asyncio.gather(*(node(number) for number in range(12)))
        information = await Client(backend).get(ClusterInformation, "default")
        assert set(information.spec.clusterType.split(",")) == {"k8s", "type0", "type1", "type2"}
        assert len(information.spec.clusterType.split(",")) == 4

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", ["create", "update"])
def test_a_write_that_comes_between_is_not_lost(
    client: Client, backend: MemoryBackend, operation: str
) -> None:
    """Whatever another writer does between our read and our write, both changes are there afterwards."""
    stepped_in = False

    async def step_in(now: str, what: Any) -> None:
        nonlocal stepped_in
        if (now, getattr(what, "kind", "")) != (operation, "ClusterInformation") or stepped_in:
            return
        stepped_in = True
        if operation == "create":
            await client.create(resource("ClusterInformation", {"variant": "theirs"}))
        else:
            found = await client.get(ClusterInformation, "default")
            await client.update(structs.replace(found, spec=structs.replace(found.spec, variant="theirs")))

    async def scenario() -> None:
        if operation == "update":
            await client.create(resource("ClusterInformation"))
        backend.before = step_in
        await ensure_initialized(client, "v3.33.0", "k8s")
        spec = (await client.get(ClusterInformation, "default")).spec
        assert (spec.variant, spec.calicoVersion) == ("theirs", "v3.33.0") and stepped_in

    asyncio.run(scenario())


def test_a_datastore_that_is_away_is_reported(client: Client, backend: MemoryBackend) -> None:
    backend.away = True
    with pytest.raises(DatastoreUnreachable):
        asyncio.run(ensure_initialized(client, "", ""))
