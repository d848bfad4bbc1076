"""Felix's end, interference, changes of dataplane, all under traffic: nothing is lost, nothing opens."""

import re
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from pathlib import Path

import pytest

from tests.felix.node_lab import Node, Pod
from tests.felix.objects import allow, pool, profile
from tests.felix.process_lab import FelixProcess, basics
from tests.felix.traffic import Flow, Sent, Traffic
from tests.netns_lab import Namespace, eventually
from tests.support.etcd import Etcd
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.meta import ObjectMeta
from tortie.felix.config import RESTART

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(make_netns: Callable[[], Namespace]) -> Node:
    return Node(make_netns)


@pytest.fixture
def felix(node: Node, etcd: Etcd, tmp_path: Path) -> Iterator[FelixProcess]:
    process = FelixProcess(node, etcd, tmp_path)
    basics(process, "open")
    yield process
    process.close()


def pods(felix: FelixProcess) -> tuple[Pod, Pod, Pod]:
    """Two that may speak with each other, and one that felix does not know."""
    a, b, stranger = (felix.node.pod(name) for name in ("a", "b", "stranger"))
    for pod in (a, b, stranger):
        pod.cni_route()
    for pod in (a, b):
        felix.endpoint(pod.name, "open")
    return a, b, stranger


@pytest.fixture
def traffic(felix: FelixProcess) -> Iterator[Callable[[], Traffic]]:
    """Between all of a node's pods, in both IP versions."""
    made: list[Traffic] = []

    def make() -> Traffic:
        pods = felix.node.pods
        flows = [
            Flow(one.name, other.name, src, dst, 80, one.interface, other.interface)
            for one, other in permutations(pods.values(), 2)
            for src, dst in ((one.v4, other.v4), (one.v6, other.v6))
        ]
        made.append(Traffic({name: pod.ns for name, pod in pods.items()}, flows))
        made[-1].round()
        return made[-1]

    yield make
    for one in made:
        one.close()


def lost(packets: Iterable[Sent]) -> list[Sent]:
    """Those between the two that may speak with each other."""
    return [one for one in packets if {one.flow.source, one.flow.target} == {"a", "b"} and not one.arrived]


def leaked(packets: Iterable[Sent]) -> list[Sent]:
    """All others that came through."""
    return [one for one in packets if {one.flow.source, one.flow.target} != {"a", "b"} and one.arrived]


def mode(felix: FelixProcess, value: str) -> None:
    configuration = FelixConfiguration(metadata=ObjectMeta(name="default"), spec={"nftablesMode": value})
    felix.put((ResourceKey("FelixConfiguration", "default"), configuration))


def traces(node: Node) -> dict[str, bool]:
    """Which dataplanes have left anything of theirs."""
    tables = node.ns.sh("nft list tables")
    return {
        "iptables": "cali" in node.rules(4) + node.rules(6),
        "nftables": bool(re.search(r"table ip6? calico\n", tables)),
        "IP sets": "cali" in node.ns.sh("ipset list -n"),
    }


IPTABLES = {"iptables": True, "nftables": False, "IP sets": True}
NFTABLES = {"iptables": False, "nftables": True, "IP sets": False}


def test_a_change_of_mode_is_felt_by_nobody(felix: FelixProcess, traffic: Callable[[], Traffic]) -> None:
    felix.put(pool("p", "10.65.0.0/16", nat=True))
    felix.started(NFTABLESMODE="Disabled")
    a, b, _ = pods(felix)
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    assert traces(felix.node) == IPTABLES
    felix.kill()
    felix.start()  # without the variable, which would outrank what the datastore says
    felix.up()
    packets = traffic()
    for value, expected in (("Enabled", NFTABLES), ("Disabled", IPTABLES), ("Enabled", NFTABLES)):
        mode(felix, value)
        assert felix.process is not None
        assert felix.process.wait(30) == RESTART
        felix.started()
        assert traces(felix.node) == expected, value
        packets.round()
    sent = packets.end()
    assert (lost(sent), leaked(sent)) == ([], [])
    assert "Traceback" not in felix.log


