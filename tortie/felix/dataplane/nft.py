"""What is different where nftables enforces: chains and maps in one table, sets beside them, ARP.

The writers differ from those for iptables in what they hand to the duties, not in what they decide. Nothing
here touches the kernel.
"""

from collections.abc import Iterable

from tortie.felix.calc.graph import State
from tortie.felix.calc.model import WorkloadId
from tortie.felix.dataplane.chains import Key as ChainKey
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.sets import SetWriter
from tortie.felix.dataplane.tables import TableWriter
from tortie.felix.rules import arp, dispatch, ir, names
from tortie.felix.rules.nftables import chain_key, map_key, render_chain, render_hook
from tortie.linux.nft_table import Content, Key

Tables = Duty[Key, Content]


class NftTableWriter(TableWriter):
    """One IP version's table."""

    _holds_ready = False  # as in Calico: a chain more costs little here when it is needed

    def _shown(self, key: ChainKey, content: ir.Chain | ir.Hook | None) -> None:
        table, name = key
        if content is None:
            self._duty.drop(chain_key(table, name))
            self._duty.drop(map_key(table, name))
        elif isinstance(content, ir.Hook):
            self._duty.put(chain_key(table, name), render_hook(content, table, name, self._features))
        else:
            for found, one in render_chain(content, table, self._version, self._features).items():
                self._duty.put(found, one)

    def _reason(self, key: ChainKey) -> str:
        return self._duty.reason(chain_key(*key)) or self._duty.reason(map_key(*key))

    def _dispatch_chains(self, interfaces: list[str]) -> list[ir.Chain]:
        return dispatch.workload_maps(interfaces, self._settings)


class NftSetWriter(SetWriter):
    def _name(self, ident: str) -> str:
        return names.nft_set(self._version, ident)


class ArpWriter:
    """The rules that keep the host from answering for a workload's own address."""

    def __init__(self, duty: Tables) -> None:
        self._duty = duty
        self._interfaces: dict[WorkloadId, str] = {}

    def start(self, state: State) -> None:
        for key, content in arp.static().items():
            self._duty.put(key, content)
        self.update(state, state.workloads)

    def update(self, state: State, touched: Iterable[WorkloadId]) -> None:
        gone: set[str] = set()
        for ident in touched:
            if (former := self._interfaces.pop(ident, None)) is not None:
                gone.add(former)
            if (workload := state.workloads.get(ident)) is not None:
                name = self._interfaces[ident] = workload.interface
                addresses = [net.partition("/")[0] for net in workload.nets_of(4)]
                self._duty.put(arp.chain_key(name), arp.chain(name, addresses))
        interfaces = set(self._interfaces.values())
        for name in gone - interfaces:
            self._duty.drop(arp.chain_key(name))
        self._duty.put(arp.DISPATCH_MAP, arp.dispatch(interfaces))
