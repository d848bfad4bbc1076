"""A real Kubernetes on one machine, whose network is ours: installed as a user does, by `kubectl apply`.

etcd, the API server, controllers and scheduler run in the lab's own namespace, three workers in boxes.
Nothing here knows how pods get their network: that is what the manifest brings.
"""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tortie.lab import cgroups, image, isolation, rootfs, underlay
from tortie.lab.apiserver import ADMIN_TOKEN, ApiServer
from tortie.lab.box import PATIENCE, Box, LabError
from tortie.lab.cluster import command, tail, wait_until
from tortie.lab.controlplane import find_program
from tortie.lab.etcd import Etcd
from tortie.lab.kubenode import PAUSE, KubeNode
from tortie.lab.underlay import SUBNETS, UNDERLAY

IMAGE = "docker.io/tortie/calico:v3.33.0"
BUSYBOX = "docker.io/tortie/busybox:1"
PODS = "10.244.0.0/16"
PROGRAMS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
)  # fmt: skip
MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
Mode = Literal["node", "etcd", "vxlan"]  # calico-MODE.yaml is what is applied
_DEADLINE = 600.0  # seconds for anything to come about; the whole takes one or two minutes


def _pool(mode: Mode) -> dict[str, Any]:
    """The kernels that the lab runs on may have no IPIP: it is there before the first node looks for one."""
    vxlan = "Always" if mode == "vxlan" else "Never"  # all nodes are in one subnet
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "default-ipv4-ippool"},
        "spec": {"cidr": PODS, "ipipMode": "Never", "vxlanMode": vxlan, "natOutgoing": True},
    }


