"""BIRD 2 routers and nodes of ours on one underlay, for benchmarks that set one beside the other."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.bgp.bgp_lab import Underlay
from tests.netns_lab import Namespace

_POLL = threading.Event()


class World:
    """An underlay and what was started on it; `with` ends all of it."""

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []
        self._closing: list[Callable[[], None]] = []
        self.underlay = Underlay(self.namespace)

    def namespace(self) -> Namespace:
        self._namespaces.append(Namespace())
        return self._namespaces[-1]

    def bird(self, number: int) -> "Bird":
        """A BIRD at 10.9.0.<number>, not started."""
        made = Bird(self.underlay.attach(number), str(number))
        self._closing.append(made.close)
        return made

    def keep(self, close: Callable[[], None]) -> None:
        """Call this at the end, too."""
        self._closing.append(close)

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        for close in reversed(self._closing):
            close()
        for namespace in self._namespaces:
            namespace.close()


class Bird:
    """A BIRD 2 in a namespace."""

    def __init__(self, ns: Namespace, name: str) -> None:
        self.ns = ns
        self._dir = tempfile.mkdtemp(prefix=f"bird-{name}-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, config: str) -> None:
        self._write(config)
        command = ["bird", "-f", "-c", f"{self._dir}/conf", "-s", f"{self._dir}/ctl"]
        self._process = self.ns.call(subprocess.Popen, command, stderr=subprocess.DEVNULL)
        wait(lambda: os.path.exists(f"{self._dir}/ctl"))

    def configure(self, config: str) -> None:
        """Give it another configuration; returns when it has been told."""
        self._write(config)
        self.control("configure")

    def control(self, *words: str) -> str:
        command = ["birdc", "-s", f"{self._dir}/ctl", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def established(self) -> int:
        return self.control("show", "protocols").count("Established")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for name in os.listdir(self._dir):
            os.unlink(f"{self._dir}/{name}")
        os.rmdir(self._dir)

    def _write(self, config: str) -> None:
        Path(f"{self._dir}/conf").write_text(config)


def wait(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Ends the benchmark if it is not so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not so within {seconds} s")
        _POLL.wait(0.02)


def cpu(pid: int) -> float:
    """Seconds of CPU time used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """MB."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
