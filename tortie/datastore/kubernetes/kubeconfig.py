"""Where the API server is and who we are: kubeconfig files, overrides, and the pod we run in. Pure.

Order, as in client-go: the configuration's own fields over the kubeconfig's; without either the
service account of the pod. Of a list of kubeconfig files the first that says something counts.
(Reference: CLI, 1.1; libcalico-go/lib/backend/k8s/client.go; clientcmd's merging rules.)
"""

import base64
import binascii
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tortie.core.errors import ConfigError
from tortie.datastore.config import DatastoreConfig

_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # where kubelet mounts it, in every pod
_SECTIONS = {"user": "users", "cluster": "clusters", "context": "contexts"}  # of an entry -> of their list


@dataclass(frozen=True, slots=True)
class Server:
    """What a connection needs. Of each pair `…_data` counts; `…_file` is read anew as it changes."""

    url: str
    ca_file: str = ""
    ca_data: bytes = b""
    insecure: bool = False
    server_name: str = ""  # to verify, instead of the URL's host
    cert_file: str = ""
    cert_data: bytes = b""
    key_file: str = ""
    key_data: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    token_file: str = ""  # counts over `token`
    # The kubeconfigs that `token` is from, and the context chosen there: who keeps a connection reads them
    # anew, because the file of the CNI plugin gets another token every few hours.
    token_from: tuple[str, str] = field(default=("", ""), compare=False)
    username: str = ""
    password: str = field(default="", repr=False)


def locate(
    config: DatastoreConfig,
    env: Mapping[str, str] = os.environ,
    read: Callable[[str], str] | None = None,
    account: str = _ACCOUNT,
) -> Server:
    """The server to talk to. `read` gives a file's text. Raises ConfigError naming file or field."""
    if config.kubeconfigInline:
        server = from_kubeconfig([("kubeconfigInline", config.kubeconfigInline)], config.k8sCurrentContext)
    elif config.kubeconfig:
        server = _of_files(config.kubeconfig, config.k8sCurrentContext, read or _read)
    elif config.k8sAPIEndpoint:
        server = Server(config.k8sAPIEndpoint)
    else:
        server = _of_this_pod(env, account)
    return _overridden(server, config)


def _of_files(paths: str, context: str, read: Callable[[str], str]) -> Server:
    server = from_kubeconfig(_texts(paths.split(":"), read), context)
    return replace(server, token_from=(paths, context)) if server.token else server


def token_now(server: Server) -> str:
    """What the kubeconfigs of `token_from` have at this moment. Raises ConfigError."""
    return _of_files(*server.token_from, _read).token


def _overridden(server: Server, config: DatastoreConfig) -> Server:
    changes: dict[str, Any] = {}
    if config.k8sAPIEndpoint:
        changes["url"] = config.k8sAPIEndpoint
    if config.k8sCAFile:
        changes |= {"ca_file": config.k8sCAFile, "ca_data": b""}
    if config.k8sCertFile:
        changes |= {"cert_file": config.k8sCertFile, "cert_data": b""}
    if config.k8sKeyFile:
        changes |= {"key_file": config.k8sKeyFile, "key_data": b""}
    if config.k8sAPIToken:
        changes |= {"token": config.k8sAPIToken, "token_file": "", "token_from": ("", "")}
    if config.k8sInsecureSkipTLSVerify:
        changes |= {"insecure": True, "ca_file": "", "ca_data": b""}
    return replace(server, **changes)


def _of_this_pod(env: Mapping[str, str], account: str) -> Server:
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        reason = (
            "no kubeconfig and no API endpoint are given, and this is no pod with a service account; "
            "for etcd set datastoreType to etcdv3 and etcdEndpoints"
        )
        raise ConfigError("KUBERNETES_SERVICE_HOST", host, reason)
    return Server(
        f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        ca_file=f"{account}/ca.crt",
        token_file=f"{account}/token",
    )


# --- kubeconfig ---------------------------------------------------------------------------------


