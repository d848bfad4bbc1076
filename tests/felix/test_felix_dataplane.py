"""The driver against a real kernel: packets between pods, drift, adoption, order, other people's things."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from random import Random
from typing import Any

import pytest

from tests.felix.node_lab import Loop, Node, Pod, pings, udp_sees
from tests.netns_lab import Namespace, eventually
from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import (
    Bandwidth,
    HostEndpoint,
    Members,
    Policy,
    PolicyId,
    PolicyRef,
    Pool,
    Profile,
    Rule,
    Side,
    Tier,
    Workload,
    WorkloadId,
)
from tortie.felix.dataplane.driver import Driver, Options
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import Kernel, open_kernel
from tortie.felix.dataplane.routes import Ownership
from tortie.felix.dataplane.shaping import device_name
from tortie.felix.rules import ir
from tortie.felix.rules.settings import Failsafe, Settings
from tortie.felix.watch import InterfaceWatch
from tortie.linux import conntrack
from tortie.linux.routes import Route

pytestmark = pytest.mark.kernel

OPEN = Profile("open", (Rule("allow"),), (Rule("allow"),))
BOTH = frozenset((4, 6))


class Felix:
    """Felix without a datastore: a driver, its picture of interfaces, and a state that tests write."""

    def __init__(self, node: Node, **options: Any) -> None:
        self.node, self.state = node, State(profiles={"open": OPEN})
        self.backend = options.pop("backend", "nft")
        self.nftables = options.pop("nftables", False)
        self.options = Options("node1", **{"forwarding": True, **options})
        self.loop = Loop(node.ns)
        self.skew = 0.0
        self.started = False
        self.loop.run(self._open())

    def clock(self) -> float:
        return time.monotonic() + self.skew

    async def _open(self) -> None:
        self.interfaces = Interfaces()
        ownership = Ownership(self.interfaces.name_of, self.options.settings.workload_prefixes)
        self.kernel: Kernel = await open_kernel(
            BOTH,
            ownership,
            clock=self.clock,
            backend=self.backend,
            nftables=self.nftables,
            forget=conntrack.flush,
        )
        self.driver = Driver(self.options, self.kernel, self.interfaces, clock=self.clock, rand=lambda: 0.5)
        self.watch = InterfaceWatch(
            self.interfaces, self.kernel.netlink, interval=0, noticed=lambda: None,
            link_gone=self.driver.interface_gone, route_seen=self.driver.route_seen, lost=self.driver.forget,
        )  # fmt: skip

    def add(self, pod: Pod, *profiles: str, **fields: Any) -> WorkloadId:
        ident = WorkloadId("k8s", f"default/{pod.name}", "eth0")
        nets = (f"{pod.v4}/32", f"{pod.v6}/128")
        self.state.workloads[ident] = Workload(ident, pod.interface, nets, profiles=profiles, **fields)
        return ident

    def remove(self, pod: Pod) -> None:
        del self.state.workloads[WorkloadId("k8s", f"default/{pod.name}", "eth0")]

    def apply(self, touched: Touched | None = None) -> bool:
        return self.loop.run(self._apply(touched))

    async def _apply(self, touched: Touched | None) -> bool:
        self.watch.reread()
        names = self.interfaces.settle(self.clock())
        if not self.started:
            self.started = True
            self.driver.start(self.state)
        else:
            known = set(self.state.workloads) | set(self.driver.endpoint_troubles())
            profiles = set(self.state.profiles) | {"open"}
            everything = Touched(known, set(), profiles, set(), set(self.state.sets), True, True)
            self.driver.update(touched or everything)
            self.driver.interfaces_changed(names)
        return await self.driver.apply()

    def resync(self) -> bool:
        """As when every refresh interval has passed."""
        self.skew += 1000
        return self.apply()

    def close(self) -> None:
        self.loop.run(self.kernel.close())
        self.loop.close()


@pytest.fixture
def node(make_netns: Callable[[], Namespace]) -> Node:
    return Node(make_netns)


@pytest.fixture(params=["iptables", "nftables"])
def dataplane(request: pytest.FixtureRequest) -> str:
    """Which one enforces: what felix does for packets is the same."""
    return str(request.param)


only_iptables = pytest.mark.parametrize("dataplane", ["iptables"])  # where its own text is looked at


@pytest.fixture
def felix(node: Node, dataplane: str) -> Iterator[Callable[..., Felix]]:
    made: list[Felix] = []

    def make(**options: Any) -> Felix:
        made.append(Felix(node, **{"nftables": dataplane == "nftables", **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- traffic ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataplane", "backend"), [("iptables", "nft"), ("iptables", "legacy"), ("nftables", "nft")]
)
def test_the_truth_about_who_reaches_whom(node: Node, felix: Callable[..., Felix], backend: str) -> None:
    """Open, without profile, with a missing profile, unknown to felix: only the open reach each other."""
    pods = {name: node.pod(name) for name in ("open1", "open2", "bare", "missing", "unknown")}
    daemon = felix(backend=backend)
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


def test_profiles_decide_by_direction_protocol_and_set(node: Node, felix: Callable[..., Felix]) -> None:
    a, b, c = (node.pod(name) for name in "abc")
    daemon = felix()
    daemon.state.sets["s:friends"] = Members("net", {a.v4}, {a.v6})
    daemon.state.profiles["picky"] = Profile(
        "picky", (Rule("allow", src=Side(sets=("s:friends",))),), (Rule("allow"),)
    )
    daemon.add(a, "open")
    daemon.add(b, "picky")
    daemon.add(c, "open")
    assert daemon.apply(), daemon.driver.failures()
    for target in (b.v4, b.v6):
        assert a.reaches(target) and not c.reaches(target)
    daemon.state.sets["s:friends"].v4.add(c.v4)
    assert daemon.apply(Touched(sets={"s:friends"}))
    assert c.reaches(b.v4) and not c.reaches(b.v6)


@only_iptables
def test_what_leaves_the_pool_is_masqueraded(node: Node, felix: Callable[..., Felix]) -> None:
    a, b = node.pod("a"), node.pod("b")
    daemon = felix()
    daemon.add(a, "open")
    daemon.add(b, "open")
    daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True), "fd65::/64": Pool("fd65::/64", True)}
    assert daemon.apply()
    assert udp_sees(node.outside, a.ns, "172.16.0.254") == "172.16.0.1"
    assert udp_sees(node.outside, a.ns, "fd16::fe") == "fd16::1"
    assert udp_sees(b.ns, a.ns, b.v4) == a.v4
    members = node.ns.sh("ipset save")
    assert "add cali40masq-ipam-pools 10.65.0.0/16" in members
    assert "add cali60network-ip-pools fd65::/64" in members


@only_iptables
def test_a_forged_source_does_not_get_out(node: Node, felix: Callable[..., Felix]) -> None:
    a, b = node.pod("a"), node.pod("b")
    daemon = felix()
    daemon.add(a, "open")
    daemon.add(b, "open")
    daemon.apply()
    assert a.reaches(b.v4)
    a.ns.sh("ip address add 10.65.9.9/32 dev eth0")
    assert not pings(a.ns, b.v4, "-I", "10.65.9.9")
    assert not node.ns.run("conntrack", "-L", check=False).count("10.65.9.9"), "it was seen before tracking"
    drops = [line for line in node.rules(4, "-t", "raw", "-c").splitlines() if "rpfilter" in line]
    assert not drops[0].startswith("[0:0]")


def test_the_host_answers_pods_only_as_configured(node: Node, felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = felix(settings=Settings(endpoint_to_host=ir.ACCEPT))
    daemon.add(a, "open")
    daemon.apply()
    assert a.reaches("172.16.0.1")
    strict = felix()
    strict.add(a, "open")
    strict.apply()
    assert not a.reaches("172.16.0.1")
    assert a.reaches("172.16.0.254") is False, "no masquerading, no way back"
    assert pings(node.ns, a.v4), "the host may speak to its pods all the same"


@only_iptables
def test_with_only_the_guard_pods_are_cut_off_and_the_host_is_not(
    node: Node, felix: Callable[..., Felix]
) -> None:
    a, b = node.pod("a"), node.pod("b")
    for pod in (a, b):
        pod.cni_route()
    node.ns.sh("sysctl -qw net.ipv4.ip_forward=1")
    assert a.reaches(b.v4), "before felix ever ran, nothing keeps them apart"
    daemon = felix()
    daemon.loop.run(daemon.driver.guard())
    assert not a.reaches(b.v4)
    assert not a.reaches("172.16.0.1")
    assert pings(node.ns, "172.16.0.254")
    before = node.rules()
    other = felix()
    other.loop.run(other.driver.guard())
    assert comparable(node.rules()) == comparable(before)
    daemon.add(a, "open")
    daemon.add(b, "open")
    assert daemon.apply()
    assert a.reaches(b.v4)


@only_iptables
def test_the_guard_changes_nothing_where_rules_stand(node: Node, felix: Callable[..., Felix]) -> None:
    a, b = node.pod("a"), node.pod("b")
    daemon = felix()
    daemon.add(a, "open")
    daemon.add(b, "open")
    daemon.apply()
    before = node.rules(4, "-c")
    restarted = felix()
    restarted.loop.run(restarted.driver.guard())
    assert comparable(node.rules(4, "-c")) == comparable(before)
    assert a.reaches(b.v4)


@only_iptables
def test_the_guard_leaves_what_it_does_not_need(node: Node, felix: Callable[..., Felix]) -> None:
    """After a flush while felix was away only filtering is restored; the rest waits for the full picture."""
    a = node.pod("a")
    daemon = felix()
    daemon.add(a, "open")
    daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True)}
    daemon.apply()
    nat = comparable(node.rules(4, "-t", "nat"))
    node.ns.sh("iptables-nft -F")
    restarted = felix()
    restarted.loop.run(restarted.driver.guard())
    assert comparable(node.rules(4, "-t", "nat")) == nat
    assert ":cali-tw-calia " in node.rules()
    assert not pings(node.outside, a.v4)


# --- what stands in the kernel --------------------------------------------------------------------


def comparable(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


@only_iptables
def test_routes_read_like_the_ones_everybody_knows(node: Node, felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    a.cni_route()
    daemon = felix()
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
def test_a_pod_has_one_neighbour_which_is_the_host(node: Node, felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    node.ns.sh("sysctl -qw net.ipv4.conf.calia.proxy_arp=0")
    daemon = felix()
    daemon.add(a, "open")
    daemon.apply()
    assert node.ns.sh("sysctl -n net.ipv4.conf.calia.proxy_arp").strip() == "1"
    a.reaches("1.1.1.1")
    (entry,) = [one for one in a.ns.ip("neigh") if one["dst"] == "169.254.1.1"]
    assert entry["lladdr"] == "ee:ee:ee:ee:ee:ee"


@only_iptables
def test_a_route_that_cni_made_is_adopted_not_rewritten(node: Node, felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    a.cni_route()
    daemon = felix()
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
def test_restart_rewrites_nothing(node: Node, felix: Callable[..., Felix]) -> None:
    """Counters keep counting, sets and routes are the very same."""
    a, b = node.pod("a"), node.pod("b")

    def declare(daemon: Felix) -> None:
        daemon.add(a, "open")
        daemon.add(b, "open", "absent")
        daemon.state.pools = {"10.65.0.0/16": Pool("10.65.0.0/16", True)}
        assert daemon.apply()

    declare(felix())
    assert a.reaches(b.v4)
    rules, sets, routes = node.rules(4, "-c"), sorted(node.ns.sh("ipset save").splitlines()), node.routes()
    assert any(not line.startswith("[0:0]") for line in rules.splitlines() if "cali-fw-calia" in line)
    second = felix()
    declare(second)
    assert comparable(node.rules(4, "-c")) == comparable(rules)
    assert (sorted(node.ns.sh("ipset save").splitlines()), node.routes()) == (sets, routes)
    written = [duty.outcome.updated + duty.outcome.deleted for duty in second.driver._duties()]
    assert sum(written) == 0


# --- damage, and other people's things -------------------------------------------------------------


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
def test_rules_of_others_stay_byte_for_byte(node: Node, felix: Callable[..., Felix]) -> None:
    node.ns.run("iptables-nft-restore", stdin=FOREIGN)
    theirs = foreign(node)
    a = node.pod("a")
    daemon = felix()
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


@only_iptables
def test_a_flush_by_somebody_else_is_repaired(node: Node, felix: Callable[..., Felix]) -> None:
    a, b, stranger = node.pod("a"), node.pod("b"), node.pod("stranger")
    daemon = felix()
    daemon.add(a, "open")
    daemon.add(b, "open")
    daemon.apply()
    stranger.cni_route()
    good = comparable(node.rules())
    assert not stranger.reaches(a.v4)
    for damage in ("iptables-nft -F", "iptables-nft -t nat -F", "iptables-nft -F cali-from-wl-dispatch",
                   "iptables-nft -I FORWARD -j ACCEPT", "iptables-nft -t raw -D PREROUTING 1"):  # fmt: skip
        node.ns.sh(damage)
        assert comparable(node.rules()) != good
        assert daemon.resync()
        node.ns.run("iptables-nft", "-D", "FORWARD", "-j", "ACCEPT", check=False)
        assert comparable(node.rules()) == good
        assert a.reaches(b.v4) and not stranger.reaches(a.v4)


@only_iptables
def test_drift_of_every_kind_is_repaired(node: Node, felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = felix()
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
        assert daemon.resync(), (damage, daemon.driver.failures())
        assert picture() == good, damage


def ip_sets(node: Node) -> list[str]:
    """Without the hash's random seed, which is new for each set."""
    return sorted(re.sub(r" initval \S+", "", line) for line in node.ns.sh("ipset save").splitlines())


