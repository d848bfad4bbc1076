"""Felix as a real process beside a real etcd: it obeys, survives, adopts, reports, and never opens."""

import errno
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from msgspec import structs

from tests.felix.node_lab import Pod, comparable, pings
from tests.felix.objects import allow, global_policy, host, policy, pool, profile, tier
from tests.felix.objects import node as node_object
from tests.felix.process_lab import NODE, FelixProcess, Stream
from tests.netns_lab import eventually
from tests.support.etcd import Etcd
from tortie.datastore.keys import (
    AffinityKey,
    BlockKey,
    HostEndpointStatusKey,
    ProcessStatusKey,
    ResourceKey,
    WorkloadStatusKey,
)
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.ipam import Affinity, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import NodeStatus
from tortie.datastore.types.policy import EntityRule
from tortie.felix.config import RESTART

pytestmark = pytest.mark.kernel


def pair(felix: FelixProcess, *profiles: str) -> tuple[Pod, Pod]:
    a, b = felix.node.pod("a"), felix.node.pod("b")
    for pod in (a, b):
        pod.cni_route()
        felix.endpoint(pod.name, *profiles)
    return a, b


def file_of(name: str) -> str:
    return f"k8s default%2F{name} eth0"


# --- it obeys ------------------------------------------------------------------------------------


def test_endpoints_and_profiles_take_effect_as_they_are_written(felix: FelixProcess) -> None:
    felix.started()
    a, b = pair(felix, "open")
    eventually(lambda: felix.files() == {file_of("a"), file_of("b")})
    for address in (b.v4, b.v6):
        assert a.reaches(address, within=60)
    felix.endpoint("b", "later")
    felix.wait_for(r"Profile\(later\): does not exist")
    eventually(lambda: not a.reaches(b.v4))
    felix.put(profile("later", allow()))
    eventually(lambda: a.reaches(b.v4))
    felix.wait_for(r"Profile\(later\) is all right again")
    key = felix.endpoint("b", "later")
    felix.delete(key)
    eventually(lambda: felix.files() == {file_of("a")})
    eventually(lambda: not a.reaches(b.v4))
    eventually(lambda: not [line for line in felix.node.routes() if b.v4 in line])


def test_policies_take_effect_as_they_are_written(felix: FelixProcess) -> None:
    felix.started()
    a, b = pair(felix, "open")
    eventually(lambda: a.reaches(b.v4))
    closed = policy("p", selector="app == 'db'", types=("Ingress",))
    felix.put(tier("default", 1_000_000, "Deny"), closed)
    felix.endpoint("b", "open", labels={"app": "db"})
    eventually(lambda: not a.reaches(b.v4))
    felix.kill()
    felix.started()
    assert not a.reaches(b.v4) and b.reaches(a.v4, within=60)
    only_web = allow(source=EntityRule(selector="app == 'web'"))
    felix.put(policy("p", selector="app == 'db'", types=("Ingress",), ingress=(only_web,)))
    felix.endpoint("a", "open", labels={"app": "web"})
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    felix.put(
        policy("p", selector="app == 'db'", types=("Ingress",), ingress=(allow(), allow(protocol="bogus")))
    )
    felix.wait_for(r"NetworkPolicy\(default/p\): denies everything, because it is invalid: .*bogus")
    eventually(lambda: not a.reaches(b.v4))
    felix.delete(closed[0])
    eventually(lambda: a.reaches(b.v4))


def test_a_host_endpoint_shuts_the_host_but_for_failsafes_and_says_where_it_is(
    felix: FelixProcess, etcd: Etcd
) -> None:
    felix.started(ENDPOINTREPORTINGENABLED="true", ENDPOINTREPORTINGDELAYSECS="0.2")
    outside, inside = felix.node.outside, felix.node.ns
    assert pings(outside, "172.16.0.1", within=60)
    felix.put(host("h"), host("astray", "", "1.2.3.4"))
    felix.wait_for("host endpoint h is up")
    eventually(lambda: not pings(outside, "172.16.0.1"))

    def answers(port: int, within: float) -> bool:
        """A closed port says so; one that packets do not reach says nothing."""
        with outside.call(socket.socket) as one:
            one.settimeout(within)
            return one.connect_ex(("172.16.0.1", port)) == errno.ECONNREFUSED

    assert answers(22, 60) and not answers(23, 0.5)
    assert not pings(inside, "172.16.0.254")
    felix.put(global_policy("icmp", ingress=(allow(protocol="ICMP"),), types=("Ingress",)))
    eventually(lambda: pings(outside, "172.16.0.1"))
    statuses = {
        HostEndpointStatusKey(NODE, "h").path(): "up",
        HostEndpointStatusKey(NODE, "astray").path(): "error",
    }
    for path, status in statuses.items():
        eventually(lambda path=path, status=status: status.encode() in etcd.entries(path).get(path, b""))  # type: ignore[misc]
    felix.delete(host("h")[0], host("astray")[0])
    eventually(lambda: pings(inside, "172.16.0.254"))
    for path in statuses:
        eventually(lambda path=path: path not in etcd.entries(path))  # type: ignore[misc]


