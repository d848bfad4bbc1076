"""From the datastore's changes to what this node must enforce. Pure and incremental.

Feed it every Update the Syncer gives, in order; take the result with flush(). However updates are ordered,
repeated or split, the same content of the datastore gives the same State: flush() only says where to look.

What is enforced is what local endpoints need: a profile is compiled while a local endpoint names it, a
policy while it applies to one, and an IP set is kept while an active rule names it. What is missing or
cannot be understood denies.
(Reference: policy sheet 6; felix/calc.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tortie.core.errors import ValidationError
from tortie.datastore.keys import AffinityKey, BlockKey, ResourceKey
from tortie.datastore.nativekeys import SliceKey
from tortie.datastore.syncer import Update
from tortie.datastore.types.ippool import IPPool
from tortie.felix.calc import canonical, endpoints, policies, topology
from tortie.felix.calc.active import ActiveRules
from tortie.felix.calc.locals import LocalWorkloads
from tortie.felix.calc.members import Item, MemberIndex
from tortie.felix.calc.migrations import Migrations
from tortie.felix.calc.model import (
    BlockRoute,
    HostEndpoint,
    Members,
    Policy,
    PolicyId,
    Pool,
    Profile,
    Workload,
    WorkloadId,
)
from tortie.felix.calc.policies import V3Policy
from tortie.felix.calc.services import ServiceIndex
from tortie.felix.calc.tiers import PolicyIndex


@dataclass(frozen=True, slots=True)
class Inputs:
    """What configuration tells the calculation. `owns_routes(pool)`: its routes are felix's to write."""

    node: str
    workload_prefixes: tuple[str, ...] = ("cali",)
    owns_routes: Callable[[IPPool], bool] = lambda pool: pool.spec.vxlanMode not in ("", "Never")
    spoofing: bool = False  # workloads may ask to send from other addresses than their own
    floating_ips: bool = False  # workloads may ask for floating addresses
    wireguard: bool = False  # who has which block must be known, whoever writes the routes
    workload_ips: bool = False  # it is what endpoints say, not blocks


@dataclass(slots=True)
class State:
    """Everything the dataplane is told. Read it, do not change it."""

    workloads: dict[WorkloadId, Workload] = field(default_factory=dict)
    hosts: dict[str, HostEndpoint] = field(default_factory=dict)  # name -> host endpoint of this node
    profiles: dict[str, Profile] = field(default_factory=dict)
    policies: dict[PolicyId, Policy] = field(default_factory=dict)
    sets: dict[str, Members] = field(default_factory=dict)  # id -> its members
    pools: dict[str, Pool] = field(default_factory=dict)  # CIDR -> pool
    nodes: dict[str, topology.NodeAddresses] = field(default_factory=dict)
    blackholes: frozenset[str] = frozenset()
    block_routes: dict[str, BlockRoute] = field(default_factory=dict)  # destination -> route
    owners: dict[str, str] = field(default_factory=dict)  # block or address -> its node, for WireGuard
    service_cidrs: frozenset[str] = frozenset()
    problems: dict[str, str] = field(default_factory=dict)  # object -> why it is not enforced as written


@dataclass(slots=True)
class Touched:
    """What changed in State since the last flush: a hint where to look, never the only source of truth."""

    workloads: set[WorkloadId] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    profiles: set[str] = field(default_factory=set)
    policies: set[PolicyId] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)
    topology: bool = False  # pools, nodes, blackholes, block routes, owners
    services: bool = False

    def __bool__(self) -> bool:
        objects = (self.workloads, self.hosts, self.profiles, self.policies, self.sets)
        return any(objects) or self.topology or self.services

    @classmethod
    def everything(cls, state: State) -> "Touched":
        return cls(
            set(state.workloads),
            set(state.hosts),
            set(state.profiles),
            set(state.policies),
            set(state.sets),
            topology=True,
            services=True,
        )


