"""The probe commands of the manifests: `calico-node -felix-live -bird-ready …`.

Exit code 0 when all that is asked for is well, else 1 with a line on stdout that says what is not, in
Calico's words (node/pkg/health). Components are asked through the node's supervisor, by a socket of its
own; BGP readiness is judged here from the agent's status file.
"""

import contextlib
import http.client
import os
import socket
import time
from collections.abc import Mapping, Sequence

from tortie.bgp import ask
from tortie.bgp.status import Status
from tortie.core.duration import parse_duration
from tortie.core.errors import ConfigError
from tortie.core.paths import Paths

_TIMEOUT = 5.0  # seconds for one question; the manifests allow a probe 10
_THRESHOLD = 30.0  # seconds after a start during which every peer counts, Calico's default
_CHECKS = ("felix-live", "felix-ready", "bird-live", "bird6-live", "bird-ready", "bird6-ready")


def main(words: Sequence[str], env: Mapping[str, str] = os.environ) -> int:
    checks, threshold, problem = _parse(words)
    if problem:
        print(problem)
        return 1
    for check in checks:
        if reason := _ask(check, threshold, env):
            print(f"calico/node is not {check.split('-')[1]}: {reason}")
            return 1
    return 0


def _parse(words: Sequence[str]) -> tuple[list[str], float, str]:
    checks, threshold = [], _THRESHOLD
    rest = list(words)
    while rest:
        name, _, value = rest.pop(0).lstrip("-").partition("=")
        if name == "threshold-time":
            try:
                threshold = parse_duration(value or (rest.pop(0) if rest else ""))
            except ValueError as err:
                return [], 0, f"-threshold-time: {err}"
        elif name in _CHECKS:
            checks.append(name)
        else:
            return [], 0, f"unknown check {name!r}; there are: {', '.join(_CHECKS)}"
    return checks, threshold, ""


def _ask(check: str, threshold: float, env: Mapping[str, str]) -> str:
    """Why the check fails, '' if it does not."""
    if check.startswith("felix"):
        kind = "liveness" if check.endswith("live") else "readiness"
        code = _http(f"/{kind}/felix", env)
        return "" if code == 200 else f"felix is not {check[6:]}: {kind} probe reporting {code}"
    if check.endswith("live"):
        codes = [_http(f"/liveness/{name}", env) for name in ("confd", "bgp")]
        return "" if codes == [200, 200] else f"bird/confd is not live: liveness probes reporting {codes}"
    family = 6 if check.startswith("bird6") else 4
    try:
        reason = bgp_unready(ask.status(), family, _age(env) < threshold)
    except ConfigError as err:
        reason = str(err)
    return f"{'BIRDv6' if family == 6 else 'BIRD'} is not ready: {reason}" if reason else ""


def bgp_unready(status: Status | None, family: int, young: bool) -> str:
    """Why BGP is not ready, '' if it is. Pure.

    Without peers it is. Shortly after a start (`young`) all must be established; later one will do,
    because a node must not go down with a dead neighbour.
    """
    if status is None:
        return "the BGP agent is not running"
    peers = [peer for peer in status.peers if peer.family == family]
    down = [peer.address for peer in peers if peer.state != "up"]
    if young and status.starting:
        return "graceful restart in progress"
    if not down or (not young and len(down) < len(peers)):
        return ""
    return "BGP not established with " + ",".join(sorted(down))


def _age(env: Mapping[str, str]) -> float:
    """Seconds since the node's last start, infinite if unknown."""
    try:
        return time.time() - os.stat(Paths.from_env(env).nodename).st_mtime
    except OSError:
        return float("inf")


class _Connection(http.client.HTTPConnection):
    """To the unix socket of the node's supervisor."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


def _http(path: str, env: Mapping[str, str]) -> int | str:
    """The status code, or why there was none."""
    with contextlib.closing(_Connection(Paths.from_env(env).probe_socket)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (FileNotFoundError, ConnectionRefusedError):
            return "no answer, calico-node is not running"
        except (OSError, http.client.HTTPException) as err:
            return str(err)
