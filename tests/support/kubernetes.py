"""A real kube-apiserver for tests, on an etcd of its own, started by exec and ended by pid.

What a test prepares and inspects goes through `ask`, or past the API server straight into its etcd,
where it keeps custom resources as JSON: that is how broken objects come to be that no schema lets in.
"""

import json
import os
import shutil
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.etcd import Etcd, free_port, wait_until
from tortie.datastore.config import DatastoreConfig

_HERE = Path(__file__).parent
_CRDS = _HERE.parent.parent / "manifests" / "crds.yaml"
_START_DEADLINE = 60.0  # seconds; it takes 3 on an idle machine
_BUILD_DEADLINE = 3000.0  # seconds, where nobody has built it before; minutes on an idle machine
_TOKEN = "administrator"
NODE_TOKEN = "calico-node"  # what a pod of the DaemonSet would be given
_REGISTRY = "/registry/"
_CRD_GROUP = "crd.projectcalico.org"
# Collections that tests fill, as etcd has them
_FILLED = (f"{_CRD_GROUP}/", "pods/", "minions/", "networkpolicies/", "serviceaccounts/", "services/")
_OWN_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


@cache
def programs(*names: str) -> Path:
    """The directory that holds these programs; they are built if they cannot be found."""
    found = subprocess.run(
        [str(_HERE / "kubernetes-programs"), *names],
        check=True, stdout=subprocess.PIPE, text=True, timeout=_BUILD_DEADLINE,
    )  # fmt: skip
    return Path(found.stdout.strip())


class ApiServer:
    """Serves on 127.0.0.1 with a certificate of its own; the only user may do everything."""

    def __init__(self) -> None:
        self.etcd = Etcd()
        self.folder = tempfile.mkdtemp(
            prefix="tortie-apiserver-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        )
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca = f"{self.folder}/apiserver.crt"
        self.token = _TOKEN
        self._process: subprocess.Popen[bytes] | None = None

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> "ApiServer":
        self.etcd.start()
        self._write_files()
        # Before the server: told of one after the other it would work out its API's description each time.
        for definition in yaml.safe_load_all(_CRDS.read_text()):
            self._define(definition)
        self.start_server()
        wait_until(self._serves_all, _START_DEADLINE, "the custom resources to be served")
        return self

    def _define(self, definition: dict[str, Any]) -> None:
        name = definition["metadata"]["name"]
        definition["metadata"] |= _birth()
        path = f"{_REGISTRY}apiextensions.k8s.io/customresourcedefinitions/{name}"
        self.etcd.put(path, json.dumps(definition))

    def _write_files(self) -> None:
        key = ["openssl", "genrsa", "-out", f"{self.folder}/accounts.key", "2048"]
        subprocess.run(key, check=True, capture_output=True)
        account = "system:serviceaccount:kube-system:calico-node"
        Path(self.folder, "tokens").write_text(
            f'{_TOKEN},admin,admin,"system:masters"\n{NODE_TOKEN},{account},node\n'
        )

    def start_server(self) -> None:
        flags = {
            "etcd-servers": self.etcd.endpoint,
            "service-account-key-file": f"{self.folder}/accounts.key",
            "service-account-signing-key-file": f"{self.folder}/accounts.key",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-cluster-ip-range": "10.96.0.0/16",
            "token-auth-file": f"{self.folder}/tokens",
            "authorization-mode": "RBAC",
            "cert-dir": self.folder,
            "secure-port": self.port,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "endpoint-reconciler-type": "none",
            # No controller makes the accounts that it asks for, and namespaces are there when a test says so.
            "disable-admission-plugins": "ServiceAccount,NamespaceLifecycle",
            "etcd-compaction-interval": "0",  # history is forgotten when a test says so
        }
        command = [str(programs("kube-apiserver") / "kube-apiserver")]
        command += [f"--{name}={value}" for name, value in flags.items()]
        with open(f"{self.folder}/log", "ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command], stdout=log, stderr=log
            )
        wait_until(self._ready, _START_DEADLINE, f"kube-apiserver, see {self.folder}/log")

    def _ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"kube-apiserver has ended: {Path(self.folder, 'log').read_text()[-2000:]}")
        try:
            self.ask("GET", "/readyz")
        except (OSError, RuntimeError):
            return False
        return True

    def _serves_all(self) -> bool:
        definitions = self.ask("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
        try:
            for definition in definitions:
                self.ask("GET", f"/apis/{_CRD_GROUP}/v1/{definition['spec']['names']['plural']}")
        except RuntimeError:
            return False
        return True

    def stop_server(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("kube-apiserver is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        self.stop_server()
        self.etcd.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- its content ----------------------------------------------------------------------------

    def config(self, **changes: Any) -> DatastoreConfig:
        given = {"k8sAPIEndpoint": self.url, "k8sCAFile": self.ca, "k8sAPIToken": _TOKEN}
        # A thousand requests of a test are not to wait for each other.
        rates = {"k8sClientQPS": 10_000.0, "k8sClientBurst": 10_000}
        return DatastoreConfig(**({"datastoreType": "kubernetes"} | given | rates | changes))

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """One request; the answer's JSON, or its text. Raises RuntimeError if it is refused."""
        headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as reply:
                text = reply.read()
        except urllib.error.HTTPError as err:
            raise RuntimeError(f"{method} {path}: {err.read().decode()}") from err
        return json.loads(text) if text.startswith(b"{") else text.decode()

    def wipe(self) -> None:
        """Past the server, which then tells its watchers."""
        for prefix in (_REGISTRY + filled for filled in _FILLED):
            self.etcd.delete_all(prefix)
        for key in self.etcd.entries(f"{_REGISTRY}namespaces/"):
            if key.rpartition("/")[2] not in _OWN_NAMESPACES:
                self.etcd.delete(key)

    def put_custom(self, plural: str, kind: str, name: str, metadata: Mapping[str, Any], rest: Any) -> None:
        """A custom resource as nobody could send it: `rest` is everything but metadata."""
        given = {"name": name, **_birth(), **metadata}
        body = {**rest, "apiVersion": f"{_CRD_GROUP}/v1", "kind": kind, "metadata": given}
        self.etcd.put(f"{_REGISTRY}{_CRD_GROUP}/{plural}/{name}", json.dumps(body))

    def put_customs(self, plural: str, kind: str, names: list[str]) -> None:
        """Many empty ones, at most 128, in one transaction."""
        self.etcd.put_all(
            {
                f"{_REGISTRY}{_CRD_GROUP}/{plural}/{name}": json.dumps(
                    {"apiVersion": f"{_CRD_GROUP}/v1", "kind": kind, "metadata": {"name": name, **_birth()}}
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


def _birth() -> dict[str, Any]:
    """What the server gives each object; one without it counts as not there when it is written."""
    return {"uid": str(uuid.uuid4()), "creationTimestamp": "2027-01-15T08:00:00Z", "generation": 1}
