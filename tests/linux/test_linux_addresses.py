"""Addresses and neighbours in a real kernel, as `ip`, `bridge` and pyroute2 see them."""

import errno
import json
from collections.abc import Callable
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.linux import addresses, links, neighbours
from tortie.linux.addresses import Address
from tortie.linux.links import Vxlan
from tortie.linux.neighbours import ForwardingEntry, Neighbour

pytestmark = pytest.mark.kernel

MAC, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"


@pytest.fixture
def link(netns: Namespace) -> int:
    return netns.veth("a", "a-peer")[0]


def shown(ns: Namespace, device: str = "a") -> list[dict[str, Any]]:
    (found,) = ns.ip("address", "show", "dev", device)
    return [one for one in found["addr_info"] if not one["local"].startswith("fe80:")]


# --- addresses ----------------------------------------------------------------------------------


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


# --- neighbours ---------------------------------------------------------------------------------


def test_permanent_entries_come_and_go(netns: Namespace, link: int) -> None:
    for address in ("10.0.0.9", "fd00::9"):
        netns.netlink.execute(neighbours.replace(link, address, MAC), neighbours.replace(link, address, MAC2))
        family = "-6" if ":" in address else "-4"
        assert netns.ip(family, "neigh") == [
            {"dst": address, "dev": "a", "lladdr": MAC2, "state": ["PERMANENT"]}
        ]
        (found,) = neighbours.dump(netns.netlink, AF_INET6 if ":" in address else AF_INET, link)
        assert found == Neighbour(address, link, MAC2) and found.permanent
        results = netns.netlink.request([neighbours.delete(link, address), neighbours.delete(link, address)])
        assert results[0] is None
        assert results[1] is not None and results[1].errno == errno.ENOENT
    assert neighbours.dump(netns.netlink) == []


def test_a_learned_entry_becomes_permanent(netns: Namespace, link: int) -> None:
    netns.sh(f"ip neigh add 10.0.0.9 lladdr {MAC} dev a nud stale")
    (found,) = neighbours.dump(netns.netlink)
    assert (found.state, found.permanent) == (neighbours.STATE_STALE, False)
    netns.netlink.execute(neighbours.replace(link, "10.0.0.9", MAC2))
    assert neighbours.dump(netns.netlink) == [Neighbour("10.0.0.9", link, MAC2)]


def test_proxy_entries_come_and_go(netns: Namespace, link: int) -> None:
    netns.netlink.execute(
        neighbours.replace_proxy(link, "10.0.0.9"),
        neighbours.replace_proxy(link, "fd00::9"),
        neighbours.replace_proxy(link, "fd00::9"),
        neighbours.replace(link, "10.0.0.8", MAC),
    )
    shown_by_ip = [(one["dst"], one["dev"]) for one in netns.ip("neigh", "show", "proxy")]
    assert shown_by_ip == [("10.0.0.9", "a"), ("fd00::9", "a")]
    found = neighbours.dump(netns.netlink, proxy=True)
    assert [(one.address, one.ifindex, one.flags) for one in found] == [
        ("10.0.0.9", link, neighbours.FLAG_PROXY),
        ("fd00::9", link, neighbours.FLAG_PROXY),
    ]
    assert neighbours.dump(netns.netlink, AF_INET6, proxy=True) == found[1:]
    assert [one.address for one in neighbours.dump(netns.netlink)] == ["10.0.0.8"]
    netns.netlink.execute(*(neighbours.delete_proxy(link, one.address) for one in found))
    assert netns.ip("neigh", "show", "proxy") == []
    (error,) = netns.netlink.request([neighbours.delete_proxy(link, "fd00::9")])
    assert error is not None and error.errno == errno.ENOENT


def test_neighbour_dumps_are_filtered(netns: Namespace, link: int) -> None:
    peer = netns.ifindex("a-peer")
    for index in (link, peer):
        netns.netlink.execute(
            neighbours.replace(index, "10.0.0.9", MAC), neighbours.replace(index, "fd00::9", MAC)
        )
    everything = neighbours.dump(netns.netlink)
    assert len(everything) == 4
    assert neighbours.dump(netns.netlink, AF_INET) == [one for one in everything if one.family == AF_INET]
    assert neighbours.dump(netns.netlink, ifindex=peer) == [one for one in everything if one.ifindex == peer]
    assert neighbours.dump(netns.netlink, ifindex=9999) == []


