"""The agent's mind, from events to decisions, without anything real around it."""

from typing import Any

import pytest
from msgspec.structs import replace

from tests.bgp.bgp_settle import settle
from tortie.bgp import events
from tortie.bgp.commands import Change
from tortie.bgp.config import Block, Config, Local, Peer, Pool
from tortie.bgp.fib import Interfaces
from tortie.bgp.filters import Filter, Rule
from tortie.bgp.nexthop import Resolver
from tortie.bgp.reload import Reload
from tortie.bgp.report import report
from tortie.bgp.route import Attributes, Received, Segment
from tortie.bgp.router import Router
from tortie.bgp.status import PeerStatus, RouteStatus, Status
from tortie.core.reconcile import Reconciler
from tortie.linux.routes import NextHop, Route, RouteType

pytestmark = pytest.mark.unit

_A = Peer(address="10.0.0.2", kind="mesh", local_as=64512, peer_as=64512, local_address="10.0.0.1")
_B = replace(_A, address="10.0.0.3")
_TOR = Peer(address="10.0.0.9", kind="global", local_as=64512, peer_as=65009, local_address="10.0.0.1")
_CONFIG = Config(
    local=Local(name="n", router_id="10.0.0.1", as_number=64512, addresses=("10.0.0.1",)),
    peers=(_A, _B),
    pools=(Pool(cidr="192.168.0.0/16"),),
    blocks=(Block(cidr="192.168.1.0/26"),),
)
_P1, _P2 = "192.168.2.0/26", "192.168.3.0/26"


class World:
    """A router, and what it has asked the kernel and the peers for so far."""

    def __init__(self, config: Config = _CONFIG) -> None:
        self.resolver = Resolver()
        self.resolver.change(Route("10.0.0.0/24", ifindex=2, scope=253, protocol=2))
        self.interfaces = Interfaces({"eth0": 2}, {"10.0.0.1": 2})
        self.router = Router(self.resolver, self.interfaces)
        self.now = 0.0
        self.routes: dict[str, Route] = {}
        self.told: dict[tuple[str, str], Any] = {}
        self.configure(config)

    def configure(self, config: Config) -> None:
        self.router.configure(config, self.now, self.now)
        self.settle()

    def hear(self, *heard: events.Event) -> None:
        for event in heard:
            self.router.handle(event, self.now, self.now)
        self.settle()

    def up(self, *peers: Peer, restart_time: int | None = 90) -> None:
        for peer in peers:
            forwarding = {4: True} if restart_time is not None else {}
            self.hear(
                events.Open(
                    peer.address,
                    peer.peer_as,
                    90,
                    peer.address,
                    frozenset([4]),
                    restart_time,
                    False,
                    forwarding,
                ),
                events.Up(peer.address),
            )
            self._replay(peer)

    def _replay(self, peer: Peer) -> None:
        """What ExaBGP sends by itself on a new session: all it was told before."""
        known: dict[str, Received | None] = {
            prefix: Received(*said)
            for (one, prefix), said in self.told.items()
            if one == peer.address and said
        }
        self.hear(events.Update(peer.address, True, known))

    def announce(self, peer: Peer, *prefixes: str, **attributes: Any) -> None:
        path = (Segment("as-sequence", (65009,)),) if peer.ebgp else ()
        received = Received(Attributes(**{"as_path": path} | attributes), peer.address)
        self.hear(events.Update(peer.address, False, dict.fromkeys(prefixes, received)))

    def end(self, *peers: Peer) -> None:
        self.hear(*(events.EndOfRib(peer.address, False, 4) for peer in peers))

    def settle(self) -> list[Change]:
        """Decide, carry out and report, until nothing changes; all changes on the way."""
        done = settle(self.router, self.routes, self.now)
        for change in done:
            self.told[change.peer, change.prefix] = change.announcement
        return done

    def tick(self, seconds: float) -> bool:
        self.now += seconds
        over = self.router.tick(self.now)
        self.settle()
        return over

    def status(self) -> RouteStatus:
        return self._report().routes

    def peer_status(self, peer: Peer) -> PeerStatus:
        return next(one for one in self._report().peers if one.address == peer.address)

    def _report(self) -> Status:
        nothing: Any = None  # the kernel and ExaBGP are not asked
        return report(self.router, Reconciler("routes", nothing), Reload(nothing), 0.0, 0.0, "")

    def heard_by(self, peer: Peer) -> set[str]:
        return {prefix for (one, prefix), said in self.told.items() if one == peer.address and said}