def test_what_is_stored_counts_as_clients_read_it(felix: FelixProcess) -> None:
    """A tier without an order, which no client of today writes, stands where the default one does."""
    a, b = pair(felix, "open")
    felix.started()
    eventually(lambda: a.reaches(b.v4))
    felix.put(tier("late", 2_000_000), global_policy("deny", tier="late", types=("Ingress",)))
    eventually(lambda: not a.reaches(b.v4))
    felix.put(tier("plain"), global_policy("allow", tier="plain", types=("Ingress",), ingress=(allow(),)))
    eventually(lambda: a.reaches(b.v4))


def test_a_pod_waits_for_its_status_file_and_then_is_reachable(felix: FelixProcess) -> None:
    """CNI takes the file as leave to let the pod go: at that moment everything must stand."""
    felix.started()
    a = felix.node.pod("a")
    felix.endpoint("a", "open")
    eventually(lambda: felix.files() == {file_of("a")})
    for number in range(5):
        pod = felix.node.pod(f"n{number}")
        felix.endpoint(pod.name, "open")
        eventually(lambda name=pod.name: file_of(name) in felix.files())  # type: ignore[misc]
        for one, other in ((pod, a), (a, pod)):
            # a busy machine may take its time; what is lost stays lost
            assert pings(one.ns, other.v4, within=60)


def test_own_blocks_are_blackholed_where_felix_routes(felix: FelixProcess) -> None:
    felix.put(pool("mine", "10.65.0.0/16", vxlan="CrossSubnet"), pool("bgps", "10.66.0.0/16"))
    for block in ("10.65.0.0/26", "10.66.0.0/26"):
        felix.put((AffinityKey(block, NODE), Affinity(state="confirmed")))
    felix.started()
    assert "blackhole 10.65.0.0/26 proto 80" in felix.node.routes()
    assert not [line for line in felix.node.routes() if "10.66" in line]


def test_cni_is_told_the_mtu_of_the_encapsulation(felix: FelixProcess) -> None:
    felix.started(MTUIFACEPATTERN="^lo$")
    own = felix.node.ns.ip("link", "show", "lo")[0]["mtu"]
    file = felix.folder / "lib" / "mtu"
    eventually(lambda: file.exists() and file.read_text() == str(own))
    felix.put(pool("tunnelled", "10.65.0.0/16", vxlan="Always"))
    assert felix.ends() == RESTART
    felix.started(MTUIFACEPATTERN="^lo$")
    eventually(lambda: file.read_text() == str(own - 50))


def test_ipip_without_the_kernels_help_is_said_and_hurts_nobody_else(felix: FelixProcess) -> None:
    """Pods of this node are up; that others are out of reach makes felix unready, and it says why."""
    felix.node.ns.veth("tunl0", "other-end")  # so that there is none on any kernel
    felix.parameters["IPINIPTUNNELADDR"] = "10.65.0.99"
    felix.put(pool("p", "10.65.0.0/16", ipip="Always"))
    a, b = pair(felix.started(), "open")
    eventually(lambda: a.reaches(b.v4))
    eventually(lambda: "tunl0" in felix.report()["reason"])


def test_a_wireguard_key_that_a_node_cannot_have_is_taken_out_of_its_node(
    felix: FelixProcess, etcd: Etcd
) -> None:
    """Others would encrypt what nobody here can read. Here the device's name is taken, on any kernel."""
    felix.node.ns.veth("wireguard.cali", "other-end")
    key, own = node_object(NODE, "172.16.0.1/24")
    own = own.with_metadata(uid="1", creationTimestamp="2026-01-01T00:00:00Z")
    felix.put((key, structs.replace(own, status=NodeStatus(wireguardPublicKey="A" * 42 + "E="))))
    a, b = pair(felix.started(WIREGUARDENABLED="true"), "open")
    eventually(lambda: b"wireguardPublicKey" not in etcd.entries(key.path())[key.path()])
    assert b"172.16.0.1/24" in etcd.entries(key.path())[key.path()]
    felix.wait_for("WireGuard devices could not be made so.* there is a veth of this name")
    eventually(lambda: a.reaches(b.v4))
    eventually(lambda: felix.report()["ready"])


