"""Computed names: endpoints, host interfaces, length-limited names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.core.errors import ValidationError
from tortie.datastore.names import (
    EndpointIds,
    build_endpoint_name,
    endpoint_name_prefix,
    host_interface,
    ids_of,
    interface_prefixes,
    length_limited,
    parse_endpoint_name,
    unique_id,
)
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec

pytestmark = pytest.mark.unit

NAMES = [
    (
        EndpointIds(node="node-1", orchestrator="k8s", pod="web-0", endpoint="eth0"),
        "node--1-k8s-web--0-eth0",
    ),
    (EndpointIds(node="n", orchestrator="cni", containerID="c0ffee", endpoint="eth0"), "n-cni-c0ffee-eth0"),
    (EndpointIds(node="n", orchestrator="libnetwork", endpoint="ep"), "n-libnetwork-libnetwork-ep"),
    (
        EndpointIds(node="n", orchestrator="open-stack", workload="vm.1", endpoint="p"),
        "n-open--stack-vm.1-p",
    ),
    (EndpointIds(node="a--b", orchestrator="k8s", pod="p", endpoint="e"), "a----b-k8s-p-e"),
]


@pytest.mark.parametrize(("ids", "name"), NAMES)
def test_endpoint_names(ids: EndpointIds, name: str) -> None:
    assert build_endpoint_name(ids) == name
    assert parse_endpoint_name(name) == ids


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"node": ""}, "node", "field should be assigned"),
        ({"pod": ""}, "pod", "field should be assigned"),
        ({"endpoint": ""}, "endpoint", "field should be assigned"),
        ({"pod": "-x"}, "pod", "field must not begin with a '-'"),
        ({"endpoint": "x-"}, "endpoint", "field must not end with a '-'"),
        ({"orchestrator": "other"}, "workload", "field should be assigned"),
        ({"orchestrator": ""}, "orchestrator", "field should be assigned"),
    ],
)
def test_identifiers_that_give_no_name(changes: dict[str, str], field: str, reason: str) -> None:
    ids = EndpointIds(**{"node": "n", "orchestrator": "k8s", "pod": "p", "endpoint": "e"} | changes)
    with pytest.raises(ValidationError) as caught:
        build_endpoint_name(ids)
    assert (field, reason) in [(wrong.field, wrong.reason) for wrong in caught.value.fields]


@pytest.mark.parametrize(
    "name", ["", "a", "a-b", "a-k8s-b", "a-k8s-b-c-d", "-k8s-b-c", "a-k8s--b-c", "a-k8s-b-"]
)
def test_what_is_no_endpoint_name(name: str) -> None:
    assert parse_endpoint_name(name) is None


segment = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,8}[a-z0-9])?", fullmatch=True)


@given(segment, st.sampled_from(["k8s", "cni", "libnetwork", "x-y"]), segment, segment)
def test_endpoint_names_round_trip(node: str, orchestrator: str, third: str, endpoint: str) -> None:
    ids = EndpointIds(
        node=node,
        orchestrator=orchestrator,
        endpoint=endpoint,
        pod=third if orchestrator == "k8s" else "",
        containerID=third if orchestrator == "cni" else "",
        workload=third if orchestrator == "x-y" else "",
    )
    assert parse_endpoint_name(build_endpoint_name(ids)) == ids


@given(st.text(max_size=40))
def test_parsing_is_the_exact_inverse(text: str) -> None:
    if (ids := parse_endpoint_name(text)) is not None:
        assert build_endpoint_name(ids) == text


def test_a_prefix_ends_at_the_first_unknown_identifier() -> None:
    assert endpoint_name_prefix(EndpointIds(node="n-1")) == "n--1-"
    assert endpoint_name_prefix(EndpointIds(node="n", orchestrator="k8s")) == "n-k8s-"
    pod = EndpointIds(node="n", orchestrator="k8s", pod="pod")
    assert endpoint_name_prefix(pod) == "n-k8s-pod-"
    # Another pod's endpoints start so as well: a prefix alone is no proof.
    other = build_endpoint_name(EndpointIds(node="n", orchestrator="k8s", pod="pod-1", endpoint="eth0"))
    assert other.startswith(endpoint_name_prefix(pod))
    found = parse_endpoint_name(other)
    assert found is not None and found.pod == "pod-1"
    with pytest.raises(ValidationError):
        endpoint_name_prefix(EndpointIds(orchestrator="k8s"))


def test_identifiers_of_a_resource() -> None:
    spec = WorkloadEndpointSpec(node="n", orchestrator="k8s", pod="p", endpoint="e", containerID="c")
    assert ids_of(WorkloadEndpoint(spec=spec)) == EndpointIds(
        node="n", orchestrator="k8s", pod="p", endpoint="e", containerID="c"
    )


def test_host_interfaces() -> None:
    assert host_interface("default", "nginx") == "calic440f455693"
    assert host_interface("default", "podA") == "cali7f94ce7c295"
    assert host_interface(container_id="0123456789abcdef") == "cali0123456789a"
    assert host_interface("default", "podA", prefix="tap") == "tap7f94ce7c295"
    assert interface_prefixes({}) == ["cali"]
    assert interface_prefixes({"FELIX_INTERFACEPREFIX": "tap,cali"}) == ["tap", "cali"]
    assert interface_prefixes({"FELIX_INTERFACEPREFIX": ","}) == ["cali"]


@pytest.mark.parametrize(
    ("prefix", "suffix", "limit", "name"),
    [
        ("felix", "12345678910", 13, "felix_Y2QCZIS"),
        ("felix", "_2345", 10, "felix_kMQI"),
        ("felix", "1234", 10, "felix1234"),
        ("felix", "12345", 10, "felix12345"),
        ("felix", "", 10, "felix_"),
        ("cali-thfw-", "any-interface-at-all", 28, "cali-thfw-_Nqh4HyA73udmyanQI"),
        ("cali-th-", "any-interface-at-all", 28, "cali-th-any-interface-at-all"),
        ("cali-pi-", "knp/default/allow-dns-and-more", 28, "cali-pi-_3zNcQ8_wPwGm_tAx4ZR"),
    ],
)
def test_length_limited_names(prefix: str, suffix: str, limit: int, name: str) -> None:
    assert length_limited(prefix, suffix, limit) == name


@given(st.text("ab_", max_size=30), st.text("ab_", max_size=30))
def test_limited_names_fit_and_stay_apart(first: str, second: str) -> None:
    names = [length_limited("cali-", suffix, 20) for suffix in (first, second)]
    assert all(len(name) <= 20 for name in names)
    if (first or "_") != (second or "_"):
        assert names[0] != names[1]


def test_no_room_for_a_hash() -> None:
    with pytest.raises(ValueError, match="no room"):
        length_limited("prefix", "suffix", 7)


def test_unique_ids() -> None:
    assert unique_id("s", "all()").startswith("s:") and len(unique_id("s", "all()")) == 2 + 38
