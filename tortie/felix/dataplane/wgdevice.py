"""A WireGuard device and its peers: how they should be, and the targets that make them so.

The private key is made here, given to the kernel and forgotten: it lives in the device and nowhere else, so a
restarted felix finds it there, and a device that was deleted comes back as somebody new.
(Reference: dataplane sheet 3.6; felix/wireguard/wireguard.go.)
"""

import errno
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from socket import AF_INET, AF_INET6

from tortie.core.errors import KernelError
from tortie.core.files import read_or_none
from tortie.felix.dataplane.duty import Duty
from tortie.linux import addresses, links
from tortie.linux import wireguard as wg
from tortie.linux.codec import Message
from tortie.linux.links import Link
from tortie.linux.netlink import NetlinkSocket

_GONE = (errno.ENODEV, errno.EOPNOTSUPP)  # the device went, or another kind came, since the link was read


@dataclass(frozen=True, slots=True)
class Device:
    """`addresses` are CIDRs. `mark`: of the packets it sends, so that they do not come back to it."""

    mtu: int
    port: int
    mark: int
    addresses: frozenset[str] = frozenset()
    keyed: bool = True
    up: bool = True


def read_device(door: wg.Wireguard, name: str) -> wg.Device | None:
    """None if it is gone. Raises KernelError."""
    try:
        return door.read(name)
    except KernelError as err:
        if err.errno in _GONE:
            return None
        raise


def was_ours(held: wg.Device, mark: int, port: int, published: str) -> bool:
    """Whether a device had our part before its name was changed: it has our `mark` (0: none), and what nobody
    else can have beside us, our `port` or the key that is `published` as this node's. Pure."""
    return 0 < held.mark == mark and (held.port == port or held.public_key == published != "")


Devices = Duty[str, Device]
Peers = Duty[str, wg.Peer]


