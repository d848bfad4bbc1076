"""From one dataplane to the other and back, under traffic: nothing allowed is lost, nothing denied passes."""

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.felix.node_lab import Node, Pod
from tests.felix.objects import pool
from tests.felix.process_lab import FelixProcess, Stream, basics
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


def test_a_change_of_mode_is_felt_by_nobody(felix: FelixProcess) -> None:
    felix.put(pool("p", "10.65.0.0/16", nat=True))
    felix.started(NFTABLESMODE="Disabled")
    a, b, stranger = pods(felix)
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    assert traces(felix.node) == IPTABLES
    felix.kill()
    felix.start()  # without the variable, which would outrank what the datastore says
    felix.up()
    good = [Stream(a.ns, b.v4), Stream(b.ns, a.v6)]
    bad = [Stream(stranger.ns, a.v4), Stream(b.ns, stranger.v6)]
    eventually(lambda: all(stream.heard() for stream in good))
    for value, expected in (("Enabled", NFTABLES), ("Disabled", IPTABLES), ("Enabled", NFTABLES)):
        mode(felix, value)
        assert felix.process is not None
        assert felix.process.wait(10) == RESTART
        felix.started()
        assert traces(felix.node) == expected, value
    assert [stream.lost() for stream in good] == [0, 0]
    assert [stream.answered() for stream in bad] == [0, 0]
    assert "Traceback" not in felix.log


@pytest.mark.parametrize("first", ["Disabled", "Enabled"])
def test_a_change_while_felix_was_away_is_finished_by_the_next(felix: FelixProcess, first: str) -> None:
    felix.started(NFTABLESMODE=first)
    a, b, stranger = pods(felix)
    eventually(lambda: a.reaches(b.v4))
    felix.kill(signal.SIGKILL)
    good, bad = Stream(a.ns, b.v4), Stream(stranger.ns, a.v4)
    eventually(good.heard)
    second = "Enabled" if first == "Disabled" else "Disabled"
    felix.started(NFTABLESMODE=second)
    assert traces(felix.node) == (NFTABLES if second == "Enabled" else IPTABLES)
    assert (good.lost(), bad.answered()) == (0, 0)


@pytest.mark.parametrize("step", ["table", "chains", "raw"])
def test_killed_in_the_middle_of_a_change_nothing_opens(felix: FelixProcess, step: str) -> None:
    """Whoever comes after finishes it."""
    felix.started(NFTABLESMODE="Disabled")
    a, b, stranger = pods(felix)
    eventually(lambda: a.reaches(b.v4))
    felix.kill()
    good, bad = Stream(a.ns, b.v4), Stream(stranger.ns, a.v4)
    eventually(good.heard)
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
    assert (good.lost(), bad.answered()) == (0, 0)


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


def test_a_flush_of_everything_is_repaired_in_time(felix: FelixProcess) -> None:
    felix.put(pool("p", "10.65.0.0/16", nat=True))
    felix.started(NFTABLESMODE="Enabled", NFTABLESREFRESHINTERVAL="1")
    a, b, stranger = pods(felix)
    eventually(lambda: a.reaches(b.v4))
    before = stateless(felix.node)
    for _ in range(3):
        felix.node.ns.sh("nft flush ruleset")
        eventually(lambda: stateless(felix.node) == before)
        assert a.reaches(b.v4) and not stranger.reaches(a.v4)


def stateless(node: Node) -> list[str]:
    """The ruleset without its counters; objects in any order."""
    return sorted(node.ns.sh("nft -s list ruleset").splitlines())


def test_restarted_in_nftables_it_interrupts_nothing_and_counts_on(felix: FelixProcess) -> None:
    felix.started(NFTABLESMODE="Enabled")
    a, b, stranger = pods(felix)
    eventually(lambda: a.reaches(b.v4))
    good, bad = Stream(a.ns, b.v4), Stream(stranger.ns, a.v4)
    eventually(good.heard)
    before = felix.node.ns.sh("nft -a list chain ip calico filter-cali-fw-calia")
    handles = re.findall(r"# handle \d+", before)
    for number in (signal.SIGKILL, signal.SIGTERM):
        felix.kill(number)
        felix.started(NFTABLESMODE="Enabled")
    after = felix.node.ns.sh("nft -a list chain ip calico filter-cali-fw-calia")
    assert re.findall(r"# handle \d+", after) == handles, "no rule was written anew"
    assert (good.lost(), bad.answered()) == (0, 0)


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
