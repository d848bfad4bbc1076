"""A whole cluster on one machine: nodes as boxes on an underlay bridge, etcd, and pods.

Everything is real: calico-node runs in each box as in its container, pods are attached by the
installed CNI binary, the datastore is etcd, or a Kubernetes API server. Only the machines are made of
namespaces, and what kubelets and controllers would write is written by the lab.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from tortie.core.speaker import VARIABLE as SPEAKER
from tortie.core.speaker import Speaker, speaker
from tortie.lab import echo, isolation, pods, probe, underlay
from tortie.lab.box import PATIENCE, Box, LabError
from tortie.lab.controlplane import ControlPlane
from tortie.lab.etcd import Etcd
from tortie.lab.pods import Pod
from tortie.lab.runtime import Runtime
from tortie.lab.underlay import SUBNETS, UNDERLAY, UNDERLAY6, Subnet

__all__ = ["UNDERLAY", "UNDERLAY6", "Lab", "LabNode", "command", "tail", "wait_until"]

NETWORK = "k8s-pod-network"
_UPSTREAM_PLUGINS = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
_PLUGINS = Path("/opt/cni/bin")


class LabNode:
    """One machine of the cluster and the calico-node on it."""

    def __init__(self, name: str, number: int, lab: "Lab", subnet: Subnet = SUBNETS[0]) -> None:
        self.name = name
        self._number = number
        self.ip = subnet.address(10 + number)
        self.ip6 = subnet.address6(10 + number)
        self.box = Box(name)
        self.runtime = Runtime(self.box, NETWORK, tells=lab.kubernetes is None)
        self._lab = lab
        self._agent: subprocess.Popen[bytes] | None = None
        self.speaker: Speaker = "none"  # of the agent that was started last

    @property
    def log(self) -> Path:
        return self._lab.folder / f"{self.name}.log"

    def start_agent(self, **env: str) -> None:
        """Start calico-node, as the container would; environment as in the manifest."""
        settings = {
            **self._lab.datastore_env("node"),
            "NODENAME": self.name,
            "IP": "autodetect",
            "CALICO_IPV4POOL_IPIP": "Never",
            "CALICO_IPV4POOL_NAT_OUTGOING": "true",
            "CLUSTER_TYPE": "lab",
            "WAIT_FOR_DATASTORE": "true",
            "FELIX_HEALTHENABLED": "true",
            SPEAKER: self._lab.speakers[(self._number - 1) % len(self._lab.speakers)],
            **self._lab.agent_env,
            **env,
        }
        self.speaker = speaker(settings)
        self._agent = self.box.start([command("calico-node")], self.log, settings)

    def stop_agent(self, number: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM and wait, as `docker stop` does; the dataplane stays."""
        for pid in self.agent_pids():
            os.kill(pid, number)
        if (agent := self._agent) is not None:
            self.wait_until(lambda: agent.poll() is not None, "calico-node to stop", PATIENCE)
            self._agent = None

    def kill_agent(self) -> None:
        """SIGKILL calico-node and everything it started, as a killed container."""
        for pid in self.agent_pids():
            os.kill(pid, signal.SIGKILL)
        self.wait_until(lambda: not self.node_pids(), "the agent to be gone")

    def agent_pids(self) -> list[int]:
        """The supervisor's own process."""
        return [pid for pid in self.box.pids("calico-node") if self._is_supervisor(pid)]

    def node_pids(self) -> list[int]:
        """calico-node and all it started: whatever runs but the machine's first process and the pods'."""
        foreign = {self.box.pid, *self.box.pids(echo.__file__)}
        return [pid for pid in self.box.pids() if pid not in foreign]

    @staticmethod
    def _is_supervisor(pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            return False
        return words[-1].endswith(b"calico-node")

    def ready(self) -> bool:
        checks = ["-felix-ready", "-bird-ready"]
        if self.speaker == "none":
            checks.remove("-bird-ready")
        answer = self.box.run(command("calico-node"), *checks, check=False)
        return answer.returncode == 0

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
        wait_until(condition, f"{self.name}: {what}", timeout, lambda: tail(self.log))

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """Until felix and BGP are ready; at once an error if calico-node gave up."""

        def ready_or_ended() -> bool:
            return self._agent is None or self._agent.poll() is not None or self.ready()

        self.wait_until(ready_or_ended, "calico-node to be ready", timeout)
        if self._agent is None or self._agent.poll() is not None:
            raise LabError(f"{self.name}: calico-node ended\n{tail(self.log)}")

    def routes(self, *args: str) -> list[dict[str, object]]:
        """`ip -j route show ARGS` on this node."""
        return json.loads(self.box.output("ip", "-j", "route", "show", *args) or "[]")  # type: ignore[no-any-return]


class Lab:
    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        *,
        ipv6: bool = False,
        speakers: Sequence[Speaker] = ("exabgp",),
        agent_env: Mapping[str, str] | None = None,
        remote: int = 0,
        kubernetes: bool = False,
    ) -> None:
        """`folder` takes logs and etcd's data; `agent_env` goes to every calico-node.

        `speakers` are the nodes' in turn, and again from the first. The last `remote` nodes are in a second
        network, behind a router. With `kubernetes` the datastore is an API server, see controlplane.py.
        """
        isolation.require()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.speakers = speakers
        self.agent_env = dict(agent_env or {})
        self._ipv6, self._remote = ipv6, remote
        if ipv6:
            self.agent_env.setdefault("IP6", "autodetect")
        self.etcd = Etcd(folder / "etcd", f"{UNDERLAY}.1")
        self.kubernetes: ControlPlane | None = None
        if kubernetes:
            self.kubernetes = ControlPlane(folder / "kubernetes", self.etcd.endpoint, f"{UNDERLAY}.1")
        self.nodes: dict[str, LabNode] = {}  # name -> node
        self.hosts: dict[str, Box] = {}  # name -> machine on the underlay that is no node
        self.pods: dict[str, Pod] = {}  # name -> running pod
        self._count = nodes

    # --- up and down ----------------------------------------------------------------------------

    def up(self, tell: Callable[[str], None] = lambda _text: None) -> None:
        """Bring the cluster up and wait until every node is ready."""
        self.lay_ground(tell)
        for index in range(self._count):
            node = self.add_machine(SUBNETS[index >= self._count - self._remote])
            tell(f"{node.name} at {node.ip}: calico-node")
            node.start_agent()
        for node in self.nodes.values():
            node.wait_ready()
            tell(f"{node.name} is ready")
        self.add_namespace("default")

    def lay_ground(self, tell: Callable[[str], None] = lambda _text: None) -> None:
        """What the machines of a cluster need: a network between them, and a datastore, empty."""
        underlay.lay(2 if self._remote else 1, tell)
        tell(f"etcd at {self.etcd.endpoint}")
        self.etcd.start()
        if self.kubernetes is not None:
            tell(f"kube-apiserver at {self.kubernetes.api.url}")
            self.kubernetes.start()

    def datastore_env(self, user: str) -> dict[str, str]:
        """Where the datastore is, for a command; `user` is `node` or `admin`."""
        if self.kubernetes is None:
            return {"ETCD_ENDPOINTS": self.etcd.endpoint}
        return {"DATASTORE_TYPE": "kubernetes", "KUBECONFIG": str(self.kubernetes.kubeconfig(user))}

    def add_machine(self, subnet: Subnet = SUBNETS[0]) -> LabNode:
        """One more machine, with the CNI plugins installed; nothing runs on it yet."""
        number = next(n for n in itertools.count(1) if f"node-{n}" not in self.nodes)
        name = f"node-{number}"
        node = LabNode(name, number, self, subnet)
        self.nodes[name] = node
        underlay.plug_in(node.box, subnet, 10 + number, ipv6=self._ipv6)
        self._install_cni(node)
        if self.kubernetes is not None:
            self.kubernetes.add_node(name, [node.ip, *([node.ip6] if self._ipv6 else [])])
        return node

    def add_host(self, name: str, number: int) -> Box:
        """A machine on the underlay that is no node, such as a router: at address .NUMBER, IPv6 ::NUMBER."""
        box = self.hosts[name] = Box(name)
        underlay.plug_in(box, SUBNETS[0], number, ipv6=self._ipv6)
        return box

    def unplug_machine(self, name: str) -> None:
        """Switch a machine without pods off for good; the datastore keeps what it says of it."""
        self.nodes.pop(name).box.power_off()
        underlay.unplug(name)

    def remove_machine(self, name: str) -> None:
        """The same, and have the cluster forget it."""
        self.unplug_machine(name)
        if (answer := self.calicoctl("delete", "node", name)).returncode != 0:
            raise LabError(f"calicoctl delete node {name}: {answer.stderr}")

    def _install_cni(self, node: LabNode) -> None:
        """What the install-cni container does on a host."""
        shim = shim_path()
        target = node.box.path(str(_PLUGINS))
        target.mkdir(parents=True, exist_ok=True)
        for name in ("calico", "calico-ipam"):
            shutil.copy2(shim, target / name)
        for name in ("portmap", "bandwidth", "host-local", "loopback"):
            if not (plugin := _UPSTREAM_PLUGINS / name).exists():
                raise LabError(f"{plugin} is missing: run ./dev, or install containernetworking-plugins")
            shutil.copy2(plugin, target / name)
        folder = node.box.path("/etc/cni/net.d")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "10-calico.conflist").write_text(json.dumps(self._conflist(), indent=2))

    def _conflist(self) -> dict[str, object]:
        ipam = {"type": "calico-ipam", "assign_ipv6": "true" if self._ipv6 else "false"}
        calico = {
            "type": "calico",
            "log_level": "info",
            **self._conflist_datastore(),
            "ipam": ipam,
            "policy": {"type": "k8s"},
            "policy_setup_timeout_seconds": 10,
            "feature_control": {"floating_ips": True},
        }
        portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
        bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
        return {"name": NETWORK, "cniVersion": "1.0.0", "plugins": [calico, portmap, bandwidth]}

    def _conflist_datastore(self) -> dict[str, object]:
        if self.kubernetes is None:
            return {"datastore_type": "etcdv3", "etcd_endpoints": self.etcd.endpoint}
        kubeconfig = str(self.kubernetes.kubeconfig("node"))
        return {"datastore_type": "kubernetes", "kubernetes": {"kubeconfig": kubeconfig}}

    def down(self) -> None:
        """End everything at once. Safe to call in any state."""
        for pod in self.pods.values():
            os.close(pod.netns_fd)
        self.pods.clear()
        for node in self.nodes.values():
            node.box.power_off()
        for box in self.hosts.values():
            box.power_off()
        if self.kubernetes is not None:
            self.kubernetes.stop()
        self.etcd.stop()
        for name in [*self.nodes, *self.hosts]:
            underlay.unplug(name)
        self.nodes.clear()
        self.hosts.clear()
        underlay.remove()

    # --- pods -----------------------------------------------------------------------------------

    def add_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """A Kubernetes namespace, or what kube-controllers write for one: a profile that allows all."""
        if self.kubernetes is not None:
            self.kubernetes.add_namespace(name, labels or {})
            return
        applied = {f"pcns.{key}": value for key, value in (labels or {}).items()}
        allow = [{"action": "Allow"}]
        profile = {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Profile",
            "metadata": {"name": f"kns.{name}"},
            "spec": {
                "ingress": allow,
                "egress": allow,
                "labelsToApply": {**applied, "pcns.projectcalico.org/name": name},
            },
        }
        answer = self.calicoctl("apply", "-f", "-", stdin=json.dumps(profile))
        if answer.returncode != 0:
            raise LabError(f"namespace {name}: {answer.stderr}")

    def add_pod(
        self,
        name: str,
        node: str,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        *,
        serving: bool = True,
        **args: object,
    ) -> Pod:
        """Attach a new pod to a node, `serving` or not; `args` go to the CNI plugin."""
        machine = self.nodes[node]
        given = {"labels": dict(labels or {}), **args}
        if self.kubernetes is not None:
            self.kubernetes.create_pod(name, namespace, node, given)
        try:
            pod = pods.start(machine.runtime, machine.box, name, namespace, self.folder, given, serving)
        except BaseException:
            if self.kubernetes is not None:
                self.kubernetes.forget_pod(name, namespace)
            raise
        if self.kubernetes is not None:
            self.kubernetes.report_pod(name, namespace, pod.addresses)
        self.pods[name] = pod
        return pod

    def delete_pod(self, name: str) -> None:
        pod = self.pods.pop(name)
        if self.kubernetes is not None:
            self.kubernetes.end_pod(name, pod.namespace)
        pods.stop(self.nodes[pod.box.name].runtime, pod)
        if self.kubernetes is not None:
            self.kubernetes.forget_pod(name, pod.namespace)

    def matrix(
        self,
        port: int = 80,
        protocol: str = "tcp",
        version: int = 4,
        timeout: float = 3.0,
        *,
        refused: Collection[tuple[str, str]] | None = None,
    ) -> dict[tuple[str, str], probe.Answer]:
        """(client, server) -> the answer, for every ordered pair of pods.

        `refused` are the pairs that are to get none, where that is known and not waited for: all others are
        given time then, so that a busy machine alone is no failure.
        """
        pairs = [(a, b) for a in self.pods.values() for b in self.pods.values() if a is not b]
        probes = [probe.Probe(a.netns_fd, b.address(version), port, protocol) for a, b in pairs]
        expected = [] if refused is None else [(a.name, b.name) not in refused for a, b in pairs]
        answers = probe.run(probes, timeout, expected)
        return {(a.name, b.name): answer for (a, b), answer in zip(pairs, answers, strict=True)}

    def calicoctl(self, *args: str, stdin: str = "", node: str = "") -> subprocess.CompletedProcess[str]:
        """Run calicoctl against the lab's datastore, on a node if one is given."""
        datastore = [f"{name}={value}" for name, value in self.datastore_env("admin").items()]
        argv = ["env", *datastore, command("calicoctl"), *args]
        if node:
            argv = self.nodes[node].box.command(argv)
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE
        )