class KubeLab:
    def __init__(self, folder: Path, nodes: int = 3, mode: Mode = "node") -> None:
        """`folder` takes logs, images and etcd's data."""
        isolation.require()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        address = f"{UNDERLAY}.1"
        self.etcd = Etcd(folder / "etcd", address)
        flags = {"disable-admission-plugins": "", "endpoint-reconciler-type": "master-count",
                 "kubelet-preferred-address-types": "InternalIP"}  # fmt: skip
        self.api = ApiServer(folder / "apiserver", self.etcd.endpoint, find_program, address, flags=flags)
        self.nodes: dict[str, KubeNode] = {}  # name -> worker
        self._count, self._mode = nodes, mode
        self._services: list[subprocess.Popen[bytes]] = []  # the control plane's own
        self._images: dict[str, Path] = {}  # name -> archive

    # --- up and down ----------------------------------------------------------------------------

    def up(self, tell: Callable[[str], None] = lambda _text: None) -> None:
        """Bring the cluster up without a network, install ours, and wait until every node is ready."""
        self.make_images(tell)
        self.start_control_plane(tell)
        for _ in range(self._count):
            node = self.add_node()
            tell(f"{node.name} at {node.ip}: containerd, kubelet, kube-proxy")
        self.install()
        tell(f"kubectl apply -f manifests/{self.manifest.name}")
        self.wait_ready()
        tell("all nodes and all pods of calico-node are ready")

    def make_images(self, tell: Callable[[str], None] = lambda _text: None) -> None:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        sleep, small = ["/bin/sleep", "2147483647"], rootfs.busybox()
        for name, entries, start in (
            (IMAGE, rootfs.calico(), ["calico-node"]),
            (BUSYBOX, small, ["/bin/sh"]),
            (PAUSE, small, sleep),
        ):
            archive = self.folder / f"{name.rpartition('/')[2].replace(':', '-')}.tar"
            size = image.write(archive, name, entries, start, {"PATH": path})
            self._images[name] = archive
            tell(f"image {name}: {size / 1e6:.0f} MB")

    def start_control_plane(self, tell: Callable[[str], None] = lambda _text: None) -> None:
        underlay.lay(1, tell)
        self.etcd.start()
        tell(f"etcd at {self.etcd.endpoint}, kube-apiserver at {self.api.url}")
        self.api.write_files()
        self.api.start_server()  # our resources come with the manifest
        self.kubeconfig.touch(0o600)
        self.kubeconfig.write_text(self._kubeconfig())
        self._start_service("kube-controller-manager", {
            "service-account-private-key-file": f"{self.api.folder}/accounts.key",
            "root-ca-file": self.api.ca,
            "cluster-cidr": PODS,
        })  # fmt: skip
        self._start_service("kube-scheduler", {})

    def _start_service(self, name: str, flags: Mapping[str, str]) -> None:
        flags = {
            "kubeconfig": str(self.kubeconfig), "leader-elect": "false", "bind-address": "127.0.0.1",
            "cert-dir": f"{self.folder}/{name}", **flags,
        }  # fmt: skip
        words = [str(find_program(name)), *(f"--{key}={value}" for key, value in flags.items())]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._services.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", *words],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )
            )  # fmt: skip

    @property
    def kubeconfig(self) -> Path:
        """An administrator's."""
        return self.folder / "kubeconfig"

    def _kubeconfig(self) -> str:
        """Whole in itself: boxes do not see the lab's folder everywhere."""
        document = json.loads(self.api.kubeconfig(ADMIN_TOKEN))
        authority = base64.b64encode(Path(self.api.ca).read_bytes()).decode()
        document["clusters"][0]["cluster"] = {
            "server": self.api.url,
            "certificate-authority-data": authority,
        }
        return json.dumps(document)

    def add_node(self, name: str = "") -> KubeNode:
        """A worker, new or with the disk that it had; the network comes to it by itself."""
        name = name or f"node-{len(self.nodes) + 1}"
        number = 10 + int(name.rpartition("-")[2])
        disk = self.folder / name
        new = not disk.exists()
        disk.mkdir(exist_ok=True)
        box = Box(name, disk)
        underlay.plug_in(box, SUBNETS[0], number, ipv6=False)
        node = KubeNode(name, SUBNETS[0].address(number), box, self.folder, find_program, PODS)
        self.nodes[name] = node
        if new:
            for left in box.path("/etc/cni/net.d").glob("*"):  # of the machine that the lab runs on
                left.unlink()
        node.start(self._kubeconfig(), self._images if new else {})
        return node

    def reboot(self, name: str) -> KubeNode:
        """Switch a worker off and on again."""
        self.power_off(name)
        return self.add_node(name)

    def power_off(self, name: str) -> None:
        """Switch a worker off, without a word to anybody."""
        self.nodes.pop(name).box.power_off()
        underlay.unplug(name)

    def install(self) -> None:
        """What a user does: say where etcd is, and apply the manifest. Raises LabError."""
        documents = self.documents()
        definitions = [
            one for one in documents.split("\n---\n") if "\nkind: CustomResourceDefinition\n" in f"\n{one}"
        ]
        if definitions:
            self.apply("\n---\n".join(definitions))
            self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s")
        made = self.calicoctl("apply", "-f", "-", stdin=json.dumps(_pool(self._mode)))
        if made.returncode != 0:
            raise LabError(f"the pool: {made.stderr}")
        self.apply(documents)

    def down(self) -> None:
        """End everything at once, and delete what was large. Safe to call in any state."""
        for name in list(self.nodes):
            self.power_off(name)
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for archive in self._images.values():
            archive.unlink()
        self._images.clear()
        for service in self._services:
            service.kill()
            service.wait()
        self.api.stop_server()
        self.etcd.stop()
        underlay.remove()
        cgroups.clear()

    @property
    def manifest(self) -> Path:
        return MANIFESTS / f"calico-{self._mode}.yaml"

    def documents(self) -> str:
        """The manifest's, as a user adapts them to the cluster."""
        text = self.manifest.read_text().replace("http://<ETCD_IP>:<ETCD_PORT>", self.etcd.endpoint)
        # Disruption budgets are v1 since Kubernetes 1.21 and nothing else since 1.25; the server is older.
        return text.replace("apiVersion: policy/v1\n", "apiVersion: policy/v1beta1\n")

    # --- use ------------------------------------------------------------------------------------

    def kubectl(self, *args: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Raises LabError with its words if `check`."""
        words = [str(find_program("kubectl")), "--kubeconfig", str(self.kubeconfig), *args]
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        if check and done.returncode != 0:
            raise LabError(f"kubectl {' '.join(args)}: {done.stderr}{done.stdout}")
        return done

    def get(self, *args: str) -> Any:
        """`kubectl get ARGS -o json`."""
        return json.loads(self.kubectl("get", *args, "-o", "json").stdout)

    def apply(self, documents: str) -> None:
        self.kubectl("apply", "-f", "-", stdin=documents)

    def calicoctl(self, *args: str, stdin: str = "", node: str = "") -> subprocess.CompletedProcess[str]:
        """With an administrator's rights; on a node if one is given, as root there."""
        settings = ["env", "DATASTORE_TYPE=kubernetes", f"KUBECONFIG={self.kubeconfig}"]
        if self._mode == "etcd":
            settings = ["env", "DATASTORE_TYPE=etcdv3", f"ETCD_ENDPOINTS={self.etcd.endpoint}"]
        words = [*settings, command("calicoctl"), *args]
        if node:
            words = self.nodes[node].box.command([command("calicoctl"), *args])
        return subprocess.run(
            words, input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE
        )

    def wait_ready(self) -> None:
        """Until every node and every pod of calico-node is ready."""
        wait_until(self._nodes_ready, "all nodes to be ready", _DEADLINE, self.evidence)
        wait_until(
            lambda: len(self.agents()) == len(self.nodes),
            "calico-node to be ready on all nodes", _DEADLINE, self.evidence,
        )  # fmt: skip

    def _nodes_ready(self) -> bool:
        nodes = self.get("nodes")["items"]
        return len(nodes) == len(self.nodes) and all(_is_ready(one) for one in nodes)

    def agents(self) -> list[dict[str, Any]]:
        """The pods of calico-node that are ready."""
        return self.ready_pods("kube-system", "k8s-app=calico-node")

    def ready_pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        """Those that are ready and are to stay."""
        found = self.get("pods", "-n", namespace, "-l", selector)["items"]
        return [one for one in found if _is_ready(one) and "deletionTimestamp" not in one["metadata"]]

    def wait_pods(self, selector: str, count: int, namespace: str = "default") -> list[dict[str, Any]]:
        """Until so many are ready."""
        wait_until(
            lambda: len(self.ready_pods(namespace, selector)) == count,
            f"{count} pods of {selector}", _DEADLINE, self.evidence,
        )  # fmt: skip
        return self.ready_pods(namespace, selector)

    def run_in(self, pod: str, *words: str, namespace: str = "default") -> subprocess.CompletedProcess[str]:
        """A command in a pod."""
        return self.kubectl("exec", "-n", namespace, pod, "--", *words, check=False)

    def evidence(self) -> str:
        """What may say why something did not come about."""
        shown = [self.kubectl("get", "nodes,pods", "-A", "-o", "wide", check=False).stdout]
        selector = ["-n", "kube-system", "-l", "k8s-app=calico-node"]
        shown.append(self.kubectl("describe", "pods", *selector, check=False).stdout[-4000:])
        options = ["--all-containers", "--tail=30", "--prefix"]
        shown.append(self.kubectl("logs", *selector, *options, check=False).stdout)
        shown += [tail(path, 15) for path in sorted(self.folder.glob("*-kubelet.log"))]
        return "\n".join(shown)


def _is_ready(one: Mapping[str, Any]) -> bool:
    conditions: Sequence[Mapping[str, str]] = one["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
