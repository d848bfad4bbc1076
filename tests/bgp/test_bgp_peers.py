"""BIRD 2 and GoBGP from Debian as plain BGP peers: what they see of us, what we believe of them."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.bgp.bgp_lab import POOL, BgpNode, Mesh, RouteEvents, configuration, peer_resource, pool_resource
from tests.bgp.bgp_routers import Bird, Frr, GoBGP, bird_config
from tests.netns_lab import eventually
from tests.support.speakers import with_both
from tortie.datastore.types.bgp import (
    AddCommunity,
    BGPFilter,
    BGPFilterSpec,
    BGPPassword,
    CIDRBlock,
    Community,
    CommunityMatch,
    FilterOperation,
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
              connect delay time 1; error wait time 1, 2; graceful restart on; graceful restart time 300;
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


def _rejected(node: BgpNode, address: str) -> Mapping[str, int]:
    found = node.peer(address)
    return found.rejected_because if found else {}


def _by_rules(speaker: str, *rules: str) -> dict[str, int]:
    """What is told of prefixes of which each rule has rejected one; BIRD does not tell which."""
    return dict.fromkeys(rules, 1) if speaker == "exabgp" else {"refused by an import filter": len(rules)}


def test_bird_sees_every_block_and_only_pools_reach_the_kernel(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]
) -> None:
    mesh = make_mesh(2)
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP=_BIRD, asNumber=65020)
    bird = closing(Bird(mesh.underlay.attach(20), _bird(_IN_POOL, _OUTSIDE)))
    mesh.start()
    blocks = {"192.168.1.0/26", "192.168.2.0/26"}
    eventually(lambda: bird.prefixes("n1") == bird.prefixes("n2") == blocks)
    shown = bird.ask("show", "route", "all", "192.168.2.0/26", "protocol", "n1")
    assert "BGP.as_path: 64512\n" in shown and "BGP.next_hop: 10.9.0.1" in shown
    one = mesh.nodes[0]
    eventually(lambda: one.way(_IN_POOL, "10.9.0.20", foreign=True) in one.routes())
    assert _OUTSIDE not in one.prefixes()
    eventually(lambda: (peer := one.peer(_BIRD)) and (peer.type, peer.received) == ("global", 2))
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
    eventually(lambda: two.way("192.168.2.5", "10.9.0.1") in two.routes())
    assert "192.168.1.5" not in two.prefixes(), "inside a block of its own it is covered"
    one.ns.run("ip", "link", "del", "cali1")
    eventually(lambda: "192.168.2.5" not in two.prefixes())


@with_both
def test_gobgp_as_an_internal_peer(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any], speaker: str
) -> None:
    mesh = make_mesh(1)
    mesh.cluster.peers["gobgp"] = peer_resource("gobgp", node="n1", peerIP=_GOBGP, asNumber=64512)
    gobgp = closing(GoBGP(mesh.underlay.attach(30), _gobgp("10.9.0.1", 64512)))
    mesh.start()
    node = mesh.nodes[0]
    eventually(lambda: gobgp.prefixes() == {"192.168.1.0/26"})
    shown = gobgp.ask("global", "rib", "-j")
    assert "2147482623" in shown, "LOCAL_PREF of an ordinary route, as Calico's BIRD has it"
    gobgp.ask("global", "rib", "add", "-a", "ipv4", _IN_POOL)
    gobgp.ask("global", "rib", "add", "-a", "ipv4", _OUTSIDE)
    eventually(lambda: node.way(_IN_POOL, _GOBGP, foreign=True) in node.routes())
    assert _OUTSIDE not in node.prefixes()
    gobgp.ask("global", "rib", "del", "-a", "ipv4", _IN_POOL)
    eventually(lambda: _IN_POOL not in node.prefixes())
    # What a filter forbids, by prefix or by community, and what it changes.
    mesh.cluster.filters["gobgp"] = BGPFilter(
        metadata=ObjectMeta(name="gobgp"),
        spec=BGPFilterSpec(
            importV4=(
                FilterRule(action="Reject", cidr="192.168.202.0/24", matchOperator="In"),
                FilterRule(action="Reject", communities=CommunityMatch(values=("64512:13",))),
            ),
            exportV4=(
                FilterRule(
                    action="Accept",
                    operations=(FilterOperation(addCommunity=AddCommunity(value="64512:99")),),
                ),
            ),
        ),
    )
    mesh.cluster.peers["gobgp"] = peer_resource(
        "gobgp", node="n1", peerIP=_GOBGP, asNumber=64512, filters=("gobgp",)
    )
    node.render()
    for prefix, more in (
        ("192.168.202.0/26", ()),
        ("192.168.203.0/26", ("community", "64512:13")),
        ("192.168.204.0/26", ("community", "64512:14")),
    ):
        gobgp.ask("global", "rib", "add", "-a", "ipv4", prefix, *more)
    eventually(lambda: "192.168.204.0/26" in node.prefixes())
    rules = _by_rules(speaker, "filter gobgp, importV4 rule 1", "filter gobgp, importV4 rule 2")
    eventually(lambda: rules.items() <= _rejected(node, _GOBGP).items())
    assert not node.prefixes() & {"192.168.202.0/26", "192.168.203.0/26"}
    eventually(lambda: "64512:99" in gobgp.ask("global", "rib"))


@with_both
def test_nodes_with_a_port_of_their_own_and_no_source_address(make_mesh: Callable[..., Mesh]) -> None:
    """The one that listens has its port and address all the same."""
    mesh = make_mesh(2, listenPort=1790, nodeToNodeMeshEnabled=False)
    mesh.cluster.peers["all"] = peer_resource("all", peerSelector="all()", sourceAddress="None")
    mesh.start()
    eventually(lambda: [node.established() for node in mesh.nodes] == [2, 2])  # the status follows the routes


def test_ipv6_with_gobgp(make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any]) -> None:
    mesh = make_mesh(1)
    mesh.cluster.peers["gobgp"] = peer_resource("gobgp", node="n1", peerIP="fd09::1e", asNumber=65030)
    gobgp = closing(GoBGP(mesh.underlay.attach(30), _gobgp("fd09::1", 65030)))
    mesh.start()
    node = mesh.nodes[0]
    eventually(lambda: gobgp.prefixes("ipv6") == {"fd00:168::100/122"})
    gobgp.ask("global", "rib", "add", "-a", "ipv6", "fd00:168::f000/122", "nexthop", "fd09::1e")
    gobgp.ask("global", "rib", "add", "-a", "ipv6", "2001:db8::/64", "nexthop", "fd09::1e")
    eventually(lambda: "fd00:168::f000/122" in node.prefixes(6))
    assert "2001:db8::/64" not in node.prefixes(6)


@with_both
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

    eventually(lambda: hops() == ["10.9.0.20", "10.9.0.21"])
    del mesh.cluster.peers["bird21"]
    node.render()
    eventually(lambda: hops() == ["10.9.0.20"])


def test_a_restarting_bird_loses_no_route(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any], speaker: str
) -> None:
    mesh = make_mesh(1)
    node = mesh.nodes[0]
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP=_BIRD, asNumber=65020)
    ns = mesh.underlay.attach(20)
    bird = Bird(ns, _bird(_IN_POOL))
    try:
        mesh.start()
        eventually(lambda: _IN_POOL in node.prefixes())
        watch = closing(RouteEvents(node.ns))
    finally:
        bird.close()
    kept = 1 if speaker == "exabgp" else 0  # BIRD does not count them
    eventually(lambda: (peer := node.peer(_BIRD)) and peer.state != "up" and peer.stale == kept)
    bird = closing(Bird(ns, _bird(_IN_POOL), recovering=True))
    eventually(lambda: (peer := node.peer(_BIRD)) and peer.end_of_rib and not peer.stale)
    assert watch.about(_IN_POOL) == []
    # An administrative shutdown is no restart: it says so, and its routes go at once.
    bird.ask("disable", "n1")
    eventually(lambda: _IN_POOL not in node.prefixes())
    said = {
        "exabgp": "received Cease: Administrative shutdown (6,2)",
        "bird": "Received: Administrative shutdown",
    }[speaker]
    eventually(lambda: (peer := node.peer(_BIRD)) and peer.last_notification == said)


def test_own_as_in_the_path_is_a_loop_unless_allowed(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any], speaker: str
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
    heard = 2 if speaker == "exabgp" else 1  # BIRD does not count loops
    eventually(lambda: (peer := node.peer(_BIRD)) and peer.received == heard)
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
    eventually(lambda: _IN_POOL in node.prefixes())
    eventually(lambda: node.established() == 3)  # the mesh beside it sends TTL 64, and may
    # The same from further away is not heard, however often it is said.
    bird.ask("disable", "n1")
    eventually(lambda: node.established() == 2 and _IN_POOL not in node.prefixes())
    ns.run("iptables", "-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "-j", "TTL", "--ttl-set", "64")
    bird.ask("enable", "n1")
    eventually(lambda: _dropped_for_their_ttl(node) >= 3)
    assert node.established() == 2 and _IN_POOL not in node.prefixes()


def _dropped_for_their_ttl(node: BgpNode) -> int:
    """Segments, counted by the node's kernel."""
    lines = [line.split() for line in node.ns.run("cat", "/proc/net/netstat").splitlines()]
    names, values = (words for words in lines if words[0] == "TcpExt:")
    return int(values[names.index("TCPMinTTLDrop")])


