"""Which paths are best, which kernel routes and announcements follow: for every prefix that may have changed.

Works on the table and the sessions of a Router and has no say over either. What decides about all
prefixes at once (the configuration, how next hops are reached, the tunnel) is compared with what was
seen last; if it changed, all are looked at again. Prefixes that have the very same paths, as those of
one UPDATE have, are decided together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tortie.bgp.bestpath import ONLY_PATH, Choice, choose
from tortie.bgp.config import Config, Peer
from tortie.bgp.exchange import Offer, Reception
from tortie.bgp.fib import TUNNEL, Fib, Interfaces, unicast
from tortie.bgp.nexthop import Resolver, Way
from tortie.bgp.policy import Policy
from tortie.bgp.prefix import network
from tortie.bgp.refusals import Refusals
from tortie.bgp.rib import Rib
from tortie.bgp.route import Announcement, Path, Received
from tortie.bgp.session import Session
from tortie.linux.routes import NextHop, Route


@dataclass(slots=True)
class Decision:
    """Kernel routes that changed: prefix -> route, None: none is wanted."""

    routes: dict[str, Route | None] = field(default_factory=dict)
    announcements: list[tuple[Session, str, Announcement]] = field(default_factory=list)


class Decider:
    def __init__(
        self, rib: Rib, sessions: Mapping[str, Session], resolver: Resolver, interfaces: Interfaces
    ) -> None:
        """All four are kept up to date by others."""
        self.reasons: dict[str, str] = {}  # prefix -> why it has no kernel route
        self.choices: dict[str, Choice] = {}  # prefix -> what was decided last
        self.contested: dict[str, Choice] = {}  # the same of prefixes that have several paths
        self.refusals = Refusals()  # paths that did not pass import
        self.policy: Policy | None = None  # None until there is a configuration
        self._config: Config | None = None
        self._fib: Fib | None = None
        self._rib = rib
        self._sessions = sessions
        self._resolver = resolver
        self._interfaces = interfaces
        self._ways: dict[str, Way | None] = {}  # next hop -> how it was reached when last looked at
        self._links: tuple[int | None, ...] = ()  # indices of interfaces, likewise
        self._afresh = False  # something that decides about every prefix changed
        self._gateways: set[str] = set()  # prefixes of peers behind a gateway
        self._receptions: dict[tuple[str, int], Reception] = {}  # (peer, identity of its path) -> answers

    # --- what decides about all -----------------------------------------------------------------

    def configure(self, config: Config) -> None:
        self._config, self.policy, self._fib = config, Policy(config), Fib(config)
        self._look_at_all()

    def kernel_changed(self) -> None:
        """The resolver's routes or the interfaces may no longer be what they were."""
        if self._links != self._present_links() or any(
            self._resolver.way(next_hop) != way for next_hop, way in self._ways.items()
        ):
            self._look_at_all()

    def _look_at_all(self) -> None:
        self._rib.touch(self._rib.prefixes())
        self._ways.clear()
        self._links = self._present_links()
        self._afresh = True

    def _present_links(self) -> tuple[int | None, ...]:
        """What routes may lead over without the resolver: the tunnel, and where link-local next hops are."""
        own = self._config.local.addresses if self._config else ()
        return self._interfaces.by_name.get(TUNNEL), *map(self._interfaces.by_address.get, own)

    # --- deciding -------------------------------------------------------------------------------

    def decide(self) -> Decision:
        """Look at all prefixes that may have changed; withdrawals are noted in outboxes at once."""
        decision = Decision()
        if self._config is None:
            return decision
        if self._afresh:
            self._reach_gateways(decision)
        afresh, self._afresh = self._afresh, False
        classes = self._classes()
        for paths, prefixes in self._alike(self._rib.take_changed()):
            choice = choose(paths, self._cost) if paths else None
            different = prefixes if afresh else [p for p in prefixes if self.choices.get(p) != choice]
            if choice is None:
                self._forget(different, decision)
                continue
            self._note(different, choice)
            self._route(different, choice, decision)
            self._tell(different, choice, classes, decision)
        self._receptions.clear()
        return decision

    def _reach_gateways(self, decision: Decision) -> None:
        """Host routes to peers that are behind a gateway (reachableBy), before anything resolves by them."""
        assert self._config is not None
        wanted = {str(network(peer.address)): peer.gateway for peer in self._config.peers if peer.gateway}
        for prefix in self._gateways - wanted.keys():
            decision.routes[prefix] = None
            self._resolver.change(Route(prefix), gone=True)
        self._gateways = set(wanted)
        for prefix, gateway in wanted.items():
            way = self._ways[gateway] = self._resolver.way(gateway)
            route = unicast(prefix, [NextHop(way.gateway, way.ifindex, onlink=True)]) if way else None
            decision.routes[prefix] = route
            self._resolver.change(route or Route(prefix), gone=route is None)

    def _alike(self, prefixes: Iterable[str]) -> Iterable[tuple[list[Path], list[str]]]:
        """Candidate paths and the prefixes that have just these."""
        groups: dict[tuple[int, ...], tuple[list[Path], list[str]]] = {}  # identities of the paths -> both
        for heard in self._rib.alike(prefixes):
            receptions = self._heard(heard[0])
            same = all(one is None or one.same_for_all for one in receptions.values())
            for some in (heard,) if same else ([prefix] for prefix in heard):
                paths = self._candidates(some, receptions)
                groups.setdefault(tuple(map(id, paths)), (paths, []))[1].extend(some)
        return groups.values()

    def _heard(self, prefix: str) -> dict[str, Reception | None]:
        """Peer -> its path; None: its session is gone."""
        known, heard = self._receptions, self._rib.received(prefix).items()
        return {one: known.get((one, id(path))) or self._receive(one, path) for one, path in heard}

    def _candidates(self, prefixes: list[str], receptions: Mapping[str, Reception | None]) -> list[Path]:
        """Our own path, and those of peers that pass import; they are the same for all of the prefixes."""
        local = self._rib.local(prefixes[0])
        paths = [] if local is None else [local]
        refused: dict[str, str] = {}  # peer -> why
        for address, reception in receptions.items():
            path = reception.of(prefixes[0]) if reception else "its session is gone"
            if isinstance(path, str):
                refused[address] = path
            else:
                paths.append(path)
        self.refusals.note(prefixes, refused)
        return paths

    def _receive(self, address: str, received: Received) -> Reception | None:
        assert self.policy is not None
        session = self._sessions.get(address)
        if session is None or session.peer is None:
            return None
        interface = self._interface(received.next_hop) if session.peer.filters else ""
        made = Reception(self.policy, session.peer, session.router_id, received, interface)
        self._receptions[address, id(received)] = made
        return made

    def _cost(self, next_hop: str) -> int | None:
        """Link-local next hops are on the session's link (RFC 2545): the nearest there is."""
        way = self._ways[next_hop] = self._resolver.way(next_hop)
        if way is None:
            return 0 if next_hop.startswith("fe80:") else None
        return way.metric

    def _interface(self, next_hop: str) -> str:
        """The name of the interface that leads there, "" if there is none."""
        try:
            way = self._ways[next_hop] = self._resolver.way(next_hop)
        except ValueError:  # no next hop at all: refused by policy
            return ""
        names = {index: name for name, index in self._interfaces.by_name.items()}
        return names.get(way.ifindex, "") if way else ""

    def _note(self, prefixes: Iterable[str], choice: Choice) -> None:
        chosen = dict.fromkeys(prefixes, choice)
        self.choices.update(chosen)
        if choice.decided_by != ONLY_PATH:
            self.contested.update(chosen)
            return
        for prefix in self.contested.keys() & chosen.keys():
            del self.contested[prefix]

    def _forget(self, prefixes: list[str], decision: Decision) -> None:
        """Nobody has a usable path to these any more."""
        for prefix in prefixes:
            self.choices.pop(prefix, None)
            self.contested.pop(prefix, None)
            self.reasons.pop(prefix, None)
        decision.routes.update(dict.fromkeys(prefixes))
        for session in self._sessions.values():
            session.outbox.want_none(prefixes)

    def _route(self, prefixes: Iterable[str], choice: Choice, decision: Decision) -> None:
        assert self._fib is not None
        for prefix, route in self._fib.routes(prefixes, choice, self._resolver, self._interfaces):
            if isinstance(route, str):
                self.reasons[prefix] = route
                decision.routes[prefix] = None
            else:
                self.reasons.pop(prefix, None)
                decision.routes[prefix] = route

    # --- telling --------------------------------------------------------------------------------

    def _classes(self) -> list[list[Session]]:
        """Sessions by what they may be told: policy is asked once for each class and prefix."""
        classes: dict[tuple[object, ...], list[Session]] = {}
        for session in self._sessions.values():
            if (peer := session.peer) is not None:
                key = (
                    session.version,
                    peer.local_as,
                    peer.ebgp,
                    peer.local_address,
                    peer.next_hop,
                    peer.client,
                    peer.filters,
                )
                classes.setdefault(key, []).append(session)
        return list(classes.values())

    def _tell(
        self, prefixes: list[str], choice: Choice, classes: list[list[Session]], decision: Decision
    ) -> None:
        """Members of a class differ only in that none hears its own path again."""
        for sessions in classes:
            offer = self._offer(choice.best, sessions)
            if offer is None or offer.is_nothing:
                for session in sessions:
                    session.outbox.want_none(prefixes)
                continue
            for prefix in prefixes:
                told = offer.of(prefix)
                announcement = told if isinstance(told, Announcement) else None
                for session in sessions:
                    mine = announcement if session.address != choice.best.peer else None
                    if session.outbox.desired.get(prefix) == mine:
                        continue
                    if mine is None:
                        session.outbox.want(prefix, None)
                    else:
                        decision.announcements.append((session, prefix, mine))

    def _offer(self, best: Path, sessions: list[Session]) -> Offer | None:
        """What any of the sessions but the path's own is told; None if there is no other."""
        assert self.policy is not None
        peer = next((session.peer for session in sessions if session.address != best.peer), None)
        if peer is None:
            return None
        interface = best.interface
        if not best.local and peer.filters:
            interface = self._interface(best.next_hop)
        return Offer(self.policy, best, peer, self._peer(best.peer), interface)

    def _peer(self, address: str) -> Peer | None:
        session = self._sessions.get(address)
        return session.peer if session else None
