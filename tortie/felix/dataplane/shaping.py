"""Bandwidth of workloads: a token bucket at their interface for what they get, and one for what they send.

What a workload sends arrives at its interface, where nothing can be held back: it is redirected to an ifb
device, `bwcali` and a hash, whose alias says whose it is. (felix/dataplane/linux/qos; policy sheet, 6.)
"""

import errno
import hashlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from tortie.core.errors import KernelError
from tortie.felix.calc.model import Bandwidth
from tortie.felix.dataplane.duty import Duty
from tortie.linux import links, qdisc
from tortie.linux.codec import Message
from tortie.linux.links import Link
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.qdisc import HANDLE, Bucket

_KIND, _PREFIX = "ifb", "bwcali"  # of the devices that limit what is sent: their kind and names
_LATENCY = 25  # ms that a packet may wait, Calico's
_ETHERNET = 14  # bytes of its header
_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)  # EINVAL: there is a qdisc, but another one


class Shape(NamedTuple):
    """What an interface's workload gets and sends at most; None: no limit."""

    ingress: Bucket | None = None
    egress: Bucket | None = None


Shapes = Duty[str, Shape]
"""By the name of the workload's interface."""


def bucket(limit: Bandwidth, mtu: int) -> Bucket | None:
    """None if there is no limit."""
    if not limit.rate:
        return None
    rate = max(limit.rate // 8, 1)
    burst = min(max(limit.burst // 8, mtu + _ETHERNET), qdisc.longest(rate))
    waiting = rate * _LATENCY // 1000 + burst
    if not limit.peak_rate:
        return Bucket(rate, burst, min(waiting, 0xFFFFFFFF))
    peak = limit.peak_rate // 8
    peak_burst = min(max(limit.min_burst, mtu + _ETHERNET), qdisc.longest(peak))
    waiting = min(waiting, peak * _LATENCY // 1000 + peak_burst)
    return Bucket(rate, burst, min(waiting, 0xFFFFFFFF), peak, peak_burst)


def device_name(interface: str) -> str:
    """Of the ifb device for an interface."""
    return _PREFIX + hashlib.sha512(interface.encode()).hexdigest()[:9]


class ShapingTarget:
    """reconcile.Target[str, Shape]. Buckets of others stay, unless a limit of ours takes their place."""

    def __init__(self, netlink: NetlinkSocket, prefixes: tuple[str, ...]) -> None:
        self._netlink, self._prefixes = netlink, prefixes

    async def read(self) -> Mapping[str, Shape]:
        found = qdisc.dump(self._netlink)
        buckets = {one.ifindex: one.bucket for one in found if one.handle == HANDLE}
        redirected = {one.ifindex for one in found if one.kind == "ingress"}
        present = {link.name: link for link in links.dump(self._netlink)}
        shapes = {
            name: Shape(buckets[link.ifindex])
            for name, link in present.items()
            if link.ifindex in buckets and name.startswith(self._prefixes)
        }
        for name, link in present.items():
            if name.startswith(_PREFIX) and link.kind == _KIND and link.alias:
                owner = present.get(link.alias)
                whole = owner is not None and owner.ifindex in redirected
                limit = buckets.get(link.ifindex) if whole else None
                ingress = shapes.get(link.alias, Shape()).ingress
                shapes[link.alias] = Shape(ingress, limit)
        return shapes

    def same(self, desired: Shape, actual: Shape) -> bool:
        return all(
            one is other or (one is not None and other is not None and one.near(other))
            for one, other in zip(desired, actual, strict=True)
        )

    async def apply(self, update: Mapping[str, Shape], delete: Collection[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        wanted = {**dict.fromkeys(delete, Shape()), **update}
        for name, shape in wanted.items():
            try:
                self._set(name, shape)
            except KernelError as err:
                failed[name] = str(err)
        return failed

    # --- one interface --------------------------------------------------------------------------

    def _set(self, name: str, shape: Shape) -> None:
        link = links.get(self._netlink, name)
        if link is not None and shape.ingress is not None:
            self._do(qdisc.replace_bucket(link.ifindex, shape.ingress))
        elif link is not None:
            self._do(qdisc.delete_bucket(link.ifindex), _GONE)
        if link is not None and shape.egress is not None:
            self._redirect(link, shape.egress)
        else:
            self._release(name, link)

    def _redirect(self, link: Link, limit: Bucket) -> None:
        """The bucket is there before the first packet is sent through it."""
        device = device_name(link.name)
        self._do(links.create(device, _KIND), (errno.EEXIST,))
        ifb = links.get(self._netlink, device)
        if ifb is None or ifb.kind != _KIND:
            raise KernelError("set up", device, errno.EEXIST, "there is something else of this name")
        self._do(links.change(device, mtu=link.mtu, alias=link.name, up=True))
        self._do(qdisc.replace_bucket(ifb.ifindex, limit))
        self._do(qdisc.delete_ingress(link.ifindex), _GONE)
        self._do(qdisc.add_ingress(link.ifindex))
        self._do(qdisc.redirect(link.ifindex, ifb.ifindex))

    def _release(self, name: str, link: Link | None) -> None:
        """Packets take the direct way before the other one ends."""
        device = device_name(name)
        ifb = links.get(self._netlink, device)
        if ifb is None or ifb.kind != _KIND:
            return
        if link is not None:
            self._do(qdisc.delete_ingress(link.ifindex), _GONE)
        self._do(links.delete(device), _GONE)

    def _do(self, message: Message, ignore: tuple[int, ...] = ()) -> None:
        (error,) = self._netlink.request([message])
        if error is not None and error.errno not in ignore:
            raise error
