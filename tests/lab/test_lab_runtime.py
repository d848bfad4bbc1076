"""The lab's container runtime: chains as the CNI specification wants them, and a machine's own network."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.cni import pool
from tests.support.etcd import wait_until
from tortie.cni.shim import build
from tortie.core.errors import CniError
from tortie.datastore.codec import encode
from tortie.datastore.keys import key_of
from tortie.datastore.types.cluster import ClusterInformation, ClusterInformationSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.lab import pods
from tortie.lab.box import Box
from tortie.lab.runtime import Attachment, Chain, Runtime, attachment

# --- chains -------------------------------------------------------------------------------------


class Plugins:
    """Plugins that note what they are told, and answer or fail as set."""

    def __init__(self, **failing: str) -> None:
        self.failing = failing  # plugin -> the command it fails at
        self.calls: list[tuple[str, str, dict[str, Any], Mapping[str, str]]] = []

    def __call__(self, plugin: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
        conf = json.loads(stdin)
        command = environment["CNI_COMMAND"]
        self.calls.append((command, plugin, conf, environment))
        if self.failing.get(plugin) == command:
            return 1, json.dumps({"code": 7, "msg": f"{plugin} fails"}).encode()
        passed = {"cniVersion": conf["cniVersion"], "by": [*conf.get("prevResult", {}).get("by", []), plugin]}
        return 0, json.dumps(passed).encode() if command == "ADD" else b""

    @property
    def order(self) -> list[str]:
        return [f"{command} {plugin}" for command, plugin, _, _ in self.calls]


LIST = {
    "name": "net",
    "cniVersion": "1.1.0",
    "plugins": [
        {"type": "a", "x": 1},
        {"type": "b", "capabilities": {"portMappings": True, "bandwidth": False}},
    ],
}
POD = Attachment(
    "c1", "/ns", "eth0", {"K": "v", "L": "w"}, {"portMappings": [1], "bandwidth": {}}, {"org.x": {"y": 1}}
)


@pytest.mark.unit
def test_results_travel_down_the_chain() -> None:
    plugins = Plugins()
    chain = Chain(LIST, ["/one", "/two"], plugins)
    assert chain.add(POD) == {"cniVersion": "1.1.0", "by": ["a", "b"]}
    chain.check(POD)
    chain.delete(POD)
    assert plugins.order == ["ADD a", "ADD b", "CHECK a", "CHECK b", "DEL b", "DEL a"]
    first, second, checked, _, deleted, _ = (conf for _, _, conf, _ in plugins.calls)
    assert first == {"type": "a", "x": 1, "name": "net", "cniVersion": "1.1.0", "args": {"org.x": {"y": 1}}}
    assert second["prevResult"]["by"] == ["a"] and second["runtimeConfig"] == {"portMappings": [1]}
    assert checked["prevResult"]["by"] == deleted["prevResult"]["by"] == ["a", "b"]
    environment = plugins.calls[0][3]
    assert environment["CNI_ARGS"] == "K=v;L=w" and environment["CNI_PATH"] == "/one:/two"
    assert (environment["CNI_CONTAINERID"], environment["CNI_NETNS"], environment["CNI_IFNAME"]) == (
        "c1", "/ns", "eth0",
    )  # fmt: skip


@pytest.mark.unit
def test_a_failed_add_is_deleted_whatever_that_says() -> None:
    plugins = Plugins(b="ADD", a="DEL")
    chain = Chain(LIST, ["/x"], plugins)
    with pytest.raises(CniError, match="b fails"):
        chain.add(POD)
    assert plugins.order == ["ADD a", "ADD b", "DEL b", "DEL a"]
    with pytest.raises(CniError, match="a fails"):
        chain.delete(POD)


@pytest.mark.unit
def test_gc_and_status_ask_every_plugin() -> None:
    plugins = Plugins()
    chain = Chain(LIST, ["/x"], plugins)
    chain.gc([POD])
    chain.status()
    assert plugins.order == ["GC a", "GC b", "STATUS a", "STATUS b"]
    assert plugins.calls[0][2]["cni.dev/valid-attachments"] == [{"containerID": "c1", "ifname": "eth0"}]
    assert "CNI_CONTAINERID" not in plugins.calls[0][3]


@pytest.mark.unit
@pytest.mark.parametrize("output", [b"", b"nonsense", b"[]", b'{"code": 1}', b"\xff"])
def test_a_plugin_that_fails_without_an_error_object(output: bytes) -> None:
    chain = Chain(LIST, ["/x"], lambda *_: (3, output))
    with pytest.raises(CniError, match="a failed at STATUS with status 3 and no error object"):
        chain.status()


@pytest.mark.unit
def test_what_kubelet_says_of_a_pod() -> None:
    one = attachment(
        "c1", "/ns", "eth0", "nginx", "shop", {"labels": {"a": "b"}, "portMappings": [], "odd": 1}
    )
    assert one.args["K8S_POD_NAME"] == "nginx" and one.args["K8S_POD_NAMESPACE"] == "shop"
    assert one.config_args == {"org.projectcalico": {"pod": {"labels": {"a": "b"}}, "namespace": {}}}
    assert one.capabilities == {"portMappings": []}


# --- a machine ----------------------------------------------------------------------------------

_ETCD = "http://127.0.0.1:2379"  # its default; the machine has a loopback of its own


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A machine with etcd, a CNI server and the installed plugin."""
    one = Box("node-1")
    processes = [one.start(["etcd", "--data-dir=/run/etcd"], tmp_path / "etcd.log")]
    try:
        wait_until(lambda: "is healthy" in _etcdctl(one, "endpoint", "health"), 60, "etcd")
        ready = ClusterInformationSpec(datastoreReady=True)
        meta = ObjectMeta(name="default")
        for resource in (
            ClusterInformation(metadata=meta, spec=ready),
            Node(metadata=ObjectMeta(name="node-1")),
            pool("pool", "10.65.0.0/24"),
        ):
            _etcdctl(one, "put", key_of(resource).path(), stdin=encode(resource).decode())
        _install(one)
        processes.append(_serve(one, tmp_path))
        # Not by /var/run, a symbolic link that would lead out of the box when followed from here.
        wait_until(one.path("/run/calico/cni.sock").exists, 60, "the CNI server")
        yield one
    finally:
        one.power_off()
        for process in processes:
            process.wait(timeout=60)


