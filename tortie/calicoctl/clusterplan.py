"""What `cluster diags` collects: commands and files, from lists of Kubernetes objects. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tortie.calicoctl.gather import Collected

CNI_LOGS = "/var/log/calico/cni"
_CERTIFICATES = frozenset({  # keys of a secret that are no secret
    "tls.crt", "cert", "cert.crt", "apiserver.crt", "managed-cluster.crt", "management-cluster.crt",
})  # fmt: skip
TLS_SECRETS = tuple(
    (namespace, name)
    for home, names in {
        "calico-system": (
            "calico-kube-controllers-metrics-tls", "calico-node-prometheus-server-tls", "node-certs",
            "typha-certs",
        ),
        "tigera-prometheus": ("calico-node-prometheus-client-tls", "calico-node-prometheus-tls"),
    }.items()
    for name in names
    for namespace in (home, "tigera-operator")
)  # fmt: skip
_RESOURCES = (
    "configmaps", "daemonsets", "deployments", "endpoints", "endpointslices", "pods", "pv", "pvc", "sc",
    "services", "statefulsets", "jobs", "cronjobs", "networkpolicies.networking.k8s.io",
    "adminnetworkpolicies.policy.networking.k8s.io",
    "baselineadminnetworkpolicies.policy.networking.k8s.io",
    "network-attachment-definitions.k8s.cni.cncf.io",
)  # fmt: skip
_CLUSTER_RESOURCES = (
    "nodes", "namespaces", "validatingwebhookconfigurations.admissionregistration.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io", "apiservices.apiregistration.k8s.io",
)  # fmt: skip
_NODE_COMMANDS = (  # what is run in a node's container, its file
    ("iptables-legacy-save -c", "iptables-legacy-save.txt"),
    ("iptables-nft-save -c", "iptables-nft-save.txt"),
    ("nft -n -a list ruleset", "nft-ruleset.txt"),
    ("ip route show table all", "ip-route.txt"),
    ("ip -6 route show table all", "ip-route-v6.txt"),
    ("ip rule", "ip-rule.txt"),
    ("ip addr", "ip-addr.txt"),
    ("ip link", "ip-link.txt"),
    ("ip neigh", "ip-neigh.txt"),
    ("ipset list", "ipset-list.txt"),
    ("conntrack -L", "conntrack-list.txt"),
    ("tc qdisc show", "tc-qdisc.txt"),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """`logs` is how many pods of each component to take logs of; `focus` are nodes to begin with."""

    since: str
    logs: int
    at_once: int
    focus: tuple[str, ...]


def node_order(focus: Sequence[str], nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """All nodes, those in focus first."""
    return list(dict.fromkeys([*focus, *(node["metadata"]["name"] for node in nodes)]))


def calico_namespaces(namespaces: Iterable[Mapping[str, Any]]) -> list[str]:
    names = [namespace["metadata"]["name"] for namespace in namespaces]
    # kube-system too: that is where the plain manifests put calico-node.
    return [name for name in names if "calico" in name or "tigera" in name or name == "kube-system"]


def chosen_pods(
    workloads: Iterable[Mapping[str, Any]],
    pods: Sequence[dict[str, Any]],
    nodes: Sequence[str],
    most: int,
) -> list[dict[str, Any]]:
    """Of each of Calico's workloads up to `most` pods, in the order of the nodes."""
    chosen = []
    for workload in workloads:
        meta = workload["metadata"]
        if meta["namespace"] == "kube-system" and not meta["name"].startswith("calico"):
            continue
        labels = (workload["spec"].get("selector") or {}).get("matchLabels") or {}
        theirs = [pod for pod in pods if labels and labels.items() <= _labels(pod).items()]
        rank = {node: index for index, node in enumerate(nodes)}
        placed = [pod for pod in theirs if pod["spec"].get("nodeName") in rank]
        chosen += sorted(placed, key=lambda pod: rank[pod["spec"]["nodeName"]])[:most]
    return chosen


def _labels(pod: Mapping[str, Any]) -> dict[str, str]:
    return pod["metadata"].get("labels") or {}


def is_node_pod(pod: Mapping[str, Any]) -> bool:
    return bool(pod["metadata"]["name"].startswith("calico-node-"))


def inside(pod: Mapping[str, Any]) -> tuple[str, ...]:
    """The beginning of a command line that runs something in a node's container."""
    meta = pod["metadata"]
    return ("kubectl", "exec", "-n", meta["namespace"], meta["name"], "-c", "calico-node", "--")


