"""The state as chains of one IP version, re-rendered where it changed.

What stands where is decided by felix.rules; this only knows which chains depend on which part of the
state, and hands the text of visible chains to the tables' duty. Nothing here touches the kernel.
"""

from collections.abc import Iterable
from typing import Any

from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import WorkloadId
from tortie.felix.dataplane.chains import ChainGraph, Key
from tortie.felix.dataplane.duty import Duty
from tortie.felix.rules import dispatch, endpoints, ir, names, nat, profiles, static
from tortie.felix.rules.evaluate import Ruleset
from tortie.felix.rules.iptables import Features, render_chain, render_hook
from tortie.felix.rules.settings import Settings
from tortie.linux.iptables import Content

Tables = Duty[Key, Content]


class TableWriter:
    """One IP version's tables."""

    def __init__(self, version: int, settings: Settings, features: Features, duty: Duty[Key, Any]) -> None:
        self._version, self._settings, self._features = version, settings, features
        self._duty = duty
        self._graph = ChainGraph(self._shown)
        self._interfaces: dict[WorkloadId, str] = {}  # endpoint -> the interface its chains are named for

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
        self._dispatch(())
        self._hook(ir.FILTER)

    def start(self, state: State) -> None:
        """Everything, from the whole state."""
        for table in ir.TABLES:
            self._offer_static(table)
        for table in (ir.RAW, ir.MANGLE, ir.FILTER):
            self._graph.offer(table, dispatch.host_dispatch((), self._settings, table=table))
        touched = Touched(set(state.workloads), set(state.profiles), topology=True, services=True)
        self.update(state, touched)
        self._dispatch(self._interfaces.values())
        self._spoofing(state)
        for table in ir.TABLES:
            self._hook(table)

    def _offer_static(self, table: str) -> None:
        self._graph.offer(table, static.chains(self._version, self._settings)[table])
        if table == ir.FILTER:
            self._graph.offer(table, dispatch.host_dispatch((), self._settings, table=table))

    def _hook(self, table: str) -> None:
        for key, hook in static.hooks(self._settings).items():
            if key[0] == table:
                self._graph.hook(key, hook)

    # --- what changes ---------------------------------------------------------------------------

    def update(self, state: State, touched: Touched) -> None:
        """Render anew what depends on the touched parts of the state."""
        for name in touched.profiles:
            self._profile(state, name)
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

    def _profile(self, state: State, name: str) -> None:
        profile = state.profiles.get(name)
        if profile is None:
            gone = (names.chain(names.PROFILE_IN, name), names.chain(names.PROFILE_OUT, name))
            self._graph.withdraw(ir.FILTER, gone)
        else:
            chains = profiles.profile_chains(profile, self._version, ir.FILTER, self._settings)
            self._graph.offer(ir.FILTER, chains)

    def _workloads(self, state: State, touched: Iterable[WorkloadId]) -> None:
        before = set(self._interfaces.values())
        gone: set[str] = set()
        for ident in touched:
            if (former := self._interfaces.pop(ident, None)) is not None:
                gone.add(former)
            if (workload := state.workloads.get(ident)) is not None:
                self._interfaces[ident] = workload.interface
                self._graph.offer(ir.FILTER, endpoints.workload_chains(workload, self._settings))
        now = set(self._interfaces.values())
        if now != before:
            self._dispatch(now)
        self._graph.withdraw(ir.FILTER, [chain for name in gone - now for chain in chains_of(name)])
        self._spoofing(state)

    def _dispatch(self, interfaces: Iterable[str]) -> None:
        self._graph.offer(ir.FILTER, self._dispatch_chains(list(interfaces)))

    def _spoofing(self, state: State) -> None:
        """What depends on rare wishes of single endpoints."""
        workloads = state.workloads.values()
        spoofing = [(one.interface, net) for one in workloads for net in one.spoofed_sources]
        self._graph.offer(ir.RAW, [static.rpf_skip_chain(spoofing, self._version)])
        floating = [nat_pair for one in workloads for nat_pair in one.floating_ips]
        self._graph.offer(ir.NAT, nat.floating_chains(floating, self._version))
        marking = [(net, one.dscp) for one in workloads if one.dscp is not None for net in one.nets]
        self._graph.offer(ir.MANGLE, [static.egress_dscp_chain(marking, self._version)])

    # --- questions ------------------------------------------------------------------------------

    def trouble(self, interface: str) -> str:
        """Why an endpoint's traffic is not yet treated as it should be; '' if it is."""
        pending = [(ir.FILTER, chain) for chain in chains_of(interface)]
        seen: set[Key] = set()
        while pending:
            key = pending.pop()
            if key not in seen:
                seen.add(key)
                if reason := self._reason(key):
                    return f"{key[1]}: {reason}"
                chain = self._graph.offered(*key)
                pending += [(key[0], target) for target in chain.targets] if chain else []
        return ""

    def stands(self) -> bool:
        """Whether every hook is in place, and with it all that it leads to: they are written as one."""
        return not any(self._reason(key) for key in static.hooks(self._settings))

    def ruleset(self) -> Ruleset:
        """All rules of this IP version, for evaluating packets against them."""
        return self._graph.ruleset()


def chains_of(interface: str) -> list[str]:
    return [
        names.chain(names.TO_WORKLOAD, interface),
        names.chain(names.FROM_WORKLOAD, interface),
    ]
