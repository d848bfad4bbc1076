"""Where the datastore is: CalicoAPIConfig, from a file or from the environment, never merged.

Precedence and names are calicoctl's (reference: CLI, 1.1): if the file exists only the file counts;
each variable is looked up as CALICO_<NAME> first, then as <NAME>.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tortie.core.errors import ConfigError

DEFAULT_PATH = "/etc/calico/calicoctl.cfg"


@dataclass(frozen=True, slots=True)
class DatastoreConfig:
    """Field names are the spec fields of CalicoAPIConfig; '' or () means not given."""

    datastoreType: str = ""
    etcdEndpoints: tuple[str, ...] = ()
    etcdDiscoverySrv: str = ""
    etcdUsername: str = ""
    etcdPassword: str = ""
    etcdKeyFile: str = ""
    etcdCertFile: str = ""
    etcdCACertFile: str = ""
    etcdKey: str = ""
    etcdCert: str = ""
    etcdCACert: str = ""
    kubeconfig: str = ""
    kubeconfigInline: str = ""
    k8sAPIEndpoint: str = ""
    k8sKeyFile: str = ""
    k8sCertFile: str = ""
    k8sCAFile: str = ""
    k8sAPIToken: str = ""
    k8sInsecureSkipTLSVerify: bool = False
    k8sDisableNodePoll: bool = False
    usePodCIDR: bool = False
    k8sClientQPS: float = 0
    k8sClientBurst: int = 0
    k8sCurrentContext: str = ""
    calicoAPIGroup: str = ""

    @property
    def type(self) -> str:
        """etcdv3 or kubernetes; unset means etcdv3 exactly when endpoints are given."""
        if self.datastoreType:
            return self.datastoreType
        return "etcdv3" if self.etcdEndpoints or self.etcdDiscoverySrv else "kubernetes"


# Fields without an environment variable: inline secrets belong in the file only.
_FILE_ONLY = {"etcdKey", "etcdCert", "etcdCACert", "kubeconfigInline"}
_ENV_NAMES = {  # field -> variable, where the name is not the field's own in capitals
    "datastoreType": "DATASTORE_TYPE",
    "etcdEndpoints": "ETCD_ENDPOINTS",
    "etcdDiscoverySrv": "ETCD_DISCOVERY_SRV",
    "etcdUsername": "ETCD_USERNAME",
    "etcdPassword": "ETCD_PASSWORD",
    "etcdKeyFile": "ETCD_KEY_FILE",
    "etcdCertFile": "ETCD_CERT_FILE",
    "etcdCACertFile": "ETCD_CA_CERT_FILE",
    "kubeconfig": "KUBECONFIG",
    "k8sAPIEndpoint": "K8S_API_ENDPOINT",
    "k8sKeyFile": "K8S_KEY_FILE",
    "k8sCertFile": "K8S_CERT_FILE",
    "k8sCAFile": "K8S_CA_FILE",
    "k8sAPIToken": "K8S_API_TOKEN",
    "k8sInsecureSkipTLSVerify": "K8S_INSECURE_SKIP_TLS_VERIFY",
    "k8sDisableNodePoll": "K8S_DISABLE_NODE_POLL",
    "usePodCIDR": "USE_POD_CIDR",
    "k8sClientQPS": "K8S_CLIENT_QPS",
    "k8sClientBurst": "K8S_CLIENT_BURST",
    "k8sCurrentContext": "K8S_CURRENT_CONTEXT",
    "calicoAPIGroup": "CALICO_API_GROUP",
}


def from_env(env: Mapping[str, str] = os.environ) -> DatastoreConfig:
    """Raises ConfigError naming the variable."""
    given: dict[str, Any] = {}  # field -> value
    for field, variable in _ENV_NAMES.items():
        for name in (f"CALICO_{variable}", variable):
            if name in env:
                given[field] = _convert(field, env[name], name)
                break
    return _checked(DatastoreConfig(**given))


def from_file(path: str) -> DatastoreConfig:
    """A CalicoAPIConfig in YAML or JSON; unknown fields are refused. Raises ConfigError, OSError."""
    import yaml  # only calicoctl and a few daemons read such a file

    with open(path, encoding="utf-8") as source:
        try:
            document = yaml.safe_load(source)
        except (yaml.YAMLError, UnicodeDecodeError) as err:
            raise ConfigError(path, "", f"syntax error in {path}: {err}") from err
    return from_document(document, path)


def from_document(document: Any, path: str) -> DatastoreConfig:
    """The same from parsed YAML; `path` only names the source in errors."""
    if not isinstance(document, dict):
        raise ConfigError(path, "", f"syntax error in {path}: not an object")
    if (version := document.get("apiVersion")) != "projectcalico.org/v3":
        reason = f"invalid config file: unknown APIVersion '{version}'"
        raise ConfigError(f"{path}: apiVersion", version, f"syntax error in {path}: {reason}")
    if (kind := document.get("kind")) != "CalicoAPIConfig":
        reason = f"invalid config file: expected kind 'CalicoAPIConfig', got '{kind}'"
        raise ConfigError(f"{path}: kind", kind, f"syntax error in {path}: {reason}")
    for name in document.keys() - {"apiVersion", "kind", "metadata", "spec"}:
        raise ConfigError(
            f"{path}: {name}", document[name], f'syntax error in {path}: unknown field "{name}"'
        )
    spec = document.get("spec") or {}
    if not isinstance(spec, dict):
        raise ConfigError(f"{path}: spec", spec, f"syntax error in {path}: spec is not an object")
    known = {field.name for field in fields(DatastoreConfig)}
    given = {}
    for name, value in spec.items():
        if name not in known:
            raise ConfigError(
                f"{path}: spec.{name}", value, f'syntax error in {path}: unknown field "{name}"'
            )
        given[name] = _convert(name, value, f"{path}: spec.{name}")
    return _checked(DatastoreConfig(**given))


def load(path: str = DEFAULT_PATH, env: Mapping[str, str] = os.environ) -> DatastoreConfig:
    """The file if it exists, else the environment; a missing file that was asked for is an error."""
    if os.path.exists(path):
        return from_file(path)
    if path != DEFAULT_PATH:
        raise ConfigError("--config", path, "no such file")
    return from_env(env)


def _convert(field: str, value: Any, where: str) -> Any:
    kind = DatastoreConfig.__dataclass_fields__[field].type
    if field == "etcdEndpoints":
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not all(isinstance(p, str) for p in parts):
            raise ConfigError(where, value, "expected a comma-separated list of URLs")
        return tuple(part.strip() for part in parts if part.strip())
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("1", "t", "true", "yes", "y"):
            return True
        if str(value).lower() in ("", "0", "f", "false", "no", "n"):
            return False
        raise ConfigError(where, value, "expected true or false")
    if kind in (int, float):
        try:
            return kind(value or 0)
        except (TypeError, ValueError) as err:
            raise ConfigError(where, value, "expected a number") from err
    if not isinstance(value, str):
        raise ConfigError(where, value, "expected a string")
    return value


def _checked(config: DatastoreConfig) -> DatastoreConfig:
    if config.datastoreType not in ("", "etcdv3", "kubernetes"):
        raise ConfigError("datastoreType", config.datastoreType, "must be etcdv3 or kubernetes")
    if config.type != "etcdv3":
        return config
    if config.etcdDiscoverySrv:
        # DNS SRV discovery would need a resolver library for one rarely used field.
        raise ConfigError(
            "etcdDiscoverySrv",
            config.etcdDiscoverySrv,
            "is not available: list the endpoints in etcdEndpoints",
        )
    if not config.etcdEndpoints:
        raise ConfigError("etcdEndpoints", "", "no etcd endpoints specified")
    for endpoint in config.etcdEndpoints:
        scheme, separator, rest = endpoint.partition("://")
        if scheme not in ("http", "https") or not separator or not rest.strip("/") or "/" in rest.rstrip("/"):
            raise ConfigError("etcdEndpoints", endpoint, "expected http[s]://host:port")
    inline = [config.etcdKey, config.etcdCert, config.etcdCACert]
    if any(inline) and any([config.etcdKeyFile, config.etcdCertFile, config.etcdCACertFile]):
        raise ConfigError("etcdKey", "…", "cannot mix inline certificates with certificate files")
    if bool(config.etcdKeyFile or config.etcdKey) != bool(config.etcdCertFile or config.etcdCert):
        raise ConfigError(
            "etcdKeyFile", config.etcdKeyFile, "a client certificate needs its key, and the key it"
        )
    return config