def test_a_peer_that_announces_too_much(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any], speaker: str
) -> None:
    """What is beyond the limit is left out, after a restart as well, and asked for when there is room."""
    mesh = make_mesh(1)
    mesh.cluster.peers["bird"] = peer_resource("bird", peerIP=_BIRD, asNumber=65020)
    many = [f"192.168.{number}.0/26" for number in range(100, 140)]
    node = mesh.nodes[0]
    node.environment["TORTIE_BGP_PREFIX_LIMIT"] = "20"
    mesh.start()
    alone = "passive on;"  # two dials at once may be two sessions, one after the other, and each is told of
    bird = closing(Bird(mesh.underlay.attach(20), _bird(*many, more=alone)))

    def taken() -> tuple[int, bool]:
        found = node.peer(_BIRD)
        return (found.received, found.over_limit) if found else (0, False)

    def learned() -> set[str]:
        return node.prefixes() - set(node.blocks)

    eventually(lambda: taken() == (20, True) and len(learned()) == 20)
    left = sorted(learned())[:10]
    if speaker == "exabgp":  # BIRD does not ask again for what it has left out, and goes on saying so
        assert node.log().count("announces all the 20 prefixes that it may") == 1
        node.kill_agent()
        # it is settled a moment before what it did not want is gone from the kernel
        eventually(lambda: taken() == (20, True) and node.settled() and len(learned()) == 20)
        left = sorted(set(many) - learned())[:10]
    bird.configure(_bird(*left, more=alone))
    eventually(lambda: learned() == set(left) and taken() == (10, speaker == "bird"))


