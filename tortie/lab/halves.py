"""`python -m tortie.lab.halves`: all tests, as two runs of pytest at the same time, isolated from each other.

The cluster tests mostly wait and the others mostly compute, so on two cores both together take hardly
longer than the longer one. The first half is shown as it goes; what the second says comes after that, and
the last lines tell how each ended. A half that fails does not end the other.

Ctrl-C reaches both, since the terminal sends it to all of us, and both say what they have to say. However
else we end, the kernel kills both, and with them all that lives in their namespaces.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

_PYTEST = [sys.executable, "-m", "tortie.lab.isolation", sys.executable, "-m", "pytest"]
_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]  # the kernel's signal to a child whose parent has gone


def halves() -> dict[str, list[str]]:
    """Name -> command. What the second says goes through a file, so it must be told to use colours."""
    colour = "--color=yes" if sys.stdout.isatty() else "--color=no"
    return {
        "cluster tests": [*_PYTEST, "-m", "cluster"],
        "unit and kernel tests": [*_PYTEST, "-m", "not cluster", colour],
    }


def run(commands: Mapping[str, Sequence[str]], shown: IO[bytes]) -> int:
    """Run both at once and wait for them; what they say goes to `shown`. The worse of their exit codes."""
    signal.signal(signal.SIGINT, lambda *_: None)
    (first, second) = commands
    began = time.monotonic()
    with tempfile.TemporaryFile() as kept:
        _say(shown, f"{first}; at the same time the {second}, shown when these are done")
        shown_one, kept_one = _start(commands[first], shown), _start(commands[second], kept)
        codes = {first: shown_one.wait(), second: kept_one.wait()}
        _say(shown, second)
        kept.seek(0)
        shutil.copyfileobj(kept, shown)
    for name, code in codes.items():
        _say(shown, f"{name}: {'passed' if code == 0 else f'failed, exit code {code}'}")
    _say(shown, f"{time.monotonic() - began:.0f} s in all")
    return max(code if code >= 0 else 128 - code for code in codes.values())


def _start(command: Sequence[str], output: IO[bytes]) -> "subprocess.Popen[bytes]":
    argv = [*_WITH_US, *command]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def _say(shown: IO[bytes], text: str) -> None:
    shown.write(f"==> {text}\n".encode())
    shown.flush()


if __name__ == "__main__":
    sys.exit(run(halves(), sys.stdout.buffer))
