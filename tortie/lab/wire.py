"""What is really on the wire between machines: every packet between two pods, and how it is wrapped.

Listens in the lab's own namespace, through which all machines are connected, and decodes as much as the
question needs: who talks to whom inside, and what is around it.
"""

import socket
import struct
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import NamedTuple

from tortie.lab import echo
from tortie.lab.traffic import Running

_ALL = 3  # ETH_P_ALL
_IPV4, _IPV6 = 0x0800, 0x86DD
_IPIP, _IPV6_IN, _UDP = 4, 41, 17
VXLAN_PORT = 4789
_WIREGUARD_TYPES = range(1, 5)  # of messages, each followed by three zero bytes (WireGuard's paper, 5.4)


class Wrapping(NamedTuple):
    """`kind`: plain, ipip, vxlan or wireguard; with the outer addresses, the VNI and the outer port."""

    kind: str = "plain"
    source: str = ""
    destination: str = ""
    vni: int = 0
    port: int = 0


class _Packet(NamedTuple):
    source: str
    destination: str
    protocol: int
    payload: bytes


def unwrap(frame: bytes) -> tuple[str, str, Wrapping] | None:
    """(source, destination, wrapping) of the innermost packet of an Ethernet frame; None if it has none.

    What WireGuard encrypts cannot be seen: its packets are those of the nodes that exchange them.
    """
    outer = _packet(frame)
    if outer is None:
        return None
    around = outer.source, outer.destination
    if outer.protocol in (_IPIP, _IPV6_IN):
        inner = _ip(outer.payload)
        return inner and (inner.source, inner.destination, Wrapping("ipip", *around))
    if outer.protocol == _UDP and len(outer.payload) >= 16:
        (port,) = struct.unpack_from("!H", outer.payload, 2)
        flags, vni = struct.unpack_from("!B3xI", outer.payload, 8)  # RFC 7348, section 5
        inner = _packet(outer.payload[16:]) if flags == 0x08 else None
        if inner is not None:
            return inner.source, inner.destination, Wrapping("vxlan", *around, vni >> 8, port)
        if outer.payload[8] in _WIREGUARD_TYPES and outer.payload[9:12] == bytes(3):
            return *around, Wrapping("wireguard", *around, 0, port)
    return outer.source, outer.destination, Wrapping()


def _packet(frame: bytes) -> _Packet | None:
    if len(frame) < 34 or struct.unpack_from("!H", frame, 12)[0] not in (_IPV4, _IPV6):
        return None
    return _ip(frame[14:])


def _ip(data: bytes) -> _Packet | None:
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        head = (data[0] & 15) * 4
        source, destination = (socket.inet_ntop(socket.AF_INET, data[i : i + 4]) for i in (12, 16))
        return _Packet(source, destination, data[9], data[head:])
    if version == 6 and len(data) >= 40:
        source, destination = (socket.inet_ntop(socket.AF_INET6, data[i : i + 16]) for i in (8, 24))
        return _Packet(source, destination, data[6], data[40:])
    return None


class Capture(Running):
    """A context manager; afterwards `seen` has what there was between the addresses of interest."""

    def __init__(self, addresses: Collection[str]) -> None:
        self._addresses = frozenset(addresses)
        self._seen: defaultdict[tuple[str, str], set[Wrapping]] = defaultdict(set)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, echo.SO_RCVBUFFORCE, echo.BUFFER)
        self._socket.settimeout(0.05)
        super().__init__()

    @property
    def seen(self) -> Mapping[tuple[str, str], frozenset[Wrapping]]:
        """(source, destination) -> every wrapping in which a packet went that way."""
        return {pair: frozenset(found) for pair, found in self._seen.items()}

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, err, trace)
        self._socket.close()

    def _loop(self) -> None:
        """What was sent before the end is in the socket's buffer by then: read until that is empty."""
        stopped = 0.0
        while not stopped or time.monotonic() < stopped + 1.0:
            try:
                found = unwrap(self._socket.recv(65535))
            except TimeoutError:
                if stopped:
                    return
            else:
                if found is not None and {found[0], found[1]} <= self._addresses:
                    self._seen[found[0], found[1]].add(found[2])
            if self._stop.is_set() and not stopped:
                stopped = time.monotonic()
