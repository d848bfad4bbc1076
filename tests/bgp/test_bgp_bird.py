"""What BIRD says, read into the agent's words; its control socket; what is left for it in the kernel."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import AF_INET, AF_INET6

import pytest

from tests.bgp.bgp_routers import bird_config
from tests.netns_lab import Namespace, eventually
from tortie.bgp import ask, bird, birdctl, birdoutput, birdstatus, leftovers, metrics
from tortie.bgp.config import Config, Local, Pool
from tortie.core.errors import ConfigError, PeerError
from tortie.core.paths import Paths
from tortie.core.speaker import speaker
from tortie.linux.netlink import NetlinkSocket

_STATUS = """BIRD 2.0.12
Router ID is 10.0.0.1
Hostname is vm
Current server time is 2026-11-21 18:27:35.372
Last reboot on 2026-11-21 18:27:33.857
Last reconfiguration on 2026-11-21 18:30:00.000
Daemon is up and running
""".splitlines()

_PROTOCOLS = """Name       Proto      Table      State  Since         Info
device1    Device     ---        up     2026-11-21T18:27:33

kernel1    Kernel     master4    up     2026-11-21T18:27:33
  Channel ipv4
    State:          UP
    Routes:         1 imported, 2 exported, 1 preferred

Mesh_10_0_0_2 BGP        ---        up     2026-11-21T18:28:00  Established
  Description:    Node_10_0_0_2
  BGP state:          Established
    Neighbor address: 10.0.0.2
    Neighbor AS:      64512
    Hold timer:       62.195/90
  Channel ipv4
    State:          UP
    Receive limit:  250000
      Action:       block
    Routes:         3 imported, 1 filtered, 5 exported, 3 preferred

Global_10_0_0_3_port_1790 BGP --- start  2026-11-20T01:02:03  Active   Socket: Connection refused
  BGP state:          Active
    Neighbor address: 10.0.0.3
    Neighbor port:    1790
    Neighbor AS:      64513
    Last error:       Received: Administrative shutdown
  Channel ipv4
    State:          DOWN

Local_Workload_10_1_2_3 BGP --- start 2026-11-21T18:27:33  Passive
  BGP state:          Passive
    Neighbor address: 10.1.2.3

mine       BGP        ---        start  2026-11-21T18:27:33  Passive
  BGP state:          Passive
    Neighbor address: 10.0.0.4
""".splitlines()

_ROUTES = """Table master4:
0.0.0.0/0            unicast [kernel1 18:27:33.860] * (10)
	via 10.0.0.254 on eth0
192.168.1.0/26       blackhole [static1 18:27:33.857] * (200)
192.168.2.0/26       unicast [Mesh_10_0_0_2 18:28:01.000] * (100/0) [i]
	via 10.0.0.2 on eth0
                     unicast [Global_10_0_0_3_port_1790 18:28:02.000 from 10.0.0.3] (100/0) [AS65000i]
	via 10.0.0.3 on eth0
203.0.113.0/24       unicast [Mesh_10_0_0_2 18:28:01.000] * (100/0) [i]
	via 10.0.0.2 on eth0
""".splitlines()

_EXPORTED = """Table master4:
192.168.1.0/26       blackhole [static1 18:27:33.857] * (200)
192.168.2.0/26       unicast [Mesh_10_0_0_2 18:28:01.000] * (100/0) [i]
	via 10.0.0.2 on eth0 weight 1
	via 10.0.0.3 on eth0 weight 1
