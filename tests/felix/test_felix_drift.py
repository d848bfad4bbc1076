"""The driver against a real kernel: damage is repaired, and what is of others stays."""

import time
from collections.abc import Callable

import pytest

from tests.felix.driver_lab import Felix, ip_sets, only_iptables, standing
from tests.felix.node_lab import Node, comparable, pings
from tortie.felix.calc.model import Pool
from tortie.linux.routes import Route

pytestmark = pytest.mark.kernel


FOREIGN = """*filter
:KUBE-FORWARD - [0:0]
:DOCKER - [0:0]
-A FORWARD -j KUBE-FORWARD
-A FORWARD -o docker0 -j DOCKER
-A INPUT -p tcp --dport 22 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*nat
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A KUBE-POSTROUTING -j RETURN
COMMIT
"""


@only_iptables
def test_rules_of_others_stay_byte_for_byte(node: Node, make_felix: Callable[..., Felix]) -> None:
    node.ns.run("iptables-nft-restore", stdin=FOREIGN)
    theirs = foreign(node)
    a = node.pod("a")
    daemon = make_felix()
    daemon.add(a, "open")
    daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True)}
    daemon.apply()
    assert foreign(node) == theirs
    filter_rules = node.rules(4, "-t", "filter").splitlines()
    forward = [line for line in filter_rules if line.startswith("-A FORWARD")]
    assert "cali-FORWARD" in forward[0] and "0x10000/0x10000" in forward[-2]
    nat = [line for line in node.rules(4, "-t", "nat").splitlines() if line.startswith("-A POSTROUTING")]
    assert nat[-1].endswith("-j cali-POSTROUTING")
    daemon.remove(a)
    daemon.resync()
    assert foreign(node) == theirs


def foreign(node: Node) -> list[str]:
    return [line for line in comparable(node.rules()) if "cali" not in line and line[:1] == "-"]


DAMAGES = {  # dataplane -> what somebody else may do to its rules
    "iptables": (
        "iptables-nft -F",
        "iptables-nft -t nat -F",
        "iptables-nft -F cali-from-wl-dispatch",
        "iptables-nft -I FORWARD -j ACCEPT",
        "iptables-nft -t raw -D PREROUTING 1",
    ),
    "nftables": (
        "nft flush ruleset",
        "nft flush table ip calico",
        "nft delete table ip6 calico",
        "nft flush chain ip calico filter-cali-from-wl-dispatch",
        "nft flush map ip calico filter-cali-to-wl-dispatch",
        "nft flush set ip calico cali40masq-ipam-pools",
        "nft insert rule ip calico filter-FORWARD accept",
        "nft flush table arp calico-arp",
    ),
}


def test_a_flush_by_somebody_else_is_repaired(
    node: Node, make_felix: Callable[..., Felix], dataplane: str
) -> None:
    daemon = make_felix()
    (a, b), stranger = daemon.open_pair(), node.pod("stranger")
    daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True)}
    daemon.apply()
    stranger.cni_route()
    good = standing(node)
    assert not stranger.reaches(a.v4)
    for damage in DAMAGES[dataplane]:
        node.ns.sh(damage)
        assert standing(node) != good, damage
        assert daemon.resync(), (damage, daemon.driver.failures())
        if dataplane == "iptables":  # where a rule of others is theirs to take away
            node.ns.run("iptables-nft", "-D", "FORWARD", "-j", "ACCEPT", check=False)
        assert standing(node) == good, damage
        assert a.reaches(b.v4, within=60) and not stranger.reaches(a.v4)


@only_iptables
def test_drift_of_every_kind_is_repaired(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = make_felix()
    daemon.add(a, "open", mac="aa:bb:cc:dd:ee:ff")
    daemon.state.blackholes = frozenset(["10.65.0.0/26"])
    daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True)}
    daemon.apply()

    def picture() -> list[str]:
        keys = (
            "ipv4.conf.calia.proxy_arp",
            "ipv6.conf.calia.proxy_ndp",
            "ipv4.ip_forward",
            "ipv6.conf.all.forwarding",
        )
        values = [node.ns.sh(f"sysctl -n net.{key}") for key in keys]
        neighbours = node.ns.sh("ip neigh show nud permanent dev calia")
        return [*node.routes(), *ip_sets(node), neighbours, *values]

    good = picture()
    for damage in (
        f"ip route del {a.v4}/32 dev calia",
        f"ip -6 route del {a.v6}/128 dev calia",
        "ip route del blackhole 10.65.0.0/26",
        f"ip route replace {a.v4}/32 via 172.16.0.254",
        "ip route add 10.65.7.7/32 dev calia",
        "ip route add blackhole 10.99.0.0/24 proto 80",
        f"ip neigh del {a.v4} dev calia",
        "ip neigh add 10.65.0.99 lladdr 00:00:00:00:00:01 dev calia nud permanent",
        "sysctl -qw net.ipv4.conf.calia.proxy_arp=0",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "ipset add cali40masq-ipam-pools 1.0.0.0/8",
        "ipset del cali40masq-ipam-pools 10.65.0.0/16",
        "ipset create cali40stray hash:net",
    ):
        node.ns.sh(damage)
        assert picture() != good, damage
        assert daemon.resync() or daemon.settle(), damage
        assert picture() == good, damage


@only_iptables
def test_routes_of_others_are_never_touched(node: Node, make_felix: Callable[..., Felix]) -> None:
    for route in (
        "10.9.0.0/24 via 172.16.0.254 proto 186",
        "blackhole 10.8.0.0/26 proto 186",
        "10.7.0.0/24 dev eth0 proto 12",
        "10.6.0.1/32 dev lo proto 3",
    ):
        node.ns.sh(f"ip route add {route}")
    before = node.routes()
    a = node.pod("a")
    daemon = make_felix()
    daemon.add(a, "open")
    daemon.apply()
    daemon.remove(a)
    daemon.resync()
    assert [line for line in node.routes() if "calia" not in line] == before


@only_iptables
def test_a_route_that_cni_just_made_is_left_alone_for_a_while(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    daemon = make_felix()
    daemon.apply()
    a = node.pod("a")
    a.cni_route()
    daemon.stopped = time.monotonic()
    daemon.driver.forget()
    daemon.apply()
    assert f"{a.v4} dev calia scope link" in node.routes()
    daemon.skew += 5
    daemon.driver.forget()
    daemon.apply()
    assert f"{a.v4} dev calia scope link" in node.routes()
    daemon.skew += 6
    daemon.driver.forget()
    daemon.apply()
    assert not [line for line in node.routes() if a.v4 in line]


def test_what_events_tell_before_the_first_reading_is_not_kept(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    """The datastore may be away for days meanwhile; what is read then is how it stands."""
    daemon = make_felix()
    a = node.pod("a")
    a.cni_route()
    index = node.ns.ifindex("calia")
    for exists in (True, False, True, False):
        assert daemon.driver.route_seen(Route("10.65.9.9/32", ifindex=index, scope=253, protocol=80), exists)
        daemon.driver.interface_gone(index)
        daemon.driver.forget()
    assert not daemon.driver._news
    daemon.add(a, "open")
    assert daemon.apply()
    assert pings(node.ns, a.v4, within=60)
