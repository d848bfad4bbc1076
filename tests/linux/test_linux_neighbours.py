"""Neighbour and forwarding entries in a real kernel, as `ip`, `bridge` and pyroute2 see them."""

import errno
import json
from collections.abc import Callable
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.netns_lab import Namespace
from tortie.linux import links, neighbours
from tortie.linux.links import Vxlan
from tortie.linux.neighbours import ForwardingEntry, Neighbour

pytestmark = pytest.mark.kernel

MAC, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"


@pytest.fixture
def link(netns: Namespace) -> int:
    return netns.veth("a", "a-peer")[0]


def settled(ns: Namespace, family: int = 0, ifindex: int = 0) -> list[Neighbour]:
    """Permanent entries; others come from the packets of address autoconfiguration, at any moment."""
    return [one for one in neighbours.dump(ns.netlink, family, ifindex) if one.permanent]


def test_permanent_entries_come_and_go(netns: Namespace, link: int) -> None:
    for address in ("10.0.0.9", "fd00::9"):
        netns.netlink.execute(neighbours.replace(link, address, MAC), neighbours.replace(link, address, MAC2))
        family = "-6" if ":" in address else "-4"
        assert netns.ip(family, "neigh") == [
            {"dst": address, "dev": "a", "lladdr": MAC2, "state": ["PERMANENT"]}
        ]
        (found,) = settled(netns, AF_INET6 if ":" in address else AF_INET, link)
        assert found == Neighbour(address, link, MAC2) and found.permanent
        results = netns.netlink.request([neighbours.delete(link, address), neighbours.delete(link, address)])
        assert results[0] is None
        assert results[1] is not None and results[1].errno == errno.ENOENT
    assert not settled(netns)


def test_a_learned_entry_becomes_permanent(netns: Namespace, link: int) -> None:
    netns.sh(f"ip neigh add 10.0.0.9 lladdr {MAC} dev a nud stale")
    (found,) = neighbours.dump(netns.netlink, AF_INET)
    assert (found.state, found.permanent) == (neighbours.STATE_STALE, False)
    netns.netlink.execute(neighbours.replace(link, "10.0.0.9", MAC2))
    assert settled(netns) == [Neighbour("10.0.0.9", link, MAC2)]


def test_neighbour_dumps_are_filtered(netns: Namespace, link: int) -> None:
    peer = netns.ifindex("a-peer")
    for index in (link, peer):
        netns.netlink.execute(
            neighbours.replace(index, "10.0.0.9", MAC), neighbours.replace(index, "fd00::9", MAC)
        )
    everything = settled(netns)
    assert len(everything) == 4
    assert settled(netns, AF_INET) == [one for one in everything if one.family == AF_INET]
    assert settled(netns, ifindex=peer) == [one for one in everything if one.ifindex == peer]
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
        """Without what comes and goes by itself: learned entries and multicast groups."""
        found = neighbours.dump_forwarding(netns.netlink, ifindex)
        return [one for one in found if one.permanent and not one.mac.startswith(("33:33", "01:00:5e"))]

    everything, of_port = permanent(), permanent(port)
    assert {one.ifindex for one in everything} == {vxlan, port}
    assert of_port and of_port == [one for one in everything if one.ifindex == port]
    macs = {one["mac"] for one in fdb(netns, "a") if one["state"] == "permanent"}
    assert macs >= {one.mac for one in of_port}
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
        assert ours and ours <= netns.call(pyroute2_neighbours, family)
    forwarding = {
        (one.dst, one.mac, one.ifindex, one.state, one.flags)
        for one in neighbours.dump_forwarding(netns.netlink)
    }
    assert len(forwarding) > 3 and forwarding <= netns.call(pyroute2_neighbours, neighbours.AF_BRIDGE)
