"""Custom resources, pods and nodes as ours, and back: names, annotations and what must survive."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.support.resources import resource
from tortie.core.errors import ValidationError
from tortie.datastore.backend import KV, Broken
from tortie.datastore.keys import AffinityKey, BlockKey, HandleKey, IPAMConfigKey, Key, ResourceKey
from tortie.datastore.kubernetes import nodes
from tortie.datastore.kubernetes.customresource import from_custom_resource, to_custom_resource
from tortie.datastore.kubernetes.ipamresource import affinity_name, custom_resource, host_hash, resource_name
from tortie.datastore.kubernetes.sources import Source, Sources, interpret
from tortie.datastore.podqos import qos_controls
from tortie.datastore.quantities import parse_quantity
from tortie.datastore.selector import parse
from tortie.datastore.types import ipam
from tortie.datastore.types.endpoint import (
    LiveMigrationSource,
    QoSControls,
    WorkloadEndpoint,
    WorkloadIdentifier,
)
from tortie.datastore.types.meta import ASNumber
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeInterface, NodeSpec, NodeStatus
from tortie.datastore.validate import check_stored

pytestmark = pytest.mark.unit

POOL = ResourceKey("IPPool", "lab-small")
SOURCES = Sources()
UID, CR_UID = "0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c", "30316465-6365-4463-ad63-3564622d3638"


def read(source: Source, raw: Any) -> KV:
    found = interpret(source, json.dumps(raw).encode())
    assert isinstance(found, KV), found
    return found


# --- custom resources ---------------------------------------------------------------------------


def test_our_metadata_stand_in_an_annotation() -> None:
    pool = resource(
        "IPPool",
        {"cidr": "10.99.0.0/24"},
        name="lab-small",
        uid=UID,
        labels={"team": "net", "projectcalico.org/zone": "a"},
        annotations={"note": "x", "projectcalico.org/metadata": "forged"},
        creationTimestamp="2026-03-01T08:00:00Z",
    )
    sent = to_custom_resource(POOL, pool, "17")
    assert sent["apiVersion"] == "crd.projectcalico.org/v1"
    assert sent["metadata"] | {"annotations": {}} == {
        "name": "lab-small",
        "resourceVersion": "17",
        "uid": CR_UID,
        "labels": {"projectcalico.org/zone": "a"},
        "annotations": {},
    }
    assert json.loads(sent["metadata"]["annotations"]["projectcalico.org/metadata"]) == {
        "creationTimestamp": "2026-03-01T08:00:00Z",
        "labels": {"team": "net", "projectcalico.org/zone": "a"},
        "annotations": {"note": "x"},
    }
    again = from_custom_resource(POOL, sent)
    assert again.metadata == structs.replace(pool.metadata, resourceVersion="17", annotations={"note": "x"})


def test_a_policy_keeps_its_name_in_the_annotation() -> None:
    key = ResourceKey("NetworkPolicy", "default.web", "shop")
    sent = to_custom_resource(key, resource("NetworkPolicy", name="web", namespace="shop"))
    assert sent["metadata"] == {
        "name": "default.web",
        "namespace": "shop",
        "annotations": {"projectcalico.org/metadata": '{"name":"web"}'},
    }
    found = from_custom_resource(key, sent)
    assert found.name == "default.web"  # where it is stored; who reads decides what it is called
    assert found.metadata.annotations == {"projectcalico.org/metadata": '{"name":"web"}'}


def test_what_kubectl_wrote_is_read_without_an_annotation() -> None:
    raw = {
        "kind": "IPPool",
        "metadata": {"name": "lab-small", "uid": CR_UID, "creationTimestamp": "2026-03-01T08:00:00Z",
                     "labels": {"a": "b"}, "managedFields": [{"manager": "kubectl"}], "generation": 3},
        "spec": {"cidr": "10.0.0.0/24", "later": {"field": 1}},
    }  # fmt: skip
    found = from_custom_resource(POOL, raw)
    meta = found.metadata
    assert (meta.uid, meta.creationTimestamp, meta.labels) == (UID, "2026-03-01T08:00:00Z", {"a": "b"})
    sent = to_custom_resource(POOL, found)
    assert sent["spec"]["later"] == {"field": 1}
    assert "managedFields" not in json.dumps(sent)


def test_an_owner_of_ours_is_another_object_on_the_other_side() -> None:
    owner = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "name": "p", "uid": UID}
    foreign = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": UID}
    pool = resource("IPPool", {"cidr": "10.0.0.0/24"}, name="lab-small", ownerReferences=[owner, foreign])
    sent = to_custom_resource(POOL, pool)
    stored = json.loads(sent["metadata"]["annotations"]["projectcalico.org/metadata"])["ownerReferences"]
    assert stored == [owner | {"apiVersion": "crd.projectcalico.org/v1", "uid": CR_UID}, foreign]
    assert list(from_custom_resource(POOL, sent).metadata.ownerReferences) == [owner, foreign]


@pytest.mark.parametrize("text", ["{", "7", '{"labels":7}', '{"ownerReferences":[7]}'])
def test_a_broken_annotation_breaks_that_object_only(text: str) -> None:
    raw = {"metadata": {"name": "p", "annotations": {"projectcalico.org/metadata": text}}, "spec": {}}
    found = interpret(SOURCES.custom["IPPool"], json.dumps(raw).encode())
    assert isinstance(found, Broken)
    assert found.key == ResourceKey("IPPool", "p")


# --- IPAM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, name",
    [
        (BlockKey("10.99.0.16/30"), "10-99-0-16-30"),
        (BlockKey("fd00:10:244::1c0/122"), "fd00-10-244--1c0-122"),
        (AffinityKey("10.99.0.16/30", "node-1"), "node-1-10-99-0-16-30"),
        (HandleKey("k8s-pod-network.C0FFEE"), "k8s-pod-network.c0ffee"),
        (IPAMConfigKey(), "default"),
    ],
)
def test_names_of_ipam_objects(key: Any, name: str) -> None:
    assert resource_name(key) == name


def test_a_long_host_name_is_cut_and_told_apart_by_a_hash() -> None:
    one, other = (affinity_name("h" * 250 + end, "10.0.0.0/26") for end in "ab")
    assert len(one) == len(other) == 252
    assert one != other
    assert affinity_name("h" * 240, "10.0.0.0/26") == "h" * 240 + "-10-0-0-0-26"


def test_hosts_are_labelled_by_a_hash() -> None:
    assert host_hash("node-a") == "PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA"


def ipam_round_trip(key: Key, value: Any) -> KV:
    sent = custom_resource(key, value, "5", {"later": 1})  # type: ignore[arg-type]
    place = SOURCES.place(key)
    assert place is not None
    assert sent["spec"]["later"] == 1
    return read(place.source, sent)


@pytest.mark.parametrize(
    "key, value",
    [
        (
            BlockKey("10.0.0.0/30"),
            ipam.Block(
                cidr="10.0.0.0/30", affinity="host:a", affinity_claim_time="2026-03-01T08:05:00Z",
                allocations=(0, None, None, None), unallocated=(1, 2, 3),
                attributes=(ipam.AllocationAttribute(handle_id="h", secondary={"pod": "p"}),),
                sequenceNumber=1772352300000000002, sequenceNumberForAllocation={"0": 1772352300000000001},
            ),
        ),
        (BlockKey("fd00::/126"), ipam.Block(cidr="fd00::/126", affinity=None)),
        (AffinityKey("10.0.0.0/30", "node.1"), ipam.Affinity(state="confirmed")),
        (AffinityKey("10.0.0.0/30", "load-balancer", "virtual"), ipam.Affinity(state="pending")),
        (HandleKey("Net.abc"), ipam.Handle(block={"10.0.0.0/30": 2})),
        (IPAMConfigKey(), ipam.IPAMConfig(strict_affinity=True, maxBlocksPerHost=4)),
    ],
)  # fmt: skip
def test_ipam_objects_come_back_as_they_were(key: Key, value: Any) -> None:
    found = ipam_round_trip(key, value)
    assert (found.key, found.value) == (key, value)


def test_what_a_calico_component_is_deleting_is_gone() -> None:
    for spec, source in [
        ({"cidr": "10.0.0.0/30", "node": "a", "deleted": "true"}, SOURCES.affinities),
        ({"cidr": "10.0.0.0/30", "deleted": True}, SOURCES.blocks),
        ({"handleID": "h", "deleted": True}, SOURCES.handles),
    ]:
        assert read(source, {"metadata": {"name": "x"}, "spec": spec}).value is None


def test_a_broken_block_is_known_by_its_name() -> None:
    for name, cidr in [("10-0-0-0-30", "10.0.0.0/30"), ("fd00--40-122", "fd00::40/122")]:
        raw = json.dumps({"metadata": {"name": name}, "spec": {"cidr": 7}}).encode()
        found = interpret(SOURCES.blocks, raw)
        assert isinstance(found, Broken)
        assert found.key == BlockKey(cidr)


# --- pods ---------------------------------------------------------------------------------------


def pod(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "metadata": {"name": "web-0", "namespace": "shop", "uid": UID, "resourceVersion": "9",
                     "labels": {"app": "web"}, "annotations": {}},
        "spec": {"nodeName": "node-1", "serviceAccountName": "default", "containers": []},
        "status": {"phase": "Running"},
    }  # fmt: skip
    for path, value in changes.items():
        section, _, name = path.partition("_")
        made[section][name] = value
    return made


def endpoint(**changes: Any) -> WorkloadEndpoint:
    value: WorkloadEndpoint = read(SOURCES.pods, pod(**changes)).value
    return value


def test_a_pod_is_one_endpoint() -> None:
    found = read(
        SOURCES.pods, pod(metadata_annotations={"cni.projectcalico.org/podIPs": "10.0.0.1/32,fd00::1/128"})
    )
    assert found.key == ResourceKey("WorkloadEndpoint", "node--1-k8s-web--0-eth0", "shop")
    assert found.revision == "9"
    value: WorkloadEndpoint = found.value
    assert value.metadata.uid == UID
    assert value.labels == {
        "app": "web", "projectcalico.org/namespace": "shop", "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "default",
    }  # fmt: skip
    assert value.spec.ipNetworks == ("10.0.0.1/32", "fd00::1/128")
    assert value.spec.profiles == ("kns.shop", "ksa.shop.default")
    assert value.spec.interfaceName.startswith("cali")


def test_the_interface_is_named_by_namespace_and_pod() -> None:
    found = read(SOURCES.pods, pod(metadata_namespace="default", metadata_name="podA"))
    assert found.value.spec.interfaceName == "cali7f94ce7c295"


@pytest.mark.parametrize("change", [{"spec_nodeName": ""}, {"spec_hostNetwork": True}])
def test_a_pod_without_an_endpoint(change: dict[str, Any]) -> None:
    assert interpret(SOURCES.pods, json.dumps(pod(**change)).encode()) is None


def test_kubelets_word_counts_over_annotations() -> None:
    annotations = {"cni.projectcalico.org/podIP": "10.0.0.9/32"}
    status = {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
    made = pod(metadata_annotations=annotations) | {"status": status}
    assert read(SOURCES.pods, made).value.spec.ipNetworks == ("10.0.0.1/32", "fd00::1/128")
    assert endpoint(metadata_annotations=annotations).spec.ipNetworks == ("10.0.0.9/32",)


@pytest.mark.parametrize(
    "change",
    [
        {"status_phase": "Succeeded"},
        {"status_phase": "Failed"},
        {
            "metadata_deletionTimestamp": "2026-03-01T08:00:00Z",
            "metadata_annotations": {"cni.projectcalico.org/podIP": ""},
        },
    ],
)
def test_a_finished_pod_has_no_address(change: dict[str, Any]) -> None:
    found = endpoint(status_podIP="10.0.0.1", **change)
    assert found.spec.ipNetworks == ()
    assert endpoint(status_podIP="10.0.0.1").spec.ipNetworks == ("10.0.0.1/32",)


def test_ports_that_policies_can_name() -> None:
    ports = [
        {"name": "http", "containerPort": 80},
        {"containerPort": 81},
        {"containerPort": 82, "hostPort": 8082, "protocol": "UDP"},
        {"name": "odd", "containerPort": 83, "protocol": "ICMP"},
    ]
    found = endpoint(spec_containers=[{"ports": ports}]).spec.ports
    assert [(one.name, one.protocol, one.port, one.hostPort) for one in found] == [
        ("http", "TCP", 80, 0), ("", "UDP", 82, 8082),
    ]  # fmt: skip


def test_a_broken_pod_annotation_names_itself() -> None:
    annotations = {"cni.projectcalico.org/allowedSourcePrefixes": '["10.0.0.0/33"]'}
    found = interpret(SOURCES.pods, json.dumps(pod(metadata_annotations=annotations)).encode())
    assert isinstance(found, Broken)
    assert "allowedSourcePrefixes" in str(found.error)
    assert found.where == "/api/v1/namespaces/shop/pods/web-0"


def test_limits_of_a_pod() -> None:
    found, wrong = qos_controls(
        {
            "kubernetes.io/ingress-bandwidth": "10M",
            "qos.projectcalico.org/egressBandwidth": "1.5Gi",
            "qos.projectcalico.org/egressPacketBurst": "7",
            "qos.projectcalico.org/ingressMaxConnections": "0",
            "qos.projectcalico.org/dscp": "EF",
        }
    )
    burst = 4 * 2**30
    assert found == QoSControls(
        ingressBandwidth=10_000_000, ingressBurst=burst, egressBandwidth=1610612736, egressBurst=burst,
        ingressMaxConnections=1, dscp="EF",
    )  # fmt: skip
    assert len(wrong) == 2
    assert qos_controls({}) == (None, [])


@pytest.mark.parametrize(
    "text, value",
    [("1", 1), ("1k", 1000), ("1.5Ki", 1536), ("100m", 1), ("2e3", 2000), ("-1", -1), ("1.", 1), (".5k", 500),
     ("", None), ("x", None), ("1 k", None), ("1kk", None), ("1e999", None), ("9" * 99, None)],
)  # fmt: skip
def test_quantities(text: str, value: int | None) -> None:
    assert parse_quantity(text) == value


# --- nodes --------------------------------------------------------------------------------------

addresses = st.sampled_from(["", "10.0.0.1", "192.0.2.7"])
macs = st.sampled_from(["", "66:00:00:00:00:01"])


@st.composite
def calico_nodes(draw: st.DrawFn) -> Node:
    bgp = NodeBGPSpec(
        asNumber=draw(st.none() | st.integers(1, 2**32 - 1).map(ASNumber)),
        ipv4Address=draw(st.sampled_from(["", "192.0.2.1/24", "192.0.2.1"])),
        ipv4IPIPTunnelAddr=draw(addresses),
        routeReflectorClusterID=draw(addresses),
    )
    spec = NodeSpec(
        bgp=None if bgp == NodeBGPSpec() else bgp,
        ipv4VXLANTunnelAddr=draw(addresses),
        vxlanTunnelMACAddr=draw(macs),
        interfaces=draw(st.sampled_from([(), (NodeInterface(name="eth0", addresses=("192.0.2.1",)),)])),
    )
    made = resource("Node", name="n", labels=draw(st.dictionaries(st.sampled_from("ab"), st.just("x"))))
    assert isinstance(made, Node)
    return structs.replace(
        made, spec=spec, status=NodeStatus(wireguardPublicKey=draw(st.sampled_from(["", "k"])))
    )


@given(calico_nodes(), st.dictionaries(st.sampled_from("bc"), st.just("kube")))
def test_a_node_survives_its_annotations(node: Node, labels: dict[str, str]) -> None:
    stored = {name: text for name, text in nodes.node_annotations(node).items() if text is not None}
    foreign = {"other": "x"}
    found = read(
        SOURCES.nodes, {"metadata": {"name": "n", "labels": labels, "annotations": stored | foreign}}
    ).value
    assert found.labels == node.labels | labels
    assert found.spec.bgp == node.spec.bgp
    for field in ("ipv4VXLANTunnelAddr", "vxlanTunnelMACAddr", "interfaces"):
        assert getattr(found.spec, field) == getattr(node.spec, field)
    assert found.status == node.status
    assert [ref.nodeName for ref in found.spec.orchRefs] == ["n"]
    # What is Kubernetes' own is not taken over when it is written back.
    again = nodes.node_annotations(found)
    shadowed = {name: text for name, text in node.labels.items() if name not in labels}
    assert json.loads(again["projectcalico.org/labels"] or "{}") == shadowed
    assert {k: v for k, v in again.items() if "labels" not in k} == {
        k: v for k, v in nodes.node_annotations(node).items() if "labels" not in k
    }


def test_without_our_ipam_the_tunnel_has_the_first_address_of_the_pod_cidr() -> None:
    raw = {"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.5.0.0/24"]}}
    assert read(Sources(use_pod_cidr=True).nodes, raw).value.spec.bgp.ipv4IPIPTunnelAddr == "10.5.0.1"
    assert read(SOURCES.nodes, raw).value.spec.bgp is None


def test_annotations_that_make_no_sense_count_as_absent() -> None:
    annotations = {
        "projectcalico.org/ASNumber": "x",
        "projectcalico.org/IPv4Address": "here",
        "projectcalico.org/Interfaces": "{",
        "projectcalico.org/labels": "7",
    }
    found = read(SOURCES.nodes, {"metadata": {"name": "n", "annotations": annotations}}).value
    assert found.spec.bgp is None and found.spec.interfaces == () and found.labels == {}


# --- migrations ---------------------------------------------------------------------------------


def migration(phase: str, source: str = "", *, name: str = "vm", uid: str = UID) -> Any:
    state = {"migrationState": {"sourcePod": source, "targetPod": "t"}} if source else {}
    return {
        "metadata": {"name": "m", "namespace": "shop", "uid": uid, "labels": {"a": "b"}},
        "spec": {"vmiName": name},
        "status": {"phase": phase, **state, "phaseTransitionTimestamps": []},
    }


def test_a_vms_migration_selects_its_targets_pod_and_names_the_source() -> None:
    found = read(SOURCES.custom["LiveMigration"], migration("Scheduling"))
    assert found.key == ResourceKey("LiveMigration", "m", "shop")
    assert found.value.spec.source is None and found.value.spec.target.workloadEndpoint is None
    selects = parse(found.value.spec.target.selector).evaluate
    job = {"kubevirt.io/migrationJobUID": UID}
    assert selects({"vmi.kubevirt.io/id": "vm", **job}) and selects({"vm.kubevirt.io/name": "vm", **job})
    assert not selects({"vmi.kubevirt.io/id": "vm"}) and not selects(job)
    assert not selects({"vmi.kubevirt.io/id": "vm", "kubevirt.io/migrationJobUID": "other"})
    found = read(SOURCES.custom["LiveMigration"], migration("Running", "virt-launcher-vm-x"))
    pod = WorkloadIdentifier(orchestratorID="k8s", workloadID="shop/virt-launcher-vm-x")
    assert found.value.spec.source == LiveMigrationSource(workload=pod)
    check_stored(found.value)


@pytest.mark.parametrize("phase", ["", "Pending", "PendingTargetAttachment", "Synchronizing", "Succeeded"])
def test_a_migration_counts_from_its_targets_pod_to_its_success(phase: str) -> None:
    assert read(SOURCES.custom["LiveMigration"], migration(phase)).value is None
    assert read(SOURCES.custom["LiveMigration"], migration("Failed")).value is not None
    assert read(SOURCES.custom["LiveMigration"], migration("Running", name="")).value is None


@pytest.mark.parametrize("name", ["x' || all() || 'x", 'x" ', "x'", "-x", "x" * 300, "ä"])
def test_no_name_says_more_than_a_name(name: str) -> None:
    found = interpret(SOURCES.custom["LiveMigration"], msgspec.json.encode(migration("Running", name=name)))
    assert isinstance(found, Broken) and found.key == ResourceKey("LiveMigration", "m", "shop")


# --- where things are ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, path",
    [
        (POOL, "/apis/crd.projectcalico.org/v1/ippools/lab-small"),
        (
            ResourceKey("NetworkSet", "s", "shop"),
            "/apis/crd.projectcalico.org/v1/namespaces/shop/networksets/s",
        ),
        (ResourceKey("IPAMConfiguration", "default"), "/apis/crd.projectcalico.org/v1/ipamconfigs/default"),
        (ResourceKey("Node", "n"), "/api/v1/nodes/n"),
        (
            ResourceKey("WorkloadEndpoint", "node--1-k8s-web--0-eth0", "shop"),
            "/api/v1/namespaces/shop/pods/web-0",
        ),
        (ResourceKey("Profile", "kns.shop"), "/api/v1/namespaces/shop"),
        (ResourceKey("Profile", "ksa.shop.a.b"), "/api/v1/namespaces/shop/serviceaccounts/a.b"),
        (
            ResourceKey("NetworkPolicy", "knp.default.web", "shop"),
            "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/web",
        ),
        (
            ResourceKey("GlobalNetworkPolicy", "kcnp.kube-admin.a.b"),
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies/a.b",
        ),
        (
            ResourceKey("LiveMigration", "m", "shop"),
            "/apis/kubevirt.io/v1/namespaces/shop/virtualmachineinstancemigrations/m",
        ),
        (ResourceKey("Profile", "mine"), None),
        (ResourceKey("WorkloadEndpoint", "n-cni-abc-eth0", "shop"), None),
    ],
)  # fmt: skip
def test_places(key: Key, path: str | None) -> None:
    place = SOURCES.place(key)
    assert (place and place.path) == path


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a%2fb"])
def test_a_name_is_never_another_path(name: str) -> None:
    with pytest.raises(ValidationError):
        SOURCES.place(ResourceKey("IPPool", name))


def test_kubernetes_policies_carry_a_prefix() -> None:
    raw = {"metadata": {"name": "web", "namespace": "shop", "uid": UID}, "spec": {"podSelector": {}}}
    found = read(SOURCES.policies, raw)
    assert found.key == ResourceKey("NetworkPolicy", "knp.default.web", "shop")
    assert found.value.name == "knp.default.web" and found.value.spec.order == 1000
    raw = {"metadata": {"name": "a"}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}}
    assert read(SOURCES.cluster_policies, raw).key == ResourceKey("GlobalNetworkPolicy", "kcnp.kube-admin.a")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["metadata", "spec", "name", "annotations", "cidr"]), x)))  # fmt: skip  # noqa: E501
def test_nothing_that_is_read_breaks_the_reader(raw: Any) -> None:
    data = msgspec.json.encode(raw)
    for source in (SOURCES.custom["IPPool"], SOURCES.blocks, SOURCES.pods, SOURCES.nodes, SOURCES.policies):
        found = interpret(source, data)
        assert found is None or isinstance(found, KV | Broken)
