"""Interfaces in a real kernel: create, change, delete, read; as `ip` and pyroute2 see them."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.netns_lab import Namespace, eventually
from tortie.core.errors import KernelError
from tortie.linux import addresses, links, neighbours, routes
from tortie.linux.links import Link, VethEnd, Vxlan

pytestmark = pytest.mark.kernel

MAC = "ee:ee:ee:ee:ee:ee"


def shown(ns: Namespace, name: str) -> dict[str, Any]:
    (link,) = ns.ip("-d", "link", "show", "dev", name)
    return dict(link)


def got(ns: Namespace, link: int | str) -> Link:
    found = links.get(ns.netlink, link)
    assert found is not None
    return found


def test_a_veth_is_born_with_each_end_in_its_place(make_netns: Callable[[], Namespace]) -> None:
    pod, host = make_netns(), make_netns()
    pair = links.create_veth(VethEnd("eth0"), VethEnd("cali1", host.fd, mac=MAC), mtu=1440, queues=2)
    pod.netlink.execute(pair, links.change("eth0", up=True))
    host.netlink.execute(links.change("cali1", up=True))
    inner, outer = shown(pod, "eth0"), shown(host, "cali1")
    assert (inner["mtu"], outer["mtu"]) == (1440, 1440)
    assert outer["address"] == MAC and inner["address"] != MAC
    assert (inner["num_tx_queues"], outer["num_rx_queues"]) == (2, 2)
    assert inner["linkinfo"]["info_kind"] == outer["linkinfo"]["info_kind"] == "veth"
    assert (inner["link_index"], outer["link_index"]) == (outer["ifindex"], inner["ifindex"])
    assert [link.name for link in links.dump(pod.netlink)] == ["lo", "eth0"]
    eth0, cali1 = got(pod, "eth0"), got(host, "cali1")
    assert (eth0.peer, cali1.peer) == (cali1.ifindex, eth0.ifindex)
    assert eth0.link_netnsid is not None and cali1.link_netnsid is not None
    eventually(lambda: pod.running("eth0") and host.running("cali1"))
    pod.netlink.execute(links.delete("eth0"))
    assert links.get(host.netlink, "cali1") is None, "the other end goes with it"


def test_one_queue_by_default(netns: Namespace) -> None:
    netns.netlink.execute(links.create_veth(VethEnd("a"), VethEnd("b")))
    assert shown(netns, "a")["num_tx_queues"] == shown(netns, "b")["num_rx_queues"] == 1
    a = got(netns, "a")
    assert (a.mtu, a.link_netnsid, a.up, a.running) == (1500, None, False, False)


def test_up_is_not_running(netns: Namespace) -> None:
    netns.netlink.execute(links.create_veth(VethEnd("a"), VethEnd("b")), links.change("a", up=True))
    assert got(netns, "a").up and not got(netns, "a").running
    netns.netlink.execute(links.change("b", up=True))
    eventually(lambda: netns.running("a"))
    netns.netlink.execute(links.change("b", up=False))
    eventually(lambda: not netns.running("a"))
    assert got(netns, "a").up and not got(netns, "b").up


def test_a_refused_veth_leaves_nothing(make_netns: Callable[[], Namespace]) -> None:
    pod, host = make_netns(), make_netns()
    host.netlink.execute(links.create_bridge("cali1"))
    (error,) = pod.netlink.request([links.create_veth(VethEnd("eth0"), VethEnd("cali1", host.fd))])
    assert error is not None and error.errno == errno.EEXIST
    assert links.get(pod.netlink, "eth0") is None


def test_every_property_can_be_changed(netns: Namespace) -> None:
    ns = netns
    ns.netlink.execute(links.create_bridge("br"))
    ns.netlink.execute(links.create_veth(VethEnd("a"), VethEnd("b")))
    br, a = ns.ifindex("br"), ns.ifindex("a")
    ns.netlink.execute(
        links.change("a", up=True, mac="02:00:00:00:00:02", mtu=1300, master=br, alias="pöd"),
    )
    link = shown(ns, "a")
    assert (link["address"], link["mtu"], link["master"]) == ("02:00:00:00:00:02", 1300, "br")
    assert link["ifalias"] == "pöd" and "UP" in link["flags"]
    ours = got(ns, a)
    assert (ours.mac, ours.mtu, ours.master, ours.alias, ours.up) == (
        "02:00:00:00:00:02",
        1300,
        br,
        "pöd",
        True,
    )
    ns.netlink.execute(links.change(a, up=False, master=0, alias=""))
    link = shown(ns, "a")
    assert "master" not in link and "ifalias" not in link and "UP" not in link["flags"]
    assert link["mtu"] == 1300, "what is not given stays"


def test_a_bridge_is_made_as_asked(netns: Namespace) -> None:
    netns.netlink.execute(links.create_bridge("br", mac="02:00:00:00:00:01", mtu=1400, up=True))
    bridge = shown(netns, "br")
    assert bridge["linkinfo"]["info_kind"] == got(netns, "br").kind == "bridge"
    assert (bridge["address"], bridge["mtu"]) == ("02:00:00:00:00:01", 1400) and "UP" in bridge["flags"]


def test_renaming(netns: Namespace) -> None:
    netns.netlink.execute(links.create_bridge("old"), links.create_bridge("other"))
    index = netns.ifindex("old")
    netns.netlink.execute(links.rename(index, "new.100"))
    assert got(netns, "new.100").ifindex == index and links.get(netns.netlink, "old") is None
    (error,) = netns.netlink.request([links.rename(index, "other")])
    assert error is not None and error.errno == errno.EEXIST
    assert got(netns, index).name == "new.100"


def test_vxlan_as_the_dataplane_wants_it(netns: Namespace) -> None:
    ns = netns
    parent, _ = ns.veth("eth0", "peer")
    wanted = Vxlan(4096, "10.0.0.1", parent)
    ns.netlink.execute(
        links.create_vxlan("vxlan.calico", wanted, mac="66:f9:37:c3:7e:94", mtu=1450, up=True),
        links.create_vxlan("vxlan-v6.calico", Vxlan(4096, "fd00::1", parent), mac="66:0f:35:f2:60:df"),
    )
    link = shown(ns, "vxlan.calico")
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data["link"]) == (4096, 4789, "10.0.0.1", "eth0")
    assert data["learning"] is False and "group" not in data
    assert (link["address"], link["mtu"]) == ("66:f9:37:c3:7e:94", 1450) and "UP" in link["flags"]
    assert got(ns, "vxlan.calico").vxlan == wanted
    assert shown(ns, "vxlan-v6.calico")["linkinfo"]["info_data"]["local6"] == "fd00::1"
    assert got(ns, "vxlan-v6.calico").vxlan == Vxlan(4096, "fd00::1", parent)


@pytest.mark.parametrize(
    "vxlan",
    [
        Vxlan(1),
        Vxlan(2, port=8472, learning=True),
        Vxlan(3, l2miss=True, gbp=True),
        Vxlan(0, metadata=True),
        Vxlan(5, "fd00::1"),
    ],
)
def test_vxlan_variants_read_back_as_written(netns: Namespace, vxlan: Vxlan) -> None:
    netns.netlink.execute(links.create_vxlan("vx", vxlan))
    assert got(netns, "vx").vxlan == vxlan


def test_a_multicast_vxlan_made_by_ip_is_read(netns: Namespace) -> None:
    parent, _ = netns.veth("eth0", "peer")
    netns.sh("ip link add vx type vxlan id 9 group 239.1.1.1 dev eth0 dstport 8472")
    assert got(netns, "vx").vxlan == Vxlan(9, None, parent, 8472, True, "239.1.1.1")


def test_getting_what_is_not_there(netns: Namespace) -> None:
    for link in ("nope", 9999, "", "a/b", "x" * 16, "\ud800"):
        assert links.get(netns.netlink, link) is None


def test_deleting_what_is_not_there(netns: Namespace) -> None:
    for link in ("nope", 9999):
        (error,) = netns.netlink.request([links.delete(link)])
        assert error is not None and error.errno == errno.ENODEV


def test_an_unknown_kind_is_refused_in_the_kernels_words(netns: Namespace) -> None:
    with pytest.raises(KernelError, match=r"create nokind x: .*Unknown device type"):
        netns.netlink.execute(links.create("x", "nokind"))


def test_names_of_any_bytes(netns: Namespace) -> None:
    names = ["été", "\udcff\udcfe", "a@b'd", "$(reboot)"]
    netns.netlink.execute(*(links.create_bridge(name) for name in names))
    assert {link.name for link in links.dump(netns.netlink)} == {"lo", *names}
    for name in names:
        assert got(netns, name).name == name
    netns.netlink.execute(*(links.delete(name) for name in names))
    assert [link.name for link in links.dump(netns.netlink)] == ["lo"]


def test_the_kernel_agrees_on_which_names_are_valid(netns: Namespace) -> None:
    """One byte at a time: what valid_name() allows can be given, what it refuses cannot."""
    netns.netlink.execute(links.create_bridge("br"))
    index = netns.ifindex("br")
    for byte in range(1, 256):
        name = "x" + bytes([byte]).decode("utf-8", "surrogateescape")
        if links.valid_name(name):
            netns.netlink.execute(links.rename(index, name))
            assert got(netns, index).name == name
        else:
            message = links.rename(index, "xY")
            forged = message._replace(body=message.body.replace(b"xY\0", bytes([ord("x"), byte, 0])))
            (error,) = netns.netlink.request([forged])
            assert error is not None and error.errno == errno.EINVAL, repr(name)


def test_a_name_is_never_taken_for_a_pattern(netns: Namespace) -> None:
    assert not links.valid_name("eth%d")
    with pytest.raises(KernelError, match="is not an interface name"):
        links.create_bridge("eth%d")


def pyroute2_links() -> list[tuple[object, ...]]:
    with IPRoute() as ipr:
        return [
            (
                link["index"], link.get_attr("IFLA_IFNAME"), link["flags"], link.get_attr("IFLA_MTU"),
                link.get_attr("IFLA_ADDRESS"), link.get_attr("IFLA_MASTER") or 0,
                link.get_attr("IFLA_LINK") or 0,
                link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
            )
            for link in ipr.get_links()
        ]  # fmt: skip


def test_pyroute2_and_we_see_the_same_links(netns: Namespace) -> None:
    ns = netns
    ns.netlink.execute(links.create_bridge("br", up=True), links.create_vxlan("vx", Vxlan(7)))
    ns.veth("a", "b")
    ns.netlink.execute(links.change("b", master=ns.ifindex("br")))
    eventually(lambda: all(link.running for link in links.dump(ns.netlink) if link.up))
    ours = {
        (one.ifindex, one.name, one.flags, one.mtu, one.mac, one.master, one.peer, one.kind)
        for one in links.dump(ns.netlink)
    }
    assert ours == set(ns.call(pyroute2_links))


def test_a_whole_pod_in_two_batches(make_netns: Callable[[], Namespace]) -> None:
    """What CNI does: links first, because an address needs the index; then all the rest at once."""
    pod, host = make_netns(), make_netns()
    pair = links.create_veth(VethEnd("eth0"), VethEnd("cali1", host.fd, mac=MAC), mtu=1440)
    pod.netlink.execute(pair, links.change("eth0", up=True))
    eth0, cali1 = pod.ifindex("eth0"), host.ifindex("cali1")
    gateway = "169.254.1.1"
    pod.netlink.execute(
        addresses.add(eth0, "10.2.0.5/32"),
        routes.replace_message(routes.Route(f"{gateway}/32", ifindex=eth0, scope=253)),
        routes.replace_message(routes.Route("0.0.0.0/0", ifindex=eth0, gateway=gateway)),
    )
    host.netlink.execute(
        links.change("cali1", up=True),
        routes.replace_message(routes.Route("10.2.0.5/32", ifindex=cali1, scope=253)),
        neighbours.replace(cali1, "10.2.0.5", got(pod, "eth0").mac),
    )
    eventually(lambda: pod.running("eth0") and host.running("cali1"))
    assert pod.ip("route") == [
        {"dst": "default", "gateway": gateway, "dev": "eth0", "flags": []},
        {"dst": gateway, "dev": "eth0", "scope": "link", "flags": []},
    ]
    assert host.ip("route") == [{"dst": "10.2.0.5", "dev": "cali1", "scope": "link", "flags": []}]