@only_iptables
def test_routes_of_others_are_never_touched(node: Node, felix: Callable[..., Felix]) -> None:
    for route in (
        "10.9.0.0/24 via 172.16.0.254 proto 186",
        "blackhole 10.8.0.0/26 proto 186",
        "10.7.0.0/24 dev eth0 proto 12",
        "10.6.0.1/32 dev lo proto 3",
    ):
        node.ns.sh(f"ip route add {route}")
    before = node.routes()
    a = node.pod("a")
    daemon = felix()
    daemon.add(a, "open")
    daemon.apply()
    daemon.remove(a)
    daemon.resync()
    assert [line for line in node.routes() if "calia" not in line] == before


@only_iptables
def test_a_route_that_cni_just_made_is_left_alone_for_a_while(
    node: Node, felix: Callable[..., Felix]
) -> None:
    daemon = felix()
    daemon.apply()
    a = node.pod("a")
    a.cni_route()
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
    node: Node, felix: Callable[..., Felix]
) -> None:
    """The datastore may be away for days meanwhile; what is read then is how it stands."""
    daemon = felix()
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
    assert pings(node.ns, a.v4)


# --- endpoints come and go -------------------------------------------------------------------------


def test_an_endpoint_is_up_when_everything_of_it_stands(node: Node, felix: Callable[..., Felix]) -> None:
    daemon = felix()
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


