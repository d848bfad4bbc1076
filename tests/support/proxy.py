"""A TCP proxy that fails on command: what networks, firewalls and load balancers do to a connection."""

import asyncio
import contextlib
import socket
import struct


class Proxy:
    """Forwards to one endpoint. Use within `async with`; `endpoint` is what clients are given."""

    def __init__(self, endpoint: str) -> None:
        scheme, _, address = endpoint.partition("://")
        self._target = (address.rpartition(":")[0], int(address.rpartition(":")[2]))
        self._scheme = scheme
        self._server: asyncio.Server | None = None
        self._links: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._forgotten: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoint = ""
        self.accepted = 0  # connections ever
        self.answered = 0  # bytes passed on to clients
        self.swallow_replies = False  # requests arrive, answers are lost
        self.swallow_requests = False
        self.refuse = False  # hang up on every new connection
        self.delay = 0.0  # seconds that every piece is under way
        self.cut_every = 0  # reset all connections at every so-manieth piece that a client sends ...
        self._pieces = 0  # ... by turns before and after it is passed on

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"{self._scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """Open at present."""
        return len(self._links)

    def forget(self) -> None:
        """What goes through the present connections is lost from now on; new ones work."""
        self._forgotten = list(self._links)

    def cut(self) -> None:
        """Reset all connections."""
        for pair in self._links:
            for writer in pair:
                reset(writer)
        self._links = []

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuse:
            reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            reset(writer)
            return
        pair = (writer, far_writer)
        self._links.append(pair)
        for source, target, back in ((reader, far_writer, False), (far_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, target, back, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        back: bool,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                cut, passed = (False, not self.swallow_replies) if back else self._request()
                if self.delay:
                    await asyncio.sleep(self.delay)
                if passed and pair not in self._forgotten:
                    target.write(data)
                    await target.drain()
                    self.answered += len(data) if back else 0
                if cut:
                    self.cut()
        if pair in self._links:
            self._links.remove(pair)
        for writer in pair:
            writer.close()

    def _request(self) -> tuple[bool, bool]:
        """Whether to cut the connections at this piece, and whether it gets through."""
        self._pieces += 1
        if self.cut_every and self._pieces % self.cut_every == 0:
            return True, self._pieces // self.cut_every % 2 == 0
        return False, not self.swallow_requests


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class DeafListener:
    """A listener whose accept queue is full: the kernel drops every further SYN to it.

    With `accepting` the queue has room: connections are established and never answered.
    """

    def __init__(self, accepting: bool = False) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(100 if accepting else 0)
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._fillers: list[socket.socket] = []
        for _ in range(0 if accepting else 4):  # a queue of 0 takes one; more only wait as SYNs
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(self._socket.getsockname())
            self._fillers.append(filler)

    def __enter__(self) -> "DeafListener":
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (*self._fillers, self._socket):
            sock.close()
