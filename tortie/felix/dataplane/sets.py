"""The state's IP sets as kernel sets of one IP version: those that rules look into, and the static ones."""

from collections.abc import Collection, Iterable

from tortie.felix.calc import canonical
from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import Members, SetKind, version_of
from tortie.felix.dataplane.duty import Duty
from tortie.felix.rules import names
from tortie.felix.rules.settings import Settings
from tortie.linux.ipsets import IPSet, SetType

Sets = Duty[str, IPSet]

_TYPES: dict[SetKind, SetType] = {"net": "hash:net", "ip": "hash:ip", "ip,port": "hash:ip,port"}


class SetWriter:
    def __init__(
        self,
        version: int,
        settings: Settings,
        duty: Sets,
        *,
        node: str,
        maximum: int,
        external: Iterable[str] = (),
    ) -> None:
        """`maximum`: members that each set has room for at least.

        `external`: CIDRs that count as nodes of the cluster.
        """
        self._version, self._settings, self._duty, self._node = version, settings, duty, node
        self._maximum = maximum
        self._external = tuple(external)
        self._idents: dict[str, str] = {}  # kernel's name -> the state's, of every set there is to be

    def _name(self, ident: str) -> str:
        return names.ip_set(self._version, ident)

    def __getitem__(self, ident: str) -> Collection[str]:
        """What is to be in a set, for evaluating packets. Raises KeyError."""
        return self._duty.desired[self._name(ident)].members

    def wrong(self) -> dict[str, str]:
        """Sets that have not the members they should, and why; who looks into them is misled."""
        if self._duty.outcome.ok:
            return {}
        # Not what the last attempt refused: where the kernel could not be read, nothing was attempted.
        reasons = ((ident, self._duty.reason(name)) for name, ident in self._idents.items())
        return {ident: why for ident, why in reasons if why}

    def start(self, state: State) -> None:
        self.own_addresses(())
        self.update(state, Touched.everything(state))
        if not state.workloads:
            self._dscp(state)

    def update(self, state: State, touched: Touched) -> None:
        for ident in touched.sets:
            self._set(ident, state.sets.get(ident))
        if touched.topology:
            self._topology(state)
        if touched.workloads:
            self._dscp(state)

    def own_addresses(self, addresses: Iterable[str]) -> None:
        """The host's own; link-local ones as well, as they are what a packet may be addressed to."""
        self._put(names.THIS_HOST, "ip", addresses)

    def _topology(self, state: State) -> None:
        pools = state.pools.values()
        self._nets(names.MASQUERADED_POOLS, (pool.cidr for pool in pools if pool.nat_outgoing))
        self._nets(names.ALL_POOLS, (pool.cidr for pool in pools if not pool.load_balancer_only))
        if self._settings.ipip or self._settings.nat_spares_hosts:
            hosts = [node.of(self._version) for node in state.nodes.values()]
            self._nets(names.ALL_HOSTS, [*filter(None, hosts), *self._external])
        if self._version in self._settings.vxlan:
            others = (node for name, node in state.nodes.items() if name != self._node)
            tunnels = [vtep.node_address for node in others if (vtep := node.vtep(self._version))]
            self._nets(names.ALL_VXLAN, [*tunnels, *self._external])

    def _dscp(self, state: State) -> None:
        marked = (one for one in state.workloads.values() if one.dscp is not None)
        self._nets(names.DSCP_SOURCES, (net for one in marked for net in one.nets))

    def _set(self, ident: str, members: Members | None) -> None:
        if members is None:
            self._idents.pop(self._name(ident), None)
            self._duty.drop(self._name(ident))
        else:
            self._put_whole(ident, members.kind, frozenset(members.of(self._version)))

    def _nets(self, ident: str, nets: Iterable[str]) -> None:
        halves = (half for net in nets for half in canonical.halves(net))
        self._put(ident, "net", map(canonical.single, halves))

    def _put(self, ident: str, kind: SetKind, members: Iterable[str]) -> None:
        mine = frozenset(one for one in members if version_of(one.partition(",")[0]) == self._version)
        self._put_whole(ident, kind, mine)

    def _put_whole(self, ident: str, kind: SetKind, members: frozenset[str]) -> None:
        """`members` are all of this IP version.

        A set that is full would leave its last members to whatever the next rule says: a larger one costs
        memory alone. (Calico's felix ends when a set is full.)
        """
        fits = len(members) <= self._maximum
        room = self._maximum if fits else 1 << len(members).bit_length()
        wanted = IPSet(_TYPES[kind], self._version, members, room)
        self._idents[self._name(ident)] = ident
        self._duty.put(self._name(ident), wanted)
