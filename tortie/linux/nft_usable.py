"""Whether nftables can be used on this host, and whether kube-proxy does so."""

import os
import re
import shutil

import msgspec

from tortie.core.errors import KernelError
from tortie.linux.nft_table import listing, nft

_OLDEST_NFT = (1, 0, 1)  # Calico's; before it, maps of verdicts and comments are not all there
_OLDEST_KERNEL = (5, 13)  # Calico's
_KUBE_PROXY = "kube-proxy"  # the table kube-proxy makes in its nftables mode


async def reason_against() -> str:
    """Why nftables cannot be used; "" if it can."""
    if shutil.which("nft") is None:
        return "nft is not installed"
    if _numbers(os.uname().release) < _OLDEST_KERNEL:
        return f"the kernel is {os.uname().release}, older than 5.13"
    said = await nft("--version")
    if _numbers(said.output) < _OLDEST_NFT:
        return f"nft says it is {said.output.strip()[:80]!r}, 1.0.1 is needed"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(map(int, match[0].split("."))) if match else ()


class _Chain(msgspec.Struct):
    table: str
    name: str


class _Listed(msgspec.Struct):
    chain: _Chain | None = None


class _Listing(msgspec.Struct):
    nftables: list[_Listed]


async def chains(family: str) -> list[tuple[str, str]]:
    """(table, chain) of every chain there is; nobody's rules are looked at. Raises KernelError."""
    text = await listing("list", "chains", family)
    try:
        listed = msgspec.json.decode(text or b'{"nftables": []}', type=_Listing).nftables
    except msgspec.DecodeError as err:
        raise KernelError("read", "nftables chains", text=f"cannot be understood: {err}") from err
    return [(one.chain.table, one.chain.name) for one in listed if one.chain is not None]


async def kube_proxy_in_nftables() -> bool:
    """Raises KernelError if nftables cannot be read."""
    for family in ("ip", "ip6"):
        if any(table == _KUBE_PROXY for table, _ in await chains(family)):
            return True
    return False


async def arp_works() -> bool:
    """Whether this kernel filters ARP with nftables; nothing is changed by asking."""
    if await reason_against():
        return False
    table = "arp calico-arp-probe"
    lines = (
        f"add table {table}",
        f"add chain {table} c {{ type filter hook output priority 0; policy accept; }}",
        f"add rule {table} c arp operation reply counter",
    )
    return (await nft("-c", "-f", "-", given="\n".join(lines) + "\n")).status == 0
