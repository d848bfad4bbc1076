"""From the datastore's changes to what this node must enforce. Pure and incremental.

Feed it every Update the Syncer gives, in order; take the result with flush(). However updates are ordered,
repeated or split, the same content of the datastore gives the same State: flush() only says where to look.

What is enforced is what local endpoints need: a profile is compiled while a local endpoint names it, and an
IP set kept while an active rule names it. A profile that is missing or cannot be understood denies.
(Reference: policy sheet 6; felix/calc.)
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tortie.core.errors import ValidationError
from tortie.datastore.keys import AffinityKey, BlockKey, ResourceKey
from tortie.datastore.syncer import Update
from tortie.datastore.types.ipam import Block
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.policy import Profile as V3Profile
from tortie.felix.calc import canonical, endpoints, topology
from tortie.felix.calc.locals import LocalWorkloads
from tortie.felix.calc.members import MemberIndex
from tortie.felix.calc.model import (
    ALLOW_ALL,
    DENY_ALL,
    BlockRoute,
    Members,
    Pool,
    Profile,
    Workload,
    WorkloadId,
)
from tortie.felix.calc.rules import Source, compile_rules

DEFAULT_ALLOW = "projectcalico-default-allow"  # exists without being stored, as in Calico


@dataclass(frozen=True, slots=True)
class Inputs:
    """What configuration tells the calculation. `owns_routes(pool)`: its routes are felix's to write."""

    node: str
    workload_prefixes: tuple[str, ...] = ("cali",)
    owns_routes: Callable[[IPPool], bool] = lambda pool: pool.spec.vxlanMode not in ("", "Never")
    spoofing: bool = False  # workloads may ask to send from other addresses than their own
    floating_ips: bool = False  # workloads may ask for floating addresses


@dataclass(slots=True)
class State:
    """Everything the dataplane is told. Read it, do not change it."""

    workloads: dict[WorkloadId, Workload] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    sets: dict[str, Members] = field(default_factory=dict)  # id -> its members
    pools: dict[str, Pool] = field(default_factory=dict)  # CIDR -> pool
    nodes: dict[str, topology.NodeAddresses] = field(default_factory=dict)
    blackholes: frozenset[str] = frozenset()
    block_routes: dict[str, BlockRoute] = field(default_factory=dict)  # destination -> route
    service_cidrs: frozenset[str] = frozenset()
    problems: dict[str, str] = field(default_factory=dict)  # object -> why it is not enforced as written


@dataclass(slots=True)
class Touched:
    """What changed in State since the last flush: a hint where to look, never the only source of truth."""

    workloads: set[WorkloadId] = field(default_factory=set)
    profiles: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)
    topology: bool = False  # pools, nodes, blackholes, block routes
    services: bool = False

    def __bool__(self) -> bool:
        return bool(self.workloads or self.profiles or self.sets or self.topology or self.services)


