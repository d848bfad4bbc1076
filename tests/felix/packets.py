"""Real packets, made by hand: single first packets of connections, and ears where they arrive.

A packet is known by a number of its own (source port, or echo sequence), so that hundreds can be on their
way at once and one look tells which of them came through.
"""

import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping

from tests.netns_lab import Namespace
from tortie.felix.rules.evaluate import Packet
from tortie.lab.echo import BUFFER, SO_RCVBUFFORCE

_ICMP, _TCP, _UDP, _ICMPV6, _SCTP = 1, 6, 17, 58, 132
_PROTOCOLS = {4: (_ICMP, _TCP, _UDP, _SCTP), 6: (_ICMPV6, _TCP, _UDP, _SCTP)}
_MOMENT, _PATIENCE = 0.15, 60.0  # seconds for what should not arrive, and for what should
_CHECKSUM_AT = {_TCP: 16, _UDP: 6, _ICMPV6: 2}  # protocol -> offset of the checksum in its header

Identity = tuple[int, int, int]
"""(IP version, protocol, source port or echo number)"""


def payload(packet: Packet, number: int) -> bytes:
    """The transport header that opens a connection."""
    if packet.protocol == _TCP:
        body = struct.pack("!HHIIBBHHH", packet.sport, packet.dport, number, 0, 5 << 4, 2, 64000, 0, 0)
    elif packet.protocol == _UDP:
        body = struct.pack("!HHHH", packet.sport, packet.dport, 12, 0) + number.to_bytes(4, "big")
    elif packet.protocol == _SCTP:
        chunk = struct.pack("!BBHIIHHI", 1, 0, 20, number, 64000, 1, 1, number)  # INIT
        head = struct.pack("!HHI", packet.sport, packet.dport, 0)
        check = struct.pack("<I", _crc32c(head + b"\0\0\0\0" + chunk))
        return head + check + chunk
    else:
        kind, code = packet.icmp or (0, 0)
        body = struct.pack("!BBHHH", kind, code, 0, number, 1)
    return _summed(packet, body)


def _summed(packet: Packet, body: bytes) -> bytes:
    at = 2 if packet.protocol == _ICMP else _CHECKSUM_AT[packet.protocol]
    family = socket.AF_INET6 if packet.version == 6 else socket.AF_INET
    pseudo = b""
    if packet.protocol != _ICMP:
        ends = socket.inet_pton(family, packet.src) + socket.inet_pton(family, packet.dst)
        pseudo = ends + struct.pack("!II", len(body), packet.protocol)
    words = pseudo + body + (b"\0" if len(body) % 2 else b"")
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return body[:at] + struct.pack("!H", ~total & 0xFFFF) + body[at + 2 :]


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Mouth:
    """Sends from one namespace, each packet with the source address it says."""

    def __init__(self, ns: Namespace) -> None:
        self._ns = ns
        self._sockets: dict[tuple[str, int], socket.socket] = {}  # (source, protocol) -> socket

    def send(self, packet: Packet, number: int) -> None:
        key = (packet.src, packet.protocol)
        if key not in self._sockets:
            self._sockets[key] = raw_socket(self._ns, packet.version, packet.protocol)
            self._sockets[key].bind((packet.src, 0))
        try:
            self._sockets[key].sendto(payload(packet, number), (packet.dst, 0))
        except PermissionError:  # the namespace's own rules: as good as dropped on the way
            return

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()


class Ear:
    """Hears all that is delivered inside one namespace, after its own rules let it in."""

    def __init__(self, ns: Namespace, *only: int) -> None:
        """`only`: these protocols, not all that a packet can be of."""
        self.sockets: dict[socket.socket, tuple[int, int]] = {}  # -> (IP version, protocol)
        for version, protocols in _PROTOCOLS.items():
            for protocol in only or protocols:
                one = raw_socket(ns, version, protocol)
                one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
                one.setblocking(False)
                self.sockets[one] = (version, protocol)

    def _headers(self, one: socket.socket) -> Iterator[bytes]:
        """What has arrived, from the transport header on."""
        while True:
            try:
                data = one.recv(2048)
            except BlockingIOError:
                return
            yield data[(data[0] & 15) * 4 :] if self.sockets[one][0] == 4 else data

    def read(self, one: socket.socket) -> Iterator[Identity]:
        version, protocol = self.sockets[one]
        for header in self._headers(one):
            if protocol not in (_ICMP, _ICMPV6):
                yield version, protocol, int.from_bytes(header[:2], "big")
            elif header[0] in (8, 128):
                yield version, protocol, int.from_bytes(header[4:6], "big")

    def numbers(self, one: socket.socket) -> Iterator[int]:
        """Of datagrams (UDP), as payload() wrote them."""
        return (int.from_bytes(header[8:12], "big") for header in self._headers(one))

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def raw_socket(ns: Namespace, version: int, protocol: int) -> socket.socket:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return ns.call(socket.socket, family, socket.SOCK_RAW, protocol)


def identity(packet: Packet, number: int) -> Identity:
    return packet.version, packet.protocol, number if packet.icmp else packet.sport


def heard(ears: Mapping[str, Ear], wanted: Mapping[str, set[Identity]]) -> dict[str, set[Identity]]:
    """What each ear heard, until all that is wanted came and then nothing for a moment, or for long.

    Forwarding here takes microseconds, unless the machine is busy: then some of it is left to a thread.
    """
    found: dict[str, set[Identity]] = {name: set() for name in ears}
    owners = {one: name for name, ear in ears.items() for one in ear.sockets}
    deadline = time.monotonic() + _PATIENCE
    while True:
        complete = all(found[name] >= those for name, those in wanted.items())
        silence = _MOMENT if complete else max(0.0, deadline - time.monotonic())
        ready = select.select(list(owners), (), (), silence)[0]
        if not ready:
            return found
        for one in ready:
            found[owners[one]].update(ears[owners[one]].read(one))
        assert not complete or time.monotonic() < deadline, "it never gets quiet"
