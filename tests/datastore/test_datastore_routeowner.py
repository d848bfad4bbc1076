"""Exactly one owner for the routes of each kind of pool, whatever the two settings say."""

from itertools import product

import pytest

from tortie.datastore.routeowner import Encapsulation, Owner, encapsulation, owner
from tortie.datastore.types.ippool import IPPoolSpec

pytestmark = pytest.mark.unit

_PLAIN = IPPoolSpec(cidr="192.168.0.0/16")
_IPIP = IPPoolSpec(cidr="192.168.0.0/16", ipipMode="CrossSubnet")
_VXLAN = IPPoolSpec(cidr="192.168.0.0/16", vxlanMode="Always")
_SETTINGS = [None, "", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly", "Enabled", "nonsense"]


def test_kinds() -> None:
    assert [encapsulation(pool) for pool in (_PLAIN, _IPIP, _VXLAN)] == [
        Encapsulation.NONE,
        Encapsulation.IPIP,
        Encapsulation.VXLAN,
    ]
    never = IPPoolSpec(cidr="192.168.0.0/16", ipipMode="Never", vxlanMode="Never")
    both = IPPoolSpec(cidr="192.168.0.0/16", ipipMode="Always", vxlanMode="CrossSubnet")
    assert (encapsulation(never), encapsulation(both)) == (Encapsulation.NONE, Encapsulation.VXLAN)


@pytest.mark.parametrize(
    ("felix", "bgp", "plain", "ipip"),
    [
        (None, None, Owner.BGP, Owner.BGP),
        ("Disabled", "Enabled", Owner.BGP, Owner.BGP),
        ("Enabled", "Disabled", Owner.FELIX, Owner.FELIX),
        ("EnabledIPIPOnly", "EnabledNoEncapOnly", Owner.BGP, Owner.FELIX),
        ("EnabledNoEncapOnly", "EnabledIPIPOnly", Owner.FELIX, Owner.BGP),
        ("Enabled", None, Owner.FELIX, Owner.FELIX),
        ("EnabledIPIPOnly", None, Owner.BGP, Owner.FELIX),
        (None, "Disabled", Owner.FELIX, Owner.FELIX),
        (None, "EnabledNoEncapOnly", Owner.BGP, Owner.FELIX),
        ("Disabled", "Disabled", Owner.BGP, Owner.BGP),  # in Calico: no routes at all
        ("Enabled", "Enabled", Owner.BGP, Owner.BGP),  # in Calico: a fight
    ],
)
def test_pairs(felix: str | None, bgp: str | None, plain: Owner, ipip: Owner) -> None:
    assert (owner(_PLAIN, felix, bgp), owner(_IPIP, felix, bgp)) == (plain, ipip)


def test_bird_has_no_way_into_tunnels() -> None:
    for felix, bgp in product(_SETTINGS, _SETTINGS):
        assert owner(_IPIP, felix, bgp, "bird") is Owner.FELIX
        assert owner(_PLAIN, felix, bgp, "bird") is owner(_PLAIN, felix, bgp)


def test_vxlan_is_felixs_and_load_balancers_are_nobodys() -> None:
    service = IPPoolSpec(cidr="192.168.0.0/16", allowedUses=("LoadBalancer",))
    mixed = IPPoolSpec(cidr="192.168.0.0/16", allowedUses=("LoadBalancer", "Workload"))
    for felix, bgp in product(_SETTINGS, _SETTINGS):
        assert owner(_VXLAN, felix, bgp) is Owner.FELIX
        assert owner(service, felix, bgp) is Owner.NOBODY
        assert owner(mixed, felix, bgp) is owner(_PLAIN, felix, bgp) is not Owner.NOBODY
