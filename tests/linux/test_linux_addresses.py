"""Addresses in a real kernel, as `ip` and pyroute2 see them."""

import errno
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.linux import addresses
from tortie.linux.addresses import Address

pytestmark = pytest.mark.kernel

MAC, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"


@pytest.fixture
def link(netns: Namespace) -> int:
    return netns.veth("a", "a-peer")[0]


def shown(ns: Namespace, device: str = "a") -> list[dict[str, Any]]:
    (found,) = ns.ip("address", "show", "dev", device)
    return [one for one in found["addr_info"] if not one["local"].startswith("fe80:")]


def test_addresses_come_and_go(netns: Namespace, link: int) -> None:
    netns.netlink.execute(
        addresses.add(link, "10.0.0.1/32", scope=addresses.SCOPE_LINK),
        addresses.add(link, "10.0.0.2/24"),
        addresses.add(link, "fd00::1/128", nodad=True),
    )
    view = [(one["local"], one["prefixlen"], one["scope"], one.get("nodad", False)) for one in shown(netns)]
    assert view == [
        ("10.0.0.1", 32, "link", False),
        ("10.0.0.2", 24, "global", False),
        ("fd00::1", 128, "global", True),
    ]
    ours = [one for one in addresses.dump(netns.netlink, ifindex=link) if not one.address.startswith("fe80")]
    assert [(one.cidr, one.scope, one.ifindex, one.family) for one in ours] == [
        ("10.0.0.1/32", 253, link, AF_INET),
        ("10.0.0.2/24", 0, link, AF_INET),
        ("fd00::1/128", 0, link, AF_INET6),
    ]
    assert ours[2].flags & addresses.FLAG_NODAD and not ours[2].flags & addresses.FLAG_TENTATIVE
    netns.netlink.execute(*(addresses.delete(link, one.cidr) for one in ours))
    assert shown(netns) == []


def test_adding_twice_succeeds_and_deleting_twice_says_it_is_gone(netns: Namespace, link: int) -> None:
    for cidr in ("10.0.0.1/32", "fd00::1/64"):
        netns.netlink.execute(addresses.add(link, cidr), addresses.add(link, cidr))
        results = netns.netlink.request([addresses.delete(link, cidr), addresses.delete(link, cidr)])
        assert results[0] is None
        assert results[1] is not None and results[1].errno == errno.EADDRNOTAVAIL
    assert shown(netns) == []


def test_an_address_needs_its_interface(netns: Namespace) -> None:
    with pytest.raises(KernelError) as caught:
        netns.netlink.execute(addresses.add(9999, "10.0.0.1/32"))
    assert caught.value.errno == errno.ENODEV
    assert addresses.dump(netns.netlink, ifindex=9999) == []


def test_dumps_are_filtered(netns: Namespace, link: int) -> None:
    netns.netlink.execute(addresses.add(link, "10.0.0.1/32"))
    everything = addresses.dump(netns.netlink)
    assert {one.ifindex for one in everything} == {1, link, netns.ifindex("a-peer")}
    for family in (AF_INET, AF_INET6):
        assert addresses.dump(netns.netlink, family) == [one for one in everything if one.family == family]
        assert addresses.dump(netns.netlink, family, link) == [
            one for one in everything if one.family == family and one.ifindex == link
        ]


def test_point_to_point_addresses_name_both_ends(netns: Namespace, link: int) -> None:
    netns.sh("ip address add 10.0.0.1 peer 10.0.0.2/32 dev a")
    netns.sh("ip address add fd00::1 peer fd00::2/128 dev a nodad")
    found = [one for one in addresses.dump(netns.netlink, ifindex=link) if one.peer]
    flags = addresses.FLAG_PERMANENT
    assert found == [
        Address("10.0.0.1", 32, link, 0, flags, "10.0.0.2"),
        Address("fd00::1", 128, link, 0, flags | addresses.FLAG_NODAD, "fd00::2"),
    ]


def pyroute2_addresses() -> set[tuple[object, ...]]:
    with IPRoute() as ipr:
        return {
            (
                one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS"),
                one["prefixlen"], one["index"], one["scope"], one.get_attr("IFA_FLAGS"),
            )
            for one in ipr.get_addr()
        }  # fmt: skip


def test_pyroute2_and_we_see_the_same_addresses(netns: Namespace, link: int) -> None:
    netns.netlink.execute(addresses.add(link, "10.0.0.1/24"), addresses.add(link, "10.0.0.2/24"))
    netns.netlink.execute(addresses.add(link, "fd00::1/64", nodad=True))
    ours = {
        (one.address, one.prefix, one.ifindex, one.scope, one.flags)
        for one in addresses.dump(netns.netlink)
        if not one.flags & addresses.FLAG_TENTATIVE
    }
    assert len(ours) >= 5 and ours <= netns.call(pyroute2_addresses)
    assert any(flags & addresses.FLAG_SECONDARY for *_, flags in ours)