@pytest.mark.parametrize("first", ["Disabled", "Enabled"])
def test_a_change_while_felix_was_away_is_finished_by_the_next(
    felix: FelixProcess, traffic: Callable[[], Traffic], first: str
) -> None:
    felix.started(NFTABLESMODE=first)
    a, b, _ = pods(felix)
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    felix.kill(signal.SIGKILL)
    packets = traffic()
    second = "Enabled" if first == "Disabled" else "Disabled"
    felix.started(NFTABLESMODE=second)
    assert traces(felix.node) == (NFTABLES if second == "Enabled" else IPTABLES)
    packets.round()
    sent = packets.end()
    assert (lost(sent), leaked(sent)) == ([], [])


@pytest.mark.parametrize("step", ["table", "chains", "raw"])
def test_killed_in_the_middle_of_a_change_nothing_opens(
    felix: FelixProcess, traffic: Callable[[], Traffic], step: str
) -> None:
    """Whoever comes after finishes it."""
    felix.started(NFTABLESMODE="Disabled")
    a, b, stranger = pods(felix)
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    felix.kill()
    packets = traffic()
    felix.start(NFTABLESMODE="Enabled")
    reached: dict[str, Callable[[], bool]] = {
        "table": lambda: traces(felix.node)["nftables"],
        "chains": lambda: "filter-FORWARD" in felix.node.ns.sh("nft list chains ip"),
        "raw": lambda: "cali" not in felix.node.rules(4, "-t", "raw"),
    }
    eventually(reached[step], 30)
    felix.kill()
    assert a.reaches(b.v4) and not stranger.reaches(a.v4)
    felix.started(NFTABLESMODE="Enabled")
    assert traces(felix.node) == NFTABLES
    packets.round()
    sent = packets.end()
    assert (lost(sent), leaked(sent)) == ([], [])


def test_kube_proxy_decides_where_felix_is_to_follow_it(felix: FelixProcess) -> None:
    felix.started()
    assert traces(felix.node)["iptables"] and not traces(felix.node)["nftables"]
    felix.node.ns.sh("nft add table ip kube-proxy")
    felix.node.ns.sh("nft add chain ip kube-proxy services")
    assert felix.process is not None
    assert felix.process.wait(25) == RESTART  # it looks every 15 s
    felix.started()
    assert traces(felix.node) == NFTABLES
    felix.node.ns.sh("nft delete table ip kube-proxy")
    felix.kill()
    felix.started()
    assert traces(felix.node) == IPTABLES


def test_rules_that_iptables_cannot_show_disturb_nobody_in_nftables(felix: FelixProcess) -> None:
    """As Tailscale writes them into the tables that iptables keeps in nftables."""
    ns = felix.node.ns
    ns.sh("iptables-nft -A INPUT -p tcp --dport 22 -j ACCEPT")
    ns.sh("nft add rule ip filter INPUT meta mark & 0xff0000 == 0x40000 ct count over 7 counter accept")
    ns.sh("nft add table inet strange")
    ns.run("nft", "-f", "-", stdin="add map inet strange m { typeof ip saddr . meta mark : verdict; }\n")
    foreign = ns.sh("nft list table ip filter") + ns.sh("nft list table inet strange")
    felix.started(NFTABLESMODE="Enabled", NFTABLESREFRESHINTERVAL="1")
    a, b, stranger = pods(felix)
    eventually(lambda: a.reaches(b.v4))
    ns.sh("nft delete table ip calico")
    eventually(lambda: "filter-FORWARD" in ns.sh("nft list chains ip"))
    eventually(lambda: a.reaches(b.v4))
    assert not stranger.reaches(a.v4)
    assert ns.sh("nft list table ip filter") + ns.sh("nft list table inet strange") == foreign
    assert "could not be made so" not in felix.log


MODES = pytest.mark.parametrize("mode", ["Disabled", "Enabled"])
_FLUSHES = {  # nftablesMode -> what others do to our rules
    "Disabled": [
        ["iptables-nft -F", "ip6tables-nft -F"],
        ["iptables-nft -t raw -F", "iptables-nft -F FORWARD", "ip6tables-nft -t mangle -F"],
        ["nft flush ruleset"],
    ],
    "Enabled": [
        ["nft delete table ip calico", "nft delete table ip6 calico"],
        ["nft flush table ip calico"],
        ["nft flush ruleset"],
    ],
}


