"""Pod subnets in kubeadm's configuration."""

import pytest

from tortie.node.kubeadm import subnets_in

pytestmark = pytest.mark.unit

CONFIGURATION = """\
kind: ClusterConfiguration
networking:
  dnsDomain: cluster.local
  podSubnet: {}
  serviceSubnet: 10.96.0.0/12
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("10.244.0.0/16", ["10.244.0.0/16"]),
        ('"10.244.1.0/16,fd00:10::/56"', ["10.244.0.0/16", "fd00:10::/56"]),
        ("fd00:10::/56, 10.1.0.0/16", ["fd00:10::/56", "10.1.0.0/16"]),
        ("10.1.0.0/16,10.2.0.0/16", ["10.1.0.0/16"]),
        ("10.1.0.0/99,nonsense", []),
        ('""', []),
    ],
)
def test_the_first_of_each_family_counts(given: str, expected: list[str]) -> None:
    assert subnets_in([CONFIGURATION.format(given)]) == expected


def test_without_a_subnet_there_is_none() -> None:
    assert subnets_in([]) == subnets_in(["kind: ClusterStatus\n"]) == []
