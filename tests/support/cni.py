"""A machine with a CNI server: a network namespace as its host, an etcd in it, the real plugin binaries.

Plugins are run as a runtime runs them, inside the host's namespace; containers are nameless namespaces
that end with the test. `remains` says what is left of any container, which after each test is nothing.
"""

import contextlib
import ctypes
import hashlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.netns_lab import Namespace
from tests.support.etcd import Etcd, wait_until
from tortie.datastore.codec import encode
from tortie.datastore.keys import key_of
from tortie.datastore.types.cluster import ClusterInformation, ClusterInformationSpec
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta, Resource
from tortie.datastore.types.node import Node, NodeSpec, NodeStatus
from tortie.lab.runtime import Attachment, Chain, attachment
from tortie.linux import links, netns

NODE = "node-1"
NETWORK = "k8s-pod-network"
WARM_HANDLE = f"warm-pool-{NODE}"  # of addresses that are kept ready
UPSTREAM = "/usr/lib/cni"  # Debian's containernetworking-plugins
_ROOT = Path(__file__).resolve().parents[2]
_WEPS = "/calico/resources/v3/projectcalico.org/workloadendpoints/"


def calico(**conf: Any) -> dict[str, Any]:
    """The plugin's configuration with Calico's usual fields."""
    plugin = {"type": "calico", "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"}}
    return plugin | conf


@dataclass(slots=True)
class Remains:
    """What is left of containers: host interfaces, host routes, endpoints, held addresses, handles."""

    interfaces: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)  # address -> its handle
    handles: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.interfaces, self.routes, self.endpoints, self.addresses, self.handles))


