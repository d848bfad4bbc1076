"""A BGP speaker that says whatever a test wants it to, and checks nothing that it is told.

Messages are built by RFC 4271, 4.1-4.3; four-octet AS numbers (RFC 6793) are negotiated.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from tests.netns_lab import Namespace

OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4
_MARKER = b"\xff" * 16
_LARGEST = 4096  # octets of a message
_PATIENCE = 240.0  # seconds for the other side to answer, and to take what is said to it
_PAUSE = 20.0  # seconds between two keep-alives


def message(kind: int, body: bytes = b"", marker: bytes = _MARKER, length: int | None = None) -> bytes:
    """`length`: what the header claims, the true one by default."""
    return marker + struct.pack("!HB", 19 + len(body) if length is None else length, kind) + body


def attribute(code: int, value: bytes, flags: int = 0x40) -> bytes:
    if len(value) > 255:
        return struct.pack("!BBH", flags | 0x10, code, len(value)) + value
    return struct.pack("!BBB", flags, code, len(value)) + value


def origin(value: int = 0) -> bytes:
    return attribute(1, bytes([value]))


def as_path(*numbers: int) -> bytes:
    """One sequence for each 255."""
    parts = [numbers[start : start + 255] for start in range(0, len(numbers), 255)]
    return attribute(2, b"".join(struct.pack(f"!BB{len(p)}I", 2, len(p), *p) for p in parts))


def next_hop(address: str) -> bytes:
    return attribute(3, IPv4Address(address).packed)


def nlri(prefix: str) -> bytes:
    net = IPv4Network(prefix)
    return bytes([net.prefixlen]) + net.network_address.packed[: (net.prefixlen + 7) // 8]


def update(attributes: bytes = b"", announced: bytes = b"", withdrawn: bytes = b"") -> bytes:
    body = struct.pack("!H", len(withdrawn)) + withdrawn + struct.pack("!H", len(attributes)) + attributes
    return message(UPDATE, body + announced)


def packed(attributes: bytes, prefixes: Iterable[bytes]) -> Iterator[bytes]:
    """As few UPDATEs as can be for prefixes (as nlri() has them) with the same attributes."""
    room = _LARGEST - 23 - len(attributes)
    told = bytearray()
    for one in prefixes:
        if len(told) + len(one) > room:
            yield update(attributes, bytes(told))
            told.clear()
        told += one
    if told:
        yield update(attributes, bytes(told))


class RawSpeaker:
    """One session with a node, dialled by us. After start() it is Established."""

    def __init__(self, ns: Namespace, own: str, node: str, asn: int, hold_time: int = 90) -> None:
        self._ns, self._own, self._node, self._asn, self._hold_time = ns, own, node, asn, hold_time
        self._talking, self._over = threading.Lock(), threading.Event()
        self.socket = self.dial()

    def dial(self) -> socket.socket:
        """A bare connection."""
        made = self._ns.call(
            socket.create_connection, (self._node, 179), _PATIENCE, source_address=(self._own, 0)
        )
        made.settimeout(_PATIENCE)
        return made

    def start(self) -> "RawSpeaker":
        self.socket.sendall(self.open())
        while self._receive() != KEEPALIVE:
            pass
        self.socket.sendall(message(KEEPALIVE))
        return self

    def open(self) -> bytes:
        four_octets = struct.pack("!BBI", 65, 4, self._asn)
        families = b"".join(struct.pack("!BBHBB", 1, 4, afi, 0, 1) for afi in (1,))
        optional = struct.pack("!BB", 2, len(four_octets + families)) + four_octets + families
        body = struct.pack("!BHH4sB", 4, 23456, self._hold_time, IPv4Address(self._own).packed, len(optional))
        return message(OPEN, body + optional)

    def keep_alive(self) -> "RawSpeaker":
        """From now on no session ends by its hold time, however long a busy machine makes it last."""
        threading.Thread(target=self._keep_alive, daemon=True).start()
        return self

    def _keep_alive(self) -> None:
        while not self._over.wait(_PAUSE):
            with contextlib.suppress(OSError):  # it has ended
                self.say(message(KEEPALIVE))

    def say(self, *messages: bytes) -> None:
        with self._talking:
            self.socket.sendall(b"".join(messages))

    def is_over(self) -> bool:
        """Whether the node has ended the session; what it said is thrown away."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self._over.set()
        self.socket.close()

    def _receive(self) -> int:
        header = self._exactly(19)
        length, kind = struct.unpack("!HB", header[16:])
        self._body = self._exactly(length - 19)
        return int(kind)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError("the node closed the connection")
            data += more
        return data


def dial_until_up(ns: Namespace, own: str, node: str, asn: int) -> RawSpeaker:
    """A session, as soon as the node takes one: it may still be busy with the last."""
    deadline = time.monotonic() + 2 * _PATIENCE
    while True:
        speaker = None
        try:
            speaker = RawSpeaker(ns, own, node, asn)
            return speaker.start()
        except (OSError, EOFError):
            if speaker is not None:
                speaker.close()
            if time.monotonic() > deadline:
                raise