def test_own_block_and_learned_block() -> None:
    world = World()
    world.up(_A, _B)
    world.announce(_A, _P1)
    assert world.routes == {
        "192.168.1.0/26": Route("192.168.1.0/26", type=RouteType.BLACKHOLE, protocol=186),
        _P1: Route(_P1, gateway="10.0.0.2", ifindex=2, onlink=True, protocol=186),
    }
    assert world.heard_by(_A) == world.heard_by(_B) == {"192.168.1.0/26"}
    world.hear(events.Update(_A.address, False, {_P1: None}))
    assert set(world.routes) == {"192.168.1.0/26"}


def test_prefixes_of_one_update_are_decided_each_on_its_own() -> None:
    """They share a decision, but not the rules about the prefix."""
    world = World()
    world.up(_A)
    world.announce(_A, _P1, "203.0.113.0/24", "192.168.1.5/32")
    assert _P1 in world.routes and "192.168.1.5/32" in world.routes
    assert world.router.decider.reasons["203.0.113.0/24"] == "outside all pools"


def test_the_status_says_why_of_some_prefixes() -> None:
    world = World()
    world.up(_A, _B)
    world.announce(_A, _P1, _P2, *(f"203.0.{number}.0/24" for number in range(50)))
    world.announce(_B, _P2)
    world.announce(_B, _P1, local_pref=500)
    found = world.status()
    assert (found.left_out, found.contested) == (50, 2)
    assert len(found.left_out_because) == 20 and set(found.left_out_because.values()) == {"outside all pools"}
    assert found.decided_by == {
        _P1: "via 10.0.0.3: higher local preference",
        _P2: "shared by 10.0.0.2, 10.0.0.3",
    }
    world.hear(events.Update(_B.address, False, {_P1: None, _P2: None}))
    world.hear(events.Update(_A.address, False, {f"203.0.{number}.0/24": None for number in range(49)}))
    found = world.status()
    assert (found.contested, found.decided_by) == (0, {})
    assert found.left_out_because == {"203.0.49.0/24": "outside all pools"}


def test_what_one_says_to_some_is_kept_from_others() -> None:
    world = World(replace(_CONFIG, peers=(_A, _B, _TOR)))
    world.up(_A, _B, _TOR)
    world.announce(_A, _P1)
    world.announce(_TOR, _P2)
    assert world.heard_by(_A) == world.heard_by(_B) == {"192.168.1.0/26", _P2}
    assert world.heard_by(_TOR) == {"192.168.1.0/26", _P1}
    # The best path moves to one that must not go to B: it is withdrawn there.
    world.announce(_A, _P2, local_pref=500)
    assert world.heard_by(_B) == {"192.168.1.0/26"}
    assert world.heard_by(_TOR) == {"192.168.1.0/26", _P1, _P2}


def test_equal_paths_and_one_that_goes() -> None:
    world = World()
    world.up(_A, _B)
    world.announce(_A, _P1)
    world.announce(_B, _P1)
    hops = (NextHop("10.0.0.2", 2, onlink=True), NextHop("10.0.0.3", 2, onlink=True))
    assert world.routes[_P1] == Route(_P1, nexthops=hops, protocol=186)
    world.hear(events.Down(_A.address, "notification received (6,2)"))
    assert world.routes[_P1].gateway == "10.0.0.3"


def test_graceful_restart_of_a_peer() -> None:
    world = World()
    world.up(_A)
    world.announce(_A, _P1, _P2)
    world.hear(events.Down(_A.address, "closing connection"))
    assert {_P1, _P2} <= world.routes.keys()
    world.tick(30)
    world.up(_A)
    world.announce(_A, _P1)
    assert {_P1, _P2} <= world.routes.keys()
    world.end(_A)
    assert _P1 in world.routes and _P2 not in world.routes


def test_a_peer_that_never_comes_back() -> None:
    world = World()
    world.up(_A)
    world.announce(_A, _P1)
    world.hear(events.Down(_A.address, "closing connection"))
    world.tick(89)
    assert _P1 in world.routes
    world.tick(1)
    assert _P1 not in world.routes


def test_a_peer_without_graceful_restart() -> None:
    world = World()
    world.up(_A, restart_time=None)
    world.announce(_A, _P1)
    world.hear(events.Down(_A.address, "closing connection"))
    assert _P1 not in world.routes


def test_a_failed_attempt_is_no_lost_session() -> None:
    world = World()
    world.up(_A)
    world.announce(_A, _P1)
    world.hear(events.Down(_A.address, "closing connection"))
    for _ in range(3):
        world.hear(events.Down(_A.address, "notification sent (2,2)"))
    assert _P1 in world.routes
    assert world.router.sessions[_A.address].last_notification == "sent OPEN error: Bad peer AS (2,2)"


def test_exabgp_ends_and_nothing_moves() -> None:
    world = World()
    world.up(_A, restart_time=None)
    world.announce(_A, _P1)
    world.hear(events.Down(_A.address, "stop, message [shutting down]"), events.Shutdown())
    assert _P1 in world.routes and world.heard_by(_A) == {"192.168.1.0/26"}


