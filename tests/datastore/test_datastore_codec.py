"""Bytes to values and back: Calico's stored examples, unknown fields, hostile input."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tortie.core.errors import ValidationError
from tortie.datastore import codec, keys
from tortie.datastore.kinds import KINDS
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ASNumber, Resource
from tortie.datastore.types.node import Node

pytestmark = pytest.mark.unit

# Entries as a Calico of the 3.33 line writes them: path, value.
STORED = [
    (
        "/calico/resources/v3/projectcalico.org/ippools/lab-small",
        '{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"lab-small","uid":"7a0c5f0e-'
        '2f61-4c1e-9d55-0c1de1b7a001","creationTimestamp":"2026-03-01T08:00:00Z"},"spec":{"cidr":"10.99.0.0/24",'
        '"vxlanMode":"Never","ipipMode":"CrossSubnet","natOutgoing":true,"blockSize":30,"nodeSelector":"all()",'
        '"allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}',
    ),
    (
        "/calico/resources/v3/projectcalico.org/nodes/node-1",
        '{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node-1","uid":"7a0c5f0e-2f61-'
        '4c1e-9d55-0c1de1b7a002","creationTimestamp":"2026-03-01T08:01:00Z","labels":{"rack":"r7"}},"spec":{"bgp":'
        '{"asNumber":64513,"ipv4Address":"192.0.2.11/24","ipv4IPIPTunnelAddr":"10.99.0.16"},"orchRefs":[{"nodeName":'
        '"node-1","orchestrator":"k8s"}],"interfaces":[{"name":"ens3","addresses":["192.0.2.11"]}]},"status":{}}',
    ),
    (
        "/calico/resources/v3/projectcalico.org/workloadendpoints/shop/node--1-k8s-web--0-eth0",
        '{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node--1-k8s-web--0-'
        'eth0","generateName":"web-","namespace":"shop","uid":"7a0c5f0e-2f61-4c1e-9d55-0c1de1b7a003",'
        '"creationTimestamp":"2026-03-01T08:06:01Z","labels":{"app":"web","projectcalico.org/namespace":"shop",'
        '"projectcalico.org/orchestrator":"k8s","projectcalico.org/serviceaccount":"default"}},"spec":{'
        '"orchestrator":"k8s","node":"node-1","containerID":"c0ffee0123","pod":"web-0","endpoint":"eth0",'
        '"serviceAccountName":"default","ipNetworks":["10.99.0.17/32"],"profiles":["kns.shop","ksa.shop.default"],'
        '"interfaceName":"calia4fc3c48bd8","mac":"aa:61:33:0d:5e:01","ports":[{"name":"http","protocol":"TCP",'
        '"port":8080,"hostPort":0,"hostIP":""}]}}',
    ),
    (
        "/calico/ipam/v2/assignment/ipv4/block/10.99.0.16-30",
        '{"cidr":"10.99.0.16/30","affinity":"host:node-1","affinity_claim_time":"2026-03-01T08:05:00Z",'
        '"allocations":[0,1,null,null],"unallocated":[2,3],"attributes":[{"handle_id":"ipip-tunnel-addr-node-1",'
        '"secondary":{"node":"node-1","type":"ipipTunnelAddress"}},{"handle_id":"k8s-pod-network.c0ffee0123",'
        '"secondary":{"namespace":"shop","node":"node-1","pod":"web-0","timestamp":"2026-03-01 08:06:00.25 +'
        '0000 UTC"}}],"sequenceNumber":1772352300000000002,"sequenceNumberForAllocation":{"0":177235230000000'
        "0000,"
        '"1":1772352300000000001},"deleted":false}',
    ),
    ("/calico/ipam/v2/host/node-1/ipv4/block/10.99.0.16-30", '{"state":"confirmed","deleted":false}'),
    (
        "/calico/ipam/v2/handle/k8s-pod-network.c0ffee0123",
        '{"block":{"10.99.0.16/30":1},"deleted":false}',
    ),
]


@pytest.mark.parametrize(("path", "text"), STORED)
def test_what_calico_stored_comes_back_byte_for_byte(path: str, text: str) -> None:
    key = keys.parse(path)
    assert key is not None and key.path() == path
    value = codec.decode(key.type, text.encode())
    assert codec.encode(value).decode() == text


def test_go_html_escapes() -> None:
    pool = IPPool(spec=IPPoolSpec(nodeSelector="a < b && c > d"))
    data = codec.encode(pool)
    assert rb"a \u003c b \u0026\u0026 c \u003e d" in data
    assert codec.decode(IPPool, data).spec == pool.spec


def test_unknown_fields_survive_a_change_at_every_level() -> None:
    stored = {
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "n", "managedFields": [{"manager": "x"}]},
        "spec": {
            "bgp": {"ipv4Address": "10.0.0.1/24", "futureField": {"deep": [1, 2]}},
            "orchRefs": [{"nodeName": "n", "orchestrator": "k8s", "extra": True}],
        },
        "status": {"newStatus": 3},
    }
    node = codec.decode(Node, json.dumps(stored).encode())
    assert node.spec.bgp is not None
    changed = structs.replace(
        node, spec=structs.replace(node.spec, bgp=structs.replace(node.spec.bgp, ipv4Address="10.0.0.2/24"))
    )
    written = json.loads(codec.encode(changed))
    stored["spec"]["bgp"]["ipv4Address"] = "10.0.0.2/24"  # type: ignore[index]
    assert written == stored


def test_null_means_absent_except_in_lists() -> None:
    pool = codec.decode(
        IPPool, b'{"kind":"IPPool","metadata":{"creationTimestamp":null},"spec":{"allowedUses":null}}'
    )
    assert pool.spec.allowedUses == () and pool.metadata.creationTimestamp is None


def test_unknown_field_paths_are_named() -> None:
    raw = {
        "kind": "Node",
        "metadata": {"name": "n", "bogus": 1},
        "spec": {"orchRefs": [{"orchestrator": "k8s"}, {"nope": 1}], "wrong": 2},
    }
    found = set(codec.unknown_fields(Node, raw))
    assert found == {"metadata.bogus", "spec.orchRefs[1].nope", "spec.wrong"}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b'{"kind":"IPPool","spec":{"cidr":5}}', "IPPool.spec.cidr = '5'"),
        (b'{"kind":"IPPool","spec":{"blockSize":"x"}}', "IPPool.spec.blockSize = 'x'"),
        (b'{"kind":"Node"}', "IPPool.kind = 'Node'"),
        (b"[1]", "IPPool = 'list'"),
        (b"{", "malformed JSON"),
        (b'{"a":' * 100_000, "malformed JSON"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested deeper"),
        (b"\xff\xfe", "malformed JSON"),
        (b'{"x":"' + b"y" * 2_000_000 + b'"}', "larger than"),
    ],
)
def test_what_is_not_a_pool_is_refused_with_the_field_named(data: bytes, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        codec.decode(IPPool, data)
    assert field in str(caught.value) and len(str(caught.value)) < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(kind=st.sampled_from(sorted(KINDS)), spec=json_values, metadata=json_values)
def test_hostile_bodies_never_crash(kind: str, spec: Any, metadata: Any) -> None:
    body = json.dumps({"kind": kind, "spec": spec, "metadata": metadata}).encode()
    try:
        value = codec.decode(KINDS[kind].type, body)
    except ValidationError:
        return
    again = codec.decode(KINDS[kind].type, codec.encode(value))
    assert structs.replace(again, origin=msgspec.UNSET) == structs.replace(value, origin=msgspec.UNSET)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_has_an_envelope_that_round_trips(name: str) -> None:
    kind: type[Resource] = KINDS[name].type
    body = json.loads(codec.encode(kind()))
    assert body["kind"] == name and body["apiVersion"] == "projectcalico.org/v3" and "spec" in body


@pytest.mark.parametrize(
    ("given_value", "number"),
    [(64512, 64512), ("65000", 65000), ("1.10", 65546), ("65535.65535", 4294967295), (0, 0)],
)
def test_as_numbers(given_value: object, number: int) -> None:
    assert ASNumber(given_value) == number


@pytest.mark.parametrize(
    "bad", [-1, 4294967296, "x", "1.2.3", "65536.1", "1.65536", "", " 1", "１", True, 1.5, None]
)
def test_bad_as_numbers(bad: object) -> None:
    with pytest.raises(ValueError, match="invalid AS Number"):
        ASNumber(bad)


def test_a_bad_as_number_names_its_field() -> None:
    with pytest.raises(ValidationError, match=r"Node\.spec\.bgp\.asNumber = '99999999999'"):
        codec.decode(Node, b'{"kind":"Node","spec":{"bgp":{"asNumber":99999999999}}}')


def test_large_sequence_numbers_are_exact() -> None:
    data = b'{"cidr":"10.0.0.0/32","affinity":null,"allocations":[null],"unallocated":[0],"attributes":null,'
    data += b'"sequenceNumber":18446744073709551615,"sequenceNumberForAllocation":{},"deleted":false}'
    block = codec.decode(Block, data)
    assert block.sequenceNumber == 2**64 - 1 and b"18446744073709551615" in codec.encode(block)


def test_endpoints_in_bulk_share_nothing_mutable() -> None:
    one = codec.decode(WorkloadEndpoint, b'{"kind":"WorkloadEndpoint","metadata":{"name":"a"}}')
    two = codec.decode(WorkloadEndpoint, b'{"kind":"WorkloadEndpoint","metadata":{"name":"b"}}')
    assert one.metadata.labels is not two.metadata.labels


@pytest.mark.parametrize("bad", [10**30, -(2**63) - 1, float("nan"), float("inf"), "\ud800", {"\ud800": 1}])
def test_what_json_or_go_cannot_hold_is_refused_wherever_it_stands(bad: Any) -> None:
    for raw in ({"metadata": {"annotations": {"a": bad}}}, {"unknown": [bad]}, {"spec": {"order": bad}}):
        with pytest.raises(ValidationError) as caught:
            codec.from_plain(KINDS["GlobalNetworkPolicy"].type, {"kind": "GlobalNetworkPolicy", **raw})
        assert str(caught.value).isprintable()


@given(
    st.dictionaries(st.text(max_size=5), st.integers(0, 2**64 - 1), max_size=4),
    st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=4),
    st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3), max_size=3),
    st.one_of(st.none(), st.text(max_size=5)),
)
def test_ipams_short_cut_writes_the_same_bytes_and_reads_the_same_value(
    numbers: dict[str, int],
    allocations: list[int | None],
    owners: list[dict[str, str]],
    affinity: str | None,
) -> None:
    block = Block(
        cidr="10.0.0.0/30",
        affinity=affinity,
        allocations=tuple(allocations),
        attributes=tuple(AllocationAttribute(handle_id="h<&>", secondary=owner) for owner in owners),
        sequenceNumber=2**64 - 1,
        sequenceNumberForAllocation=numbers,
    )
    data = codec.encode(block)
    longer = codec.encode(block, {"zzUnknown": 1})  # an unknown field takes the long way
    assert longer == data[:-1] + b',"zzUnknown":1}'
    assert codec.decode(Block, data) == codec.decode(Block, longer) == block
    assert codec.from_plain(Block, msgspec.json.decode(data)) == block


@pytest.mark.parametrize("scalar", [10**30, float("inf"), float("nan"), "\ud800"])
def test_what_no_json_can_hold_is_named_with_its_field(scalar: object) -> None:
    """It comes from YAML, which can say more."""
    for raw, field in (
        ({"spec": {"cidr": "10.0.0.0/8", "blockSize": scalar}}, "IPPool.spec.blockSize"),
        ({"spec": {"allowedUses": ["Workload", scalar]}}, "IPPool.spec.allowedUses[1]"),
    ):
        with pytest.raises(ValidationError) as caught:
            codec.from_plain(IPPool, raw)
        assert [problem.field for problem in caught.value.fields] == [field]