class Calculation:
    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._members = MemberIndex()
        self._services = ServiceIndex(self._members.update_service)
        self._policies = PolicyIndex()
        self._migrations = Migrations(inputs.node)
        problems: dict[str, str] = {}
        self._rules = ActiveRules(self._members, problems)
        self.state = State(
            profiles=self._rules.profiles,
            policies=self._rules.policies,
            sets=self._members.sets,
            problems=problems,
        )
        self._touched = Touched()
        self._locals = LocalWorkloads()
        self._items: dict[WorkloadId, Item] = {}  # local workloads as selectors see them
        # Enforced endpoints without their tiers, which follow with the next flush.
        self._enforced: dict[WorkloadId | str, Workload | HostEndpoint] = {}  # id or name -> endpoint
        self._stored: dict[PolicyId, V3Policy] = {}  # policies with a scope that is understood
        self._pools: dict[ResourceKey, IPPool] = {}
        self._affinities: dict[str, str] = {}  # own block -> state
        self._holdings: dict[str, dict[str, str]] = {}  # block or endpoint -> network -> who has it
        self._topology_dirty = True
        self._handlers: dict[str, Callable[[ResourceKey, Any], None]] = {  # kind -> takes a value or None
            "WorkloadEndpoint": self._workload,
            "HostEndpoint": self._host_endpoint,
            "NetworkSet": self._network_set,
            "GlobalNetworkSet": self._network_set,
            "Profile": self._profile,
            "Tier": self._tier,
            "IPPool": self._pool,
            "Node": self._node,
            "LiveMigration": self._migration,
            "BGPConfiguration": self._bgp_configuration,
            **dict.fromkeys(policies.KINDS, self._policy),
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
                self._note_block(self._affinities, key, None if value is None else value.state)
        elif isinstance(key, BlockKey):
            self._note_block(self._holdings, key, value, topology.owners)
        elif isinstance(key, SliceKey):
            self._services.update(key, value)

    def flush(self) -> Touched:
        """Bring the state up to date; what changed since the last time."""
        self._resolve_policies()
        self._resolve_endpoints()
        if self._topology_dirty:
            self._resolve_topology()
        touched, self._touched = self._touched, Touched()
        touched.sets, self._members.changed = self._members.changed, set()
        touched.profiles, self._rules.changed_profiles = self._rules.changed_profiles, set()
        touched.policies, self._rules.changed_policies = self._rules.changed_policies, set()
        return touched

    def _refuse(self, key: ResourceKey | AffinityKey | BlockKey, err: ValidationError) -> None:
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
                item = endpoints.workload_item(key.namespace, value)
                if local:
                    workload = endpoints.workload(ident, value, self._inputs.workload_prefixes)
                    spoofing, floating = self._inputs.spoofing, self._inputs.floating_ips
                    workload = endpoints.permitted(workload, spoofing=spoofing, floating_ips=floating)
            except ValidationError as err:
                workload = None
                self._refuse(key, err)
        self._members.update_item(key, item)
        if self._inputs.workload_ips:
            held = None if item is None else dict.fromkeys(item.nets, node)
            self._note(self._holdings, str(key), held)
        if local:
            _assign(self._items, ident, item)
            for changed, _before, after in self._locals.update(ident, workload):
                self._enforce(changed, after)
            if ident in self._enforced:  # its labels may be others though the endpoint is the same
                self._place(ident)

    def _enforce(self, key: WorkloadId | str, endpoint: Workload | HostEndpoint | None) -> None:
        """One endpoint of this node begins, changes or ceases (None) to be enforced."""
        before = self._enforced.get(key)
        _assign(self._enforced, key, endpoint)
        self._policies.dirty.add(key)
        if endpoint is None:
            self._policies.delete_endpoint(key)
            self._migrations.delete_workload(key)
        elif isinstance(key, WorkloadId):
            self._place(key)
        self._rules.use_profiles(_profiles_of(endpoint), _profiles_of(before))

    def _place(self, ident: WorkloadId) -> None:
        """Let selectors of policies and migrations see a workload."""
        item = self._items[ident]
        labels = dict(item.labels)
        self._policies.update_endpoint(ident, labels, item.profiles)
        self._migrations.update_workload(ident, labels, item.profiles)

    def _migration(self, key: ResourceKey, value: Any) -> None:
        try:
            self._migrations.update(key, value)
        except ValidationError as err:
            self._refuse(key, err)

    def _host_endpoint(self, key: ResourceKey, value: Any) -> None:
        self._item(key, value, endpoints.host_item)
        endpoint = None
        if value is not None and value.spec.node == self._inputs.node:
            try:
                endpoint = endpoints.host_endpoint(value)
            except ValidationError as err:
                self._refuse(key, err)
        if endpoint is not None:
            self._policies.update_endpoint(key.name, value.labels, endpoint.profiles)
        if endpoint != self._enforced.get(key.name):
            self._enforce(key.name, endpoint)

    def _network_set(self, key: ResourceKey, value: Any) -> None:
        self._item(key, value, endpoints.network_set_item)

    def _item(
        self, key: ResourceKey, value: Any, convert: Callable[[Any], tuple[Item, endpoints.Faults]]
    ) -> None:
        item = None
        if value is not None:
            item, wrong = convert(value)
            if wrong:
                self._refuse(key, ValidationError(list(wrong)))
        self._members.update_item(key, item)

    def _resolve_endpoints(self) -> None:
        """Give endpoints the tiers that apply to them now, and their parts in migrations."""
        dirty, self._policies.dirty = self._policies.dirty, set()
        dirty.update(self._migrations.changed)
        self._migrations.changed = set()
        for key in dirty:
            endpoint = self._enforced.get(key)  # type: ignore[call-overload]
            if isinstance(key, WorkloadId):
                part: Any = {"migration": self._migrations.role_of(key)}
                now = endpoint and replace(endpoint, tiers=self._policies.tiers_of(key), **part)
                if _assign(self.state.workloads, key, now):
                    self._touched.workloads.add(key)
            elif isinstance(key, str):
                host = None if endpoint is None else self._with_all_tiers(endpoint, key)
                if _assign(self.state.hosts, key, host):
                    self._touched.hosts.add(key)

    def _with_all_tiers(self, endpoint: HostEndpoint, name: str) -> HostEndpoint:
        return replace(
            endpoint,
            tiers=self._policies.tiers_of(name),
            forward_tiers=self._policies.tiers_of(name, "forward"),
            untracked_tiers=self._policies.tiers_of(name, "untracked"),
            pre_dnat_tiers=self._policies.tiers_of(name, "pre-dnat"),
        )

    # --- profiles, policies, tiers --------------------------------------------------------------

    def _profile(self, key: ResourceKey, value: Any) -> None:
        labels = {} if value is None else value.spec.labelsToApply
        self._members.update_profile_labels(key.name, labels)
        self._policies.update_profile_labels(key.name, labels)
        self._migrations.update_profile_labels(key.name, labels)
        self._rules.store_profile(key.name, value)

    def _policy(self, key: ResourceKey, value: Any) -> None:
        ident, scope = policies.policy_id(key), None
        if value is not None:
            try:
                scope = policies.scope(ident, value)
            except ValidationError as err:
                self._refuse(key, err)
        _assign(self._stored, ident, None if scope is None else value)
        self._policies.update_scope(ident, scope)
        self._policies.reviewed.add(ident)
        self._rules.doubt_policy(ident)

    def _tier(self, key: ResourceKey, value: Any) -> None:
        self._policies.update_tier(key.name, None if value is None else policies.tier_terms(value))

    def _resolve_policies(self) -> None:
        """Compile the policies that came to apply to somebody here, let go of those that no longer do."""
        reviewed, self._policies.reviewed = self._policies.reviewed, set()
        for ident in sorted(reviewed):
            scope = self._policies.scope(ident)
            if scope is not None and self._policies.applies(ident):
                self._rules.use_policy(scope, self._stored[ident])
            else:
                self._rules.drop_policy(ident)

    # --- pools, nodes, blocks, services ---------------------------------------------------------

    def _note(self, mapping: dict[str, Any], key: str, value: Any) -> None:
        if _assign(mapping, key, value):
            self._topology_dirty = True

    def _note_block(
        self,
        mapping: dict[str, Any],
        key: AffinityKey | BlockKey,
        value: Any,
        convert: Callable[[Any, str], Any] = lambda value, _cidr: value,
    ) -> None:
        try:
            cidr = canonical.cidr(key.cidr)
            self._note(mapping, cidr, None if value is None else convert(value, cidr))
        except ValidationError as err:
            self._refuse(key, err)

    def _pool(self, key: ResourceKey, value: Any) -> None:
        pool = None
        if value is not None:
            try:
                pool = topology.pool(value)
            except ValidationError as err:
                self._refuse(key, err)
        _assign(self._pools, key, None if pool is None else value)
        self._topology_dirty = True

    def _node(self, key: ResourceKey, value: Any) -> None:
        addresses = None
        if value is not None:
            try:
                addresses = topology.node_addresses(value)
            except ValidationError as err:
                self._refuse(key, err)
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
            canonical.cidr(one.spec.cidr): topology.carriage(one)
            for one in self._pools.values()
            if self._inputs.owns_routes(one)
        }
        if not self._inputs.workload_ips:  # blocks do not count then
            self.state.blackholes = topology.blackholes(self._affinities, owned)
        owners = topology.merged(self._holdings.values())
        self.state.block_routes = topology.block_routes(owners, self.state.nodes, self._inputs.node, owned)
        if self._inputs.wireguard:
            self.state.owners = owners


def _assign(mapping: dict[Any, Any], key: Any, value: Any) -> bool:
    """Set an entry, or delete it (None); whether that changed anything."""
    if mapping.get(key) == value:
        return False
    if value is None:
        del mapping[key]
    else:
        mapping[key] = value
    return True


def _profiles_of(endpoint: Workload | HostEndpoint | None) -> set[str]:
    return set() if endpoint is None else set(endpoint.profiles)