def test_a_removed_peer_is_told_to_forget_us_first() -> None:
    world = World()
    world.up(_A, _B)
    world.announce(_A, _P1)
    world.configure(replace(_CONFIG, peers=(_B,)))
    assert world.heard_by(_A) == set() and _P1 not in world.routes
    assert [s.address for s in world.router.removed_sessions()] == [_A.address]
    world.router.reloaded()
    assert list(world.router.sessions) == [_B.address]


def test_pools_decide_anew_without_a_word_from_peers() -> None:
    world = World()
    world.up(_A)
    world.announce(_A, _P1)
    world.configure(replace(_CONFIG, pools=()))
    assert set(world.routes) == {"192.168.1.0/26"}
    world.configure(replace(_CONFIG, peers=(_A, _TOR), pools=(Pool(cidr="192.168.0.0/16", exported=False),)))
    assert _P1 in world.routes and world.heard_by(_A) == set()


def test_next_hops_that_move() -> None:
    world = World()
    world.up(_A)
    world.announce(_A, _P1)
    world.resolver.change(Route("10.0.0.2/32", ifindex=5, scope=253))
    world.router.kernel_changed()
    world.settle()
    assert world.routes[_P1].ifindex == 5
    world.resolver.replace([])
    world.router.kernel_changed()
    world.settle()
    assert _P1 not in world.routes


def test_the_tunnel_comes_after_the_routes_that_need_it() -> None:
    """Felix makes tunl0 in its own time, and remakes it."""
    world = World(replace(_CONFIG, pools=(Pool(cidr="192.168.0.0/16", tunnel="always"),)))
    world.up(_A)
    world.announce(_A, _P1)
    assert _P1 not in world.routes and world.router.decider.reasons[_P1] == "no interface tunl0"
    for index in (9, 12):
        world.interfaces.by_name["tunl0"] = index
        world.router.kernel_changed()
        world.settle()
        assert world.routes[_P1] == Route(_P1, gateway=_A.address, ifindex=index, onlink=True, protocol=186)


def test_a_peer_is_removed_while_the_kernel_is_busy() -> None:
    """What was decided before is not told to one that is to forget us."""
    world = World()
    world.up(_A, _B)
    more = replace(_CONFIG, blocks=(*_CONFIG.blocks, Block(cidr=_P2)))
    world.router.configure(more, 0, 0)
    decision = world.router.decide()
    world.router.configure(replace(more, peers=(_B,)), 0, 0)
    world.router.announce(decision)
    world.settle()
    assert world.heard_by(_A) == set() and world.heard_by(_B) == {"192.168.1.0/26", _P2}


def test_a_borrowed_address() -> None:
    world = World()
    world.up(_A)
    pod = Route("192.168.2.9/32", ifindex=2, scope=253)
    world.resolver.change(pod)
    world.router.kernel_changed()
    world.settle()
    assert world.heard_by(_A) == {"192.168.1.0/26", "192.168.2.9/32"}
    world.announce(_A, "192.168.2.9/32")
    assert "192.168.2.9/32" not in world.routes, "the pod is here, whatever others say"
    world.resolver.change(pod, gone=True)
    world.router.kernel_changed()
    world.settle()
    assert "192.168.2.9/32" in world.routes and world.heard_by(_A) == {"192.168.1.0/26"}


def test_a_peer_behind_a_gateway() -> None:
    far = replace(_TOR, address="172.16.0.9", gateway="10.0.0.254")
    world = World(replace(_CONFIG, peers=(far,)))
    assert world.routes["172.16.0.9/32"] == Route(
        "172.16.0.9/32", gateway="10.0.0.254", ifindex=2, onlink=True, protocol=186
    )
    world.up(far)
    world.announce(far, _P1)
    assert world.routes[_P1].gateway == "10.0.0.254"
    world.configure(_CONFIG)
    assert "172.16.0.9/32" not in world.routes


def test_the_own_family_only() -> None:
    six = replace(_A, address="fd00::2", local_address="fd00::1")
    world = World(replace(_CONFIG, peers=(_A, six)))
    world.hear(events.Open(six.address, 64512, 90, "10.0.0.2", frozenset([4])), events.Up(six.address))
    assert world.heard_by(six) == set(), "the peer does not speak IPv6 on this session"
    assert world.router.sessions[six.address].up


# --- start-up and take-over ---------------------------------------------------------------------


def test_start_up_lasts_until_all_peers_have_spoken() -> None:
    world = World()
    world.up(_A, _B)
    world.end(_A)
    assert not world.tick(1)
    world.end(_B)
    assert world.tick(1) and not world.tick(1)


