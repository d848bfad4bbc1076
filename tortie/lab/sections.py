"""`python -m tortie.lab.sections`: all tests, in runs of pytest at the same time, isolated from each other.

The tests of clusters mostly wait, those in guests keep a core busy, and the others do both in
turn: on two cores all together take hardly longer than the longest. The first section is shown as it goes; of
the others comes after that only how they ended, with their failures if there are any; the last lines tell how
each ended. So whoever keeps no more than the end of it all has every failure. A section that fails does not
end the others. Tests on a real Kubernetes are not among them: `./dev kube` runs these.

Ctrl-C reaches all, since the terminal sends it to all of us, and all say what they have to say. However
else we end, the kernel kills them, and with them all that lives in their namespaces.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import IO

_PYTEST = [sys.executable, "-m", "tortie.lab.isolation", sys.executable, "-m", "pytest"]
_BRIEF = ["-q", "--no-header", "--tb=short"]  # a point per test, and the place of a failure in each file
_LAST = 100  # lines of all that failed unseen: their failures in short, and the last of them in full
_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]  # the kernel's signal to a child whose parent has gone

_SELECTIONS = {  # name -> its tests; the longest first. Folders, since to read all tests takes seconds
    "clusters": ["-m", "cluster", "tests/cluster"],
    "BGP and policy": ["-m", "cluster", "tests/bgp", "tests/policy"],
    "guests": ["-m", "vm", "tests/cluster", "tests/felix", "tests/lab"],
    "all else": ["-m", "not cluster and not vm and not kube"],
}


def sections() -> dict[str, list[str]]:
    """Name -> command. What they say may go through a file, so they must be told to use colours."""
    colour = "--color=yes" if sys.stdout.isatty() else "--color=no"
    return {name: [*_PYTEST, *_BRIEF, colour, *chosen] for name, chosen in _SELECTIONS.items()}


def run(commands: Mapping[str, Sequence[str]], shown: IO[bytes]) -> int:
    """Run all at once and wait for them; what they say goes to `shown`. The worst of their exit codes."""
    signal.signal(signal.SIGINT, lambda *_: None)
    first, *others = commands
    began = time.monotonic()
    with ExitStack() as stack:
        _say(shown, f"{first}; at the same time {', '.join(others)}, whose ends are shown when all is done")
        kept = {name: stack.enter_context(tempfile.TemporaryFile()) for name in others}
        started = {name: _start(command, kept.get(name, shown)) for name, command in commands.items()}
        codes = {name: process.wait() for name, process in started.items()}
        lines = _LAST // max(1, sum(codes[name] != 0 for name in others))
        for name, file in kept.items():
            _say(shown, name)
            file.seek(0)
            shown.writelines(file.readlines()[-lines if codes[name] else -1 :])
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
    sys.exit(run(sections(), sys.stdout.buffer))