def test_an_invalid_pool_is_no_pool_and_said_to_be_once(felix: FelixProcess) -> None:
    """As for confd, with its words: else one of them would make routes that the other knows nothing of."""
    key, bad = pool("bad", "10.65.0.0/16", vxlan="CrossSubnet")
    felix.put((key, structs.replace(bad, spec=structs.replace(bad.spec, ipipMode="Always"))))
    felix.put((AffinityKey("10.65.0.0/26", NODE), Affinity(state="confirmed")))
    felix.started()
    assert not [line for line in felix.node.routes() if "10.65" in line]
    said = "ipipMode and vxlanMode cannot both be enabled"
    felix.wait_for(said)
    (line,) = [line for line in felix.log.splitlines() if said in line]
    assert f"ignoring {key.path()}, which is invalid: error with field" in line


# --- it survives ----------------------------------------------------------------------------------


def test_killed_and_restarted_it_interrupts_nothing(felix: FelixProcess) -> None:
    felix.started()
    a, b = pair(felix, "open")
    stranger = felix.node.pod("stranger")
    stranger.cni_route()
    eventually(lambda: a.reaches(b.v4) and a.reaches(b.v6))
    streams = [Stream(a.ns, b.v4), Stream(b.ns, a.v6)]
    eventually(lambda: all(stream.heard() for stream in streams))
    rules = felix.node.rules(4, "-t", "filter")
    felix.kill()
    assert not stranger.reaches(a.v4), "what is unknown stays shut while felix is dead"
    assert not a.reaches(stranger.v4)
    felix.started()
    assert comparable(felix.node.rules(4, "-t", "filter")) == comparable(rules)
    felix.kill(signal.SIGTERM)
    felix.started()
    assert [stream.lost() for stream in streams] == [0, 0]
    assert not stranger.reaches(a.v4)


def test_a_stream_does_show_an_interruption(felix: FelixProcess) -> None:
    """The control of the test above: without the route for some packets, they are lost."""
    felix.started()
    a, b = pair(felix, "open")
    eventually(lambda: a.reaches(b.v4))
    felix.kill()
    stream = Stream(a.ns, b.v4)
    eventually(stream.heard)

    def sent() -> int:
        (link,) = a.ns.ip("-s", "link", "show", "dev", "eth0")
        return int(link["stats64"]["tx"]["packets"])

    felix.node.ns.sh(f"ip route del {b.v4}/32")
    before = sent()
    eventually(lambda: sent() > before + 5)
    felix.node.ns.sh(f"ip route add {b.v4}/32 dev {b.interface} scope link")
    assert stream.lost() > 0


def test_counters_keep_counting_over_a_restart(felix: FelixProcess) -> None:
    felix.started()
    a, b = pair(felix, "open")
    eventually(lambda: a.reaches(b.v4))
    before = counted(felix)
    assert before
    felix.kill()
    felix.started()
    assert a.reaches(b.v4, within=60)
    after = counted(felix)
    assert all(after[rule] >= packets for rule, packets in before.items())


def counted(felix: FelixProcess) -> dict[str, int]:
    found = re.findall(r"\[(\d+):\d+\] (-A cali-\S+ .*)", felix.node.rules(4, "-c", "-t", "filter"))
    return {rule: int(packets) for packets, rule in found if int(packets)}


def test_losing_the_datastore_loses_nothing_else(felix: FelixProcess, etcd: Etcd) -> None:
    felix.started(IPTABLESREFRESHINTERVAL="1", IPTABLESPOSTWRITECHECKINTERVALSECS="1")
    a, b = pair(felix, "open")
    eventually(lambda: a.reaches(b.v4))
    etcd.kill()
    felix.wait_for("cannot follow the datastore")
    assert a.reaches(b.v4, within=60)
    felix.node.ns.sh("iptables-nft -F")
    eventually(lambda: "-j cali-FORWARD" in felix.node.rules())
    eventually(lambda: a.reaches(b.v4))
    etcd.restart()
    felix.wait_for("following the datastore again")
    felix.endpoint("b")
    eventually(lambda: not a.reaches(b.v4))


