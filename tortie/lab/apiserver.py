"""A real kube-apiserver: started by exec, ended by pid, asked over HTTPS.

It serves with a certificate of its own, knows our custom resources, and two users: an administrator, and
what a pod of the DaemonSet calico-node would be. Nothing of Kubernetes runs beside it: who wants nodes,
pods or what is behind services makes these objects.
"""

import base64
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tortie.core.errors import ConfigError

ADMIN_TOKEN = "administrator"
NODE_TOKEN = "calico-node"  # its rights are those of manifests/rbac.yaml, once that is applied
CONTROLLERS_TOKEN = "calico-kube-controllers"  # and its those of manifests/kube-controllers-rbac.yaml
_ACCOUNTS = (NODE_TOKEN, CONTROLLERS_TOKEN)  # each is the name of its service account, too
REGISTRY = "/registry/"  # where a server keeps everything in its etcd
_MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
_START_DEADLINE = 400.0  # seconds; it takes 3 on an idle machine
_REST = 0.05  # seconds between two looks
_ANSWER = 60.0  # seconds for one answer, on a busy machine


class ApiServer:
    def __init__(
        self,
        folder: Path,
        etcd: str,
        program: Callable[[], Path],
        address: str = "127.0.0.1",
        port: int = 6443,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        """`folder` takes its files; `etcd` is a running one's endpoint; `program` finds kube-apiserver.

        `flags` win over those that suit a server with nothing of Kubernetes beside it.
        """
        self.folder = folder
        self.url = f"https://{address}:{port}"
        self.ca = str(folder / "apiserver.crt")
        self._etcd, self._program = etcd, program
        self._address, self._port = address, port
        self._flags = dict(flags or {})
        self._process: subprocess.Popen[bytes] | None = None

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> None:
        """On an etcd that has no Kubernetes in it yet. Raises ConfigError."""
        self.write_files()
        # Before the server: told of one after the other it would work out its API's description each time.
        for definition in yaml.safe_load_all((_MANIFESTS / "crds.yaml").read_text()):
            self._define(definition)
        self.start_server()
        _wait_until(self._serves_all, "the custom resources to be served")

    def _define(self, definition: dict[str, Any]) -> None:
        name = definition["metadata"]["name"]
        definition["metadata"] |= birth()
        key = f"{REGISTRY}apiextensions.k8s.io/customresourcedefinitions/{name}"
        body = {"key": _base64(key), "value": _base64(json.dumps(definition))}
        request = urllib.request.Request(f"{self._etcd}/v3/kv/put", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=_ANSWER):
            pass

    def write_files(self) -> None:
        """What start_server() needs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        key = ["openssl", "genrsa", "-out", f"{self.folder}/accounts.key", "2048"]
        subprocess.run(key, check=True, capture_output=True)
        accounts = {token: f"system:serviceaccount:kube-system:{token}" for token in _ACCOUNTS}
        users = f'{ADMIN_TOKEN},admin,admin,"system:masters"\n'
        users += "".join(f"{token},{account},{token}\n" for token, account in accounts.items())
        Path(self.folder, "tokens").write_text(users)

    def start_server(self) -> None:
        """Again, on the same data and the same port. Raises ConfigError."""
        flags = {
            "etcd-servers": self._etcd,
            "service-account-key-file": f"{self.folder}/accounts.key",
            "service-account-signing-key-file": f"{self.folder}/accounts.key",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-cluster-ip-range": "10.96.0.0/16",
            "token-auth-file": f"{self.folder}/tokens",
            "authorization-mode": "RBAC",
            "allow-privileged": "true",  # agents of networks are
            "cert-dir": self.folder,
            "secure-port": self._port,
            "bind-address": self._address,
            "advertise-address": self._address,
            "endpoint-reconciler-type": "none",
            # No controller makes the accounts it asks for, and namespaces are there when somebody says so.
            "disable-admission-plugins": "ServiceAccount,NamespaceLifecycle",
            "etcd-compaction-interval": "0",  # history is forgotten when somebody says so
            **self._flags,
        }
        command = [str(self._program()), *(f"--{name}={value}" for name, value in flags.items())]
        with open(f"{self.folder}/log", "ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        _wait_until(self._ready, f"kube-apiserver, see {self.folder}/log")

    def _ready(self) -> bool:
        if not self.running:
            said = Path(self.folder, "log").read_text(errors="replace")[-2000:]
            raise ConfigError("kube-apiserver", self.url, f"has ended: {said}")
        try:
            self.ask("GET", "/readyz")
        except (OSError, RuntimeError):
            return False
        return True

    def _serves_all(self) -> bool:
        try:
            definitions = self.ask("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
            for definition in definitions:
                group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
                self.ask("GET", f"/apis/{group}/v1/{plural}?limit=1")
        except (OSError, RuntimeError):
            return False
        return True

    def stop_server(self) -> None:
        """At once."""
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

    # --- its content ----------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """One request; the answer's JSON, or its text. Raises RuntimeError if it is refused."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER, context=context) as reply:
                text = reply.read()
        except urllib.error.HTTPError as err:
            raise RuntimeError(f"{method} {path}: {err.read().decode()}") from err
        return json.loads(text) if text.startswith(b"{") else text.decode()

    def grant_node(self) -> None:
        """What `kubectl apply -f manifests/rbac.yaml` does."""
        for document in yaml.safe_load_all((_MANIFESTS / "rbac.yaml").read_text()):
            if document["kind"] != "ServiceAccount":
                path = f"/apis/rbac.authorization.k8s.io/v1/{document['kind'].lower()}s"
                self.ask("POST", path, document)

    def kubeconfig(self, token: str) -> str:
        """In JSON, which is YAML."""
        cluster = {"server": self.url, "certificate-authority": self.ca}
        context = {"cluster": "lab", "user": "lab"}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "lab",
                "clusters": [{"name": "lab", "cluster": cluster}],
                "users": [{"name": "lab", "user": {"token": token}}],
                "contexts": [{"name": "lab", "context": context}],
            }
        )


def birth() -> dict[str, Any]:
    """What a server gives each object; one without it counts as not there when it is written."""
    return {"uid": str(uuid.uuid4()), "creationTimestamp": "2027-01-15T08:00:00Z", "generation": 1}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise ConfigError("kube-apiserver", what, f"waited {_START_DEADLINE:.0f} s for it")
        time.sleep(_REST)
