"""BIRD 2 and GoBGP from Debian as plain BGP peers: what they see of us, what we believe of them."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.bgp.bgp_lab import (
    POOL,
    BgpNode,
    Bird,
    Frr,
    GoBGP,
    Mesh,
    RouteEvents,
    bird_config,
    configuration,
    eventually,
    peer_resource,
    pool_resource,
)
from tortie.datastore.types.bgp import (
    BGPFilter,
    BGPFilterSpec,
    BGPPassword,
    CIDRBlock,
    Community,
    FilterRule,
    PrefixAdvertisement,
)
from tortie.datastore.types.meta import ObjectMeta, SecretKeyRef

pytestmark = pytest.mark.cluster

_BIRD, _GOBGP = "10.9.0.20", "10.9.0.30"
_IN_POOL, _OUTSIDE = "192.168.200.0/26", "203.0.113.0/24"


def _bird(*statics: str, more: str = "", extra: str = "") -> str:
    """AS 65020, eBGP with n1 and n2 in IPv4; announces `statics`."""
    routes = " ".join(f"route {prefix} blackhole;" for prefix in statics)
    sessions = "\n".join(
        f"""protocol bgp n{node} {{
              local 10.9.0.20 as 65020; neighbor 10.9.0.{node} as 64512; multihop; {more}
              connect delay time 1; error wait time 1, 2; graceful restart on; graceful restart time 20;
              ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
            }}"""
        for node in (1, 2)
    )
    return bird_config(20, f"protocol static blocks {{ ipv4; {routes} }}\n{sessions}\n{extra}")


def _gobgp(node: str, asn: int) -> str:
    return f"""
