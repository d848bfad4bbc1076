"""The client's rules that look at other objects, over a datastore in memory."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from msgspec import structs

from tests.support.memory_backend import MemoryBackend
from tests.support.resources import resource
from tortie.core.errors import (
    OperationNotSupported,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    UpdateConflict,
    ValidationError,
)
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockKey, ResourceKey
from tortie.datastore.rules import (
    DEFAULT_ALLOW,
    DEFAULT_ALLOW_PROFILE,
    as_read,
    refuse_kubernetes_policy,
)
from tortie.datastore.types import ipam
from tortie.datastore.types.bgp import BGPPeer
from tortie.datastore.types.cluster import ClusterInformation
from tortie.datastore.types.ippool import BlockAffinity, IPPool
from tortie.datastore.types.node import Node
from tortie.datastore.types.policy import GlobalNetworkPolicy, NetworkPolicy, Profile, Tier

pytestmark = pytest.mark.unit

T = TypeVar("T")
RESOURCES = "/calico/resources/v3/projectcalico.org/"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def client(backend: MemoryBackend) -> Client:
    return Client(backend)


async def create(client: Client, kind: str, spec: dict[str, Any] | None = None, **metadata: Any) -> Any:
    return await client.create(resource(kind, spec, **metadata))


def wrong(error: pytest.ExceptionInfo[ValidationError]) -> dict[str, str]:
    return {field.field: field.reason for field in error.value.fields}


# --- around every kind --------------------------------------------------------------------------


def test_rules_only_ever_see_valid_resources(client: Client) -> None:
    with pytest.raises(ValidationError) as caught:
        run(create(client, "IPPool", {"cidr": "nonsense"}))
    assert wrong(caught) == {"IPPool.Spec.CIDR": "IPPool CIDR must be a valid subnet"}


def test_a_refused_write_changes_nothing(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        pool = await create(client, "IPPool", {"cidr": "10.0.0.0/16"})
        before = backend.raw(RESOURCES + "ippools/test")
        for change in ({"blockSize": 99}, {"cidr": "10.1.0.0/16"}, {"nodeSelector": "("}):
            with pytest.raises(ValidationError):
                await client.update(structs.replace(pool, spec=structs.replace(pool.spec, **change)))
        assert backend.raw(RESOURCES + "ippools/test") == before

    run(scenario())


def test_keys_need_a_name_and_a_namespace(client: Client) -> None:
    for call in (client.get, client.delete):
        with pytest.raises(ValidationError) as caught:
            run(call(NetworkPolicy, "p"))
        assert wrong(caught) == {"Metadata.Namespace": "namespace is not specified on namespaced resource"}
        with pytest.raises(ValidationError):
            run(call(IPPool, ""))
        with pytest.raises(ValidationError):
            run(call(IPPool, "a/b"))


def test_errors_carry_what_a_reader_would_see(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        await create(client, "Tier", {"order": 1_000_000, "defaultAction": "Deny"}, name="default")
        policy = await create(client, "GlobalNetworkPolicy")
        with pytest.raises(ResourceAlreadyExists) as exists:
            await create(client, "GlobalNetworkPolicy")
        assert exists.value.current.metadata == policy.metadata
        await client.update(policy)
        with pytest.raises(UpdateConflict) as conflict:
            await client.update(policy)
        assert conflict.value.current.metadata.annotations == {}

    run(scenario())


# --- IPPool -------------------------------------------------------------------------------------


def test_pools_may_not_overlap(client: Client) -> None:
    async def scenario() -> None:
        await create(client, "IPPool", {"cidr": "10.0.0.0/16"}, name="first")
        await create(client, "IPPool", {"cidr": "10.1.0.0/16"}, name="second")
        await create(client, "IPPool", {"cidr": "fd00::/64"}, name="six")
        with pytest.raises(ValidationError) as caught:
            await create(client, "IPPool", {"cidr": "10.0.0.0/15"}, name="third")
        assert [field.reason for field in caught.value.fields] == [
            "IPPool(third) CIDR overlaps with IPPool(first) CIDR 10.0.0.0/16",
            "IPPool(third) CIDR overlaps with IPPool(second) CIDR 10.1.0.0/16",
        ]
        assert {field.field for field in caught.value.fields} == {"IPPool.Spec.CIDR"}
        with pytest.raises(ResourceAlreadyExists):  # our own name is for the write to report
            await create(client, "IPPool", {"cidr": "10.0.0.0/16"}, name="first")

    run(scenario())


def test_unreadable_and_hostile_pools_stop_nobody(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        await backend.put_raw(RESOURCES + "ippools/broken", "{")
        await backend.put_raw(RESOURCES + "ippools/odd", '{"kind":"IPPool","spec":{"cidr":"x\\n10.0.0.0/8"}}')
        await create(client, "IPPool", {"cidr": "10.0.0.0/16"})
        page = await client.list(IPPool)
        assert [pool.name for pool in page.items] == ["odd", "test"]
        assert [broken.where for broken in page.broken] == [RESOURCES + "ippools/broken"]

    run(scenario())


def test_blocks_of_another_size_forbid_a_pool(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        for cidr in ("10.0.0.0/26", "10.5.0.0/30", "fd00::/122"):
            await backend.create(BlockKey(cidr), ipam.Block(cidr=cidr))
        with pytest.raises(ValidationError) as caught:
            await create(client, "IPPool", {"cidr": "10.0.0.0/16", "blockSize": 28})
        assert wrong(caught) == {
            "IPPool.Spec.BlockSize": "IPPool blocksSize conflicts with existing allocations that use a "
            "different blockSize"
        }
        await create(client, "IPPool", {"cidr": "10.0.0.0/16", "blockSize": 26})

    run(scenario())


async def updated(client: Client, pool: IPPool, **changes: Any) -> IPPool:
    return await client.update(structs.replace(pool, spec=structs.replace(pool.spec, **changes)))


def test_what_of_a_pool_cannot_be_changed(client: Client) -> None:
    async def scenario() -> None:
        pool = await create(client, "IPPool", {"cidr": "10.0.0.0/16"})
        with pytest.raises(ValidationError) as caught:
            await updated(client, pool, cidr="10.0.0.0/17", blockSize=27)
        assert wrong(caught) == {
            "IPPool.Spec.CIDR": "IPPool CIDR cannot be modified",
            "IPPool.Spec.BlockSize": "IPPool BlockSize cannot be modified",
        }
        changed = await updated(client, pool, natOutgoing=True, ipipMode="Always", disabled=True)
        assert (changed.spec.natOutgoing, changed.spec.ipipMode) == (True, "Always")

    run(scenario())


def test_an_old_spelling_of_the_cidr_may_become_canonical(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        body = {
            "kind": "IPPool", "metadata": {"uid": "1", "creationTimestamp": "2020-01-01T00:00:00Z"},
            "spec": {"cidr": "FD00:0::/64"},
        }  # fmt: skip
        await backend.put_raw(RESOURCES + "ippools/old", json.dumps(body))
        old = await client.get(IPPool, "old")
        assert old.spec.cidr == "FD00:0::/64" and old.spec.blockSize == 122
        assert (await client.update(old)).spec.cidr == "fd00::/64"

    run(scenario())


def test_a_pool_for_load_balancers_stays_one(client: Client) -> None:
    async def scenario() -> None:
        pool = await create(client, "IPPool", {"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer"]})
        with pytest.raises(ValidationError) as caught:
            await updated(client, pool, allowedUses=("Workload",))
        assert wrong(caught) == {
            "IPPool.Spec.AllowedUses": "IPPool allowed use cannot be changed from LoadBalacer to Workload or "
            "Tunnel"
        }

    run(scenario())


# --- tiers and policies -------------------------------------------------------------------------


def test_a_policy_needs_its_tier(client: Client) -> None:
    async def scenario() -> None:
        with pytest.raises(ResourceDoesNotExist, match=r"Tier\(default\)"):
            await create(client, "NetworkPolicy")
        await create(client, "Tier", {"order": 1_000_000}, name="default")
        await create(client, "NetworkPolicy")
        with pytest.raises(ResourceDoesNotExist, match=r"Tier\(ops\)"):
            await create(client, "StagedGlobalNetworkPolicy", {"tier": "ops"})

    run(scenario())


@pytest.mark.parametrize(
    "kind", ["NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"]
)
def test_a_tier_with_policies_cannot_be_deleted(client: Client, kind: str) -> None:
    async def scenario() -> None:
        await create(client, "Tier", name="ops")
        policy = await create(client, kind, {"tier": "ops"})
        with pytest.raises(OperationNotSupported) as caught:
            await client.delete(Tier, "ops")
        assert str(caught.value) == "operation delete is not supported on ops: Cannot delete a non-empty tier"
        await client.delete(type(policy), policy.name, policy.namespace)
        await client.delete(Tier, "ops")

    run(scenario())


@pytest.mark.parametrize("name", ["default", "kube-admin", "kube-baseline"])
def test_built_in_tiers_cannot_be_deleted(client: Client, name: str) -> None:
    with pytest.raises(OperationNotSupported) as caught:
        run(client.delete(Tier, name))
    assert str(caught.value) == f"operation Delete is not supported on {name}: Cannot delete {name} tier"


def test_an_unreadable_tier_can_be_deleted(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        await backend.put_raw(RESOURCES + "tiers/ops", '{"kind":"Tier","spec":{"order":"x"}}')
        with pytest.raises(ValidationError):
            await client.get(Tier, "ops")
        assert await client.delete(Tier, "ops") is None
        assert backend.paths() == []

    run(scenario())


def test_policies_store_their_name_and_hide_it(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        await create(client, "Tier", {"order": 1_000_000}, name="default")
        policy = await create(client, "GlobalNetworkPolicy", name="allow-dns", annotations={"a": "b"})
        stored = json.loads(backend.raw(RESOURCES + "globalnetworkpolicies/allow-dns") or b"")
        assert stored["metadata"]["annotations"] == {
            "a": "b", "projectcalico.org/metadata": '{"name":"allow-dns"}',
        }  # fmt: skip
        assert stored["metadata"]["labels"] == {"projectcalico.org/tier": "default"}
        assert policy.metadata.annotations == {"a": "b"}
        again = await client.update(await client.get(GlobalNetworkPolicy, "allow-dns"))
        assert again.metadata.annotations == {"a": "b"}
        updated_bytes = backend.raw(RESOURCES + "globalnetworkpolicies/allow-dns")
        assert json.loads(updated_bytes or b"") == stored

    run(scenario())


@pytest.mark.parametrize(
    ("name", "spec", "annotation", "seen"),
    [
        ("default.allow", {}, None, "allow"),
        ("default.allow", {"tier": "default"}, None, "allow"),
        ("ops.allow", {"tier": "ops"}, None, "ops.allow"),
        ("default.allow", {"tier": "ops"}, None, "default.allow"),
        ("default.allow", {}, '{"name":"default.allow"}', "default.allow"),
        ("a", {}, '{"name":"b"}', "b"),
        ("a", {}, '{"name":"b\\nc"}', "a"),
        ("a", {}, '{"name":7}', "a"),
        ("a", {}, "{", "a"),
        ("a", {}, "[" * 100_000, "a"),
        ("a", {}, "[]", "a"),
    ],
)
def test_the_name_that_readers_see(
    name: str, spec: dict[str, Any], annotation: str | None, seen: str
) -> None:
    annotations = {} if annotation is None else {"projectcalico.org/metadata": annotation}
    read = as_read(resource("GlobalNetworkPolicy", spec, name=name, annotations=annotations))
    assert read.name == seen and read.metadata.annotations == {}
    assert read.labels["projectcalico.org/tier"] == "default"  # written by the defaults, filled in on reading


def test_old_policies_in_a_list(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        body = '{"kind":"NetworkPolicy","metadata":{"name":"default.x"},"spec":{"tier":"default"}}'
        await backend.put_raw(RESOURCES + "networkpolicies/ns/default.x", body)
        (old,) = (await client.list(NetworkPolicy)).items
        assert (old.name, old.namespace) == ("x", "ns")
        with pytest.raises(ResourceDoesNotExist):  # as in Calico: its key still has the prefix
            await client.get(NetworkPolicy, "x", "ns")

    run(scenario())


def test_copies_of_kubernetes_policies_are_for_their_controller_only() -> None:
    copy = resource("NetworkPolicy", name="knp.default.web")
    assert isinstance(copy, NetworkPolicy)
    with pytest.raises(OperationNotSupported) as caught:
        refuse_kubernetes_policy("create or apply", copy)
    assert str(caught.value) == (
        "operation create or apply is not supported on NetworkPolicy(shop/knp.default.web): kubernetes "
        "network policies must be managed through the kubernetes API"
    )
    ours = resource("NetworkPolicy", name="web")
    assert isinstance(ours, NetworkPolicy)
    refuse_kubernetes_policy("create or apply", ours)


# --- profiles -----------------------------------------------------------------------------------


def test_the_profile_that_allows_all_is_always_there(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        await create(client, "Profile", name="kns.shop")
        assert await client.get(Profile, DEFAULT_ALLOW) == DEFAULT_ALLOW_PROFILE
        assert [profile.name for profile in (await client.list(Profile)).items] == ["kns.shop", DEFAULT_ALLOW]
        by_prefix = await client.list(Profile, name_prefix="kns.")
        assert [profile.name for profile in by_prefix.items] == ["kns.shop"]
        assert [path for path in backend.paths() if DEFAULT_ALLOW in path] == []

    run(scenario())
    assert DEFAULT_ALLOW_PROFILE.revision == "1"
    assert [rule.action for rule in DEFAULT_ALLOW_PROFILE.spec.ingress] == ["Allow"]
    assert [rule.action for rule in DEFAULT_ALLOW_PROFILE.spec.egress] == ["Allow"]


def test_the_profile_that_allows_all_cannot_be_written(client: Client) -> None:
    async def scenario() -> None:
        with pytest.raises(ResourceAlreadyExists) as exists:
            await create(client, "Profile", name=DEFAULT_ALLOW)
        assert str(exists.value) == (
            f"resource already exists: {DEFAULT_ALLOW} with error: {DEFAULT_ALLOW} already exists. The "
            f'profile "{DEFAULT_ALLOW}" is default provided by Calico'
        )
        for operation, done, call in [
            ("Update", "updated", client.update(DEFAULT_ALLOW_PROFILE)),
            ("Delete", "deleted", client.delete(Profile, DEFAULT_ALLOW)),
        ]:
            with pytest.raises(OperationNotSupported) as refused:
                await call
            assert str(refused.value) == (
                f'operation {operation} is not supported on {DEFAULT_ALLOW}: The profile "{DEFAULT_ALLOW}" '
                f"is a default provided by Calico and cannot be {done}"
            )

    run(scenario())


# --- the others ---------------------------------------------------------------------------------


def test_filters_of_a_peer_must_exist(client: Client) -> None:
    async def scenario() -> None:
        await create(client, "BGPFilter", name="f1")
        with pytest.raises(ValidationError) as caught:
            await create(client, "BGPPeer", {"filters": ["f1", "f2", "f3"]})
        assert (
            str(caught.value) == "error with field BGPPeer.Spec.Filters = '[f2 f3]' (BGPFilter(s) not found)"
        )
        peer: BGPPeer = await create(client, "BGPPeer", {"filters": ["f1"]})
        with pytest.raises(ValidationError):
            await client.update(structs.replace(peer, spec=structs.replace(peer.spec, filters=("f2",))))

    run(scenario())


def test_the_first_node_makes_the_datastore_usable(client: Client) -> None:
    async def scenario() -> None:
        await create(client, "Node", name="n1")
        information = await client.get(ClusterInformation, "default")
        assert information.spec.datastoreReady is True and information.spec.calicoVersion == ""
        assert [tier.name for tier in (await client.list(Tier)).items] == [
            "default",
            "kube-admin",
            "kube-baseline",
        ]
        assert (await client.get(Node, "n1")).name == "n1"

    run(scenario())


def test_block_affinities_are_stored_as_calico_does(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        spec = {"state": "confirmed", "node": "n1", "type": "host", "cidr": "10.0.0.0/26"}
        affinity: BlockAffinity = await create(client, "BlockAffinity", spec)
        stored = json.loads(backend.raw(RESOURCES + "blockaffinities/test") or b"")
        assert stored["spec"] == spec | {"deleted": "false"}
        assert affinity.spec.deleted is False
        assert (await client.get(BlockAffinity, "test")).spec.deleted is False

    run(scenario())


def test_unknown_fields_survive_the_client(client: Client, backend: MemoryBackend) -> None:
    async def scenario() -> None:
        pool = await create(client, "IPPool", {"cidr": "10.0.0.0/16"})
        path = ResourceKey("IPPool", pool.name).path()
        body = json.loads(backend.raw(path) or b"")
        body["spec"]["future"] = {"a": 1}
        await backend.put_raw(path, json.dumps(body))
        await updated(client, await client.get(IPPool, "test"), natOutgoing=True)
        stored = json.loads(backend.raw(path) or b"")
        assert stored["spec"]["future"] == {"a": 1} and stored["spec"]["natOutgoing"] is True

    run(scenario())
