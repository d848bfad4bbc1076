"""One connection to one etcd endpoint: gRPC's settings, TLS, and what its failures mean to us."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tortie.core.errors import (
    ConfigError,
    DatastoreError,
    DatastoreUnreachable,
    RevisionGone,
    Unauthorized,
)
from tortie.datastore import etcdproto as proto
from tortie.datastore.config import DatastoreConfig

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read at import; its C core writes to stderr

import grpc

RpcError = grpc.aio.AioRpcError
END = grpc.aio.EOF  # what a stream reads after its last message

_Code = grpc.StatusCode
_DEFINITE = {  # etcd answered "no": asking again changes nothing
    _Code.INVALID_ARGUMENT,
    _Code.NOT_FOUND,
    _Code.ALREADY_EXISTS,
    _Code.FAILED_PRECONDITION,
    _Code.OUT_OF_RANGE,
    _Code.UNIMPLEMENTED,
}
_HINTS = {  # in gRPC's text -> what that means
    "Failed to create security handshaker": "etcdCACert, etcdCert or etcdKey, or the file given for one, "
    "is no PEM, or the key belongs to another certificate",
    "Unwrap failed": "the server hung up after the handshake: it wants another client certificate, etcdCert",
}
_LOGIN_LOST = ("invalid auth token", "revision of auth store is old", "user name is empty")


@dataclass(frozen=True, slots=True)
class Timing:
    """Patience, in seconds."""

    dial: float = 10.0  # Calico's; shared out between the endpoints
    call: float = 10.0  # a black-holed server must not hold a CNI call longer than its runtime waits
    keepalive: float = 30.0  # Calico's 30 s / 10 s: finds a peer that vanished without a FIN; etcd
    keepalive_timeout: float = 10.0  # hangs up on more than a ping in 5 s, or what its operator set
    quiet: float = 20.0  # a watch without news for so long is asked for a sign of life ...
    silent: float = 10.0  # ... and given up when none comes in this time


TIMING = Timing()


class LoginLost(Unauthorized):
    """The token is not valid any more, or etcd now wants one: the request was not carried out."""


class Connection:
    """Use it within `async with`: after `retire` its last user closes it."""

    def __init__(self, endpoint: str, config: DatastoreConfig, timing: Timing) -> None:
        """Raises ConfigError naming a certificate file that cannot be read."""
        self.endpoint = endpoint
        self.loop = asyncio.get_running_loop()
        self.since = self.loop.time()
        self.token = ""
        self.retired = False
        self._users = 0
        self._channel = _channel(endpoint, config, timing)
        self._calls: dict[str, Any] = {}  # gRPC path -> what calls it on this channel

    async def __aenter__(self) -> None:
        self._users += 1

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if self.retired and not self._users:
            await self.close()

    async def retire(self) -> None:
        """Take no new calls; gRPC would cancel those under way, so the last of them closes."""
        self.retired = True
        if not self._users:
            await self.close()

    async def close(self) -> None:
        """At once: every call on it raises CancelledError, whoever awaits it."""
        self.retired = True
        await self._channel.close()

    @property
    def up(self) -> bool:
        return not self.retired and self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def call(self, method: proto.Method[Any], request: bytes, timeout: float) -> bytes:
        """The reply, yet to be read. Raises RpcError."""
        async with self:
            if (call := self._calls.get(method.path)) is None:
                call = self._calls[method.path] = self._channel.unary_unary(method.path)
            reply: bytes = await call(request, timeout=timeout, metadata=self._metadata())
            return reply

    def watch(self, requests: AsyncIterator[bytes]) -> Any:
        """A stream: `requests` go out, `await read()` gives a reply or END, `cancel()` ends it."""
        return self._channel.stream_stream(proto.WATCH_PATH)(requests, metadata=self._metadata())

    def _metadata(self) -> list[tuple[str, str]]:
        # hasleader: a member cut off from the others refuses instead of serving an old state in silence.
        return [("hasleader", "true")] + ([("token", self.token)] if self.token else [])


def _channel(endpoint: str, config: DatastoreConfig, timing: Timing) -> Any:
    scheme, _, target = endpoint.partition("://")
    target, options = target.rstrip("/"), _options(timing)
    if scheme == "https":
        return grpc.aio.secure_channel(target, _credentials(config), options=options)
    return grpc.aio.insecure_channel(target, options=options)


def _options(timing: Timing) -> list[tuple[str, int]]:
    seconds = {
        "grpc.keepalive_time_ms": timing.keepalive,
        "grpc.keepalive_timeout_ms": timing.keepalive_timeout,
        "grpc.http2.ping_timeout_ms": timing.keepalive_timeout,  # later gRPC waits a minute without it
        # Despite its name gRPC's patience with one handshake; ours, which ends sooner, is a deadline.
        "grpc.min_reconnect_backoff_ms": 2 * timing.dial,
    }
    return [
        *((name, round(value * 1000)) for name, value in seconds.items()),
        ("grpc.max_receive_message_length", -1),  # values of 1.5 MB are legal: a page exceeds gRPC's 4 MiB
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_http_proxy", 0),  # a node's proxy settings are not meant for its datastore
        ("grpc.use_local_subchannel_pool", 1),  # else channels to one endpoint share their connection
    ]


def _credentials(config: DatastoreConfig) -> Any:
    # Without a CA of its own Calico trusts what the host trusts; gRPC would use a list of its own.
    host_roots = ssl.get_default_verify_paths().cafile or ""
    root = _pem(config.etcdCACert, config.etcdCACertFile or host_roots, "etcdCACertFile")
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


# --- what failures mean -------------------------------------------------------------------------


def meaning(err: Any, what: str) -> DatastoreError:
    """A failed call as one of core.errors; `what` was called."""
    code, text = err.code(), err.details() or ""
    if any(sign in text for sign in _LOGIN_LOST):
        return LoginLost(text)
    if code in (_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED):
        return Unauthorized(text)
    if code is _Code.OUT_OF_RANGE and "compacted" in text:
        return RevisionGone(text)
    if code in _DEFINITE or "larger than max" in text:
        return DatastoreError(f"{what} was refused: {text}")
    if code is _Code.DEADLINE_EXCEEDED:
        return DatastoreUnreachable(f"{what}: no answer in time")
    # gRPC's own text, without the part that says the same for every failed connection.
    return DatastoreUnreachable(f"{what}: {explained(text.rpartition('last error: ')[2]) or code.name}")


def explained(text: str) -> str:
    """gRPC's text, with what to look at where that alone would not tell a person."""
    hint = next((hint for sign, hint in _HINTS.items() if sign in text), "")
    return f"{text} ({hint})" if hint else text


def check_standing(reply: proto.WatchReply, what: str) -> None:
    """Raises what it means if the server says that the watch has ended."""
    if not reply.canceled:
        return
    if reply.compact_revision:
        raise RevisionGone(f"etcd compacted history up to revision {reply.compact_revision}")
    if "permission denied" in reply.reason or any(sign in reply.reason for sign in _LOGIN_LOST):
        raise Unauthorized(reply.reason)
    raise DatastoreUnreachable(f"{what}: cancelled by the server: {reply.reason or 'no reason given'}")