def node_commands(pod: Mapping[str, Any], cni_logs: Iterable[str]) -> Iterator[Collected]:
    node = pod["spec"]["nodeName"]
    for command, file in _NODE_COMMANDS:
        info = f"Collect {file.removesuffix('.txt')} for node {node}"
        yield Collected((*inside(pod), *command.split()), f"nodes/{node}/{file}", info)
    for log in cni_logs:
        info = f"Collect CNI log {log} for the node {node}"
        yield Collected((*inside(pod), "cat", f"{CNI_LOGS}/{log}"), f"nodes/{node}/{log}.log", info)


def pod_commands(pod: Mapping[str, Any], since: str) -> Iterator[Collected]:
    """A pod's logs, those of containers that ended before, and its description."""
    meta, node = pod["metadata"], pod["spec"]["nodeName"]
    namespace, name = meta["namespace"], meta["name"]
    base = ("kubectl", "logs", f"--since={since}", "-n", namespace, name)
    file, link = f"nodes/{node}/{namespace}/{name}", f"links/{namespace}/{name}"
    yield Collected((*base, "--all-containers"), f"{file}.log", f"Collect logs for pod {name}", f"{link}.log")
    describe = ("kubectl", "-n", namespace, "describe", "pods", name)
    yield Collected(describe, f"{file}.txt", f"Collect describe for pod {name}", f"{link}.txt")
    for container in containers_ended_before(pod):
        previous = (*base, "-c", container, "--previous")
        info = f"Collect previous logs for pod {name} container {container}"
        yield Collected(previous, f"{file}.{container}.previous.log", info)


def containers_ended_before(pod: Mapping[str, Any]) -> list[str]:
    """Containers that an earlier log exists of."""
    status = pod.get("status") or {}
    found = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return [
        one["name"]
        for one in found
        if one.get("restartCount", 0) > 0 or (one.get("lastState") or {}).get("terminated")
    ]


def cluster_commands(definitions: Iterable[Mapping[str, Any]]) -> Iterator[Collected]:
    """What is of the cluster as a whole; `definitions` are its CustomResourceDefinitions."""
    yield Collected(
        ("kubectl", "version", "-o", "yaml"), "cluster/version.yaml", "Collect Kubernetes version"
    )
    for resource in _RESOURCES:
        yield from _both(resource, f"cluster/kubernetes/{resource.partition('.')[0]}", everywhere=True)
    for resource in _CLUSTER_RESOURCES:
        yield from _both(resource, f"cluster/kubernetes/{resource.partition('.')[0]}", everywhere=False)
    for namespace in ("calico-system", "tigera-operator"):
        for form, end in (("yaml", "yaml"), ("wide", "txt")):
            command = ("kubectl", "get", "all", "-n", namespace, "-o", form)
            path = f"cluster/{namespace}/{namespace}.{end}"
            yield Collected(command, path, f"Collect all in {namespace} ({form})")
    for definition in definitions:
        name = definition["metadata"]["name"]
        if "projectcalico" in name or "tigera" in name:
            yield from _both(_qualified(definition), f"cluster/crd/{name}", everywhere=True)


def _both(resource: str, path: str, *, everywhere: bool) -> Iterator[Collected]:
    scope = ("--all-namespaces",) if everywhere else ()
    for form, end in (("yaml", "yaml"), ("wide", "txt")):
        command = ("kubectl", "get", resource, *scope, "-o", form)
        yield Collected(command, f"{path}.{end}", f"Collect {resource} ({form})")


def _qualified(definition: Mapping[str, Any]) -> str:
    """plural.version.group: several groups may have a resource of one name."""
    plural, _, group = definition["metadata"]["name"].partition(".")
    versions = [version["name"] for version in definition["spec"]["versions"] if version.get("storage")]
    return f"{plural}.{versions[0]}.{group}" if versions else f"{plural}.{group}"


def censored(secret: dict[str, Any]) -> dict[str, Any]:
    """A secret with its certificates, and nothing that is secret."""
    data = secret.get("data") or {}
    shown = {key: value if key in _CERTIFICATES else "<censored>" for key, value in data.items()}
    meta = {key: value for key, value in secret.get("metadata", {}).items() if key != "annotations"}
    return {"kind": "Secret", "apiVersion": "v1", "type": secret.get("type"), "metadata": meta, "data": shown}
