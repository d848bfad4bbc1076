"""Felix as a real process on a node of namespaces, with a real etcd, for the kernel tier."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.felix.node_lab import Node
from tests.felix.objects import allow, profile, workload
from tests.felix.objects import node as node_object
from tests.netns_lab import Namespace, eventually
from tests.support.etcd import Etcd
from tortie.core.health import VARIABLE
from tortie.datastore import codec
from tortie.datastore.keys import Key

ROOT = Path(__file__).resolve().parents[2]
NODE = "node1"
_PATIENCE = 60.0  # seconds
_UP = "first apply done"  # felix' log
_BEHIND = 100  # packets that may be on their way at once: on a busy machine they wait for each other
_LONGEST = 1 << 24  # bytes that a ping says, at 6 kB a second


class Relay:
    """Lets what is inside a namespace reach a server outside, which it could not by itself."""

    def __init__(self, ns: Namespace, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").rpartition(":")
        self._target = host, int(port)
        self._listener = ns.call(socket.create_server, ("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(_PATIENCE)

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        for source, target in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        except OSError:
            return
        finally:
            target.close()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(_PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()


class FelixProcess:
    """`python -m tortie.felix.daemon` inside the node, its log in a file."""

    def __init__(self, node: Node, etcd: Etcd, folder: Path, **parameters: str) -> None:
        self.node, self.etcd, self.folder, self.parameters = node, etcd, folder, parameters
        self.relay = Relay(node.ns, etcd.endpoint)
        self.log_path = folder / "felix.log"
        self.health = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.health.bind(str(folder / "health.sock"))
        self.health.settimeout(_PATIENCE)
        self.process: subprocess.Popen[bytes] | None = None
        self._up_before = 0  # how many runs had come so far when the present one started

    def start(self, **parameters: str) -> "FelixProcess":
        values = {
            "FELIXHOSTNAME": NODE,
            "IPTABLESBACKEND": "nft",
            "ENDPOINTSTATUSPATHPREFIX": str(self.folder / "run"),
            "REPORTINGINTERVALSECS": "0",
            **self.parameters,
            **parameters,
        }
        environment = {name: value for name, value in os.environ.items() if "ETCD" not in name}
        environment |= {f"FELIX_{name}": value for name, value in values.items()}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "DATASTORE_TYPE": "etcdv3",
            "ETCD_ENDPOINTS": self.relay.endpoint,
            "FELIX_CONFIGFILE": str(self.folder / "felix.cfg"),
            VARIABLE: str(self.folder / "health.sock"),
            "CALICO_LIB_DIR": str(self.folder / "lib"),
        }
        with self.log_path.open("ab") as log:
            self._up_before = self.log.count(_UP)
            self.process = self.node.ns.call(
                subprocess.Popen, [sys.executable, "-m", "tortie.felix.daemon"], env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = 60.0) -> None:
        """Until the log says it (since the last start of anything that truncated it)."""
        eventually(lambda: re.search(pattern, self.log), seconds)

    def until(self, condition: Callable[[], object]) -> None:
        """Until it is so; if it never is, or felix has ended by itself, with its last words."""

        def so() -> object:
            assert self.process is not None and (code := self.process.poll()) is None, f"it ended with {code}"
            return condition()

        try:
            eventually(so, 4 * _PATIENCE)
        except AssertionError as err:
            raise AssertionError(f"{err}\n{self.log[-4000:]}") from None

    def up(self) -> None:
        """Until the first apply of this run is done."""
        self.until(lambda: self.log.count(_UP) > self._up_before)

    def started(self, **parameters: str) -> "FelixProcess":
        self.start(**parameters)
        self.up()
        return self

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(_PATIENCE)

    def ends(self) -> int:
        """Its exit code, when it has ended by itself."""
        assert self.process is not None
        return self.process.wait(2 * _PATIENCE)  # it looks at some things every 15 s only

    def report(self) -> dict[str, Any]:
        """The next word on health."""
        found: dict[str, Any] = msgspec.json.decode(self.health.recv(65536))
        return found

    def files(self) -> set[str]:
        folder = self.folder / "run" / "endpoint-status"
        return set(os.listdir(folder)) if folder.exists() else set()

    # --- the datastore --------------------------------------------------------------------------

    def put(self, *objects: tuple[Key, Any]) -> None:
        for key, value in objects:
            self.etcd.put(key.path(), codec.encode(value))

    def delete(self, *keys: Key) -> None:
        for key in keys:
            self.etcd.delete(key.path())

    def endpoint(self, name: str, *profiles: str, **fields: Any) -> Key:
        """Write the endpoint of one of the node's pods."""
        pod = self.node.pods[name]
        key, value = workload(name, pod.v4, pod.v6, profiles=profiles, interface=pod.interface, **fields)
        self.put((key, value))
        return key

    def close(self) -> None:
        if self.process is not None:
            ended = self.process.poll()
            print("\n".join(self.log.splitlines()[-60:]))  # pytest shows it if the test has failed
            print("felix runs" if ended is None else f"felix has ended with exit code {ended}")
            if ended is None:
                self.kill()
        self.relay.close()
        self.health.close()


def basics(felix: FelixProcess, *open_profiles: str) -> None:
    """A node, and profiles that allow everything."""
    felix.put(
        node_object(NODE, "172.16.0.1/24", "fd16::1/64"), *(profile(one, allow()) for one in open_profiles)
    )


class Stream:
    """Numbered packets from one pod to another, until somebody asks how many of them were answered."""

    def __init__(self, source: Namespace, address: str) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it ends with us
        command = ["ping", "-n", "-i", "0.01", address]
        self._process = source.call(
            subprocess.Popen, command, stdout=self._said, stderr=subprocess.STDOUT, text=True
        )

    def lost(self) -> int:
        """How many of those sent up to now. Ends it, when some that were sent later have been answered."""
        now = max(self.heard(), default=0) + _BEHIND
        eventually(lambda: max(self.heard(), default=0) >= now + _BEHIND)
        self._process.send_signal(signal.SIGINT)
        self._process.wait(_PATIENCE)
        return len(set(range(1, now)) - self.heard())

    def heard(self) -> set[int]:
        """Numbers of the packets that have been answered so far."""
        return {int(number) for number in re.findall(r"bytes from .* icmp_seq=(\d+)", self._output())}

    def _output(self) -> str:
        return os.pread(self._said.fileno(), _LONGEST, 0).decode()  # where ping writes next stays as it is
