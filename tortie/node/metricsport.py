"""The node's BGP metrics on a port of their own, for Prometheus: GET /metrics.

Off unless TORTIE_BGP_METRICS_PORT says which; TORTIE_BGP_METRICS_HOST narrows it to one address.
"""

import asyncio
import logging
from collections.abc import Mapping

from tortie.bgp import metrics
from tortie.bgp import status as bgp_status
from tortie.bgp.status import Status
from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ConfigError

_log = logging.getLogger(__name__)

_RETRY = Backoff(first=1.0, cap=30.0)  # somebody else has the port: he may go any time
_PATIENCE = 5.0  # seconds for a request to come in
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def wanted(env: Mapping[str, str]) -> int:
    """The port, 0 for none. Raises ConfigError."""
    given = env.get("TORTIE_BGP_METRICS_PORT") or "0"
    if not (given.isascii() and given.isdigit() and int(given) < 65536):
        raise ConfigError("TORTIE_BGP_METRICS_PORT", given, "not a port from 1 to 65535, nor 0")
    return int(given)


async def serve(host: str, port: int) -> None:
    """Until cancelled; while the port cannot be had, try again. `host` "": all addresses."""
    retry = Retry(_RETRY)
    while True:
        try:
            server = await asyncio.start_server(_serve, host or None, port)
        except OSError as err:
            delay = retry.wait()
            if retry.failures == 1:
                _log.error("cannot serve BGP metrics on port %d, trying again: %s", port, err.strerror or err)
            await asyncio.sleep(delay)
            continue
        async with server:
            await server.serve_forever()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(head, _status()))
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        return  # whoever asked went away or never spoke
    finally:
        writer.close()


def _status() -> Status | None:
    try:
        found = bgp_status.read()
    except ConfigError as err:
        _log.warning("%s", err)
        return None
    return found if found is not None and found.alive else None


def answer(head: bytes, status: Status | None) -> bytes:
    """The whole HTTP answer to a request."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) == 3 and words[0] in (b"GET", b"HEAD") and words[1].split(b"?")[0] == b"/metrics":
        line, body = "200 OK", metrics.text(status).encode()
    else:
        line, body = "404 Not Found", b"404 page not found\n"
    sent = b"" if words[0] == b"HEAD" else body
    fields = [f"Content-Type: {_TYPE}", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([f"HTTP/1.1 {line}", *fields, "", ""]).encode() + sent
