"""Calls, CNI_ARGS, versions and error objects: tables of what is right, and of each way to be wrong."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.cni.protocol import (
    VERSIONS,
    CniArgs,
    Code,
    at_least,
    check_network_name,
    check_version,
    error_object,
    parse_args,
    parse_call,
)
from tortie.core.errors import (
    CniError,
    ConfigError,
    DatastoreUnreachable,
    KernelError,
    PeerError,
    TortieError,
    UpdateConflict,
)

pytestmark = pytest.mark.unit

FULL = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin::/other",
}


# --- calls --------------------------------------------------------------------------------------


def test_a_call_in_full() -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAME=nginx;K8S_POD_NAMESPACE=shop;IP=10.0.0.1"
    call = parse_call("calico", FULL | {"CNI_COMMAND": "ADD", "CNI_ARGS": args, "CNI_NETNS_OVERRIDE": "true"})
    assert (call.command, call.container_id, call.netns, call.ifname) == ("ADD", "c1", "/run/netns/x", "eth0")
    assert call.path == ("/opt/cni/bin", "/other") and call.may_share_netns
    assert call.args == CniArgs(ip="10.0.0.1", pod="nginx", namespace="shop")


REQUIRED = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"},
    "GC": {"CNI_PATH"},
    "STATUS": {"CNI_PATH"},
    "VERSION": set(),
}


@pytest.mark.parametrize("command", REQUIRED)
@pytest.mark.parametrize("missing", FULL)
def test_what_each_command_needs(command: str, missing: str) -> None:
    environment = {key: value for key, value in FULL.items() if key != missing} | {"CNI_COMMAND": command}
    if missing not in REQUIRED[command]:
        assert parse_call("calico", environment).command == command
        return
    with pytest.raises(CniError) as caught:
        parse_call("calico", environment)
    assert caught.value.code == 4 and caught.value.msg == f"required env variables [{missing}] missing"


def test_everything_missing_is_said_at_once() -> None:
    with pytest.raises(CniError) as caught:
        parse_call("calico", {"CNI_COMMAND": "ADD"})
    names = "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"
    assert caught.value.msg == f"required env variables [{names}] missing"
    with pytest.raises(CniError, match="CNI_COMMAND"):
        parse_call("calico", {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"CNI_COMMAND": "add"}, "unknown CNI_COMMAND: add"),
        ({"CNI_CONTAINERID": "-a"}, "invalid characters in containerID"),
        ({"CNI_CONTAINERID": "a/b"}, "invalid characters in containerID"),
        ({"CNI_CONTAINERID": "a\n"}, "invalid characters in containerID"),
        ({"CNI_CONTAINERID": "ä"}, "invalid characters in containerID"),
        ({"CNI_IFNAME": "."}, "interface name is . or .."),
        ({"CNI_IFNAME": ".."}, "interface name is . or .."),
        ({"CNI_IFNAME": "a/b"}, "interface name contains / or : or whitespace characters"),
        ({"CNI_IFNAME": "a:b"}, "interface name contains / or : or whitespace characters"),
        ({"CNI_IFNAME": "a\u2003b"}, "interface name contains / or : or whitespace characters"),
        ({"CNI_IFNAME": "x" * 16}, "interface name is too long"),
        ({"CNI_IFNAME": "ü" * 8}, "interface name is too long"),
    ],
)
def test_what_is_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_call("calico", FULL | {"CNI_COMMAND": "ADD"} | change)
    assert (caught.value.code, caught.value.msg) == (4, said)


def test_the_longest_names_that_are_right() -> None:
    change = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "A.b_c-9" * 40, "CNI_IFNAME": "x" * 15}
    assert parse_call("calico", FULL | change).ifname == "x" * 15


# --- CNI_ARGS -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", CniArgs()),
        ("IP=10.0.0.1", CniArgs(ip="10.0.0.1")),
        ("IP=FD00::0001", CniArgs(ip="fd00::1")),
        ("IP=10.0.0.1;IP=10.0.0.2", CniArgs(ip="10.0.0.2")),
        ("K8S_POD_NAME=;K8S_POD_NAMESPACE=x", CniArgs(namespace="x")),
        ("K8S_POD_INFRA_CONTAINER_ID=x", CniArgs()),
        ("CNI_TEST_NAMESPACE=blue", CniArgs(test_namespace="blue")),
        ("A=1;IgnoreUnknown=TRUE", CniArgs()),
        ("IgnoreUnknown=1;A=;B=ü", CniArgs()),
    ],
)
def test_args(text: str, expected: CniArgs) -> None:
    assert parse_args(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A", 'ARGS: invalid pair "A"'),
        ("A=1=2", 'ARGS: invalid pair "A=1=2"'),
        ("IP=10.0.0.1;", 'ARGS: invalid pair ""'),
        ("A=1;B=2", "ARGS: unknown args ['A=1', 'B=2']"),
        ("IgnoreUnknown=0;A=1", "ARGS: unknown args ['A=1']"),
        ("IgnoreUnknown=maybe", "not a boolean"),
        ("IP=", "invalid IP address"),
        ("IP=10.0.0.1/32", "invalid IP address: 10.0.0.1/32"),
        ("IP=10.0.0.256", "invalid IP address"),
        ("IP=fe80::1%eth0", "invalid IP address"),
    ],
)
def test_args_that_are_wrong(text: str, said: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_args(text)
    assert caught.value.code == 4 and said in caught.value.msg


def test_calico_ignores_unknown_args_unless_told_not_to() -> None:
    environment = FULL | {"CNI_COMMAND": "DEL", "CNI_ARGS": "COLOUR=red"}
    assert parse_call("calico", environment).args == CniArgs()
    with pytest.raises(CniError):
        parse_call("calico-ipam", environment)


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_and_commands(version: str) -> None:
    for command in ("ADD", "DEL"):
        check_version(command, version)
    for command, oldest in (("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")):
        if at_least(version, oldest):
            check_version(command, version)
            continue
        with pytest.raises(CniError) as caught:
            check_version(command, version)
        assert caught.value.code == 1
        assert caught.value.msg == f"config version does not allow {command}"


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("1.2.0", 1), ("0.0.1", 1), ("1.0", 1), ("10.0.0", 1),
        ("", 6), ("1.0.0.0", 6), ("x", 6), ("1.0.0\n", 6), ("١.0.0", 6),
    ],
)  # fmt: skip
def test_versions_that_are_not_ours(version: str, code: int) -> None:
    with pytest.raises(CniError) as caught:
        check_version("ADD", version)
    assert caught.value.code == code


def test_the_refused_version_is_named_with_ours() -> None:
    with pytest.raises(CniError) as caught:
        check_version("ADD", "2.0.0")
    expected = 'config is "2.0.0", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]'
    assert caught.value.details == expected


def test_network_names() -> None:
    check_network_name("k8s-pod_network.1")
    for name in ("", "-x", "a b", "a/b", "ä", "a\n"):
        with pytest.raises(CniError) as caught:
            check_network_name(name)
        assert caught.value.code == 7


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CniError(Code.UNKNOWN_CONTAINER, "m", "d"), 3),
        (ConfigError("mtu", -1, "r"), 7),
        (DatastoreUnreachable("r"), 11),
        (UpdateConflict("x"), 999),
        (KernelError("add", "x", 17), 999),
        (PeerError("r"), 999),
    ],
)
def test_each_kind_of_error_has_its_code(error: TortieError, code: int) -> None:
    found = json.loads(error_object(error, "0.4.0"))
    assert (found["code"], found["cniVersion"]) == (code, "0.4.0") and found["msg"]


def test_an_error_object_looks_like_the_librarys() -> None:
    lines = ['"cniVersion": "1.0.0",', '"code": 7,', '"msg": "no \\"x\\"",', '"details": "really"']
    expected = "{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"
    assert error_object(CniError(7, 'no "x"', "really"), "1.0.0").decode() == expected
    assert "details" not in error_object(CniError(7, "m")).decode()


@given(st.text(), st.text(), st.text())
def test_an_error_object_is_json_whatever_it_says(msg: str, details: str, version: str) -> None:
    hostile = msg.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    json.loads(error_object(CniError(999, hostile, details), version))


@given(st.dictionaries(st.sampled_from([*FULL, "CNI_COMMAND", "CNI_ARGS"]), st.text(max_size=30)))
def test_nothing_but_a_cni_error_is_raised(environment: dict[str, str]) -> None:
    for more in ({}, FULL | {"CNI_COMMAND": "ADD"}):
        try:
            parse_call("calico-ipam", more | environment)
        except CniError as err:
            json.loads(error_object(err))


@given(st.text(alphabet=string.ascii_letters + "=;.:/_0123456789", max_size=60))
def test_args_never_surprise(text: str) -> None:
    try:
        parse_args(text, ignore_unknown=True)
    except CniError as err:
        assert err.code == 4
