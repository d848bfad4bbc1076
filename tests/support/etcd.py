"""A real etcd for tests: started by exec, ended by pid, made to fail in every way a real one does.

A `Gateway` is etcd's own JSON one: what a test prepares and inspects does not pass through the code
under test.
"""

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

_ANSWER = 120.0  # seconds for one answer, on a loaded machine
_START_DEADLINE = 120.0  # seconds; a start takes 0.2 s, on a loaded machine a few


_given: set[int] = set()  # ports that somebody has, or will have in a moment


def free_port() -> int:
    """Never the same twice: who was given one may not listen there yet."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


class Gateway:
    """The content of a running etcd, over its JSON gateway."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def ask(self, path: str, token: str = "", **body: Any) -> dict[str, Any]:
        """One call of the JSON gateway, such as ask("kv/range", key=b64("k")). Raises RuntimeError."""
        request = urllib.request.Request(
            f"{self.endpoint}/v3/{path}", json.dumps(body).encode(), {"Authorization": token} if token else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER) as reply:
                return json.load(reply)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as err:
            raise RuntimeError(f"etcd {path}: {err.read().decode()}") from err

    def put(self, key: str | bytes, value: str | bytes) -> int:
        """The revision made."""
        return int(self.ask("kv/put", key=b64(key), value=b64(value))["header"]["revision"])

    def put_all(self, entries: Mapping[str, str | bytes]) -> int:
        """Many puts in one transaction (etcd takes 128), so with one revision."""
        puts = [{"requestPut": {"key": b64(k), "value": b64(v)}} for k, v in entries.items()]
        return int(self.ask("kv/txn", success=puts)["header"]["revision"])

    def delete(self, key: str | bytes) -> int:
        return int(self.ask("kv/deleterange", key=b64(key))["header"]["revision"])

    def entries(self, prefix: str = "") -> dict[str, bytes]:
        start = prefix.encode() or b"\0"
        end = start[:-1] + bytes([start[-1] + 1]) if prefix else b"\0"
        found = self.ask("kv/range", key=b64(start), range_end=b64(end)).get("kvs", [])
        decode = base64.b64decode
        return {decode(kv["key"]).decode(errors="replace"): decode(kv.get("value", "")) for kv in found}

    def delete_all(self, prefix: str) -> None:
        start = prefix.encode()
        end = start[:-1] + bytes([start[-1] + 1])
        self.ask("kv/deleterange", key=b64(start), range_end=b64(end))

    def wipe(self) -> None:
        self.ask("kv/deleterange", key=b64(b"\0"), range_end=b64(b"\0"))

    @property
    def revision(self) -> int:
        return int(self.ask("kv/range", key=b64("x"), keys_only=True)["header"]["revision"])

    def compact(self, revision: int = 0) -> int:
        """Forget history before a revision (0: the present one)."""
        revision = revision or self.revision
        self.ask("kv/compaction", revision=revision, physical=True)
        return revision


class Etcd(Gateway):
    """One member on 127.0.0.1; `flags` are further arguments of the etcd program."""

    def __init__(self, *flags: str, scheme: str = "http", name: str = "one", peers: str = "") -> None:
        """`peers` is the initial cluster of a member of several, which `start` must then start itself."""
        # In memory if possible: fsync on a disk would be most of every test's time.
        self.folder = tempfile.mkdtemp(
            prefix="tortie-etcd-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        )
        self.log = os.path.join(self.folder, "log")
        self.name = name
        self.peer = f"http://127.0.0.1:{free_port()}"
        self._peers = peers
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        super().__init__(f"{scheme}://127.0.0.1:{free_port()}")
        self._metrics = f"http://127.0.0.1:{free_port()}"

    # --- its life -------------------------------------------------------------------------------

    def start(self, wait: bool = True) -> "Etcd":
        arguments = {
            "name": self.name,
            "data-dir": os.path.join(self.folder, "data"),
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-metrics-urls": self._metrics,
            "listen-peer-urls": self.peer,
            "initial-advertise-peer-urls": self.peer,
            "initial-cluster": self._peers or f"{self.name}={self.peer}",
            "heartbeat-interval": "20",  # milliseconds; everything is local, elections should be quick
            "election-timeout": "200",
        }
        command = ["etcd", *(f"--{name}={value}" for name, value in arguments.items()), *self._flags]
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the server would end with this thread: use `await restart_async()`")
        with open(self.log, "ab") as log:
            # Should the tests be killed, the kernel ends the server with the thread that started it.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command], stdout=log, stderr=log
            )
        if wait:
            self.wait_healthy()
        return self

    def wait_healthy(self) -> None:
        wait_until(self._healthy, _START_DEADLINE, f"etcd to be healthy, see {self.log}")

    def _healthy(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            with open(self.log, errors="replace") as log:
                raise RuntimeError(f"etcd has ended: {log.read()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{self._metrics}/health", timeout=10) as reply:
                return bool(json.load(reply)["health"] == "true")
        except OSError:
            return False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None and not self._stopped

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("etcd is not running")
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: what a crash or a power cut leaves behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process, self._stopped = None, False

    def restart(self) -> None:
        """Kill if necessary and start again, on the same data and the same port."""
        self.kill()
        self.start()

    async def restart_async(self) -> None:
        """The same from within an event loop, which goes on running meanwhile."""
        self.kill()
        self.start(wait=False)
        await asyncio.to_thread(self.wait_healthy)

    def stop_answering(self) -> None:
        """The process hangs, its connections stay: nothing is refused, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._stopped = True
        wait_until(lambda: self._state() == "T", what="etcd to stop")

    def _state(self) -> str:
        with open(f"/proc/{self.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._stopped = False

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def cluster(size: int = 3) -> list[Etcd]:
    """Running members of one etcd cluster."""
    # On a busy machine a member that is not scheduled for a while is not to count as lost.
    calm = ("--heartbeat-interval=100", "--election-timeout=1000")
    members = [Etcd(*calm, name=f"m{number}") for number in range(size)]
    peers = ",".join(f"{member.name}={member.peer}" for member in members)
    for member in members:
        member._peers = peers
        member.start(wait=False)
    for member in members:
        member.wait_healthy()
    return members


def b64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def wait_until(condition: Callable[[], object], deadline: float = 120.0, what: str = "the condition") -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline:g} s for {what}")
        time.sleep(0.01)
