"""The agent's mind: events and configuration in, kernel routes and announcements out. No I/O, no clock.

Ties the pure parts together. `handle()` takes what ExaBGP reported, `decide()` looks at every prefix
that may have changed and says which kernel routes it wants, having noted at once what peers must no
longer be told. `announce()` is called when the kernel has the routes: the route comes before its
announcement, the withdrawal before the route's removal.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tortie.bgp import events
from tortie.bgp.bestpath import ONLY_PATH, Choice, choose
from tortie.bgp.config import Config, Peer
from tortie.bgp.fib import TUNNEL, Fib, Interfaces, unicast
from tortie.bgp.graceful import Capability
from tortie.bgp.local import local_paths
from tortie.bgp.nexthop import Resolver, Way
from tortie.bgp.outbox import Outbox
from tortie.bgp.policy import Policy
from tortie.bgp.prefix import network
from tortie.bgp.rib import Rib
from tortie.bgp.route import Announcement, Path
from tortie.bgp.session import Session
from tortie.bgp.startup import Startup
from tortie.linux.routes import NextHop, Route

_log = logging.getLogger(__name__)

_SHUTTING_DOWN = "stop, message [shutting down]"
_HEARD_AFTER = 5  # seconds after which a session that we found has told all, if it does not say so


@dataclass(slots=True)
class Decision:
    """Kernel routes that changed: prefix -> route, None: none is wanted."""

    routes: dict[str, Route | None] = field(default_factory=dict)
    announcements: list[tuple[Session, str, Announcement]] = field(default_factory=list)


class Router:
    def __init__(self, resolver: Resolver, interfaces: Interfaces) -> None:
        """`resolver` and `interfaces` are kept up to date by the caller, see kernel_changed()."""
        self.rib = Rib()
        self.sessions: dict[str, Session] = {}  # peer address -> session
        self.reasons: dict[str, str] = {}  # prefix -> why it has no kernel route
        self.choices: dict[str, Choice] = {}  # prefix -> what was decided last
        self.contested: dict[str, Choice] = {}  # the same of prefixes that have several paths
        self.startup: Startup | None = None  # None until there is a configuration
        self.config: Config | None = None
        self._policy: Policy | None = None
        self._fib: Fib | None = None
        self._resolver = resolver
        self._interfaces = interfaces
        self._ways: dict[str, Way | None] = {}  # next hop -> how it was reached when last looked at
        self._links: tuple[int | None, ...] = ()  # indices of interfaces, likewise
        self._afresh = False  # something that decides about every prefix changed
        self._gateways: set[str] = set()  # prefixes of peers behind a gateway

    # --- configuration --------------------------------------------------------------------------

    def configure(self, config: Config, now: float, wall: float) -> None:
        """Take over a configuration: sessions appear or lose their peers, all is looked at again."""
        if self.startup is None:
            self.startup = Startup((p.address for p in config.peers), now + config.restart_time)
        wanted = {peer.address: peer for peer in config.peers}
        self.startup.forget_others(wanted)
        for address, session in self.sessions.items():
            if address not in wanted:
                session.peer = None
                session.outbox.want_nothing()
        for address, peer in wanted.items():
            session = self.sessions.setdefault(address, Session(address, wall))
            if session.peer is not None and session.peer.session != peer.session:
                session.outbox = Outbox(address)  # to ExaBGP it is another neighbour, with nothing held
            session.peer = peer
        self.config, self._policy, self._fib = config, Policy(config), Fib(config)
        self._set_local()
        self._look_at_all()

    def removed_sessions(self) -> list[Session]:
        """Those that are no longer configured, but still there."""
        return [session for session in self.sessions.values() if session.peer is None]

    def reloaded(self) -> None:
        """ExaBGP runs with the configuration: sessions that are not in it are gone."""
        for session in self.removed_sessions():
            self.rib.drop(session.address)
            del self.sessions[session.address]

    # --- the kernel -----------------------------------------------------------------------------

    def kernel_changed(self) -> None:
        """The resolver's routes or the interfaces are no longer what they were."""
        if self._links != self._present_links() or any(
            self._resolver.way(next_hop) != way for next_hop, way in self._ways.items()
        ):
            self._look_at_all()
        self._set_local()

    def _look_at_all(self) -> None:
        self.rib.touch(self.rib.prefixes())
        self._ways.clear()
        self._links = self._present_links()
        self._afresh = True

    def _present_links(self) -> tuple[int | None, ...]:
        """What routes may lead over without the resolver: the tunnel, and where link-local next hops are."""
        own = self.config.local.addresses if self.config else ()
        return self._interfaces.by_name.get(TUNNEL), *map(self._interfaces.by_address.get, own)

    def _set_local(self) -> None:
        if self.config is not None:
            heard_all = self.startup is not None and self.startup.over
            self.rib.set_local(local_paths(self.config, self._resolver.routes, self._interfaces, heard_all))

    # --- what ExaBGP reports --------------------------------------------------------------------

    def session(self, address: str, wall: float) -> Session:
        if address not in self.sessions:
            self.sessions[address] = Session(address, wall)
        return self.sessions[address]

    def handle(self, event: events.Event, now: float, wall: float) -> None:
        """Take over one report. `now` is the monotonic clock, `wall` the time of day."""
        match event:
            case events.Update(peer, sent, told):
                if sent:
                    self.session(peer, wall).outbox.reported(told, now)
                else:
                    self.rib.update(peer, told)
            case events.Up(peer):
                self._up(self.session(peer, wall), now, wall)
            case events.Down(peer, reason):
                self._down(self.session(peer, wall), reason, now, wall)
            case events.State(peer, state):
                self.session(peer, wall).state = state
            case events.Open():
                self._opened(self.session(event.peer, wall), event)
            case events.EndOfRib(peer, sent, family):
                self._end_of_rib(self.session(peer, wall), sent, family)
            case _:
                pass  # answers to questions of the agent, which asked

    def _opened(self, session: Session, event: events.Open) -> None:
        session.router_id, session.hold_time = event.router_id, event.hold_time
        session.carries_family = session.version in event.versions
        session.retention.capability = None
        if event.restart_time is not None:
            session.retention.capability = Capability(event.restart_time, event.restarting, event.forwarding)

    def _up(self, session: Session, now: float, wall: float) -> None:
        session.up, session.state, session.since = True, "Established", wall
        session.end_of_rib_sent = session.end_of_rib_received = False
        if session.carries_family:
            session.outbox.session_up(now)
        capability = session.retention.capability
        if self.startup and capability and capability.restarting:
            self.startup.restarting(session.address)
        if not session.retention.back(session.version, now):
            self._sweep(session, "the peer lost its forwarding state")

    def _down(self, session: Session, reason: str, now: float, wall: float) -> None:
        if reason == _SHUTTING_DOWN:
            return  # ExaBGP ends, and so do we: the routes stay, here and in the kernel
        session.outbox.session_down()
        session.failed(reason, wall)
        if not session.up:
            return
        session.up, session.state, session.since = False, "Idle", wall
        if session.peer is not None and session.retention.lost(reason, session.version, now):
            self.rib.mark_stale(session.address)
        else:
            self.rib.drop(session.address)

    def _end_of_rib(self, session: Session, sent: bool, family: int) -> None:
        if family != session.version:
            return
        if sent:
            session.end_of_rib_sent = True
            return
        session.end_of_rib_received = True
        session.retention.confirmed()
        self._sweep(session, "not announced again")
        if self.startup:
            self.startup.heard(session.address)

    def _sweep(self, session: Session, why: str) -> None:
        if swept := self.rib.sweep_stale(session.address):
            _log.info("%s: dropped %d stale prefixes: %s", session.address, swept, why)

    def found(
        self,
        neighbours: Iterable[events.Neighbour],
        incoming: Iterable[events.Listed],
        outgoing: Iterable[events.Listed],
        now: float,
        wall: float,
    ) -> None:
        """Take over sessions that were there before us (we are a restarted helper).

        Reports that came in meanwhile must be handled after this: they are as new as the listings or newer.
        """
        held: dict[str, dict[str, Announcement]] = {}  # peer -> prefix -> what ExaBGP holds for it
        for one in outgoing:
            held.setdefault(one.peer, {})[one.prefix] = Announcement(*one.path)
        for neighbour in neighbours:
            session = self.session(neighbour.peer, wall)
            if not neighbour.established or session.up:
                continue
            session.up, session.state, session.since = True, "Established", wall - neighbour.seconds
            session.router_id = neighbour.router_id or session.router_id
            session.outbox.adopt(held.get(neighbour.peer, {}))
            if neighbour.graceful:
                session.retention.capability = Capability(families={session.version: True})
            session.hold_time = neighbour.hold_time
            if self.startup:
                self.startup.wait_until(neighbour.peer, now + _HEARD_AFTER - neighbour.seconds)
        for one in incoming:
            if self.sessions[one.peer].up:
                self.rib.update(one.peer, {one.prefix: one.path})

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Let time pass; True once, when start-up is over."""
        for session in self.sessions.values():
            if session.retention.expired(now):
                session.retention.confirmed()
                self._sweep(session, "its restart took too long")
        if self.startup is None or not self.startup.check(now):
            return False
        for session in self.sessions.values():
            session.outbox.release()
        self._set_local()
        return True

    def ends_of_rib(self, now: float) -> Iterator[str]:
        """Peers that have been told everything, and can be told so."""
        for session in self.sessions.values():
            if session.peer is None or session.end_of_rib_sent or not session.outbox.settled:
                continue
            assert self.startup is not None and self._policy is not None
            if self._policy.takes_learned(session.peer) and not self.startup.may_end_rib(now):
                continue
            session.end_of_rib_sent = True
            yield session.address

    # --- deciding -------------------------------------------------------------------------------

    def decide(self) -> Decision:
        """Look at all prefixes that may have changed; those with the same paths are decided together."""
        decision = Decision()
        if self.config is None:
            return decision
        if self._afresh:
            self._reach_gateways(decision)
        afresh, self._afresh = self._afresh, False
        classes = self._classes()
        for prefixes in self._alike(self.rib.take_changed()):
            choice = self._choose(prefixes[0])
            different = prefixes if afresh else [p for p in prefixes if self.choices.get(p) != choice]
            if choice is None:
                self._forget(different, decision)
                continue
            self._note(different, choice)
            self._route(different, choice, decision)
            self._tell(different, choice, classes, decision)
        return decision

    def announce(self, decision: Decision) -> None:
        """The kernel has the routes: peers may hear of them, unless they were removed meanwhile."""
        for session, prefix, announcement in decision.announcements:
            if session.peer is not None:
                session.outbox.want(prefix, announcement)

    def _reach_gateways(self, decision: Decision) -> None:
        """Host routes to peers that are behind a gateway (reachableBy), before anything resolves by them."""
        assert self.config is not None
        wanted = {str(network(peer.address)): peer.gateway for peer in self.config.peers if peer.gateway}
        for prefix in self._gateways - wanted.keys():
            decision.routes[prefix] = None
            self._resolver.change(Route(prefix), gone=True)
        self._gateways = set(wanted)
        for prefix, gateway in wanted.items():
            way = self._ways[gateway] = self._resolver.way(gateway)
            route = unicast(prefix, [NextHop(way.gateway, way.ifindex, onlink=True)]) if way else None
            decision.routes[prefix] = route
            self._resolver.change(route or Route(prefix), gone=route is None)

    def _alike(self, prefixes: Iterable[str]) -> Iterable[list[str]]:
        """Prefixes in groups that have the very same paths, as those of one UPDATE have."""
        groups: dict[tuple[object, ...], list[str]] = {}  # identities of the paths -> prefixes
        for prefix in prefixes:
            paths = [(peer, id(received)) for peer, received in self.rib.received(prefix).items()]
            groups.setdefault((id(self.rib.local(prefix)), *paths), []).append(prefix)
        return groups.values()

    def _choose(self, prefix: str) -> Choice | None:
        assert self._policy is not None
        paths = []
        if (local := self.rib.local(prefix)) is not None:
            paths.append(local)
        for address, received in self.rib.received(prefix).items():
            session = self.sessions.get(address)
            if session is None or session.peer is None:
                continue
            accepted = self._policy.accept(session.peer, session.router_id, received)
            if isinstance(accepted, Path):
                paths.append(accepted)
        return choose(paths, self._cost) if paths else None

    def _cost(self, next_hop: str) -> int | None:
        """Link-local next hops are on the session's link (RFC 2545): the nearest there is."""
        way = self._ways[next_hop] = self._resolver.way(next_hop)
        if way is None:
            return 0 if next_hop.startswith("fe80:") else None
        return way.metric

    def _note(self, prefixes: Iterable[str], choice: Choice) -> None:
        chosen = dict.fromkeys(prefixes, choice)
        self.choices.update(chosen)
        if choice.decided_by != ONLY_PATH:
            self.contested.update(chosen)
            return
        for prefix in self.contested.keys() & chosen.keys():
            del self.contested[prefix]

    def _forget(self, prefixes: Iterable[str], decision: Decision) -> None:
        """Nobody has a usable path to these any more."""
        for prefix in prefixes:
            self.choices.pop(prefix, None)
            self.contested.pop(prefix, None)
            self.reasons.pop(prefix, None)
            decision.routes[prefix] = None
            for session in self.sessions.values():
                if prefix in session.outbox.desired:
                    session.outbox.want(prefix, None)

    def _route(self, prefixes: Iterable[str], choice: Choice, decision: Decision) -> None:
        assert self._fib is not None
        for prefix, route in self._fib.routes(prefixes, choice, self._resolver, self._interfaces):
            if isinstance(route, str):
                self.reasons[prefix] = route
                decision.routes[prefix] = None
            else:
                self.reasons.pop(prefix, None)
                decision.routes[prefix] = route

    def _classes(self) -> list[list[Session]]:
        """Sessions by what they may be told: policy is asked once for each class and prefix."""
        classes: dict[tuple[object, ...], list[Session]] = {}
        for session in self.sessions.values():
            if (peer := session.peer) is not None:
                key = (
                    session.version,
                    peer.local_as,
                    peer.ebgp,
                    peer.local_address,
                    peer.next_hop,
                    peer.client,
                )
                classes.setdefault(key, []).append(session)
        return list(classes.values())

    def _tell(
        self, prefixes: Iterable[str], choice: Choice, classes: list[list[Session]], decision: Decision
    ) -> None:
        """Members of a class differ only in that none hears its own path again."""
        assert self._policy is not None
        best = choice.best
        for sessions in classes:
            other = next((s.peer for s in sessions if s.address != best.peer), None)
            told = self._policy.announce(best, other, self._peer(best.peer)) if other else ""
            for prefix in prefixes:
                announcement = None
                if (
                    other
                    and isinstance(told, Announcement)
                    and not self._policy.withheld(prefix, best, other)
                ):
                    announcement = told
                for session in sessions:
                    mine = announcement if session.address != best.peer else None
                    if session.outbox.desired.get(prefix) == mine:
                        continue
                    if mine is None:
                        session.outbox.want(prefix, None)
                    else:
                        decision.announcements.append((session, prefix, mine))

    def _peer(self, address: str) -> Peer | None:
        session = self.sessions.get(address)
        return session.peer if session else None