def test_an_interface_made_anew_is_wired_anew(node: Node, felix: Callable[..., Felix]) -> None:
    a, b = node.pod("a"), node.pod("b")
    daemon = felix()
    daemon.add(a, "open", mac=HOST)
    daemon.add(b, "open")
    daemon.apply()
    a.delete()
    again = Pod(node, "a", 1)
    node.ns.sh("sysctl -qw net.ipv4.conf.calia.proxy_arp=0")
    again.ns.sh(f"ip link set eth0 address {HOST}")
    daemon.apply()
    assert node.ns.sh("sysctl -n net.ipv4.conf.calia.proxy_arp").strip() == "1"
    assert again.reaches(b.v4) and b.reaches(again.v4)


HOST = "aa:bb:cc:dd:ee:01"


def test_connections_end_when_an_address_changes_hands(node: Node, felix: Callable[..., Felix]) -> None:
    a, b = node.pod("a"), node.pod("b")
    daemon = felix()
    daemon.add(a, "open")
    daemon.add(b, "open")
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
def test_leftovers_go_and_what_is_wanted_comes_in_any_order(node: Node, felix: Callable[..., Felix]) -> None:
    """Random changes of the state, each applied: the kernel ends as after a fresh start."""
    rand = Random(7)
    pods = [node.pod(f"p{number}") for number in range(4)]
    daemon = felix()
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
        assert daemon.apply(), daemon.driver.failures()
    before = picture_of(node)
    fresh = felix()
    fresh.state = daemon.state
    fresh.apply()
    assert picture_of(node) == before


