"""Builds the plugin binary from shim.c: `python -m tortie.cni.shim OUTPUT`. Needs gcc and static libc."""

import os
import subprocess
import sys

from tortie.core.errors import ConfigError

_SOURCE = os.path.join(os.path.dirname(__file__), "shim.c")
# Static: the hosts it is copied to may have another C library, or none.
_COMMAND = ("gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", _SOURCE, "-o")


def build(output: str) -> None:
    """Compile to `output`, unless it is newer than the source. Raises ConfigError with gcc's words."""
    if os.path.exists(output) and os.path.getmtime(output) >= os.path.getmtime(_SOURCE):
        return
    os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
    try:
        done = subprocess.run([*_COMMAND, output], capture_output=True, text=True, check=False)
    except OSError as err:
        raise ConfigError("gcc", "gcc", f"cannot be run: {err.strerror}") from err
    if done.returncode != 0:
        raise ConfigError("shim.c", output, f"cannot be built: {done.stderr}")


if __name__ == "__main__":
    build(sys.argv[1])
