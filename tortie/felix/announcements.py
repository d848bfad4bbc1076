"""Hears the guests of workloads announce themselves: gratuitous ARP and RARP on their interfaces. An edge.

One packet socket for each interface that is listened on, with a filter in the kernel for the two protocols:
other packets are not even copied. It is closed with the first announcement.
(Reference: felix/dataplane/linux/live_migration.go, isGARPOrRARP.)
"""

import asyncio
import ctypes
import logging
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tortie.felix.calc.model import WorkloadId
from tortie.felix.dataplane.interfaces import Interface

_log = logging.getLogger(__name__)

_ALL, _ARP, _RARP = 0x0003, 0x0806, 0x8035  # linux/if_ether.h
_OUTGOING = 4  # linux/if_packet.h: what we send ourselves
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_ETHERTYPE = 12  # its offset in a frame
_LONGEST = 64  # bytes that are looked at: an Ethernet header and ARP for IPv4 are 42
_FILTER = (  # BPF reads in network order; jumps count the steps left out
    (0x28, 0, 0, _ETHERTYPE),
    (0x15, 1, 0, _ARP),
    (0x15, 0, 1, _RARP),
    (0x06, 0, 0, _LONGEST),
    (0x06, 0, 0, 0),
)


def announces(frame: bytes) -> bool:
    """Whether a frame is RARP, or ARP that asks for, or tells, the address it comes from."""
    (ethertype,) = struct.unpack_from("!H", frame, _ETHERTYPE) if len(frame) >= _ETHERTYPE + 2 else (0,)
    if ethertype == _RARP:
        return True
    packet = frame[_ETHERTYPE + 2 :]
    if ethertype != _ARP or len(packet) < 8:
        return False
    hardware, protocol = packet[4], packet[5]  # lengths of the addresses of both kinds
    sender = packet[8 + hardware : 8 + hardware + protocol]
    target = packet[8 + 2 * hardware + protocol : 8 + 2 * (hardware + protocol)]
    return bool(sender) and sender == target


@dataclass(frozen=True, slots=True)
class _Ear:
    ifindex: int
    socket: socket.socket


class Listener:
    """`heard(workload)` is called once for each that is listened for, on its announcement."""

    def __init__(self, heard: Callable[[WorkloadId], None]) -> None:
        self._heard = heard
        self._ears: dict[WorkloadId, _Ear] = {}
        self._deaf: dict[WorkloadId, str] = {}  # who cannot be listened for -> why, as last told

    def follow(self, wanted: Mapping[WorkloadId, Interface]) -> None:
        """Listen for these workloads on their interfaces, and for no others."""
        for ident, ear in list(self._ears.items()):
            interface = wanted.get(ident)
            if interface is None or interface.ifindex != ear.ifindex:
                self._close(ident)
        self._deaf = {ident: why for ident, why in self._deaf.items() if ident in wanted}
        for ident, interface in wanted.items():
            if ident not in self._ears:
                self._open(ident, interface)

    def close(self) -> None:
        self.follow({})

    def _open(self, ident: WorkloadId, interface: Interface) -> None:
        try:
            opened = _listening(interface.name)
        except OSError as err:  # the next change of an interface is the next try, and that it is gone is one
            if self._deaf.get(ident) != str(err):
                _log.warning("cannot hear %s announce itself on %s: %s", ident, interface.name, err)
                self._deaf[ident] = str(err)
            return
        self._deaf.pop(ident, None)
        self._ears[ident] = _Ear(interface.ifindex, opened)
        asyncio.get_running_loop().add_reader(opened, self._read, ident, opened)

    def _close(self, ident: WorkloadId) -> None:
        ear = self._ears.pop(ident)
        asyncio.get_running_loop().remove_reader(ear.socket)
        ear.socket.close()

    def _read(self, ident: WorkloadId, listening: socket.socket) -> None:
        try:
            frame, (_name, _protocol, direction, *_more) = listening.recvfrom(_LONGEST)
        except OSError:  # the interface went down; if it is gone, follow() will be told
            return
        if direction != _OUTGOING and announces(frame):
            self._close(ident)
            self._heard(ident)


def _listening(interface: str) -> socket.socket:
    """Raises OSError."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _FILTER))
        program = struct.pack("HP", len(_FILTER), ctypes.addressof(code))
        opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        opened.bind((interface, _ALL))  # not before: nothing else is to wait in its queue
    except OSError:
        opened.close()
        raise
    return opened
