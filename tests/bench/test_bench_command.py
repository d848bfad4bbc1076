"""`python -m bench`: what there is, each in a line, and a clear word about what there is not."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "bench", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_script_is_listed_with_its_purpose() -> None:
    listed = bench("list")
    assert listed.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in listed.stdout.splitlines())
    assert lines.keys() == {path.stem for path in (ROOT / "bench").glob("*.py")} - {"__main__"}
    assert all(len(purpose) > 20 and "sudo" not in purpose for purpose in lines.values()), lines


def test_an_unknown_name_is_answered_with_the_list() -> None:
    answer = bench("nothing")
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: there is no benchmark 'nothing'; there are:\n")
    assert bench("list").stdout in answer.stderr
