"""Real containers of real runtimes: podman with its CNI back-end, and containerd's `ctr run --cni`.

Both run in the test's own namespaces with folders of their own, from an image that is made here: there
is no registry. Cgroups stay out of it, which neither the plugin nor what is tested has to do with, and
which are the machine's: crun is told so, and finds an empty folder where it looks for them.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.netns_lab import eventually
from tests.support.cni import UPSTREAM, Machine, calico
from tortie.lab import isolation

pytestmark = pytest.mark.kernel

IMAGE = "localhost/busybox:test"
NETWORK = "tortie"
PORTMAP = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
SECONDS = 240  # for one command; each takes a tenth of one


# --- an image -----------------------------------------------------------------------------------


def add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def layer() -> bytes:
    """A root file system: busybox, and the folders that a runtime mounts something on."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        add(archive, "bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    return found.getvalue()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the format of `docker save`, which both runtimes load."""
    path, root = tmp_path_factory.mktemp("image") / "image.tar", layer()
    diff = "sha256:" + hashlib.sha256(root).hexdigest()
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff]}}
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        add(archive, "config.json", json.dumps(config | {"config": {"Env": ["PATH=/bin"]}}).encode())
        add(archive, "layer.tar", root)
        add(archive, "manifest.json", json.dumps(manifest).encode())
    return path


@contextmanager
def mounted(path: str, kind: str = "tmpfs", data: str = "") -> Iterator[None]:
    """A file system there, seen by this run alone; an empty one if nothing else is said."""
    isolation.require()
    isolation.mount(kind, path, kind, data=data)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def overlaid(path: str) -> Iterator[None]:
    """What is written there vanishes; tests that run at the same time may be watching the machine's own."""
    with tempfile.TemporaryDirectory(dir="/run") as disk:
        for name in ("upper", "work"):
            Path(disk, name).mkdir()
        with mounted(path, "overlay", f"lowerdir={path},upperdir={disk}/upper,workdir={disk}/work"):
            yield


