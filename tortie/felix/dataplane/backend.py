"""Which dataplane enforces - iptables or nftables - and what of the others may still stand from earlier runs.

Both can stand at once and both enforce then: a packet must get through every chain of either. So a change is
made by putting up the new one whole and taking the old one down after; nothing is opened or cut off in
between, and a felix that ends midway is finished by the next.
"""

import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tortie.core.errors import KernelError
from tortie.core.reconcile import Target
from tortie.felix.rules import arp, ir
from tortie.felix.rules.nftables import TABLE, chain_key, expendable_chain
from tortie.felix.rules.profiles import expendable
from tortie.linux import iptables, iptables_leftovers, nft_sets, nft_usable, nftables
from tortie.linux.ipsets import IPSet, SetTarget
from tortie.linux.iptables_backend import detect, other_in_use, tools
from tortie.linux.nft_table import Family

_log = logging.getLogger(__name__)
_FAMILIES: dict[int, Family] = {4: "ip", 6: "ip6"}
_ENTRY = (ir.FILTER, "FORWARD"), (ir.FILTER, "INPUT")  # where workloads' packets come to us


@dataclass(frozen=True, slots=True)
class Leftover:
    """A kind of object that is to be there no more; its Target finds and deletes all of it."""

    name: str
    target: Target[Any, Any]


@dataclass(frozen=True, slots=True)
class Backend:
    """One IP version's dataplane. `leftovers` go in this order, once the rest stands.

    `stands` says whether rules of ours are where workloads' packets come by, in whatever dataplane.
    """

    version: int
    nftables: bool
    tables: Target[Any, Any]
    sets: Target[str, IPSet]
    leftovers: list[Leftover] = field(default_factory=list)
    guards: list[Callable[[], Awaitable[bool]]] = field(default_factory=list)

    def bind(self, desired: Mapping[Any, Any]) -> None:
        """Let transactions hold everything that is wanted, not only what is due."""
        if isinstance(self.tables, nftables.TableTarget):
            self.tables.wanted = desired

    def lost_all(self) -> bool:
        """Whether the last reading of sets found that somebody had taken all of them away."""
        return isinstance(self.sets, nft_sets.SetTarget) and self.sets.take_vanished()

    async def stands(self) -> bool:
        """Raises KernelError if the dataplane in use cannot be read; the others may be unreadable."""
        if await self.guards[0]():
            return True
        for guard in self.guards[1:]:
            try:
                if await guard():
                    return True
            except KernelError as err:
                _log.warning("cannot look whether rules of an earlier run stand: %s", err)
        return False


# --- the choice ---------------------------------------------------------------------------------


async def wants_nftables(mode: str) -> bool:
    """`mode` is NFTablesMode: Enabled, Disabled, or Auto, which follows kube-proxy as Calico does.

    Raises KernelError if nftables is asked for and cannot be had.
    """
    mode = mode.lower()
    if mode == "disabled":
        return False
    why = await nft_usable.reason_against()
    if mode == "enabled" and why:
        raise KernelError("use", "nftables", text=why)
    return not why and (mode == "enabled" or await nft_usable.kube_proxy_in_nftables())


# --- iptables -----------------------------------------------------------------------------------


async def iptables_backend(version: int, wanted: str, append: bool, lock_probe_ms: int) -> Backend:
    """Raises KernelError if there is no iptables."""
    chosen = await detect(version, wanted)
    tables = iptables.TableTarget(tools(version, chosen, lock_probe_ms), append=append, expendable=expendable)
    backend = Backend(version, False, tables, SetTarget(version), guards=[_iptables_stands(tables)])
    if (other := other_in_use(version, chosen)) is not None:
        stray = iptables_leftovers.target(version, other, lock_probe_ms)
        backend.leftovers.append(Leftover(f"IPv{version} leftover chains", stray))
    if await nft_usable.reason_against() == "":
        table = nftables.TableTarget(_FAMILIES[version], TABLE)
        backend.leftovers.append(
            Leftover(f"IPv{version} leftover nftables", nftables.StrayTable(_FAMILIES[version], TABLE))
        )
        backend.guards.append(_nft_stands(table))
    return backend


def _iptables_stands(target: iptables.TableTarget) -> Callable[[], Awaitable[bool]]:
    async def stands() -> bool:
        standing = await target.read()
        return any(key in standing for key in _ENTRY)

    return stands


# --- nftables -----------------------------------------------------------------------------------


def nft_backend(version: int, lock_probe_ms: int) -> Backend:
    sets = nft_sets.SetTarget(_FAMILIES[version], TABLE)
    tables = nftables.TableTarget(_FAMILIES[version], TABLE, sets, expendable=expendable_chain)
    backend = Backend(version, True, tables, sets, guards=[_nft_stands(tables)])
    for other in iptables_leftovers.present(version):
        stray = iptables_leftovers.target(version, other, lock_probe_ms)
        backend.leftovers.append(Leftover(f"IPv{version} leftover iptables-{other} chains", stray))
        backend.guards.append(_iptables_stands(stray))
    if shutil.which("ipset"):
        stray_sets = iptables_leftovers.LeftoverSets(version)
        backend.leftovers.append(Leftover(f"IPv{version} leftover IP sets", stray_sets))
    return backend


def _nft_stands(target: nftables.TableTarget) -> Callable[[], Awaitable[bool]]:
    async def stands() -> bool:
        return await target.holds(*(chain_key(*entry)[1] for entry in _ENTRY))

    return stands


async def arp_target() -> nftables.TableTarget | None:
    """For the rules about ARP, which need nftables whatever enforces policy; None without it."""
    return nftables.TableTarget("arp", arp.TABLE) if await nft_usable.arp_works() else None
