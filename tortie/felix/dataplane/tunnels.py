"""The tunnel devices: how they should be, and the target that makes them so.

vxlan.calico and vxlan-v6.calico are felix's: made when wanted, made anew when what cannot be changed
differs, deleted when not wanted. tunl0 is the kernel's, which makes it when the module ipip is loaded and
never lets it go: felix only gives it its address and takes it back.
(Reference: dataplane sheet 3.1, 3.2; felix/dataplane/linux/vxlan_mgr.go, ipip_mgr.go.)
"""

import errno
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from socket import AF_INET, AF_INET6

from tortie.core.errors import KernelError
from tortie.felix.dataplane.duty import Duty
from tortie.linux import addresses, ethtool, links
from tortie.linux.codec import Message
from tortie.linux.links import Link, Vxlan
from tortie.linux.netlink import NetlinkSocket

IPIP = "tunl0"
VXLAN = {4: "vxlan.calico", 6: "vxlan-v6.calico"}  # IP version -> device
DEVICES = (IPIP, *VXLAN.values())

_MODULES = {"ipip": "ipip", "vxlan": "vxlan"}  # kind of link -> kernel module that has it


@dataclass(frozen=True, slots=True)
class Device:
    """A tunnel device. `addresses` are CIDRs without link-local ones; `vxlan` is None for IPIP."""

    mtu: int
    addresses: frozenset[str]
    mac: str = ""
    vxlan: Vxlan | None = None
    checksum_offload: bool = True
    up: bool = True


Devices = Duty[str, Device]


class TunnelTarget:
    """reconcile.Target[str, Device], by name.

    `offload`: False on kernels that compute wrong checksums for what they encapsulate. `ipip`: False if
    tunl0 is somebody else's.
    """

    def __init__(self, netlink: NetlinkSocket, *, offload: bool = True, ipip: bool = True) -> None:
        self._netlink, self._offload = netlink, offload
        self._names = DEVICES if ipip else tuple(VXLAN.values())
        self._indices: dict[str, int] = {}  # device -> its index, as last seen

    def ifindex(self, name: str) -> int:
        """0 if there is no such device."""
        return self._indices.get(name, 0)

    def is_vxlan(self, ifindex: int) -> bool:
        return any(self._indices.get(name) == ifindex for name in VXLAN.values())

    async def read(self) -> Mapping[str, Device]:
        found: dict[str, Device] = {}
        self._indices.clear()
        for name in self._names:
            if (link := links.get(self._netlink, name)) is None:
                continue
            self._indices[name] = link.ifindex
            held = self._addresses(name, link.ifindex)
            if name != IPIP or held:  # without an address tunl0 is as good as not there
                offload = self._offload or ethtool.tx_checksum(name)
                found[name] = Device(link.mtu, held, _mac(name, link), link.vxlan, offload, link.up)
        return found

    def same(self, desired: Device, actual: Device) -> bool:
        return desired == actual

    async def apply(self, update: Mapping[str, Device], delete: Collection[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        for name in delete:
            try:
                self._remove(name)
            except KernelError as err:
                failed[name] = str(err)
        for name, device in update.items():
            try:
                self._make(name, device)
            except KernelError as err:
                failed[name] = _why(err, "ipip" if device.vxlan is None else "vxlan")
        return failed

    def _do(self, message: Message, ignore: int = 0) -> None:
        (error,) = self._netlink.request([message])
        if error is not None and error.errno != ignore:
            raise error

    # --- one device -----------------------------------------------------------------------------

    def _remove(self, name: str) -> None:
        if name == IPIP:
            self._set_addresses(name, self._indices.get(name, 0), frozenset())
            return
        self._do(links.delete(name), ignore=errno.ENODEV)
        self._indices.pop(name, None)

    def _make(self, name: str, device: Device) -> None:
        """The MTU comes last: a device whose MTU the kernel refuses carries packets all the same."""
        link = links.get(self._netlink, name)
        if link is not None and not _alterable(link, device):
            if device.vxlan is None:
                raise KernelError(
                    "set up", name, errno.EEXIST, f"there is a {link.kind or 'link'} of this name"
                )
            self._do(links.delete(name), ignore=errno.ENODEV)
            link = None
        if link is None:
            self._create(name, device)
            link = links.get(self._netlink, name)
        if link is None:
            raise KernelError("set up", name, errno.ENODEV, "it was deleted at once")
        self._indices[name] = link.ifindex
        if not device.checksum_offload:
            ethtool.set_tx_checksum(name, False)
        self._set_addresses(name, link.ifindex, device.addresses)
        if not link.up:
            self._do(links.change(name, up=True))
        if link.mtu != device.mtu:
            self._do(links.change(name, mtu=device.mtu))

    def _create(self, name: str, device: Device) -> None:
        if device.vxlan is None:  # asking for it loads the module, which makes tunl0 by itself
            self._do(links.create(name, "ipip"), ignore=errno.EEXIST)
        else:
            self._do(links.create_vxlan(name, device.vxlan, mac=device.mac))

    def _set_addresses(self, name: str, ifindex: int, wanted: frozenset[str]) -> None:
        held = self._addresses(name, ifindex)
        for cidr in sorted(wanted - held):
            self._do(addresses.add(ifindex, cidr, nodad=True))
        for cidr in sorted(held - wanted):
            self._do(addresses.delete(ifindex, cidr), ignore=errno.EADDRNOTAVAIL)

    def _addresses(self, name: str, ifindex: int) -> frozenset[str]:
        """Of the device's own IP version, without the address the kernel gives every link."""
        family = AF_INET6 if name == VXLAN[6] else AF_INET
        found = addresses.dump(self._netlink, family, ifindex)
        return frozenset(one.cidr for one in found if not one.address.startswith("fe80:"))


def _mac(name: str, link: Link) -> str:
    return "" if name == IPIP else link.mac


def _alterable(link: Link, device: Device) -> bool:
    """Whether the device that is there can become the wanted one."""
    if device.vxlan is None:
        return link.kind == "ipip"
    return link.vxlan == device.vxlan and link.mac == device.mac


def _why(err: KernelError, kind: str) -> str:
    if err.errno == errno.EOPNOTSUPP:
        return f"{err}: this kernel has no {kind.upper()} tunnels (kernel module {_MODULES[kind]})"
    return str(err)