class Calculation:
    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._index = MemberIndex()
        self.state = State(sets=self._index.sets)
        self._touched = Touched()
        self._locals = LocalWorkloads()
        self._profiles: dict[str, V3Profile] = {}  # all that are stored
        self._profile_users: Counter[str] = Counter()  # profile -> local endpoints that name it
        self._set_users: Counter[str] = Counter()  # set -> active owners of rules that name it
        self._owned_sets: dict[str, dict[str, Source]] = {}  # active profile -> the sets its rules name
        self._pools: dict[ResourceKey, IPPool] = {}
        self._affinities: dict[str, str] = {}  # own block -> state
        self._blocks: dict[str, Block] = {}  # CIDR -> block
        self._topology_dirty = True
        self._handlers: dict[str, Callable[[ResourceKey, Any], None]] = {  # kind -> takes a value or None
            "WorkloadEndpoint": self._workload,
            "HostEndpoint": self._host_endpoint,
            "NetworkSet": self._network_set,
            "GlobalNetworkSet": self._network_set,
            "Profile": self._profile,
            "IPPool": self._pool,
            "Node": self._node,
            "BGPConfiguration": self._bgp_configuration,
        }

    # --- in and out -----------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        """Take one change. What cannot be enforced is noted in State.problems and counts as absent."""
        key, value = update.key, update.value
        if isinstance(key, ResourceKey):
            if (handler := self._handlers.get(key.kind)) is not None:
                self.state.problems.pop(str(key), None)
                handler(key, value)
        elif isinstance(key, AffinityKey):
            if key.owner_type == "host" and key.host == self._inputs.node:
                self._note(self._affinities, canonical.cidr(key.cidr), None if value is None else value.state)
        elif isinstance(key, BlockKey):
            self._note(self._blocks, canonical.cidr(key.cidr), value)

    def flush(self) -> Touched:
        """What changed since the last time."""
        if self._topology_dirty:
            self._resolve_topology()
        touched, self._touched = self._touched, Touched()
        touched.sets, self._index.changed = self._index.changed, set()
        return touched

    def _refuse(self, key: ResourceKey, err: ValidationError) -> None:
        self.state.problems[str(key)] = str(err)

    # --- endpoints ------------------------------------------------------------------------------

    def _workload(self, key: ResourceKey, value: Any) -> None:
        item = workload = None
        try:
            node, ident = endpoints.workload_id(key)
        except ValidationError as err:  # never accepted, so there is nothing to take back
            self._refuse(key, err)
            return
        local = node == self._inputs.node
        if value is not None and value.spec.ipNetworks:  # without addresses it is not ready
            try:
                item = endpoints.workload_item(value)
                if local:
                    wanted = endpoints.workload(ident, value, self._inputs.workload_prefixes)
                    workload = self._permitted(wanted)
                    workload = self._permitted(workload)
            except ValidationError as err:
                self._refuse(key, err)
        self._index.update_item(key, item)
        if local:
            for active, before, after in self._locals.update(ident, workload):
                self._activate(active, before, after)

    def _permitted(self, workload: Workload) -> Workload:
        """An endpoint that may not do what it asks for is refused as a whole, as in Calico; floating
        addresses are merely left out."""
        if workload.spoofed_sources and not self._inputs.spoofing:
            reason = "needs WorkloadSourceSpoofing to be Any"
            raise canonical.refuse("allowSpoofedSourcePrefixes", workload.spoofed_sources, reason)
        wanted = self._inputs.floating_ips or workload.id.orchestrator == "openstack"
        return workload if wanted or not workload.floating_ips else replace(workload, floating_ips=())

    def _activate(self, ident: WorkloadId, before: Workload | None, after: Workload | None) -> None:
        """One local endpoint begins, changes or ceases to be enforced."""
        if after is None:
            del self.state.workloads[ident]
        else:
            self.state.workloads[ident] = after
        self._touched.workloads.add(ident)
        gained, lost = _names(after), _names(before)
        self._profile_users.update(gained)
        self._profile_users.subtract(lost)
        for name in sorted(gained | lost):
            if (self._profile_users[name] > 0) != (name in self.state.profiles):
                self._review_profile(name)

    def _host_endpoint(self, key: ResourceKey, value: Any) -> None:
        self._item(key, value, endpoints.host_item)

    def _network_set(self, key: ResourceKey, value: Any) -> None:
        self._item(key, value, endpoints.network_set_item)

    def _item(self, key: ResourceKey, value: Any, convert: Callable[[Any], Any]) -> None:
        item = None
        if value is not None:
            try:
                item = convert(value)
            except ValidationError as err:
                self._refuse(key, err)
        self._index.update_item(key, item)

    # --- profiles and their sets ----------------------------------------------------------------

    def _profile(self, key: ResourceKey, value: Any) -> None:
        if value is None:
            self._profiles.pop(key.name, None)
        else:
            self._profiles[key.name] = value
        self._index.update_profile_labels(key.name, {} if value is None else value.spec.labelsToApply)
        self._review_profile(key.name)

    def _review_profile(self, name: str) -> None:
        """Bring one profile's compiled form in line with who uses it and what is stored."""
        if self._profile_users[name] <= 0:
            del self._profile_users[name]
            self._drop_profile(name)
            return
        self.state.problems.pop(_where(name), None)
        profile, sources = self._compile(name)
        if self.state.profiles.get(name) != profile:
            self.state.profiles[name] = profile
            self._touched.profiles.add(name)
        self._use_sets(name, sources)

    def _drop_profile(self, name: str) -> None:
        self.state.problems.pop(_where(name), None)
        if self.state.profiles.pop(name, None) is not None:
            self._touched.profiles.add(name)
        self._use_sets(name, {})

    def _compile(self, name: str) -> tuple[Profile, dict[str, Source]]:
        stored = self._profiles.get(name)
        if stored is None and name == DEFAULT_ALLOW:
            return Profile(name, (ALLOW_ALL,), (ALLOW_ALL,)), {}
        if stored is None:
            self.state.problems[_where(name)] = "does not exist: what it is to allow is dropped"
            return _denying(name), {}
        try:
            inbound, outbound = compile_rules(stored.spec.ingress), compile_rules(stored.spec.egress)
        except ValidationError as err:
            self.state.problems[_where(name)] = f"denies everything, because it is invalid: {err}"
            return _denying(name), {}
        return Profile(name, inbound.rules, outbound.rules), {**inbound.sources, **outbound.sources}

    def _use_sets(self, owner: str, sources: dict[str, Source]) -> None:
        """New sets come before old ones go, so that one that stays in use is kept."""
        before = self._owned_sets.pop(owner, {})
        if sources:
            self._owned_sets[owner] = sources
        for ident, source in sources.items():
            if ident not in before:
                self._set_users[ident] += 1
                if self._set_users[ident] == 1:
                    self._index.activate(source)
        for ident in before:
            if ident not in sources:
                self._set_users[ident] -= 1
                if self._set_users[ident] == 0:
                    del self._set_users[ident]
                    self._index.deactivate(ident)

    # --- pools, nodes, blocks, services ---------------------------------------------------------

    def _note(self, mapping: dict[str, Any], key: str, value: Any) -> None:
        if value is None:
            mapping.pop(key, None)
        else:
            mapping[key] = value
        self._topology_dirty = True

    def _pool(self, key: ResourceKey, value: Any) -> None:
        pool = None
        if value is not None:
            try:
                pool = topology.pool(value)
            except ValidationError as err:
                self._refuse(key, err)
        if pool is None:
            self._pools.pop(key, None)
        else:
            self._pools[key] = value
        self._topology_dirty = True

    def _node(self, key: ResourceKey, value: Any) -> None:
        addresses = None
        if value is not None:
            try:
                addresses = topology.node_addresses(value)
            except ValidationError as err:
                self._refuse(key, err)
        if addresses != self.state.nodes.get(key.name):
            self._note(self.state.nodes, key.name, addresses)

    def _bgp_configuration(self, key: ResourceKey, value: Any) -> None:
        if key.name != "default":
            return
        found: set[str] = set()
        if value is not None:
            spec = value.spec
            blocks = (*spec.serviceClusterIPs, *spec.serviceExternalIPs, *spec.serviceLoadBalancerIPs)
            try:
                found = {canonical.cidr(block.cidr, "cidr") for block in blocks}
            except ValidationError as err:
                self._refuse(key, err)
        if found != self.state.service_cidrs:
            self.state.service_cidrs = frozenset(found)
            self._touched.services = True

    def _resolve_topology(self) -> None:
        self._topology_dirty = False
        self._touched.topology = True
        pools = [topology.pool(one) for one in self._pools.values()]
        self.state.pools = {one.cidr: one for one in sorted(pools, key=lambda one: one.nat_outgoing)}
        owned = {
            canonical.cidr(one.spec.cidr): (one.spec.vxlanMode, one.spec.ipipMode)
            for one in self._pools.values()
            if self._inputs.owns_routes(one)
        }
        untunnelled = {cidr: "CrossSubnet" in modes for cidr, modes in owned.items() if "Always" not in modes}
        self.state.blackholes = topology.blackholes(self._affinities, owned)
        self.state.block_routes = topology.block_routes(
            self._blocks, self.state.nodes, self._inputs.node, untunnelled
        )


def _names(workload: Workload | None) -> set[str]:
    return set() if workload is None else set(workload.profiles)


def _where(profile: str) -> str:
    return f"Profile({profile})"


def _denying(name: str) -> Profile:
    return Profile(name, (DENY_ALL,), (DENY_ALL,))