class Runtime:
    """How programs are run on the machine, which for a runtime is its whole host."""

    def __init__(self, machine: Machine, folder: Path, base: Sequence[str]) -> None:
        self.machine, self.folder, self._base = machine, folder, base
        self.environment = os.environ | {
            "TORTIE_CNI_SOCKET": str(machine.socket),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return self.machine.host.call(
            subprocess.Popen,
            [*self._base, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        """What the runtime prints; its failure fails the test with its words."""
        process = self.start(*arguments)
        try:
            said, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        assert process.returncode == 0, f"{' '.join(arguments)}: {said}"
        return said


def write_list(machine: Machine, folder: Path, *plugins: dict[str, Any]) -> None:
    """The network's configuration list, where the runtime looks for one."""
    folder.mkdir(parents=True, exist_ok=True)
    conflist = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": list(plugins)}
    (folder / "10-tortie.conflist").write_text(json.dumps(conflist))


def addresses(text: str) -> list[str]:
    """Of eth0, as `ip -o addr` shows them."""
    words = [line.split() for line in text.splitlines()]
    return [word[3] for word in words if word[1] == "eth0" and word[2] == "inet"]


# --- podman -------------------------------------------------------------------------------------

CONTAINERS_CONF = """
[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin}", "{upstream}"]
network_config_dir = "{folder}/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
"""


@pytest.fixture
def podman(machine: Machine, image: Path) -> Iterator[Runtime | None]:
    """None where it says that it was built without CNI, as Debian 13's."""
    folder = machine.folder / "podman"
    write_list(machine, folder / "net.d", calico(policy={}), PORTMAP)
    text = CONTAINERS_CONF.format(bin=machine.bin, upstream=UPSTREAM, folder=folder)
    (folder / "containers.conf").write_text(text)
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
    )
    one = Runtime(machine, folder, ["podman", "--tmpdir", str(folder / "tmp")])
    with mounted("/sys/fs/cgroup"):
        if "cni support is not enabled in this build" in one.start("info").communicate(timeout=SECONDS)[0]:
            yield None
            return
        one.run("load", "--quiet", "--input", str(image))
        try:
            yield one
        finally:
            one.run("rm", "--all", "--force", "--time", "0")


def test_podman_containers_have_the_network(podman: Runtime | None) -> None:
    """Two containers reach each other and the host, a published port reaches its own, and all goes again."""
    if podman is None:
        return
    server = ("/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/busybox", "hostname")
    run = ("run", "--detach", "--network", NETWORK)
    web = podman.run(*run, "--hostname", "web", "--publish", "8080:80", IMAGE, *server).strip()
    client = podman.run(*run, IMAGE, "/bin/busybox", "sleep", "600").strip()
    machine = podman.machine
    endpoints = {one["spec"]["containerID"]: one["spec"] for one in machine.endpoints().values()}
    assert set(endpoints) == {web, client}
    assert [one["profiles"] for one in endpoints.values()] == [[NETWORK]] * 2
    (own,) = endpoints[web]["ipNetworks"]
    assert addresses(podman.run("exec", web, "/bin/busybox", "ip", "-o", "addr")) == [own]
    fetch = ("/bin/busybox", "nc", "-w", "60", own.partition("/")[0], "80")
    ask = ("exec", client, *fetch)  # refused until it listens
    eventually(lambda: podman.start(*ask).communicate(timeout=SECONDS)[0] == "web\n")
    assert machine.host.run("busybox", "nc", "-w", "60", "192.0.2.1", "8080") == "web\n"
    podman.run("rm", "--force", "--time", "0", web, client)
    assert not machine.remains()
    assert "8080" not in machine.host.run("iptables", "-t", "nat", "-S")


# --- containerd ---------------------------------------------------------------------------------

# Plugins that want file systems, devices or folders of the machine, and the one for kubelet.
DISABLED = (
    "grpc.v1.cri",
    "internal.v1.opt",
    *(f"snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")),
)
CONTAINERD_CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = {disabled}
[grpc]
address = "{folder}/sock"
# Who unpacks an image in containerd 2, which does not take another snapshotter than is said here
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "native"
"""

# It runs in the bundle. Ubuntu 24.04's crun refuses the version that its containerd writes there.
CRUN = """\
#!/bin/sh
[ ! -e config.json ] || sed -i 's/"ociVersion":"[^"]*"/"ociVersion":"1.0.2"/' config.json
exec crun --cgroup-manager=disabled "$@"
"""


@pytest.fixture
def ctr(machine: Machine, image: Path) -> Iterator[Runtime]:
    """`ctr` looks for networks and plugins at fixed places, which are mounted over for it."""
    folder = machine.folder / "ctr"
    folder.mkdir()
    disabled = json.dumps([f"io.containerd.{name}" for name in DISABLED])
    (folder / "config.toml").write_text(CONTAINERD_CONFIG.format(folder=folder, disabled=disabled))
    (folder / "crun").write_text(CRUN)
    (folder / "crun").chmod(0o755)
    one = Runtime(machine, folder, ["ctr", "--address", f"{folder}/sock"])
    with ExitStack() as places, (folder / "log").open("wb") as log:
        places.enter_context(mounted("/sys/fs/cgroup"))
        for top in ("/etc", "/opt"):
            places.enter_context(overlaid(top))
            os.makedirs(f"{top}/cni", exist_ok=True)
            places.enter_context(mounted(f"{top}/cni"))
        write_list(machine, Path("/etc/cni/net.d"), calico(policy={}), PORTMAP)
        shutil.copytree(UPSTREAM, "/opt/cni/bin")
        for name in ("calico", "calico-ipam"):
            shutil.copy(machine.bin / name, f"/opt/cni/bin/{name}")
        daemon = machine.host.call(
            subprocess.Popen,
            ["containerd", "--config", str(folder / "config.toml")],
            env=one.environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            assert eventually(lambda: (folder / "sock").exists() or daemon.poll() is not None, SECONDS)
            one.run("images", "import", "--snapshotter", "native", str(image))
            yield one
        finally:
            daemon.terminate()
            daemon.wait()


def test_ctr_run_with_cni(ctr: Runtime) -> None:
    """`ctr` attaches before the task starts and, in the foreground, detaches when it has ended."""
    machine = ctr.machine
    options = ("--snapshotter", "native", "--runc-binary", f"{ctr.folder}/crun", "--null-io", "--cni", "--rm")
    running = ctr.start("run", *options, IMAGE, "one", "/bin/busybox", "sleep", "600")
    try:
        inspect = ("task", "exec", "--exec-id", "look", "one", "/bin/busybox", "ip", "-o", "addr")
        eventually(lambda: running.poll() is not None or "RUNNING" in ctr.run("task", "ls"), SECONDS)
        (endpoint,) = (one["spec"] for one in machine.endpoints().values())
        assert addresses(ctr.run(*inspect)) == endpoint["ipNetworks"]
        assert endpoint["orchestrator"] == "cni" and endpoint["profiles"] == [NETWORK]
        machine.host.run("ping", "-c", "1", "-W", "30", endpoint["ipNetworks"][0].partition("/")[0])
        ctr.run("task", "kill", "--signal", "KILL", "one")
        running.wait(SECONDS)
    finally:
        running.kill()
    assert not machine.remains(), running.communicate()[0]
