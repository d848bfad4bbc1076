"""Single packets of any IP protocol from one network namespace to another, and which of them arrived.

The receiving end is asked, not the sender: Listeners has sockets in the namespaces of servers. A TCP
connection has arrived when it is established, anything else when its first packet is there. Nothing is
answered, so that no connection but TCP's counts as established: every packet is one that rules decide.
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from tortie.linux import netns

TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
_MARK = b"tortie-packet:"  # before the number of an attempt, in what is sent
_LOOK = 0.05  # seconds for packets to come in before those that did are compared with what is wanted
_LINGER_NONE = struct.pack("ii", 1, 0)  # close with a reset: no port stays busy


@dataclass(frozen=True, slots=True)
class Attempt:
    """One packet, or one TCP connection. `client` and `server` are open fds of network namespaces.

    Without a `source_port` the kernel chooses one; ICMP uses it as the identifier.
    """

    client: int
    server: int
    address: str
    protocol: int = TCP
    port: int = 0
    source_port: int = 0
    icmp: tuple[int, int] = (8, 0)  # type, code

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET


class Listeners:
    """Sockets that note what comes to the servers; a context manager."""

    def __init__(
        self,
        servers: Iterable[int],
        *,
        tcp: Sequence[int] = (),
        udp: Sequence[int] = (),
        protocols: Sequence[int] = (),
    ) -> None:
        """`servers`: open fds of network namespaces. `protocols`: numbers other than TCP's and UDP's."""
        self._poller = select.poll()
        self._sockets: dict[int, tuple[socket.socket, int]] = {}  # fd -> (its socket, its server)
        self._connected: set[tuple[int, str, int]] = set()  # (server, address and port of the client)
        self._seen: set[tuple[int, int]] = set()  # (server, number of an attempt)
        self._number = 0
        for server in servers:
            for one in netns.call_in(server, _open_listeners, tcp, udp, protocols):
                self._sockets[one.fileno()] = one, server
                self._poller.register(one, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        for one, _server in self._sockets.values():
            one.close()

    def arrived(
        self,
        attempts: Sequence[Attempt],
        expected: Sequence[bool],
        *,
        patience: float = 20.0,
        settle: float = 0.2,
    ) -> list[bool]:
        """Which attempts arrive, in order.

        Waits at most `patience` seconds for those that are expected to, and `settle` more for any other.
        """
        self._connected.clear()
        self._seen.clear()
        first, self._number = self._number, self._number + len(attempts)
        sent = _send_all(attempts, first)
        try:
            wanted = [number for number, one in enumerate(expected) if one]
            deadline = time.monotonic() + patience
            while wanted:
                in_time = time.monotonic() < deadline
                if not (self._collect(_LOOK if in_time else 0) or in_time):
                    break  # not before: what is there counts, however late we get to look
                wanted = [n for n in wanted if not self._has(attempts[n], first + n, sent[n])]
            deadline = time.monotonic() + settle
            while (left := deadline - time.monotonic()) > 0:
                self._collect(left)
            return [self._has(one, first + n, sent[n]) for n, one in enumerate(attempts)]
        finally:
            for one in sent:
                if one is not None:
                    one.close()

    def _has(self, attempt: Attempt, number: int, sent: socket.socket | None) -> bool:
        if attempt.protocol != TCP:
            return (attempt.server, number) in self._seen
        if sent is None:
            return False
        address, port = sent.getsockname()[:2]
        return (attempt.server, address, port) in self._connected

    def _collect(self, timeout: float) -> bool:
        """One packet of each socket; whether there was any."""
        ready = self._poller.poll(timeout * 1000)
        for fd, _ in ready:
            one, server = self._sockets[fd]
            # A connection that was reset before it was taken is nobody's.
            with contextlib.suppress(OSError):
                if one.type == socket.SOCK_STREAM:
                    connection, peer = one.accept()
                    connection.close()
                    self._connected.add((server, peer[0].removeprefix("::ffff:"), peer[1]))
                else:
                    self._note(server, one.recv(2048))
        return bool(ready)

    def _note(self, server: int, data: bytes) -> None:
        _, mark, rest = data.partition(_MARK)
        if mark and len(rest) >= 4:
            self._seen.add((server, int.from_bytes(rest[:4], "big")))


def _open_listeners(tcp: Sequence[int], udp: Sequence[int], protocols: Sequence[int]) -> list[socket.socket]:
    opened = [
        socket.create_server(("::", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
        for port in tcp
    ]
    for port in udp:
        one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind(("::", port))
        opened.append(one)
    for protocol in protocols:
        if protocol != ICMP6:
            opened.append(socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
        if protocol != ICMP:
            opened.append(socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol))
    for one in opened:
        one.setblocking(False)
    return opened


# --- sending ------------------------------------------------------------------------------------


def _send_all(attempts: Sequence[Attempt], first: int) -> list[socket.socket | None]:
    """The socket of each TCP attempt; the others' are closed again, their packet is all there is."""
    by_client: defaultdict[int, list[int]] = defaultdict(list)
    for index, attempt in enumerate(attempts):
        by_client[attempt.client].append(index)
    sent: list[socket.socket | None] = [None] * len(attempts)

    def send(indices: list[int]) -> None:
        for index in indices:
            sent[index] = _send(attempts[index], first + index)

    for client, indices in by_client.items():
        netns.call_in(client, send, indices)
    return sent


