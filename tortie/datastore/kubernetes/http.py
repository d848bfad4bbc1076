"""HTTP/1.1 to one server: connections kept and used again, whole answers, and streams of lines.

Why not a library: those among our dependencies have none, aiohttp and httpx would bring five to eight
packages into every node's image, and the official Kubernetes client blocks and decodes into models of
its own. What an API server needs of the protocol is small: requests with a known length, answers with
a length or in chunks (RFC 9112, sections 6 and 7.1), and streams that are chunks without an end.

Every failure leaves as DatastoreUnreachable. A request is repeated here only if it is a GET and went
out on a kept connection that the server had closed meanwhile.
"""

import asyncio
import contextlib
import socket
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tortie.core.errors import ConfigError, DatastoreUnreachable, printable

_HEAD_LIMIT = 64 * 1024  # bytes of one line, chunk size or head: Go's servers send a few hundred
_BODY_LIMIT = 256 * 1024 * 1024  # bytes of one answer: a page of 500 objects of etcd's 1.5 MB is beyond it
_LINE_LIMIT = 8 * 1024 * 1024  # bytes of one event: etcd holds 1.5 MB, JSON's escapes may make it more
_IDLE = 30.0  # seconds a connection is kept; servers and balancers close after a minute or more
_AT_ONCE = 16  # calls under way at a time; each has a connection, and a burst must not open hundreds
# Lists are ten times smaller so. The server does it to what is longer than 128 KiB, and never to a watch.
_ZIPPED = {"Accept-Encoding": "gzip"}
_STREAM_BUFFER = 1024 * 1024  # bytes read ahead of who reads a stream; TCP then slows the server down


@dataclass(frozen=True, slots=True)
class Timing:
    """Patience, in seconds."""

    dial: float = 10.0
    call: float = 20.0  # for a whole answer; a page of a large list takes an idle server a second
    quiet: float = 30.0  # a stream without news for so long makes its reader ask for a sign of life


TIMING = Timing()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # lower-case name -> value
    body: bytes


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: float  # loop time of the last use; 0 before the first

    def close(self) -> None:
        self.writer.transport.abort()  # nothing is under way that the server should still get


