"""The network configuration that a runtime passes on standard input, typed and checked. Pure.

Fields and defaults are Calico's (cni-plugin/pkg/types/types.go; reference: CNI plugin, 4.1). What a
person wrote wrongly is refused here with the field's name, before anything has been touched; what
only means something on Windows is accepted and has no effect, as in Calico. Unknown fields are
other plugins' business.
"""

from typing import Any
from urllib.parse import urlsplit

import msgspec

from tortie.cni import result
from tortie.cni.protocol import CALICO_IPAM, Code, check_network_name, check_version
from tortie.core.errors import CniError, ConfigError
from tortie.datastore.types.pod import ContainerPort

HOST_LOCAL = "host-local"
VERSION_IF_MISSING = "0.2.0"  # what calico then answers in; calico-ipam answers 0.1.0
_MAX_QUEUES = 4096  # the kernel's limit for IFLA_NUM_TX_QUEUES
_SMALLEST_MTU, _LARGEST_MTU = 68, 65535  # IPv4's minimum (RFC 791), the kernel's maximum for veth


class _Conf(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Ipam(_Conf, frozen=True, kw_only=True):
    """Of calico-ipam; its booleans are texts in the JSON."""

    type: str = ""
    assign_ipv4: str | None = None  # anything but "false": one address
    assign_ipv6: str | None = None  # "true": one address
    ipv4_pools: tuple[str, ...] = ()  # CIDRs or names
    ipv6_pools: tuple[str, ...] = ()


class Policy(_Conf, frozen=True, kw_only=True):
    """`type` k8s: labels, annotations and profiles are the pod's; '': the network is the profile."""

    type: str = ""
    k8s_api_root: str = ""
    k8s_auth_token: str = ""
    k8s_client_certificate: str = ""
    k8s_client_key: str = ""
    k8s_certificate_authority: str = ""


class Kubernetes(_Conf, frozen=True, kw_only=True):
    kubeconfig: str = ""
    k8s_api_root: str = ""
    node_name: str = ""  # whose podCIDRs usePodCidr means; '': this node's


class FeatureControl(_Conf, frozen=True, kw_only=True):
    ip_addrs_no_ipam: bool = False
    floating_ips: bool = False


class ContainerSettings(_Conf, frozen=True, kw_only=True):
    allow_ip_forwarding: bool = False


class Label(_Conf, frozen=True, kw_only=True):
    key: str = ""
    value: str = ""


class _Labels(_Conf, frozen=True, kw_only=True):
    labels: tuple[Label, ...] = ()


class _NetworkInfo(_Conf, frozen=True, kw_only=True):
    labels: _Labels = _Labels()


class _Mesos(_Conf, frozen=True, kw_only=True):
    network_info: _NetworkInfo = _NetworkInfo()


class PodArgs(_Conf, frozen=True, kw_only=True):
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    serviceAccountName: str = ""
    generateName: str = ""
    ports: tuple[ContainerPort, ...] = ()


class NamespaceArgs(_Conf, frozen=True, kw_only=True):
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class KubernetesArgs(_Conf, frozen=True, kw_only=True):
    """What a runtime without a Kubernetes API says about a pod, in `args."org.projectcalico"`."""

    pod: PodArgs = PodArgs()
    namespace: NamespaceArgs = NamespaceArgs()


class Args(_Conf, frozen=True, kw_only=True):
    mesos: _Mesos = msgspec.field(default=_Mesos(), name="org.apache.mesos")
    projectcalico: KubernetesArgs | None = msgspec.field(default=None, name="org.projectcalico")

    @property
    def labels(self) -> tuple[Label, ...]:
        """Labels of a container that is no pod, in the form Mesos invented."""
        return self.mesos.network_info.labels.labels


class Attachment(_Conf, frozen=True, kw_only=True):
    containerID: str
    ifname: str


class NetConf(_Conf, frozen=True, kw_only=True):
    cniVersion: str = ""
    name: str = ""
    ipam: Ipam = Ipam()
    args: Args = Args()
    mtu: int = 0
    require_mtu_file: bool = False
    num_queues: int = 1
    device_type: str = ""
    nodename: str = ""
    nodename_file: str = ""
    nodename_file_optional: bool = False
    hostname: str = ""  # deprecated, `nodename` instead
    ipam_lock_file: str = ""
    datastore_type: str = ""
    etcd_endpoints: str = ""
    etcd_discovery_srv: str = ""
    etcd_scheme: str = ""
    etcd_authority: str = ""
    etcd_key_file: str = ""
    etcd_cert_file: str = ""
    etcd_ca_cert_file: str = ""
    qps: float = 0
    burst: int = 0
    calico_api_group: str = ""
    kubernetes: Kubernetes = Kubernetes()
    policy: Policy = Policy()
    feature_control: FeatureControl = FeatureControl()
    container_settings: ContainerSettings = ContainerSettings()
    include_default_routes: bool = False
    dataplane_options: dict[str, Any] = {}
    readiness_gates: tuple[str, ...] = ()
    policy_setup_timeout_seconds: int = 0
    endpoint_status_dir: str = ""
    log_level: str = ""
    log_file_path: str = ""
    log_file_max_size: int = 0  # MB; 0: 100
    log_file_max_age: int = 0  # days; 0: 30
    log_file_max_count: int = 0  # 0: 10
    prevResult: msgspec.Raw = msgspec.Raw()
    valid_attachments: tuple[Attachment, ...] | None = msgspec.field(
        default=None, name="cni.dev/valid-attachments"
    )

    @property
    def previous(self) -> dict[str, Any]:
        """prevResult as a plain object, {} if there is none. Raises CniError if it is something else."""
        try:
            return msgspec.json.decode(bytes(self.prevResult) or b"null", type=dict[str, Any] | None) or {}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
            raise CniError(Code.DECODING_FAILURE, f"could not parse prevResult: {err}") from err

    @property
    def delegates_ipam(self) -> bool:
        """Whether another program hands out the addresses."""
        return self.ipam.type != CALICO_IPAM

    @property
    def pod_policy(self) -> bool:
        return self.policy.type == "k8s"


def load(command: str, data: bytes) -> NetConf:
    """The configuration for one command. Raises CniError or ConfigError naming the field."""
    conf = decode(data)
    check_network_name(conf.name)
    check_version(command, conf.cniVersion or VERSION_IF_MISSING)
    if "/" in conf.ipam.type or "\0" in conf.ipam.type:
        raise ConfigError("ipam.type", conf.ipam.type, "must be the name of a plugin, not a path")
    if command == "ADD":  # anything else must be able to clean up after, or report on, what is wrong
        check(conf)
        result.check_previous(conf.previous)
    return conf


def decode(data: bytes) -> NetConf:
    """Raises CniError for malformed JSON and for values of the wrong type."""
    try:
        return msgspec.json.decode(data, type=NetConf)
    except msgspec.ValidationError:
        pass  # perhaps only a null, which Go reads as "not given"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise CniError(Code.DECODING_FAILURE, f"error unmarshall network config: {err}") from err
    try:
        return msgspec.convert(_without_nulls(msgspec.json.decode(data)), NetConf)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise CniError(Code.DECODING_FAILURE, f"failed to load netconf: {err}") from err


def for_windows(data: bytes) -> list[str]:
    """Fields of a configuration that mean something on Windows nodes only: they are ignored here."""
    if b'"windows_' not in data and b'"vxlan_' not in data:
        return []
    return sorted(field for field in msgspec.json.decode(data) if field.startswith(("windows_", "vxlan_")))


def version_of(data: bytes) -> str:
    """The version that errors about this input are to be given in, whatever else is wrong with it."""
    try:
        found = msgspec.json.decode(data, type=dict[str, Any]).get("cniVersion")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return VERSION_IF_MISSING
    return found if isinstance(found, str) and found else VERSION_IF_MISSING


def plain(data: bytes) -> dict[str, Any]:
    """The configuration as a plain object, to be changed and passed on; `data` passed load()."""
    return msgspec.json.decode(data, type=dict[str, Any])


def check(conf: NetConf) -> None:
    """What types cannot say. Raises ConfigError naming the field."""
    if conf.device_type not in ("", "veth", "netkit"):
        known = '(supported: "veth", "netkit")'
        raise CniError(
            Code.INVALID_NETWORK_CONFIG, f'unknown device_type "{conf.device_type}" in CNI config {known}'
        )
    if conf.mtu and not _SMALLEST_MTU <= conf.mtu <= _LARGEST_MTU:
        raise ConfigError("mtu", conf.mtu, f"must be 0 or {_SMALLEST_MTU} to {_LARGEST_MTU}")
    if conf.num_queues > _MAX_QUEUES:
        raise ConfigError("num_queues", conf.num_queues, f"at most {_MAX_QUEUES}")
    if conf.policy_setup_timeout_seconds < 0:
        delay = conf.policy_setup_timeout_seconds
        raise CniError(Code.INVALID_NETWORK_CONFIG, f"invalid pod startup delay of {delay}")
    for field in ("log_file_max_size", "log_file_max_age", "log_file_max_count"):
        if getattr(conf, field) < 0:
            raise ConfigError(field, getattr(conf, field), "must not be negative")
    _check_dataplane(conf.dataplane_options)
    for url in conf.readiness_gates:
        _check_gate(url)
    if not conf.ipam.type:
        raise ConfigError("ipam.type", "", "an IPAM plugin must be named, such as calico-ipam")


def _check_dataplane(options: dict[str, Any]) -> None:
    kind = options.get("type")
    if kind == "grpc":
        raise ConfigError("dataplane_options.type", kind, "only the Linux dataplane is built in")
    if kind is not None:
        raise CniError(Code.INVALID_NETWORK_CONFIG, f"invalid dataplane type: {kind}")


def _check_gate(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("readiness_gates", url, "invalid URL set for ReadinessGates: not an http(s) URL")


def _without_nulls(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {name: _without_nulls(value) for name, value in raw.items() if value is not None}
    if isinstance(raw, list):
        return [_without_nulls(item) for item in raw]
    return raw
