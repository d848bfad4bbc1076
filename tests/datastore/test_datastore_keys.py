"""Calico's etcd paths and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.datastore import keys
from tortie.datastore.keys import (
    AffinityKey,
    AffinityList,
    BlockKey,
    BlockList,
    HandleKey,
    IPAMConfigKey,
    IPAMConfigList,
    ResourceKey,
    ResourceList,
    WorkloadStatusKey,
)

pytestmark = pytest.mark.unit

CASES = [
    (ResourceKey("IPPool", "p"), "/calico/resources/v3/projectcalico.org/ippools/p"),
    (ResourceKey("NetworkPolicy", "p", "ns"), "/calico/resources/v3/projectcalico.org/networkpolicies/ns/p"),
    (BlockKey("10.0.0.0/26"), "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26"),
    (BlockKey("fd00:10:244::1c0/122"), "/calico/ipam/v2/assignment/ipv6/block/fd00:10:244::1c0-122"),
    (AffinityKey("10.0.0.0/26", "n1"), "/calico/ipam/v2/host/n1/ipv4/block/10.0.0.0-26"),
    (
        AffinityKey("10.0.0.0/26", "load-balancer", "virtual"),
        "/calico/ipam/v2/virtual/load-balancer/ipv4/block/10.0.0.0-26",
    ),
    (IPAMConfigKey(), "/calico/ipam/v2/config"),
    (HandleKey("k8s-pod-network.abc"), "/calico/ipam/v2/handle/k8s-pod-network.abc"),
    (
        WorkloadStatusKey("n1", "k8s", "default/a%b", "eth0"),
        "/calico/felix/v2/no-region/host/n1/workload/k8s/default%2fa%25b/endpoint/eth0",
    ),
]


@pytest.mark.parametrize(("key", "path"), CASES)
def test_paths(key: keys.Key, path: str) -> None:
    assert key.path() == path
    assert keys.parse(path) == key


@pytest.mark.parametrize(
    "path",
    [
        "/calico/resources/v3/projectcalico.org/ippools/a/b",  # not namespaced
        "/calico/resources/v3/projectcalico.org/networkpolicies/a",  # namespaced
        "/calico/resources/v3/projectcalico.org/unknownkind/a",
        "/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-26",  # host bits
        "/calico/ipam/v2/assignment/ipv6/block/10.0.0.0-26",  # wrong family
        "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0",
        "/calico/ipam/v2/host/n1",
        "/other",
        "",
    ],
)
def test_what_is_not_ours(path: str) -> None:
    assert keys.parse(path) is None


@given(st.text(max_size=60))
def test_parse_never_raises(text: str) -> None:
    keys.parse(text)
    keys.parse("/calico/ipam/v2/assignment/ipv4/block/" + text)
    keys.parse("/calico/resources/v3/projectcalico.org/networkpolicies/" + text)


@given(st.text(min_size=1, max_size=30))
def test_escape_round_trip(text: str) -> None:
    assert "/" not in keys.escape(text) and keys.unescape(keys.escape(text)) == text


def test_listings_recheck_what_a_prefix_also_matches() -> None:
    what = ResourceList("WorkloadEndpoint", "ns", "n1-k8s-pod-")
    mine, other = (
        ResourceKey("WorkloadEndpoint", f"n1-k8s-pod-{rest}", "ns") for rest in ("eth0", "-1-eth0")
    )
    assert mine.path().startswith(what.prefix()) and other.path().startswith(what.prefix())
    assert what.contains(mine)
    assert not ResourceList("IPPool").contains(mine)
    assert not AffinityList("node1").contains(AffinityKey("10.0.0.0/26", "node10"))
    assert not BlockList(6).contains(BlockKey("10.0.0.0/26"))
    assert AffinityList(owner_type="").contains(AffinityKey("10.0.0.0/26", "lb", "virtual"))
    assert not AffinityList(owner_type="").contains(BlockKey("10.0.0.0/26"))


def test_the_ipam_configuration_can_be_watched_alone() -> None:
    what = IPAMConfigList()
    assert what.contains(IPAMConfigKey()) and not what.contains(HandleKey("config"))
    assert IPAMConfigKey().path().startswith(what.prefix())
