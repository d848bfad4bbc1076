"""Pools as allocation sees them: read from resources, chosen by request, resolved by name."""

from ipaddress import ip_network
from typing import Any

import pytest

from tortie.core.errors import ValidationError
from tortie.datastore import codec
from tortie.datastore.types.ippool import IPPool, IPReservation
from tortie.ipam import pools
from tortie.ipam.errors import IPAMError
from tortie.ipam.pools import Pool, Wish
from tortie.ipam.reserved import reserved_ranges

pytestmark = pytest.mark.unit


def resource(name: str = "p", spec: dict[str, Any] | None = None, **more: Any) -> IPPool:
    raw: dict[str, Any] = {"kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": "10.0.0.0/16"}}
    raw["spec"] |= spec or {}
    raw["metadata"] |= more.pop("metadata", {})
    return codec.from_plain(IPPool, raw | more)


def pool(name: str, cidr: str, **fields: Any) -> Pool:
    return Pool(name, ip_network(cidr), fields.pop("block_size", 26), fields.pop("enabled", True), **fields)


def condition(status: str) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": "Allocatable", "status": status}]}}


def test_defaults_are_filled_in() -> None:
    assert pools.pool_of(resource()) == Pool("p", ip_network("10.0.0.0/16"), 26, True, "", "")
    six = pools.pool_of(resource(spec={"cidr": "fd00::/48"}))
    assert six.block_size == 122 and six.uses == ("Workload", "Tunnel") and six.automatic


@pytest.mark.parametrize(
    ("change", "enabled"),
    [
        ({}, True),
        ({"spec": {"disabled": True}}, False),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, False),
        (condition("False"), False),
        (condition("True"), True),
        (condition("Unknown"), True),
        ({"status": {}}, True),
    ],
)
def test_what_is_enabled(change: dict[str, Any], enabled: bool) -> None:
    assert pools.pool_of(resource(**change)).enabled == enabled


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"cidr": "10.0.0.1/16"}, "CIDR"),
        ({"cidr": "nonsense\n"}, "CIDR"),
        ({"cidr": ""}, "CIDR"),
        ({"blockSize": 8}, "BlockSize"),
        ({"blockSize": 33}, "BlockSize"),
        ({"cidr": "fd00::/48", "blockSize": 26}, "BlockSize"),
        ({"blockSize": -1}, "BlockSize"),
    ],
)
def test_an_unusable_pool_is_named(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        pools.pool_of(resource("broken", spec))
    assert f"IPPool(broken).Spec.{field}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_pool_smaller_than_a_block_gives_nothing() -> None:
    assert not pools.pool_of(resource(spec={"cidr": "10.0.0.0/28"})).enabled


POOLS = [
    pool("a", "10.0.0.0/16"),
    pool("b", "10.1.0.0/16", node_selector="rack == '1'"),
    pool("c", "10.2.0.0/16", automatic=False),
    pool("d", "10.3.0.0/16", uses=("Tunnel",)),
    pool("e", "10.4.0.0/16", enabled=False),
    pool("f", "10.5.0.0/16", namespace_selector="has(x)"),
    pool("g", "10.6.0.0/16", block_size=31),
    pool("six", "fd00::/48", block_size=122),
]


@pytest.mark.parametrize(
    ("wish", "labels", "names"),
    [
        (Wish(4, "Workload", "n"), {}, "ag"),
        (Wish(4, "Workload", "n"), {"rack": "1"}, "abg"),
        (Wish(4, "Tunnel", "n"), {}, "adg"),
        (Wish(4, "Workload", "n", namespace_labels={"x": ""}), {}, "afg"),
        (Wish(4, "Workload", "n", ("10.2.0.0/16", "10.0.0.0/16", "10.1.0.0/16")), {}, "cab"),
    ],
)
def test_choosing(wish: Wish, labels: dict[str, str], names: str) -> None:
    assert "".join(p.name for p in pools.choose(POOLS, wish, labels)) == names


@pytest.mark.parametrize(
    ("of", "wish", "text"),
    [
        ([], Wish(4, "Workload", "n"), "cannot find a qualified ippool"),
        (POOLS[7:], Wish(4, "Workload", "n"), "cannot find a qualified ippool"),
        (POOLS[1:2], Wish(4, "Workload", "n"), "no configured Calico pools for node n"),
        (
            POOLS[3:4],
            Wish(4, "Workload", "n"),
            "cannot find a qualified ippool, no pools match the required use (Workload)",
        ),
        (
            POOLS,
            Wish(4, "Workload", "n", ("10.4.0.0/16",)),
            "the given pool (10.4.0.0/16) does not exist, or is not enabled",
        ),
        (
            POOLS,
            Wish(4, "LoadBalancer", "n", ("10.0.0.0/16",)),
            "cannot find a qualified ippool, no pools match the required use (LoadBalancer)",
        ),
    ],
)
def test_refusals(of: list[Pool], wish: Wish, text: str) -> None:
    with pytest.raises(IPAMError) as caught:
        pools.choose(of, wish, {})
    assert str(caught.value) == text


def test_names_and_cidrs_resolve_in_their_order() -> None:
    asked = ["b", "10.0.0.0/16", "10.9.9.9/24"]
    assert pools.resolve(asked, POOLS, 4) == ("10.1.0.0/16", "10.0.0.0/16", "10.9.9.0/24")
    assert pools.resolve(["six"], POOLS, 6) == ("fd00::/48",)


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("nobody", 4, 'error parsing pool "nobody": invalid CIDR address: nobody'),
        ("10.0.0.0/99", 4, 'error parsing pool "10.0.0.0/99": invalid CIDR address: 10.0.0.0/99'),
        ("10.0.0.0", 4, 'error parsing pool "10.0.0.0": invalid CIDR address: 10.0.0.0'),
        ("six", 4, '"fd00::" isn\'t a IPv4 address'),
        ("10.0.0.0/16", 6, '"10.0.0.0" isn\'t a IPv6 address'),
    ],
)
def test_what_does_not_resolve(name: str, version: int, text: str) -> None:
    with pytest.raises(IPAMError) as caught:
        pools.resolve([name], POOLS, version)
    assert str(caught.value) == text


def test_the_pool_of_an_address_or_a_block() -> None:
    assert pools.containing(POOLS, ip_network("10.1.2.0/26")) == POOLS[1]
    assert pools.containing(POOLS, ip_network("10.0.0.0/15")) is None
    assert pools.containing(POOLS, ip_network("fd00::/122")) == POOLS[7]


def test_malformed_reservations_are_named_and_the_rest_holds() -> None:
    spec = {"reservedCIDRs": ["10.0.0.0/30", " 10.0.0.9 ", "", "10.0.0.256", "x\ny", "10.0.1.1/24"]}
    one = codec.from_plain(IPReservation, {"kind": "IPReservation", "metadata": {"name": "r"}, "spec": spec})
    held, complaints = reserved_ranges([one])
    assert held.count_in(ip_network("10.0.0.0/16")) == 4 + 1 + 256
    assert len(complaints) == 2 and all("IPReservation r" in text for text in complaints)
    assert "\n" not in "".join(complaints)
