"""The pools a first start creates."""

import pytest

from tortie.core.errors import ConfigError
from tortie.node.defaultpools import default_pools

pytestmark = pytest.mark.unit


def pools(
    env: dict[str, str] | None = None,
    existing: tuple[str, ...] = (),
    hosts: tuple[str, ...] = ("10.0.0.7/24",),
    ipv6: bool = True,
    kubeadm: tuple[str, ...] = (),
) -> dict[str, str]:
    found = default_pools(
        env or {}, existing, hosts, ipv6_usable=ipv6, random_bytes=bytes(range(1, 6)), kubeadm=kubeadm
    )
    return {pool.name: pool.spec.cidr for pool in found}


def test_defaults_of_an_empty_cluster() -> None:
    assert pools() == {
        "default-ipv4-ippool": "192.168.0.0/16",
        "default-ipv6-ippool": "fd01:203:405::/48",
    }
    (v4, v6) = default_pools({}, [], [], ipv6_usable=True, random_bytes=bytes(5))
    assert (v4.spec.natOutgoing, v4.spec.blockSize, v4.spec.ipipMode) == (True, 26, "Never")
    assert (v6.spec.natOutgoing, v6.spec.blockSize, v6.spec.ipipMode) == (False, 122, "Never")


def test_a_family_that_has_a_pool_gets_none() -> None:
    assert pools(existing=("10.1.0.0/16",)).keys() == {"default-ipv6-ippool"}
    assert pools(existing=("10.1.0.0/16", "fd00::/48")) == {}
    assert pools(ipv6=False).keys() == {"default-ipv4-ippool"}


def test_a_default_that_contains_the_host_is_avoided() -> None:
    assert pools(hosts=("192.168.1.5/24",))["default-ipv4-ippool"] == "172.16.0.0/16"
    hosts = ("192.168.1.5/24", "172.16.0.1/16", "172.17.0.1/16")
    assert pools(hosts=hosts)["default-ipv4-ippool"] == "172.18.0.0/16"


def test_environment() -> None:
    env = {
        "CALICO_IPV4POOL_CIDR": "10.244.0.0/16",
        "CALICO_IPV4POOL_IPIP": "CrossSubnet",
        "CALICO_IPV4POOL_BLOCK_SIZE": "28",
        "CALICO_IPV4POOL_NAT_OUTGOING": "no",
        "CALICO_IPV4POOL_DISABLE_BGP_EXPORT": "true",
        "CALICO_IPV4POOL_NODE_SELECTOR": "rack == 'a'",
        "CALICO_IPV6POOL_CIDR": "none",
    }
    (pool,) = default_pools(env, [], [], ipv6_usable=True, random_bytes=bytes(5))
    spec = pool.spec
    assert (spec.cidr, spec.ipipMode, spec.blockSize) == ("10.244.0.0/16", "CrossSubnet", 28)
    assert (spec.natOutgoing, spec.disableBGPExport, spec.nodeSelector) == (False, True, "rack == 'a'")


@pytest.mark.parametrize("spelling", ["always", "Always", "ALWAYS"])
def test_modes_in_any_case(spelling: str) -> None:
    (pool, _) = default_pools(
        {"CALICO_IPV4POOL_VXLAN": spelling}, [], [], ipv6_usable=True, random_bytes=bytes(5)
    )
    assert pool.spec.vxlanMode == "Always"


def test_kubeadm_subnets() -> None:
    assert pools(kubeadm=("10.244.0.0/16", "fd10::/56")) == {
        "default-ipv4-ippool": "10.244.0.0/16",
        "default-ipv6-ippool": "fd10::/56",
    }


def test_no_default_pools() -> None:
    assert pools({"NO_DEFAULT_POOLS": "true"}) == {}
    with pytest.raises(ConfigError, match="CALICO_IPV4POOL_CIDR"):
        pools({"NO_DEFAULT_POOLS": "true", "CALICO_IPV4POOL_CIDR": "10.0.0.0/8"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CALICO_IPV4POOL_CIDR", "fd00::/48"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0/99"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0/8\n"),
        ("CALICO_IPV6POOL_CIDR", "10.0.0.0/8"),
        ("CALICO_IPV4POOL_BLOCK_SIZE", "19"),
        ("CALICO_IPV4POOL_BLOCK_SIZE", "33"),
        ("CALICO_IPV4POOL_BLOCK_SIZE", "x"),
        ("CALICO_IPV6POOL_BLOCK_SIZE", "115"),
        ("CALICO_IPV4POOL_IPIP", "sometimes"),
        ("CALICO_IPV4POOL_NODE_SELECTOR", "a = b"),
    ],
)
def test_bad_values_name_the_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        pools({variable: value})


def test_two_encapsulations_at_once() -> None:
    with pytest.raises(ConfigError, match="CALICO_IPV4POOL_VXLAN"):
        pools({"CALICO_IPV4POOL_VXLAN": "Always", "CALICO_IPV4POOL_IPIP": "Always"})
