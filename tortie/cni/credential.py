"""The CNI plugin's credential: a token of an account of its own, in a kubeconfig on the host.

A token lives for a day, and is replaced when a quarter of its life is over, as in Calico
(node/pkg/cni/token_watch.go); also when kubelet gives this pod another token, because the key that signs
them may have changed, and then no older one counts.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

import msgspec

from tortie.cni.conflist import kubeconfig
from tortie.cni.hostfiles import KUBECONFIG, HostFiles
from tortie.core.duration import parse_duration
from tortie.core.errors import ConfigError, DatastoreUnreachable
from tortie.core.files import read_or_none, write_atomic
from tortie.datastore import config
from tortie.datastore.kubernetes.api import Api
from tortie.datastore.kubernetes.kubeconfig import Server, locate

_log = logging.getLogger(__name__)

VALIDITY = 24 * 60 * 60  # seconds a token is asked for, Calico's number
_PART = 4  # of the life that is left after which a token is replaced; leaves room for a day's outage
_SHORTEST = 5.0  # seconds between two requests, whatever the server says of the token's life
_LOOK = 30.0  # seconds between two looks at this pod's own token
_ACCOUNT = "calico-cni-plugin"


@dataclass(frozen=True, slots=True)
class Token:
    text: str = field(repr=False)
    expires: float  # seconds since the epoch


def rest(expires: float, now: float, given: str, chance: float) -> float:
    """Seconds until a token is to be replaced. Pure.

    `given` is CNI_TOKEN_REFRESH_INTERVAL, `chance` from 0 to 1 spreads the nodes. Raises ConfigError.
    """
    pause = (expires - now) / _PART
    if given:
        try:
            pause = parse_duration(given)
        except ValueError as err:
            raise ConfigError("CNI_TOKEN_REFRESH_INTERVAL", given, str(err)) from err
    if expires < now + _SHORTEST * _PART:
        pause = _SHORTEST
    return max(pause, _SHORTEST) * (1 + chance)


async def keep(env: Mapping[str, str], files: HostFiles) -> None:
    """Write the kubeconfig, and again whenever its token is to be replaced. Raises TortieError."""
    while True:
        own = files.of_account("token")
        token = await write(env, files)
        given = env.get("CNI_TOKEN_REFRESH_INTERVAL", "")
        due = time.monotonic() + rest(token.expires, time.time(), given, Random().random())
        while (left := due - time.monotonic()) > 0 and files.of_account("token") == own:  # noqa: ASYNC110
            await asyncio.sleep(min(left, _LOOK))  # kubelet replaces the file now and then


async def write(env: Mapping[str, str], files: HostFiles) -> Token:
    """A new token and the kubeconfig that has it, in one step. Raises TortieError."""
    server = locate(config.from_env(env), env, account=files.account)
    account = env.get("CALICO_CNI_SERVICE_ACCOUNT") or _ACCOUNT
    token = await request(server, files.of_account("namespace") or "kube-system", account)
    insecure = server.insecure or env.get("SKIP_TLS_VERIFY") == "true"
    text = kubeconfig(server.url, _authority(server), token.text, insecure=insecure)
    path = f"{files.net_here}/{KUBECONFIG}"
    try:
        write_atomic(path, text, 0o600)
    except OSError as err:
        raise ConfigError("CNI_NET_DIR", path, err.strerror or str(err)) from err
    _log.info("wrote %s, with a token until %s", path, time.strftime("%FT%TZ", time.gmtime(token.expires)))
    return token


async def request(server: Server, namespace: str, account: str) -> Token:
    """A token of `account`, for the API's own audience. Raises DatastoreError."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [], "expirationSeconds": VALIDITY},
    }
    api = Api(server)
    try:
        return _token(await api.create(path, body), path)
    finally:
        await api.close()


def _token(answer: bytes, path: str) -> Token:
    try:
        status: dict[str, Any] = msgspec.json.decode(answer, type=dict[str, Any])["status"]
        expires = datetime.fromisoformat(status["expirationTimestamp"].replace("Z", "+00:00"))
        return Token(status["token"], expires.timestamp())
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, ValueError) as err:
        raise DatastoreUnreachable(f"POST {path}: the answer holds no token: {err!r}") from err


def _authority(server: Server) -> bytes:
    """Raises ConfigError."""
    if server.ca_data or not server.ca_file:
        return server.ca_data
    try:
        content = read_or_none(server.ca_file)
    except OSError as err:
        raise ConfigError("k8sCAFile", server.ca_file, err.strerror or str(err)) from err
    if content is None:
        raise ConfigError("k8sCAFile", server.ca_file, "does not exist")
    return content
