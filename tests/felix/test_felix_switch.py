"""Felix's end, interference, changes of dataplane, all under traffic: nothing is lost, nothing opens."""

import re
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import permutations
from random import Random

import pytest

from tests.felix.node_lab import Node, Pod
from tests.felix.objects import allow, global_policy, host, pool, profile, tier
from tests.felix.process_lab import FelixProcess
from tests.felix.traffic import Flow, Sent, Traffic
from tests.felix.worlds import a_world
from tests.netns_lab import eventually
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.policy import EntityRule, Rule
from tortie.felix.config import RESTART

pytestmark = pytest.mark.kernel

DENY = Rule(action="Deny")
MODES = pytest.mark.parametrize("mode", ["Disabled", "Enabled"])


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


def apart(packets: Iterable[Sent], spans: Collection[tuple[float, float]]) -> list[Sent]:
    """Those that were not on their way in any of these."""
    return [one for one in packets if not any(one.began < end and one.ended > begin for begin, end in spans)]


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
        assert felix.ends() == RESTART
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
    felix.until(reached[step])
    felix.kill()
    assert a.reaches(b.v4, within=60) and not stranger.reaches(a.v4)
    felix.started(NFTABLESMODE="Enabled")
    assert traces(felix.node) == NFTABLES
    packets.round()
    sent = packets.end()
    assert (lost(sent), leaked(sent)) == ([], [])


FOREIGN = """*raw
-A PREROUTING -i docker0 -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.65.0.9:53
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -p tcp -m tcp --dport 2222 -m comment --comment "by hand, like cali-INPUT" -j ACCEPT
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -j DOCKER-USER
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A DOCKER-USER -j RETURN
COMMIT
"""

FOREIGN_TABLES = """
table inet byhand { chain c { type filter hook forward priority 5; counter; }; }
table ip kube-proxy { chain services { ip daddr 10.96.0.10 counter; }; }
"""


def theirs(node: Node) -> list[str]:
    """All that is not ours, in its order, in iptables and in nftables."""
    lines = (node.rules(4) + node.rules(6)).splitlines()
    rules = [re.sub(r"\[\d+:\d+\]", "", line) for line in lines if line[0] == "-" or " - " in line]
    tables = node.ns.sh("nft -s list table inet byhand") + node.ns.sh("nft -s list table ip kube-proxy")
    return [line for line in rules if not re.search(r":cali-|cali:|-A cali-", line)] + [tables]


def own_places(node: Node) -> set[tuple[str, int, int]]:
    """Our rules in the kernel's chains: (chain, its place from the front, from the end)."""
    found: set[tuple[str, int, int]] = set()
    for table in ("raw", "mangle", "nat", "filter"):
        chains: dict[str, list[str]] = {}
        for line in node.rules(4, "-t", table).splitlines():
            if line.startswith("-A ") and line.split()[1].isupper() and "-" not in line.split()[1]:
                chains.setdefault(f"{table} {line.split()[1]}", []).append(line)
        for chain, rules in chains.items():
            places = [number for number, rule in enumerate(rules) if "cali:" in rule]
            found |= {(chain, number, number - len(rules)) for number in places}
    return found


def test_rules_of_others_stay_as_they_are_from_start_to_end(felix: FelixProcess) -> None:
    """And ours keep their places among them: first, and last where others have to be before us."""
    node = felix.node
    six = "".join(line for line in FOREIGN.splitlines(True) if "10." not in line)
    node.ns.run("iptables-nft-restore", "--noflush", stdin=FOREIGN)
    node.ns.run("ip6tables-nft-restore", "--noflush", stdin=six)
    node.ns.run("nft", "-f", "-", stdin=FOREIGN_TABLES)
    before = theirs(node)
    felix.put(pool("p", "10.65.0.0/16", nat=True))
    felix.started(NFTABLESMODE="Disabled")
    assert theirs(node) == before
    few = own_places(node)
    a, b, _ = pods(felix)
    eventually(lambda: a.reaches(b.v4))
    felix.put(profile("other", allow()), host("h"), global_policy("g", selector="all()", ingress=(allow(),)))
    eventually(lambda: "cali-pi-gnp/g" in node.rules(4) and "cali-thfw-eth0" in node.rules(4))
    places = own_places(node)
    assert theirs(node) == before and places > few, "a host endpoint brings more, and moves none"
    firsts = {(chain, start) for chain, start, end in places if chain != "nat POSTROUTING" and start == 0}
    assert len(firsts) == 8 and max(end for chain, _, end in places if chain == "nat POSTROUTING") == -1
    assert {end for chain, _, end in places if chain == "filter FORWARD"} >= {-1, -2}
    for mode, wanted in (("Enabled", set()), ("Disabled", places)):
        felix.kill(signal.SIGTERM)
        felix.started(NFTABLESMODE=mode)
        assert (theirs(node), own_places(node)) == (before, wanted)
    felix.kill(signal.SIGTERM)
    assert (theirs(node), own_places(node)) == (before, places), "what enforces stays when felix ends"