[global.config]
  as = {asn}
  router-id = "{_GOBGP}"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{node}"
    peer-as = 64512
  [neighbors.timers.config]
    connect-retry = 1
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 20
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "{"ipv6" if ":" in node else "ipv4"}-unicast"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
"""


def test_bird_sees_every_block_and_only_pools_reach_the_kernel(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    mesh = make_mesh(2)
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP=_BIRD, asNumber=65020)
    bird = closing(Bird(mesh.underlay.attach(20), _bird(_IN_POOL, _OUTSIDE)))
    mesh.start()
    blocks = {"192.168.1.0/26", "192.168.2.0/26"}
    eventually(lambda: bird.prefixes("n1") == bird.prefixes("n2") == blocks, 30)
    shown = bird.ask("show", "route", "all", "192.168.2.0/26", "protocol", "n1")
    assert "BGP.as_path: 64512\n" in shown and "BGP.next_hop: 10.9.0.1" in shown
    one = mesh.nodes[0]
    eventually(lambda: f"{_IN_POOL} via 10.9.0.20 dev eth0 onlink" in one.routes())
    assert _OUTSIDE not in one.prefixes()
    peer = one.peer(_BIRD)
    assert peer is not None and (peer.type, peer.received) == ("global", 2)
    # Once more as its content changes; what is gone there is gone here.
    bird.configure(_bird(_OUTSIDE, "192.168.201.0/26"))
    eventually(lambda: one.prefixes() == blocks | {"192.168.201.0/26"})


def test_pools_that_are_not_exported_are_hidden_from_peers(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    mesh = make_mesh(1)
    mesh.cluster.pools["hidden"] = pool_resource("hidden", "10.77.0.0/16", disableBGPExport=True)
    mesh.cluster.peers["bird"] = peer_resource("bird", node="n1", peerIP=_BIRD, asNumber=65020)
    bird = closing(Bird(mesh.underlay.attach(20), _bird()))
    node = mesh.nodes[0]
    node.own("192.168.1.0/26", "10.77.1.0/26")
    mesh.start()
    eventually(lambda: bird.prefixes("n1") == {"192.168.1.0/26"})
    mesh.cluster.pools["hidden"] = pool_resource("hidden", "10.77.0.0/16")
    node.render()
    eventually(lambda: bird.prefixes("n1") == {"192.168.1.0/26", "10.77.1.0/26"})
    assert "blackhole 10.77.1.0/26" in node.routes()


def test_a_borrowed_address_is_announced_by_its_host(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    """A pod on n1 with an address of n2's block: felix's route makes n1 announce it."""
    mesh = make_mesh(2)
    mesh.start()
    one, two = mesh.nodes
    one.ns.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "pod1")
    one.ns.run("ip", "link", "set", "cali1", "up")
    one.ns.run("ip", "route", "add", "192.168.2.5/32", "dev", "cali1", "metric", "1024")
    one.ns.run("ip", "route", "add", "192.168.1.5/32", "dev", "cali1", "metric", "1024")
    eventually(lambda: "192.168.2.5 via 10.9.0.1 dev eth0 onlink" in two.routes())
    assert "192.168.1.5" not in two.prefixes(), "inside a block of its own it is covered"
    one.ns.run("ip", "link", "del", "cali1")
    eventually(lambda: "192.168.2.5" not in two.prefixes())


def test_gobgp_as_an_internal_peer(make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]) -> None:
    mesh = make_mesh(1)
    mesh.cluster.peers["gobgp"] = peer_resource("gobgp", node="n1", peerIP=_GOBGP, asNumber=64512)
    gobgp = closing(GoBGP(mesh.underlay.attach(30), _gobgp("10.9.0.1", 64512)))
    mesh.start()
    node = mesh.nodes[0]
    eventually(lambda: gobgp.prefixes() == {"192.168.1.0/26"}, 20)
    shown = gobgp.ask("global", "rib", "-j")
    assert "2147482623" in shown, "LOCAL_PREF of an ordinary route, as Calico's BIRD has it"
    gobgp.ask("global", "rib", "add", "-a", "ipv4", _IN_POOL)
    gobgp.ask("global", "rib", "add", "-a", "ipv4", _OUTSIDE)
    eventually(lambda: f"{_IN_POOL} via {_GOBGP} dev eth0 onlink" in node.routes())
    assert _OUTSIDE not in node.prefixes()
    gobgp.ask("global", "rib", "del", "-a", "ipv4", _IN_POOL)
    eventually(lambda: _IN_POOL not in node.prefixes())


def test_ipv6_with_gobgp(make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]) -> None:
    mesh = make_mesh(1)
    mesh.cluster.peers["gobgp"] = peer_resource("gobgp", node="n1", peerIP="fd09::1e", asNumber=65030)
    gobgp = closing(GoBGP(mesh.underlay.attach(30), _gobgp("fd09::1", 65030)))
    mesh.start()
    node = mesh.nodes[0]
    eventually(lambda: gobgp.prefixes("ipv6") == {"fd00:168::100/122"}, 20)
    gobgp.ask("global", "rib", "add", "-a", "ipv6", "fd00:168::f000/122", "nexthop", "fd09::1e")
    gobgp.ask("global", "rib", "add", "-a", "ipv6", "2001:db8::/64", "nexthop", "fd09::1e")
    eventually(lambda: "fd00:168::f000/122" in node.prefixes(6))
    assert "2001:db8::/64" not in node.prefixes(6)


def test_two_equal_paths_share_the_traffic(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    mesh = make_mesh(1)
    node = mesh.nodes[0]
    for number in (20, 21):
        name = f"bird{number}"
        mesh.cluster.peers[name] = peer_resource(name, peerIP=f"10.9.0.{number}", asNumber=65020)
        config = _bird(_IN_POOL).replace("10.9.0.20", f"10.9.0.{number}")
        closing(Bird(mesh.underlay.attach(number), config))
    mesh.start()

    def hops() -> list[str]:
        lines = node.ns.run("ip", "route", "show", _IN_POOL).splitlines()
        return sorted(word for line in lines for word in line.split() if word.startswith("10.9.0."))

    eventually(lambda: hops() == ["10.9.0.20", "10.9.0.21"], 30)
    del mesh.cluster.peers["bird21"]
    node.render()
    eventually(lambda: hops() == ["10.9.0.20"])


def test_a_restarting_bird_loses_no_route(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    mesh = make_mesh(1)
    node = mesh.nodes[0]
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP=_BIRD, asNumber=65020)
    ns = mesh.underlay.attach(20)
    bird = Bird(ns, _bird(_IN_POOL))
    try:
        mesh.start()
        eventually(lambda: _IN_POOL in node.prefixes(), 30)
        watch = closing(RouteEvents(node.ns))
    finally:
        bird.close()
    eventually(lambda: (peer := node.peer(_BIRD)) and peer.stale == 1)
    bird = closing(Bird(ns, _bird(_IN_POOL), recovering=True))
    eventually(lambda: (peer := node.peer(_BIRD)) and peer.end_of_rib and not peer.stale, 20)
    assert watch.about(_IN_POOL) == []
    # An administrative shutdown is no restart: it says so, and its routes go at once.
    bird.ask("disable", "n1")
    eventually(lambda: _IN_POOL not in node.prefixes())
    said = "received Cease: Administrative shutdown (6,2)"
    eventually(lambda: (peer := node.peer(_BIRD)) and peer.last_notification == said)


def test_own_as_in_the_path_is_a_loop_unless_allowed(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    mesh = make_mesh(1)
    node = mesh.nodes[0]
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP=_BIRD, asNumber=65020)
    config = _bird(_IN_POOL, _OUTSIDE).replace(
        "export where source = RTS_STATIC;",
        "export filter { if net = 192.168.200.0/26 then bgp_path.prepend(64512); accept; };",
    )
    closing(Bird(mesh.underlay.attach(20), config))
    mesh.start()
    eventually(lambda: (peer := node.peer(_BIRD)) and peer.received == 2, 30)
    assert _IN_POOL not in node.prefixes()
    mesh.cluster.peers["bird"] = peer_resource(
        "bird", peerIP=_BIRD, asNumber=65020, numAllowedLocalASNumbers=1
    )
    node.render()
    eventually(lambda: _IN_POOL in node.prefixes())


def test_ttl_security_on_connections_from_either_side(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    """BIRD dials: it must send TTL 255, and the mesh beside it must not need to."""
    mesh = make_mesh(2)
    mesh.cluster.peers["bird"] = peer_resource("bird", node="n1", peerIP=_BIRD, asNumber=65020, ttlSecurity=1)
    secured = _bird(_IN_POOL).replace("multihop;", "direct; ttl security on;")
    ns = mesh.underlay.attach(20)
    ns.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "179", "-j", "DROP")  # BIRD must dial
    bird = closing(Bird(ns, secured))
    mesh.start()
    node = mesh.nodes[0]
    eventually(lambda: _IN_POOL in node.prefixes(), 20)
    assert node.established() == 3, "the mesh beside it sends TTL 64, and may"
    # The same from further away is not heard, however often it is said.
    bird.ask("disable", "n1")
    eventually(lambda: node.established() == 2 and _IN_POOL not in node.prefixes(), 60)
    ns.run("iptables", "-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "-j", "TTL", "--ttl-set", "64")
    bird.ask("enable", "n1")
    eventually(lambda: _dropped_for_their_ttl(node) >= 3, 60)
    assert node.established() == 2 and _IN_POOL not in node.prefixes()


def _dropped_for_their_ttl(node: BgpNode) -> int:
    """Segments, counted by the node's kernel."""
    lines = [line.split() for line in node.ns.run("cat", "/proc/net/netstat").splitlines()]
    names, values = (words for words in lines if words[0] == "TcpExt:")
    return int(values[names.index("TCPMinTTLDrop")])


