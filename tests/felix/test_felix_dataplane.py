"""The driver against a real kernel: packets between pods, what stands, endpoints that come and go."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from random import Random
from typing import Any

import pytest

from tests.felix.driver_lab import Felix, ip_sets, only_iptables, picture, standing
from tests.felix.node_lab import Node, Pod, comparable, pings, udp_sees
from tests.netns_lab import eventually
from tortie.felix.calc.graph import Touched
from tortie.felix.calc.model import Members, Pool, Profile, Rule, Side
from tortie.felix.rules import ir
from tortie.felix.rules.settings import Settings

pytestmark = pytest.mark.kernel


# --- traffic ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataplane", "backend"), [("iptables", "nft"), ("iptables", "legacy"), ("nftables", "nft")]
)
def test_the_truth_about_who_reaches_whom(node: Node, make_felix: Callable[..., Felix], backend: str) -> None:
    """Open, without profile, with a missing profile, unknown to felix: only the open reach each other."""
    pods = {name: node.pod(name) for name in ("open1", "open2", "bare", "missing", "unknown")}
    daemon = make_felix(backend=backend)
    for name, profiles in (("open1", ["open"]), ("open2", ["open"]), ("bare", []), ("missing", ["nowhere"])):
        daemon.add(pods[name], *profiles)
    assert daemon.apply(), daemon.driver.failures()
    pairs = [pair for pair in permutations(pods, 2) if {"open1", "open2"} & set(pair)]
    for family in ("v4", "v6"):
        with ThreadPoolExecutor(len(pairs)) as pool:
            targets = [getattr(pods[other], family) for _, other in pairs]
            answers = pool.map(Pod.reaches, [pods[one] for one, _ in pairs], targets)
            reached = {pair for pair, answer in zip(pairs, answers, strict=True) if answer}
        assert reached == {("open1", "open2"), ("open2", "open1")}, family


def test_profiles_decide_by_direction_protocol_and_set(node: Node, make_felix: Callable[..., Felix]) -> None:
    a, b, c = (node.pod(name) for name in "abc")
    daemon = make_felix()
    daemon.state.sets["s:friends"] = Members("net", {a.v4}, {a.v6})
    daemon.state.profiles["picky"] = Profile(
        "picky", (Rule("allow", src=Side(sets=("s:friends",))),), (Rule("allow"),)
    )
    daemon.add(a, "open")
    daemon.add(b, "picky")
    daemon.add(c, "open")
    assert daemon.apply(), daemon.driver.failures()
    for target in (b.v4, b.v6):
        assert a.reaches(target, within=60) and not c.reaches(target)
    daemon.state.sets["s:friends"].v4.add(c.v4)
    assert daemon.apply(Touched(sets={"s:friends"}))
    assert c.reaches(b.v4, within=60) and not c.reaches(b.v6)


def test_what_leaves_the_pool_is_masqueraded(
    node: Node, make_felix: Callable[..., Felix], dataplane: str
) -> None:
    daemon = make_felix()
    a, b = daemon.open_pair()
    daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True), "fd65::/64": Pool("fd65::/64", True)}
    assert daemon.apply()
    assert udp_sees(node.outside, a.ns, "172.16.0.254") == "172.16.0.1"
    assert udp_sees(node.outside, a.ns, "fd16::fe") == "fd16::1"
    assert udp_sees(b.ns, a.ns, b.v4) == a.v4
    if dataplane == "iptables":
        members = node.ns.sh("ipset save")
        assert "add cali40masq-ipam-pools 10.65.0.0/16" in members
        assert "add cali60network-ip-pools fd65::/64" in members


def test_a_forged_source_does_not_get_out(
    node: Node, make_felix: Callable[..., Felix], dataplane: str
) -> None:
    daemon = make_felix()
    a, b = daemon.open_pair()
    daemon.apply()
    assert a.reaches(b.v4, within=60)
    a.ns.sh("ip address add 10.65.9.9/32 dev eth0")
    assert not pings(a.ns, b.v4, source="10.65.9.9")
    assert not node.ns.run("conntrack", "-L", check=False).count("10.65.9.9"), "it was seen before tracking"
    if dataplane == "iptables":
        drops = [line for line in node.rules(4, "-t", "raw", "-c").splitlines() if "rpfilter" in line]
        assert not drops[0].startswith("[0:0]")


def test_the_host_answers_pods_only_as_configured(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = make_felix(settings=Settings(endpoint_to_host=ir.ACCEPT))
    daemon.add(a, "open")
    daemon.apply()
    assert a.reaches("172.16.0.1", within=60)
    strict = make_felix()
    strict.add(a, "open")
    strict.apply()
    assert not a.reaches("172.16.0.1")
    assert a.reaches("172.16.0.254") is False, "no masquerading, no way back"
    assert pings(node.ns, a.v4, within=60), "the host may speak to its pods all the same"


def test_with_only_the_guard_pods_are_cut_off_and_the_host_is_not(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    a, b = node.pod("a"), node.pod("b")
    for pod in (a, b):
        pod.cni_route()
    node.ns.sh("sysctl -qw net.ipv4.ip_forward=1")
    assert a.reaches(b.v4, within=60), "before felix ever ran, nothing keeps them apart"
    daemon = make_felix()
    daemon.guard()
    assert not a.reaches(b.v4)
    assert not a.reaches("172.16.0.1")
    assert pings(node.ns, "172.16.0.254", within=60)
    before = standing(node)
    make_felix().guard()
    assert standing(node) == before
    daemon.add(a, "open")
    daemon.add(b, "open")
    assert daemon.apply()
    assert a.reaches(b.v4, within=60)


def test_the_guard_changes_nothing_where_either_dataplane_stands(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    daemon = make_felix()
    a, b = daemon.open_pair()
    daemon.apply()
    before = picture(node), comparable(node.rules(4, "-c"))
    for nftables in (True, False):
        make_felix(nftables=nftables).guard()
    assert (picture(node), comparable(node.rules(4, "-c"))) == before
    assert a.reaches(b.v4, within=60)


@only_iptables
def test_the_guard_leaves_what_it_does_not_need(node: Node, make_felix: Callable[..., Felix]) -> None:
    """After a flush while felix was away only filtering is restored; the rest waits for the full picture."""
    a = node.pod("a")
    daemon = make_felix()
    daemon.add(a, "open")
    daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True)}
    daemon.apply()
    nat = comparable(node.rules(4, "-t", "nat"))
    node.ns.sh("iptables-nft -F")
    make_felix().guard()
    assert comparable(node.rules(4, "-t", "nat")) == nat
    assert ":cali-tw-calia " in node.rules()
    assert not pings(node.outside, a.v4)


# --- what stands in the kernel --------------------------------------------------------------------


@only_iptables
def test_routes_read_like_the_ones_everybody_knows(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    a.cni_route()
    daemon = make_felix()
    daemon.add(a, "open", mac="aa:bb:cc:dd:ee:ff")
    daemon.state.blackholes = frozenset(["10.65.0.0/26", "fd65::/122"])
    daemon.apply()
    assert f"{a.v4} dev calia scope link" in node.routes()
    assert f"{a.v6} dev calia metric 1024 pref medium" in node.routes()
    assert "blackhole 10.65.0.0/26 proto 80" in node.routes()
    assert "blackhole fd65::/122 dev lo proto 80 metric 1024 pref medium" in node.routes()
    (entry,) = node.ns.ip("neigh", "show", "dev", "calia", "nud", "permanent")
    assert (entry["dst"], entry["lladdr"]) == (a.v4, "aa:bb:cc:dd:ee:ff")


@only_iptables
def test_a_pod_has_one_neighbour_which_is_the_host(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    node.ns.sh("sysctl -qw net.ipv4.conf.calia.proxy_arp=0")
    daemon = make_felix()
    daemon.add(a, "open")
    daemon.apply()
    assert node.ns.sh("sysctl -n net.ipv4.conf.calia.proxy_arp").strip() == "1"
    a.reaches("1.1.1.1")
    (entry,) = [one for one in a.ns.ip("neigh") if one["dst"] == "169.254.1.1"]
    assert entry["lladdr"] == "ee:ee:ee:ee:ee:ee"


@only_iptables
def test_a_route_that_cni_made_is_adopted_not_rewritten(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    a.cni_route()
    daemon = make_felix()
    daemon.add(a, "open")
    with_monitor = node.ns.socket(0x40)
    daemon.apply()
    told: list[Any] = []
    try:
        while True:
            told += with_monitor.receive()
    except BlockingIOError:
        pass
    assert told == [], "the kernel saw no change of IPv4 routes"


@only_iptables
def test_restart_rewrites_nothing(node: Node, make_felix: Callable[..., Felix]) -> None:
    """Counters keep counting, sets and routes are the very same."""
    a, b = node.pod("a"), node.pod("b")

    def declare(daemon: Felix) -> None:
        daemon.add(a, "open")
        daemon.add(b, "open", "absent")
        daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True)}
        assert daemon.apply()

    declare(make_felix())
    assert a.reaches(b.v4, within=60)
    rules, sets, routes = node.rules(4, "-c"), sorted(node.ns.sh("ipset save").splitlines()), node.routes()
    assert any(not line.startswith("[0:0]") for line in rules.splitlines() if "cali-fw-calia" in line)
    second = make_felix()
    declare(second)
    assert comparable(node.rules(4, "-c")) == comparable(rules)
    assert (sorted(node.ns.sh("ipset save").splitlines()), node.routes()) == (sets, routes)
    written = [duty.outcome.updated + duty.outcome.deleted for duty in second.driver._duties()]
    assert sum(written) == 0


def test_another_prefix_of_interfaces_leaves_nothing_of_the_one_before(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    """Rules go at once; what leads to a pod goes with the pod, and until then it is reached as it was."""
    old, new = node.pod("old"), node.pod("new")
    first = make_felix()
    first.add(old, "open", mac="aa:bb:cc:dd:ee:ff")
    assert first.apply()
    new.interface = "tapnew"
    for command in ("down", f"name {new.interface}", "up"):
        node.ns.sh(f"ip link set {new.interface if command == 'up' else 'calinew'} {command}")
    second = make_felix(settings=Settings(workload_prefixes=("tap",)))
    second.add(new, "open")
    assert second.apply(), second.driver.failures()
    rules = node.rules(4) + node.rules(6) + node.ns.sh("nft list ruleset")
    assert '"tap*"' in rules or "tap+" in rules
    assert not any(word in rules for word in ("cali+", '"cali*"', "caliold"))
    old.delete()
    assert second.resync(), second.driver.failures()
    left = [*node.routes(), node.ns.sh("ip neigh"), node.ns.sh("ip -6 neigh")]
    assert not [line for line in left if "caliold" in line or old.v4 in line or old.v6 in line]
    assert pings(node.ns, new.v4, within=60)


# --- endpoints come and go -------------------------------------------------------------------------


def test_an_endpoint_is_up_when_everything_of_it_stands(node: Node, make_felix: Callable[..., Felix]) -> None:
    daemon = make_felix()
    a = node.pod("a")
    ident = daemon.add(a, "open")
    a.delete()
    daemon.apply()
    assert "does not exist" in daemon.driver.endpoint_troubles()[ident]
    node.ns.sh("ip link add calia type veth peer name far")
    daemon.apply()
    assert "not running" in daemon.driver.endpoint_troubles()[ident]
    node.ns.sh("ip link set calia up")
    node.ns.sh("ip link set far up")
    eventually(lambda: node.ns.running("calia"))
    daemon.apply()
    assert daemon.driver.endpoint_troubles()[ident] == ""
    assert f"{a.v4} dev calia scope link" in node.routes()


def test_an_interface_made_anew_is_wired_anew(node: Node, make_felix: Callable[..., Felix]) -> None:
    a, b = node.pod("a"), node.pod("b")
    daemon = make_felix()
    daemon.add(a, "open", mac=HOST)
    daemon.add(b, "open")
    daemon.apply()
    a.delete()
    again = Pod(node, "a", 1)
    node.ns.sh("sysctl -qw net.ipv4.conf.calia.proxy_arp=0")
    again.ns.sh(f"ip link set eth0 address {HOST}")
    daemon.settle()
    assert node.ns.sh("sysctl -n net.ipv4.conf.calia.proxy_arp").strip() == "1"
    assert again.reaches(b.v4, within=60) and b.reaches(again.v4, within=60)


HOST = "aa:bb:cc:dd:ee:01"


def test_connections_end_when_an_address_changes_hands(node: Node, make_felix: Callable[..., Felix]) -> None:
    daemon = make_felix()
    a, b = daemon.open_pair()
    daemon.apply()
    assert udp_sees(b.ns, a.ns, b.v4) == a.v4
    assert udp_sees(a.ns, b.ns, a.v4, 6000) == b.v4

    def tracked() -> int:
        return node.ns.run("conntrack", "-L", check=False).count(a.v4)

    assert tracked()
    daemon.remove(a)
    daemon.apply()
    eventually(lambda: not tracked())


@only_iptables
def test_leftovers_go_and_what_is_wanted_comes_in_any_order(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    """Random changes of the state, each applied: the kernel ends as after a fresh start."""
    rand = Random(7)
    pods = [node.pod(f"p{number}") for number in range(4)]
    daemon = make_felix()
    for _ in range(12):
        pod = rand.choice(pods)
        if rand.random() < 0.4 and any(
            one.interface == pod.interface for one in daemon.state.workloads.values()
        ):
            daemon.remove(pod)
        else:
            daemon.add(pod, *rand.sample(["open", "other", "none"], rand.randint(0, 2)))
        daemon.state.profiles["other"] = Profile("other", (Rule(rand.choice(["allow", "deny"])),), ())
        daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", rand.random() < 0.5)}
        daemon.settle()
    before = picture_of(node)
    fresh = make_felix()
    fresh.state = daemon.state
    fresh.apply()
    assert picture_of(node) == before


def picture_of(node: Node) -> list[str]:
    """The kernel's state; chains in any order."""
    chains = sorted(line for line in comparable(node.rules()) if line.startswith("-A"))
    return [*chains, *node.routes(), *ip_sets(node)]
