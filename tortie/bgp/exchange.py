"""What passes between us and one peer: policy's checks, the peer's filters and communities, in their order.

Incoming: checks that protect us, then filters. Outgoing: what the protocol forbids, then filters, then
Calico's rules and communities; what a filter accepts skips the latter (reference: BGP facts, 3.1, 3.2).

Both classes are one path's answers for all the prefixes that have it, and give the very same object
where the answer is the same: that is how prefixes are grouped. Pure.
"""

from msgspec.structs import replace

from tortie.bgp import filters
from tortie.bgp.config import Peer
from tortie.bgp.filters import Clause, Subject
from tortie.bgp.policy import Policy
from tortie.bgp.prefix import Network, network, version
from tortie.bgp.route import INT_MAX, Announcement, Path, Received


class Reception:
    """A path that a peer announced. `interface`: of its next hop, as filters see it."""

    def __init__(
        self, policy: Policy, peer: Peer, router_id: str, received: Received, interface: str
    ) -> None:
        self._policy = policy
        self._path = policy.accept(peer, router_id, received)
        self._clauses: tuple[Clause, ...] = ()
        self._by_rule: dict[str, Path | str] = {}  # name of the deciding rule -> the answer
        clauses = policy.clauses(peer, "import")
        if clauses and isinstance(self._path, Path):
            attributes = self._path.attributes
            subject = Subject(attributes, attributes.local_pref, True, peer.ebgp, interface)
            self._clauses = filters.narrow(clauses, subject)

    @property
    def same_for_all(self) -> bool:
        """Whether the answer is the same for all prefixes."""
        return not self._clauses

    def of(self, prefix: str) -> Path | str:
        """The path as a candidate for best path, or why it is refused."""
        path = self._path
        if isinstance(path, str) or not self._clauses:
            return path
        clause = filters.decide(self._clauses, network(prefix))
        if clause is None:
            return path
        if clause.name not in self._by_rule:
            self._by_rule[clause.name] = self._decided(path, clause)
        return self._by_rule[clause.name]

    def _decided(self, path: Path, clause: Clause) -> Path | str:
        if not clause.rule.accept:
            return clause.name
        if not clause.rule.operations:
            return path
        # LOCAL_PREF of an imported path is ours to set, whoever announced it.
        attributes = filters.apply(clause.rule.operations, path.attributes, ebgp=False)
        return self._policy.rated(replace(path, attributes=attributes))


class Offer:
    """A best path, to one peer. `source`: the session it came from; `interface`: of its next hop."""

    def __init__(self, policy: Policy, path: Path, peer: Peer, source: Peer | None, interface: str) -> None:
        self._policy, self._peer, self._path = policy, peer, path
        self._told = policy.announce(path, peer, source)
        self._clauses: tuple[Clause, ...] = ()
        self._by_rule: dict[str, Announcement | str] = {}  # name of the deciding rule -> the answer
        self._marked: dict[tuple[int, ...], Announcement] = {}  # advertisements that apply -> the answer
        clauses = policy.clauses(peer, "export")
        if clauses and isinstance(self._told, Announcement):
            local_pref = INT_MAX - path.metric if path.local else path.attributes.local_pref
            attributes = self._told.attributes
            subject = Subject(attributes, local_pref, not path.local, peer.ebgp, interface)
            self._clauses = filters.narrow(clauses, subject)

    @property
    def is_nothing(self) -> bool:
        """Whether the peer is told of no prefix."""
        return isinstance(self._told, str)

    def of(self, prefix: str) -> Announcement | str:
        """What the peer is told of the prefix, or why it is told nothing."""
        told, net = self._told, network(prefix)
        if isinstance(told, str):
            return told
        if net.version != version(self._peer.address):
            return "other family"  # a session carries the family of its addresses, as in Calico
        clause = filters.decide(self._clauses, net) if self._clauses else None
        if clause is not None:
            if clause.name not in self._by_rule:
                self._by_rule[clause.name] = self._decided(told, clause)
            return self._by_rule[clause.name]
        return self._policy.withheld(net, self._path, self._peer) or self._with_communities(told, net)

    def _decided(self, told: Announcement, clause: Clause) -> Announcement | str:
        if not clause.rule.accept:
            return clause.name
        if not clause.rule.operations:
            return told
        changed = filters.apply(clause.rule.operations, told.attributes, self._peer.ebgp)
        return told._replace(attributes=changed)

    def _with_communities(self, told: Announcement, net: Network) -> Announcement:
        applying = self._policy.advertisements(net)
        if not applying:
            return told
        if applying not in self._marked:
            self._marked[applying] = told._replace(attributes=self._policy.marked(told.attributes, applying))
        return self._marked[applying]
