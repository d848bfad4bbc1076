"""calicoctl as a process of its own: how it is called, how it ends, what it imports; and node status."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calicoctl.conftest import Ctl
from tests.netns_lab import Namespace, eventually
from tests.support.bgp_agent import agent
from tests.support.etcd import Etcd
from tortie.bgp.status import PeerStatus, Status

pytestmark = pytest.mark.kernel

ROOT = str(Path(__file__).parents[2])
POOL = (
    '{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"%s"},'
    '"spec":{"cidr":"10.%d.0.0/24"}}'
)


def process(
    *arguments: str, env: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tortie.calicoctl.main", *arguments],
        env={"PYTHONPATH": ROOT, "PATH": os.environ["PATH"], **(env or {})},
        input=stdin, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_session_of_processes(ctl: Ctl) -> None:
    applied = process("apply", "-f", "-", env=ctl.env, stdin=POOL % ("p", 1))
    assert (applied.returncode, applied.stdout, applied.stderr) == (
        0,
        "Successfully applied 1 'IPPool' resource(s)\n",
        "",
    )
    shown = process("get", "ippools", env=ctl.env)
    assert (shown.returncode, shown.stdout) == (
        0,
        "NAME   CIDR          SELECTOR   \np      10.1.0.0/24   all()      \n\n",
    )
    missing = process("get", "ippool", "nope", env=ctl.env)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "resource does not exist: IPPool(nope) with error: <nil>\n"


def test_a_log_level_brings_log_lines(ctl: Ctl) -> None:
    assert process("get", "nodes", env=ctl.env).stderr == ""
    logged = process("apply", "-l", "info", "-f", "-", env=ctl.env, stdin=POOL % ("p", 1))
    assert logged.returncode == 0 and "[INFO]" in logged.stderr


@pytest.mark.parametrize("name", ["\udcff", "a/b", "../x", "", " ", "\n", "x" * 5000])
def test_any_name_is_looked_up_or_refused(ctl: Ctl, name: str) -> None:
    for line in (
        ["get", "node", name],
        ["delete", "np", name],
        ["label", "node", name, "a=b"],
        ["get", "np", "-n", name],
    ):
        result = ctl.run(*line)
        assert result.code == 1 or name == "" or line[2] == "-n"
    for line in (["get", name], ["ipam", "show", "--ip", name or "x"], ["get", "nodes", "-c", name or "x"]):
        assert ctl.run(*line).code == 1
    patch = '{"metadata":{"labels":{"a":"' + name + '"}}}'
    assert ctl.run("patch", "node", "n", "-p", patch).code == 1


def test_names_beyond_the_terminals_encoding(ctl: Ctl, etcd: Etcd) -> None:
    etcd.put("/calico/resources/v3/projectcalico.org/tiers/naïve", '{"kind":"Tier"}')
    shown = process(
        "get", "tiers", env={**ctl.env, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    )
    assert shown.returncode == 0 and "na\\xefve" in shown.stdout


def test_a_reader_that_has_seen_enough_is_no_error_to_shout_about(ctl: Ctl) -> None:
    pools = "\n---\n".join(POOL % (f"pool-{number}", number) for number in range(100))
    ctl.ok("apply", "-f", "-", stdin=pools)
    line = f"{sys.executable} -m tortie.calicoctl.main get ippools -o yaml | head -n 1"
    piped = subprocess.run(
        line, shell=True, env={"PYTHONPATH": ROOT, "PATH": os.environ["PATH"], **ctl.env},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (piped.stdout, piped.stderr) == ("apiVersion: projectcalico.org/v3\n", "")


def test_a_full_disk_is_told_in_a_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tortie.calicoctl.main", "completion", "bash"],
            env={"PYTHONPATH": ROOT, "PATH": os.environ["PATH"]},
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "cannot write the output: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["version", "--client"], {"asyncio", "msgspec", "grpc", "yaml", "tortie.datastore"}),
        (["--help"], {"asyncio", "msgspec", "grpc", "yaml", "tortie.datastore"}),
        (["completion", "bash"], {"asyncio", "msgspec", "grpc", "yaml", "tortie.datastore"}),
        (["validate", "-f", "/dev/null", "--skip-empty"], {"grpc", "tortie.datastore.etcd", "tortie.ipam"}),
        (["get", "nodes", "-o", "yaml"], {
            "yaml", "tortie.ipam", "tortie.bgp", "tortie.calicoctl.documents", "tortie.calicoctl.gotemplate",
            "tortie.datastore.selector",
            "tortie.datastore.validate.registry", "tortie.datastore.felixparams", "importlib.metadata",
        }),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_command_imports_what_it_uses(ctl: Ctl, arguments: list[str], absent: set[str]) -> None:
    code = (
        "import io, os, sys; from tortie.calicoctl import main\n"
        "main.run(sys.argv[1:], os.environ, io.BytesIO(), io.StringIO(), sys.stderr)\n"
        "print(*sys.modules, sep='\\n')"
    )
    env = {"PYTHONPATH": ROOT, "PATH": os.environ["PATH"], **ctl.env}
    # -S: what site would import (an editable installation's finder) is not the command's doing.
    paths = [path for path in sys.path if "site-packages" in path or "dist-packages" in path]
    env["PYTHONPATH"] = ":".join([ROOT, *paths])
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert ran.stderr == ""
    assert not absent & set(ran.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_well_formed(shell: str) -> None:
    script = process("completion", shell).stdout
    if found := shutil.which(shell):  # what is installed judges; the words below hold for each
        subprocess.run([found, "-n"], input=script, text=True, check=True, timeout=300)
    assert "calicoctl __complete" in script and "PROGRAM" not in script and "FUNCTION" not in script


def test_bash_completes_commands_and_kinds(tmp_path: Path) -> None:
    program = tmp_path / "calicoctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tortie.calicoctl.main "$@"\n')
    program.chmod(0o755)
    script = process("completion", "bash").stdout + (
        "COMP_WORDS=(calicoctl get ippo); COMP_CWORD=2; _calicoctl_complete; echo \"${COMPREPLY[@]}\"\n"
        "COMP_WORDS=(calicoctl ap); COMP_CWORD=1; _calicoctl_complete; echo \"${COMPREPLY[@]}\"\n"
    )  # fmt: skip
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": ROOT}
    ran = subprocess.run(
        ["bash"], input=script, env=env, text=True, capture_output=True, timeout=300, check=True
    )
    assert ran.stdout == "ippools\napply\n"


# --- node status ------------------------------------------------------------------------------------


@pytest.fixture
def node() -> Iterator[subprocess.Popen[bytes]]:
    """A process that calls itself calico-node."""
    running = subprocess.Popen(["calico-node", "600"], executable=shutil.which("sleep"))
    eventually(lambda: Path(f"/proc/{running.pid}/cmdline").read_bytes())  # empty for a moment of exec
    yield running
    running.kill()
    running.wait()


def test_a_node_in_another_network_namespace_is_another_node(
    netns: Namespace, node: subprocess.Popen[bytes]
) -> None:
    ran = netns.call(process, "node", "status")
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "Calico process is not running.\n")


def test_node_status(
    offline: Ctl, node: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALICO_RUN_DIR", str(tmp_path))
    assert offline.ok("node", "status") == (
        "Calico process is running.\n\nThe BGP backend process (BIRD) is not running.\n\n"
    )
    peer = PeerStatus(
        address="172.17.8.102", type="node-to-node mesh", family=4, port=0, state="up",
        since=1_000_000_000.0, bgp_state="Established", info="Established",
    )  # fmt: skip
    status = Status(started=0, updated=0, peers=(peer,), configuration_error="bad\x1b file")
    with agent(tmp_path, status) as file:
        result = offline.run("node", "status")
        file.write_text("{")
        broken = offline.run("node", "status")
    assert result.code == 0
    assert result.err == "Warning: the BGP configuration is not in use: bad\\x1b file\n"
    assert (
        result.out
        == """Calico process is running.

IPv4 BGP status
+--------------+-------------------+-------+------------+-------------+
| PEER ADDRESS | PEER TYPE         | STATE | SINCE      | INFO        |
+--------------+-------------------+-------+------------+-------------+
| 172.17.8.102 | node-to-node mesh | up    | 2001-09-09 | Established |
+--------------+-------------------+-------+------------+-------------+

IPv6 BGP status
No IPv6 peers found.

"""
    )
    assert broken.code == 1 and "bgp-status.json" in broken.err
    assert "(BIRD) is not running" in offline.ok("node", "status"), "the agent has gone"


def test_node_status_needs_root(tmp_path: Path) -> None:
    """What it needs is imported before: the checkout may be where only its owner can read."""
    imports = "import os, sys, tortie.calicoctl.nodestatus; from tortie.calicoctl.main import main"
    ran = subprocess.run(
        [sys.executable, "-c", f"{imports}; os.setuid(65534); sys.exit(main())", "node", "status"],
        env={"PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout == "Need super user privileges: Operation not permitted\n"
