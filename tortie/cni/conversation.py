"""One connection of a shim: receives its request and namespace, runs programs through it, answers it.

The frames are wire.py's. Descriptors come with SCM_RIGHTS, which asyncio's streams would drop, so the
socket is read here. A shim that goes away (the runtime killed it) is noticed at once: `gone` is set,
and whoever waits for it gets a PeerError.
"""

import asyncio
import contextlib
import os
import socket
from struct import Struct

from tortie.cni import wire
from tortie.cni.wire import Request
from tortie.core.errors import PeerError

_CREDENTIALS = Struct("=iII")  # struct ucred: pid, uid, gid
_DESCRIPTOR = Struct("=i")
_CHUNK = 64 * 1024
_ANCILLARY = socket.CMSG_SPACE(4 * 4)  # room for more descriptors than a shim sends, so that none leak


class Conversation:
    """`namespace` is the open descriptor of CNI_NETNS, None if there is none; it is closed with this."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._frames: asyncio.Queue[tuple[bytes, bytes] | PeerError] = asyncio.Queue()
        self._pending = bytearray()  # frames that go out with the next one
        self.namespace: int | None = None
        self.gone = asyncio.Event()
        self._loop.add_reader(connection, self._on_readable)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self.namespace is not None:
            os.close(self.namespace)
            self.namespace = None

    @property
    def peer_uid(self) -> int:
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(data)[1])

    async def request(self) -> Request:
        """The one request. Raises PeerError if something else comes, or nothing."""
        return wire.decode_request(await self._next(wire.REQUEST))

    async def execute(self, name: str, environment: dict[str, str], stdin: bytes) -> tuple[int, bytes]:
        """Run another plugin where the shim runs; (exit status, output) as wire.decode_done()."""
        await self._send(wire.encode_execute(name, environment, stdin))
        return wire.decode_done(await self._next(wire.DONE))

    def complain(self, text: str) -> None:
        """A line for the shim's standard error; it goes out with what is sent next."""
        self._pending += wire.frame(wire.ERRORS, text.encode("utf-8", "replace"))

    async def finish(self, output: bytes, status: int) -> None:
        """Print `output` and exit. Raises PeerError if the shim will never know."""
        answer = wire.frame(wire.OUTPUT, output) if output else b""
        await self._send(answer + wire.frame(wire.QUIT, bytes([status])))

    # --- plumbing -------------------------------------------------------------------------------

    async def _send(self, data: bytes) -> None:
        if self.gone.is_set():
            raise PeerError("the CNI shim went away")
        data = bytes(self._pending) + data
        self._pending.clear()
        try:
            await self._loop.sock_sendall(self._socket, data)
        except OSError as err:
            raise PeerError(f"the CNI shim went away: {err.strerror}") from err

    async def _next(self, expected: bytes) -> bytes:
        found = await self._frames.get()
        if isinstance(found, PeerError):
            self._frames.put_nowait(found)  # whoever asks again gets the same answer
            raise found
        kind, payload = found
        if kind != expected:
            raise PeerError(f"CNI shim sent {kind!r} where {expected!r} was due")
        return payload

    def _on_readable(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as err:
            self._end(PeerError(f"the CNI shim went away: {err.strerror}"))
            return
        self._keep_descriptors(ancillary)
        if not data:
            self._end(PeerError("the CNI shim went away"))
            return
        self._buffer += data
        try:
            self._take_frames()
        except PeerError as err:
            self._end(err)

    def _keep_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level != socket.SOL_SOCKET or kind != socket.SCM_RIGHTS:
                continue
            for (descriptor,) in _DESCRIPTOR.iter_unpack(data[: len(data) & ~3]):
                if self.namespace is None:
                    self.namespace = descriptor
                else:
                    os.close(descriptor)

    def _take_frames(self) -> None:
        size = wire.HEADER.size
        while len(self._buffer) >= size:
            kind, length = wire.header(bytes(self._buffer[:size]))
            if len(self._buffer) < size + length:
                return
            self._frames.put_nowait((kind, bytes(self._buffer[size : size + length])))
            del self._buffer[: size + length]

    def _end(self, err: PeerError) -> None:
        with contextlib.suppress(ValueError):
            self._loop.remove_reader(self._socket)
        self._frames.put_nowait(err)
        self.gone.set()
