"""The node's BGP metrics on a port of their own, for Prometheus: GET /metrics.

Off unless TORTIE_BGP_METRICS_PORT says which; TORTIE_BGP_METRICS_HOST narrows it to one address.
"""

import logging
from collections.abc import Mapping

from tortie.bgp import ask, metrics
from tortie.bgp.status import Status
from tortie.core import serving
from tortie.core.errors import ConfigError

_log = logging.getLogger(__name__)


def wanted(env: Mapping[str, str]) -> int:
    """The port, 0 for none. Raises ConfigError."""
    given = env.get("TORTIE_BGP_METRICS_PORT") or "0"
    if not (given.isascii() and given.isdigit() and int(given) < 65536):
        raise ConfigError("TORTIE_BGP_METRICS_PORT", given, "not a port from 1 to 65535, nor 0")
    return int(given)


async def serve(host: str, port: int) -> None:
    """Until cancelled. `host` "": all addresses."""
    await serving.serve(port, "BGP metrics", answer, host, blocks=True)


def answer(path: str) -> tuple[bool, str] | None:
    return (True, metrics.text(_status())) if path == "/metrics" else None


def _status() -> Status | None:
    try:
        return ask.status()
    except ConfigError as err:
        _log.warning("%s", err)
        return None