def test_a_peer_that_announces_too_much(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    """What is beyond the limit is left out, after a restart as well, and asked for when there is room."""
    mesh = make_mesh(1)
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP=_BIRD, asNumber=65020)
    many = [f"192.168.{number}.0/26" for number in range(100, 140)]
    node = mesh.nodes[0]
    node.environment["TORTIE_BGP_PREFIX_LIMIT"] = "20"
    mesh.start()
    bird = closing(Bird(mesh.underlay.attach(20), _bird(*many)))

    def taken() -> tuple[int, bool]:
        found = node.peer(_BIRD)
        return (found.received, found.over_limit) if found else (0, False)

    def learned() -> set[str]:
        return node.prefixes() - set(node.blocks)

    eventually(lambda: taken() == (20, True) and len(learned()) == 20, 60)
    assert node.log().count("announces all the 20 prefixes that it may") == 1
    node.kill_agent()
    eventually(lambda: taken() == (20, True) and node.settled(), 60)
    left = sorted(set(many) - learned())[:10]
    bird.configure(_bird(*left))
    eventually(lambda: learned() == set(left) and taken() == (10, False), 60)


def test_frr_as_top_of_rack(make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]) -> None:
    """A four-byte AS, MD5, TTL security; communities arrive, and what a filter forbids does not."""
    mesh = make_mesh(1)
    everything = configuration(
        communities=(Community(name="rack", value="64512:77"),),
        prefixAdvertisements=(PrefixAdvertisement(cidr=POOL, communities=("rack", "64512:1:2")),),
        serviceExternalIPs=(CIDRBlock(cidr="203.0.113.0/24"),),
    )
    mesh.cluster.bgp["default"] = everything
    deny = FilterRule(action="Reject", cidr="192.168.210.0/26", matchOperator="Equal")
    mesh.cluster.filters["tor"] = BGPFilter(
        metadata=ObjectMeta(name="tor"), spec=BGPFilterSpec(importV4=(deny,))
    )
    mesh.cluster.peers["tor"] = peer_resource(
        "tor",
        peerIP="10.9.0.40",
        asNumber=4200000040,
        ttlSecurity=1,
        filters=("tor",),
        password=BGPPassword(secretKeyRef=SecretKeyRef(name="bgp", key="tor")),
    )
    node = mesh.nodes[0]
    node.secrets = {("bgp", "tor"): b"not;guessed"}
    tor = closing(Frr(mesh.underlay.attach(40), _FRR))
    mesh.start()
    eventually(lambda: tor.path("192.168.1.0/26").get("valid") is True, 60)
    path = tor.path("192.168.1.0/26")
    assert path["aspath"]["string"] == "64512"
    assert path["community"]["string"] == "64512:77" and path["largeCommunity"]["string"] == "64512:1:2"
    eventually(lambda: "via 10.9.0.1 dev eth0" in tor.ns.run("ip", "route", "show", "192.168.1.0/26"), 60)
    assert "community" not in tor.path("203.0.113.0/24"), "the services' range lies outside the pool"
    eventually(lambda: "192.168.211.0/26 via 10.9.0.40 dev eth0 onlink" in node.routes(), 60)
    assert "192.168.210.0/26" not in node.prefixes()
    assert not [route for route in node.routes() if "203.0.113.0/24" in route]

    def rejected() -> dict[str, int]:
        found = node.peer("10.9.0.40")
        return found.rejected_because if found else {}

    eventually(lambda: rejected().get("filter tor, importV4 rule 1") == 1, 60)

    node.secrets = {("bgp", "tor"): b"wrong"}
    node.render()
    eventually(lambda: not node.established(), 60)
    node.secrets = {("bgp", "tor"): b"not;guessed"}
    node.render()
    eventually(lambda: node.established() == 1 and tor.path("192.168.1.0/26").get("valid"), 60)


_FRR = """
hostname tor
router bgp 4200000040
 bgp router-id 10.9.0.40
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 10.9.0.1 remote-as 64512
 neighbor 10.9.0.1 password not;guessed
 neighbor 10.9.0.1 ttl-security hops 1
 neighbor 10.9.0.1 timers connect 1
 neighbor 10.9.0.1 timers 3 9
 address-family ipv4 unicast
  network 192.168.210.0/26
  network 192.168.211.0/26
 exit-address-family
"""
