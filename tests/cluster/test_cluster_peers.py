"""Peers beyond the mesh, with either speaker: routers that are no nodes, and reflectors that are."""

import fcntl
import ipaddress
import json
import os
import select
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.cluster_bgp import (
    Peers,
    apply,
    await_heard,
    await_status,
    calicoctl,
    status,
)
from tests.cluster.cluster_routers import BIRD_AT, GOBGP_AT, Bird, GoBGP, session
from tortie.core.speaker import Speaker
from tortie.lab.box import Box
from tortie.lab.cluster import UNDERLAY, UNDERLAY6, Lab, LabNode, command, wait_until
from tortie.lab.traffic import Flow

pytestmark = pytest.mark.cluster

_OUTSIDE = {4: "203.0.113.0/24", 6: "2001:db8:99::/64"}

alike = pytest.mark.parametrize("lab", ["alike"], indirect=True, scope="module")
alike_and_mixed = pytest.mark.parametrize("lab", ["alike", "mixed"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def lab(
    request: pytest.FixtureRequest, speaker: Speaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """Three ready nodes with both IP versions: all alike, or two with BIRD and node-3 with ExaBGP."""
    speakers: tuple[Speaker, ...] = (speaker,) if request.param == "alike" else ("bird", "bird", "exabgp")
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, ipv6=True, speakers=speakers)
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


@pytest.fixture
def bird(lab: Lab) -> Iterator[Bird]:
    """AS 65020, has sessions to all nodes in both versions; the cluster does not know it yet."""
    bird = Bird(lab.hosts.get("tor") or lab.add_host("tor", BIRD_AT), lab)
    bird.start()
    yield bird
    bird.kill()
    bird.clean()


@pytest.fixture
def gobgp(lab: Lab) -> Iterator[GoBGP]:
    """AS 65030, has a session to node-2 only."""
    yield from _gobgp(lab, 65030, [lab.nodes["node-2"]])


@pytest.fixture
def inner_gobgp(lab: Lab) -> Iterator[GoBGP]:
    """In the cluster's own AS, has sessions to all nodes."""
    yield from _gobgp(lab, 64512, list(lab.nodes.values()))


def _gobgp(lab: Lab, asn: int, nodes: list[LabNode]) -> Iterator[GoBGP]:
    gobgp = GoBGP(lab.hosts.get("rack") or lab.add_host("rack", GOBGP_AT), asn, nodes)
    gobgp.start(lab.folder / "gobgp.log")
    yield gobgp
    gobgp.kill()


# --- what the cluster is like ---------------------------------------------------------------------


def _all_blocks(lab: Lab, version: int) -> set[str]:
    return {cidr for node in lab.nodes.values() for cidr in _own_blocks(node, version)}


def _own_blocks(node: LabNode, version: int) -> set[str]:
    shown = node.box.output("ip", f"-{version}", "route", "show", "type", "blackhole")
    lines = (line.split() for line in shown.splitlines())
    return {words[1] for words in lines if words[words.index("proto") + 1] in ("bgp", "bird")}


def _route(node: LabNode, prefix: str) -> str:
    """As people see it; "" if there is none."""
    version = ipaddress.ip_network(prefix).version
    return node.box.output("ip", f"-{version}", "route", "show", prefix).strip()


def _learned(node: LabNode, prefix: str, gateway: str) -> str:
    """The route to what a foreign router announces, as people see it."""
    six = ":" in prefix
    if node.speaker == "bird":  # 2^31 - 1 - 100, the preference that foreign paths have
        shape = "proto bird metric 2147483547"
    else:
        shape = "proto bgp metric 1024 onlink" if six else "proto bgp onlink"
    return f"{prefix} via {gateway} dev eth0 {shape}{' pref medium' if six else ''}"


def _await_learned(node: LabNode, prefix: str, gateway: str) -> None:
    """Wait for just that route: another node may have told of the prefix before the router itself does."""
    wanted = _learned(node, prefix, gateway)
    wait_until(
        lambda: _route(node, prefix) == wanted, f"{wanted} on {node.name}", 240, lambda: _route(node, prefix)
    )


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


def _everywhere(lab: Lab, *, present: set[str], absent: set[str], timeout: float = 240) -> None:
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
    peers.apply("tor", peerIP=f"{UNDERLAY}.{BIRD_AT}", asNumber=65020, **spec)
    peers.apply("tor6", peerIP=f"{UNDERLAY6}::{BIRD_AT:x}", asNumber=65020, **spec)


def _know_gobgp(peers: Peers, asn: int, **spec: object) -> None:
    peers.apply("rack", peerIP=f"{UNDERLAY}.{GOBGP_AT}", asNumber=asn, **spec)
    peers.apply("rack6", peerIP=f"{UNDERLAY6}::{GOBGP_AT:x}", asNumber=asn, **spec)


def _pings(box: Box, target: str) -> bool:
    return box.run("ping", "-c", "1", "-W", "1", target, check=False).returncode == 0


# --- tests ----------------------------------------------------------------------------------------


@alike_and_mixed
def test_bird_as_a_peer_of_all_nodes(pods: Lab, bird: Bird, peers: Peers) -> None:
    """Another AS: every node tells it of every block, and is told of its prefixes."""
    _know_bird(peers)
    for version in (4, 6):
        blocks = _all_blocks(pods, version)
        assert len(blocks) == 3
        wait_until(
            lambda v=version, b=blocks: all(bird.heard(node, v) == b for node in pods.nodes.values()),  # type: ignore[misc]
            f"BIRD to see the IPv{version} blocks {blocks}", 240, lambda: bird.ask("show", "route", "all"),
        )  # fmt: skip
    for node in pods.nodes.values():
        (block,) = _own_blocks(node, 4)
        shown = bird.ask("show", "route", "all", block, "protocol", session(node, 4))
        assert "BGP.as_path: 64512\n" in shown and f"BGP.next_hop: {node.ip}\n" in shown
        for address in (f"{UNDERLAY}.{BIRD_AT}", f"{UNDERLAY6}::{BIRD_AT:x}"):
            await_status(pods, node, address, "global", "up", "Established")


@alike_and_mixed
def test_a_prefix_inside_a_pool_reaches_the_kernel_and_no_other(pods: Lab, bird: Bird, peers: Peers) -> None:
    _know_bird(peers)
    inside = {version: _free_prefix(pods, version) for version in (4, 6)}
    bird.announce(*inside.values(), *_OUTSIDE.values())
    _everywhere(pods, present=set(inside.values()), absent=set(_OUTSIDE.values()))
    node = pods.nodes["node-1"]
    _await_learned(node, inside[4], f"{UNDERLAY}.{BIRD_AT}")
    _await_learned(node, inside[6], f"{UNDERLAY6}::{BIRD_AT:x}")
    bird.announce(inside[6], *_OUTSIDE.values())
    _everywhere(pods, present={inside[6]}, absent={inside[4], *_OUTSIDE.values()})
    bird.announce(*_OUTSIDE.values())
    _everywhere(pods, present=set(), absent={*inside.values(), *_OUTSIDE.values()})


@alike_and_mixed
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
            wait_until(lambda t=target: _pings(bird.box, t), f"{target} to answer BIRD", 240)  # type: ignore[misc]
            pod.output("ping", "-c", "1", "-W", "60", behind)


@alike_and_mixed
def test_gobgp_as_a_peer_of_one_node(pods: Lab, gobgp: GoBGP, peers: Peers) -> None:
    """Another AS, one session: that node tells it of every block, and tells the others of its prefix."""
    _know_gobgp(peers, 65030, node="node-2")
    for version in (4, 6):
        blocks = _all_blocks(pods, version)
        wait_until(lambda v=version, b=blocks: gobgp.heard(v) == b, f"GoBGP to see {blocks}", 240)  # type: ignore[misc]
    await_status(pods, pods.nodes["node-2"], f"{UNDERLAY}.{GOBGP_AT}", "node specific", "up", "Established")
    assert status(pods, pods.nodes["node-1"], f"{UNDERLAY}.{GOBGP_AT}") == ()
    inside = {version: _free_prefix(pods, version) for version in (4, 6)}
    for prefix in (*inside.values(), *_OUTSIDE.values()):
        gobgp.add(prefix)
    _everywhere(pods, present=set(inside.values()), absent=set(_OUTSIDE.values()))
    _await_learned(pods.nodes["node-2"], inside[4], f"{UNDERLAY}.{GOBGP_AT}")
    gobgp.remove(inside[4])
    gobgp.remove(inside[6])
    _everywhere(pods, present=set(), absent=set(inside.values()))


@alike_and_mixed
def test_gobgp_in_the_same_as(pods: Lab, inner_gobgp: GoBGP, peers: Peers) -> None:
    """iBGP: each node tells it of its own block only, all together of every one."""
    _know_gobgp(peers, 64512)
    for version in (4, 6):
        blocks = _all_blocks(pods, version)
        wait_until(lambda v=version, b=blocks: inner_gobgp.heard(v) == b, f"GoBGP to see {blocks}", 240)  # type: ignore[misc]
    for node in pods.nodes.values():
        wait_until(
            lambda n=node: _told(inner_gobgp, n) == _own_blocks(n, 4),  # type: ignore[misc]
            f"GoBGP to be told of {node.name}'s own block alone", 240,
            lambda n=node: inner_gobgp.ask("neighbor", n.ip, "adj-in"),  # type: ignore[misc]
        )  # fmt: skip
    inside = _free_prefix(pods, 4)
    inner_gobgp.add(inside)
    inner_gobgp.add(_OUTSIDE[4])
    _everywhere(pods, present={inside}, absent={_OUTSIDE[4]})
    for node in pods.nodes.values():
        _await_learned(node, inside, f"{UNDERLAY}.{GOBGP_AT}")
    inner_gobgp.kill()  # it never spoke of graceful restart
    _everywhere(pods, present=set(), absent={inside})
    await_status(pods, pods.nodes["node-1"], f"{UNDERLAY}.{GOBGP_AT}", "global", "start")


def _told(gobgp: GoBGP, node: LabNode) -> set[str]:
    """What a node announces, of IPv4's blocks."""
    return {word for word in gobgp.ask("neighbor", node.ip, "adj-in").split() if "/26" in word}


@alike_and_mixed
def test_a_killed_bird_keeps_its_routes_for_its_restart_time(pods: Lab, bird: Bird, peers: Peers) -> None:
    _know_bird(peers)
    inside = {_free_prefix(pods, version) for version in (4, 6)}
    bird.announce(*inside)
    _everywhere(pods, present=inside, absent=set())
    bird.kill()
    node = pods.nodes["node-1"]
    await_status(pods, node, f"{UNDERLAY}.{BIRD_AT}", "global", "start")
    _everywhere(pods, present=inside, absent=set(), timeout=0)
    bird.recover(restart_time=2)  # in time: nothing was lost, and nothing is stale once it has said all
    for node in pods.nodes.values():  # each must have heard of the new restart time
        for address in (f"{UNDERLAY}.{BIRD_AT}", f"{UNDERLAY6}::{BIRD_AT:x}"):
            await_status(pods, node, address, "global", "up", "Established")
    _everywhere(pods, present=inside, absent=set(), timeout=0)
    bird.kill()  # for good
    _everywhere(pods, present=set(), absent=inside)


@alike_and_mixed
def test_a_peer_that_is_deleted_is_forgotten(pods: Lab, bird: Bird, peers: Peers) -> None:
    """On both sides at once: graceful restart is for those who will come back."""
    _know_bird(peers)
    inside = _free_prefix(pods, 4)
    bird.announce(inside)
    _everywhere(pods, present={inside}, absent=set())
    peers.clear()
    _everywhere(pods, present=set(), absent={inside})
    for node in pods.nodes.values():
        wait_until(lambda n=node: bird.heard(n, 4) == set(), f"BIRD to forget what {node.name} said", 240)  # type: ignore[misc]
    assert all(answer.ok for answer in pods.matrix(refused=()).values()), "the mesh goes on"


@alike
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


# --- calicoctl bgp apply --------------------------------------------------------------------------

_DONE = "The cluster is as it should be."
_THERE, _BACK = ("--reflectors", "node-1"), ("--mesh",)


@alike_and_mixed
def test_bgp_apply_there_and_back_killed_at_every_step(pods: Lab) -> None:
    """No packet is lost, no route moves. Killed, it is resumed, or undone by the opposite goal."""
    _, two, three = pods.nodes.values()
    before = two.routes()
    with Flow(pods.pods["b"], pods.pods["c"]) as flow, Flow(pods.pods["a"], pods.pods["b"]) as other:
        kills = 0
        while _DONE not in _run_and_kill(pods, *_THERE):
            kills += 1
        assert kills >= 4, "nine steps, of which no run takes more than two"
        await_status(pods, two, three.ip)
        await_status(pods, three, two.ip)
        assert two.routes() == before
        planned = pods.calicoctl("bgp", "plan", *_THERE)
        assert planned.stdout.startswith("1. [x] goal") and "2." not in planned.stdout
        assert "[ ] switch nodeToNodeMeshEnabled on" in pods.calicoctl("bgp", "plan", *_BACK).stdout
        begun = ""
        while "routeReflectorClusterID" not in begun:
            assert _DONE not in begun
            begun = _run_and_kill(pods, *_BACK)
        calicoctl(pods, "bgp", "apply", *_THERE)
        assert "[x] goal" in pods.calicoctl("bgp", "plan", *_THERE).stdout
        calicoctl(pods, "bgp", "apply", *_BACK)
    assert (flow.lost, other.lost) == ([], []), f"of {flow.sent}"
    assert two.routes() == before
    assert "| node-1" not in pods.calicoctl("get", "caliconodestatuses").stdout
    await_status(pods, two, three.ip, "node-to-node mesh", "up", "Established")


def _run_and_kill(lab: Lab, *goal: str) -> str:
    """Kill it when it says what it does second; both lines. Or the only one, if it had nothing to do.

    The pipe holds one line (pipe(7), O_DIRECT), the second, so that it never gets beyond saying the third.
    """
    argv = [command("calicoctl"), "bgp", "apply", *goal]
    env = {**os.environ, "ETCD_ENDPOINTS": lab.etcd.endpoint, "PYTHONUNBUFFERED": "1"}
    said, saying = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    fcntl.fcntl(saying, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(said, "rb", buffering=0) as lines:
        with subprocess.Popen(argv, env=env, stdout=saying) as process:
            os.close(saying)
            first = lines.read(4096)
            poll = select.poll()
            poll.register(lines, select.POLLIN)
            poll.poll()
            process.kill()
        both = (first + lines.read(4096)).decode()
    assert both, "it says what it does"
    return both