def test_without_a_datastore_at_the_start_what_stands_stays(felix: FelixProcess, etcd: Etcd) -> None:
    felix.started()
    a, b = pair(felix, "open")
    eventually(lambda: a.reaches(b.v4))
    felix.kill()
    etcd.kill()
    felix.start()
    felix.wait_for("the datastore cannot be read")
    assert a.reaches(b.v4, within=60)
    etcd.restart()
    felix.up()
    assert a.reaches(b.v4, within=60)


@pytest.mark.parametrize(
    "parameters", [{}, {"NFTABLESMODE": "Enabled", "IPINIPENABLED": "true"}], ids=["iptables", "nftables"]
)
def test_on_a_fresh_node_without_a_datastore_pods_are_shut(
    felix: FelixProcess, etcd: Etcd, parameters: dict[str, str]
) -> None:
    """Nothing stands yet and nothing is known: felix denies until it knows."""
    etcd.kill()
    a, b = felix.node.pod("a"), felix.node.pod("b")
    for pod in (a, b):
        pod.cni_route()
    assert a.reaches(b.v4, within=60), "forwarding is on and nobody has forbidden anything"
    felix.start(**parameters)
    felix.wait_for("the datastore cannot be read")
    assert not a.reaches(b.v4) and not a.reaches(b.v6) and not a.reaches("172.16.0.1")
    etcd.restart()
    for name in ("a", "b"):
        felix.endpoint(name, "open")
    eventually(lambda: a.reaches(b.v4))


# --- it repairs -----------------------------------------------------------------------------------


def test_what_others_break_is_put_back_in_time(felix: FelixProcess) -> None:
    felix.started(IPTABLESREFRESHINTERVAL="1", IPSETSREFRESHINTERVAL="1", ROUTEREFRESHINTERVAL="1")
    a, b = pair(felix, "open")
    felix.put(policy("p", types=("Ingress",), ingress=(allow(protocol="ICMP"),)))
    eventually(lambda: a.reaches(b.v4) and "-j cali-pi-np/default/p" in felix.node.rules())
    felix.put(pool("p", "10.65.0.0/16"))
    in_set = "add cali40network-ip-pools 10.65.0.0/16"
    eventually(lambda: in_set in felix.node.ns.sh("ipset save"))
    felix.node.ns.sh("iptables-nft -F")
    felix.node.ns.sh("ipset flush cali40network-ip-pools")
    felix.node.ns.sh("sysctl -qw net.ipv4.conf.calia.proxy_arp=0")
    eventually(lambda: "-j cali-FORWARD" in felix.node.rules())
    eventually(lambda: "-j cali-pi-np/default/p" in felix.node.rules())
    eventually(lambda: in_set in felix.node.ns.sh("ipset save"))
    eventually(lambda: felix.node.ns.sh("sysctl -n net.ipv4.conf.calia.proxy_arp") == "1\n")


def test_a_deleted_route_is_back_at_once(felix: FelixProcess) -> None:
    """Within no refresh interval: the kernel tells of it."""
    felix.started(ROUTEREFRESHINTERVAL="3600", INTERFACEREFRESHINTERVAL="3600")
    a, b = pair(felix, "open")
    eventually(lambda: a.reaches(b.v4))
    for family, address in (("-4", f"{b.v4}/32"), ("-6", f"{b.v6}/128")):
        felix.node.ns.sh(f"ip {family} route del {address} dev {b.interface}")
        eventually(lambda family=family, address=address: felix.node.ns.ip(family, "route", "show", address))  # type: ignore[misc]


def test_an_interface_that_flaps_gets_its_routes_back(felix: FelixProcess) -> None:
    felix.started(ROUTEREFRESHINTERVAL="3600", INTERFACEREFRESHINTERVAL="3600")
    a, b = pair(felix, "open")
    eventually(lambda: a.reaches(b.v4))
    felix.node.ns.sh(f"ip link set {b.interface} down")
    felix.node.ns.sh(f"ip link set {b.interface} up")
    eventually(lambda: a.reaches(b.v4))


