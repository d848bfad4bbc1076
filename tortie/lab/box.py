"""A box: one machine of the lab, made of namespaces, with a file system whose writes vanish with it.

Network, mount, PID and UTS namespaces are its own; /etc, /var and /opt are overlays and /run a tmpfs,
so that calico-node and the CNI plugin use their real paths. Its first process only reaps; ending
it is switching the machine off.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tortie.core.errors import TortieError
from tortie.lab.isolation import MS_BIND, mount

PATIENCE = 300.0  # seconds for a command: it may run in a guest, on a busy machine
DISK = "/run/.box"  # where a box keeps what is written to it
_OVERLAYS = ("etc", "var", "opt")
_POWER_OFF = 300.0  # seconds at most; it takes milliseconds

# The box's PID 1: prepared by us, then nothing but reaping until it is killed.
_INIT = """
import os, signal
signal.signal(signal.SIGCHLD, lambda *_: None)  # so that pause() returns
while True:
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        signal.pause()
"""


class LabError(TortieError):
    """Something of the lab did not come about (in time); the message says what was seen instead."""


class Box:
    def __init__(self, name: str, disk: Path | None = None) -> None:
        """With a `disk` (a folder) what is written outlives the box, and is there in the next one on it.

        Inside, the folder is DISK.
        """
        self.name = name
        ready, told = os.pipe()
        self._init = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc",
             "--propagation", "private", sys.executable, "-m", "tortie.lab.box", name, str(told),
             str(disk or "")],
            pass_fds=[told], stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(told)
        answer = os.read(ready, 64)
        os.close(ready)
        if not answer:
            raise LabError(f"box {name} did not start (exit code {self._init.wait()})")
        self.pid = self._child_of(self._init.pid)  # of its PID 1, as seen from here

    @staticmethod
    def _child_of(pid: int) -> int:
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    @property
    def netns(self) -> str:
        """Path of its network namespace."""
        return f"/proc/{self.pid}/ns/net"

    def path(self, inside: str) -> Path:
        """A path of its file system, reachable from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def command(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs `argv` in the box."""
        settings = [f"{key}={value}" for key, value in (env or {}).items()]
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "--", "env", *settings, *argv]

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the box and wait for it. Raises LabError with its words if `check`."""
        result = subprocess.run(
            self.command(argv, env),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        if check and result.returncode != 0:
            raise LabError(
                f"{self.name}: {' '.join(argv)} failed ({result.returncode}): {result.stderr}{result.stdout}"
            )
        return result

    def output(self, *argv: str) -> str:
        return self.run(*argv).stdout

    def start(
        self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a long-running command in the box, its output appended to `log`.

        The returned process is nsenter's; use `pids` to find the command itself.
        """
        with log.open("ab") as out:
            line = self.command(argv, env)
            return subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def pids(self, *words: str) -> list[int]:
        """Processes of the box whose command line contains all `words`, as pids seen from here."""
        found = []
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                try:
                    if os.readlink(f"/proc/{entry}/ns/pid") != namespace:
                        continue
                    line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue  # it ended while we looked
                if line and all(word in line for word in words):  # the dead have no command line
                    found.append(int(entry))
        return found

    def kill(self, *words: str, signal_number: int = signal.SIGKILL) -> list[int]:
        """Signal the processes found by `pids`; returns them, but for those that have ended meanwhile."""
        found = []
        for pid in self.pids(*words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)
                found.append(pid)
        return found

    def power_off(self) -> None:
        """End the machine at once, with everything in it: none of its processes is left then."""
        try:
            first = os.pidfd_open(self.pid)
        except ProcessLookupError:
            first = None
        self._init.kill()
        self._init.wait()
        if first is not None:
            select.select([first], [], [], _POWER_OFF)  # the kernel ends PID 1 after all others
            os.close(first)


def _become_init(name: str, told: int, disk: str) -> None:
    """PID 1 of a new box: make its file system, say so, then reap."""
    kept = os.open(disk, os.O_PATH | os.O_DIRECTORY) if disk else -1  # it may be below /run itself
    mount("tmpfs", "/run", "tmpfs")
    os.makedirs(DISK)
    if disk:
        mount(f"/proc/self/fd/{kept}", DISK, flags=MS_BIND)
    for folder in _OVERLAYS:
        upper, work = f"{DISK}/{folder}/upper", f"{DISK}/{folder}/work"
        os.makedirs(upper, exist_ok=True)
        os.makedirs(work, exist_ok=True)
        options = f"lowerdir=/{folder},upperdir={upper},workdir={work}"
        mount("overlay", f"/{folder}", "overlay", data=options)
    mount("sysfs", "/sys", "sysfs")
    os.makedirs("/run/netns", exist_ok=True)
    subprocess.run(["hostname", name], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.write(told, b"up")
    os.close(told)
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", _INIT])


if __name__ == "__main__":
    _become_init(sys.argv[1], int(sys.argv[2]), sys.argv[3])
