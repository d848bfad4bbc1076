"""Several runs at the same time: what is shown, what code they end with, and that all end with us."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.netns_lab import eventually
from tortie.lab import isolation, sections

pytestmark = pytest.mark.kernel

# `python -c` with the commands of the sections as arguments
_RUN = (
    "import sys; from tortie.lab import sections;"
    "named = zip(('one', 'two', 'three'), map(eval, sys.argv[1:]));"
    "sys.exit(sections.run(dict(named), sys.stdout.buffer))"
)


def start(*commands: Sequence[str]) -> "subprocess.Popen[str]":
    """A run of its own process group, as a shell starts it at a terminal."""
    argv = [sys.executable, "-c", _RUN, *(repr(list(one)) for one in commands)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((1, 0), 1), ((0, 5), 5), ((2, 1), 2)])
def test_the_worse_code_counts_and_neither_ends_the_other(
    codes: tuple[int, int], expected: int, tmp_path: Path
) -> None:
    """Each waits for the other to be there: they do run at the same time."""

    def section(number: int) -> str:
        return (
            f"touch {tmp_path}/{number}; echo {number} begins;"
            f"while [ ! -e {tmp_path}/{1 - number} ]; do sleep 0.01; done;"
            f"echo {number} ends >&2; exit {codes[number]}"
        )

    run = start(["sh", "-c", section(0)], ["sh", "-c", section(1)])
    said, _ = run.communicate(timeout=300)
    assert run.returncode == expected
    how = ["passed" if code == 0 else f"failed, exit code {code}" for code in codes]
    assert said.splitlines()[:-1] == [
        "==> one; at the same time two, whose ends are shown when all is done",
        "0 begins", "0 ends",
        "==> two",
        *(["1 begins", "1 ends"] if codes[1] else ["1 ends"]),
        f"==> one: {how[0]}",
        f"==> two: {how[1]}",
    ]  # fmt: skip


def test_of_those_behind_the_first_no_more_is_shown_than_the_end() -> None:
    failing = ["sh", "-c", "seq 1000; exit 1"]
    said, _ = start(["true"], failing, ["seq", "1000"]).communicate(timeout=300)
    hundred = [str(number) for number in range(901, 1001)]
    assert said.splitlines()[1:-4] == ["==> two", *hundred, "==> three", "1000"]
    said, _ = start(["true"], failing, failing).communicate(timeout=300)
    assert said.splitlines()[1:-4] == ["==> two", *hundred[50:], "==> three", *hundred[50:]]


def test_ctrl_c_is_answered_by_both() -> None:
    polite = ["sh", "-c", "trap 'echo interrupted; exit 2' INT; echo up >&2; while :; do sleep 0.01; done"]
    run = start(polite, polite)
    assert run.stdout is not None
    run.stdout.readline()
    assert run.stdout.readline() == "up\n"
    eventually(lambda: len(_children(run.pid)) == 2 and all(map(_trapping, _children(run.pid))))
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 2 and said.count("interrupted") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_both_end_with_us_and_so_does_what_they_started(number: signal.Signals) -> None:
    length = f"{3600 + time.time_ns() % 10**6}.{os.getpid()}"
    run = start(*[isolation.isolated(["sh", "-c", f"sleep {length} & wait"])] * 2)
    eventually(lambda: len(_sleeping(length)) == 2)
    run.send_signal(number)
    assert run.wait(timeout=300) == -number
    eventually(lambda: not _sleeping(length))


def test_every_test_is_in_one_section_but_those_on_a_real_kubernetes() -> None:
    """Those of no tier that has folders of its own are in the last; no test is of two tiers."""
    commands = sections.sections().values()
    *chosen, rest = (one[one.index("-m", one.index("pytest")) + 1 :] for one in commands)
    tiers = dict.fromkeys(tier for tier, *_ in chosen)
    assert rest == [" and ".join(f"not {tier}" for tier in [*tiers, "kube"])]
    folders = [(tier, folder) for tier, *some in chosen for folder in some]
    assert len(folders) == len(set(folders))
    for path in Path(__file__).parents[1].glob("*/test_*.py"):
        marks = [tier for tier in tiers if re.search(rf"\bmark\.{tier}\b", path.read_text())]
        assert all((tier, f"tests/{path.parent.name}") in folders for tier in marks), path


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _trapping(pid: int) -> bool:
    """Whether it is the shell already, and has come to catch SIGINT."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return lines["Name"] == "sh" and bool(int(lines["SigCgt"], 16) >> (signal.SIGINT - 1) & 1)


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