class DeviceTarget:
    """reconcile.Target[str, Device] for the device of one IP version, by name.

    Another device that was_ours() goes, unless it is among those that are `spared`. `published()`: the key
    that is known as this node's. `random`: bytes for a private key that nobody can guess, as many as it is
    asked for.
    """

    def __init__(
        self,
        netlink: NetlinkSocket,
        door: wg.Wireguard,
        name: str,
        version: int,
        *,
        spared: Collection[str] = (),
        mark: int = 0,
        port: int = 0,
        published: Callable[[], str] = str,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._netlink, self._door, self._name, self._random = netlink, door, name, random
        self._spared, self._mark, self._port, self._published = spared, mark, port, published
        self._family = AF_INET if version == 4 else AF_INET6
        self.ifindex = 0  # 0: there is none
        self.public_key = ""  # as last seen; '' while the device cannot receive

    async def read(self) -> Mapping[str, Device]:
        found: dict[str, Device] = {}
        own = 0, ""
        for link in links.dump(self._netlink):
            if link.kind == wg.KIND and (link.name == self._name or link.name not in self._spared):
                held = read_device(self._door, link.name)
                if held is not None and (link.name == self._name or self._was_ours(held)):
                    found[link.name] = self._seen(link, held)
                    if link.name == self._name and link.up:
                        own = link.ifindex, held.public_key
        self.ifindex, self.public_key = own  # not before all was read: a read that fails changes nothing
        return found

    def _was_ours(self, held: wg.Device) -> bool:
        return was_ours(held, self._mark, self._port, self._published())

    def _seen(self, link: Link, held: wg.Device) -> Device:
        held_addresses = self._addresses(link.ifindex)
        return Device(link.mtu, held.port, held.mark, held_addresses, bool(held.public_key), link.up)

    def same(self, desired: Device, actual: Device) -> bool:
        return desired == actual

    async def apply(self, update: Mapping[str, Device], delete: Collection[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        for name in delete:
            try:
                self._do(links.delete(name), ignore=errno.ENODEV)
                if name == self._name:
                    self.ifindex, self.public_key = 0, ""
            except KernelError as err:
                failed[name] = str(err)
        for name, device in update.items():
            try:
                self._make(name, device)
            except KernelError as err:
                failed[name] = _why(err)
        return failed

    # --- one device -----------------------------------------------------------------------------

    def _make(self, name: str, device: Device) -> None:
        """A device whose MTU or address the kernel refuses carries packets all the same: that is told last.

        Raises KernelError.
        """
        link = self._link(name)
        if link.ifindex != self.ifindex or not link.up:
            self.ifindex, self.public_key = 0, ""
        held = self._door.read(name)
        private_key = None if held.public_key else self._random(wg.KEY_SIZE)
        if private_key is not None or (held.port, held.mark) != (device.port, device.mark):
            self._door.set_device(name, private_key=private_key, port=device.port, mark=device.mark)
        refused = self._set_addresses(link.ifindex, device.addresses)
        if not link.up:
            self._do(links.change(name, up=True))
        self.ifindex, self.public_key = link.ifindex, self._door.read(name).public_key
        if link.mtu != device.mtu:
            self._do(links.change(name, mtu=device.mtu))
        if refused is not None:
            raise refused

    def _link(self, name: str) -> Link:
        """The link, made if it is not there."""
        link = links.get(self._netlink, name)
        if link is None:
            self._do(links.create(name, wg.KIND))
            link = links.get(self._netlink, name)
        if link is None:
            raise KernelError("set up", name, errno.ENODEV, "it was deleted at once")
        if link.kind != wg.KIND:
            raise KernelError("set up", name, errno.EEXIST, f"there is a {link.kind or 'link'} of this name")
        return link

    def _set_addresses(self, ifindex: int, wanted: frozenset[str]) -> KernelError | None:
        """Why one of them cannot be had, or got rid of. An old one stays until the new one is there."""
        held = self._addresses(ifindex)
        try:
            for cidr in sorted(wanted - held):
                self._do(addresses.add(ifindex, cidr, nodad=True))
            for cidr in sorted(held - wanted):
                self._do(addresses.delete(ifindex, cidr), ignore=errno.EADDRNOTAVAIL)
        except KernelError as err:
            return err
        return None

    def _addresses(self, ifindex: int) -> frozenset[str]:
        found = addresses.dump(self._netlink, self._family, ifindex)
        return frozenset(one.cidr for one in found if not one.address.startswith("fe80:"))

    def _do(self, message: Message, ignore: int = 0) -> None:
        (error,) = self._netlink.request([message])
        if error is not None and error.errno != ignore:
            raise error


def _why(err: KernelError) -> str:
    if err.errno == errno.EOPNOTSUPP:
        return f"{err}: this kernel has no WireGuard (kernel module wireguard), packets go unencrypted"
    return str(err)


# --- peers --------------------------------------------------------------------------------------


def changes(
    update: Mapping[str, wg.Peer], delete: Collection[str], known: Mapping[str, wg.Peer]
) -> Iterator[wg.PeerChange]:
    """What makes peers as wished of those that are there. Pure.

    An allowed IP can only be taken from a peer by writing all the others again, during which a packet may
    find none. So what is merely new is merely added.
    """
    for key in delete:
        yield wg.PeerChange(key, remove=True)
    for key, peer in update.items():
        before = known.get(key, wg.Peer())
        replaced = key not in known or not before.allowed <= peer.allowed
        moved = (peer.endpoint, peer.port) != (before.endpoint, before.port)
        yield wg.PeerChange(
            key,
            update_only=key in known,
            replace=replaced,
            endpoint=(peer.endpoint, peer.port) if moved else None,
            keepalive=peer.keepalive if peer.keepalive != before.keepalive else None,
            allowed=tuple(sorted(peer.allowed if replaced else peer.allowed - before.allowed)),
        )


class PeerTarget:
    """reconcile.Target[str, Peer] for the peers of one device, by public key."""

    def __init__(self, door: wg.Wireguard, name: str, exists: Callable[[], bool]) -> None:
        """`exists()`: whether there is such a device."""
        self._door, self._name, self._exists = door, name, exists
        self._known: dict[str, wg.Peer] = {}  # public key -> as read or written last

    async def read(self) -> Mapping[str, wg.Peer]:
        self._known = {}
        if self._exists():
            try:
                self._known = dict(self._door.read(self._name).peers)
            except KernelError as err:
                if err.errno not in _GONE:
                    raise
        return dict(self._known)

    async def apply(self, update: Mapping[str, wg.Peer], delete: Collection[str]) -> Mapping[str, str]:
        failed = self._door.set_peers(self._name, changes(update, delete, self._known))
        for key in delete:
            self._known.pop(key, None)
        self._known.update({key: peer for key, peer in update.items() if key not in failed})
        return failed

    def same(self, desired: wg.Peer, actual: wg.Peer) -> bool:
        return desired == actual


# --- threads ------------------------------------------------------------------------------------


class ThreadingTarget:
    """reconcile.Target[str, bool]: whether a device decrypts in threads of its own.

    The kernel takes it once the device has a peer. Where it has no such switch, threads are off.
    """

    def __init__(self, name: str) -> None:
        self._name, self._path = name, f"/sys/class/net/{name}/threaded"

    async def read(self) -> Mapping[str, bool]:
        try:
            return {self._name: (read_or_none(self._path) or b"0").strip() != b"0"}
        except OSError:  # the device is going
            return {self._name: False}

    async def apply(self, update: Mapping[str, bool], delete: Collection[str]) -> Mapping[str, str]:
        """What nobody wishes for any more goes with its device."""
        for name, wanted in update.items():
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, b"1" if wanted else b"0")
                finally:
                    os.close(fd)
            except OSError as err:
                reason = KernelError("write", self._path, err.errno or 0, os.strerror(err.errno or 0))
                return {name: str(reason)}
        return {}

    def same(self, desired: bool, actual: bool) -> bool:
        return desired == actual
