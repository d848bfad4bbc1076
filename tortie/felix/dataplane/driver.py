"""Makes the kernel enforce the state: renders what changed and applies it, in an order that is safe.

The order of one apply() is the guarantee that others rely on:
1. Tunnel devices; then routes, neighbours and sysctls, beside IP sets created and filled. No IP set is
   destroyed yet.
2. The tables. Within one, the kernel takes chains and the dispatch to them at once: an endpoint's chains
   exist before packets are sent to them, and are left before they go. A packet of an endpoint whose chains
   are not there yet is dropped at the end of the dispatch tree. A policy with a wrong set drops everything.
3. What WireGuard is to encrypt is led to it: its packets meet rules that know of it.
4. IP sets that no rule names any more are destroyed, if the tables were written without error.
5. If asked for, connections that the new rules deny are cut; only then is an endpoint called up.

Nothing is written before the datastore and the interfaces are known (start()), but for one thing: where no
rule of ours stands, guard() puts up chains that deny every workload, because nothing else does.

One task owns this object. What events tell at any time is noted, and looked at when the next apply() begins.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from tortie.core import tasks
from tortie.core.errors import KernelError
from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import HostEndpoint, WorkloadId
from tortie.felix.dataplane import sysctls
from tortie.felix.dataplane.cut import Cutter
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.endpoints import EndpointWiring
from tortie.felix.dataplane.family import Family
from tortie.felix.dataplane.hosts import assign as hosts_on_interfaces
from tortie.felix.dataplane.interfaces import Interface, Interfaces
from tortie.felix.dataplane.kernel import Kernel
from tortie.felix.dataplane.neighbours import Neighbours
from tortie.felix.dataplane.nft import ArpWriter
from tortie.felix.dataplane.options import Options
from tortie.felix.dataplane.overlay import Overlay
from tortie.felix.dataplane.routes import Routes, RouteTable
from tortie.felix.dataplane.shaping import Shapes
from tortie.felix.dataplane.sysctls import Sysctls
from tortie.felix.dataplane.wireguard import Wireguard
from tortie.felix.rules import evaluate
from tortie.felix.rules.dispatch import ANY_INTERFACE
from tortie.linux import routes
from tortie.linux.ipsets import IPSet
from tortie.linux.routes import TABLE_MAIN, Route

ON_NO_INTERFACE = "is on no interface"  # of a host endpoint: not a failure of ours but of what was asked


class Driver:
    def __init__(
        self,
        options: Options,
        kernel: Kernel,
        interfaces: Interfaces,
        *,
        clock: Callable[[], float],
        rand: Callable[[], float],
    ) -> None:
        self._options, self._kernel, self._interfaces = options, kernel, interfaces
        self._clock, self._rand = clock, rand
        self._state = State()
        self._hosts: dict[str, HostEndpoint] = {}  # interface -> the host endpoint on it
        self._started = False
        self._news: list[Callable[[], None]] = []  # what events told since the last apply() began
        self._keep_sets = True  # no set is destroyed while a rule may name it
        self._kept_sets = False  # one would have been
        self._families = {
            version: Family(
                version, options, kernel.backends[version], spare_set=self._spare_set, clock=clock, rand=rand
            )
            for version in sorted(options.wiring.versions)
        }
        interval = options.route_interval
        self._routes: Routes = Duty(
            "routes", kernel.routes, interval=interval, clock=clock, rand=rand, spare=kernel.routes.spare
        )
        self._neighbours: Neighbours = Duty(
            "ARP entries", kernel.neighbours, interval=interval, clock=clock, rand=rand
        )
        self._sysctls: Sysctls = Duty("sysctls", kernel.sysctls, interval=interval, clock=clock, rand=rand)
        self._shapes: Shapes = Duty("bandwidth", kernel.shaping, interval=interval, clock=clock, rand=rand)
        kernel.sysctls.wanted, kernel.routes.wanted = self._sysctls.desired, self._routes.desired
        self._route_table = RouteTable(self._routes, kernel.routes.claim)
        self._overlay = Overlay(
            replace(options.overlay, node=options.node, versions=options.wiring.versions),
            kernel,
            interfaces,
            self._route_table,
            clock=clock,
            rand=rand,
        )
        self.wireguard = Wireguard(options.wireguard, kernel, interfaces, clock=clock, rand=rand)
        self._arp = self._arp_duty()
        self._arp_writer = None if self._arp is None else ArpWriter(self._arp)
        self._cutter = Cutter(kernel.netlink, interfaces.name_of) if options.cut_denied else None
        self._uncut = True  # connections have not been held against what is written now
        self._wiring = EndpointWiring(
            options.wiring,
            self._route_table,
            self._neighbours,
            self._sysctls,
            self._shapes,
            interfaces.get,
            clock,
        )

    def _arp_duty(self) -> Duty[Any, Any] | None:
        if self._kernel.arp is None:
            return None
        interval = self._options.table_interval
        return Duty("ARP rules", self._kernel.arp, interval=interval, clock=self._clock, rand=self._rand)

    def _spare_set(self, _name: str, _set: IPSet) -> float:
        self._kept_sets |= self._keep_sets
        return inf if self._keep_sets else 0.0

    # --- what is to be --------------------------------------------------------------------------

    async def guard(self) -> None:
        """Where no rule of ours stands, deny all workloads until the state is known. Raises KernelError."""
        for version, family in self._families.items():
            backend = self._kernel.backends[version]
            if await backend.stands():
                continue
            family.chains.guard()
            # Only written: what else is left of an earlier run is looked at when the state is known.
            for key, reason in (await backend.tables.apply(dict(family.tables.desired), ())).items():
                raise KernelError("write", f"chain {key[1]}", text=reason)

    def start(self, state: State) -> None:
        """Take the whole state for the first time: datastore and interfaces are known."""
        self._state, self._started = state, True
        for version, family in self._families.items():
            self._kernel.backends[version].bind(family.tables.desired)
            family.members.start(state)
            family.chains.start(state)
        if self._arp_writer is not None:
            self._arp_writer.start(state)
        values = sysctls.host(
            6 in self._families, self._options.forwarding, strict_tcp=self._options.cut_denied
        )
        values.update(self.wireguard.sysctls())
        for name, value in values.items():
            self._sysctls.put(name, value)
        if targets := [one for one in state.workloads.values() if one.migration == "target"]:
            protocol = self._options.wiring.protocol
            standing = routes.dump(self._kernel.netlink, table=TABLE_MAIN, protocol=protocol)
            self._wiring.adopt(targets, standing)
        for ident, workload in state.workloads.items():
            self._wiring.update(ident, workload)
        self._overlay.update(state)
        self.wireguard.update(state)
        self._look_at_addresses()

    def update(self, touched: Touched) -> None:
        """Look at what changed in the state."""
        for family in self._families.values():
            family.members.update(self._state, touched)
            family.chains.update(self._state, touched)
        if self._arp_writer is not None:
            self._arp_writer.update(self._state, touched.workloads)
        # What ends comes first: another endpoint may want its interface.
        for ident in sorted(touched.workloads, key=lambda one: one in self._state.workloads):
            self._wiring.update(ident, self._state.workloads.get(ident))
        if touched.topology:
            self._overlay.update(self._state)
            self.wireguard.update(self._state)
        if touched.hosts:
            self._assign_hosts()

    def interfaces_changed(self, names: Iterable[str]) -> None:
        """Something is new about these interfaces, or about some interface's addresses."""
        if not self._started:
            return
        flapped = self._interfaces.take_flapped()
        names = {*names, *flapped}
        concerned = self._overlay.interfaces_changed(names)
        if concerned or any(self._wiring.on(name) for name in flapped):
            self._routes.forget()
            self._neighbours.forget()
        for name in names:
            if (ident := self._wiring.on(name)) is not None:
                self._wire(ident)
        self._overlay.look_again()
        self.wireguard.interfaces_changed(names)
        self._look_at_addresses()

    def _look_at_addresses(self) -> None:
        own = self._interfaces.addresses(besides=self._options.settings.workload_prefixes)
        for family in self._families.values():
            family.members.own_addresses(own)
        self._assign_hosts()

    def _assign_hosts(self) -> None:
        """Host endpoints go by the names and addresses of interfaces."""
        prefixes = self._options.settings.workload_prefixes
        hosts = self._state.hosts.values()
        self._hosts = hosts_on_interfaces(hosts, self._interfaces.held() if hosts else {}, prefixes)
        for family in self._families.values():
            family.chains.hosts(self._hosts)

    # --- what events tell -------------------------------------------------------------------------

    def _note(self, take: Callable[[], None]) -> None:
        """For the next apply(). The first reads everything, and may be long in coming."""
        if self._started:
            self._news.append(take)

    def interface_gone(self, ifindex: int) -> None:
        """An interface is deleted, and its routes with it."""
        self._note(lambda: self._lose_routes(ifindex))

    def _lose_routes(self, ifindex: int) -> None:
        for key in self._kernel.routes.interface_lost(ifindex):
            self._routes.observe(key, None)

    def route_seen(self, route: Route, exists: bool) -> bool:
        """A route exists now, or no more; whether it has to do with us."""
        ours = self._kernel.ownership.owns(route) or route.key in self._routes.desired
        if route.table != TABLE_MAIN or not ours or not self._options.wiring.routes:
            return False
        self._note(lambda: self._note_route(route, exists))
        return True

    def _note_route(self, route: Route, exists: bool) -> None:
        self._kernel.routes.noticed(route.key, route if exists else None)
        self._routes.observe(route.key, route if exists else None)

    def migration_targets(self) -> dict[WorkloadId, Interface]:
        """Workloads whose guest is to be heard before they get routes, and the interfaces to listen on."""
        return self._wiring.targets()

    def announced(self, ident: WorkloadId) -> None:
        """The guest of a live migration has announced itself: it runs here now."""
        if self._wiring.announced(ident):
            self._note(lambda: self._wire(ident))

    def _wire(self, ident: WorkloadId) -> None:
        self._wiring.update(ident, self._state.workloads.get(ident))

    def forget(self) -> None:
        """Events were lost: read everything anew."""
        self._note(self._forget)

    def _forget(self) -> None:
        for duty in self._duties():
            duty.forget()

    def _take_news(self) -> None:
        news, self._news = self._news, []
        for take in news:
            take()
        for ident in self._wiring.settle():
            self._wire(ident)

    # --- making it so ---------------------------------------------------------------------------

    def next_due(self) -> float:
        """When apply() has something to do, by the clock; in the past if it has already."""
        if not self._started:
            return inf
        due = min(duty.next_due() for duty in self._duties())
        return -inf if self._news else min(due, self._wiring.next_due())

    def look_ahead_due(self) -> float:
        """When look_ahead() has something to do, by the clock."""
        return min(duty.look_ahead_due() for duty in self._read_ahead()) if self._started else inf

    async def look_ahead(self) -> None:
        """Read what apply() would soon have to read, at any time, also while that is under way."""
        for duty in self._read_ahead():
            if self._clock() >= duty.look_ahead_due():
                await duty.look_ahead()

    def _read_ahead(self) -> Iterator[Duty[Any, Any]]:
        """Rules and sets: there can be many."""
        for family in self._families.values():
            yield family.sets
            yield family.tables

    async def apply(self) -> bool:
        """Do what is due, in the order above. False if something failed and will be tried again."""
        self._take_news()
        await self._overlay.sync_devices()
        self._keep_sets = True
        sets = [family.sets for family in self._families.values()]
        self._uncut |= await _all([*sets, *self._on_interfaces()])
        for version, family in self._families.items():
            family.chains.distrust(family.members.wrong())
            if self._kernel.backends[version].lost_all():
                family.tables.forget()  # what took the sets away took the rules as well
        tables = [family.tables for family in self._families.values()]
        self._uncut |= await _all([*tables, *([self._arp] if self._arp else [])])
        await self.wireguard.sync()
        await tasks.together(*(family.clear() for family in self._families.values()))
        if self._kept_sets and all(family.tables.outcome.ok for family in self._families.values()):
            self._keep_sets = self._kept_sets = False
            for duty in sets:
                duty.touch()
            await _all(sets)
        if self._cutter is not None and self._uncut:
            await self._cut(self._cutter)
        # Pods that need no tunnel, or no limit, are to come up where the kernel has none.
        spared = (self._overlay.devices, self._shapes, *self.wireguard.duties)
        return all(duty.outcome.ok for duty in self._duties() if duty not in spared)

    async def _cut(self, cutter: Cutter) -> None:
        self._uncut = False
        for version, family in self._families.items():
            sets = evaluate.Sets(family.members)
            await cutter.cut(version, family.chains.ruleset(), sets, self._state.workloads.values())

    def _on_interfaces(self) -> list[Duty[Any, Any]]:
        if not self._options.wiring.routes:
            return [self._sysctls, self._shapes]
        return [self._sysctls, self._shapes, self._routes, self._neighbours, *self._overlay.entries]

    def _duties(self) -> Iterator[Duty[Any, Any]]:
        yield self._overlay.devices
        yield from self.wireguard.duties
        yield from self._on_interfaces()
        if self._arp is not None:
            yield self._arp
        for family in self._families.values():
            yield family.sets
            yield family.tables
            yield from family.leftovers

    # --- how it stands --------------------------------------------------------------------------

    def tunnel_trouble(self) -> str:
        """Why a tunnel device is not as it should be, '' if all are: pods elsewhere are out of reach."""
        return next(iter(self._overlay.devices.outcome.failed.values()), "")

    def endpoint_troubles(self) -> dict[WorkloadId, str]:
        """Every local endpoint and why it is not up; '' if it is."""
        return {ident: self._trouble(ident) for ident in self._wiring.known()}

    def _trouble(self, ident: WorkloadId) -> str:
        if reason := self._wiring.trouble(ident, lambda one: self._routes.reason(one.route.key)):
            return reason
        interface = self._wiring.interface(ident)
        reason = _first(family.chains.trouble(interface) for family in self._families.values())
        return reason or self._still_denied()

    def _still_denied(self) -> str:
        """Rules of an earlier dataplane know nothing of new endpoints, and stop their packets."""
        duties = (duty for family in self._families.values() for duty in family.leftovers)
        return _first("" if duty.outcome.ok else f"{duty.name} still stand" for duty in duties)

    def host_troubles(self) -> dict[str, str]:
        """Every host endpoint of this node and why it is not up; '' if it is."""
        found = dict.fromkeys(self._state.hosts, ON_NO_INTERFACE)
        for interface, endpoint in self._hosts.items():
            if interface == ANY_INTERFACE or self._interfaces.get(interface) is not None:
                reason = _first(family.chains.host_trouble(interface) for family in self._families.values())
                known = found.get(endpoint.name, ON_NO_INTERFACE)
                found[endpoint.name] = reason if known == ON_NO_INTERFACE else known or reason
        return found

    def rulesets(self) -> dict[int, evaluate.Ruleset]:
        """All rules that are to stand, by IP version, for evaluating packets against them."""
        return {version: family.chains.ruleset() for version, family in self._families.items()}

    def written(self) -> dict[int, tuple[Mapping[Any, Any], Mapping[Any, Any]]]:
        """IP version -> chains, and sets, as they are to stand."""
        return {v: (one.tables.desired, one.sets.desired) for v, one in self._families.items()}

    def failures(self) -> dict[str, str]:
        """What is not as it should be: kind of object and object -> reason."""
        return {
            f"{duty.name} {key}": reason
            for duty in self._duties()
            for key, reason in duty.outcome.failed.items()
        }


async def _all(duties: Iterable[Duty[Any, Any]]) -> bool:
    """Whether anything was written."""
    outcomes = await tasks.together(*(duty.sync() for duty in duties))
    return any(outcome.updated or outcome.deleted for outcome in outcomes)


def _first(reasons: Iterable[str]) -> str:
    return next(filter(None, reasons), "")