@with_both
def test_frr_as_top_of_rack(
    make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any], speaker: str
) -> None:
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
    eventually(lambda: tor.path("192.168.1.0/26").get("valid") is True)
    path = tor.path("192.168.1.0/26")
    assert path["aspath"]["string"] == "64512"
    assert path["community"]["string"] == "64512:77" and path["largeCommunity"]["string"] == "64512:1:2"
    eventually(lambda: "via 10.9.0.1 dev eth0" in tor.ns.run("ip", "route", "show", "192.168.1.0/26"))
    assert "community" not in tor.path("203.0.113.0/24"), "the services' range lies outside the pool"
    eventually(lambda: node.way("192.168.211.0/26", "10.9.0.40", foreign=True) in node.routes())
    assert "192.168.210.0/26" not in node.prefixes()
    assert not [route for route in node.routes() if "203.0.113.0/24" in route]
    rules = _by_rules(speaker, "filter tor, importV4 rule 1")
    eventually(lambda: rules.items() <= _rejected(node, "10.9.0.40").items())

    node.secrets = {("bgp", "tor"): b"wrong"}
    node.render()
    eventually(lambda: not node.established())
    node.secrets = {("bgp", "tor"): b"not;guessed"}
    node.render()
    eventually(lambda: node.established() == 1 and tor.path("192.168.1.0/26").get("valid"))


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
 neighbor 10.9.0.1 timers 20 60
 address-family ipv4 unicast
  network 192.168.210.0/26
  network 192.168.211.0/26
 exit-address-family
"""