class Machine:
    def __init__(self, host: Namespace, etcd: Etcd, servers: "Servers", folder: Path, shim: Path) -> None:
        self.host, self.etcd, self.folder = host, etcd, folder
        self._servers = servers
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("calico", "calico-ipam"):
            (self.bin / name).symlink_to(shim)
        self.lib = folder / "lib"
        self.lib.mkdir()
        (self.lib / "nodename").write_text(NODE)
        self.log = folder / "server.log"
        self.settings: dict[str, str] = {}  # of the next server: variable -> value
        self.server = 0  # pid, 0 if none runs
        self.pods: list[Namespace] = []

    def close(self) -> None:
        self.stop_server()
        for pod in self.pods:
            pod.close()

    # --- the server -----------------------------------------------------------------------------

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "cni.sock"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "ETCD_ENDPOINTS": self.etcd.endpoint,
            "CALICO_RUN_DIR": str(self.folder / "run"),
            "CALICO_LIB_DIR": str(self.lib),
            "PYTHONPATH": str(_ROOT),
            "NODENAME": NODE,
            **self.settings,
        }

    def start_server(self, die_at: int = 0) -> None:
        """Start a server and wait until it listens; it kills itself before step number `die_at`."""
        self.server = self._servers.start(self.environment, str(self.log), die_at)
        wait_until(self._answers, what="the server to listen")

    def start_warm_server(self, marks: str) -> None:
        """A cluster with one pool, and a server that keeps addresses of it ready."""
        self.seed()
        self.settings["TORTIE_WARM_POOL"] = marks
        self.start_server()

    def warm_metrics(self) -> str:
        """What the server tells of its ready addresses; "" before it has told anything."""
        path = self.folder / "run" / "warm-addresses.prom"
        return path.read_text() if path.exists() else ""

    def _answers(self) -> bool:
        if not os.path.exists(f"/proc/{self.server}/fd/0"):
            raise RuntimeError(f"the CNI server has ended: {self.log.read_text()[-2000:]}")
        return self.socket.exists()

    def kill_server(self, *, keep_socket: bool = False) -> None:
        os.kill(self.server, signal.SIGKILL)
        self.wait_server(keep_socket=keep_socket)

    def wait_server(self, *, keep_socket: bool = False) -> int:
        """Its exit status, as subprocess has it, once it has ended.

        The socket it left is taken away, so that the next server's is not mistaken for it.
        """
        pid, self.server = self.server, 0
        code = self._servers.wait(pid)
        if not keep_socket:
            self.socket.unlink(missing_ok=True)
        return code

    def stop_server(self) -> None:
        if self.server:
            os.kill(self.server, signal.SIGTERM)
            self.wait_server()

    # --- plugins --------------------------------------------------------------------------------

    def run(
        self, command: str, conf: bytes | Mapping[str, Any], plugin: str = "calico", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one plugin by hand; `environment` in CNI's names without the CNI_."""
        settings = {f"CNI_{name}": value for name, value in environment.items()}
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        return self.execute_program(
            str(self.bin / plugin), {"CNI_COMMAND": command, "CNI_PATH": str(self.bin)} | settings, stdin
        )

    def execute_program(
        self, program: str, environment: Mapping[str, str], stdin: bytes, *arguments: str
    ) -> subprocess.CompletedProcess[bytes]:
        base = {"PATH": os.environ["PATH"], "TORTIE_CNI_SOCKET": str(self.socket)}
        return self.host.call(
            subprocess.run,
            [program, *arguments],
            env=base | dict(environment),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=300,
        )

    def _execute(self, plugin: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
        folder = self.bin if (self.bin / plugin).exists() else Path(UPSTREAM)
        done = self.execute_program(str(folder / plugin), environment, stdin)
        return done.returncode, done.stdout

    def chain(self, *plugins: Mapping[str, Any], version: str = "1.0.0", name: str = NETWORK) -> Chain:
        conflist = {"name": name, "cniVersion": version, "plugins": list(plugins) or [calico()]}
        return Chain(conflist, [str(self.bin), UPSTREAM], self._execute)

    # --- containers -----------------------------------------------------------------------------

    def namespace(self) -> Namespace:
        self.pods.append(Namespace())
        return self.pods[-1]

    def pod(
        self, name: str = "nginx", container: str = "", *, inside: Namespace | None = None, **args: Any
    ) -> Attachment:
        """A pod's sandbox that is to be attached; `args` as runtime.attachment()."""
        where = inside or self.namespace()
        ifname = args.pop("ifname", "eth0")
        container = container or f"{name}-{len(self.pods)}".encode().hex().ljust(64, "0")[:64]
        return attachment(container, path_of(where), ifname, name, args.pop("ns", "default"), args)

    def inside(self, wanted: Attachment) -> Namespace:
        """The namespace of an attachment."""
        return next(pod for pod in self.pods if path_of(pod) == wanted.netns)

    # --- the datastore --------------------------------------------------------------------------

    def write(self, resource: Resource) -> None:
        self.host.call(self.etcd.put, key_of(resource).path(), encode(resource))

    def seed(self, *pools: IPPool) -> None:
        """A cluster with this node and these pools."""
        self.ready(True)
        self.write(Node(metadata=ObjectMeta(name=NODE), spec=NodeSpec(), status=NodeStatus()))
        for one in pools or (pool("ipv4", "10.65.0.0/24"),):
            self.write(one)

    def ready(self, yes: bool) -> None:
        spec = ClusterInformationSpec(datastoreReady=yes, clusterGUID="test")
        self.write(ClusterInformation(metadata=ObjectMeta(name="default"), spec=spec))

    def entries(self, prefix: str) -> dict[str, Any]:
        """Key without the prefix -> decoded JSON."""
        found = self.host.call(self.etcd.entries, prefix)
        return {key.removeprefix(prefix): json.loads(value) for key, value in found.items()}

    def endpoints(self) -> dict[str, Any]:
        """namespace/name -> WorkloadEndpoint as JSON."""
        return self.entries(_WEPS)

    def start_etcd(self) -> None:
        """Again, after it was killed."""
        with entered(self.host):
            self.etcd.start()

    def delete(self, path: str) -> None:
        self.host.call(self.etcd.delete, path)

    def delete_endpoint(self, name: str) -> None:
        self.delete(_WEPS + name)

    def held(self) -> dict[str, str]:
        """Address -> handle, of every allocation."""
        found = {}
        for block in self.entries("/calico/ipam/v2/assignment/").values():
            base = ipaddress.ip_network(block["cidr"]).network_address
            for ordinal, index in enumerate(block["allocations"]):
                if index is not None:
                    found[str(base + ordinal)] = block["attributes"][index].get("handle_id", "")
        return found

    def ready_addresses(self) -> set[str]:
        """What the server keeps for coming containers."""
        return {address for address, handle in self.held().items() if handle == WARM_HANDLE}

    def remains(self) -> Remains:
        return Remains(
            interfaces=[link.name for link in links.dump(self.host.netlink) if link.name.startswith("cali")],
            routes=[one["dst"] for one in self.host.ip("route") if one["dev"].startswith("cali")],
            endpoints=list(self.endpoints()),
            addresses=self.held(),
            handles=list(self.entries("/calico/ipam/v2/handle/")),
        )

    def clear(self) -> None:
        """Take away what a failed test left on the host."""
        self.host.netlink.request([links.delete(name) for name in self.remains().interfaces])


@contextlib.contextmanager
def entered(namespace: Namespace) -> Iterator[None]:
    """The calling thread inside a namespace, for starting what must end with this thread (pdeathsig)."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = netns.current()
    try:
        assert libc.setns(namespace.fd, 0) == 0
        yield
    finally:
        assert libc.setns(home, 0) == 0
        os.close(home)


class Servers:
    """Makes CNI servers by forking from one process that has everything imported: 20 ms, not 500."""

    def __init__(self, host: Namespace) -> None:
        command = [sys.executable, "-m", "tests.support.cni_servers"]
        with entered(host):
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
            )
        self._lock = threading.Lock()

    def start(self, environment: Mapping[str, str], log: str, die_at: int) -> int:
        return self._ask({"start": dict(environment), "log": log, "die_at": die_at})

    def wait(self, pid: int) -> int:
        return self._ask({"wait": pid})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, question: object) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


def pool(name: str, cidr: str, **spec: Any) -> IPPool:
    size = 122 if ":" in cidr else 26
    given = {"cidr": cidr, "blockSize": size, "nodeSelector": "all()", **spec}
    return IPPool(metadata=ObjectMeta(name=name), spec=IPPoolSpec(**given))


def path_of(namespace: Namespace) -> str:
    """What CNI_NETNS can be for a nameless namespace."""
    return f"/proc/{os.getpid()}/fd/{namespace.fd}"


def host_name(namespace: str, pod: str) -> str:
    return "cali" + hashlib.sha1(f"{namespace}.{pod}".encode()).hexdigest()[:11]