def wait_until(
    condition: Callable[[], bool], what: str, timeout: float, evidence: Callable[[], str] = lambda: ""
) -> None:
    """Poll until the condition holds; raises LabError with the evidence when it does not in time.

    It pauses for as long as asking takes, which may be a process: what is waited for needs the machine more.
    """
    deadline = time.monotonic() + timeout
    asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now > deadline:
            raise LabError(f"waited {timeout:.0f} s for {what}\n{evidence()}")
        time.sleep(min(max(0.05, now - asked), 0.5))
        asked = time.monotonic()


def tail(path: Path, lines: int = 40) -> str:
    if not path.exists():
        return f"({path.name} does not exist)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def command(name: str) -> str:
    """A console script of this installation."""
    return str(Path(sys.executable).with_name(name))


def shim_path() -> Path:
    """The CNI shim that `./dev` built, beside the package."""
    path = Path(__file__).resolve().parents[2] / "build" / "cni" / "calico"
    if not path.exists():
        raise LabError(f"{path} is missing: run ./dev build first")
    return path


def render_matrix(names: Sequence[str], answers: Mapping[tuple[str, str], probe.Answer]) -> str:
    """A client × server table: ok where the right pod answered, the reason where not."""
    width = max(len(name) for name in names) + 2
    lines = ["".ljust(width) + "".join(name.ljust(width) for name in names)]
    for client in names:
        cells = ["·" if client == server else cell(server, answers[client, server]) for server in names]
        lines.append(client.ljust(width) + "".join(text.ljust(width) for text in cells))
    return "\n".join(lines)


def cell(server: str, answer: probe.Answer) -> str:
    if not answer.ok:
        return answer.failure
    return "ok" if answer.server == server else f"WRONG POD {answer.server}"
