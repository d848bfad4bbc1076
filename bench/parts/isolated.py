"""A benchmark that starts a lab runs in namespaces of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tortie.lab import isolation


def ensure() -> None:
    """Start the benchmark anew inside them, unless it is; ends with its exit code then."""
    if isolation.is_isolated():
        return
    command = [sys.executable, "-m", "tortie.lab.isolation", sys.executable, *sys.argv]
    root = str(Path(__file__).resolve().parent.parent.parent)
    sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, check=False).returncode)
