"""The Kubernetes API as five verbs and a watch, on raw JSON; what its refusals mean to us.

Every failure leaves as one of core.errors. What only the caller can name - an object that is missing,
exists already or has changed - leaves as `Refused` with the API's own reason.

The API server limits and sheds load by answering 429: it is asked again when it says. On top of that
this client limits itself, so that a burst of pods on one node does not take the server from others.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from random import Random
from typing import Any
from urllib.parse import urlencode

import msgspec

from tortie import __version__
from tortie.core.errors import (
    ConfigError,
    DatastoreError,
    DatastoreUnreachable,
    FieldError,
    RevisionGone,
    Unauthorized,
    ValidationError,
)
from tortie.datastore.kubernetes.http import TIMING, Answer, HttpClient, Timing
from tortie.datastore.kubernetes.identity import Identity
from tortie.datastore.kubernetes.kubeconfig import Server
from tortie.datastore.kubernetes.limit import Bucket

# Calico leaves client-go's 5 a second in force and lifts only the burst: thirty pods started at once on a
# node then wait half a minute. The server has its own fairness since 1.20; this only bounds a mistake.
DEFAULT_QPS = 50.0
DEFAULT_BURST = 100  # Calico's
_BUSY_TRIES = 5  # times a request is sent that is answered 429
_BUSY_WAIT = 10.0  # seconds at most before the next of them, whatever the server asks for
# Seconds after which the server ends a watch; spread, so that not all nodes come back at once. A server
# that hangs behind a balancer which answers for it is found out after as long.
_WATCH_SPAN = (300, 600)
_SHORT_WATCH = 1.0  # seconds: one that ends sooner and without news is a failure, not the end of its time


class Refused(DatastoreError):
    """A definite no. `status` is HTTP's, `reason` Kubernetes' word for it (NotFound, Conflict, …)."""

    def __init__(self, what: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{what} was refused: {message or reason or status}")
        self.status, self.reason, self.message = status, reason, message


class _Cause(msgspec.Struct, frozen=True):
    field: str = ""
    message: str = ""
    reason: str = ""


class _Details(msgspec.Struct, frozen=True):
    causes: list[_Cause] | None = None
    retryAfterSeconds: int = 0


class Status(msgspec.Struct, frozen=True):
    """metav1.Status, as far as it says why."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None

    @property
    def causes(self) -> list[_Cause]:
        return (self.details and self.details.causes) or []


