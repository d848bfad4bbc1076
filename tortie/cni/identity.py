"""Who a call is about: node, orchestrator, workload, and every name that follows from them. Pure.

The names must come out the same in each call for a container, in felix and in the controllers, so
they are computed in one place each (datastore.names for Calico's). (Reference: CNI plugin, 4.2, 4.5.)
"""

import re
from dataclasses import dataclass, replace

from tortie.cni.netconf import Label, NetConf
from tortie.cni.protocol import Call, Code
from tortie.core.errors import CniError
from tortie.datastore.names import EndpointIds, host_interface, parse_endpoint_name
from tortie.ipam.names import cni_handle, legacy_cni_handle, vm_handle

K8S, CNI = "k8s", "cni"  # orchestrators
_ALIAS_MAX = 255  # bytes; the kernel's IFALIASZ with its NUL is 256


@dataclass(frozen=True, slots=True)
class Identity:
    """One attachment: a container (or the pod it is the sandbox of) on a network."""

    node: str
    network: str
    orchestrator: str
    namespace: str
    container_id: str
    ifname: str
    pod: str = ""  # '' for orchestrator cni
    prefix: str = "cali"  # of host-side interfaces
    uid: str = ""  # the pod's, if the runtime says it
    second: bool = False  # a pod's interface on a further network, beside its first
    vm: str = ""  # the KubeVirt VM whose addresses it is about, in place of the container's

    @property
    def workload(self) -> tuple[str, str]:
        """The pod, else the container."""
        return self.namespace, self.pod or self.container_id

    @property
    def host_interface(self) -> str:
        # No pod's name has a slash, so that no other pod's first interface has this name.
        pod = f"{self.pod}/{self.ifname}" if self.second else self.pod
        return host_interface(self.namespace, pod, container_id=self.container_id, prefix=self.prefix)

    @property
    def host_interfaces(self) -> tuple[str, ...]:
        """The names its host-side interface can have, where it is not known whether it is a second one."""
        both = [replace(self, second=second).host_interface for second in (False, bool(self.pod))]
        return tuple(dict.fromkeys(both))

    @property
    def handle(self) -> str:
        """What the container's addresses are held under in IPAM."""
        if self.vm:
            return vm_handle(self.network, self.namespace, self.vm)
        return cni_handle(self.network, self.container_id)

    @property
    def legacy_handle(self) -> str:
        """What version 2 of the plugin held them under; DEL still releases it."""
        return legacy_cni_handle(self.container_id, self.namespace, self.pod)

    @property
    def alias(self) -> str:
        """Written on the host-side interface, so that whose it is can be told without its container.

        Host-side names do not say it: a restarted pod's new sandbox has the same one.
        """
        return alias(self.network, self.container_id, self.ifname)

    def ids(self, endpoint: str = "") -> EndpointIds:
        """For the name of the WorkloadEndpoint; without `endpoint`, for the start of all of them."""
        container = "" if self.pod else self.container_id
        return EndpointIds(self.node, self.orchestrator, endpoint, pod=self.pod, containerID=container)

    def names(self, name: str) -> bool:
        """Whether this is the name of one of the workload's endpoints, whatever its interface."""
        parsed = parse_endpoint_name(name)
        return parsed is not None and parsed == self.ids(parsed.endpoint)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}" if self.pod else f"container {self.container_id}"


def alias(network: str, container_id: str, ifname: str) -> str:
    """`<network>/<container>/<interface>`, cut from the left: the end is what tells them apart."""
    return f"{network}/{container_id}/{ifname}"[-_ALIAS_MAX:]


def marked(alias: str) -> tuple[str, str]:
    """(network, container) of an alias that alias() made; '' and '' of any other."""
    parts = alias.split("/")
    return (parts[0], parts[1]) if len(parts) == 3 else ("", "")


def identify(call: Call, conf: NetConf, node: str, prefix: str = "cali") -> Identity:
    """With both a pod's name and namespace in CNI_ARGS it is a pod, else a container."""
    args = call.args
    is_pod = bool(args.pod and args.namespace)
    if is_pod:
        namespace = args.namespace
    else:
        namespace = label_namespace(conf.args.labels) or args.test_namespace or "default"
    _check_segment("K8S_POD_NAMESPACE", namespace)
    if is_pod:
        _check_segment("K8S_POD_NAME", args.pod)
    return Identity(
        node=node,
        network=conf.name,
        orchestrator=K8S if is_pod else CNI,
        namespace=namespace,
        container_id=call.container_id,
        ifname=call.ifname,
        pod=args.pod if is_pod else "",
        uid=args.uid if is_pod else "",
        prefix=prefix,
    )


_SEGMENT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")  # of Kubernetes names
_SEGMENT_MAX = 253


def _check_segment(variable: str, value: str) -> None:
    """Such a name becomes part of datastore keys and handles; nothing else may."""
    if len(value) > _SEGMENT_MAX or not _SEGMENT.fullmatch(value):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"ARGS: invalid {variable} {value[:60]!r}: must consist of lower case alphanumeric characters, "
            "'-' or '.', and must start and end with an alphanumeric character",
        )


# --- labels of containers that are no pods ------------------------------------------------------

_NAMESPACE_LABEL = "projectcalico.org/namespace"


def label_namespace(labels: tuple[Label, ...]) -> str:
    """The namespace that a container's labels put it into; '' if none does."""
    return next((sanitise(label.value) for label in labels if label.key == _NAMESPACE_LABEL), "")


def container_labels(labels: tuple[Label, ...]) -> dict[str, str]:
    """Mesos allows any text in labels; what Calico does not allow is replaced as Calico replaces it."""
    return {sanitise(label.key): sanitise(label.value) for label in labels if label.key != _NAMESPACE_LABEL}


def sanitise(text: str) -> str:
    """`a/b c` → `a.b-c`: only letters, digits, `-`, `_`, `.`; none of `.-` at either end."""
    text = re.sub(r"[^-_.a-zA-Z0-9]+", "-", text.replace("/", "."))
    return re.sub(r"[.-]*\.[.-]*", ".", text).strip(".-")
