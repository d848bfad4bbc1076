"""Identities, pods and endpoints: every name and field that follows from a call."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tortie.cni import endpoint
from tortie.cni.endpoint import Attached
from tortie.cni.identity import Identity, alias, container_labels, identify, sanitise
from tortie.cni.netconf import Args, Label, NetConf
from tortie.cni.pods import (
    NO_POD,
    NO_WISHES,
    Pod,
    Wishes,
    wishes,
)
from tortie.cni.protocol import Call, CniArgs
from tortie.core.errors import CniError, ConfigError
from tortie.datastore import podendpoint
from tortie.datastore.types.endpoint import IPNAT, QoSControls, WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.pod import ContainerPort

pytestmark = pytest.mark.unit

CONF = NetConf(name="net", cniVersion="1.0.0")
POD_ARGS = CniArgs(pod="nginx", namespace="default")
PREFIX = "cni.projectcalico.org/"


def call(args: CniArgs = POD_ARGS, container: str = "0123456789abcdef") -> Call:
    return Call("calico", "ADD", {}, container_id=container, ifname="eth0", args=args)


def mesos(*labels: tuple[str, str]) -> NetConf:
    info = {"network_info": {"labels": {"labels": [{"key": key, "value": value} for key, value in labels]}}}
    return structs.replace(CONF, args=msgspec.convert({"org.apache.mesos": info}, Args))


# --- identity -----------------------------------------------------------------------------------


def test_a_pod() -> None:
    one = identify(call(), CONF, "node-1")
    assert (one.orchestrator, one.namespace, one.pod) == ("k8s", "default", "nginx")
    assert one.host_interface == "calic440f455693"  # Calico's own example
    assert (one.handle, one.legacy_handle) == ("net.0123456789abcdef", "default.nginx")
    assert one.alias == "net/0123456789abcdef/eth0" and str(one) == "default/nginx"
    assert replace(one, pod="wep1").host_interface == "cali90fb1d920a5"
    assert replace(one, prefix="tap").host_interface == "tapc440f455693"


@pytest.mark.parametrize("args", [CniArgs(), CniArgs(pod="nginx"), CniArgs(namespace="default")])
def test_a_container_that_is_no_pod(args: CniArgs) -> None:
    one = identify(call(args), CONF, "node-1")
    assert (one.orchestrator, one.namespace, one.pod) == ("cni", "default", "")
    assert one.host_interface == "cali0123456789a" and one.legacy_handle == "0123456789abcdef"


def test_its_namespace_comes_from_a_label_or_the_tests() -> None:
    by_label = mesos(("projectcalico.org/namespace", "blue"), ("a/b", "c d"))
    assert identify(call(CniArgs()), by_label, "n").namespace == "blue"
    assert container_labels(by_label.args.labels) == {"a.b": "c-d"}
    assert identify(call(CniArgs(test_namespace="green")), CONF, "n").namespace == "green"


@pytest.mark.parametrize(
    "args",
    [
        CniArgs(pod="a/b", namespace="x"),
        CniArgs(pod="a", namespace="../x"),
        CniArgs(pod="A", namespace="x"),
        CniArgs(pod="a" * 254, namespace="x"),
        CniArgs(pod="-a", namespace="x"),
        CniArgs(test_namespace="a b"),
    ],
)
def test_names_that_would_be_something_else_in_a_path(args: CniArgs) -> None:
    with pytest.raises(CniError) as caught:
        identify(call(args), CONF, "n")
    assert caught.value.code == 4


def test_which_endpoint_names_are_its_own() -> None:
    one = identify(call(CniArgs(pod="a", namespace="default")), CONF, "node-1")
    assert one.names("node--1-k8s-a-eth0") and one.names("node--1-k8s-a-net1")
    for other in ("node--1-k8s-a--1-eth0", "node--2-k8s-a-eth0", "node--1-cni-a-eth0", "x", ""):
        assert not one.names(other)


def test_a_mark_too_long_for_the_kernel_keeps_its_end() -> None:
    mark = alias("n" * 200, "c" * 64, "eth0")
    assert len(mark) == 255 and mark.endswith(f"/{'c' * 64}/eth0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", "a.b"),
        ("a b  c", "a-b-c"),
        ("..a..", "a"),
        ("a-.-b", "a.b"),
        ("ä", ""),
        ("a_b", "a_b"),
        ("", ""),
    ],
)
def test_labels_of_mesos(text: str, expected: str) -> None:
    assert sanitise(text) == expected


@given(st.text())
def test_labels_of_mesos_are_always_legal(text: str) -> None:
    assert all(c.isascii() and (c.isalnum() or c in "-_.") for c in sanitise(text))


# --- pods ---------------------------------------------------------------------------------------


def test_labels_and_profiles_of_a_pod() -> None:
    assert podendpoint.labels({"app": "web"}, "shop", "robot") == {
        "app": "web",
        "projectcalico.org/namespace": "shop",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "robot",
    }
    assert podendpoint.profiles("shop", "robot") == ("kns.shop", "ksa.shop.robot")
    assert podendpoint.profiles("shop", "") == ("kns.shop",)
    assert "projectcalico.org/serviceaccount" not in podendpoint.labels({}, "shop", "r" * 63)


def test_ports_that_something_can_refer_to() -> None:
    ports = (
        ContainerPort(containerPort=80, name="http"),
        ContainerPort(containerPort=81),
        ContainerPort(name="none"),
        ContainerPort(containerPort=82, hostPort=82, protocol="UDP"),
        ContainerPort(containerPort=83, name="x", protocol="ICMP"),
        ContainerPort(containerPort=84, name="default", protocol=""),
    )
    assert [(one.port, one.protocol) for one in podendpoint.ports(ports)] == [
        (80, "TCP"),
        (82, "UDP"),
        (84, "TCP"),
    ]


FEATURES = {"floating_ips": True, "ip_addrs_no_ipam": True}
POOLED = msgspec.convert({"name": "n", "ipam": {"type": "calico-ipam"}, "feature_control": FEATURES}, NetConf)


def wished(conf: NetConf = POOLED, **annotations: str) -> Any:
    return wishes(Pod(annotations={PREFIX + name: value for name, value in annotations.items()}), conf)


def test_no_annotation_is_no_wish() -> None:
    assert wished() == NO_WISHES


def test_a_pods_annotation_is_before_its_namespaces() -> None:
    namespace = {
        f"{PREFIX}ipv4pools": '["b"]',
        f"{PREFIX}ipFamilies": '["IPv6"]',
        f"{PREFIX}ipAddrs": '["x"]',
    }
    pod = Pod(annotations={f"{PREFIX}ipv4pools": '["a"]'}, namespace_annotations=namespace)
    found = wishes(pod, POOLED)
    assert (found.ipv4_pools, found.assign, found.addresses) == (("a",), (False, True), ())


def test_pool_annotations_mean_nothing_to_another_ipam() -> None:
    local = msgspec.convert({"name": "n", "ipam": {"type": "host-local"}}, NetConf)
    assert wished(local, ipv4pools="[", ipFamilies="[") == NO_WISHES
    with pytest.raises(ConfigError, match="ipAddrs is not compatible with configured IPAM: host-local"):
        wished(local, ipAddrs='["10.0.0.1"]')


def test_addresses_are_canonical() -> None:
    found = wished(ipAddrs='["FD00::0001", "10.0.0.1"]', floatingIPs='["1.2.3.4", "1.2.3.5"]')
    assert found.addresses == ("fd00::1", "10.0.0.1") and found.floating == ("1.2.3.4", "1.2.3.5")


@pytest.mark.parametrize("text", ["02:ab:00:00:00:07", "02-AB-00-00-00-07", "02ab.0000.0007"])
def test_macs_in_each_notation(text: str) -> None:
    assert wished(hwAddr=text).mac == "02:ab:00:00:00:07"


@pytest.mark.parametrize(
    "text",
    [
        "02:ab",
        "02:ab:00:00:00:07:08",
        "02:ab-00:00:00:07",
        "0:0:0:0:0:0",
        "00:00:00:00:00:00",
        "03:00:00:00:00:00",
        "02:AB:00:00:00:0G",
    ],
)
def test_macs_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="failed to parse MAC address"):
        wished(hwAddr=text)


@given(
    st.sampled_from(
        [
            "ipv4pools",
            "ipv6pools",
            "ipFamilies",
            "ipAddrs",
            "ipAddrsNoIpam",
            "floatingIPs",
            "hwAddr",
            "allowedSourcePrefixes",
        ]
    ),
    st.text() | st.sampled_from(["[]", "{}", '[""]', "[null]", "[1]", '["fe80::1%x"]', "[" * 10_000]),
)
def test_any_annotation_is_taken_or_refused(name: str, value: str) -> None:
    try:
        wished(POOLED, **{name: value})
    except ConfigError as err:
        assert PREFIX in err.where


def test_floating_addresses_go_to_the_pods_last_of_their_family() -> None:
    own = ("10.0.0.1", "10.0.0.2", "fd00::1")
    assert podendpoint.floating_nats(("1.2.3.4", "2001:db8::1"), own) == (
        IPNAT(internalIP="10.0.0.2", externalIP="1.2.3.4"),
        IPNAT(internalIP="fd00::1", externalIP="2001:db8::1"),
    )
    assert podendpoint.floating_nats(("2001:db8::1",), ("10.0.0.1",)) == ()


# --- endpoints ----------------------------------------------------------------------------------

K8S = structs.replace(CONF, policy=structs.replace(CONF.policy, type="k8s"))
ATTACHED = Attached(("10.0.0.1", "fd00::1"), "cali1", "02:00:00:00:00:01")


def one_pod() -> Identity:
    return identify(call(), CONF, "node-1")


def test_a_new_endpoint() -> None:
    made = endpoint.build(one_pod(), K8S, ATTACHED, Pod(generate_name="nginx-"), NO_WISHES)
    assert made.name == "node--1-k8s-nginx-eth0" and made.namespace == "default"
    assert made.metadata.generateName == "nginx-"
    assert made.spec.ipNetworks == ("10.0.0.1/32", "fd00::1/128")
    assert (made.spec.pod, made.spec.containerID, made.spec.endpoint) == ("nginx", "0123456789abcdef", "eth0")


def test_an_endpoint_that_was_there_keeps_its_identity_and_what_others_wrote() -> None:
    meta = ObjectMeta(
        name="node--1-k8s-nginx-net1", namespace="default", uid="u", resourceVersion="7",
        labels={"old": "x"}, annotations={"kept": "y"},
    )  # fmt: skip
    spec = WorkloadEndpointSpec(endpoint="net1", containerID="old", qosControls=QoSControls(ingressBurst=5))
    existing = WorkloadEndpoint(metadata=meta, spec=spec)
    made = endpoint.onto(existing, endpoint.build(one_pod(), K8S, ATTACHED, NO_POD, NO_WISHES))
    assert made.metadata.uid == "u" and made.revision == "7" and made.metadata.annotations == {"kept": "y"}
    assert "old" not in made.labels and made.spec.endpoint == "net1"
    assert made.spec.containerID == "0123456789abcdef" and made.spec.qosControls == spec.qosControls
    asked = Wishes(qos=QoSControls(ingressPacketRate=9))
    limited = endpoint.build(one_pod(), K8S, ATTACHED, NO_POD, asked)
    assert endpoint.onto(existing, limited).spec.qosControls == asked.qos


def test_an_endpoint_of_a_container() -> None:
    conf = mesos(("a", "b"))
    made = endpoint.build(identify(call(CniArgs()), conf, "node-1"), conf, ATTACHED, NO_POD, NO_WISHES)
    assert made.name == "node--1-cni-0123456789abcdef-eth0"
    assert made.labels == {"a": "b"} and made.spec.profiles == ("net",) and made.spec.pod == ""


def test_without_policy_a_pod_has_the_networks_profile_and_no_labels() -> None:
    made = endpoint.build(one_pod(), CONF, ATTACHED, Pod(labels={"a": "b"}), NO_WISHES)
    assert made.spec.profiles == ("net",) and made.labels == {}


def test_joining_a_second_network() -> None:
    one = WorkloadEndpoint(spec=WorkloadEndpointSpec(profiles=("a",)))
    assert endpoint.joined(one, "a") is one
    assert endpoint.joined(one, "b").spec.profiles == ("a", "b")


def test_the_profile_of_a_network() -> None:
    among = endpoint.network_profile("net", "cni")
    assert among.spec.ingress[0].source.selector == "has(net)" and among.spec.labelsToApply == {"net": ""}
    assert endpoint.network_profile("net", "k8s").spec.ingress[0].source.selector == ""


def test_labels_are_pairs() -> None:
    assert container_labels((Label(key="a", value="1"), Label(key="a", value="2"))) == {"a": "2"}
