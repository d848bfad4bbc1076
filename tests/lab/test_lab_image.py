"""The images of the lab: which files are in them, and the form that runtimes import."""

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tortie.core.errors import ConfigError
from tortie.lab import image, rootfs
from tortie.lab.image import Entry

pytestmark = pytest.mark.unit

DOCKERFILE = Path(__file__).parent.parent.parent / "manifests" / "Dockerfile"


def test_an_archive_names_its_layer_by_what_is_in_it(tmp_path: Path) -> None:
    source = tmp_path / "program"
    source.write_text("content")
    source.chmod(0o700)
    entries = [
        Entry("bin/program", source=source),
        Entry("bin/link", link="program"),
        Entry("etc/text", text="words", mode=0o644),
    ]
    archive = tmp_path / "one.tar"
    assert image.write(archive, "docker.io/x/y:1", entries, ["/bin/program"], {"A": "b"}) == len("content")
    with tarfile.open(archive) as outer:
        contents = {one.name: outer.extractfile(one).read() for one in outer}  # type: ignore[union-attr]
        [manifest] = json.loads(contents["manifest.json"])
        config = json.loads(contents[manifest["Config"]])
        layer = contents[manifest["Layers"][0]]
        (tmp_path / "layer").write_bytes(layer)
    assert manifest["RepoTags"] == ["docker.io/x/y:1"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert (config["config"]["Cmd"], config["config"]["Env"]) == (["/bin/program"], ["A=b"])
    with tarfile.open(tmp_path / "layer") as inner:
        assert inner.getmember("bin/link").linkname == "program"
        assert inner.getmember("bin/program").mode == 0o755, "the controllers are not root"
        assert inner.getmember("bin/program").mtime == int(source.stat().st_mtime)
        assert inner.extractfile("etc/text").read() == b"words"  # type: ignore[union-attr]


def test_the_packages_are_those_of_the_dockerfiles_last_stage() -> None:
    packages = rootfs.wanted_packages(DOCKERFILE.read_text())
    assert {"python3", "iptables", "bird2", "libstdc++6"} <= set(packages)
    assert "gcc" not in packages
    with pytest.raises(ConfigError):
        rootfs.wanted_packages("FROM x\n")


def test_programs_plugins_and_links_are_the_dockerfiles() -> None:
    entries = {entry.path: entry for entry in rootfs._programs()}
    programs = rootfs.words_of(DOCKERFILE.read_text(), "program")
    assert {f"usr/bin/{name}" for name in programs} == {path for path in entries if path.startswith("usr/")}
    assert {path.rpartition("/")[2] for path in entries if path.startswith("opt/")} == {
        "calico", "calico-ipam", "install", "portmap", "bandwidth", "host-local", "loopback",
    }  # fmt: skip
    assert entries["opt/cni/bin/install"].link == "/usr/bin/calico-node"


def test_what_is_needed_comes_along() -> None:
    depends = {"a": [["x", "b"], ["c"]], "b": [["c"]], "c": [["a"]], "d": []}
    assert rootfs.closure(["a"], depends) == {"a", "b", "c"}
    assert rootfs.closure(["nothing"], depends) == set()
    assert rootfs._needs("libc6 (>= 2.1), x | y:any , ") == [["libc6"], ["x", "y"]]


def test_our_programs_find_all_that_they_import(tmp_path: Path) -> None:
    """With nothing but what comes with Python itself: neither an environment nor Debian's packages."""
    inside = "usr/lib/python3/dist-packages/"
    for entry in rootfs._python():
        target = tmp_path / entry.path.removeprefix(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(entry.source)  # type: ignore[arg-type]
    programs = "exabgp.application.main, tortie.bgp.agent, tortie.calicoctl.main, tortie.cni.server"
    programs += ", tortie.confd.daemon, tortie.controllers.run, tortie.felix.daemon, tortie.node.main"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {programs}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
