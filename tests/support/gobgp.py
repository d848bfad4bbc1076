"""GoBGP's command line, wherever it is run: its client gives up after a second, if busy too early."""

import subprocess
from collections.abc import Callable

from tortie.lab.cluster import wait_until

Run = Callable[[list[str]], subprocess.CompletedProcess[str]]


def ask(run: Run, *words: str) -> str:
    """What it says, asked again until it is done. Raises LabError with its last words."""
    said: list[str] = []

    def done() -> bool:
        answer = run(["gobgp", *words])
        said.append(answer.stdout + answer.stderr)
        return answer.returncode == 0

    wait_until(done, f"gobgp {' '.join(words)}", 120, lambda: said[-1])
    return said[-1]


def prefixes(run: Run, family: str = "ipv4") -> set[str]:
    """Those of the paths in its table."""
    lines = ask(run, "global", "rib", "-a", family).splitlines()
    return {line.split()[1] for line in lines if line.startswith("*")}