@MODES
def test_rules_are_written_as_configuration_wants_them(felix: FelixProcess, mode: str) -> None:
    """Place among others' rules, denials, what is logged and how often."""
    node = felix.node
    node.ns.sh("iptables-nft -A FORWARD -s 203.0.113.0/24 -j DROP")
    logging = global_policy("g", selector="all()", ingress=(Rule(action="Log"), allow()), types=("Ingress",))
    felix.put(logging)
    felix.started(
        NFTABLESMODE=mode, CHAININSERTMODE="append", IPTABLESFILTERDENYACTION="REJECT",
        NFTABLESFILTERDENYACTION="REJECT", LOGPREFIX="seen-%n", LOGACTIONRATELIMIT="5/minute",
        LOGACTIONRATELIMITBURST="7", FAILSAFEINBOUNDHOSTPORTS="none",
    )  # fmt: skip
    a, b, stranger = pods(felix)
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    if mode == "Enabled":
        text = node.ns.sh("nft list table ip calico") + node.ns.sh("nft list table ip6 calico")
        assert text.count("limit rate 5/minute burst 7 packets counter packets") == 2
        assert text.count('log prefix "seen-g: " level info') == 2
    else:
        text = node.rules(4) + node.rules(6)
        log = r'--limit 5/min --limit-burst 7 .*-j LOG --log-prefix "seen-g: " --log-level 5'
        assert len(re.findall(log, text)) == 2
        forward = [line for line in node.rules(4).splitlines() if line.startswith("-A FORWARD")]
        assert "203.0.113.0/24" in forward[0] and "cali-FORWARD" in forward[1]
    said = stranger.ns.run("ping", "-n", "-c", "1", "-W", "60", a.v4, check=False)
    assert "Destination Port Unreachable" in said


def test_kube_proxy_decides_where_felix_is_to_follow_it(felix: FelixProcess) -> None:
    felix.started()
    assert traces(felix.node)["iptables"] and not traces(felix.node)["nftables"]
    felix.node.ns.sh("nft add table ip kube-proxy")
    felix.node.ns.sh("nft add chain ip kube-proxy services")
    assert felix.ends() == RESTART
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
    """Till then there are no rules that could deny anything, but what is allowed goes on, as ever.

    Only what somebody deletes as a whole may take packets with it: the kernel empties the maps of a table
    of nftables before the rules go that look into them.
    """
    felix.put(pool("p", "10.65.0.0/16", nat=True))
    refresh = {"NFTABLESREFRESHINTERVAL": "1", "IPTABLESREFRESHINTERVAL": "1", "IPSETSREFRESHINTERVAL": "1"}
    felix.started(NFTABLESMODE=mode, **refresh)
    pods(felix)
    eventually(lambda: len(felix.files()) == 2)  # all of theirs stands
    before, repairs, flushes = rules_of(felix.node, mode), [], []
    packets = traffic()
    for commands in _FLUSHES[mode]:

        def flush(commands: list[str] = commands) -> None:
            for command in commands:
                span = packets.during(partial(felix.node.ns.sh, command))
                if mode == "Enabled" and "flush table" not in command:
                    flushes.append(span)
            eventually(lambda: rules_of(felix.node, mode) == before)

        repairs.append(packets.during(flush))
        packets.round()
    sent = packets.end()
    assert lost(apart(sent, flushes)) == []
    outside = apart(sent, repairs)
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


@MODES
def test_killed_again_and_again_among_updates(
    felix: FelixProcess, traffic: Callable[[], Traffic], mode: str
) -> None:
    """Wherever that hits it. What a first tier decides is not changed by anything that comes behind it."""
    pods(felix)
    felix.node.pod("c")
    among = EntityRule(selector="app == 'web'")
    rules = {"ingress": (allow(source=among), DENY), "egress": (allow(destination=among), DENY)}
    felix.put(tier("guard", 0), global_policy("guard", tier="guard", selector="has(guard)", **rules))
    for name, app in (("a", "web"), ("b", "web"), ("c", "db")):
        felix.endpoint(name, "open", labels={"app": app, "guard": "yes", "old": "yes"})
    felix.started(NFTABLESMODE=mode)
    a, b = felix.node.pods["a"], felix.node.pods["b"]
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    packets, rand = traffic(), Random(3)
    for number in range(5):
        for _ in range(rand.randint(5, 60)):
            world = {key: one for key, one in a_world(rand).items() if not key.kind.endswith("Endpoint")}
            key = rand.choice(sorted(world, key=str))
            if rand.random() < 0.8:
                felix.put((key, world[key]))
            else:
                felix.delete(key)
        felix.kill()
        felix.start(NFTABLESMODE=mode)
        if number % 2:  # else it meets its end while it starts
            felix.up()
    felix.up()
    packets.round()
    sent = packets.end()
    assert (lost(sent), leaked(sent)) == ([], [])
    assert "Traceback" not in felix.log


def handles(node: Node, mode: str) -> list[str]:
    """The kernel's numbers of the rules in a chain: they change when it is written."""
    chain = "calico filter-cali-fw-calia" if mode == "Enabled" else "filter cali-fw-calia"
    return re.findall(r"# handle \d+", node.ns.sh(f"nft -a list chain ip {chain}"))


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
