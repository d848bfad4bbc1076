"""What tests of a real Kubernetes share: pods for the lab's traffic tools, a policy, what calicoctl shows."""

import json
import sys
from typing import Any

import yaml

from tortie.lab import echo
from tortie.lab.box import LabError
from tortie.lab.cluster import wait_until
from tortie.lab.kube import BUSYBOX, KubeLab
from tortie.lab.pods import Pod
from tortie.lab.probe import Probe, run
from tortie.linux import netns

_FOLDER = "/run/netns"  # where containerd keeps sandboxes' namespaces
DENY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "deny"},
    "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]},
}  # nobody reaches the pods of the Deployment `web`


def shown(cluster: KubeLab, *words: str) -> Any:
    answer = cluster.calicoctl(*words, "-o", "yaml")
    assert answer.returncode == 0, answer.stderr
    return yaml.safe_load(answer.stdout)


def quiet(name: str, node: str) -> dict[str, Any]:
    """A pod that does nothing by itself."""
    container = {"name": "quiet", "image": BUSYBOX, "command": ["sleep", "2147483647"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "quiet"}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]},
    }


def start(cluster: KubeLab, **nodes: str) -> dict[str, Pod]:
    """Name -> a pod on that node, with an echo server in it that answers."""
    for name, node in nodes.items():
        cluster.apply(json.dumps(quiet(name, node)))
    found = {
        one["metadata"]["name"]: one for one in cluster.wait_pods("app=quiet", len(nodes))
    }  # fmt: skip
    pods = {name: opened(cluster, found[name]) for name in nodes}
    for name, pod in pods.items():
        server = [sys.executable, "-I", "-S", echo.__file__, name, "80"]
        log = cluster.folder / f"pod-{name}.log"
        pod.box.start(["nsenter", f"--net={pod.netns_path}", "--", *server], log)
    probes = [Probe(a.netns_fd, b.address(), 80) for a in pods.values() for b in pods.values() if a is not b]
    wait_until(lambda: all(one.ok for one in run(probes)), "the echo servers to answer", 240)
    return pods


def opened(cluster: KubeLab, found: dict[str, Any]) -> Pod:
    """Its namespace is known by the address that is in it. Raises LabError."""
    box, address = cluster.nodes[found["spec"]["nodeName"]].box, found["status"]["podIP"]
    for path in box.path(_FOLDER).iterdir():
        if f" {address}/32" in box.output("ip", "-n", path.name, "-br", "addr"):
            name, namespace = found["metadata"]["name"], found["metadata"]["namespace"]
            inside = f"{_FOLDER}/{path.name}"
            return Pod(name, box, namespace, path.name, inside, netns.open(str(path)), [address])
    raise LabError(f"{box.name}: no namespace has {address}")
