"""A guest: this machine's file system under another kernel, one that has what this one's may lack.

It sees the host's root with the very same paths, environment and checkout, but what it writes vanishes with
it; only `folder` is shared both ways. It has no network but what it makes itself. One command runs in it;
when that ends, the guest does, and `wait` gives its exit code.

`python -m tortie.lab.guest [--user-mode] [COMMAND...]` is a command in a guest on this terminal,
or a shell.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tortie.core.errors import TortieError
from tortie.lab.box import LabError

MARK = "TORTIE_GUEST"  # environment: we are in a guest
WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]  # the kernel's signal to a child whose parent has gone

# The first process on the host's file system, as the guest sees it. A lab may be built here as in isolation.
_START = """\
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
hostname guest
ip link set lo up
stty -F /dev/{tty} {settings}
cd {directory}
setsid -cw env -i {environment} {command} </dev/{tty} >/dev/{tty} 2>&1
echo $? >{folder}/status
busybox poweroff -f
"""


class Machine(Protocol):
    """What a guest runs on. `tty`: the device that its command talks to."""

    tty: str

    def boot(self, guest: "Guest") -> "subprocess.Popen[bytes]":
        """Start it, by `guest.spawn`; it runs `start` in the guest's folder, and ends with it."""


class Guest:
    """A context manager: boots on entering, and is off afterwards in any case.

    In `folder`, an absolute path, are afterwards `console`, what the kernel said, and `output`, what the
    command said (unless on our `terminal`).
    """

    def __init__(
        self,
        machine: Machine,
        argv: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str],
        terminal: bool = False,
    ) -> None:
        self.folder, self.terminal = folder, terminal
        self._machine, self._argv = machine, list(argv)
        self._environment = {**environment, MARK: "1", "TORTIE_ISOLATED": "1"}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.power_off()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.power_off()

    def _boot(self) -> None:
        (self.folder / "start").write_text(self._start())
        self._running = self._machine.boot(self)

    def _start(self) -> str:
        settings = [f"{key}={value}" for key, value in self._environment.items()]
        if self.terminal and sys.stdin.isatty():
            size = os.get_terminal_size(sys.stdin.fileno())
            tty_settings = f"rows {size.lines} cols {size.columns}"
        else:
            tty_settings = "-onlcr -echo"  # lines end as they were written
        return _START.format(
            tty=self._machine.tty,
            settings=tty_settings,
            directory=shlex.quote(os.getcwd()),
            environment=shlex.join(settings),
            command=shlex.join(self._argv),
            folder=shlex.quote(str(self.folder)),
        )

    def spawn(self, argv: Sequence[str], log: str, *, terminal: bool = False) -> "subprocess.Popen[bytes]":
        """A child that ends with us. It runs in the folder, so that sockets' paths are short.

        Its errors go to the file `log`, its output to `output`, or both ways to our terminal.
        """
        with (self.folder / log).open("wb") as said, (self.folder / "output").open("ab") as output:
            stdin, stdout = (None, None) if terminal else (subprocess.DEVNULL, output)
            process = subprocess.Popen(
                [*WITH_US, *argv], cwd=self.folder, stdin=stdin, stdout=stdout, stderr=said
            )
        self._processes.append(process)
        return process

    def running(self) -> bool:
        return self._running.poll() is None

    def wait(self) -> int:
        """Wait for the command's end: its exit code. Raises LabError if the guest ended without one."""
        self._running.wait()
        try:
            return int((self.folder / "status").read_text())
        except (OSError, ValueError):
            raise LabError(f"the guest ended before its command did\n{self.evidence()}") from None

    def evidence(self, *logs: str) -> str:
        """The last that was said in these, as a rule by the kernel, the command and QEMU."""
        return "\n".join(f"--- {log}\n{self._said(log)}" for log in logs or ("console", "output", "qemu"))

    def _said(self, log: str, lines: int = 80) -> str:
        try:
            text = (self.folder / log).read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(re.sub(r"\x1b\[[0-9;]*m|\r", "", text).splitlines()[-lines:])

    def power_off(self) -> None:
        """End it at once. Safe to call in any state."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()


def machine(user_mode: bool) -> Machine:
    """Imported only when there is to be one."""
    if user_mode:
        from tortie.lab.guestusermode import UserMode

        return UserMode()
    from tortie.lab.guestqemu import Qemu

    return Qemu()


def main(argv: Sequence[str]) -> int:
    paths = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": paths, "HOME": str(Path.home()), "TERM": os.environ.get("TERM", "dumb")}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    user_mode = list(argv[:1]) == ["--user-mode"]
    command = list(argv[user_mode:]) or ["bash", "--norc"]  # start-up files would change the prompt
    try:
        with _terminal_as_it_was(), tempfile.TemporaryDirectory(prefix="tortie-guest") as name:
            folder = Path(name)
            with Guest(machine(user_mode), command, folder, environment=environment, terminal=True) as guest:
                return guest.wait()
    except TortieError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@contextlib.contextmanager
def _terminal_as_it_was() -> Iterator[None]:
    """A machine makes it raw, and is killed."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