class Change(msgspec.Struct, frozen=True):
    """One line of a watch: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""

    type: str
    object: msgspec.Raw


class Api:
    """Belongs to the event loop it is used in; in another one it starts anew."""

    def __init__(self, server: Server, qps: float = 0, burst: int = 0, timing: Timing = TIMING) -> None:
        """Raises ConfigError for an address that cannot be dialled."""
        self._identity = Identity(server)
        self._http = HttpClient(server.url, self._identity.tls, timing)
        self._bucket = Bucket(qps or DEFAULT_QPS, burst or DEFAULT_BURST)
        self._timing = timing
        self._random = Random()

    async def close(self) -> None:
        await self._http.close()

    # --- verbs ----------------------------------------------------------------------------------

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        return await self._send("GET", _target(path, query))

    async def create(self, path: str, body: Any) -> bytes:
        return await self._send("POST", path, msgspec.json.encode(body))

    async def replace(self, path: str, body: Any) -> bytes:
        return await self._send("PUT", path, msgspec.json.encode(body))

    async def patch(self, path: str, body: Any) -> bytes:
        """A JSON merge patch (RFC 7386): null takes a field away."""
        data = msgspec.json.encode(body)
        return await self._send("PATCH", path, data, "application/merge-patch+json")

    async def merge(self, path: str, body: Any) -> bytes:
        """A strategic merge patch: entries of Kubernetes' own lists are told apart by their keys."""
        data = msgspec.json.encode(body)
        return await self._send("PATCH", path, data, "application/strategic-merge-patch+json")

    async def delete(self, path: str, body: Any) -> bytes:
        return await self._send("DELETE", path, msgspec.json.encode(body))

    async def _send(
        self, method: str, target: str, body: bytes = b"", kind: str = "application/json"
    ) -> bytes:
        """The body of the answer. Raises Refused, ValidationError, Unauthorized, DatastoreUnreachable."""
        loop = asyncio.get_running_loop()
        what, renewed, tries = f"{method} {target.partition('?')[0]}", False, 1
        while True:
            await asyncio.sleep(self._bucket.take(loop.time()))
            headers = self._headers({"Content-Type": kind} if body else {})
            answer = await self._http.call(method, target, headers, body)
            if answer.status < 300:
                return answer.body
            if answer.status == 401 and not renewed and self._identity.refused():
                renewed = True
            elif answer.status == 429 and tries < _BUSY_TRIES:
                tries += 1
                await asyncio.sleep(_wait(answer) * (1 + self._random.random()))
            else:
                raise meaning(what, answer.status, _status(answer.body))

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": f"calico/{__version__}", **more}
        try:
            authorization = self._identity.authorization(asyncio.get_running_loop().time())
        except ConfigError as err:  # a file that is being replaced may be missing for a moment
            raise DatastoreUnreachable(str(err)) from err
        if authorization:
            headers["Authorization"] = authorization
        return headers

    # --- watch ----------------------------------------------------------------------------------

    async def watch(
        self, path: str, query: Mapping[str, str], revision: str
    ) -> AsyncGenerator[Change | None, None]:
        """One watch until the server ends it in due time: first None, when it stands, then changes.

        Raises RevisionGone, DatastoreUnreachable and whatever `meaning` says of a refusal.
        """
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._bucket.take(loop.time()))
        span = self._random.randint(*_WATCH_SPAN)
        options = {"watch": "1", "resourceVersion": revision, "allowWatchBookmarks": "true"}
        target = _target(path, {**query, **options, "timeoutSeconds": str(span)})
        what, began, told = f"watch {path}", loop.time(), False
        async with self._http.stream(target, self._headers({})) as (answer, lines):
            if answer.status == 401:
                self._identity.refused()
            if answer.status != 200:
                raise meaning(what, answer.status, _status(answer.body), watching=True)
            yield None
            async for line in self._alive(lines, what, loop.time() + span + self._timing.quiet):
                told = True
                yield _change(line, what)
        if not told and loop.time() - began < _SHORT_WATCH:
            raise DatastoreUnreachable(f"{what}: ended by the server at once")

    async def _alive(self, lines: AsyncGenerator[bytes, None], what: str, due: float) -> AsyncIterator[bytes]:
        """Lines of a watch; when none come, the server is asked whether it still lives.

        A watch may be silent for its whole time: bookmarks are a promise of newer servers only. The server
        answers on another connection: that this one is dead shows when it does not end as it should, at the
        loop's time `due`.
        """
        quiet = self._timing.quiet
        while True:
            coming = asyncio.ensure_future(_next(lines))
            try:
                while not (await asyncio.wait([coming], timeout=quiet))[0]:
                    if asyncio.get_running_loop().time() > due:
                        raise DatastoreUnreachable(f"{what}: the server did not end it in its time")
                    if asyncio.get_running_loop().time() - self._http.heard >= quiet:
                        await self._sign_of_life(what)
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait([coming])
            if (line := coming.result()) is None:
                return
            yield line

    async def _sign_of_life(self, what: str) -> None:
        try:
            await self._http.call("GET", "/version", self._headers({}))
        except DatastoreUnreachable as err:
            raise DatastoreUnreachable(f"{what}: silent, and {err}") from err


async def _next(lines: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(lines, None)


def _target(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


# --- what answers mean --------------------------------------------------------------------------


def _status(body: bytes) -> Status:
    """The reason of a refusal; a proxy in between may answer in its own words."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(body, type=Status)
    return Status(message=body[:200].decode("utf-8", "replace"))


def meaning(what: str, code: int, status: Status, watching: bool = False) -> DatastoreError:
    """A refusal as one of core.errors. `watching` has only states of the history to be refused for."""
    text = status.message or status.reason or f"HTTP status {code}"
    if code in (401, 403):
        return Unauthorized(text)
    too_new = any(cause.reason == "ResourceVersionTooLarge" for cause in status.causes)
    if code == 410 or too_new or (watching and "Too large resource version" in text):
        return RevisionGone(text)
    if code == 422:
        causes = [FieldError(cause.field, None, cause.message) for cause in status.causes]
        return ValidationError(causes or [FieldError(what, None, text)])
    if code == 400 and "resource version" in text:
        return ValidationError([FieldError("ResourceVersion", None, text)])
    if code in (408, 429) or code >= 500:
        return DatastoreUnreachable(f"{what}: {text}")
    return Refused(what, code, status.reason, text)


def _wait(answer: Answer) -> float:
    """Seconds that an overloaded server asks for, within reason."""
    given = answer.headers.get("retry-after", "1")
    return min(float(given), _BUSY_WAIT) if given.isdecimal() else 1.0


def _change(line: bytes, what: str) -> Change:
    try:
        change = msgspec.json.decode(line, type=Change)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise DatastoreUnreachable(f"{what}: not an event: {err}") from err
    if change.type == "ERROR":
        status = _status(bytes(change.object))
        raise meaning(what, status.code or 500, status, watching=True)
    return change
