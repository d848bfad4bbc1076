"""Whose routes are felix's because WireGuard leads to them."""

import pytest
from msgspec import structs

from tests.confd.confd_cases import cluster, node
from tortie.confd.cluster import view
from tortie.datastore.types.node import NodeStatus

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("keys", "reached"),
    [(("a", "b", "c"), {"a", "b", "c"}), (("a", "b", "b"), {"a"}), (("", "", ""), {"a", "b", "c"})],
)
def test_a_node_whose_key_another_claims_is_reached_without_it(
    keys: tuple[str, ...], reached: set[str]
) -> None:
    """Felix does not encrypt for it, so BGP must lead there."""
    nodes = [
        structs.replace(
            node(name, f"10.0.0.{number}/24", wireguard=f"10.9.0.{number}"),
            status=NodeStatus(wireguardPublicKey=key),
        )
        for number, (name, key) in enumerate(zip("abc", keys, strict=True), 1)
    ]
    found = view(cluster(*nodes), "a", "", [])
    assert {name for name, one in found.nodes.items() if 4 in one.wireguard} == reached
