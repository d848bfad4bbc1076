"""Where the datastore is: CalicoAPIConfig, from a file or from the environment, never merged.

Precedence and names are calicoctl's (reference: CLI, 1.1): if the file exists only the file counts;
each variable is looked up as CALICO_<NAME> first, then as <NAME>.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tortie.core.errors import ConfigError

DEFAULT_PATH = "/etc/calico/calicoctl.cfg"


@dataclass(frozen=True, slots=True)
class DatastoreConfig:
    """Field names are the spec fields of CalicoAPIConfig; '' or () means not given.

    Secrets are left out of its repr, so that a config can be logged.
    """

    datastoreType: str = ""
    etcdEndpoints: tuple[str, ...] = ()
    etcdDiscoverySrv: str = ""
    etcdUsername: str = ""
    etcdPassword: str = field(default="", repr=False)
    etcdKeyFile: str = ""
    etcdCertFile: str = ""
    etcdCACertFile: str = ""
    etcdKey: str = field(default="", repr=False)
    etcdCert: str = ""
    etcdCACert: str = ""
    kubeconfig: str = ""
    kubeconfigInline: str = field(default="", repr=False)
    k8sAPIEndpoint: str = ""
    k8sKeyFile: str = ""
    k8sCertFile: str = ""
    k8sCAFile: str = ""
    k8sAPIToken: str = field(default="", repr=False)
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
        return self.datastoreType or ("etcdv3" if self.etcdEndpoints else "kubernetes")


# field -> its environment variables, the first that is set counts (even if it is set to nothing). Inline
# certificates and kubeconfigInline belong in the file only.
_VARIABLES: dict[str, tuple[str, ...]] = {
    name: (f"CALICO_{variable}", variable)
    for name, variable in {
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
        "k8sInsecureSkipTLSVerify": "K8S_INSECURE_SKIP_TLS_VERIFY",
        "k8sDisableNodePoll": "K8S_DISABLE_NODE_POLL",
        "usePodCIDR": "USE_POD_CIDR",
        "k8sClientQPS": "K8S_CLIENT_QPS",
        "k8sClientBurst": "K8S_CLIENT_BURST",
        "k8sCurrentContext": "K8S_CURRENT_CONTEXT",
        "calicoAPIGroup": "CALICO_API_GROUP",
    }.items()
} | {"k8sAPIToken": ("CALICO_K8SAPITOKEN",)}  # it has no name of its own, so Go makes one of the field's


def load(path: str = DEFAULT_PATH, env: Mapping[str, str] = os.environ) -> DatastoreConfig:
    """The file if it exists, else the environment; a missing file that was asked for is an error.

    Raises ConfigError, whose `reason` is calicoctl's own text.
    """
    if os.path.exists(path):
        return from_file(path, env)
    if path != DEFAULT_PATH:
        raise ConfigError("--config", path, f"Error reading config file: {path}")
    return from_env(env)


def from_env(env: Mapping[str, str] = os.environ) -> DatastoreConfig:
    """Raises ConfigError naming the variable."""
    given: dict[str, Any] = {}  # field -> value
    sources: dict[str, str] = {}  # field -> variable
    for name, variables in _VARIABLES.items():
        for variable in variables:
            if variable in env:
                given[name] = _convert(name, env[variable], variable)
                sources[name] = variable
                break
    return check(_with_default_kubeconfig(DatastoreConfig(**given), env), sources)


def from_file(path: str, env: Mapping[str, str] = os.environ) -> DatastoreConfig:
    """A CalicoAPIConfig in YAML or JSON; unknown and repeated fields are refused. Raises ConfigError.

    Of `env` only HOME is used, to find the default kubeconfig.
    """
    import yaml  # only calicoctl and a few daemons read such a file

    class Loader(yaml.SafeLoader):
        """Refuses a key that occurs twice; YAML itself would take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for name in names:
                if names.count(name) > 1:
                    raise yaml.YAMLError(f'key "{name}" already set in map')
            return super().construct_mapping(node, deep)

    try:
        with open(path, encoding="utf-8") as source:
            document = yaml.load(source, Loader)
    except OSError as err:
        raise ConfigError("--config", path, f"Error reading config file: {path}: {err.strerror}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # also what is not UTF-8
        raise _syntax_error(path, "", f"failed to parse config as YAML/JSON: {_one_line(err)}") from err
    return check(_with_default_kubeconfig(from_document(document, path), env), {})


def from_document(document: Any, path: str) -> DatastoreConfig:
    """The same from parsed YAML; `path` only names the source in errors. Not checked yet."""
    document = {} if document is None else document  # an empty file is an empty object
    if not isinstance(document, dict):
        raise _syntax_error(path, document, "failed to parse config as YAML/JSON: not an object")
    if (version := document.get("apiVersion") or "") != "projectcalico.org/v3":
        raise _syntax_error(path, version, f"invalid config file: unknown APIVersion '{version}'")
    if (kind := document.get("kind") or "") != "CalicoAPIConfig":
        raise _syntax_error(path, kind, f"invalid config file: expected kind 'CalicoAPIConfig', got '{kind}'")
    spec = document.get("spec") or {}
    if not isinstance(spec, dict):
        raise _syntax_error(path, spec, "failed to parse config as YAML/JSON: spec is not an object")
    known = {known.name for known in fields(DatastoreConfig)}
    unknown = [*(document.keys() - {"apiVersion", "kind", "metadata", "spec"}), *(spec.keys() - known)]
    for name in unknown:
        raise _syntax_error(path, name, f'failed to parse config as YAML/JSON: unknown field "{name}"')
    given = {
        name: _convert(name, value, f"{path}: spec.{name}")
        for name, value in spec.items()
        if value is not None  # in Go null leaves a field as it is
    }
    return DatastoreConfig(**given)


def _syntax_error(path: str, value: object, reason: str) -> ConfigError:
    return ConfigError(path, value, f"syntax error in {path}: {reason}")


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())


