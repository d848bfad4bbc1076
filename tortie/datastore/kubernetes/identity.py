"""Who we are to the API server, now: TLS and the Authorization header, from files that are replaced.

Kubernetes rotates what a pod is given: a service account's token within the hour, certificates within
months. Tokens are read again every minute and after a refusal, also those that stand in a kubeconfig;
certificates for each new connection if their file has changed.
"""

import base64
import contextlib
import os
import ssl
from collections.abc import Iterator

from tortie.core.errors import ConfigError
from tortie.datastore.kubernetes.kubeconfig import Server, token_now

_TOKEN_FRESH = 60.0  # seconds for which a token is not read again, client-go's number


class Identity:
    def __init__(self, server: Server) -> None:
        self._server = server
        self._token, self._read_at = server.token, 0.0  # read_at: the clock's reading, 0 is never
        self._context: ssl.SSLContext | None = None
        self._made_from: tuple[int, ...] = ()  # when the files were changed that the context is of

    def authorization(self, now: float) -> str:
        """The header's value, '' for none; `now` is a monotonic clock's. Raises ConfigError."""
        server = self._server
        if self._rereads and (not self._read_at or now - self._read_at > _TOKEN_FRESH):
            text = _text(server.token_file) if server.token_file else token_now(server)
            self._token, self._read_at = text, now
        if self._token:
            return f"Bearer {self._token}"
        if server.username:
            return "Basic " + base64.b64encode(f"{server.username}:{server.password}".encode()).decode()
        return ""

    def refused(self) -> bool:
        """The server did not take the token. True if there may be another one now: ask again."""
        self._read_at = 0.0
        return self._rereads

    @property
    def _rereads(self) -> bool:
        return bool(self._server.token_file or self._server.token_from[0])

    def tls(self) -> tuple[ssl.SSLContext, str]:
        """Context and the name to verify ('' for the URL's host). Raises ConfigError naming a file."""
        server = self._server
        made_from = tuple(_changed_at(path) for path in (server.ca_file, server.cert_file, server.key_file))
        if self._context is None or made_from != self._made_from:
            self._context, self._made_from = _context(server), made_from
        return self._context, server.server_name


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as source:
            token = source.read().strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError("k8sAPIToken", path, f"cannot be read: {err}") from err
    if not token.isprintable() or " " in token:
        raise ConfigError("k8sAPIToken", path, "holds no token")
    return token


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns if path else 0
    except OSError as err:
        raise ConfigError("k8sCAFile", path, f"cannot be read: {err.strerror}") from err


def _context(server: Server) -> ssl.SSLContext:
    # Not create_default_context: that trusts the host's authorities beside the one given, and since
    # Python 3.13 refuses authorities as Kubernetes' own tools made them for years.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if server.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        if server.ca_data:
            context.load_verify_locations(cadata=server.ca_data.decode("ascii"))
        elif server.ca_file:
            context.load_verify_locations(server.ca_file)
        elif not server.insecure:
            context.load_default_certs()
    except (OSError, ValueError) as err:  # ssl.SSLError is an OSError
        raise ConfigError("k8sCAFile", server.ca_file or "…", f"is no certificate in PEM: {err}") from err
    if server.cert_data or server.cert_file:
        _load_key(context, server)
    return context


def _load_key(context: ssl.SSLContext, server: Server) -> None:
    try:
        with (
            _as_file(server.cert_data, server.cert_file) as cert,
            _as_file(server.key_data, server.key_file) as key,
        ):
            context.load_cert_chain(cert, key or None)
    except (OSError, ValueError) as err:
        reason = f"is no certificate in PEM, or the key belongs to another: {err}"
        raise ConfigError("k8sCertFile", server.cert_file or "…", reason) from err


@contextlib.contextmanager
def _as_file(data: bytes, path: str) -> Iterator[str]:
    """Python takes keys from files only; one that is given as data must not touch a disk."""
    if not data:
        yield path
        return
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
