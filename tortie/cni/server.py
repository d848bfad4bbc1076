"""The CNI server: a root-only unix socket, and a task for each shim that connects.

One server per node: a lock beside the socket says so, however the last one ended. On SIGTERM no new
call is accepted, and those under way come to an end or are undone; what SIGKILL leaves half done is
put right by the runtime's next call for the same container.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from tortie.cni.conversation import Conversation
from tortie.cni.handler import Handler, Tools
from tortie.cni.hostfiles import HostFiles, keeps_credential
from tortie.cni.journal import JournalHandler
from tortie.cni.later import Later
from tortie.cni.nearpods import NearPods
from tortie.cni.pods import PodSource
from tortie.cni.podsource import Pods
from tortie.cni.store import Store, Stores, open_client
from tortie.cni.warm import WarmPool
from tortie.cni.warmplan import Marks
from tortie.core import log, tasks
from tortie.core.errors import ConfigError, PeerError
from tortie.core.health import INTERVAL, HealthSender
from tortie.core.paths import Paths
from tortie.datastore import config, nodename
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.names import interface_prefixes
from tortie.ipam.allocator import Allocator
from tortie.linux import netns

_log = logging.getLogger(__name__)

_REQUEST_LIMIT = 10.0  # seconds from connecting to the whole request; the shim sends it at once
_STOP_LIMIT = 4.0  # seconds for calls under way when the server is to end; the supervisor kills after five
_THREADS = 16  # pods whose interfaces are made or deleted at once; most of it is waiting for the kernel
_BACKLOG = 512  # shims that wait to be accepted; a node starts 110 pods or so at once

Report = Callable[[bool, bool, str], None]  # (live, ready, why not)


@dataclass(frozen=True, slots=True)
class Settings:
    """`node` is this node's name; a call may name another."""

    paths: Paths
    datastore: DatastoreConfig
    node: str
    interface_prefix: str = "cali"
    warm: Marks = field(default_factory=Marks)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Settings":
        """Raises ConfigError."""
        node, _ = nodename.read(env)
        return cls(
            Paths.from_env(env), config.from_env(env), node, interface_prefixes(env)[0], Marks.from_env(env)
        )


