"""Pods of the lab: a network namespace attached by the installed CNI plugin, and a server in it."""

import os
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tortie.cni.protocol import Code
from tortie.core.errors import CniError
from tortie.lab import echo
from tortie.lab.box import Box
from tortie.lab.runtime import Runtime
from tortie.linux import netns

PORTS = (80, 5432)  # a web and a database port: what the policy examples talk about
_PATIENCE = 180.0  # seconds for CNI to be there again: a process that keeps dying is restarted every 10 s
_REST = 0.2  # seconds between two tries


@dataclass(slots=True)
class Pod:
    """A running pod. `namespace` is its Kubernetes namespace, `netns_fd` its open network namespace."""

    name: str
    box: Box
    namespace: str
    container_id: str
    netns_path: str  # inside the box
    netns_fd: int
    addresses: list[str] = field(default_factory=list)

    def address(self, version: int = 4) -> str:
        return next(a for a in self.addresses if (":" in a) == (version == 6))

    def command(self, *argv: str) -> list[str]:
        """The command line that runs `argv` in the pod."""
        return self.box.command(["nsenter", f"--net={self.netns_path}", "--", *argv])

    def output(self, *argv: str) -> str:
        return self.box.output("nsenter", f"--net={self.netns_path}", "--", *argv)


def start(
    runtime: Runtime,
    box: Box,
    name: str,
    namespace: str,
    logs: Path,
    args: Mapping[str, object],
    serving: bool = True,
) -> Pod:
    """Make the namespace, attach it, start its server. Raises what the runtime raises; then undone.

    As kubelet does, tries again with another sandbox while the answer is to try again later.
    Without a server (8 MB each) others open their own sockets in the pod, as lab.packets does.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        pod = _sandbox(box, name, namespace)
        try:
            _attach(runtime, pod, args)
            if serving:
                server = [sys.executable, "-I", "-S", echo.__file__, name, *map(str, PORTS)]
                box.start(["nsenter", f"--net={pod.netns_path}", "--", *server], logs / f"pod-{name}.log")
            return pod
        except BaseException as err:
            stop(runtime, pod)
            if not _passes(err) or time.monotonic() > deadline:
                raise
        time.sleep(_REST)


def stop(runtime: Runtime, pod: Pod) -> None:
    """As a runtime ends a sandbox: its processes, then CNI DEL until that succeeds, then the namespace."""
    pod.box.kill(echo.__file__, f" {pod.name} ")
    try:
        _detach(runtime, pod)
    finally:
        os.close(pod.netns_fd)
        pod.box.run("ip", "netns", "del", os.path.basename(pod.netns_path), check=False)


def _sandbox(box: Box, name: str, namespace: str) -> Pod:
    container_id = uuid.uuid4().hex
    path = f"/run/netns/cni-{container_id[:12]}"
    box.run("ip", "netns", "add", os.path.basename(path))
    return Pod(name, box, namespace, container_id, path, netns.open(str(box.path(path))))


def _attach(runtime: Runtime, pod: Pod, args: Mapping[str, object]) -> None:
    result = runtime.add(pod.container_id, pod.netns_path, "eth0", pod.name, pod.namespace, args)
    pod.addresses = [ip["address"].split("/")[0] for ip in result["ips"]]
    pod.box.run("nsenter", f"--net={pod.netns_path}", "--", "ip", "link", "set", "lo", "up")


def _detach(runtime: Runtime, pod: Pod) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return runtime.delete(pod.container_id, pod.netns_path, "eth0", pod.name, pod.namespace)
        except CniError as err:
            if not _passes(err) or time.monotonic() > deadline:
                raise
        time.sleep(_REST)


def _passes(err: BaseException) -> bool:
    """Whether the node may just be starting again."""
    return isinstance(err, CniError) and err.code == Code.TRY_AGAIN_LATER