@dataclass(slots=True)
class _Head:
    status: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def keeps(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"


class HttpClient:
    """Belongs to the event loop it is used in; in another one it starts anew."""

    def __init__(
        self, url: str, tls: Callable[[], tuple[ssl.SSLContext, str] | None], timing: Timing
    ) -> None:
        """`tls` gives the context and the name to verify ('' for the URL's host) of a new connection.

        Raises ConfigError for anything but http[s]://host[:port][/path].
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigError("k8sAPIEndpoint", url, "expected http[s]://host[:port]")
        try:
            self._port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as err:
            raise ConfigError("k8sAPIEndpoint", url, str(err)) from err
        self.url, self._host, self._path = url, parts.hostname, parts.path.rstrip("/")
        self._authority = parts.netloc
        self._tls = tls if parts.scheme == "https" else lambda: None
        self._timing = timing
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[_Connection] = []  # the most recently used last
        self._busy: set[_Held] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.heard = 0.0  # loop time at which the server last said anything

    def _here(self) -> asyncio.AbstractEventLoop:
        """The running loop, with nothing left of another one."""
        if self._closed:
            raise DatastoreUnreachable(f"the connection to {self.url} was closed")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._begin()
            self._loop = loop
        return loop

    async def close(self) -> None:
        """At once: calls and streams under way end with DatastoreUnreachable."""
        self._closed = True
        for held in self._busy:
            held.connection.close()
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    # --- calls ----------------------------------------------------------------------------------

    async def call(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """A whole answer, of any status. `target` is a path below the server's, with its query."""
        self._here()
        what = f"{method} {target.partition('?')[0]} at {self.url}"
        with _failures(what):
            async with asyncio.timeout(self._timing.call), self._slots:
                while True:
                    connection = self._kept() or await self._dial()
                    fresh = not connection.used
                    try:
                        return await self._exchange(connection, method, target, headers, body)
                    except (OSError, EOFError) as err:
                        if fresh or method != "GET" or self._closed:
                            raise _reset(what, err) from err

    async def _exchange(
        self, connection: _Connection, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        with self._holding(connection) as held:
            head = await self._ask(connection, method, target, {**headers, **_ZIPPED}, body)
            data = b"".join([part async for part in _body(connection.reader, head, _BODY_LIMIT)])
            held.keep = head.keeps
            if head.headers.get("content-encoding") == "gzip":
                data = _unzipped(data)
        return Answer(head.status, head.headers, data)

    @contextlib.asynccontextmanager
    async def stream(
        self, target: str, headers: Mapping[str, str]
    ) -> AsyncIterator[tuple[Answer, AsyncGenerator[bytes, None]]]:
        """GET: the answer's head (with the body only if it is not 200), and the lines as they come.

        Lines end without news when the server ends the stream.
        """
        self._here()
        what = f"watch {target.partition('?')[0]} at {self.url}"
        with _failures(what):
            async with asyncio.timeout(self._timing.dial):
                connection = await self._dial()
        with self._holding(connection):
            with _failures(what):
                async with asyncio.timeout(self._timing.call):
                    head = await self._ask(connection, "GET", target, headers, b"")
                    data = b""
                    if head.status != 200:
                        data = b"".join([part async for part in _body(connection.reader, head, _BODY_LIMIT)])
            lines = self._lines(connection.reader, head, what)
            async with contextlib.aclosing(lines):
                yield Answer(head.status, head.headers, data), lines

    async def _lines(
        self, reader: asyncio.StreamReader, head: _Head, what: str
    ) -> AsyncGenerator[bytes, None]:
        buffer = bytearray()
        parts = _body(reader, head, None)
        async with contextlib.aclosing(parts):
            while True:
                with _failures(what):
                    part = await anext(parts, b"")
                if not part:
                    return
                self._heard()
                searched = len(buffer)
                buffer += part
                while (end := buffer.find(b"\n", searched)) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    searched = 0
                    if line:
                        yield line
                if len(buffer) > _LINE_LIMIT:
                    raise DatastoreUnreachable(f"{what}: an event is longer than {_LINE_LIMIT} bytes")

    # --- one exchange ---------------------------------------------------------------------------

    async def _ask(
        self, connection: _Connection, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> _Head:
        lines = [f"{method} {self._path}{target} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        connection.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        await connection.writer.drain()
        head = await _head(connection.reader)
        self._heard()
        return head

    def _heard(self) -> None:
        self.heard = asyncio.get_running_loop().time()

    def _kept(self) -> _Connection | None:
        now = self._here().time()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.used < _IDLE and not connection.reader.at_eof():
                return connection
            connection.close()
        return None

    async def _dial(self) -> _Connection:
        tls = self._tls()
        context, name = tls or (None, "")
        reader, writer = await asyncio.open_connection(
            self._host,
            self._port,
            ssl=context,
            server_hostname=(name or self._host) if context else None,
            limit=_STREAM_BUFFER,
        )
        _keep_alive(writer.get_extra_info("socket"))
        return _Connection(reader, writer, 0.0)

    @contextlib.contextmanager
    def _holding(self, connection: _Connection) -> "Iterator[_Held]":
        """The connection in use; afterwards it is kept if `keep` was set, else closed."""
        held = _Held(connection)
        self._busy.add(held)
        try:
            yield held
        finally:
            self._busy.discard(held)
            if held.keep and not self._closed:
                connection.used = asyncio.get_running_loop().time()
                self._idle.append(connection)
            else:
                connection.close()


class _Held:
    def __init__(self, connection: _Connection) -> None:
        self.connection, self.keep = connection, False


def _keep_alive(sock: socket.socket) -> None:
    """Finds a server that vanished without a word, as etcd's connection does: 30 s and three times 10 s."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


# --- RFC 9112 -----------------------------------------------------------------------------------


class _NotHttp(ValueError):
    """What came is no answer of an HTTP server."""


async def _head(reader: asyncio.StreamReader) -> _Head:
    while True:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if len(text) > _HEAD_LIMIT:
            raise _NotHttp("its head is too long")
        status, *lines = text.split("\r\n")
        words = status.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise _NotHttp(printable(status))
        head = _Head(int(words[1]))
        for line in lines:
            name, separator, value = line.partition(":")
            if separator:
                head.headers[name.strip().lower()] = value.strip()
        if head.status >= 200:  # 100 Continue and its like precede the answer
            return head


async def _body(reader: asyncio.StreamReader, head: _Head, limit: int | None) -> AsyncGenerator[bytes, None]:
    """The parts of an answer's body as they come, at most `limit` bytes; none of them is empty."""
    if head.chunked:
        parts = _chunks(reader)
    elif "content-length" in head.headers:
        parts = _counted(reader, _size(head.headers["content-length"], 10))
    elif head.status in (204, 304):
        return
    else:
        parts = _rest(reader)
        head.headers["connection"] = "close"  # it ends with the connection
    total = 0
    async with contextlib.aclosing(parts):
        async for part in parts:
            total += len(part)
            if limit is not None and total > limit:
                raise _NotHttp(f"its body is longer than {limit} bytes")
            yield part


def _unzipped(data: bytes) -> bytes:
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)  # with gzip's header (RFC 1952)
    try:
        body = unzip.decompress(data, _BODY_LIMIT)
    except zlib.error as err:
        raise _NotHttp(f"its body cannot be unzipped: {err}") from err
    if not unzip.eof:
        raise _NotHttp(f"its body is cut off, or longer than {_BODY_LIMIT} bytes")
    return body


async def _chunks(reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    while True:
        size = _size((await reader.readuntil(b"\r\n"))[:-2].decode("latin-1").partition(";")[0], 16)
        if not size:
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass  # trailers say nothing that is needed
            return
        async for part in _counted(reader, size):
            yield part
        if await reader.readexactly(2) != b"\r\n":
            raise _NotHttp("a chunk is longer than it says")


async def _counted(reader: asyncio.StreamReader, size: int) -> AsyncGenerator[bytes, None]:
    while size:
        part = await reader.read(min(size, _STREAM_BUFFER))
        if not part:
            raise EOFError
        size -= len(part)
        yield part


async def _rest(reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    while part := await reader.read(_STREAM_BUFFER):
        yield part


def _size(text: str, base: int) -> int:
    try:
        size = int(text.strip(), base)
    except ValueError:
        size = -1
    if size < 0:
        raise _NotHttp(f"its length is {printable(text)}")
    return size


# --- what failures mean -------------------------------------------------------------------------


def _reset(what: str, err: Exception) -> DatastoreUnreachable:
    return DatastoreUnreachable(f"{what}: the connection was lost: {err}")


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as err:
        raise DatastoreUnreachable(f"{what}: no answer in time") from err
    except ssl.SSLError as err:
        raise DatastoreUnreachable(f"{what}: TLS: {_reason(err)}") from err
    except EOFError as err:  # also asyncio.IncompleteReadError
        raise _reset(what, err) from err
    except OSError as err:
        raise DatastoreUnreachable(f"{what}: {err.strerror or err}") from err
    except ConfigError as err:  # a certificate that is being replaced may be missing for a moment
        raise DatastoreUnreachable(f"{what}: {err}") from err
    except (_NotHttp, asyncio.LimitOverrunError) as err:
        raise DatastoreUnreachable(f"{what}: this is not an answer of an API server: {err}") from err


def _reason(err: ssl.SSLError) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"the server's certificate: {err.verify_message}"
    return err.reason or str(err)