@MODES
def test_what_others_flush_is_repaired_in_time(
    felix: FelixProcess, traffic: Callable[[], Traffic], mode: str
) -> None:
    """Till then there are no rules that could deny anything, but what is allowed goes on, as ever."""
    felix.put(pool("p", "10.65.0.0/16", nat=True))
    refresh = {"NFTABLESREFRESHINTERVAL": "1", "IPTABLESREFRESHINTERVAL": "1", "IPSETSREFRESHINTERVAL": "1"}
    felix.started(NFTABLESMODE=mode, **refresh)
    a, b, _ = pods(felix)
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    before, repairs = rules_of(felix.node, mode), []
    packets = traffic()
    for commands in _FLUSHES[mode]:

        def flush(commands: list[str] = commands) -> None:
            for command in commands:
                felix.node.ns.sh(command)
            eventually(lambda: rules_of(felix.node, mode) == before, 30)

        repairs.append(packets.during(flush))
        packets.round()
    sent = packets.end()
    assert lost(sent) == []
    outside = [
        one for one in sent if not any(one.began < end and one.ended > begin for begin, end in repairs)
    ]
    assert leaked(outside) == [] and len(outside) < len(sent)


def rules_of(node: Node, mode: str) -> list[str]:
    """All rules, without their counters."""
    if mode == "Enabled":
        return stateless(node)
    return [re.sub(r"\[\d+:\d+\]", "", line) for line in (node.rules(4) + node.rules(6)).splitlines()
            if not line.startswith("#")]  # fmt: skip


def stateless(node: Node) -> list[str]:
    """The ruleset without its counters; objects in any order."""
    return sorted(node.ns.sh("nft -s list ruleset").splitlines())


@MODES
def test_restarted_it_interrupts_nothing_and_counts_on(
    felix: FelixProcess, traffic: Callable[[], Traffic], mode: str
) -> None:
    felix.started(NFTABLESMODE=mode)
    a, b, _ = pods(felix)
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    packets, before = traffic(), handles(felix.node, mode)
    for number in (signal.SIGKILL, signal.SIGTERM):
        felix.kill(number)
        packets.round()
        felix.put(profile("other", allow()), profile("open", allow()))
        felix.started(NFTABLESMODE=mode)
        packets.round()
    assert handles(felix.node, mode) == before != [], "no rule was written anew"
    sent = packets.end()
    assert (lost(sent), leaked(sent)) == ([], [])


def handles(node: Node, mode: str) -> list[str]:
    """The kernel's numbers of the rules in a chain: they change when it is written."""
    chain = "calico filter-cali-fw-calia" if mode == "Enabled" else "filter cali-fw-calia"
    return re.findall(r"# handle \d+", node.ns.sh(f"nft -a list chain ip {chain}"))


def test_on_a_fresh_node_without_a_datastore_pods_are_shut_by_nftables(
    felix: FelixProcess, etcd: Etcd
) -> None:
    etcd.kill()
    a, b = felix.node.pod("a"), felix.node.pod("b")
    for pod in (a, b):
        pod.cni_route()
    felix.start(NFTABLESMODE="Enabled", IPINIPENABLED="true")
    felix.wait_for("the datastore cannot be read")
    assert not a.reaches(b.v4) and not a.reaches(b.v6) and not a.reaches("172.16.0.1")
    etcd.restart()
    for name in ("a", "b"):
        felix.endpoint(name, "open")
    eventually(lambda: a.reaches(b.v4), 30)


def test_no_answer_tells_a_pod_that_its_own_address_is_taken(felix: FelixProcess) -> None:
    """Proxy ARP would; in either mode."""
    felix.started(NFTABLESMODE="Disabled")
    a, b, _ = pods(felix)
    eventually(lambda: a.reaches(b.v4))
    eventually(lambda: "filter-cali-arp-calia" in felix.node.ns.sh("nft list table arp calico-arp"))
    probe = ["arping", "-q", "-D", "-c", "2", "-w", "2", "-I", "eth0", a.v4]
    a.ns.run(*probe)  # fails if somebody answers
    felix.delete(felix.endpoint("a", "open"))
    eventually(lambda: "arp-calia" not in felix.node.ns.sh("nft list table arp calico-arp"))
