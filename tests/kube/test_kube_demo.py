"""`./dev demo --kubernetes`: up from nothing, entered with its kubeconfig, removed; Ctrl-C at any time."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.support.demo import STATE, Terminal, run, traces
from tortie.lab import cgroups, isolation

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]


def groups() -> set[str]:
    """Control groups of containers: they outlive processes and namespaces."""
    look = f"({cgroups.MOUNT}); find /sys/fs/cgroup -path '*/k8s.io/*' -type d"
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", look]
    return set(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Another cluster may run beside it: of processes only the demo's own count."""
    isolation.require()
    before, before_groups = traces(), groups()
    yield
    added = traces().added(before)
    left = groups() - before_groups
    run("demo", "--down")
    own = [one for one in added.pop("processes", set()) if "tortie.lab" in one or "/run/lab" in one]
    assert (own, added.keys() - {"namespaces"}, left) == ([], set(), set())


def test_up_entered_and_removed() -> None:
    up = run("demo", "--kubernetes", timeout=1200)
    assert up.returncode == 0, up.stdout + up.stderr
    assert "An administrator's kubeconfig: /run/kubeconfig" in up.stdout
    nodes = run("shell", "lab", "kubectl", "get", "nodes", "--no-headers").stdout.splitlines()
    assert [line.split()[:2] for line in nodes] == [[f"node-{n}", "Ready"] for n in (1, 2, 3)]
    assert "Established" in run("shell", "node-1", "calicoctl", "node", "status").stdout
    assert groups()
    down = run("demo", "--down")
    assert (down.returncode, down.stdout) == (0, "removed\n")
    assert not STATE.exists()


@pytest.mark.parametrize("moment", ["etcd at", "node-3 at", "are ready"])
def test_ctrl_c_while_it_comes_up(moment: str) -> None:
    terminal = Terminal("demo", "--kubernetes")
    terminal.wait_for(moment, 600)
    terminal.press_ctrl_c()
    assert terminal.wait() == 130
