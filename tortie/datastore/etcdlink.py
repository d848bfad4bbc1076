"""One logical connection to an etcd cluster: endpoints in turn, login, deadlines, repetition.

Every failure leaves as one of core.errors: a definite refusal, or DatastoreUnreachable. A request is
only repeated here when it certainly was not carried out (no connection yet, expired login) or is a
read. After a lost connection the next endpoint is tried, so a dead member costs one failure.

Connections are replaced, never repaired: dialling anew reads rotated certificates, logs in again and
lets another member have its turn. A connection that failed one caller is retired, not closed, so that
the calls of others still under way on it end in their own time.
"""

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from tortie.core.errors import ConfigError, DatastoreError, DatastoreUnreachable, Unauthorized
from tortie.datastore import etcdproto as proto
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcdchannel import (
    END,
    TIMING,
    Connection,
    LoginLost,
    RpcError,
    Timing,
    check_standing,
    meaning,
)

T = TypeVar("T")

_LOGIN_PAUSE = 5.0  # seconds before a refused login is tried again: each costs etcd 0.1 s of hashing
_LOGIN_FRESH = 60.0  # seconds for which a login cannot have expired; etcd's tokens live 300 s unused


class EtcdLink:
    """Belongs to the event loop it is used in; in another one it starts anew."""

    def __init__(self, config: DatastoreConfig, timing: Timing = TIMING, first: int = 0) -> None:
        """Dialling begins with endpoint number `first` (modulo their number)."""
        self._config = config
        self._timing = timing
        self._endpoints = config.etcdEndpoints
        self._current = first % len(self._endpoints)  # index of the endpoint in use
        self._connection: Connection | None = None
        self._alive: weakref.WeakSet[Connection] = weakref.WeakSet()  # also retired ones still in use
        self._dialing: asyncio.Task[Connection] | None = None  # shared by all who wait for it
        self._refused = (float("-inf"), "")  # when a login was refused last, and why
        self._closed = False

    async def close(self) -> None:
        """Calls under way fail with DatastoreUnreachable."""
        self._closed = True
        if self._dialing is not None:
            self._dialing.cancel()
            await asyncio.wait([self._dialing])
        for connection in list(self._alive):
            await connection.close()

    async def call(self, method: proto.Method[T], request: bytes) -> T:
        """One unary call. Raises DatastoreUnreachable, and DatastoreError if etcd refused."""
        repeated = False
        while True:
            connection = await self._connect()
            what = f"etcd {method.name} at {connection.endpoint}"
            try:
                with self._ended_by_close():
                    reply = await connection.call(method, request, self._timing.call)
                return _read(method.read, reply, what)
            except RpcError as err:
                fault = meaning(err, what)
                if isinstance(fault, LoginLost | DatastoreUnreachable):
                    await self._drop(connection)
                if repeated or not self._may_repeat(method, fault):
                    raise fault from err
                repeated = True

    def _may_repeat(self, method: proto.Method[Any], fault: DatastoreError) -> bool:
        if isinstance(fault, LoginLost):
            return self._credentials is not None
        return method is proto.RANGE and isinstance(fault, DatastoreUnreachable)

    async def watch(self, create: bytes) -> AsyncGenerator[proto.WatchReply, None]:
        """The replies to one watch, until it fails; close the generator to end it."""
        connection = await self._connect()
        what = f"etcd watch at {connection.endpoint}"
        requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        requests.put_nowait(create)
        async with connection:
            stream = connection.watch(_drain(requests))
            try:
                while (data := await self._news(stream, requests, what)) is not END:
                    reply = _read(proto.read_watch, data, what)
                    check_standing(reply, what)
                    yield reply
                raise DatastoreUnreachable(f"{what}: ended by the server")
            except RpcError as err:
                await self._drop(connection)
                raise meaning(err, what) from err
            except DatastoreUnreachable:
                await self._drop(connection)
                raise
            except Unauthorized:
                # Before 3.5 etcd calls an expired login a missing permission, to a watch. Only a login
                # of some age can have expired; dropping a fresh one each time would be a login storm.
                if connection.loop.time() - connection.since > _LOGIN_FRESH:
                    await self._drop(connection)
                raise
            finally:
                stream.cancel()
                requests.put_nowait(None)  # gRPC forgets its sender when the stream has failed before

    async def _news(self, stream: Any, requests: asyncio.Queue[bytes | None], what: str) -> Any:
        """The next message, prodding a quiet server once; raises DatastoreUnreachable if it stays silent."""
        patience = self._timing.quiet + self._timing.silent
        loop = asyncio.get_running_loop()
        prod = loop.call_later(self._timing.quiet, requests.put_nowait, proto.watch_progress())
        try:
            async with asyncio.timeout(patience):
                with self._ended_by_close():
                    return await stream.read()
        except TimeoutError:
            raise DatastoreUnreachable(f"{what}: silent for {patience:g} s") from None
        finally:
            prod.cancel()

    @contextlib.contextmanager
    def _ended_by_close(self) -> Iterator[None]:
        """close() cancels calls, not their callers: those learn that the datastore is gone.

        And who is cancelled ends, also if gRPC takes that for the end of a stream that has just failed.
        """
        before = _cancellations()
        try:
            yield
        except asyncio.CancelledError:
            if self._closed and not _cancellations():
                raise DatastoreUnreachable("the connection to etcd was closed") from None
            raise
        except RpcError:
            if _cancellations() > before:
                raise asyncio.CancelledError from None
            raise
        if _cancellations() > before:
            raise asyncio.CancelledError

    # --- connection -----------------------------------------------------------------------------

    async def _connect(self) -> Connection:
        """A connected and logged-in endpoint. Raises DatastoreUnreachable, Unauthorized."""
        if self._closed:
            raise DatastoreUnreachable("the connection to etcd was closed")
        current = self._connection
        if current is not None and current.loop is asyncio.get_running_loop() and current.up:
            return current
        if self._dialing is None:
            self._dialing = asyncio.create_task(self._dial(), name="etcd dial")
            self._dialing.add_done_callback(self._dialled)
        with self._ended_by_close():
            connection = await asyncio.shield(self._dialing)
        if connection.retired:  # between the task's end and our turn
            raise DatastoreUnreachable(f"etcd at {connection.endpoint}: connection lost at once")
        return connection

    def _dialled(self, task: asyncio.Task[Connection]) -> None:
        self._dialing = None
        if not task.cancelled():
            task.exception()  # seen, even if every caller gave up waiting

    async def _dial(self) -> Connection:
        """Try each endpoint once, beginning with the current one."""
        if self._connection is not None:
            retired, self._connection = self._connection, None
            await retired.retire()
        patience = self._timing.dial / len(self._endpoints)
        failures = []
        for _ in self._endpoints:
            endpoint = self._endpoints[self._current]
            try:
                self._connection = await self._open(endpoint, patience)
                return self._connection
            except (DatastoreUnreachable, ConfigError) as err:
                failures.append(str(err))
                self._current = (self._current + 1) % len(self._endpoints)
        raise DatastoreUnreachable("no etcd endpoint answers: " + "; ".join(failures))

    async def _open(self, endpoint: str, patience: float) -> Connection:
        """One that answers, has a leader, and knows us."""
        connection = Connection(endpoint, self._config, self._timing)
        self._alive.add(connection)
        try:
            if self._credentials is None:
                await connection.call(proto.STATUS, b"", patience)
            else:
                connection.token = await self._login(connection, *self._credentials, patience)
        except RpcError as err:
            await connection.close()
            fault = meaning(err, endpoint)
            raise fault if isinstance(fault, Unauthorized) else DatastoreUnreachable(str(fault)) from err
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def _credentials(self) -> tuple[str, str] | None:
        """Like Calico, log in only if both are given."""
        name, password = self._config.etcdUsername, self._config.etcdPassword
        return (name, password) if name and password else None

    async def _login(self, connection: Connection, name: str, password: str, patience: float) -> str:
        """A token. Raises Unauthorized; RpcError if there was no answer."""
        now = connection.loop.time()
        since, reason = self._refused
        if now - since < _LOGIN_PAUSE:
            raise Unauthorized(reason)
        try:
            reply = await connection.call(proto.LOGIN, proto.authenticate(name, password), patience)
            return _read(proto.read_token, reply, f"etcd login at {connection.endpoint}")
        except RpcError as err:
            if "authentication is not enabled" in (err.details() or ""):
                return ""  # as in Calico's client: then everybody may do everything
            fault = meaning(err, "login")
            if isinstance(fault, DatastoreUnreachable):
                raise
            self._refused = (now, f"etcd login of {name} at {connection.endpoint}: {fault}")
            raise Unauthorized(self._refused[1]) from err

    async def _drop(self, connection: Connection) -> None:
        """Use the next endpoint from now on, unless somebody has seen to that already."""
        if connection is self._connection:
            self._connection = None
            self._current = (self._current + 1) % len(self._endpoints)
            await connection.retire()


def _read(read: Callable[[bytes], T], data: bytes, what: str) -> T:
    try:
        return read(data)
    except ValueError as err:
        raise DatastoreError(f"{what}: this is not an answer of etcd: {err}") from err


async def _drain(requests: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (request := await requests.get()) is not None:
        yield request


def _cancellations() -> int:
    """How often the running task was asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