_SERVER = "tortie.cni.server"


def _serve(box: Box, folder: Path) -> "subprocess.Popen[bytes]":
    environment = {"ETCD_ENDPOINTS": _ETCD, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return box.start([sys.executable, "-m", _SERVER], folder / "cni.log", environment)


def _etcdctl(box: Box, *arguments: str, stdin: str = "") -> str:
    patience = {"ETCDCTL_DIAL_TIMEOUT": "60s", "ETCDCTL_COMMAND_TIMEOUT": "60s"}  # else 2 and 5
    environment = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": _ETCD, **patience}
    done = box.run("etcdctl", *arguments, env=environment, check=False, stdin=stdin)
    return done.stdout + done.stderr


def _install(box: Box) -> None:
    folder = box.path("/opt/cni/bin")
    folder.mkdir(parents=True, exist_ok=True)
    build(str(folder / "calico"))
    box.path("/etc/cni/net.d").mkdir(parents=True, exist_ok=True)
    plugin = {"type": "calico", "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"}}
    conflist = {"name": "k8s-pod-network", "cniVersion": "1.1.0", "plugins": [plugin]}
    box.path("/etc/cni/net.d/10-calico.conflist").write_text(json.dumps(conflist))
    library = box.path("/var/lib/calico")
    library.mkdir(parents=True, exist_ok=True)
    (library / "nodename").write_text("node-1")


@pytest.mark.kernel
def test_pods_of_a_machine(box: Box) -> None:
    """With the real paths of a host, all inside the machine's own namespaces."""
    runtime = Runtime(box, "k8s-pod-network")
    runtime.status()
    for name in ("one", "two"):
        box.run("ip", "netns", "add", name)
        runtime.add(f"sandbox-{name}", f"/run/netns/{name}", "eth0", name, "default", {"labels": {"a": "b"}})
    runtime.check("sandbox-one")
    assert len([line for line in box.output("ip", "-o", "link").splitlines() if "cali" in line]) == 2
    runtime.delete("sandbox-one", "/run/netns/one", "eth0", "one", "default")
    runtime.delete("never", "/run/netns/none", "eth0", "never", "default")
    runtime._attachments.clear()  # the runtime lost its memory
    runtime.gc()
    assert "cali" not in box.output("ip", "-o", "link")


class Watched(Runtime):
    """Notes what was refused."""

    def __init__(self, box: Box, network: str) -> None:
        super().__init__(box, network)
        self.refused: list[tuple[str, str]] = []  # (command, container)

    def add(self, container_id: str, *args: Any) -> dict[str, Any]:
        try:
            return super().add(container_id, *args)
        except CniError:
            self.refused.append(("ADD", container_id))
            raise

    def delete(self, container_id: str, *args: Any) -> None:
        try:
            super().delete(container_id, *args)
        except CniError:
            self.refused.append(("DEL", container_id))
            raise


@pytest.mark.kernel
def test_a_pod_waits_for_a_node_that_starts_again(box: Box, tmp_path: Path) -> None:
    """As kubelet does: another sandbox each time, none of them left behind."""
    runtime = Watched(box, "k8s-pod-network")
    with ThreadPoolExecutor() as pool, _server_away(box, tmp_path):
        starting = pool.submit(pods.start, runtime, box, "late", "default", tmp_path, {}, serving=False)
        wait_until(lambda: len(runtime.refused) >= 2, 60, "refusals")
    pod = starting.result()
    assert len(pod.addresses) == 1 and len(box.output("ip", "netns").splitlines()) == 1
    ((_, first), *_) = runtime.refused
    assert runtime.refused[:2] == [("ADD", first), ("DEL", first)] and first != pod.container_id
    with ThreadPoolExecutor() as pool, _server_away(box, tmp_path):
        runtime.refused.clear()
        stopping = pool.submit(pods.stop, runtime, pod)
        wait_until(lambda: bool(runtime.refused), 60, "a refusal")
    stopping.result()
    assert "cali" not in box.output("ip", "-o", "link") and box.output("ip", "netns") == ""


@contextlib.contextmanager
def _server_away(box: Box, folder: Path) -> Iterator[None]:
    box.kill(_SERVER)
    wait_until(lambda: not box.pids(_SERVER), 60, "the CNI server to die")
    yield
    _serve(box, folder)


@pytest.mark.kernel
def test_what_cannot_pass_is_told_at_once(box: Box, tmp_path: Path) -> None:
    unlucky = {"annotations": {"cni.projectcalico.org/ipv4pools": '["none"]'}}
    with pytest.raises(CniError, match="none"):
        pods.start(Runtime(box, "k8s-pod-network"), box, "no", "default", tmp_path, unlucky)
    assert box.output("ip", "netns") == ""


@pytest.mark.kernel
def test_a_network_that_is_not_configured(box: Box) -> None:
    with pytest.raises(FileNotFoundError, match="no network other"):
        Runtime(box, "other").status()
