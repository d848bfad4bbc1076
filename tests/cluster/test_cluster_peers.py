"""Routers that are no nodes: Debian's BIRD 2 and GoBGP join the cluster by `calicoctl apply` of a BGPPeer."""

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster_bgp import Peers, apply, await_heard, await_status, calicoctl, status
from tortie.lab.box import Box
from tortie.lab.cluster import UNDERLAY, UNDERLAY6, Lab, LabNode, tail, wait_until
from tortie.lab.traffic import Flow

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

_BIRD, _GOBGP = 200, 201  # addresses on the underlay
_OUTSIDE = {4: "203.0.113.0/24", 6: "2001:db8:99::/64"}
_RESTART_TIME = 60  # seconds for which BIRD asks us to keep its routes: longer than a restart here takes


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three ready nodes with both IP versions."""
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, ipv6=True)
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


@pytest.fixture
def bird(lab: Lab) -> Iterator["Bird"]:
    """AS 65020, has sessions to all nodes in both versions; the cluster does not know it yet."""
    bird = Bird(lab.hosts.get("tor") or lab.add_host("tor", _BIRD), lab)
    bird.start()
    yield bird
    bird.kill()
    bird.clean()


class Bird:
    """BIRD 2 on a machine of its own. Its static routes are announced, what it hears goes into its kernel."""

    def __init__(self, box: Box, lab: Lab) -> None:
        self.box = box
        self._lab = lab
        self._conf = box.path("/etc/bird.conf")
        self._restart_time = _RESTART_TIME
        self._announced: tuple[str, ...] = ()

    def start(self) -> None:
        self._announced = ()
        self._run()

    def recover(self, restart_time: int) -> None:
        """As after a crash, when its kernel forwards on (the F bit of RFC 4724)."""
        self._restart_time = restart_time
        self._run("-R")

    def _run(self, *flags: str) -> None:
        self._write()
        self.box.run("mkdir", "-p", "/run/bird")
        self.box.start(["bird", "-f", "-c", "/etc/bird.conf", *flags], self.log)
        wait_until(lambda: self.ask("show", "status") != "", "BIRD to start", 60, lambda: tail(self.log))

    @property
    def log(self) -> Path:
        return self._lab.folder / "bird.log"

    def announce(self, *prefixes: str) -> None:
        """Exactly these."""
        self._announced = prefixes
        self._write()
        assert "Reconfigured" in self.ask("configure")

    def ask(self, *words: str) -> str:
        return self.box.run("birdc", *words, check=False).stdout

    def heard(self, node: LabNode, version: int) -> set[str]:
        """What the node announces."""
        lines = self.ask("show", "route", "protocol", _session(node, version)).splitlines()
        return {line.split()[0] for line in lines if "/" in line.split(" ")[0]}

    def kill(self) -> None:
        self.box.kill("bird", "-f")
        wait_until(lambda: not self.box.pids("bird", "-f"), "BIRD to die", 60)

    def clean(self) -> None:
        """Routes outlive BIRD, and would lead the next test astray."""
        for version in ("-4", "-6"):
            self.box.run("ip", version, "route", "flush", "proto", "bird", check=False)

    def _write(self) -> None:
        def statics(version: int) -> str:
            own = [prefix for prefix in self._announced if ipaddress.ip_network(prefix).version == version]
            return "".join(f" route {prefix} blackhole;" for prefix in own)

        tables = "".join(
            f"protocol static static{v} {{ ipv{v};{statics(v)} }}\n"
            f"protocol kernel kernel{v} {{ ipv{v} {{ export where source = RTS_BGP; }}; merge paths on; }}\n"
            for v in (4, 6)
        )
        sessions = "".join(
            _bird_session(node, v, self._restart_time) for node in self._lab.nodes.values() for v in (4, 6)
        )
        self._conf.write_text(
            f"router id {UNDERLAY}.{_BIRD};\ngraceful restart wait 1;\nprotocol device {{}}\n"
            f"protocol direct {{ ipv4; ipv6; }}\n{tables}{sessions}"
        )


def _session(node: LabNode, version: int) -> str:
    return f"{node.name.replace('-', '')}v{version}"


def _bird_session(node: LabNode, version: int, restart_time: int) -> str:
    own = f"{UNDERLAY}.{_BIRD}" if version == 4 else f"{UNDERLAY6}::{_BIRD:x}"
    return f"""protocol bgp {_session(node, version)} {{
  local {own} as 65020; neighbor {node.ip if version == 4 else node.ip6} as 64512; multihop;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart on; graceful restart time {restart_time};
  ipv{version} {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
"""


class GoBGP:
    """GoBGP on a machine of its own, with IPv4 and IPv6 sessions to some nodes; knows no graceful restart."""

    def __init__(self, box: Box, asn: int, nodes: list[LabNode]) -> None:
        self.box = box
        neighbors = "".join(_gobgp_neighbor(address) for node in nodes for address in (node.ip, node.ip6))
        config = f'[global.config]\n  as = {asn}\n  router-id = "{UNDERLAY}.{_GOBGP}"\n{neighbors}'
        box.path("/etc/gobgp.toml").write_text(config)

    def start(self, log: Path) -> None:
        self.box.start(["gobgpd", "-t", "toml", "-f", "/etc/gobgp.toml", "--pprof-disable"], log)
        wait_until(lambda: "Peer" in self.ask("neighbor"), "GoBGP to start", 60, lambda: tail(log))

    def ask(self, *words: str) -> str:
        return self.box.run("gobgp", *words, check=False).stdout

    def add(self, prefix: str) -> None:
        version = ipaddress.ip_network(prefix).version
        own = f"{UNDERLAY}.{_GOBGP}" if version == 4 else f"{UNDERLAY6}::{_GOBGP:x}"
        self.ask("global", "rib", "add", "-a", f"ipv{version}", prefix, "nexthop", own)

    def remove(self, prefix: str) -> None:
        version = ipaddress.ip_network(prefix).version
        self.ask("global", "rib", "del", "-a", f"ipv{version}", prefix)

    def heard(self, version: int) -> set[str]:
        lines = self.ask("global", "rib", "-a", f"ipv{version}").splitlines()
        return {line.split()[1] for line in lines if line.startswith("*")}

    def kill(self) -> None:
        self.box.kill("gobgpd")
        wait_until(lambda: not self.box.pids("gobgpd"), "GoBGP to die", 60)


def _gobgp_neighbor(address: str) -> str:
    return f"""[[neighbors]]
  [neighbors.config]
    neighbor-address = "{address}"
    peer-as = 64512
  [neighbors.timers.config]
    connect-retry = 1
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "{"ipv6" if ":" in address else "ipv4"}-unicast"
"""


@pytest.fixture
def gobgp(lab: Lab) -> Iterator[GoBGP]:
    """AS 65030, has a session to node-2 only."""
    yield from _gobgp(lab, 65030, [lab.nodes["node-2"]])


@pytest.fixture
def inner_gobgp(lab: Lab) -> Iterator[GoBGP]:
    """In the cluster's own AS, has sessions to all nodes."""
    yield from _gobgp(lab, 64512, list(lab.nodes.values()))


def _gobgp(lab: Lab, asn: int, nodes: list[LabNode]) -> Iterator[GoBGP]:
    gobgp = GoBGP(lab.hosts.get("rack") or lab.add_host("rack", _GOBGP), asn, nodes)
    gobgp.start(lab.folder / "gobgp.log")
    yield gobgp
    gobgp.kill()


# --- what the cluster is like ---------------------------------------------------------------------


def _all_blocks(lab: Lab, version: int) -> set[str]:
    return {cidr for node in lab.nodes.values() for cidr in _own_blocks(node, version)}


def _own_blocks(node: LabNode, version: int) -> set[str]:
    shown = node.box.output("ip", f"-{version}", "route", "show", "type", "blackhole", "proto", "bgp")
    return {line.split()[1] for line in shown.splitlines()}


def _route(node: LabNode, prefix: str) -> str:
    """As people see it; "" if there is none."""
    version = ipaddress.ip_network(prefix).version
    return node.box.output("ip", f"-{version}", "route", "show", prefix).strip()


def _free_prefix(lab: Lab, version: int) -> str:
    """The size of a block, inside the pool, near its end, and nobody's block."""
    pools = json.loads(lab.calicoctl("get", "ippools", "-o", "json").stdout)["items"]
    networks = [ipaddress.ip_network(pool["spec"]["cidr"]) for pool in pools]
    pool = next(one for one in networks if one.version == version)
    size = 64  # addresses of a /26 and of a /122
    last = int(pool.network_address) + pool.num_addresses - size
    blocks = _all_blocks(lab, version)
    free = (ipaddress.ip_network((last - size * n, pool.max_prefixlen - 6)) for n in range(1000))
    return next(str(one) for one in free if str(one) not in blocks)


def _everywhere(lab: Lab, *, present: set[str], absent: set[str], timeout: float = 60) -> None:
    """Wait until all nodes have routes to these and to none of those."""

    def so() -> bool:
        return all(
            all(_route(node, prefix) for prefix in present) and not any(_route(node, one) for one in absent)
            for node in lab.nodes.values()
        )

    wait_until(so, f"routes to {present}, none to {absent}", timeout, lambda: _tables(lab))


def _tables(lab: Lab) -> str:
    return "\n".join(
        f"{node.name}:\n{node.box.output('ip', 'route')}{node.box.output('ip', '-6', 'route')}"
        for node in lab.nodes.values()
    )


def _know_bird(peers: Peers, **spec: object) -> None:
    peers.apply("tor", peerIP=f"{UNDERLAY}.{_BIRD}", asNumber=65020, **spec)
    peers.apply("tor6", peerIP=f"{UNDERLAY6}::{_BIRD:x}", asNumber=65020, **spec)


def _know_gobgp(peers: Peers, asn: int, **spec: object) -> None:
    peers.apply("rack", peerIP=f"{UNDERLAY}.{_GOBGP}", asNumber=asn, **spec)
    peers.apply("rack6", peerIP=f"{UNDERLAY6}::{_GOBGP:x}", asNumber=asn, **spec)


def _pings(box: Box, target: str) -> bool:
    return box.run("ping", "-c", "1", "-W", "1", target, check=False).returncode == 0


# --- tests ----------------------------------------------------------------------------------------


def test_bird_as_a_peer_of_all_nodes(pods: Lab, bird: Bird, peers: Peers) -> None:
    """Another AS: every node tells it of every block, and is told of its prefixes."""
    _know_bird(peers)
    for version in (4, 6):
        blocks = _all_blocks(pods, version)
        assert len(blocks) == 3
        wait_until(
            lambda v=version, b=blocks: all(bird.heard(node, v) == b for node in pods.nodes.values()),  # type: ignore[misc]
            f"BIRD to see the IPv{version} blocks {blocks}", 60, lambda: bird.ask("show", "route", "all"),
        )  # fmt: skip
    for node in pods.nodes.values():
        (block,) = _own_blocks(node, 4)
        shown = bird.ask("show", "route", "all", block, "protocol", _session(node, 4))
        assert "BGP.as_path: 64512\n" in shown and f"BGP.next_hop: {node.ip}\n" in shown
        for address in (f"{UNDERLAY}.{_BIRD}", f"{UNDERLAY6}::{_BIRD:x}"):
            await_status(pods, node, address, "global", "up", "Established")


def test_a_prefix_inside_a_pool_reaches_the_kernel_and_no_other(pods: Lab, bird: Bird, peers: Peers) -> None:
    _know_bird(peers)
    inside = {version: _free_prefix(pods, version) for version in (4, 6)}
    bird.announce(*inside.values(), *_OUTSIDE.values())
    _everywhere(pods, present=set(inside.values()), absent=set(_OUTSIDE.values()))
    node = pods.nodes["node-1"]
    assert _route(node, inside[4]) == f"{inside[4]} via {UNDERLAY}.{_BIRD} dev eth0 proto bgp onlink"
    six = f"{inside[6]} via {UNDERLAY6}::{_BIRD:x} dev eth0 proto bgp metric 1024 onlink pref medium"
    assert _route(node, inside[6]) == six
    bird.announce(inside[6], *_OUTSIDE.values())
    _everywhere(pods, present={inside[6]}, absent={inside[4], *_OUTSIDE.values()})
    bird.announce(*_OUTSIDE.values())
    _everywhere(pods, present=set(), absent={*inside.values(), *_OUTSIDE.values()})


def test_pods_and_the_world_behind_bird_reach_each_other(pods: Lab, bird: Bird, peers: Peers) -> None:
    """Through learned routes only, in both directions and both versions."""
    _know_bird(peers)
    for version in (4, 6):
        inside = _free_prefix(pods, version)
        behind = str(ipaddress.ip_network(inside)[1])
        bird.box.run(
            "ip", "addr", "replace", f"{behind}/{ipaddress.ip_address(behind).max_prefixlen}", "dev", "lo"
        )
        bird.announce(inside)
        _everywhere(pods, present={inside}, absent=set())
        for pod in pods.pods.values():
            target = pod.address(version)
            wait_until(lambda t=target: _pings(bird.box, t), f"{target} to answer BIRD", 60)  # type: ignore[misc]
            pod.output("ping", "-c", "1", "-W", "2", behind)


def test_gobgp_as_a_peer_of_one_node(pods: Lab, gobgp: GoBGP, peers: Peers) -> None:
    """Another AS, one session: that node tells it of every block, and tells the others of its prefix."""
    _know_gobgp(peers, 65030, node="node-2")
    for version in (4, 6):
        blocks = _all_blocks(pods, version)
        wait_until(lambda v=version, b=blocks: gobgp.heard(v) == b, f"GoBGP to see {blocks}", 60)  # type: ignore[misc]
    await_status(pods, pods.nodes["node-2"], f"{UNDERLAY}.{_GOBGP}", "node specific", "up", "Established")
    assert status(pods, pods.nodes["node-1"], f"{UNDERLAY}.{_GOBGP}") == ()
    inside = {version: _free_prefix(pods, version) for version in (4, 6)}
    for prefix in (*inside.values(), *_OUTSIDE.values()):
        gobgp.add(prefix)
    _everywhere(pods, present=set(inside.values()), absent=set(_OUTSIDE.values()))
    assert f"via {UNDERLAY}.{_GOBGP} dev eth0 proto bgp onlink" in _route(pods.nodes["node-2"], inside[4])
    gobgp.remove(inside[4])
    gobgp.remove(inside[6])
    _everywhere(pods, present=set(), absent=set(inside.values()))


def test_gobgp_in_the_same_as(pods: Lab, inner_gobgp: GoBGP, peers: Peers) -> None:
    """iBGP: each node tells it of its own block only, all together of every one."""
    _know_gobgp(peers, 64512)
    for version in (4, 6):
        blocks = _all_blocks(pods, version)
        wait_until(lambda v=version, b=blocks: inner_gobgp.heard(v) == b, f"GoBGP to see {blocks}", 60)  # type: ignore[misc]
    for node in pods.nodes.values():
        told = inner_gobgp.ask("neighbor", node.ip, "adj-in")
        assert {word for word in told.split() if "/26" in word} == _own_blocks(node, 4), told
    inside = _free_prefix(pods, 4)
    inner_gobgp.add(inside)
    inner_gobgp.add(_OUTSIDE[4])
    _everywhere(pods, present={inside}, absent={_OUTSIDE[4]})
    for node in pods.nodes.values():
        assert _route(node, inside) == f"{inside} via {UNDERLAY}.{_GOBGP} dev eth0 proto bgp onlink"
    inner_gobgp.kill()  # it never spoke of graceful restart
    _everywhere(pods, present=set(), absent={inside}, timeout=30)
    await_status(pods, pods.nodes["node-1"], f"{UNDERLAY}.{_GOBGP}", "global", "start")


def test_a_killed_bird_keeps_its_routes_for_its_restart_time(pods: Lab, bird: Bird, peers: Peers) -> None:
    _know_bird(peers)
    inside = {_free_prefix(pods, version) for version in (4, 6)}
    bird.announce(*inside)
    _everywhere(pods, present=inside, absent=set())
    bird.kill()
    node = pods.nodes["node-1"]
    await_status(pods, node, f"{UNDERLAY}.{_BIRD}", "global", "start")
    _everywhere(pods, present=inside, absent=set(), timeout=0)
    bird.recover(restart_time=2)  # in time: nothing was lost, and nothing is stale once it has said all
    for node in pods.nodes.values():  # each must have heard of the new restart time
        for address in (f"{UNDERLAY}.{_BIRD}", f"{UNDERLAY6}::{_BIRD:x}"):
            await_status(pods, node, address, "global", "up", "Established")
    _everywhere(pods, present=inside, absent=set(), timeout=0)
    bird.kill()  # for good
    _everywhere(pods, present=set(), absent=inside, timeout=30)


def test_a_peer_that_is_deleted_is_forgotten(pods: Lab, bird: Bird, peers: Peers) -> None:
    """On both sides at once: graceful restart is for those who will come back."""
    _know_bird(peers)
    inside = _free_prefix(pods, 4)
    bird.announce(inside)
    _everywhere(pods, present={inside}, absent=set())
    peers.clear()
    _everywhere(pods, present=set(), absent={inside}, timeout=30)
    for node in pods.nodes.values():
        wait_until(lambda n=node: bird.heard(n, 4) == set(), f"BIRD to forget what {node.name} said", 30)  # type: ignore[misc]
    assert all(answer.ok for answer in pods.matrix().values()), "the mesh goes on"


def test_a_reflector_takes_over_from_the_mesh_and_gives_back(pods: Lab, peers: Peers) -> None:
    """Step by step: no packet is lost, no route moves.

    The next step is taken when the routes of the last one are there: whoever drops the mesh before the
    reflector has spoken has no routes, with Calico as with us.
    """
    one, two, three = pods.nodes.values()
    before = two.routes()
    with Flow(pods.pods["b"], pods.pods["c"]) as flow, Flow(pods.pods["a"], pods.pods["b"]) as other:
        calicoctl(pods, "label", "nodes", "node-1", "route-reflector=true")
        peers.apply("rr", nodeSelector="all()", peerSelector="route-reflector == 'true'")
        for node in (two, three):
            await_status(pods, node, one.ip, "node specific", "up", "Established")
        _set_cluster_id(pods, "node-1", "244.0.0.1")
        for node in (two, three):
            await_heard(node, (one.ip, one.ip6), 2)  # its own block, and the other's
        apply(pods, "BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False})
        await_status(pods, two, three.ip)
        await_status(pods, three, two.ip)
        assert two.routes() == before, "the reflector leaves next hops alone"
        apply(pods, "BGPConfiguration", "default", {"nodeToNodeMeshEnabled": True})
        await_status(pods, two, three.ip, "node-to-node mesh", "up", "Established")
        await_heard(two, (three.ip, three.ip6), 1)
        await_heard(three, (two.ip, two.ip6), 1)
        _set_cluster_id(pods, "node-1", None)
        peers.clear()
        calicoctl(pods, "label", "nodes", "node-1", "route-reflector", "--remove")
        for node in (three, one):
            await_status(pods, two, node.ip, "node-to-node mesh", "up", "Established")
        await_heard(two, (one.ip, one.ip6, three.ip, three.ip6), 1)
    assert (flow.lost, other.lost) == ([], []), f"of {flow.sent}"
    assert two.routes() == before


def _set_cluster_id(lab: Lab, node: str, cluster_id: str | None) -> None:
    patch = {"spec": {"bgp": {"routeReflectorClusterID": cluster_id}}}
    calicoctl(lab, "patch", "node", node, "-p", json.dumps(patch))


def test_the_plan_goes_there_and_back_by_itself(pods: Lab) -> None:
    """`calicoctl bgp apply`: no packet is lost, no route moves; a second run finds nothing to do."""
    _, two, three = pods.nodes.values()
    before = two.routes()
    with Flow(pods.pods["b"], pods.pods["c"]) as flow, Flow(pods.pods["a"], pods.pods["b"]) as other:
        calicoctl(pods, "bgp", "apply", "--reflectors", "node-1")
        assert status(pods, two, three.ip) == () == status(pods, three, two.ip)
        assert two.routes() == before
        planned = pods.calicoctl("bgp", "plan", "--reflectors", "node-1")
        assert planned.stdout.startswith("1. [x] goal") and "2." not in planned.stdout
        assert "[ ] switch nodeToNodeMeshEnabled on" in pods.calicoctl("bgp", "plan", "--mesh").stdout
        calicoctl(pods, "bgp", "apply", "--mesh")
    assert (flow.lost, other.lost) == ([], []), f"of {flow.sent}"
    assert two.routes() == before
    assert "| node-1" not in pods.calicoctl("get", "caliconodestatuses").stdout
    await_status(pods, two, three.ip, "node-to-node mesh", "up", "Established")