def test_an_uplink_that_flaps_gets_its_routes_back(felix: FelixProcess) -> None:
    """Those to other nodes' blocks: the kernel takes them with the interface and does not say so."""
    felix.put(pool("flat", "10.65.0.0/16"), node_object("node2", "172.16.0.2/24"))
    felix.put((BlockKey("10.65.2.0/26"), Block(cidr="10.65.2.0/26", affinity="host:node2")))
    hour = {"ROUTEREFRESHINTERVAL": "3600", "INTERFACEREFRESHINTERVAL": "3600"}
    felix.started(PROGRAMCLUSTERROUTES="Enabled", **hour)
    route = "10.65.2.0/26 via 172.16.0.2 dev eth0 proto 80 onlink"
    eventually(lambda: route in felix.node.routes())
    felix.node.ns.sh("ip link set eth0 down")
    assert route not in felix.node.routes()
    felix.node.ns.sh("ip link set eth0 up")
    eventually(lambda: route in felix.node.routes())


# --- it is told, and tells ------------------------------------------------------------------------


def test_another_configuration_means_a_fresh_start(felix: FelixProcess) -> None:
    felix.started()
    a, _ = pair(felix, "open")
    eventually(lambda: file_of("a") in felix.files())
    assert not a.reaches("172.16.0.1")
    configuration = FelixConfiguration(
        metadata=ObjectMeta(name="default"), spec={"defaultEndpointToHostAction": "Accept"}
    )
    felix.put((ResourceKey("FelixConfiguration", "default"), configuration))
    assert felix.ends() == RESTART
    felix.started()
    assert "DefaultEndpointToHostAction = 'ACCEPT' (from datastore (global))" in felix.log
    assert a.reaches("172.16.0.1", within=60)


def test_a_configuration_that_changes_nothing_for_felix_is_no_reason(felix: FelixProcess) -> None:
    felix.started()
    configuration = FelixConfiguration(
        metadata=ObjectMeta(name="default"), spec={"usageReportingEnabled": False}
    )
    felix.put((ResourceKey("FelixConfiguration", "default"), configuration))
    felix.put((ResourceKey("FelixConfiguration", "node.other"), configuration))
    a, b = pair(felix, "open")
    eventually(lambda: a.reaches(b.v4))
    assert felix.process is not None and felix.process.poll() is None


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, RESTART)]
)
def test_it_ends_as_it_is_asked_to_and_leaves_everything(
    felix: FelixProcess, number: signal.Signals, code: int
) -> None:
    felix.started()
    a, b = pair(felix, "open")
    eventually(lambda: felix.files() == {file_of("a"), file_of("b")})  # all of theirs stands
    rules, routes = comparable(felix.node.rules()), felix.node.routes()
    assert felix.kill(number) == code
    assert (comparable(felix.node.rules()), felix.node.routes()) == (rules, routes)
    assert a.reaches(b.v4, within=60)
    assert "Traceback" not in felix.log


def test_it_says_how_it_is(felix: FelixProcess, etcd: Etcd) -> None:
    etcd.kill()
    felix.start()
    waiting = felix.report()
    assert (waiting["name"], waiting["live"], waiting["ready"]) == ("felix", True, False)
    assert "datastore" in waiting["reason"]
    etcd.restart()
    felix.up()
    eventually(lambda: felix.report()["ready"])


def test_statuses_are_reported_to_the_datastore_when_asked_for(felix: FelixProcess, etcd: Etcd) -> None:
    felix.started(
        ENDPOINTREPORTINGENABLED="true", ENDPOINTREPORTINGDELAYSECS="0.1", REPORTINGINTERVALSECS="1"
    )
    pair(felix, "open")
    felix.node.pod("c")
    felix.endpoint("c", "open")
    felix.node.pods["c"].delete()
    own = WorkloadStatusKey(NODE, "k8s", "default/a", "eth0").path()
    lost = WorkloadStatusKey(NODE, "k8s", "default/c", "eth0").path()
    eventually(lambda: etcd.entries(own).get(own) == b'{"status":"up"}')
    eventually(lambda: etcd.entries(lost).get(lost) == b'{"status":"down"}')
    alive = ProcessStatusKey(NODE).path()
    eventually(lambda: alive in etcd.entries(alive))
    assert json.loads(etcd.entries(alive)[alive]).keys() == {"time", "uptime", "first_update"}
    felix.delete(felix.endpoint("a", "open"))
    eventually(lambda: own not in etcd.entries(own))


# --- hostile data ---------------------------------------------------------------------------------

