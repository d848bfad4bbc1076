"""`./dev demo` as somebody calls it, from a script or on a terminal, and what it could leave on a machine."""

import contextlib
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tortie.lab.cluster import wait_until

STATE = Path("/run/tortie-demo")
NAMESPACES = ("net", "mnt", "pid", "uts", "ipc", "user")


# --- what a machine has -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Traces:
    """What a program could leave behind on a machine."""

    processes: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    files: frozenset[str]

    def added(self, before: "Traces") -> dict[str, set[str]]:
        """What is there now and was not before."""
        kinds = ("processes", "namespaces", "mounts", "links", "files")
        new = {kind: set(getattr(self, kind) - getattr(before, kind)) for kind in kinds}
        return {kind: things for kind, things in new.items() if things}


def traces() -> Traces:
    processes: set[str] = set()
    namespaces: set[str] = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended while we looked
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if line:  # the dead have none
                processes.add(f"{pid} {line}")
                namespaces.update(os.readlink(f"/proc/{pid}/ns/{kind}") for kind in NAMESPACES)
    mounts = {line.split(" ", 1)[1] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    folders = ("/run", "/etc", "/opt", "/var/lib/calico", "/var/log/calico")
    files = {
        f"{at}/{name}" for top in folders for at, dirs, names in os.walk(top) for name in [*dirs, *names]
    }
    return Traces(
        frozenset(processes),
        frozenset(namespaces),
        frozenset(mounts),
        frozenset(os.listdir("/sys/class/net")),
        frozenset(files),
    )


# --- running it -------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "tortie.lab.main"]


def run(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """As from a script: no terminal."""
    return subprocess.run(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execv(COMMAND[0], [*COMMAND, *words])
        self.text = ""
        os.set_blocking(self._fd, False)

    def read(self) -> str:
        """All that it has shown so far."""
        with contextlib.suppress(BlockingIOError, OSError):  # EIO: it has ended
            while data := os.read(self._fd, 65536):
                self.text += data.decode(errors="replace")
        return self.text

    def wait_for(self, words: str, timeout: float = 300) -> None:
        wait_until(lambda: words in self.read(), f"{words!r} on the terminal", timeout, self.read)

    def press_ctrl_c(self) -> None:
        os.write(self._fd, b"\x03")

    def wait(self) -> int:
        """Its exit code."""
        ended: list[int] = []

        def has_ended() -> bool:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            ended.extend([os.waitstatus_to_exitcode(status)] if pid else [])
            return bool(ended)

        wait_until(has_ended, "the command to end", 120, self.read)
        self.read()  # what it said last
        os.close(self._fd)
        return ended[0]
