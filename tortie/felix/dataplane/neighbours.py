"""Permanent neighbour entries where MACs are known: the host never has to ask for them.

For workloads in IPv4 only, as Calico: neighbour discovery needs no such help. For the far ends of VXLAN
tunnels in both families, and with them the forwarding entries that say which node a MAC is on.
(Reference: dataplane sheet 1.4, 3.1; felix/vxlanfdb.)
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from errno import ENODEV, ENOENT
from socket import AF_INET, AF_UNSPEC
from typing import NamedTuple, TypeVar

from tortie.core.errors import KernelError
from tortie.felix.dataplane.duty import Duty
from tortie.linux import neighbours
from tortie.linux.netlink import NetlinkSocket

K = TypeVar("K", bound=Hashable)

Key = tuple[int, str]
"""(ifindex, address)"""

Neighbours = Duty[Key, str]


class NeighbourTarget:
    """reconcile.Target[Key, str]: the MAC of each permanent entry on interfaces for which `ours` is true."""

    def __init__(
        self, netlink: NetlinkSocket, ours: Callable[[int], bool], *, both_families: bool = False
    ) -> None:
        self._netlink, self._ours = netlink, ours
        self._family = AF_UNSPEC if both_families else AF_INET

    async def read(self) -> Mapping[Key, str]:
        found = neighbours.dump(self._netlink, self._family)
        return {
            (one.ifindex, one.address): one.mac
            for one in found
            if one.permanent and one.mac and self._ours(one.ifindex)
        }

    async def apply(self, update: Mapping[Key, str], delete: Collection[Key]) -> Mapping[Key, str]:
        messages = [neighbours.delete(*key) for key in delete]
        messages += [neighbours.replace(*key, mac) for key, mac in update.items()]
        return _failures([*delete, *update], len(delete), self._netlink.request(messages))

    def same(self, desired: str, actual: str) -> bool:
        return desired == actual


class FarEnd(NamedTuple):
    """Frames for `mac` that leave by the device `ifindex` go to the node at `node`."""

    ifindex: int
    mac: str
    node: str


FarEnds = Duty[FarEnd, bool]


class ForwardingTarget:
    """reconcile.Target[FarEnd, bool] for VXLAN devices (`ours`); the value is always True.

    The node is part of the key, so that entries others added for the same MAC are found and go.
    """

    def __init__(self, netlink: NetlinkSocket, ours: Callable[[int], bool]) -> None:
        self._netlink, self._ours = netlink, ours

    async def read(self) -> Mapping[FarEnd, bool]:
        found = neighbours.dump_forwarding(self._netlink)
        return {
            FarEnd(one.ifindex, one.mac, one.dst): True
            for one in found
            if one.permanent and one.mac and one.dst and self._ours(one.ifindex)
        }

    async def apply(self, update: Mapping[FarEnd, bool], delete: Collection[FarEnd]) -> Mapping[FarEnd, str]:
        """Deletions first: a MAC whose node changed would else be found to have one already."""
        messages = [neighbours.delete_forwarding(*key) for key in delete]
        messages += [neighbours.replace_forwarding(*key) for key in update]
        return _failures([*delete, *update], len(delete), self._netlink.request(messages))

    def same(self, desired: bool, actual: bool) -> bool:
        return desired == actual


def _failures(keys: Sequence[K], deleted: int, results: Iterable[KernelError | None]) -> dict[K, str]:
    """The first `deleted` of `keys` were to go: that they, or their device, are gone is no failure."""
    return {
        key: str(error)
        for index, (key, error) in enumerate(zip(keys, results, strict=True))
        if error is not None and not (index < deleted and error.errno in (ENOENT, ENODEV))
    }
