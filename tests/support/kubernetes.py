"""A real kube-apiserver for tests, on an etcd of its own, started by exec and ended by pid.

What a test prepares and inspects goes through `ask`, or past the API server straight into its etcd,
where it keeps custom resources as JSON: that is how broken objects come to be that no schema lets in.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.etcd import Etcd, free_port
from tortie.datastore.config import DatastoreConfig
from tortie.lab import apiserver
from tortie.lab.apiserver import ADMIN_TOKEN, NODE_TOKEN, REGISTRY, birth

__all__ = ["NODE_TOKEN", "ApiServer", "programs"]

_HERE = Path(__file__).parent
_BUILD_DEADLINE = 3000.0  # seconds, where nobody has built it before; minutes on an idle machine
_CRD_GROUP = "crd.projectcalico.org"
# Collections that tests fill, as etcd has them
_FILLED = (f"{_CRD_GROUP}/", "pods/", "minions/", "networkpolicies/", "serviceaccounts/", "services/",
           "endpointslices/", "secrets/", "leases/kube-system/")  # fmt: skip
_OWN_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


@cache
def programs(*names: str) -> Path:
    """The directory that holds these programs; they are built if they cannot be found."""
    found = subprocess.run(
        [str(_HERE / "kubernetes-programs"), *names],
        check=True, stdout=subprocess.PIPE, text=True, timeout=_BUILD_DEADLINE,
    )  # fmt: skip
    return Path(found.stdout.strip())


class ApiServer(apiserver.ApiServer):
    """Serves on 127.0.0.1 from an etcd of its own, in a folder that vanishes."""

    def __init__(self) -> None:
        self.etcd = Etcd()
        folder = tempfile.mkdtemp(
            prefix="tortie-apiserver-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        )
        super().__init__(
            Path(folder),
            self.etcd.endpoint,
            lambda: programs("kube-apiserver") / "kube-apiserver",
            port=free_port(),
        )

    def start(self) -> None:
        self.etcd.start()
        super().start()

    def close(self) -> None:
        self.stop_server()
        self.etcd.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- its content ----------------------------------------------------------------------------

    def config(self, **changes: Any) -> DatastoreConfig:
        given = {"k8sAPIEndpoint": self.url, "k8sCAFile": self.ca, "k8sAPIToken": ADMIN_TOKEN}
        # A thousand requests of a test are not to wait for each other.
        rates = {"k8sClientQPS": 10_000.0, "k8sClientBurst": 10_000}
        return DatastoreConfig(**({"datastoreType": "kubernetes"} | given | rates | changes))

    def wipe(self) -> None:
        """Past the server, which then tells its watchers."""
        for prefix in (REGISTRY + filled for filled in _FILLED):
            self.etcd.delete_all(prefix)
        for key in self.etcd.entries(f"{REGISTRY}namespaces/"):
            if key.rpartition("/")[2] not in _OWN_NAMESPACES:
                self.etcd.delete(key)

    def put_custom(self, plural: str, kind: str, name: str, metadata: Mapping[str, Any], rest: Any) -> None:
        """A custom resource as nobody could send it: `rest` is everything but metadata."""
        given = {"name": name, **birth(), **metadata}
        body = {**rest, "apiVersion": f"{_CRD_GROUP}/v1", "kind": kind, "metadata": given}
        self.etcd.put(f"{REGISTRY}{_CRD_GROUP}/{plural}/{name}", json.dumps(body))

    def put_customs(self, plural: str, kind: str, names: list[str]) -> None:
        """Many empty ones, at most 128, in one transaction."""
        self.etcd.put_all(
            {
                f"{REGISTRY}{_CRD_GROUP}/{plural}/{name}": json.dumps(
                    {"apiVersion": f"{_CRD_GROUP}/v1", "kind": kind, "metadata": {"name": name, **birth()}}
                )
                for name in names
            }
        )

    def custom(self, plural: str, name: str) -> dict[str, Any]:
        """As the server gives it."""
        found: dict[str, Any] = self.ask("GET", f"/apis/{_CRD_GROUP}/v1/{plural}/{name}")
        return found

    def forget_history(self) -> None:
        """Compact etcd; the server's own memory of changes goes only with the server."""
        self.etcd.compact()
        self.stop_server()
        self.start_server()
