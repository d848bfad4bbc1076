"""The lab's Kubernetes: an API server, and the objects that kubelets and controllers would write there."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tortie.core.errors import ConfigError
from tortie.lab.apiserver import ADMIN_TOKEN, NODE_TOKEN, ApiServer

_POD_FIELDS = ("labels", "annotations", "generateName")  # of `args` of a pod, as for the runtime
_MERGE = "application/merge-patch+json"


def find_program(name: str = "kube-apiserver") -> Path:
    """Where tests/support/kubernetes-programs puts or finds a program of Kubernetes. Raises ConfigError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tortie")
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), *os.environ.get("PATH", "").split(":")]
    folders += sorted(map(str, cache.glob("kubernetes-*")), reverse=True)
    if found := shutil.which(name, path=":".join(filter(None, folders))):
        return Path(found)
    raise ConfigError(name, "", "is not there: tests/support/kubernetes-programs builds it")


class ControlPlane:
    def __init__(
        self, folder: Path, etcd: str, address: str, program: Callable[[], Path] = find_program
    ) -> None:
        self.api = ApiServer(folder, etcd, program, address)
        self.ask = self.api.ask

    def start(self) -> None:
        self.api.start()
        self.api.grant_node()
        for name, token in (("admin", ADMIN_TOKEN), ("node", NODE_TOKEN)):
            path = self.kubeconfig(name)
            path.touch(0o600)
            path.write_text(self.api.kubeconfig(token))

    def stop(self) -> None:
        self.api.stop_server()

    def kubeconfig(self, user: str) -> Path:
        """`admin`: who may do everything; `node`: who may do what a node does."""
        return self.api.folder / f"{user}.kubeconfig"

    # --- nodes and namespaces -------------------------------------------------------------------

    def add_node(self, name: str, addresses: Sequence[str]) -> None:
        """What a kubelet does when it starts."""
        labels = {"kubernetes.io/hostname": name}
        self.ask("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
        internal = [{"type": "InternalIP", "address": one} for one in addresses]
        self.ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"addresses": internal}}, _MERGE)

    def add_namespace(
        self, name: str, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
    ) -> None:
        """Also for one that is there, whose labels are then these too."""
        metadata = {"name": name, "labels": dict(labels), "annotations": dict(annotations or {})}
        if name in (one["metadata"]["name"] for one in self.ask("GET", "/api/v1/namespaces")["items"]):
            self.ask("PATCH", f"/api/v1/namespaces/{name}", {"metadata": metadata}, _MERGE)
        else:
            self.ask("POST", "/api/v1/namespaces", {"metadata": metadata})

    # --- pods -----------------------------------------------------------------------------------

    def create_pod(self, name: str, namespace: str, node: str, args: Mapping[str, Any]) -> None:
        """What a user and the scheduler do; `args` as for Lab.add_pod."""
        metadata = {field: args[field] for field in _POD_FIELDS if field in args}
        container = {"name": "server", "image": "server", "ports": list(args.get("ports", []))}
        spec = {"nodeName": node, "containers": [container]}
        if "serviceAccountName" in args:
            spec["serviceAccountName"] = args["serviceAccountName"]
        body = {"metadata": {"name": name, **metadata}, "spec": spec}
        self.ask("POST", f"/api/v1/namespaces/{namespace}/pods", body)

    def report_pod(self, name: str, namespace: str, addresses: Sequence[str]) -> None:
        """What a kubelet says once the sandbox is there."""
        status = {
            "phase": "Running",
            "podIP": addresses[0],
            "podIPs": [{"ip": one} for one in addresses],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        self.ask("PATCH", f"{_pod(name, namespace)}/status", {"status": status}, _MERGE)

    def end_pod(self, name: str, namespace: str) -> None:
        """What `kubectl delete` does: the pod stays until its kubelet is done with it."""
        self.ask("DELETE", _pod(name, namespace), {"gracePeriodSeconds": 30})

    def forget_pod(self, name: str, namespace: str) -> None:
        """What a kubelet does when the sandbox is gone."""
        self.ask("DELETE", _pod(name, namespace), {"gracePeriodSeconds": 0})

    # --- services -------------------------------------------------------------------------------

    def put_slice(
        self, service: str, namespace: str, endpoints: Sequence[tuple[str, str]], port: int
    ) -> None:
        """What the controller of EndpointSlices writes; `endpoints` are (address, node) of ready pods."""
        path = f"/apis/discovery.k8s.io/v1beta1/namespaces/{namespace}/endpointslices"
        name = f"{service}-x"
        body = {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": [address],
                    "conditions": {"ready": True},
                    "topology": {"kubernetes.io/hostname": node},
                }
                for address, node in endpoints
            ],
            "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        }
        if any(one["metadata"]["name"] == name for one in self.ask("GET", path)["items"]):
            self.ask("PUT", f"{path}/{name}", body)
        else:
            self.ask("POST", path, body)


def _pod(name: str, namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"
