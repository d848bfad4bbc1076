"""Benchmarks run in namespaces of their own: those that start a lab in several, others in a network's."""

import os
import subprocess
import sys
from pathlib import Path

from tortie.lab import isolation

_INSIDE = "TORTIE_BENCH_INSIDE"


def ensure() -> None:
    """Start the benchmark anew inside them, unless it is; ends with its exit code then."""
    if isolation.is_isolated():
        return
    command = [sys.executable, "-m", "tortie.lab.isolation", sys.executable, *sys.argv]
    root = str(Path(__file__).resolve().parent.parent.parent)
    sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, check=False).returncode)


def ensure_network() -> None:
    """The same with a network namespace only, in which loopback is up."""
    if os.environ.get(_INSIDE) != "1":
        command = ["unshare", "-n", sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env={**os.environ, _INSIDE: "1"}, check=False).returncode)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