def _convert(name: str, value: Any, where: str) -> Any:
    """A field's value from what the source has. Raises ConfigError, without the value of a secret."""
    known = DatastoreConfig.__dataclass_fields__[name]

    def wrong(expected: str) -> ConfigError:
        return ConfigError(where, value if known.repr else "…", f"expected {expected}")

    if name == "etcdEndpoints":
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not all(isinstance(p, str) for p in parts):
            raise wrong("a comma-separated list of URLs")
        return tuple(part.strip() for part in parts if part.strip())
    if known.type is bool:
        if str(value).lower() in ("1", "t", "true", "yes", "y"):
            return True
        if str(value).lower() in ("", "0", "f", "false", "no", "n"):
            return False
        raise wrong("true or false")
    if known.type in (int, float):
        try:
            number: float = known.type(value or 0)
        except (TypeError, ValueError, OverflowError) as err:
            raise wrong("a number") from err
        if isinstance(value, bool) or not 0 <= number < 1e9:  # nor NaN, nor infinity
            raise wrong("a number")
        return number
    if not isinstance(value, str):
        raise wrong("a string")
    return value


def _with_default_kubeconfig(config: DatastoreConfig, env: Mapping[str, str]) -> DatastoreConfig:
    if config.type != "kubernetes" or config.kubeconfig or config.k8sAPIEndpoint or not env.get("HOME"):
        return config
    usual = os.path.join(env["HOME"], ".kube", "config")
    return replace(config, kubeconfig=usual) if os.path.exists(usual) else config


def check(config: DatastoreConfig, sources: Mapping[str, str] | None = None) -> DatastoreConfig:
    """The config, if it can be connected with. Raises ConfigError naming the field, or its source."""

    def wrong(name: str, value: object, reason: str) -> ConfigError:
        return ConfigError((sources or {}).get(name, name), value, reason)

    if config.type not in ("etcdv3", "kubernetes"):
        raise wrong("datastoreType", config.datastoreType, "must be etcdv3 or kubernetes")
    if config.type != "etcdv3":
        return config
    if config.etcdDiscoverySrv and config.etcdEndpoints:
        reason = "multiple discovery or bootstrap options specified, "
        reason += 'use either "etcdEndpoints" or "etcdDiscoverySrv"'
        raise wrong("etcdDiscoverySrv", config.etcdDiscoverySrv, reason)
    if config.etcdDiscoverySrv:
        # DNS SRV discovery would need a resolver library for one rarely used field.
        reason = "is not available: list the endpoints in etcdEndpoints"
        raise wrong("etcdDiscoverySrv", config.etcdDiscoverySrv, reason)
    if not config.etcdEndpoints:
        raise wrong("etcdEndpoints", "", "no etcd endpoints specified")
    for endpoint in config.etcdEndpoints:
        if reason := _wrong_endpoint(endpoint):
            raise wrong("etcdEndpoints", endpoint, reason)
    inline = [config.etcdKey, config.etcdCert, config.etcdCACert]
    if any(inline) and any([config.etcdKeyFile, config.etcdCertFile, config.etcdCACertFile]):
        raise wrong("etcdKey", "…", "Cannot mix inline certificate-key and certificate / key files")
    for cert, key in (("etcdCertFile", "etcdKeyFile"), ("etcdCert", "etcdKey")):
        if bool(getattr(config, cert)) != bool(getattr(config, key)):
            raise wrong(key, getattr(config, key) and "…", f"{key} and {cert} must both be present")
    return config


def _wrong_endpoint(endpoint: str) -> str:
    """Why this cannot be dialled, '' if it can: http[s]://host:port, a slash may follow."""
    if endpoint.startswith(("unix:", "unixs:")):
        return "unix sockets are not supported, expected http[s]://host:port"
    match = re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})/?", endpoint, re.ASCII)
    return "" if match and 0 < int(match[2]) <= 65535 else "expected http[s]://host:port"
