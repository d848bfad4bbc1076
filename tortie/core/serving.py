"""Answers HTTP GET on a port: metrics for Prometheus, health for a kubelet."""

import asyncio
import logging
import ssl
from collections.abc import Callable

from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ConfigError

_log = logging.getLogger(__name__)

_RETRY = Backoff(first=1.0, cap=30.0)  # somebody else has the port: he may go any time
_PATIENCE = 10.0  # seconds for a request to come in, and again for its answer to go out; Prometheus' own

Answer = Callable[[str], tuple[bool, str] | None]  # of a path: whether all is well, and the text; None: 404


async def serve(
    port: int,
    what: str,
    answer: Answer,
    host: str = "",
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    blocks: bool = False,
) -> None:
    """Until cancelled; while the port cannot be had, or tls() raises ConfigError, try again.

    `host` "": all addresses. `blocks`: answer() may, and is called in a thread.
    """

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            told = await asyncio.to_thread(response, head, answer) if blocks else response(head, answer)
            async with asyncio.timeout(_PATIENCE):
                writer.write(told)
                writer.close()
                await writer.wait_closed()  # only now it is sent: drain() lets a part be kept for ever
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            return  # whoever asked went away, or never spoke or listened
        finally:
            writer.transport.abort()

    retry = Retry(_RETRY)
    while True:
        try:
            server = await asyncio.start_server(respond, host or None, port, ssl=tls())
        except (OSError, ConfigError) as err:
            delay = retry.wait()
            if retry.failures == 1:
                why = err.strerror if isinstance(err, OSError) and err.strerror else err
                _log.error("cannot serve %s on port %d, trying again: %s", what, port, why)
            await asyncio.sleep(delay)
            continue
        async with server:
            await server.serve_forever()


def response(head: bytes, answer: Answer) -> bytes:
    """The whole HTTP answer to a request's head."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    found = None
    if len(words) == 3 and words[0] in (b"GET", b"HEAD"):
        found = answer(words[1].split(b"?")[0].decode("latin-1"))
    well, text = found or (False, "404 page not found\n")
    line = "404 Not Found" if found is None else "200 OK" if well else "503 Service Unavailable"
    body = text.encode()
    fields = [
        "Content-Type: text/plain; version=0.0.4; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([f"HTTP/1.1 {line}", *fields, "", ""]).encode() + (
        b"" if words[0] == b"HEAD" else body
    )
