"""The etcd backend against a real etcd: compare-and-swap, apply, get and list."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from tests.support.aio import run
from tests.support.etcd import Etcd, wait_until
from tests.support.pools import BROKEN, POOL_PATH, POOLS, PREFIX, backend_on, pool, pool_json, pool_key
from tortie.core.errors import (
    DatastoreError,
    DatastoreUnreachable,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    RevisionGone,
    UpdateConflict,
    ValidationError,
)
from tortie.datastore import etcd as etcd_module
from tortie.datastore import etcdproto as proto
from tortie.datastore.backend import KV, Listed
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import (
    AffinityKey,
    AffinityList,
    BlockKey,
    HandleKey,
    IPAMConfigKey,
    IPAMHostKey,
    Key,
    ProcessStatusKey,
    ResourceKey,
    ResourceList,
    WorkloadStatusKey,
)
from tortie.datastore.types.ipam import EndpointStatus, Handle, IPAMConfig, ProcessStatus

pytestmark = pytest.mark.kernel


def renamed(kv: KV, cidr: str) -> KV:
    """The same object with another CIDR, as a read-modify-write makes it."""
    return replace(kv, value=structs.replace(kv.value, spec=structs.replace(kv.value.spec, cidr=cidr)))


# --- create, update, delete ---------------------------------------------------------------------


def test_create_stores_gos_json_without_revision_and_self_link(etcd: Etcd, backend: EtcdBackend) -> None:
    value = structs.replace(
        pool("a", resourceVersion="77", labels={"b": "<1>", "a": "&"}),
        origin={"metadata": {"selfLink": "/x", "future": 1}, "extra": [None, {"z": 1, "a": 2}]},
    )
    created = run(backend.create(pool_key("a"), value))
    assert etcd.entries()[POOL_PATH + "a"] == (
        rb'{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"a","labels":{"a":"\u0026",'
        rb'"b":"\u003c1\u003e"},"future":1},"spec":{"cidr":"10.0.0.0/24"},"extra":[null,{"a":2,"z":1}]}'
    )
    assert created.revision == str(etcd.revision) == created.value.metadata.resourceVersion
    assert value.origin == {"metadata": {"selfLink": "/x", "future": 1}, "extra": [None, {"z": 1, "a": 2}]}


def test_create_of_what_exists_tells_what_is_there(etcd: Etcd, backend: EtcdBackend) -> None:
    async def scenario() -> None:
        first = await backend.create(pool_key("a"), pool("a"))
        with pytest.raises(ResourceAlreadyExists) as caught:
            await backend.create(pool_key("a"), pool("a", "10.9.0.0/24"))
        assert caught.value.current.revision == first.revision
        assert caught.value.current.value.spec.cidr == "10.0.0.0/24"
        etcd.put(POOL_PATH + "bad", "{")
        with pytest.raises(ResourceAlreadyExists) as caught:
            await backend.create(pool_key("bad"), pool("bad"))
        assert caught.value.current is None
        assert etcd.entries()[POOL_PATH + "bad"] == b"{"

    run(scenario())


def test_update_replaces_exactly_the_revision_read(etcd: Etcd, backend: EtcdBackend) -> None:
    async def scenario() -> None:
        old = await backend.create(pool_key("a"), pool("a"))
        new = await backend.update(renamed(old, "10.1.0.0/24"))
        assert int(new.revision) > int(old.revision) and new.value.revision == new.revision
        with pytest.raises(UpdateConflict) as caught:
            await backend.update(renamed(old, "10.2.0.0/24"))
        assert caught.value.current.revision == new.revision
        assert (await backend.get(pool_key("a"))).value.spec.cidr == "10.1.0.0/24"
        await backend.delete(pool_key("a"))
        with pytest.raises(ResourceDoesNotExist):
            await backend.update(new)
        await backend.create(pool_key("a"), pool("a"))
        with pytest.raises(UpdateConflict):  # deleted and made anew is another object
            await backend.update(new)
        revision = etcd.put(POOL_PATH + "a", BROKEN)
        with pytest.raises(UpdateConflict) as caught:
            await backend.update(new)
        assert caught.value.current is None
        repaired = await backend.update(KV(pool_key("a"), pool("a"), str(revision)))
        assert repaired.value.spec.cidr == "10.0.0.0/24"

    run(scenario())


@pytest.mark.parametrize(
    "revision", ["", "x", "-1", "+1", " 1", "1.0", "1e3", "٣", "9223372036854775808", "9" * 5000]
)
def test_a_bad_revision_changes_nothing(etcd: Etcd, backend: EtcdBackend, revision: str) -> None:
    async def scenario() -> None:
        await backend.create(pool_key("a"), pool("a"))
        before = etcd.entries()
        with pytest.raises(ValidationError, match="ResourceVersion"):
            await backend.update(KV(pool_key("a"), pool("a", "10.1.0.0/24"), revision))
        if revision:  # none means: whichever
            with pytest.raises(ValidationError, match="ResourceVersion"):
                await backend.delete(pool_key("a"), revision)
            with pytest.raises(ValidationError, match="ResourceVersion"):
                await backend.list(POOLS, revision)
        assert etcd.entries() == before

    run(scenario())


def test_revision_zero_never_matches(etcd: Etcd, backend: EtcdBackend) -> None:
    """To etcd 0 is the revision of what does not exist: an update of it would create."""

    async def scenario() -> None:
        with pytest.raises(ResourceDoesNotExist):
            await backend.update(KV(pool_key("a"), pool("a"), "0"))
        with pytest.raises(ResourceDoesNotExist):
            await backend.delete(pool_key("a"), "0")
        assert etcd.entries() == {}
        await backend.create(pool_key("a"), pool("a"))
        with pytest.raises(UpdateConflict):
            await backend.update(KV(pool_key("a"), pool("a"), "0"))
        with pytest.raises(UpdateConflict):
            await backend.delete(pool_key("a"), "00")

    run(scenario())


def test_delete_returns_the_last_state_of_exactly_one_key(etcd: Etcd, backend: EtcdBackend) -> None:
    async def scenario() -> None:
        first = await backend.create(pool_key("a"), pool("a"))
        for name in ("a-b", "ab"):
            await backend.create(pool_key(name), pool(name))
        second = await backend.update(renamed(first, "10.1.0.0/24"))
        with pytest.raises(UpdateConflict) as caught:
            await backend.delete(pool_key("a"), first.revision)
        assert caught.value.current.revision == second.revision
        gone = await backend.delete(pool_key("a"), second.revision)
        assert (gone.revision, gone.value.spec.cidr) == (second.revision, "10.1.0.0/24")
        for revision in ("", second.revision):
            with pytest.raises(ResourceDoesNotExist):
                await backend.delete(pool_key("a"), revision)
        assert sorted(etcd.entries()) == [POOL_PATH + "a-b", POOL_PATH + "ab"]

    run(scenario())


def test_what_cannot_be_read_can_be_deleted(etcd: Etcd, backend: EtcdBackend) -> None:
    async def scenario() -> None:
        for revision in ("", str(etcd.put(POOL_PATH + "b", b"\xff")), ""):
            etcd.put(POOL_PATH + "a", BROKEN)
            with pytest.raises(ValidationError):
                await backend.get(pool_key("a"))
            if revision:
                with pytest.raises(UpdateConflict):
                    await backend.delete(pool_key("a"), revision)
            gone = await backend.delete(pool_key("a"))
            assert gone.value is None and gone.key == pool_key("a")

    run(scenario())


def test_unknown_fields_survive_at_every_level(etcd: Etcd, backend: EtcdBackend) -> None:
    stored = {
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "n", "managedFields": [{"manager": "x"}]},
        "spec": {"bgp": {"ipv4Address": "10.0.0.1/24", "future": {"deep": [1, None]}}, "newer": True},
        "status": {},
        "also": 1,
    }
    block = {
        "cidr": "10.0.0.0/31",
        "affinity": None,
        "allocations": [None, None],
        "unallocated": [0, 1],
        "attributes": [],
        "sequenceNumber": 18446744073709551615,
        "sequenceNumberForAllocation": {},
        "deleted": False,
        "future": {"a": 1},
    }
    etcd.put(PREFIX + "nodes/n", json.dumps(stored))
    etcd.put("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-31", json.dumps(block))

    async def scenario() -> None:
        node = await backend.get(ResourceKey("Node", "n"))
        await backend.update(replace(node, value=node.value.with_metadata(labels={"l": "1"})))
        read = await backend.get(BlockKey("10.0.0.0/31"))
        claimed = await backend.update(replace(read, value=structs.replace(read.value, affinity="host:n")))
        await backend.update(replace(claimed, value=structs.replace(claimed.value, sequenceNumber=5)))

    run(scenario())
    written = [json.loads(value) for value in etcd.entries().values()]
    assert written[0] == block | {"affinity": "host:n", "sequenceNumber": 5}
    assert written[1] == stored | {"metadata": {**stored["metadata"], "labels": {"l": "1"}}}  # type: ignore[dict-item]


def test_the_key_decides_who_an_object_is(etcd: Etcd, backend: EtcdBackend) -> None:
    etcd.put(PREFIX + "networksets/ns/a", '{"kind":"NetworkSet","metadata":{"name":"b","namespace":"other"}}')
    etcd.put(POOL_PATH + "a", '{"kind":"IPPool","metadata":{"name":"b","namespace":"x"},"spec":{}}')
    etcd.put(POOL_PATH + "wrong-kind", '{"kind":"Node","metadata":{"name":"wrong-kind"}}')

    async def scenario() -> None:
        read = await backend.get(ResourceKey("NetworkSet", "a", "ns"))
        assert (read.value.name, read.value.namespace) == ("a", "ns")
        listed = await backend.list(POOLS)
        assert [(kv.key, kv.value.name, kv.value.namespace) for kv in listed.items] == [
            (pool_key("a"), "a", "")
        ]
        assert [broken.key for broken in listed.broken] == [pool_key("wrong-kind")]
        await backend.update(listed.items[0])
        assert json.loads(etcd.entries()[POOL_PATH + "a"])["metadata"] == {"name": "a"}

    run(scenario())


@pytest.mark.parametrize(
    "key",
    [
        pool_key("a/b"),
        pool_key(""),
        pool_key("../nodes/x"),
        pool_key("half-\ud800-pair"),
        ResourceKey("NetworkSet", "a"),  # without its namespace
        ResourceKey("NetworkSet", "a/b", "ns"),
        ResourceKey("IPPool", "a", "ns"),
        BlockKey("10.0.0.1/26"),  # not the network's address
        BlockKey("FD00::/122"),
        AffinityKey("10.0.0.0/26", "a/b"),
        HandleKey("a/b"),
        HandleKey(""),
        IPAMHostKey("n/ipv4/block/10.0.0.0-26"),
        WorkloadStatusKey("n/x", "k8s", "ns/pod", "eth0"),
    ],
)
def test_a_key_that_would_name_something_else_is_refused(etcd: Etcd, backend: EtcdBackend, key: Key) -> None:
    async def scenario() -> None:
        for attempt in (
            backend.create(key, pool("a")),
            backend.update(KV(key, pool("a"), "1")),
            backend.apply(key, pool("a")),
            backend.delete(key),
            backend.get(key),
        ):
            with pytest.raises(ValidationError, match="invalid resource name"):
                await attempt
        assert etcd.entries() == {}

    run(scenario())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (HandleKey("k8s-pod-network.abc"), Handle(block={"10.0.0.0/26": 1})),
        (IPAMConfigKey(), IPAMConfig(strict_affinity=True)),
        (ProcessStatusKey("n1"), ProcessStatus(time="2026-01-01T00:00:00Z", uptime=1.5, first_update=True)),
        (WorkloadStatusKey("n1", "k8s", "ns/pod%", "eth0"), EndpointStatus(status="up")),
    ],
)
def test_every_sort_of_key_round_trips(backend: EtcdBackend, key: Key, value: Any) -> None:
    async def scenario() -> None:
        stored = await backend.create(key, value)
        assert (await backend.get(key)).value == value == stored.value
        assert (await backend.delete(key, stored.revision)).value == value

    run(scenario())


def test_of_many_creators_one_wins(backend: EtcdBackend) -> None:
    async def scenario() -> list[Any]:
        attempts = [backend.create(pool_key("a"), pool("a", f"10.{n}.0.0/24")) for n in range(30)]
        return await asyncio.gather(*attempts, return_exceptions=True)

    results = run(scenario())
    (winner,) = [kv for kv in results if isinstance(kv, KV)]
    losers = [err for err in results if isinstance(err, ResourceAlreadyExists)]
    assert len(losers) == 29 and {err.current.value.spec.cidr for err in losers} == {winner.value.spec.cidr}


def test_no_concurrent_update_is_lost(backend: EtcdBackend) -> None:
    key = HandleKey("h")

    async def increment() -> None:
        kv = await backend.get(key)
        while True:
            try:
                await backend.update(replace(kv, value=Handle(block={"b": kv.value.block.get("b", 0) + 1})))
                return
            except UpdateConflict as err:
                kv = err.current

    async def scenario() -> int:
        await backend.create(key, Handle())
        await asyncio.gather(*(increment() for _ in range(25)))
        return (await backend.get(key)).value.block["b"]  # type: ignore[no-any-return]

    assert run(scenario()) == 25


def test_a_value_that_etcd_refuses_is_no_outage(etcd: Etcd, backend: EtcdBackend) -> None:
    async def scenario() -> None:
        for size in (1_700_000, 3_000_000):  # refused by etcd, and by its gRPC before that
            with pytest.raises(DatastoreError) as caught:
                await backend.create(pool_key("a"), pool("a", annotations={"a": "x" * size}))
            assert not isinstance(caught.value, DatastoreUnreachable)
        assert etcd.entries() == {}

    run(scenario())


# --- apply --------------------------------------------------------------------------------------


def test_apply_asks_no_questions(etcd: Etcd, backend: EtcdBackend) -> None:
    async def scenario() -> None:
        etcd.put("/calico/ipam/v2/config", "{")
        first = await backend.apply(IPAMConfigKey(), IPAMConfig(strict_affinity=True))
        second = await backend.apply(IPAMConfigKey(), IPAMConfig())
        assert int(first.revision) < int(second.revision) == etcd.revision
        assert (await backend.get(IPAMConfigKey())).value == IPAMConfig()

    run(scenario())


def test_with_a_ttl_an_object_lives_only_as_long_as_it_is_applied(etcd: Etcd, backend: EtcdBackend) -> None:
    key = ProcessStatusKey("n1")
    status = ProcessStatus(time="2026-01-01T00:00:00Z", uptime=1.5, first_update=True)

    def leases() -> list[Any]:
        return [one for one in etcd.ask("lease/leases").get("leases", []) if one not in before]

    before: list[Any] = []
    before = leases()  # others' may end meanwhile
    run(backend.apply(key, status, ttl=500.2))
    (granted,) = leases()
    remaining = etcd.ask("lease/timetolive", ID=granted["ID"], keys=True)
    assert remaining["grantedTTL"] == "501"  # never sooner than asked; etcd counts whole seconds
    assert len(remaining["keys"]) == 1
    run(backend.apply(key, status, ttl=4.2))
    wait_until(lambda: not etcd.entries(), what="the lease to end")
    run(backend.apply(key, status, ttl=5))
    run(backend.apply(key, status))  # leaves the lease behind: now it stays
    wait_until(lambda: leases() == [granted], what="the lease to end")
    assert list(etcd.entries()) == [key.path()]


# --- reads --------------------------------------------------------------------------------------


def test_get_at_a_revision(etcd: Etcd, backend: EtcdBackend) -> None:
    async def scenario() -> None:
        with pytest.raises(ResourceDoesNotExist):
            await backend.get(pool_key("a"))
        old = await backend.create(pool_key("a"), pool("a"))
        new = await backend.update(renamed(old, "10.1.0.0/24"))
        assert (await backend.get(pool_key("a"), old.revision)).value.spec.cidr == "10.0.0.0/24"
        assert (await backend.get(pool_key("a"), "0")).revision == new.revision
        etcd.compact()
        with pytest.raises(RevisionGone):
            await backend.get(pool_key("a"), old.revision)
        with pytest.raises(DatastoreError, match="future"):
            await backend.get(pool_key("a"), str(int(new.revision) + 100))

    run(scenario())


def test_a_list_has_what_belongs_to_it_in_order(etcd: Etcd, backend: EtcdBackend) -> None:
    for path, value in {
        PREFIX + "workloadendpoints/ns/n-k8s-pod-eth0": "{}",
        PREFIX + "workloadendpoints/ns/n-k8s-pod--1-eth0": "{}",
        PREFIX + "workloadendpoints/ns2/n-k8s-pod-eth0": "{}",
        PREFIX + "workloadendpoints/ns/a/b": "{}",
        PREFIX + "workloadendpoints/x": "{}",
        PREFIX + "workloadendpointsx/ns/a": "{}",
        PREFIX + "workloadendpoints0": "{}",
        POOL_PATH + "bad": BROKEN,
        POOL_PATH + "ok": pool_json("ok"),
        "/calico/ipam/v2/host/n1/ipv4/block/10.0.0.0-26": "",
        "/calico/ipam/v2/host/n1/ipv4/block/10.0.0.1-26": '{"state":"pending","deleted":false}',
        "/calico/ipam/v2/host/n1": "{}",
        "/calico/ipam/v2/handle/h": "{}",
        "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26": '{"cidr":"10.0.0.0/26"}',
        "/calico/ipam/v2/virtual/lb/ipv4/block/10.0.1.0-26": '{"state":"confirmed","deleted":false}',
    }.items():
        etcd.put(path, value)
    etcd.put(POOL_PATH.encode() + b"\xff\x00", pool_json("x"))

    async def names(what: ResourceList) -> list[tuple[str, str]]:
        listed = await backend.list(what)
        assert int(listed.revision) == etcd.revision
        return [(kv.key.namespace, kv.key.name) for kv in listed.items if isinstance(kv.key, ResourceKey)]

    async def scenario() -> None:
        pods = [("ns", "n-k8s-pod--1-eth0"), ("ns", "n-k8s-pod-eth0"), ("ns2", "n-k8s-pod-eth0")]
        assert await names(ResourceList("WorkloadEndpoint")) == pods
        assert await names(ResourceList("WorkloadEndpoint", "ns")) == pods[:2]
        assert await names(ResourceList("WorkloadEndpoint", "ns", "n-k8s-pod--")) == pods[:1]
        assert await names(ResourceList("WorkloadEndpoint", "n")) == []
        assert await names(ResourceList("Node")) == []
        listed = await backend.list(POOLS)
        assert [kv.key for kv in listed.items] == [pool_key("ok")]
        assert [(b.where, b.key) for b in listed.broken] == [
            (POOL_PATH + "bad", pool_key("bad")),
            (POOL_PATH + r"\xff\x00", None),
        ]
        affinities = await backend.list(AffinityList(owner_type=""))
        assert [str(kv.key) for kv in affinities.items] == [
            "BlockAffinity(host:n1 10.0.0.0/26)",
            "BlockAffinity(virtual:lb 10.0.1.0/26)",
        ]

    run(scenario())


def test_a_list_of_many_pages_is_of_one_moment(
    etcd: Etcd, backend: EtcdBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_module, "_PAGE", 3)
    names = [f"p{n:02}" for n in range(20)]
    etcd.put_all({POOL_PATH + name: pool_json(name) for name in names})
    call, calls = backend._link.call, []

    async def meddle(method: proto.Method[Any], request: bytes) -> Any:
        """Between the pages the set changes: all of it, before and behind the cursor."""
        calls.append(method)
        reply = await call(method, request)
        etcd.delete(POOL_PATH + names[19 - len(calls)])
        etcd.put(POOL_PATH + f"p{len(calls):02}-new", pool_json("x"))
        return reply

    monkeypatch.setattr(backend._link, "call", meddle)
    start = etcd.revision
    listed = run(backend.list(POOLS))
    assert [kv.key.name for kv in listed.items if isinstance(kv.key, ResourceKey)] == names
    assert listed.revision == str(start) and len(calls) == 7


def test_compaction_between_pages_begins_the_list_anew(
    etcd: Etcd, backend: EtcdBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_module, "_PAGE", 2)
    etcd.put_all({POOL_PATH + f"p{n}": pool_json(f"p{n}") for n in range(7)})
    call, calls = backend._link.call, []

    async def compacted(method: proto.Method[Any], request: bytes) -> Any:
        calls.append(method)
        if len(calls) == 3:
            etcd.put(POOL_PATH + "late", pool_json("late"))
            etcd.compact()
        return await call(method, request)

    monkeypatch.setattr(backend._link, "call", compacted)
    listed = run(backend.list(POOLS))
    assert len(listed.items) == 8 and listed.revision == str(etcd.revision)
    with pytest.raises(RevisionGone):  # a revision that was asked for is not replaced by another
        run(backend.list(POOLS, "2"))


async def list_once(etcd: Etcd) -> Listed:
    backend = backend_on(etcd)
    try:
        return await backend.list(POOLS)
    finally:
        await backend.close()


def test_lists_beyond_grpcs_default_limit(make_etcd: Callable[..., Etcd]) -> None:
    etcd = make_etcd()
    for n in range(12):
        etcd.put(POOL_PATH + f"p{n}", pool_json("x" * 1_000_000))
    listed = run(list_once(etcd))
    assert len(listed.items) == 12


def test_twenty_thousand_keys(make_etcd: Callable[..., Etcd]) -> None:
    etcd = make_etcd()
    names = [f"p{n:05}" for n in range(20_000)]
    for at in range(0, len(names), 100):
        etcd.put_all({POOL_PATH + name: pool_json(name) for name in names[at : at + 100]})
    listed = run(list_once(etcd))
    assert [kv.value.name for kv in listed.items] == names and not listed.broken
