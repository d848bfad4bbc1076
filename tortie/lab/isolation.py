"""Every lab runs in its own parent namespaces: no packet can leave, and nothing can be left behind.

`isolated()` re-executes a command under fresh network, mount, PID and UTS namespaces. Its first
process is PID 1 in there: when it ends, however it ends, the kernel ends every other process of the
lab and with them every namespace, interface, route and mount.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from tortie.core.errors import ConfigError

_MARK = "TORTIE_ISOLATED"  # environment: we are inside already


def is_isolated() -> bool:
    return os.environ.get(_MARK) == "1"


def isolated(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` isolated; needs root."""
    unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
    return [*unshare, "--propagation", "private", "env", f"{_MARK}=1", *argv]


def require() -> None:
    """Refuse to build a lab where it could touch the machine's own network."""
    if os.geteuid() != 0:
        raise ConfigError("user", os.geteuid(), "a lab needs root: it makes network namespaces")
    if not is_isolated():
        raise ConfigError("namespace", "the machine's own", "run the lab isolated, see tortie.lab.isolation")


def prepare() -> None:
    """Inside the new namespaces, once: a loopback, and a /run and /sys of our own."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    mount("tmpfs", "/run", "tmpfs")
    mount("sysfs", "/sys", "sysfs")


_libc = ctypes.CDLL(None, use_errno=True)
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError naming the target."""
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"mount {kind or 'bind'} on {target}: {os.strerror(errno)}")


def main(argv: Sequence[str]) -> int:
    """`python -m tortie.lab.isolation COMMAND...`: run a command isolated, as ./dev does with the tests."""
    if not is_isolated():
        command = isolated([sys.executable, "-m", "tortie.lab.isolation", *argv])
        os.execvp(command[0], command)
    prepare()
    # We are PID 1: Ctrl-C is for the command to act on, and whoever is orphaned is ours to reap.
    signal.signal(signal.SIGINT, lambda *_: None)
    command_pid = os.posix_spawnp(argv[0], list(argv), os.environ)
    while True:
        pid, status = os.wait()
        if pid == command_pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
