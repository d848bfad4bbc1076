"""Permanent ARP entries for workloads whose MAC is known: the host never has to ask for them.

(Reference: dataplane sheet 1.4. IPv4 only, as Calico: neighbour discovery needs no such help.)
"""

from collections.abc import Callable, Collection, Mapping
from errno import ENODEV, ENOENT
from socket import AF_INET

from tortie.felix.dataplane.duty import Duty
from tortie.linux import neighbours
from tortie.linux.netlink import NetlinkSocket

Key = tuple[int, str]
"""(ifindex, address)"""

Neighbours = Duty[Key, str]


class NeighbourTarget:
    """reconcile.Target[Key, str]: the MAC of each permanent entry on interfaces of workloads."""

    def __init__(self, netlink: NetlinkSocket, on_workload: Callable[[int], bool]) -> None:
        self._netlink, self._on_workload = netlink, on_workload

    async def read(self) -> Mapping[Key, str]:
        found = neighbours.dump(self._netlink, AF_INET)
        return {
            (one.ifindex, one.address): one.mac
            for one in found
            if one.permanent and self._on_workload(one.ifindex)
        }

    async def apply(self, update: Mapping[Key, str], delete: Collection[Key]) -> Mapping[Key, str]:
        keys = [*delete, *update]
        messages = [neighbours.delete(*key) for key in delete]
        messages += [neighbours.replace(*key, mac) for key, mac in update.items()]
        results = self._netlink.request(messages)
        gone = len(delete)
        return {
            key: str(error)
            for index, (key, error) in enumerate(zip(keys, results, strict=True))
            if error is not None and not (index < gone and error.errno in (ENOENT, ENODEV))
        }

    def same(self, desired: str, actual: str) -> bool:
        return desired == actual
