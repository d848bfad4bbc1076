"""The guests: they have what this kernel may lack, this machine's files, and none of its network.

The last tests look at one from outside: how it ends.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns_lab import eventually
from tortie.lab.box import LabError
from tortie.lab.guest import Guest, machine

_QEMU = pytest.param("ipip wireguard dummy ip_vs vxlan", marks=pytest.mark.vm, id="qemu")
_USER_MODE = pytest.param("ipip dummy vxlan", marks=pytest.mark.vm(user_mode=True), id="user-mode")


@pytest.mark.parametrize("modules", [_QEMU, _USER_MODE])
def test_what_a_guest_has(modules: str, tmp_path: Path) -> None:
    """The modules, the checkout, and no interface to anywhere."""
    subprocess.run(["modprobe", "-a", *modules.split()], check=True)
    names = {link for link in os.listdir("/sys/class/net") if not link.startswith(("dummy", "teql"))}
    assert {"lo", "tunl0"} <= names <= {"lo", "tunl0", "sit0", "ip6tnl0"}
    assert Path(__file__).exists()
    (tmp_path / "written").write_text("as anywhere")


def run(folder: Path, script: str) -> int:
    path = os.environ["PATH"]
    with Guest(machine(user_mode=True), ["sh", "-c", script], folder, environment={"PATH": path}) as guest:
        return guest.wait()


@pytest.mark.kernel
def test_a_command_ends_with_its_code_and_words_and_what_it_wrote_is_gone(tmp_path: Path) -> None:
    beside = tmp_path.with_name("beside")
    script = f"echo hello; uname -n >&2; touch {beside} && echo kept >{tmp_path}/kept; exit 7"
    assert run(tmp_path, script) == 7
    assert (tmp_path / "output").read_text() == "hello\nguest\n"
    assert (tmp_path / "kept").read_text() == "kept\n" and not beside.exists()


@pytest.mark.kernel
def test_a_panic_is_told_with_what_the_kernel_said(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"before its command did(.|\n)*sysrq triggered crash"):
        run(tmp_path, "echo c >/proc/sysrq-trigger; sleep 60")


@pytest.mark.kernel
def test_nothing_of_it_outlives_who_started_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tortie.lab.guest", "--user-mode", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as started:
        assert started.stdout is not None and started.stdout.readline() == b"up\n"
        assert processes(tmp_path)
        started.kill()
    eventually(lambda: not processes(tmp_path))


def processes(folder: Path) -> list[str]:
    """Those with a name of the folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has ended
        if f"uml_dir={folder}" in line:
            found.append(line)
    return found
