"""The demo as a newcomer meets it: up, again, Ctrl-C at any time, down; and nothing is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.demo import STATE, Terminal, run, traces
from tortie.lab import isolation

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine is afterwards as it was before; at once, not in the end."""
    isolation.require()
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the machine's own may be in use by others
    before = traces()
    yield
    added = traces().added(before)
    run("demo", "--down")
    assert not added
    assert not list(tmp_path.iterdir())


# --- tests ------------------------------------------------------------------------------------------


def test_up_twice_entered_and_removed() -> None:
    first = run("demo")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "removing the demo that is up" not in first.stdout
    assert_shows_a_cluster(first.stdout)
    entered()
    second = run("demo", "--nodes", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "removing the demo that is up" in second.stdout
    assert "A cluster of 2 nodes" in second.stdout
    assert run("shell", "node-3", "true").returncode == 1
    down = run("demo", "--down")
    assert (down.returncode, down.stdout) == (0, "removed\n")


def assert_shows_a_cluster(text: str) -> None:
    """What issue and README promise."""
    for words in (
        "calicoctl get nodes -o wide",
        "calicoctl node status",
        "calicoctl ipam show --show-blocks",
        "default via 169.254.1.1 dev eth0",
        "proto bgp onlink",
        "ee:ee:ee:ee:ee:ee",
        "The cluster stays up; remove it with",
        "Things to try",
    ):
        assert words.lower() in text.lower(), text
    assert text.count("Established") == 6, "three nodes with two sessions each"
    before, _, after = text.partition("Who reaches whom")[2].partition("Who reaches whom now")
    assert [row.split()[0] for row in rows(before)] == ["frontend-0", "backend-0", "db-0", "backend-1"], text
    assert all(sorted(row.split()[1:]) == ["ok", "ok", "ok", "·"] for row in rows(before)), text
    # Then the policy, which concerns one of them.
    assert [b for a, b in zip(rows(before), rows(after), strict=True) if a != b] == [
        "frontend-0  ·           ok          timed out   ok"
    ], text
    assert "iptables-save -t filter | grep -e '-A cali-pi-" in text and "ipset list cali40s:" in text


def rows(matrix: str) -> list[str]:
    lines = [line.strip() for line in matrix.splitlines()]
    return [line for line in lines if "·" in line]  # each pod's own cell


def entered() -> None:
    """`shell` is inside what it names, and passes the exit code on."""
    assert run("shell", "node-2", "hostname").stdout == "node-2\n"
    assert "dev eth0" in run("shell", "frontend-0", "ip", "route").stdout
    nodes = run("shell", "node-1", "calicoctl", "get", "nodes")
    assert nodes.stdout.split() == ["NAME", "node-1", "node-2", "node-3"]
    assert run("shell", "frontend-0", "sh", "-c", "exit 7").returncode == 7
    unknown = run("shell", "web-9")
    assert unknown.returncode == 1
    assert "there is no 'web-9'; there are: lab, node-1, node-2, node-3, frontend-0" in unknown.stderr
    assert "_environment" not in unknown.stderr
    inside = Terminal("shell", "frontend-0")
    inside.wait_for("frontend-0# ")
    os.write(inside._fd, b"exit 3\n")
    assert inside.wait() == 3


def test_without_a_demo_there_is_nothing_to_enter_or_remove() -> None:
    answer = run("shell", "node-1")
    assert answer.returncode == 1 and "no demo is running" in answer.stderr
    assert run("demo", "--down").stdout == "no demo is running\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dmeo"],
        ["shell"],
        ["demo", "--nodes", "0"],
        ["demo", "--nodes", "17"],
        ["demo", "--nodes", "three"],
        ["demo", "up"],
    ],
)
def test_wrong_arguments_are_explained_and_do_nothing(words: list[str]) -> None:
    answer = run(*words)
    assert answer.returncode == 2 and "usage: ./dev" in answer.stderr
    assert not STATE.exists()


@pytest.mark.parametrize(
    "moment", ["A cluster of", "underlay", "etcd at", "node-2 at", "is ready", "pod backend-0"]
)
def test_ctrl_c_while_it_comes_up(moment: str) -> None:
    terminal = Terminal("demo")
    terminal.wait_for(moment)
    terminal.press_ctrl_c()
    assert terminal.wait() == 130
    assert "removing the cluster" in terminal.text and "Traceback" not in terminal.text


@pytest.mark.parametrize("way", ["ctrl-c twice", "SIGHUP"])
def test_an_end_while_it_is_up(way: str) -> None:
    terminal = Terminal("demo", "--nodes", "1")
    terminal.wait_for("stays up until Ctrl-C")
    if way == "SIGHUP":
        os.kill(terminal.pid, signal.SIGHUP)
    else:
        terminal.press_ctrl_c()
        terminal.press_ctrl_c()
    assert terminal.wait() == 130
    assert "removing the cluster" in terminal.text and "Traceback" not in terminal.text


def test_a_second_demo_takes_the_place_of_the_first() -> None:
    first = Terminal("demo", "--nodes", "1")
    first.wait_for("stays up until Ctrl-C")
    second = Terminal("demo", "--nodes", "1")
    second.wait_for("removing the demo that is up")
    assert first.wait() == 0 and "the cluster was removed" in first.text
    second.wait_for("stays up until Ctrl-C")
    assert run("shell", "node-1", "true").returncode == 0
    assert run("demo", "--down").stdout == "removed\n"
    assert second.wait() == 0


def test_a_second_demo_while_the_first_comes_up() -> None:
    first = Terminal("demo")
    first.wait_for("etcd at")
    second = Terminal("demo", "--nodes", "1")
    assert first.wait() == 1 and "did not come up" in first.text
    second.wait_for("stays up until Ctrl-C")
    os.kill(second.pid, signal.SIGTERM)
    assert second.wait() == 130
    assert "removing the cluster" in second.text and "Traceback" not in second.text


def test_a_killed_command_leaves_a_demo_that_can_be_removed() -> None:
    terminal = Terminal("demo", "--nodes", "1")
    terminal.wait_for("node-1 at")
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.wait() == -signal.SIGKILL
    early = run("shell", "node-1", "true")
    assert early.returncode in (0, 1) and "Traceback" not in early.stderr
    assert run("demo", "--down").stdout == "removed\n"


def test_a_keeper_that_dies_is_noticed() -> None:
    terminal = Terminal("demo", "--nodes", "1")
    terminal.wait_for("stays up until Ctrl-C")
    os.kill(int((STATE / "keeper").read_text().split()[0]), signal.SIGKILL)
    assert terminal.wait() == 0
    assert not STATE.exists()


def test_what_fails_on_the_way_up_is_shown() -> None:
    """A machine without the upstream CNI plugins, say."""
    without = (
        "import sys; from tortie.lab import isolation, main; "
        "isolation.mount('tmpfs', '/usr/lib/cni', 'tmpfs'); sys.exit(main.main(['demo', '--nodes', '1']))"
    )
    answer = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", without],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert answer.returncode == 1
    assert "error: /usr/lib/cni/portmap is missing" in answer.stdout
    assert "error: the cluster did not come up" in answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
