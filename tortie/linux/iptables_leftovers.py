"""What Calico's iptables dataplane left behind, where another one is in use now: chains, and IP sets.

Looked for without disturbing anybody: tables in which none of our chains stands are not read, as there may be
rules in them that iptables cannot show (Tailscale's, for one), and legacy tables that are not in use are not
loaded by asking.
"""

from collections.abc import Iterator, Mapping

from tortie.core.errors import KernelError
from tortie.linux import ipsets, nft_usable
from tortie.linux.iptables import OWN_CHAIN, Content, Key, TableTarget
from tortie.linux.iptables_backend import Backend, Tools, installed, other_in_use, tools
from tortie.linux.process import run


def present(version: int) -> Iterator[Backend]:
    """The back-ends that may hold chains of ours."""
    if not installed(version):
        return
    if (backend := other_in_use(version, "legacy")) is not None:
        yield backend
    if (backend := other_in_use(version, "nft")) is not None:
        yield backend


def target(version: int, backend: Backend, lock_probe_ms: int) -> TableTarget:
    """Raises KernelError if iptables is not installed."""
    programs = tools(version, backend, lock_probe_ms)
    return _NftTables(version, programs) if backend == "nft" else TableTarget(programs)


class _NftTables(TableTarget):
    """Of the back-end that keeps its tables in nftables."""

    def __init__(self, version: int, programs: Tools) -> None:
        super().__init__(programs)
        self._family = "ip" if version == 4 else "ip6"

    async def read(self) -> Mapping[Key, Content]:
        """Raises KernelError."""
        standing = await nft_usable.chains(self._family)
        tables = {table for table, chain in standing if OWN_CHAIN.match(chain)}
        return await super().read() if tables & {"raw", "mangle", "nat", "filter"} else {}


class LeftoverSets(ipsets.SetTarget):
    """The IP sets of one version; `ipset` is asked for their members only if there are any of ours."""

    async def read(self) -> Mapping[str, ipsets.IPSet]:
        """Raises KernelError."""
        listed = await run("ipset", "list", "-n")
        if listed.status:
            raise KernelError("read", "IP sets", text=listed.reason)
        return await super().read() if any(map(ipsets.OURS.match, listed.output.split())) else {}