def _send(attempt: Attempt, number: int) -> socket.socket | None:
    if attempt.protocol == TCP:
        connection = _bound(attempt, socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        connection.connect_ex((attempt.address, attempt.port))
        return connection
    mark = _MARK + number.to_bytes(4, "big")
    if attempt.protocol == UDP:
        one = _bound(attempt, socket.SOCK_DGRAM)
        data, target = mark, (attempt.address, attempt.port)
    else:
        one = socket.socket(attempt.family, socket.SOCK_RAW, attempt.protocol)
        data, target = _raw(attempt, mark), (attempt.address, 0)
    # A rule of the own host can refuse it: then it does not arrive, which is what is asked.
    with one, contextlib.suppress(OSError):
        one.sendto(data, target)
    return None


def _bound(attempt: Attempt, kind: socket.SocketKind) -> socket.socket:
    one = socket.socket(attempt.family, kind)
    if attempt.family == socket.AF_INET6:  # else it would take IPv4's port as well
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(("", attempt.source_port))
    return one


def _raw(attempt: Attempt, mark: bytes) -> bytes:
    match attempt.protocol:
        case 1:
            return _icmp(attempt, mark)
        case 58:
            kind, code = attempt.icmp  # the kernel fills in the checksum, which covers addresses
            return struct.pack("!BBHHH", kind, code, 0, attempt.source_port, 1) + mark
        case 132:
            return _sctp_init(attempt, mark)
    return mark


def _icmp(attempt: Attempt, mark: bytes) -> bytes:
    """RFC 792: type, code, checksum, identifier, sequence number."""
    kind, code = attempt.icmp
    rest = struct.pack("!HH", attempt.source_port, 1) + mark
    total = sum(struct.unpack(f"!{len(rest) // 2}H", rest)) + (kind << 8) + code
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", kind, code, ~total & 0xFFFF) + rest


def _sctp_init(attempt: Attempt, mark: bytes) -> bytes:
    """An INIT chunk (RFC 9260, section 3.3.2): connection tracking knows an association by it.

    The mark is a parameter of a type that receivers skip (the two highest bits, section 3.2.1).
    """
    padded = mark + bytes(-len(mark) % 4)
    parameter = struct.pack("!HH", 0x8000, 4 + len(mark)) + padded
    body = os.urandom(3) + b"\1" + struct.pack("!IHHI", 65536, 1, 1, 1) + parameter
    chunk = struct.pack("!BBH", 1, 0, 4 + len(body)) + body
    head = struct.pack("!HHI", attempt.source_port, attempt.port, 0)
    checksum = crc32c(head + bytes(4) + chunk).to_bytes(4, "little")
    return head + checksum + chunk


def crc32c(data: bytes) -> int:
    """SCTP's checksum (RFC 9260, appendix A), bit by bit: our packets are short."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF
