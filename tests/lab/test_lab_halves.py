"""Two runs at the same time: what is shown, what code they end with, and that both end with us."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.netns_lab import eventually
from tortie.lab import halves, isolation

pytestmark = pytest.mark.kernel

# `python -c` with the shell commands of both halves as arguments
_RUN = (
    "import sys; from tortie.lab import halves;"
    "sys.exit(halves.run({'one': eval(sys.argv[1]), 'two': eval(sys.argv[2])}, sys.stdout.buffer))"
)


def start(one: Sequence[str], two: Sequence[str]) -> "subprocess.Popen[str]":
    """A run of its own process group, as a shell starts it at a terminal."""
    argv = [sys.executable, "-c", _RUN, repr(list(one)), repr(list(two))]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((1, 0), 1), ((0, 5), 5), ((2, 1), 2)])
def test_the_worse_code_counts_and_neither_ends_the_other(
    codes: tuple[int, int], expected: int, tmp_path: Path
) -> None:
    """Each waits for the other to be there: they do run at the same time."""

    def half(number: int) -> str:
        return (
            f"touch {tmp_path}/{number}; echo {number} begins;"
            f"while [ ! -e {tmp_path}/{1 - number} ]; do sleep 0.01; done;"
            f"echo {number} ends >&2; exit {codes[number]}"
        )

    run = start(["sh", "-c", half(0)], ["sh", "-c", half(1)])
    said, _ = run.communicate(timeout=60)
    assert run.returncode == expected
    how = ["passed" if code == 0 else f"failed, exit code {code}" for code in codes]
    assert said.splitlines()[:-1] == [
        "==> one; at the same time the two, shown when these are done",
        "0 begins", "0 ends",
        "==> two",
        "1 begins", "1 ends",
        f"==> one: {how[0]}",
        f"==> two: {how[1]}",
    ]  # fmt: skip


def test_ctrl_c_is_answered_by_both() -> None:
    polite = ["sh", "-c", "trap 'echo interrupted; exit 2' INT; echo up >&2; while :; do sleep 0.01; done"]
    run = start(polite, polite)
    assert run.stdout is not None
    run.stdout.readline()
    assert run.stdout.readline() == "up\n"
    eventually(lambda: len(_children(run.pid)) == 2 and all(map(_trapping, _children(run.pid))))
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 2 and said.count("interrupted") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_both_end_with_us_and_so_does_what_they_started(number: signal.Signals) -> None:
    length = f"{3600 + time.time_ns() % 10**6}.{os.getpid()}"
    run = start(*[isolation.isolated(["sh", "-c", f"sleep {length} & wait"])] * 2)
    eventually(lambda: len(_sleeping(length)) == 2)
    run.send_signal(number)
    assert run.wait(timeout=60) == -number
    eventually(lambda: not _sleeping(length))


def test_every_test_is_in_one_half() -> None:
    one, two = (command[command.index("pytest") + 2] for command in halves.halves().values())
    assert (one, two) == ("cluster", f"not {one}")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _trapping(pid: int) -> bool:
    """Whether it has come to catch SIGINT."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigCgt"], 16) >> (signal.SIGINT - 1) & 1)


def _sleeping(length: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if words[:2] == [b"sleep", length.encode()]:
            found.append(path.parent.name)
    return found
