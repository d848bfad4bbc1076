"""Liveness and readiness of the node: what components report, judged and served on port 9099.

Components send datagrams (core.health) to a unix socket; here they are kept with their time. A
component that is expected and silent for too long is not live. The HTTP answers are Calico's: 200
with a table, or 503 (libcalico-go/lib/health). They are also given on a second unix socket, for the
probe commands: those work whoever holds the port, and with the port switched off.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from tortie.core.backoff import Backoff, Retry
from tortie.core.tables import boxed

_log = logging.getLogger(__name__)

_TIMEOUT = 90.0  # seconds of silence until a component counts as stuck: Felix's watchdog timeout
_PORT_RETRY = Backoff(first=1.0, cap=30.0)  # somebody else has the port: he may go any time
_MAX_REQUEST = 4096  # bytes of an HTTP request head; a probe sends a few hundred


class Report(msgspec.Struct, frozen=True):
    """One datagram of a component."""

    name: str
    live: bool
    ready: bool
    reason: str = ""


@dataclass(slots=True)
class _Component:
    since: float  # clock reading of its start, later of its last report
    report: Report | None = None


class Health:
    """What is known of every expected component. Pure but for the clock handed in."""

    def __init__(self, expected: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._components = {name: _Component(clock()) for name in expected}  # component -> its state

    def take(self, report: Report) -> None:
        """A component's own word; unknown names are ignored (a stale process of an earlier version)."""
        if (component := self._components.get(report.name)) is not None:
            component.since, component.report = self._clock(), report

    def exited(self, name: str) -> None:
        """The process ended: whatever it said last no longer holds."""
        self._components[name] = _Component(self._clock())

    def live(self, name: str) -> bool:
        component = self._components[name]
        silent = self._clock() - component.since > _TIMEOUT
        return not silent and (component.report is None or component.report.live)

    def ready(self, name: str) -> bool:
        component = self._components[name]
        return self.live(name) and component.report is not None and component.report.ready

    def judge(self, what: str, only: str = "") -> tuple[bool, str]:
        """(`liveness` or `readiness` holds for all, or for one component; the table that says why)."""
        names = [name for name in sorted(self._components) if only in ("", name)]
        rows = [self._row(name) for name in names]
        good = bool(names) and all((self.live if what == "liveness" else self.ready)(name) for name in names)
        return good, boxed(["Component", "Timeout", "Liveness", "Readiness", "Detail"], rows)

    def _row(self, name: str) -> list[str]:
        component = self._components[name]
        if self._clock() - component.since > _TIMEOUT:
            return [name, f"{_TIMEOUT:.0f}s", "timed out", "timed out", "no report"]
        if component.report is None:
            return [name, f"{_TIMEOUT:.0f}s", "starting", "not ready", "no report yet"]
        report = component.report
        return [
            name,
            f"{_TIMEOUT:.0f}s",
            "reporting live" if report.live else "reporting non-live",
            "reporting ready" if report.ready else "reporting non-ready",
            report.reason,
        ]


class HealthServer:
    """The sockets that components report to and probe commands ask, and the port that others ask."""

    def __init__(self, health: Health, reports: str, probes: str) -> None:
        """`reports` and `probes` are the paths of the unix sockets."""
        self._health = health
        self._reports, self._probes = reports, probes

    async def run(self) -> None:
        """Serve the unix sockets until cancelled. Raises OSError if one cannot be had."""
        loop = asyncio.get_running_loop()
        with _bound(self._reports, socket.SOCK_DGRAM) as reports, _bound(self._probes) as probes:
            loop.add_reader(reports, self._receive, reports)
            try:
                async with await asyncio.start_unix_server(self._serve, sock=probes) as server:
                    await server.serve_forever()
            finally:
                loop.remove_reader(reports)

    async def serve_port(self, host: str, port: int) -> None:
        """Give the answers on a TCP port, too, until cancelled; while it cannot be had, try again."""
        retry = Retry(_PORT_RETRY)
        while True:
            try:
                server = await asyncio.start_server(self._serve, await _address(host), port)
            except OSError as err:
                delay = retry.wait()
                if retry.failures == 1:
                    _log.error(
                        "cannot serve health on %s port %d (FELIX_HEALTHHOST, FELIX_HEALTHPORT), "
                        "trying again: %s", host, port, err.strerror or err,
                    )  # fmt: skip
                await asyncio.sleep(delay)
                continue
            if retry.failures:
                _log.info("health is served on %s port %d now", host, port)
            async with server:
                await server.serve_forever()

    def _receive(self, reports: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = reports.recv(65536)
                try:
                    self._health.take(msgspec.json.decode(data, type=Report))
                except msgspec.MsgspecError as err:
                    _log.warning("ignoring a malformed health report: %s", err)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer(head[:_MAX_REQUEST]))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            return  # a probe that went away or never spoke: nothing to answer
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        request = head.split(b"\r\n", 1)[0].split(b" ")
        path = request[1].decode("latin-1").split("?")[0] if len(request) == 3 else ""
        what, _, component = path[1:].partition("/")  # /readiness, or /readiness/felix for one alone
        if request[0] not in (b"GET", b"HEAD") or what not in ("liveness", "readiness"):
            status, body = "404 Not Found", "404 page not found\n"
        else:
            good, body = self._health.judge(what, component)
            status = "200 OK" if good else "503 Service Unavailable"
        payload = b"" if request[0] == b"HEAD" else body.encode()
        lines = [
            f"HTTP/1.1 {status}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body.encode())}",
            "Connection: close",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


def _bound(path: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A unix socket at `path`, for root only; one that an earlier node left is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        made.bind(path)
        os.chmod(path, 0o600)
    except OSError:
        made.close()
        raise
    return made


async def _address(host: str) -> str:
    """One address of the host, IPv4 if it has one, as Go listens: `::1` may be named and not be there."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])
