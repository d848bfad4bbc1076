"""Kernel parameters of the host and of workload interfaces, kept as they should be.

proxy_arp makes the host answer for every address a workload asks for, so that its one neighbour is the
host; forwarding and the reverse path filter are per interface. (Reference: dataplane sheet 1.3.)
"""

import asyncio
import errno
import logging
from collections.abc import Collection, Iterator, Mapping

from tortie.core.errors import KernelError
from tortie.felix.dataplane.duty import Duty
from tortie.linux import sysctl

_log = logging.getLogger(__name__)

Sysctls = Duty[str, str]

_AT_ONCE = 200  # files read or written before the loop runs again: about 2 ms
# Written on a best-effort basis: a kernel without IPv6, or a container without the right, still works.
_OPTIONAL = ("accept_ra", "proxy_delay", "nf_conntrack_acct", "nf_conntrack_tcp_loose")


def host(ipv6: bool, forwarding: bool, *, strict_tcp: bool = False) -> dict[str, str]:
    """Of the whole host. `strict_tcp`: only what opens a connection begins one, no packet in its middle."""
    values = {"net/netfilter/nf_conntrack_acct": "1"}
    if strict_tcp:
        values["net/netfilter/nf_conntrack_tcp_loose"] = "0"
    if forwarding:
        values["net/ipv4/ip_forward"] = "1"
        if ipv6:
            values["net/ipv6/conf/all/forwarding"] = "1"
    return values


def workload(interface: str, versions: Collection[int], rp_filter: str) -> dict[str, str]:
    """Of one workload's interface. Raises KernelError if that is no interface name."""
    return dict(_workload(interface, versions, rp_filter))


def _workload(interface: str, versions: Collection[int], rp_filter: str) -> Iterator[tuple[str, str]]:
    def key(family: str, name: str, group: str = "conf") -> str:
        return sysctl.interface_key(family, group, interface, name)

    yield key("ipv6", "accept_ra"), "0"
    if 4 in versions:
        yield key("ipv4", "route_localnet"), "1"
        yield key("ipv4", "proxy_delay", "neigh"), "0"
        yield key("ipv4", "proxy_arp"), "1"
        yield key("ipv4", "forwarding"), "1"
        yield key("ipv4", "rp_filter"), rp_filter
    if 6 in versions:
        yield key("ipv6", "proxy_ndp"), "1"
        yield key("ipv6", "forwarding"), "1"


def default_rp_filter() -> str:
    """What the host's administrator chose for new interfaces; strict if that cannot be read."""
    try:
        return sysctl.read("net/ipv4/conf/default/rp_filter")
    except KernelError:
        return "1"


class SysctlTarget:
    """reconcile.Target[str, str] over those parameters that anybody wishes for."""

    def __init__(self) -> None:
        self.wanted: Mapping[str, str] = {}  # what to look at; set once the duty exists
        self._complained: set[str] = set()  # kinds of optional parameters already reported

    async def read(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for number, key in enumerate(list(self.wanted)):
            try:
                found[key] = sysctl.read(key)
            except KernelError as err:
                if err.errno not in (errno.ENOENT, errno.EACCES):
                    raise
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return found

    async def apply(self, update: Mapping[str, str], delete: Collection[str]) -> Mapping[str, str]:
        """A parameter nobody wishes for any more stays as it is: its interface goes, or was never ours."""
        failed: dict[str, str] = {}
        for number, (key, value) in enumerate(update.items()):
            try:
                sysctl.write(key, value)
            except KernelError as err:
                if not self._tolerate(key, err):
                    failed[key] = str(err)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return failed

    def same(self, desired: str, actual: str) -> bool:
        return desired == actual

    def _tolerate(self, key: str, err: KernelError) -> bool:
        name = key.rpartition("/")[2]
        if name not in _OPTIONAL:
            return False
        if name not in self._complained:
            self._complained.add(name)
            _log.warning("continuing without it: %s", err)
        return True
