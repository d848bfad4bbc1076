"""The agent's mind: events and configuration in, kernel routes and announcements out. No I/O, no clock.

Ties the pure parts together. `handle()` takes what ExaBGP reported, `decide()` looks at every prefix
that may have changed and says which kernel routes it wants, having noted at once what peers must no
longer be told. `announce()` is called when the kernel has the routes: the route comes before its
announcement, the withdrawal before the route's removal.
"""

import logging
from collections.abc import Iterable, Iterator

from tortie.bgp import events
from tortie.bgp.config import Config
from tortie.bgp.decider import Decider, Decision
from tortie.bgp.fib import Interfaces
from tortie.bgp.graceful import Capability
from tortie.bgp.local import local_paths
from tortie.bgp.nexthop import Resolver
from tortie.bgp.outbox import Outbox
from tortie.bgp.rib import Rib, Told
from tortie.bgp.route import Announcement
from tortie.bgp.session import Session
from tortie.bgp.startup import Startup

_log = logging.getLogger(__name__)

_SHUTTING_DOWN = "stop, message [shutting down]"
_HEARD_AFTER = 5  # seconds after which a session that we found has told all, if it does not say so


class Router:
    def __init__(self, resolver: Resolver, interfaces: Interfaces) -> None:
        """`resolver` and `interfaces` are kept up to date by the caller, see kernel_changed()."""
        self.rib = Rib()
        self.sessions: dict[str, Session] = {}  # peer address -> session
        self.startup: Startup | None = None  # None until there is a configuration
        self.config: Config | None = None
        self.decider = Decider(self.rib, self.sessions, resolver, interfaces)
        self._resolver = resolver
        self._interfaces = interfaces

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
        self.config = config
        self.rib.limit = config.prefix_limit
        self._set_local()
        self.decider.configure(config)

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
        self.decider.kernel_changed()
        self._set_local()

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
                    self._hear(peer, told)
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

    def _hear(self, peer: str, told: Told) -> None:
        was_over = self.rib.over(peer)
        self.rib.update(peer, told)
        if self.rib.over(peer) and not was_over:
            self._tell_over(peer)

    def _tell_over(self, peer: str) -> None:
        _log.warning(
            "%s announces all the %d prefixes that it may: others are not taken", peer, self.rib.limit
        )

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
        for peer in self.rib.suspect_over():
            self._tell_over(peer)

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
            assert self.startup is not None and self.decider.policy is not None
            if self.decider.policy.takes_learned(session.peer) and not self.startup.may_end_rib(now):
                continue
            session.end_of_rib_sent = True
            yield session.address

    # --- deciding -------------------------------------------------------------------------------

    def decide(self) -> Decision:
        """Look at all prefixes that may have changed."""
        return self.decider.decide()

    def announce(self, decision: Decision) -> None:
        """The kernel has the routes: peers may hear of them, unless they were removed meanwhile."""
        for session, prefix, announcement in decision.announcements:
            if session.peer is not None:
                session.outbox.want(prefix, announcement)
