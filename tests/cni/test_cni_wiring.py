"""The kernel edge by itself: what is left when a step fails, whose interface is whose, MACs."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.netns_lab import Namespace
from tests.support.cni import entered
from tortie.cni import wiring
from tortie.cni.interface import HOST_MAC, Pair
from tortie.core.errors import KernelError
from tortie.linux import links
from tortie.linux.links import VethEnd

pytestmark = pytest.mark.kernel

MakeNetns = Callable[[], Namespace]
PAIR = Pair("cali1", "eth0", ("10.0.0.1", "fd00::1"), alias="net/c1/eth0", mtu=1400)


def build(host: Namespace, container: Namespace, pair: Pair = PAIR, *, fresh: bool = False) -> str:
    with entered(host):
        return wiring.build(pair, container.fd, fresh=fresh)


def names(where: Namespace) -> list[str]:
    return [link.name for link in links.dump(where.netlink) if link.name != "lo"]


@pytest.mark.parametrize(
    "change",
    [
        {"container_name": "x" * 16},
        {"host_name": "x" * 16},
        {"container_name": "lo"},
        {"routes": ("10.0.0.0/8", "10.0.0.0/8")},
        {"routes": ("10.0.0.1/8",)},
        {"addresses": ("10.0.0.1", "nonsense")},
        {"mac": "02:00"},
        {"mtu": 70_000},
        {"alias": "x" * 256},
    ],
)
def test_a_step_that_fails_leaves_nothing(make_netns: MakeNetns, change: dict[str, object]) -> None:
    host, container = make_netns(), make_netns()
    with pytest.raises(KernelError):
        build(host, container, replace(PAIR, **change))  # type: ignore[arg-type]
    assert names(host) == [] and names(container) == []


def test_a_fresh_pair_replaces_nothing(make_netns: MakeNetns) -> None:
    host, one, two = make_netns(), make_netns(), make_netns()
    build(host, one, fresh=True)
    with pytest.raises(KernelError) as caught:
        build(host, two, replace(PAIR, alias="net/c1/net1"), fresh=True)
    assert caught.value.errno == errno.EEXIST and names(two) == []
    found = links.get(host.netlink, "cali1")
    assert found is not None and found.alias == PAIR.alias and names(one) == ["eth0"]


@pytest.mark.parametrize("after", range(5))
def test_a_build_that_nobody_waits_for_leaves_nothing_but_what_is_newer(
    make_netns: MakeNetns, after: int
) -> None:
    """A newer sandbox of the pod has replaced it under the same name, and has its address."""
    host, one, two = make_netns(), make_netns(), make_netns()
    asked: list[str] = []

    def wanted() -> bool:
        if len(asked) == after:
            wiring.build(newer, two.fd)
        asked.append("")
        return len(asked) <= after

    newer = replace(PAIR, alias="net/c2/eth0")
    with entered(host), pytest.raises(KernelError) as caught:
        wiring.build(PAIR, one.fd, wanted)
    assert caught.value.errno == errno.ECANCELED and len(asked) == after + 1
    assert names(host) == ["cali1"] and names(one) == [] and names(two) == ["eth0"]
    found = links.get(host.netlink, "cali1")
    assert found is not None and found.alias == newer.alias and host.ip("route")


def test_an_address_in_use_leaves_the_other_pod_alone(make_netns: MakeNetns) -> None:
    host, one, two = make_netns(), make_netns(), make_netns()
    build(host, one)
    before = host.ip("route")
    with pytest.raises(KernelError) as caught:
        build(host, two, replace(PAIR, host_name="cali2"))
    assert caught.value.errno == errno.EEXIST and "Iface: cali1" in str(caught.value)
    assert names(host) == ["cali1"] and names(two) == [] and host.ip("route") == before


def test_the_very_same_route_is_no_conflict(make_netns: MakeNetns) -> None:
    """Felix may have been faster with it."""
    host, container = make_netns(), make_netns()
    build(host, container)
    index = host.ifindex("cali1")
    with entered(host):
        for _ in range(2):
            wiring._add_host_routes(host.netlink, PAIR, index)
    assert [route["dst"] for route in host.ip("route")] == ["10.0.0.1"]


def test_a_host_end_with_another_mac_gets_ours(make_netns: MakeNetns) -> None:
    host = make_netns()
    host.netlink.execute(links.create_veth(VethEnd("cali1"), VethEnd("other")))
    assert wiring._ensure_mac(host.netlink, "cali1").mac == HOST_MAC


def test_cut_by_mark_needs_no_container(make_netns: MakeNetns) -> None:
    host, container = make_netns(), make_netns()
    build(host, container)
    with entered(host):
        doomed = wiring.cut(("cali1",), PAIR.alias, None, "eth0")
        assert doomed is not None and not doomed.inside
        assert not host.ip("route") and names(host) == ["cali1"]
        wiring.delete(doomed, None)
        wiring.delete(doomed, None)
        assert wiring.cut(("cali1",), PAIR.alias, container.fd, "eth0") is None
    assert names(host) == [] and names(container) == []


def test_cut_of_another_mark_looks_inside_only(make_netns: MakeNetns) -> None:
    host, old, new = make_netns(), make_netns(), make_netns()
    build(host, new, replace(PAIR, alias="net/new/eth0"))
    old.veth("eth0", "elsewhere")
    with entered(host):
        doomed = wiring.cut(("cali1",), "net/old/eth0", old.fd, "eth0")
        assert doomed is not None and doomed.inside
        wiring.delete(doomed, old.fd)
        assert wiring.cut(("cali1",), "net/old/eth0", None, "eth0") is None
    assert names(old) == [] and names(host) == ["cali1"] and names(new) == ["eth0"]


def test_what_check_sees(make_netns: MakeNetns) -> None:
    host, container = make_netns(), make_netns()
    mac = build(host, container)
    with entered(host):
        seen = wiring.inspect("cali1", container.fd, "eth0")
        nothing = wiring.inspect("cali2", container.fd, "eth1")
    assert seen.container is not None and seen.host is not None
    assert (seen.container.mac, seen.container.peer) == (mac, seen.host.ifindex)
    assert {"10.0.0.1/32", "fd00::1/128"} <= set(seen.addresses)
    assert {"10.0.0.1/32", "fd00::1/128"} <= {route.dst for route in seen.host_routes}
    assert nothing.container is None and nothing.host is None and not nothing.addresses


def test_a_second_interface_beside_the_first(make_netns: MakeNetns) -> None:
    host, container = make_netns(), make_netns()
    build(host, container, replace(PAIR, addresses=("10.0.0.1",)))
    second = Pair("cali2", "net1", ("10.0.0.2",), routes=("10.0.0.0/8",))
    with pytest.raises(KernelError):  # both would have a route to 169.254.1.1
        build(host, container, second)
    assert names(container) == ["eth0"]


def test_no_descriptor_is_left_open(make_netns: MakeNetns) -> None:
    host, container = make_netns(), make_netns()
    before = len(os.listdir("/proc/self/fd"))
    build(host, container)
    with entered(host):
        doomed = wiring.cut(("cali1",), PAIR.alias, container.fd, "eth0")
        assert doomed is not None
        wiring.delete(doomed, container.fd)
    assert len(os.listdir("/proc/self/fd")) <= before  # what others left may go meanwhile
