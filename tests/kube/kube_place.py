"""A real Kubernetes as a place for tests.policy.stage: its pods are kubelets', and started all at once."""

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tests.kube.kube_pods import opened
from tortie.lab.cluster import wait_until
from tortie.lab.kube import BUSYBOX, KubeLab
from tortie.lab.kubenode import KubeNode
from tortie.lab.pods import Pod

_CORE = "/api/v1/namespaces"


class LazyPod:
    """A pod that is asked for now, and waited for when somebody wants something of it."""

    def __init__(self, cluster: KubeLab, path: str) -> None:
        self._cluster, self._path = cluster, path

    @cached_property
    def _pod(self) -> Pod:
        def runs() -> bool:
            return bool(self._cluster.api.ask("GET", self._path)["status"].get("podIP"))

        wait_until(runs, f"{self._path} to run", 600, self._cluster.evidence)
        return opened(self._cluster, self._cluster.api.ask("GET", self._path))

    @property
    def netns_fd(self) -> int:
        return self._pod.netns_fd

    @property
    def addresses(self) -> list[str]:
        return self._pod.addresses

    def address(self, version: int) -> str:
        return self._pod.address(version)

    def close(self) -> None:
        if "_pod" in self.__dict__:
            os.close(self._pod.netns_fd)


class KubePlace:
    """Looks like a lab.cluster.Lab, as far as a stage looks."""

    def __init__(self, cluster: KubeLab) -> None:
        self._cluster = cluster
        self.pods: dict[str, LazyPod] = {}
        self._namespaces: list[str] = []

    @property
    def nodes(self) -> Mapping[str, KubeNode]:
        return self._cluster.nodes

    @property
    def kubernetes(self) -> "KubePlace":
        return self

    def datastore_env(self, _user: str) -> dict[str, str]:
        return {"DATASTORE_TYPE": "kubernetes", "KUBECONFIG": str(self._cluster.kubeconfig)}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return self._cluster.api.ask(method, path, body)

    def add_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """With the service account that a controller makes for it."""
        self.ask("POST", _CORE, {"metadata": {"name": name, "labels": dict(labels or {})}})
        self._namespaces.append(name)
        wait_until(lambda: "default" in self._accounts(name), f"the account of namespace {name}", 120)

    def _accounts(self, namespace: str) -> set[str]:
        """Those that have a token: a pod does not start without."""
        listed = self.ask("GET", f"{_CORE}/{namespace}/serviceaccounts")["items"]
        return {one["metadata"]["name"] for one in listed if one.get("secrets")}

    def add_pod(
        self, name: str, node: str, namespace: str, labels: Mapping[str, str], *, serving: bool, **args: Any
    ) -> LazyPod:
        """Nobody serves in it: a stage opens its own sockets."""
        account = args.get("serviceAccountName") or "default"
        wait_until(lambda: account in self._accounts(namespace), f"the account {account}", 120)
        container = {"name": "quiet", "image": BUSYBOX, "command": ["sleep", "2147483647"],
                     "ports": list(args.get("ports", ()))}  # fmt: skip
        spec = {"nodeName": node, "serviceAccountName": account, "terminationGracePeriodSeconds": 0,
                "containers": [container]}  # fmt: skip
        where = f"{_CORE}/{namespace}/pods"
        self.ask("POST", where, {"metadata": {"name": name, "labels": dict(labels)}, "spec": spec})
        self.pods[name] = LazyPod(self._cluster, f"{where}/{name}")
        return self.pods[name]

    def clear(self) -> None:
        """Everything that was added."""
        for pod in self.pods.values():
            pod.close()
        for name in self._namespaces:
            self._cluster.kubectl("delete", "namespace", name, "--wait=false", check=False)

        def gone() -> bool:
            left = self._cluster.get("namespaces")["items"]
            return not {one["metadata"]["name"] for one in left} & set(self._namespaces)

        wait_until(gone, "the stage to be cleared away", 300)
