"""One logical connection to an etcd cluster: endpoints in turn, TLS, login, deadlines.

Every failure leaves as one of core.errors: a definite refusal, or DatastoreUnreachable. A request is
only repeated here when it certainly was not carried out (no connection yet, expired login) or is a
read. After a lost connection the next endpoint is tried, so a dead member costs one failure.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from tortie.core.errors import ConfigError, DatastoreUnreachable, RevisionGone, Unauthorized
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcdrpc import AuthStub, KVStub, LeaseStub, WatchStub, grpc
from tortie.datastore.etcdrpc import rpc_pb2 as pb

_DIAL_TIMEOUT = 10.0  # seconds; Calico's dial timeout
_CALL_TIMEOUT = 10.0  # seconds; a black-holed server must not hold a CNI call longer than its runtime waits
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a list of 10,000 endpoints exceeds gRPC's 4 MiB
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),  # Calico's 30 s / 10 s: finds a peer that vanished without a FIN
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),  # a restarted etcd is used within half a second
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),  # a node's proxy settings are not meant for its datastore
    ("grpc.use_local_subchannel_pool", 1),  # links of one process fail and log in independently
]

_Code = grpc.StatusCode


class EtcdLink:
    def __init__(self, config: DatastoreConfig) -> None:
        self._config = config
        self._targets = list(config.etcdEndpoints)
        self._current = 0  # index into _targets
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}  # method name -> bound gRPC call
        self._token = ""
        self._dialing = asyncio.Lock()

    async def close(self) -> None:
        await self._hang_up()

    async def call(self, method: str, request: Any) -> Any:
        """One unary call: range, put, txn or lease."""
        tries = len(self._targets) if method == "range" else 1
        for attempt in range(1, tries + 1):
            try:
                return await self._call_logged_in(method, request)
            except DatastoreUnreachable:
                if attempt == tries:
                    raise
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def watch(self, requests: asyncio.Queue[Any]) -> AsyncIterator[AsyncIterator[Any]]:
        """A watch stream: what is put into `requests` is sent, the yielded iterator gives the replies."""
        channel = await self._connect()
        stream = self._stubs["watch"](_drain(requests), metadata=self._metadata())
        try:
            yield self._replies(stream, channel)
        finally:
            stream.cancel()

    async def _replies(self, stream: Any, channel: Any) -> AsyncIterator[Any]:
        try:
            async for reply in stream:
                yield reply
        except grpc.aio.AioRpcError as err:
            raise await self._relabel(err, "watch", channel) from err

    # --- calls ----------------------------------------------------------------------------------

    async def _call_logged_in(self, method: str, request: Any) -> Any:
        try:
            return await self._call_once(method, request)
        except Unauthorized:
            if not self._config.etcdUsername or not self._token:
                raise
            self._token = ""  # expired, or etcd restarted with simple tokens: log in once more
            return await self._call_once(method, request)

    async def _call_once(self, method: str, request: Any) -> Any:
        channel = await self._connect()
        try:
            return await self._stubs[method](request, timeout=_CALL_TIMEOUT, metadata=self._metadata())
        except grpc.aio.AioRpcError as err:
            raise await self._relabel(err, method, channel) from err

    def _metadata(self) -> list[tuple[str, str]] | None:
        return [("token", self._token)] if self._token else None

    async def _relabel(self, err: Any, method: str, channel: Any) -> Exception:
        """What a gRPC failure means to us; a broken connection is dropped so that the next one is tried."""
        code, text = err.code(), err.details() or ""
        where = self._targets[self._current]
        if code is _Code.OUT_OF_RANGE and "compacted" in text:
            return RevisionGone(text)
        if code in (_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED) or "user name is empty" in text:
            return Unauthorized(text)
        broken = code in (_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED, _Code.INTERNAL)
        if broken and channel is self._channel:  # else somebody else has dialled anew already
            await self._hang_up()
            self._current = (self._current + 1) % len(self._targets)
        return DatastoreUnreachable(f"etcd {method} at {where} failed: {code.name}: {text}")

    # --- connection -----------------------------------------------------------------------------

    async def _connect(self) -> Any:
        """A ready, logged-in channel, trying each endpoint once. Raises DatastoreUnreachable."""
        async with self._dialing:
            failures = []
            for _ in self._targets:
                if self._channel is None:
                    self._open(self._targets[self._current])
                if (reason := await self._ready()) is None:
                    if self._config.etcdUsername and not self._token:
                        await self._login()
                    return self._channel
                failures.append(f"{self._targets[self._current]}: {reason}")
                await self._hang_up()
                self._current = (self._current + 1) % len(self._targets)
            raise DatastoreUnreachable("no etcd endpoint answers: " + "; ".join(failures))

    def _open(self, endpoint: str) -> None:
        scheme, _, target = endpoint.partition("://")
        target = target.rstrip("/")
        if scheme == "https":
            self._channel = grpc.aio.secure_channel(target, self._credentials(), options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        store, lease = KVStub(self._channel), LeaseStub(self._channel)
        self._stubs = {
            "range": store.Range,
            "put": store.Put,
            "txn": store.Txn,
            "lease": lease.LeaseGrant,
            "watch": WatchStub(self._channel).Watch,
            "login": AuthStub(self._channel).Authenticate,
        }

    async def _ready(self) -> str | None:
        """None when the channel is connected, else why not."""
        deadline = time.monotonic() + _DIAL_TIMEOUT
        state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return "connection refused, reset or TLS handshake failed"
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._channel.wait_for_state_change(state)
            except TimeoutError:
                return f"no answer within {_DIAL_TIMEOUT:.0f} s"
            state = self._channel.get_state(try_to_connect=True)
        return None

    async def _login(self) -> None:
        request = pb.AuthenticateRequest(name=self._config.etcdUsername, password=self._config.etcdPassword)
        try:
            reply = await self._stubs["login"](request, timeout=_CALL_TIMEOUT)
        except grpc.aio.AioRpcError as err:
            if err.code() in (_Code.INVALID_ARGUMENT, _Code.FAILED_PRECONDITION):  # bad password, auth is off
                raise Unauthorized(f"etcd login of {self._config.etcdUsername}: {err.details()}") from err
            raise await self._relabel(err, "login", self._channel) from err
        self._token = reply.token

    async def _hang_up(self) -> None:
        channel, self._channel, self._stubs, self._token = self._channel, None, {}, ""
        if channel is not None:
            await channel.close()

    def _credentials(self) -> Any:
        """Read anew at each dial, so that rotated certificates are picked up."""
        config = self._config
        root = _pem(config.etcdCACert, config.etcdCACertFile, "etcdCACertFile")
        key = _pem(config.etcdKey, config.etcdKeyFile, "etcdKeyFile")
        cert = _pem(config.etcdCert, config.etcdCertFile, "etcdCertFile")
        return grpc.ssl_channel_credentials(root, key, cert)


def _pem(inline: str, path: str, field: str) -> bytes | None:
    if inline:
        return inline.encode()
    if not path:
        return None
    try:
        with open(path, "rb") as source:
            return source.read()
    except OSError as err:
        raise ConfigError(field, path, f"cannot be read: {err.strerror}") from err


async def _drain(requests: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while True:
        yield await requests.get()
