"""The state as chains of one IP version, re-rendered where it changed.

What stands where is decided by felix.rules; this only knows which chains depend on which part of the
state, and hands the text of visible chains to the tables' duty. Nothing here touches the kernel.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import HostEndpoint, Policy, PolicyId, Tier, Workload, WorkloadId
from tortie.felix.dataplane.chains import ChainGraph, Key
from tortie.felix.dataplane.duty import Duty
from tortie.felix.rules import dispatch, endpoints, ir, names, nat, profiles, static
from tortie.felix.rules.evaluate import Ruleset
from tortie.felix.rules.iptables import Features, render_chain, render_hook
from tortie.felix.rules.settings import Settings
from tortie.linux.iptables import Content

Tables = Duty[Key, Content]

_TABLES_OF_STAGE = {  # a policy's stage -> the tables in which endpoints lead to its chains
    "normal": (ir.FILTER, ir.MANGLE),  # mangle: a host's own packets, once translated
    "untracked": (ir.RAW,),
    "pre-dnat": (ir.MANGLE,),
}
_HOST_TABLES = (ir.FILTER, ir.MANGLE, ir.RAW)
# table -> chains that static ones lead to, and that are empty on most nodes. Those of the nat table meet a
# connection's first packet only.
_RARE = {
    ir.RAW: (names.RPF_SKIP, names.FROM_HOST_DISPATCH, names.TO_HOST_DISPATCH),
    ir.MANGLE: (names.EGRESS_DSCP, names.FROM_HOST_DISPATCH, names.TO_HOST_DISPATCH),
    ir.FILTER: (
        names.FROM_HOST_DISPATCH,
        names.TO_HOST_DISPATCH,
        names.FROM_FORWARD_DISPATCH,
        names.TO_FORWARD_DISPATCH,
        names.WORKLOAD_RATE_DISPATCH,
        names.CIDR_BLOCK,
    ),
    ir.NAT: (),
}


class TableWriter:
    """One IP version's tables."""

    _holds_ready = True  # policies that ask for it stand before an endpoint needs them

    def __init__(self, version: int, settings: Settings, features: Features, duty: Duty[Key, Any]) -> None:
        self._version, self._settings, self._features = version, settings, features
        self._duty = duty
        self._graph = ChainGraph(self._checked)
        self._wrong: dict[str, str] = {}  # IP set that has not the members it should -> why
        self._interfaces: dict[WorkloadId, str] = {}  # endpoint -> the interface its chains are named for
        self._hosts: dict[str, HostEndpoint] = {}  # interface -> the host endpoint on it
        self._policies: dict[PolicyId, Policy] = {}  # as last rendered
        self._groups: dict[WorkloadId | str, set[Key]] = {}  # endpoint -> group chains it leads to
        self._wishing: dict[WorkloadId, Workload] = {}  # endpoints with rare wishes
        self._limited: set[str] = set()  # interfaces of those that get but so many packets
        self._group_users: Counter[Key] = Counter()  # group chain -> endpoints that lead to it

    def _checked(self, key: Key, content: ir.Chain | ir.Hook | None) -> None:
        """A policy that would be misled by an IP set lets nothing pass until the set is as it should be."""
        if isinstance(content, ir.Chain) and self._misled(content):
            content = ir.Chain(content.name, _MISLED)
        self._shown(key, content)

    def _misled(self, chain: ir.Chain) -> str:
        """Why, '' if it is not."""
        if not self._wrong or not profiles.expendable(chain.name):
            return ""
        wrong = (f"IP set {one}: {self._wrong[one]}" for one in chain.sets if one in self._wrong)
        return next(wrong, "")

    def distrust(self, wrong: Mapping[str, str]) -> None:
        """These IP sets have not the members they should, and all others do."""
        changed, self._wrong = wrong.keys() ^ self._wrong.keys(), dict(wrong)
        for key, chain in self._graph.ruleset().items() if changed else ():
            if isinstance(chain, ir.Chain) and not changed.isdisjoint(chain.sets):
                self._checked(key, chain)

    def _shown(self, key: Key, content: ir.Chain | ir.Hook | None) -> None:
        if content is None:
            self._duty.drop(key)
        elif isinstance(content, ir.Hook):
            self._duty.put(key, render_hook(content, key[1], self._version, self._features))
        else:
            self._duty.put(key, render_chain(content, self._version, self._features))

    def _reason(self, key: Key) -> str:
        return self._duty.reason(key)

    def _dispatch_chains(self, interfaces: list[str]) -> list[ir.Chain]:
        return dispatch.workload_dispatch(interfaces, self._settings)

    # --- what is always there -------------------------------------------------------------------

    def guard(self) -> None:
        """Only what denies workloads: the filter table with no endpoint known."""
        self._offer_static(ir.FILTER)
        self._graph.offer(ir.FILTER, [static.cidr_block_chain((), self._version, self._settings)])
        self._graph.offer(ir.FILTER, dispatch.host_dispatch(ir.FILTER, (), (), self._settings))
        self._dispatch(())

    def start(self, state: State) -> None:
        """Everything, from the whole state."""
        for table in ir.TABLES:
            self._offer_static(table)
        self._host_dispatch()
        self.update(state, Touched.everything(state))
        self._dispatch(self._interfaces.values())
        self._rare_wishes()

    def _offer_static(self, table: str) -> None:
        """Again whenever one of the rare chains may have become empty, or may be so no more."""
        offered = ((name, self._graph.offered(table, name)) for name in _RARE[table])
        idle = {name for name, chain in offered if chain is None or not chain.rules}
        chains = static.chains(self._version, self._settings, idle)[table]
        self._graph.offer(table, chains)
        empty = {chain.name for chain in chains if not chain.rules}
        for key, hook in static.hooks(self._settings).items():
            if key[0] == table:
                self._graph.hook(key, hook, idle=empty.issuperset(hook.targets))

    # --- what changes ---------------------------------------------------------------------------

    def update(self, state: State, touched: Touched) -> None:
        """Render anew what depends on the touched parts of the state."""
        for name in touched.profiles:
            self._profile(state, name)
        for ident in touched.policies:
            self._policy(ident, state.policies.get(ident))
        if touched.workloads:
            self._workloads(state, touched.workloads)
        if touched.topology:
            active = any(
                pool.nat_outgoing and (":" in pool.cidr) == (self._version == 6)
                for pool in state.pools.values()
            )
            self._graph.offer(ir.NAT, [nat.outgoing_chain(self._version, active, self._settings)])
        if touched.services:
            chain = static.cidr_block_chain(state.service_cidrs, self._version, self._settings)
            self._graph.offer(ir.FILTER, [chain])
            self._offer_static(ir.FILTER)

    def _profile(self, state: State, name: str) -> None:
        """In mangle as well, for a host's own packets, once translated."""
        profile = state.profiles.get(name)
        tables = (ir.FILTER, ir.MANGLE)
        if profile is None:
            gone = (names.chain(names.PROFILE_IN, name), names.chain(names.PROFILE_OUT, name))
            for table in tables:
                self._graph.withdraw(table, gone)
        else:
            self._offer_in(
                tables, lambda table: profiles.profile_chains(profile, self._version, table, self._settings)
            )

    def _policy(self, ident: PolicyId, policy: Policy | None) -> None:
        before = self._policies.pop(ident, None)
        chains = (names.chain(names.POLICY_IN, ident.text), names.chain(names.POLICY_OUT, ident.text))
        if before is not None and (policy is None or policy.stage != before.stage):
            for table in _TABLES_OF_STAGE[before.stage]:
                self._graph.withdraw(table, chains)
        if policy is not None:
            self._policies[ident] = policy
            self._offer_in(
                _TABLES_OF_STAGE[policy.stage],
                lambda table: profiles.policy_chains(policy, self._version, table, self._settings),
            )
        held, hold = self._is_ready(before), self._is_ready(policy)
        if hold and not held:
            self._graph.hold(ir.FILTER, chains)
        elif held and not hold:
            self._graph.release(ir.FILTER, chains)

    def _is_ready(self, policy: Policy | None) -> bool:
        """Whether its chains stand in the filter table used or not."""
        if policy is None or policy.stage != "normal":
            return False
        return policy.everywhere and self._holds_ready

    def _offer_in(self, tables: Iterable[str], render: Callable[[str], Iterable[ir.Chain]]) -> None:
        """The same chains in several tables; they differ only where a denial is written differently."""
        rendered: dict[ir.Drop | ir.Reject, Iterable[ir.Chain]] = {}
        for table in tables:
            deny = self._settings.deny(table)
            if deny not in rendered:
                rendered[deny] = render(table)
            self._graph.offer(table, rendered[deny])

    def _workloads(self, state: State, touched: Iterable[WorkloadId]) -> None:
        before = set(self._interfaces.values())
        gone: set[str] = set()
        wishing = dict(self._wishing)
        for ident in touched:
            if (former := self._interfaces.pop(ident, None)) is not None:
                gone.add(former)
            workload = state.workloads.get(ident)
            self._wishing.pop(ident, None)
            if workload is not None and _has_rare_wishes(workload):
                self._wishing[ident] = workload
            unused = self._use_groups(ident, {ir.FILTER: () if workload is None else workload.tiers})
            if workload is not None:
                self._interfaces[ident] = workload.interface
                self._graph.offer(ir.FILTER, endpoints.workload_chains(workload, self._settings))
            self._drop_groups(unused)
        now = set(self._interfaces.values())
        if now != before:
            self._dispatch(now)
        self._graph.withdraw(ir.FILTER, [chain for name in gone - now for chain in chains_of(name)])
        if self._wishing != wishing:
            self._rare_wishes()

    # --- groups of policies ---------------------------------------------------------------------

    def _use_groups(self, owner: WorkloadId | str, tiers: Mapping[str, Iterable[Tier]]) -> list[Key]:
        """Offer the group chains that an endpoint will lead to (table -> its tiers there).

        Returns those that nobody is going to lead to once the endpoint's own chains are rendered anew.
        """
        before, now = self._groups.pop(owner, set()), set()
        for table, some in tiers.items():
            chains = endpoints.group_chains(tuple(some), self._settings)
            self._graph.offer(table, chains)
            now |= {(table, chain.name) for chain in chains}
        if now:
            self._groups[owner] = now
        self._group_users.update(now)
        self._group_users.subtract(before)
        return [key for key in before if self._group_users[key] == 0]

    def _drop_groups(self, unused: Iterable[Key]) -> None:
        for key in unused:
            del self._group_users[key]
            self._graph.withdraw(key[0], [key[1]])

    # --- host endpoints -------------------------------------------------------------------------

    def hosts(self, assigned: Mapping[str, HostEndpoint]) -> None:
        """All host endpoints there are now, by interface (or dispatch.ANY_INTERFACE)."""
        if assigned == self._hosts:
            return
        before, self._hosts = self._hosts, dict(assigned)
        unused: list[Key] = []
        for interface, endpoint in assigned.items():
            if before.get(interface) != endpoint:
                unused += self._use_groups(interface, _tiers_by_table(endpoint))
                self._host(interface, endpoint)
        self._host_dispatch()
        for interface in before.keys() - assigned.keys():
            unused += self._use_groups(interface, {})
            for table in _HOST_TABLES:
                self._graph.withdraw(table, host_chains_of(interface))
        self._drop_groups(unused)

    def _host(self, interface: str, endpoint: HostEndpoint) -> None:
        rendered = {
            ir.FILTER: endpoints.host_filter_chains(endpoint, interface, self._settings),
            ir.MANGLE: endpoints.host_mangle_chains(endpoint, interface, self._settings),
            ir.RAW: endpoints.host_raw_chains(endpoint, interface, self._settings),
        }
        for table, chains in rendered.items():
            self._graph.offer(table, chains)
            made = {chain.name for chain in chains}
            self._graph.withdraw(table, [name for name in host_chains_of(interface) if name not in made])

    def _host_dispatch(self) -> None:
        """An interface is dispatched where its endpoint has a chain, and nowhere else."""
        everywhere = list(self._hosts)
        early = [name for name, one in self._hosts.items() if one.pre_dnat_tiers]
        untracked = [name for name, one in self._hosts.items() if one.untracked_tiers]
        ways = {
            ir.FILTER: (everywhere, everywhere),
            ir.MANGLE: (early, everywhere),
            ir.RAW: (untracked, untracked),
        }
        for table, (inward, outward) in ways.items():
            chains = dispatch.host_dispatch(table, inward, outward, self._settings)
            self._graph.offer(table, chains)
            self._offer_static(table)

    # --- workloads' dispatch --------------------------------------------------------------------

    def _dispatch(self, interfaces: Iterable[str]) -> None:
        self._graph.offer(ir.FILTER, self._dispatch_chains(list(interfaces)))

    def _rare_wishes(self) -> None:
        workloads = self._wishing.values()
        spoofing = [(one.interface, net) for one in workloads for net in one.spoofed_sources]
        self._graph.offer(ir.RAW, [static.rpf_skip_chain(spoofing, self._version)])
        floating = [nat_pair for one in workloads for nat_pair in one.floating_ips]
        self._graph.offer(ir.NAT, nat.floating_chains(floating, self._version))
        marking = [(net, one.dscp) for one in workloads if one.dscp is not None for net in one.nets]
        self._graph.offer(ir.MANGLE, [static.egress_dscp_chain(marking, self._version)])

        self._packet_rates(workloads)
        for table in _HOST_TABLES:
            self._offer_static(table)

    def _packet_rates(self, workloads: Iterable[Workload]) -> None:
        found = {one.interface: endpoints.rate_chain(one, self._settings) for one in workloads}
        chains = {interface: chain for interface, chain in found.items() if chain is not None}
        self._graph.offer(ir.FILTER, chains.values())
        self._graph.offer(ir.FILTER, dispatch.rate_dispatch(chains))
        gone = self._limited - chains.keys()
        self._graph.withdraw(ir.FILTER, [names.chain(names.WORKLOAD_RATE, name) for name in gone])
        self._limited = set(chains)

    # --- questions ------------------------------------------------------------------------------

    def trouble(self, interface: str) -> str:
        """Why a workload's traffic is not yet treated as it should be; '' if it is."""
        limit = [names.chain(names.WORKLOAD_RATE, interface)] if interface in self._limited else []
        return self._trouble((ir.FILTER, chain) for chain in (*chains_of(interface), *limit))

    def host_trouble(self, interface: str) -> str:
        """The same for the host endpoint on an interface."""
        keys = [(table, chain) for table in _HOST_TABLES for chain in host_chains_of(interface)]
        return self._trouble(key for key in keys if self._graph.offered(*key) is not None)

    def _trouble(self, starts: Iterable[Key]) -> str:
        if self._duty.settled and not self._wrong:
            return ""
        pending, seen = list(starts), set[Key]()
        while pending:
            key = pending.pop()
            if key not in seen:
                seen.add(key)
                chain = self._graph.offered(*key)
                misled = self._misled(chain) if chain else ""
                if reason := self._reason(key) or (misled and f"drops everything instead: {misled}"):
                    return f"{key[1]}: {reason}"
                pending += [(key[0], target) for target in chain.targets] if chain else []
        return ""

    def stands(self) -> bool:
        """Whether every hook is in place, and with it all that it leads to: they are written as one."""
        return not any(self._reason(key) for key in static.hooks(self._settings))

    def ruleset(self) -> Ruleset:
        """All rules of this IP version, for evaluating packets against them."""
        return self._graph.ruleset()


_MISLED = (ir.Rule((), ir.DROP, ("An IP set is not as it should be",)),)


def _has_rare_wishes(workload: Workload) -> bool:
    """Of what is rendered for all endpoints together."""
    limited = workload.qos is not None and workload.qos.ingress_packets
    return bool(workload.spoofed_sources or workload.floating_ips or limited) or workload.dscp is not None


def chains_of(interface: str) -> list[str]:
    return [
        names.chain(names.TO_WORKLOAD, interface),
        names.chain(names.FROM_WORKLOAD, interface),
    ]


def host_chains_of(interface: str) -> list[str]:
    prefixes = (names.TO_HOST, names.FROM_HOST, names.TO_HOST_FORWARD, names.FROM_HOST_FORWARD)
    return [names.chain(prefix, interface) for prefix in prefixes]


def _tiers_by_table(endpoint: HostEndpoint) -> dict[str, tuple[Tier, ...]]:
    return {
        ir.FILTER: endpoint.tiers + endpoint.forward_tiers,
        ir.MANGLE: endpoint.tiers + endpoint.pre_dnat_tiers,
        ir.RAW: endpoint.untracked_tiers,
    }