PREFIX = "/calico/resources/v3/projectcalico.org"
POISON = {
    f"{PREFIX}/workloadendpoints/default/node1-k8s-bad-eth0": b"{not json",
    f"{PREFIX}/workloadendpoints/default/node1-k8s-bad2-eth0": json.dumps(
        {"spec": {"interfaceName": 'cali"; -A', "ipNetworks": ["10.65.0.1/32"], "node": "node1"}}
    ).encode(),
    f"{PREFIX}/workloadendpoints/default/node1-k8s-bad3-eth0": json.dumps(
        {"spec": {"interfaceName": "calibad3", "ipNetworks": ["10.65.0.1/32\n-A INPUT -j ACCEPT"]}}
    ).encode(),
    f"{PREFIX}/workloadendpoints/default/node1-k8s-bad4-eth0": b'{"spec": {"ipNetworks": 7}}',
    f"{PREFIX}/workloadendpoints/default/nonsense": b'{"spec": {"ipNetworks": ["10.65.0.1/32"]}}',
    f'{PREFIX}/profiles/evil" -j ACCEPT': b'{"spec": {"ingress": [{"action": "Allow"}]}}',
    f"{PREFIX}/profiles/deep": b'{"spec": ' * 200 + b"1" + b"}" * 200,
    f"{PREFIX}/profiles/open2": b'{"spec":{"ingress":[{"action":"Allow","source":{"selector":"((("}}]}}',
    f"{PREFIX}/ippools/evil": b'{"spec": {"cidr": "10.0.0.0/8\\nadd x y", "natOutgoing": true}}',
    f"{PREFIX}/nodes/evil": b'{"spec": {"bgp": {"ipv4Address": "{{ 7*7 }}/99"}}}',
    f"{PREFIX}/globalnetworksets/evil": b'{"spec": {"nets": ["::/0", "x"]}}',
    f"{PREFIX}/felixconfigurations/node.node1": b'{"spec": {"interfacePrefix": 5, "bogus": {}}}',
    f"{PREFIX}/bgpconfigurations/default": b'{"spec": {"serviceClusterIPs": [{"cidr": "x\\n"}]}}',
    "/calico/ipam/v2/host/node1/ipv4/block/10.65.0.0-99": b"{}",
    f"{PREFIX}/profiles/{'x' * 5000}": b"\xff\xfe",
}


def test_poison_in_the_datastore_stops_nothing_and_is_reported_once(felix: FelixProcess, etcd: Etcd) -> None:
    for key, value in POISON.items():
        etcd.put(key, value)
    felix.started()
    a, b = pair(felix, "open")
    felix.node.pod("c")
    felix.endpoint("c", 'evil" -j ACCEPT', "open2", "deep", "{{ x }}\n")
    eventually(lambda: a.reaches(b.v4))
    c = felix.node.pods["c"]
    eventually(lambda: a.reaches(c.v4))  # an ugly name is a name all the same
    assert not c.reaches(a.v4)
    for key, value in POISON.items():  # again, while it runs
        etcd.put(key, value)
    felix.endpoint("b")
    eventually(lambda: not a.reaches(b.v4))
    assert felix.process is not None and felix.process.poll() is None
    warnings = [line for line in felix.log.splitlines() if "[WARNING]" in line]
    for name in (
        "k8s-bad-eth0",
        "k8s-bad2-eth0",
        "k8s-bad3-eth0",
        "k8s-bad4-eth0",
        "nonsense",
        "profiles/deep",
    ):
        assert len([line for line in warnings if name in line]) == 1, (name, warnings)
    assert any("InterfacePrefix" in line for line in warnings)
    rules = felix.node.rules() + felix.node.rules(6) + felix.node.ns.sh("ipset save")
    assert rules.isascii() and "7*7" not in rules
    assert "\n-A INPUT -j ACCEPT" not in rules


def test_it_needs_little(felix: FelixProcess) -> None:
    """Not a measurement: a guard against importing the world or spinning."""
    felix.started()
    assert felix.process is not None
    pid = felix.process.pid
    (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert int(resident) < 120_000
    used = sum(int(field) for field in Path(f"/proc/{pid}/stat").read_text().split()[13:15])
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 2)
    now = sum(int(field) for field in Path(f"/proc/{pid}/stat").read_text().split()[13:15])
    assert now - used < os.sysconf("SC_CLK_TCK") * (time.monotonic() - began) * 0.2