def picture_of(node: Node) -> list[str]:
    """The kernel's state; chains in any order."""
    chains = sorted(line for line in comparable(node.rules()) if line.startswith("-A"))
    return [*chains, *node.routes(), *ip_sets(node)]


# --- hostile input ---------------------------------------------------------------------------------

HOSTILE = [
    'x" -j ACCEPT',
    "x\n-A INPUT -j ACCEPT\n",
    "{{ 7*7 }}",
    "a b c; rm -rf /",
    "x" * 10_000,
    "é\u202e\x00",
]


@only_iptables
def test_hostile_names_never_reach_a_ruleset(node: Node, felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = felix()
    for number, name in enumerate(HOSTILE):
        rule = Rule("allow", annotations=((name, name),))
        daemon.state.profiles[name] = Profile(name, (rule,), (rule,))
        daemon.add(a, *HOSTILE[: number + 1])
    assert daemon.apply(), daemon.driver.failures()
    rules = node.rules()
    assert rules.isascii()
    for line in comparable(rules):
        assert len(line) < 1000 and (line[:1] in "*:" or line.startswith("-A ") or line == "COMMIT"), line
        assert not line.startswith("-A ") or '--comment "cali:' in line, line


def test_a_rule_the_kernel_refuses_closes_its_endpoint_and_no_other(
    node: Node, felix: Callable[..., Felix]
) -> None:
    a, b, c = (node.pod(name) for name in "abc")
    daemon = felix()
    daemon.state.profiles["bad"] = Profile(
        "bad", (Rule("allow", src=Side(sets=("s:missing",))),), (Rule("allow"),)
    )
    good = daemon.add(a, "open")
    bad = daemon.add(b, "bad")
    daemon.add(c, "open")
    assert not daemon.apply()
    troubles = daemon.driver.endpoint_troubles()
    assert troubles[good] == ""
    assert "cali-pri-bad" in troubles[bad] and "drops everything" in troubles[bad]
    assert a.reaches(c.v4) and not a.reaches(b.v4)


def test_a_policy_the_kernel_refuses_closes_those_it_applies_to_and_says_so(
    node: Node, felix: Callable[..., Felix]
) -> None:
    """Also where it is reached through a group's chain, and on the host, but for its failsafes."""
    a, b, c = (node.pod(name) for name in "abc")
    daemon = felix(settings=Settings(failsafe_in=(Failsafe("udp", 5000),)))
    refused = Rule("allow", src=Side(sets=("s:missing",)))
    for name, rule in (("bad", refused), ("good", Rule("allow"))):
        ident = PolicyId(name, "", "GlobalNetworkPolicy")
        daemon.state.policies[ident] = Policy(ident, "default", (rule,), (Rule("allow"),))
    refs = tuple(PolicyRef(ident, "all()") for ident in daemon.state.policies)
    open_one = daemon.add(a, "open")
    grouped = daemon.add(b, "open", tiers=(Tier("default", ingress=refs),))
    daemon.add(c, "open")
    hosted = (Tier("default", ingress=refs[:1], egress=refs),)
    daemon.state.hosts["h"] = HostEndpoint("h", "eth0", tiers=hosted)
    assert not daemon.apply()
    troubles, hosts = daemon.driver.endpoint_troubles(), daemon.driver.host_troubles()
    assert troubles[open_one] == ""
    for why in (troubles[grouped], hosts["h"]):
        assert "cali-pi-gnp/bad" in why and "drops everything" in why
    assert a.reaches(c.v4) and c.reaches(a.v6)
    assert not a.reaches(b.v4) and not a.reaches(b.v6)
    assert not pings(node.outside, "172.16.0.1")
    assert udp_sees(node.ns, node.outside, "172.16.0.1") == "172.16.0.254"
    for ident in daemon.state.policies:
        daemon.state.policies[ident] = Policy(ident, "default", (Rule("allow"),), (Rule("allow"),))
    assert daemon.apply(Touched(policies=set(daemon.state.policies))), daemon.driver.failures()
    assert a.reaches(b.v4) and pings(node.outside, "172.16.0.1")
    assert set(daemon.driver.endpoint_troubles().values()) == {""} == {daemon.driver.host_troubles()["h"]}


def test_events_during_an_apply_are_taken_with_the_next(node: Node, felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = felix()
    daemon.add(a, "open")
    assert daemon.apply()
    daemon.remove(a)
    daemon.add(a, "open", mac="aa:bb:cc:dd:ee:ff")

    async def interrupted() -> bool:
        daemon.driver.forget()
        applying = asyncio.create_task(daemon.driver.apply())
        for _ in range(50):
            await asyncio.sleep(0.001)
            daemon.driver.forget()
            daemon.driver.interface_gone(99)
            daemon.driver.route_seen(Route(f"{a.v4}/32", ifindex=node.ns.ifindex("calia"), scope=253), False)
        return await applying

    assert daemon.loop.run(interrupted())
    assert daemon.driver.next_due() < time.monotonic()
    assert daemon.apply()
    assert f"{a.v4} dev calia scope link" in node.routes()


@only_iptables
def test_address_families_are_chosen(node: Node, felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = felix()
    daemon.options = replace(daemon.options, wiring=replace(daemon.options.wiring, versions=frozenset((4,))))
    daemon.driver = Driver(
        daemon.options, daemon.kernel, daemon.interfaces, clock=daemon.clock, rand=lambda: 0.5
    )
    daemon.add(a, "open")
    daemon.apply()
    assert "cali" in node.rules(4) and "cali" not in node.rules(6)
    assert not [line for line in node.routes() if a.v6 in line]


# --- bandwidth ----------------------------------------------------------------------------------


@only_iptables
def test_bandwidth_is_limited_in_both_directions(node: Node, felix: Callable[..., Felix]) -> None:
    one, other = node.pod("one"), node.pod("other")
    node.ns.sh("tc qdisc add dev caliother root handle 1: tbf rate 8mbit burst 32kb latency 25ms")
    daemon = felix()
    daemon.add(other, "open")
    daemon.add(one, "open", ingress=Bandwidth(8_000_000, 400_000), egress=Bandwidth(16_000_000, 400_000))
    assert daemon.apply(), daemon.driver.failures()
    ifb = device_name(one.interface)
    assert "rate 8Mbit burst 50000b" in node.ns.sh(f"tc qdisc show dev {one.interface}")
    assert "rate 16Mbit burst 50000b" in node.ns.sh(f"tc qdisc show dev {ifb}")
    assert one.reaches(other.v4) and one.reaches(other.v6)
    (counted,) = json.loads(node.ns.sh(f"tc -s -j qdisc show dev {ifb}"))
    assert counted["packets"] >= 2, "what the pod sends goes through its bucket"

    for damage in (f"ip link del {ifb}", f"tc qdisc del dev {one.interface} ingress",
                   f"tc qdisc del dev {one.interface} root"):  # fmt: skip
        node.ns.sh(damage)
        daemon.resync()
        assert "rate 8Mbit" in node.ns.sh(f"tc qdisc show dev {one.interface}")
        assert ifb in node.ns.sh(f"tc filter show dev {one.interface} ingress")
        assert one.reaches(other.v4)

    daemon.add(one, "open")
    daemon.apply()
    shown = node.ns.sh("tc qdisc show")
    assert "tbf 1: dev caliother" in shown, "not ours"
    assert shown.count("tbf") == 1 and "ingress" not in shown and ifb not in shown
    assert one.reaches(other.v4)


@only_iptables
def test_a_limit_that_cannot_be_set_keeps_its_pod_down_and_no_other(
    node: Node, felix: Callable[..., Felix]
) -> None:
    one, other = node.pod("one"), node.pod("other")
    node.ns.veth(device_name(one.interface), "in-the-way")
    daemon = felix()
    ident = daemon.add(one, "open", egress=Bandwidth(8_000_000, 400_000))
    free = daemon.add(other, "open")
    assert daemon.apply()
    troubles = daemon.driver.endpoint_troubles()
    assert "bandwidth: " in troubles[ident] and troubles[free] == ""


@only_iptables
def test_the_limits_of_a_pod_go_with_it(node: Node, felix: Callable[..., Felix]) -> None:
    pod = node.pod("one")
    daemon = felix()
    daemon.add(pod, "open", egress=Bandwidth(8_000_000, 400_000))
    daemon.apply()
    assert device_name(pod.interface) in node.ns.sh("ip link")
    pod.delete()
    daemon.remove(pod)
    daemon.apply()
    assert device_name(pod.interface) not in node.ns.sh("ip link")