# --- forwarding entries ---------------------------------------------------------------------------


@pytest.fixture
def vxlan(netns: Namespace) -> int:
    netns.netlink.execute(links.create_vxlan("vx", Vxlan(4096, "10.0.0.1"), up=True))
    return netns.ifindex("vx")


def fdb(ns: Namespace, device: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ns.run("bridge", "-j", "fdb", "show", "dev", device))
    return found


def test_forwarding_entries_come_and_go(netns: Namespace, vxlan: int) -> None:
    netns.netlink.execute(
        neighbours.replace_forwarding(vxlan, MAC, "10.9.9.9"),
        neighbours.replace_forwarding(vxlan, MAC, "10.9.9.8"),
        neighbours.replace_forwarding(vxlan, MAC2, "10.9.9.7"),
    )
    assert sorted((one["mac"], one["dst"], one["state"], one["flags"]) for one in fdb(netns, "vx")) == [
        (MAC, "10.9.9.8", "permanent", ["self"]),
        (MAC2, "10.9.9.7", "permanent", ["self"]),
    ]
    found = sorted(neighbours.dump_forwarding(netns.netlink, vxlan), key=lambda one: one.mac)
    assert found == [ForwardingEntry(MAC, vxlan, "10.9.9.8"), ForwardingEntry(MAC2, vxlan, "10.9.9.7")]
    assert all(one.permanent for one in found)
    netns.netlink.execute(
        neighbours.delete_forwarding(vxlan, MAC), neighbours.delete_forwarding(vxlan, MAC2, "10.9.9.7")
    )
    assert not neighbours.dump_forwarding(netns.netlink, vxlan) and not fdb(netns, "vx")
    (error,) = netns.netlink.request([neighbours.delete_forwarding(vxlan, MAC)])
    assert error is not None and error.errno == errno.ENOENT


def test_forwarding_dumps_are_of_one_device_or_all(netns: Namespace, vxlan: int) -> None:
    netns.netlink.execute(links.create_bridge("br", up=True))
    port, _ = netns.veth("a", "a-peer")
    netns.netlink.execute(links.change("a", master=netns.ifindex("br")))
    netns.netlink.execute(neighbours.replace_forwarding(vxlan, MAC, "10.9.9.9"))

    def permanent(ifindex: int = 0) -> list[ForwardingEntry]:
        """The bridge learns others at any moment, from the packets of address autoconfiguration."""
        return [one for one in neighbours.dump_forwarding(netns.netlink, ifindex) if one.permanent]

    everything, of_port = permanent(), permanent(port)
    assert {one.ifindex for one in everything} > {vxlan, port}
    assert of_port and of_port == [one for one in everything if one.ifindex == port]
    assert len(of_port) == len([one for one in fdb(netns, "a") if one["state"] == "permanent"])
    assert neighbours.dump_forwarding(netns.netlink, 9999) == []


def pyroute2_neighbours(family: int) -> set[tuple[object, ...]]:
    with IPRoute() as ipr:
        return {
            (one.get_attr("NDA_DST"), one.get_attr("NDA_LLADDR"), one["ifindex"], one["state"], one["flags"])
            for one in ipr.get_neighbours(family=family)
        }


def test_pyroute2_and_we_see_the_same_neighbours(netns: Namespace, link: int, vxlan: int) -> None:
    netns.netlink.execute(
        neighbours.replace(link, "10.0.0.9", MAC),
        neighbours.replace(link, "fd00::9", MAC),
        neighbours.replace_forwarding(vxlan, MAC, "10.9.9.9"),
    )
    views: list[tuple[int, Callable[[], Any]]] = [
        (AF_INET, lambda: neighbours.dump(netns.netlink, AF_INET)),
        (AF_INET6, lambda: neighbours.dump(netns.netlink, AF_INET6)),
    ]
    for family, dump in views:
        ours = {(one.address, one.mac, one.ifindex, one.state, one.flags) for one in dump()}
        assert ours and ours == netns.call(pyroute2_neighbours, family)
    forwarding = {
        (one.dst, one.mac, one.ifindex, one.state, one.flags)
        for one in neighbours.dump_forwarding(netns.netlink)
    }
    assert forwarding == netns.call(pyroute2_neighbours, neighbours.AF_BRIDGE)