def _texts(paths: list[str], read: Callable[[str], str]) -> list[tuple[str, str]]:
    """(path, text) of the files that exist. Of several some may be missing, as in kubectl."""
    found = []
    for path in filter(None, paths):
        try:
            found.append((path, read(path)))
        except FileNotFoundError as err:
            if len(paths) == 1:
                raise ConfigError("kubeconfig", path, "does not exist") from err
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError("kubeconfig", path, f"cannot be read: {err}") from err
    return found


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as source:
        return source.read()


def from_kubeconfig(texts: list[tuple[str, str]], context: str = "") -> Server:
    """What kubeconfigs, as (path, text), say of a context ('': the current one). Raises ConfigError."""
    documents = [(path, _document(path, text)) for path, text in texts]
    named: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}  # (singular, name) -> path, entry
    for path, document in documents:
        for singular, plural in _SECTIONS.items():
            for entry in _list(document.get(plural), path, plural):
                if isinstance(entry, dict) and isinstance(entry.get(singular) or {}, dict):
                    named.setdefault((singular, str(entry.get("name"))), (path, entry.get(singular) or {}))
    where = documents[0][0] if documents else "kubeconfig"
    current = context or next((d["current-context"] for _, d in documents if d.get("current-context")), "")
    chosen = _entry(named, "context", current, where)[1]
    cluster_path, cluster = _entry(named, "cluster", chosen.get("cluster"), where)
    user_path, user = _entry(named, "user", chosen.get("user"), where) if chosen.get("user") else (where, {})
    return _server(cluster, os.path.dirname(cluster_path), user, os.path.dirname(user_path), user_path)


def _document(path: str, text: str) -> dict[str, Any]:
    import yaml  # only where a kubeconfig is used

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise ConfigError("kubeconfig", path, f"is no YAML: {' '.join(str(err).split())}") from err
    if not isinstance(document, dict):
        raise ConfigError("kubeconfig", path, "is no kubeconfig: not an object")
    return document


def _list(value: Any, path: str, name: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ConfigError("kubeconfig", path, f"{name} is not a list")
    return value or []


def _entry(
    named: Mapping[tuple[str, str], tuple[str, dict[str, Any]]], singular: str, name: Any, where: str
) -> tuple[str, dict[str, Any]]:
    found = named.get((singular, str(name)))
    if found is None:
        raise ConfigError("kubeconfig", where, f"has no {singular} {name!r}")
    return found


def _server(
    cluster: dict[str, Any], cluster_dir: str, user: dict[str, Any], user_dir: str, path: str
) -> Server:
    for name in ("exec", "auth-provider"):
        if user.get(name):
            reason = f"logs in by {name}, which needs a program of its provider: use a token or a certificate"
            raise ConfigError("kubeconfig", path, reason)
    return Server(
        _text(cluster, "server", path),
        ca_file=_file(cluster, "certificate-authority", cluster_dir, path),
        ca_data=_data(cluster, "certificate-authority-data", path),
        insecure=cluster.get("insecure-skip-tls-verify") is True,
        server_name=_text(cluster, "tls-server-name", path),
        cert_file=_file(user, "client-certificate", user_dir, path),
        cert_data=_data(user, "client-certificate-data", path),
        key_file=_file(user, "client-key", user_dir, path),
        key_data=_data(user, "client-key-data", path),
        token_file=_file(user, "tokenFile", user_dir, path),
        token=_text(user, "token", path),
        username=_text(user, "username", path),
        password=_text(user, "password", path),
    )


def _text(entry: Mapping[str, Any], name: str, path: str) -> str:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError("kubeconfig", path, f"{name} is not a string")
    return value or ""


def _file(entry: Mapping[str, Any], name: str, directory: str, path: str) -> str:
    """A path in a kubeconfig is relative to the file that names it."""
    value = _text(entry, name, path)
    return os.path.join(directory, value) if value else ""


def _data(entry: Mapping[str, Any], name: str, path: str) -> bytes:
    try:
        return base64.b64decode(_text(entry, name, path), validate=True)
    except (binascii.Error, ValueError) as err:
        raise ConfigError("kubeconfig", path, f"{name} is not base64") from err