def test_end_of_rib_when_all_was_told() -> None:
    world = World()
    world.up(_A)
    assert list(world.router.ends_of_rib(0.0)) == [_A.address]
    assert list(world.router.ends_of_rib(0.0)) == []
    world.hear(events.Down(_A.address, "closing connection"))
    world.up(_A)
    assert list(world.router.ends_of_rib(0.0)) == [_A.address], "once for each session"


def test_end_of_rib_waits_for_routes_that_may_still_come() -> None:
    world = World(replace(_CONFIG, peers=(_A, _TOR)))
    world.up(_A, _TOR)
    assert list(world.router.ends_of_rib(0.0)) == []
    world.end(_A, _TOR)
    assert set(world.router.ends_of_rib(0.0)) == {_A.address, _TOR.address}


def test_taking_over_from_a_dead_agent() -> None:
    """What it learned is known, what it told is not told again, what has gone is withdrawn at last."""
    world = World()
    own = Received(Attributes(local_pref=2147482623), "10.0.0.1")
    learned = Received(Attributes(), "10.0.0.2")
    world.router.found(
        [events.Neighbour(_A.address, True, 100, "10.0.0.2", 90, True)],
        [events.Listed(_A.address, _P1, learned)],
        [events.Listed(_A.address, "192.168.1.0/26", own), events.Listed(_A.address, "192.168.8.0/26", own)],
        world.now,
        world.now,
    )
    assert world.settle() == []
    assert _P1 in world.routes
    world.up(_B)
    world.end(_B)
    assert world.tick(0.1), "A was up for long enough to have told all"
    assert world.told == {(_B.address, "192.168.1.0/26"): world.told[_B.address, "192.168.1.0/26"]} | {
        (_A.address, "192.168.8.0/26"): None
    }


def test_filters_part_prefixes_of_one_update() -> None:
    deny = Filter(
        name="deny",
        import4=(Rule(accept=False, cidr=_P1, operator="Equal"),),
        export4=(Rule(accept=False, cidr="192.168.1.0/26", operator="Equal"),),
    )
    tor = replace(_TOR, filters=("deny",))
    world = World(replace(_CONFIG, peers=(_A, tor), filters=(deny,)))
    world.up(_A, tor)
    world.announce(tor, _P1, _P2)
    assert _P1 not in world.routes and _P2 in world.routes
    found = world.peer_status(tor)
    assert (found.received, found.rejected) == (2, 1)
    assert found.rejected_because == {"filter deny, importV4 rule 1": 1}
    assert (world.heard_by(tor), world.heard_by(_A)) == (set(), {"192.168.1.0/26", _P2})

    world.configure(replace(_CONFIG, peers=(_A, _TOR)))
    assert _P1 in world.routes and world.heard_by(_TOR) == {"192.168.1.0/26"}
    assert world.peer_status(_TOR).rejected == 0


def test_a_path_that_changes_between_refused_and_accepted() -> None:
    only = Filter(name="marked", import4=(Rule(accept=True, community=(65000, 1)), Rule(accept=False)))
    tor = replace(_TOR, filters=("marked",))
    world = World(replace(_CONFIG, peers=(tor,), filters=(only,)))
    world.up(tor)
    world.announce(tor, _P1)
    assert _P1 not in world.routes
    world.announce(tor, _P1, communities=((65000, 1),))
    assert _P1 in world.routes and not world.router.decider.refusals.counts(tor.address)
    world.announce(tor, _P1)
    assert _P1 not in world.routes


def test_addresses_of_services_are_announced_and_their_ranges_stay_out_of_the_kernel() -> None:
    ranged, single = "10.96.0.0/12", "203.0.113.7/32"
    config = replace(_CONFIG, peers=(_A, _TOR), services=(ranged, single), service_ranges=(ranged,))
    world = World(config)
    world.up(_A, _TOR)
    assert world.heard_by(_A) == world.heard_by(_TOR) == {"192.168.1.0/26", ranged, single}
    assert world.routes[single].type is RouteType.BLACKHOLE and ranged not in world.routes
    assert world.router.decider.reasons[ranged] == "in a range of services"
    world.configure(replace(config, services=(ranged,)))
    assert single not in world.routes and world.heard_by(_TOR) == {"192.168.1.0/26", ranged}


def test_a_reflector_passes_on_the_services_of_others() -> None:
    local = replace(_CONFIG.local, cluster_id="224.0.0.1")
    config = replace(_CONFIG, peers=(_A, _TOR), reflected_ranges=("203.0.113.0/24",))
    for reflector, heard in ((config, set()), (replace(config, local=local), {"203.0.113.7/32"})):
        world = World(reflector)
        world.up(_A, _TOR)
        world.announce(_A, "203.0.113.7/32", "198.51.100.1/32")
        assert world.heard_by(_TOR) == {"192.168.1.0/26"} | heard
        assert set(world.routes) == {"192.168.1.0/26"}
