"""The network configuration: defaults, types, checks, and hostile input."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.cni import netconf
from tortie.cni.netconf import Attachment, Label, NetConf
from tortie.core.errors import CniError, ConfigError, TortieError

pytestmark = pytest.mark.unit

MINIMAL = {"cniVersion": "1.0.0", "name": "net", "ipam": {"type": "calico-ipam"}}


def load(command: str = "ADD", **fields: Any) -> NetConf:
    return netconf.load(command, json.dumps(MINIMAL | fields).encode())


def test_defaults() -> None:
    conf = load()
    assert conf.mtu == 0 and conf.num_queues == 1 and not conf.delegates_ipam and not conf.pod_policy
    assert conf.args.projectcalico is None and conf.valid_attachments is None and not bytes(conf.prevResult)


def test_every_field() -> None:
    conf = load(
        type="calico", mtu=1440, num_queues=4, nodename="n", nodename_file="/f", nodename_file_optional=True,
        hostname="h", ipam_lock_file="/l", datastore_type="etcdv3", etcd_endpoints="http://a", qps=5, burst=6,
        kubernetes={"kubeconfig": "/k", "node_name": "x"}, policy={"type": "k8s", "k8s_auth_token": "t"},
        feature_control={"ip_addrs_no_ipam": True, "floating_ips": True}, device_type="netkit",
        container_settings={"allow_ip_forwarding": True}, include_default_routes=True,
        readiness_gates=["https://localhost:9099/readiness"], policy_setup_timeout_seconds=5,
        endpoint_status_dir="/s", log_level="Debug", log_file_path="/var/log/x", log_file_max_size=1,
        ipam={"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true", "ipv6_pools": ["p"]},
        args={"org.apache.mesos": {"network_info": {"labels": {"labels": [{"key": "a", "value": "b"}]}}}},
        runtimeConfig={"dns": {}}, windows_loopback_DSR=True, vxlan_vni=4096, unknown={"x": [1]},
    )  # fmt: skip
    assert conf.pod_policy and conf.kubernetes.node_name == "x" and conf.feature_control.floating_ips
    assert conf.args.labels == (Label(key="a", value="b"),) and conf.ipam.ipv6_pools == ("p",)


def test_what_a_runtime_says_about_a_pod() -> None:
    about = {
        "pod": {"labels": {"a": "b"}, "ports": [{"containerPort": 80}]},
        "namespace": {"labels": {"x": "y"}},
    }
    given_pod = load(args={"org.projectcalico": about}).args.projectcalico
    assert (
        given_pod is not None
        and given_pod.pod.labels == {"a": "b"}
        and given_pod.namespace.labels == {"x": "y"}
    )


def test_valid_attachments() -> None:
    conf = load(
        "GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "e"}]}
    )
    assert conf.valid_attachments == (Attachment(containerID="c", ifname="e"),)


def test_null_is_not_given() -> None:
    conf = load(mtu=None, ipam={"type": "calico-ipam", "subnet": None, "ipv4_pools": None}, args=None)
    assert conf.mtu == 0 and conf.ipam.ipv4_pools == ()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 6),
        (b"{", 6),
        (b"[]", 6),
        (b"null", 6),
        (b'"x"', 6),
        (b"\xff", 6),
        (b"[" * 100_000, 6),
        (b'{"name": 7}', 6),
        (b"{}", 7),
        (b'{"name": ""}', 7),
        (b'{"name": "a b"}', 7),
        (b'{"name": "a", "cniVersion": "9"}', 1),
        (b'{"name": "a", "cniVersion": 1}', 6),
    ],
)
def test_what_is_no_configuration(data: bytes, code: int) -> None:
    with pytest.raises(CniError) as caught:
        netconf.load("ADD", data)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mtu", "1500"),
        ("mtu", 1.5),
        ("ipam", []),
        ("ipam", {"type": "calico-ipam", "assign_ipv4": True}),
        ("policy", "k8s"),
        ("nodename_file_optional", "true"),
        ("readiness_gates", "http://x"),
        ("args", {"org.projectcalico": {"pod": {"labels": {"a": 1}}}}),
        ("cni.dev/valid-attachments", [{"containerID": "x"}]),
    ],
)
def test_a_wrong_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(CniError) as caught:
        load(**{field: value})
    assert caught.value.code == 6 and field.split("/")[-1].split("-")[0] in caught.value.msg


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mtu", -1), ("mtu", 67), ("mtu", 65536), ("num_queues", 4097), ("log_file_max_age", -1),
        ("device_type", "bridge"), ("dataplane_options", {"type": "grpc", "socket": "/x"}),
        ("dataplane_options", {"type": 7}), ("policy_setup_timeout_seconds", -1), ("ipam", {"type": ""}),
        ("ipam", {"type": "a/b"}), ("readiness_gates", ["x"]), ("readiness_gates", ["http://"]),
        ("readiness_gates", ["http://a b"]), ("readiness_gates", ["http://[x"]),
        ("readiness_gates", ["http://a:0"]), ("readiness_gates", ["http://a\n"]),
        ("readiness_gates", ["file:///etc/passwd"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(field: str, value: Any) -> None:
    with pytest.raises((ConfigError, CniError)) as caught:
        load(**{field: value})
    assert not isinstance(caught.value, CniError) or caught.value.code == 7


@pytest.mark.parametrize(
    "fields", [{"mtu": -1}, {"device_type": "x"}, {"ipam": {}}, {"readiness_gates": ["x"]}]
)
def test_what_add_refuses_does_not_keep_del_from_cleaning_up(fields: dict[str, Any]) -> None:
    load("DEL", **fields)


def test_the_version_for_errors_is_found_whatever_else_is_wrong() -> None:
    assert netconf.version_of(b'{"cniVersion": "0.4.0", "name": 7}') == "0.4.0"
    for data in (b"", b"[]", b'{"cniVersion": 7}', b"{}", b"\xff"):
        assert netconf.version_of(data) == "0.2.0"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(sorted(NetConf.__struct_encode_fields__))


@given(st.dictionaries(names, values, max_size=6), st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS"]))
def test_any_values_are_taken_or_refused(fields: dict[str, Any], command: str) -> None:
    with contextlib.suppress(TortieError):
        load(command, **({"cniVersion": "1.1.0"} | fields))


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    netconf.version_of(data)
    with contextlib.suppress(TortieError):
        netconf.load("ADD", data)


def test_fields_for_windows_are_told_and_ignored() -> None:
    data = b'{"name": "n", "windows_use_single_network": true, "windows_loopback_DSR": false, "mtu": 1400}'
    assert netconf.for_windows(data) == ["windows_loopback_DSR", "windows_use_single_network"]
    assert netconf.for_windows(b'{"name": "n"}') == []
