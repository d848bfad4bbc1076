"""Tracked connections are listed as they are, and single ones deleted."""

from collections.abc import Callable

import pytest

from tests.netns_lab import Namespace, eventually
from tortie.core.errors import KernelError
from tortie.linux import conntrack_table, route_lookup
from tortie.linux.conntrack_table import Connection, Ends

pytestmark = pytest.mark.kernel


def listed(ns: Namespace) -> dict[Ends, Connection]:
    """By the opener's ends."""

    def both() -> dict[Ends, Connection]:
        with conntrack_table.open_socket() as door:
            found = [one for version in (4, 6) for one in conntrack_table.dump(door, version)]
        assert len(found) == len({one.original for one in found})
        return {one.original: one for one in found}

    return ns.call(both)


def delete(ns: Namespace, *connections: Connection) -> None:
    def these() -> None:
        with conntrack_table.open_socket() as door:
            conntrack_table.delete(door, connections)

    ns.call(these)


def test_each_connection_is_read_and_deleted_by_itself(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    for options in (
        "-p udp -s 10.2.0.5 -d 10.9.9.9 --sport 1000 --dport 53",
        "-p udp -s 10.2.0.5 -d 10.9.9.9 --sport 1001 --dport 53",
        "-p tcp --state ESTABLISHED -s fd02::5 -d fd09::9 --sport 1000 --dport 80",
        "-p icmp -s 10.2.0.5 -d 10.9.9.9 --icmp-type 8 --icmp-code 0 --icmp-id 7",
        "-p tcp --state ESTABLISHED -s 10.9.9.7 -d 10.96.0.1 --sport 1 --dport 2 "
        "--reply-src 10.2.0.5 --reply-dst 10.9.9.7 --reply-port-src 3 --reply-port-dst 1",
    ):
        ns.sh(f"conntrack -I --timeout 100 {options}")
    found = listed(ns)
    first, second = (Ends("10.2.0.5", "10.9.9.9", port, 53) for port in (1000, 1001))
    six = Ends("fd02::5", "fd09::9", 1000, 80)
    service = Ends("10.9.9.7", "10.96.0.1", 1, 2)
    echo = Ends("10.2.0.5", "10.9.9.9", icmp=(8, 0))
    assert found.keys() == {first, second, six, service, echo}
    assert found[service].reply == Ends("10.2.0.5", "10.9.9.7", 3, 1)
    assert [found[one].version for one in (first, six)] == [4, 6]
    assert [found[one].protocol for one in (first, service, echo)] == [17, 6, 1]
    assert not found[first].expected
    delete(ns, found[first], found[service], found[six])
    assert listed(ns).keys() == {second, echo}
    delete(ns, *found.values())  # what is gone is as good as deleted
    assert listed(ns) == {}


def test_where_packets_go(make_netns: Callable[[], Namespace]) -> None:
    ns, other = make_netns(), make_netns()
    index, _ = ns.veth("eth0", "eth0", other)
    ns.sh("ip address add 172.16.0.1/24 dev eth0")
    ns.sh("ip address add fd16::1/64 dev eth0 nodad")

    def ask(address: str) -> route_lookup.Way:
        return route_lookup.lookup(ns.netlink, address)

    eventually(lambda: ask("fd16::1").local)  # the kernel adds it in its own time
    assert [ask(one) for one in ("172.16.0.9", "fd16::9")] == [route_lookup.Way(False, True, index)] * 2
    assert [ask(one).local for one in ("172.16.0.1", "127.0.0.9", "fd16::1")] == [True] * 3
    assert [ask(one).unicast for one in ("172.16.0.255", "ff02::1")] == [False] * 2
    with pytest.raises(KernelError):
        ask("10.0.0.1")