""".splitlines()


@pytest.mark.unit
def test_status_of_both_daemons_is_one() -> None:
    recovering = [
        *_STATUS[:-1],
        "Graceful restart recovery in progress",
        "  Waiting for 1 channels to recover",
    ]
    pairs = [
        (birdoutput.daemon(_STATUS), list(birdoutput.protocols(_PROTOCOLS))),
        (birdoutput.daemon(recovering), []),
    ]
    found = birdstatus.status(pairs)
    assert (found.speaker, found.version, found.router_id) == ("bird", "BIRD 2.0.12", "10.0.0.1")
    assert found.starting and not birdstatus.status(pairs[:1]).starting
    assert time.strftime("%T", time.localtime(found.configured)) == "18:30:00"
    mesh, tor, workload = found.peers  # `mine` is none of ours
    assert (workload.address, workload.type, workload.bgp_state) == ("10.1.2.3", "local workload", "Passive")
    assert (mesh.address, mesh.type, mesh.state, mesh.info) == (
        "10.0.0.2",
        "node specific",
        "up",
        "Established",
    ), "a session between nodes keeps its name, whoever asks for it"
    assert (mesh.received, mesh.rejected, mesh.announced, mesh.hold_time) == (4, 1, 5, 90)
    assert time.strftime("%T", time.localtime(mesh.since)) == "18:28:00"
    assert (tor.address, tor.port, tor.type, tor.state) == ("10.0.0.3", 1790, "global", "start")
    assert (tor.bgp_state, tor.info) == ("Active", "Active Socket: Connection refused")
    assert tor.last_notification == "Received: Administrative shutdown"
    assert found.routes.wanted == 2
    text = metrics.text(found)
    assert 'tortie_bgp_sessions{family="4",state="Established"} 1' in text
    assert "tortie_bgp_routes 2" in text and "convergence" not in text, "BIRD does not tell it"


@pytest.mark.unit
def test_the_table_says_what_traffic_takes_and_why_not() -> None:
    protocols = list(birdoutput.protocols(_PROTOCOLS))
    routes, exported = list(birdoutput.routes(_ROUTES)), list(birdoutput.routes(_EXPORTED))
    refused = [birdoutput.Route("10.9.0.0/24", "Mesh_10_0_0_2", "unicast", False, [("10.0.0.2", "eth0")])]
    rows = [
        (row.prefix, row.origin, row.peer, row.next_hop, row.interface, row.used, row.reason)
        for row in birdstatus.table(protocols, routes, refused, exported)
    ]
    assert rows == [
        ("0.0.0.0/0", "kernel", "", "10.0.0.254", "eth0", True, ""),
        ("10.9.0.0/24", "peer", "10.0.0.2", "10.0.0.2", "eth0", False, "refused by an import filter"),
        ("192.168.1.0/26", "static", "", "", "blackhole", True, ""),
        ("192.168.2.0/26", "peer", "10.0.0.2", "10.0.0.2", "eth0", True, ""),
        ("192.168.2.0/26", "peer", "10.0.0.3", "10.0.0.3", "eth0", True, ""),
        ("203.0.113.0/24", "peer", "10.0.0.2", "10.0.0.2", "eth0", False, "not programmed by BGP"),
    ]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "meant"),
    [("", "exabgp"), ("exabgp", "exabgp"), ("bird", "bird"), ("vxlan", "none"), ("none", "none")],
)
def test_who_speaks(given: str, meant: str) -> None:
    assert speaker({"CALICO_NETWORKING_BACKEND": given}) == meant


@pytest.mark.unit
def test_an_unknown_speaker_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="CALICO_NETWORKING_BACKEND = 'frr': not one of exabgp, bird"):
        speaker({"CALICO_NETWORKING_BACKEND": "frr"})


@pytest.mark.unit
def test_bird_recovers_only_what_there_is() -> None:
    paths = Paths(run="/r", confd="/c")
    plain = ["bird", "-f", "-c", "/c/bird.cfg", "-s", "/r/bird.ctl"]
    assert bird.command(4, paths, False) == plain
    assert bird.command(6, paths, True) == ["bird", "-f", "-c", "/c/bird6.cfg", "-s", "/r/bird6.ctl", "-R"]


# --- the real one ---------------------------------------------------------------------------------


@pytest.fixture
def running(netns: Namespace, tmp_path: Path) -> Iterator[Paths]:
    """A BIRD where the IPv4 one would be."""
    (tmp_path / "bird.cfg").write_text(
        bird_config(1, "protocol static { ipv4; route 10.5.0.0/26 blackhole; } protocol kernel { ipv4; }")
    )
    paths = Paths(run=str(tmp_path), confd=str(tmp_path))
    process = netns.call(subprocess.Popen, bird.command(4, paths, False), stderr=subprocess.DEVNULL)
    eventually(lambda: birdctl.there(paths.bird_ctl))
    yield paths
    process.kill()
    process.wait()


@pytest.mark.kernel
def test_birds_own_socket(running: Paths) -> None:
    found = ask.status(running)
    assert found is not None
    assert (found.speaker, found.router_id, found.peers) == ("bird", "10.9.0.1", ())
    eventually(lambda: birdstatus.read_table(running))  # it answers before its protocols are up
    (row,) = birdstatus.read_table(running)
    assert (row.prefix, row.interface, row.origin) == ("10.5.0.0/26", "blackhole", "static")
    assert "Reconfigured" in birdctl.ask(running.bird_ctl, "configure")[-1]
    Path(running.bird_cfg).write_text("protocol bgp {")
    with pytest.raises(PeerError, match=r"refuses 'configure': .*syntax error"):
        birdctl.ask(running.bird_ctl, "configure")
    with pytest.raises(PeerError, match="does not answer"):
        birdctl.ask(running.bird6_ctl, "show status")


@pytest.mark.kernel
def test_the_agents_routes_become_birds_without_a_gap(
    netns: Namespace, make_netns: Callable[[], Namespace], caplog: pytest.LogCaptureFixture
) -> None:
    """Those that can be its own, and that the kernel takes."""
    netns.run("ip", "link", "set", "lo", "up")
    netns.veth("eth0", "eth0", make_netns())
    netns.run("ip", "addr", "add", "10.9.0.1/24", "dev", "eth0")
    for words in (
        "10.5.0.0/26 via 10.9.0.2 dev eth0 onlink proto 186",
        "10.6.0.0/26 proto 186 nexthop via 10.9.0.2 dev eth0 onlink nexthop via 10.9.0.3 dev eth0 onlink",
        "blackhole 10.7.0.0/26 proto 186",
        "10.8.0.0/26 dev eth0 proto 80",
        "203.0.113.0/24 via 10.9.0.2 dev eth0 proto 186",  # FRR's, say
        "10.4.0.0/26 via 10.9.0.127 dev eth0 proto 186",
    ):
        netns.run("ip", "route", "add", *words.split())
    broadcast = ["10.9.0.65/26", "brd", "10.9.0.127"]  # no way leads over that
    netns.run("ip", "addr", "add", *broadcast, "dev", "eth0")
    netns.run("ip", "-6", "route", "add", *["blackhole", "fd05::/122", "proto", "186"])
    local = Local(name="n", router_id="10.9.0.1", as_number=64512)
    pools = tuple(Pool(cidr=cidr) for cidr in ("10.0.0.0/8", "fd05::/48"))
    ours = leftovers.agents(Config(local=local, pools=pools))
    netlink = netns.call(NetlinkSocket)
    with netlink:
        assert leftovers.give_to_bird(netlink, AF_INET, ours) == 3
        assert leftovers.give_to_bird(netlink, AF_INET, ours) == 0
        assert leftovers.give_to_bird(netlink, AF_INET6, ours) == 1
    shown = netns.run("ip", "route", "show", "proto", "bird")
    assert {"10.5.0.0/26", "10.6.0.0/26", "10.7.0.0/26"} <= set(shown.split()) and "onlink" not in shown
    assert "metric 1024" in netns.run("ip", "route", "show", "10.6.0.0/26")
    left = netns.run("ip", "route", "show", "proto", "186").splitlines()
    assert [line.split()[0] for line in left] == ["10.4.0.0/26", "203.0.113.0/24"]
    assert "the route to 10.4.0.0/26 does not become BIRD's: " in caplog.text
    assert "proto bird" in netns.run("ip", "-6", "route", "show", "fd05::/122")
    assert "10.8.0.0/26" in netns.run("ip", "route", "show", "proto", "80")