class Server:
    """`report` is told about health every few seconds and at each change."""

    def __init__(
        self,
        settings: Settings,
        *,
        pods: PodSource | None = None,
        report: Report = lambda _live, _ready, _reason: None,
    ) -> None:
        self._settings = settings
        self._pods = pods
        self._report = report
        self._calls: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._journal = JournalHandler()

    def claim(self) -> int:
        """Become the one server of this socket; returns the descriptor of the lock to keep open.

        Raises ConfigError if another server lives, or something else is in the socket's place.
        """
        path = self._settings.paths.cni_socket
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISSOCK(os.lstat(path).st_mode):
                    raise ConfigError("TORTIE_CNI_SOCKET", path, "exists and is no socket")
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise ConfigError("TORTIE_CNI_SOCKET", path, err.strerror or str(err)) from err
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigError("TORTIE_CNI_SOCKET", path, "another CNI server is listening here") from None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a server that is dead, else it would hold the lock
        return lock

    async def run(self) -> None:
        """Serve until cancelled."""
        self._stopping.clear()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "kernel"))
        lock = self.claim()
        stores = Stores(self._settings.datastore, self._settings.node)
        root, host = logging.getLogger(), netns.current()
        for handler in root.handlers:  # a call that asks for debug lines gets them, the process does not
            handler.setLevel(max(handler.level, root.level))
        root.addHandler(self._journal)
        keeping: list[asyncio.Task[None]] = []
        pods: Pods | None = None
        try:
            with self._listen() as listener:
                store = stores.start()
                allocator = Allocator(store.client, self._settings.node, view=store.view)
                warm = WarmPool(
                    allocator, store.client, store.view, self._settings.paths, self._settings.warm
                )
                near = self._near(store)
                pods = Pods(self._settings.datastore, near)
                later = Later(
                    store.client,
                    warm,
                    self._settings.paths,
                    store.in_sync,
                    keeps_endpoints=store.keeps_endpoints,
                )
                keeping = _kept(
                    ("keeping addresses ready", lambda: warm.run(store.in_sync)),
                    ("writing what is owed", later.run),
                    *([("following the node's pods", near.run)] if near is not None else []),
                )
                tools = Tools(
                    host=host,
                    paths=self._settings.paths,
                    node=self._settings.node,
                    stores=stores,
                    pods=self._pods or pods,
                    journal=self._journal,
                    prefix=self._settings.interface_prefix,
                    stopping=self._stopping,
                    warm=warm,
                    later=later,
                )
                health = tasks.spawn(self._report_health(store.in_sync, later), "CNI health")
                try:
                    await self._accept(listener, Handler(tools))
                finally:
                    health.cancel()
        finally:
            await self._finish_calls()
            await tasks.cancel(keeping)
            await stores.close()
            if pods is not None:
                await pods.close()
            root.removeHandler(self._journal)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._settings.paths.cni_socket)
            os.close(host)
            os.close(lock)

    def _near(self, store: Store) -> NearPods | None:
        """Where ADD is to answer without a question, and pods are in the datastore."""
        settings = self._settings
        if settings.warm.high == 0 or settings.datastore.type != "kubernetes":
            return None
        return NearPods(store.client.backend, settings.node)

    @contextlib.contextmanager
    def _listen(self) -> Iterator[socket.socket]:
        path = self._settings.paths.cni_socket
        flags = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_UNIX, flags) as listener:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}.new")
            mask = os.umask(0o177)  # a socket that others could open, even for a moment, would be theirs
            try:
                listener.bind(f"{path}.new")
            finally:
                os.umask(mask)
            listener.listen(_BACKLOG)
            os.rename(f"{path}.new", path)  # only now, so that nobody finds a socket that refuses
            _log.info("listening on %s", path)
            yield listener

    async def _accept(self, listener: socket.socket, handler: Handler) -> None:
        loop = asyncio.get_running_loop()
        gc.collect()
        gc.freeze()  # the modules stay for good: collections need not look at them
        while True:
            connection, _ = await loop.sock_accept(listener)
            call = tasks.spawn(self._serve(connection, handler), "CNI call")
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _serve(self, connection: socket.socket, handler: Handler) -> None:
        shim = Conversation(connection)
        try:
            if (uid := shim.peer_uid) != 0:
                raise PeerError(f"refused a connection of user {uid}")
            async with asyncio.timeout(_REQUEST_LIMIT):
                request = await shim.request()
            await handler.handle(request, shim)
        except TimeoutError:
            _log.warning("a CNI shim sent no request within %.0f s", _REQUEST_LIMIT)
        except PeerError as err:
            _log.warning("a CNI call ended without an answer: %s", err)
        finally:
            shim.close()

    async def _finish_calls(self) -> None:
        self._stopping.set()
        if self._calls:
            await asyncio.wait(self._calls, timeout=_STOP_LIMIT)
        await tasks.cancel(self._calls)

    async def _report_health(self, in_sync: asyncio.Event, later: Later) -> None:
        while True:
            followed = in_sync.is_set()
            reason = later.problem if followed else "waiting for the datastore"
            self._report(True, not reason, reason or later.refusals)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await (asyncio.sleep(INTERVAL) if followed else in_sync.wait())


def _kept(*loops: tuple[str, Callable[[], Awaitable[None]]]) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(tasks.supervise(name, loop)) for name, loop in loops]


def main(env: Mapping[str, str] = os.environ) -> int:
    """Run the server as a process of its own; the exit code says whether it could start."""
    log.setup(env.get("CALICO_CNI_LOG_SEVERITY") or "info")
    health = HealthSender("cni", env)

    def report(live: bool, ready: bool, reason: str) -> None:
        health.report(live=live, ready=ready, reason=reason)

    try:
        settings = Settings.from_env(env)
        server = Server(settings, report=report)
        # What only a person can put right is said at once, not again and again from a supervised loop.
        open_client(settings.datastore)
        os.close(server.claim())
    except ConfigError as err:
        _log.critical("%s", err)
        return 1
    asyncio.run(tasks.run_until_stopped([("CNI server", server.run), *_credential(env)]))
    return 0


def _credential(env: Mapping[str, str]) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """The loop that keeps the host's kubeconfig valid, where there is one to keep. Raises ConfigError."""
    files = HostFiles.from_env(env)
    if not keeps_credential(env, files):
        return []
    from tortie.cni import credential  # the client of Kubernetes, which a node on etcd alone never loads

    return [("credential of the CNI plugin", partial(credential.keep, env, files))]


if __name__ == "__main__":
    sys.exit(main())
