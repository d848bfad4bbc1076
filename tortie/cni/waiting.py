"""What a call may be configured to wait for: other programs' readiness, felix's word, a lock file."""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from urllib.parse import quote

from tortie.cni.protocol import Code
from tortie.core.errors import CniError

_log = logging.getLogger(__name__)

# The status file is looked for this often. Watching the folder would save nothing: a look costs 5 µs.
_LOOK_EVERY = 0.02  # seconds
_GATE_EVERY, _GATE_FOR = 5.0, 30.0  # seconds; Calico's
_LOCK_EVERY, _LOCK_FOR = 0.01, 30.0  # seconds; with it half of a runtime's patience is left
_UNESCAPED = "$&+=:@"  # what Go's url.PathEscape leaves besides letters, digits and -_.~


def status_file(orchestrator: str, workload: str, endpoint: str) -> str:
    """The name of the file that felix makes when an endpoint is programmed; `workload` has its namespace."""
    return " ".join(quote(part, safe=_UNESCAPED) for part in (orchestrator, workload, endpoint))


async def for_file(path: str, seconds: float) -> bool:
    """Whether the file appeared in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not os.path.exists(path):
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_LOOK_EVERY)
    return True


async def for_gates(
    urls: Sequence[str],
    probe: Callable[[str, float], Awaitable[str]] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Until each URL in turn has answered; CniError (try again later) for one that does not within 30 s.

    `probe(url, timeout)` gives the reason why it is not ready, '' if it is.
    """
    for url in urls:
        for _ in range(int(_GATE_FOR / _GATE_EVERY)):
            if not (reason := await (probe or http_status)(url, _GATE_EVERY)):
                break
            _log.error("Endpoint may not be ready: %s: %s", url, reason)
            await sleep(_GATE_EVERY)
        else:
            raise CniError(
                Code.TRY_AGAIN_LATER, f"readiness gate {url} is not ready after {_GATE_FOR:.0f} s", reason
            )


async def http_status(url: str, timeout: float) -> str:
    """'' if a GET is answered with a status of 200 to 399, else why not."""
    return await asyncio.to_thread(_http_status, url, timeout)


def _http_status(url: str, timeout: float) -> str:
    # Gates are rare and these imports cost 40 ms.
    import http.client
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            status = int(answer.status)
    except urllib.error.HTTPError as err:
        status = err.code
    except (OSError, http.client.HTTPException, ValueError) as err:
        return str(err) or type(err).__name__
    return "" if 200 <= status < 400 else f"endpoint is not ready, response code returned:{status}"


@contextlib.asynccontextmanager
async def file_lock(path: str, patience: float = _LOCK_FOR) -> AsyncIterator[None]:
    """Hold a lock on a file shared with other programs, '' for none. Not getting it is only logged.

    What it protects is right without it: it spares programs on one host lost races for one block.
    """
    if not path:
        yield
        return
    lock = None
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        async with asyncio.timeout(patience):
            while not _try_lock(lock):  # noqa: ASYNC110 - the kernel tells nobody when a lock is free
                await asyncio.sleep(_LOCK_EVERY)
    except (OSError, TimeoutError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else f"held for {patience:.0f} s"
        _log.warning("Failed to grab IPAM lock %s, may contend for datastore updates: %s", path, reason)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
