"""A worker of the lab's real Kubernetes: a box with containerd, kubelet and kube-proxy, as on any node.

What differs from a machine: the control groups are the host's own, because there is nothing between the
box and the host; and what kubelet would change of the kernel for all of the machine it changes in files of
the box.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from tortie.lab import cgroups
from tortie.lab.box import DISK, Box, LabError
from tortie.lab.cluster import tail, wait_until

_SOCKET = "/run/containerd/containerd.sock"
PAUSE = "docker.io/tortie/pause:1"

# Kubelet wants to set some of the kernel's switches, which are nobody's own: it gets files in their place.
_SWITCHES = """
set -e
mkdir -p /run/switches
for path in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \\
        kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    [ -e "/proc/sys/$path" ] || continue
    file=/run/switches/$(echo "$path" | tr / .)
    cat "/proc/sys/$path" >"$file"
    mount --bind "$file" "/proc/sys/$path"
done
"""

_CONTAINERD = f"""\
version = 2
root = "{DISK}/containerd"
state = "/run/containerd"
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without the right to lower it no sandbox would start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def _kubelet_configuration() -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        # Whoever is in the lab's namespaces may do everything.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "resolvConf": "",
        # The machine's disk is none of the lab's business.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                         "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "syncFrequency": "10s",
    }  # fmt: skip


class KubeNode:
    def __init__(
        self, name: str, ip: str, box: Box, logs: Path, find: Callable[[str], Path], pods: str
    ) -> None:
        """`find` says where a program of Kubernetes is, `pods` is the range of pods' addresses."""
        self.name, self.ip, self.box = name, ip, box
        self._logs, self._find, self._pods = logs, find, pods

    def start(self, kubeconfig: str, images: Mapping[str, Path]) -> None:
        """All that a node has before the network is installed; `images` are archives to import."""
        self.box.run("sh", "-c", cgroups.MOUNT)
        self.box.run("sh", "-c", cgroups.WEIGH)
        self.box.run("sh", "-c", _SWITCHES)
        self._write("/run/containerd.toml", _CONTAINERD)
        self._write("/run/kubeconfig", kubeconfig)
        self._write("/run/kubelet.json", json.dumps(_kubelet_configuration()))
        for folder in ("/opt/cni/bin", "/etc/cni/net.d", "/var/lib/kubelet", "/var/log/pods"):
            self.box.path(folder).mkdir(parents=True, exist_ok=True)
        self.start_containerd()
        wait_until(
            self.containerd_ready, f"{self.name}: containerd", 300, lambda: tail(self._log("containerd"))
        )
        for name, archive in images.items():
            self.load(name, archive)
        self.start_kubelet()
        self.start_proxy()

    def _write(self, path: str, text: str) -> None:
        self.box.path(path).write_text(text)

    def start_containerd(self) -> None:
        self.box.start(["containerd", "--config", "/run/containerd.toml"], self._log("containerd"))

    def containerd_ready(self) -> bool:
        return self.box.run("ctr", "-a", _SOCKET, "version", check=False).returncode == 0

    def load(self, name: str, archive: Path) -> None:
        """Import an image, as if it had been pulled. Raises LabError."""
        command = self.box.command(["ctr", "-a", _SOCKET, "-n", "k8s.io", "images", "import", "-"])
        with archive.open("rb") as source:
            done = subprocess.run(command, stdin=source, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"{self.name}: image {name}: {done.stderr}")

    def tag(self, name: str, other: str) -> None:
        """Let an image have another name, too."""
        self.box.run("ctr", "-a", _SOCKET, "-n", "k8s.io", "images", "tag", name, other)

    def start_kubelet(self) -> None:
        flags = {
            "config": "/run/kubelet.json",
            "kubeconfig": "/run/kubeconfig",
            "container-runtime": "remote",
            "container-runtime-endpoint": f"unix://{_SOCKET}",
            "hostname-override": self.name,
            "node-ip": self.ip,
            "cert-dir": "/run/kubelet-pki",
            "oom-score-adj": "0",
            "v": "2",
        }
        self.box.start(self._command("kubelet", flags), self._log("kubelet"))

    def start_proxy(self) -> None:
        flags = {
            "kubeconfig": "/run/kubeconfig",
            "proxy-mode": "iptables",
            "cluster-cidr": self._pods,
            "hostname-override": self.name,
            # These belong to the whole machine.
            "conntrack-max-per-core": "0",
            "conntrack-tcp-timeout-established": "0",
            "conntrack-tcp-timeout-close-wait": "0",
        }
        self.box.start(self._command("kube-proxy", flags), self._log("kube-proxy"))

    def _command(self, program: str, flags: Mapping[str, str]) -> list[str]:
        return [str(self._find(program)), *(f"--{name}={value}" for name, value in flags.items())]

    def _log(self, program: str) -> Path:
        return self._logs / f"{self.name}-{program}.log"
