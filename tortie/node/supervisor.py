"""Runs the node's processes: one crash, one restart, and a stop that leaves the dataplane alone.

Each component is a process of its own. When it ends it is started again after a back-off; its exit
is told to Health at once. What a component itself started is the care of tortie.node.orphans.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tortie.core.backoff import Backoff, Retry
from tortie.node.health import Health

_log = logging.getLogger(__name__)

RESTART_ME = 129  # exit code of a component whose configuration changed: start it again at once (Calico's)
_BACKOFF = Backoff(first=0.2, cap=10.0)  # a crash costs 0.2 s of supervision; a crash loop no CPU
_HEALTHY_AFTER = 30.0  # seconds of life after which the next crash counts as the first
_STOP_TIMEOUT = 5.0  # seconds a component may take to end by itself
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Component:
    """A process to keep running; `prerequisite` (a file) must exist before it is started.

    `health`: the name under which its health is reported, "" for its own; `stop`: the signal that ends it.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)  # added to the supervisor's own
    prerequisite: str = ""
    health: str = ""
    stop: signal.Signals = signal.SIGTERM

    @property
    def reported_as(self) -> str:
        return self.health or self.name


class Supervisor:
    def __init__(self, components: Sequence[Component], health: Health) -> None:
        self._components = components
        self._health = health
        self._running: dict[str, asyncio.subprocess.Process] = {}  # component -> its process
        self._stopping = False

    async def run(self) -> None:
        """Keep all components running until cancelled, then stop them in reverse order."""
        self._stopping = False
        keepers = [asyncio.create_task(self._keep(component)) for component in self._components]
        try:
            await asyncio.gather(*keepers)
        finally:
            self._stopping = True
            for keeper in keepers:
                keeper.cancel()
            for component in reversed(self._components):
                await self._stop(component)

    def pids(self) -> set[int]:
        """Of all components, dead ones that are yet to be waited for included."""
        return {process.pid for process in self._running.values()}

    def pid(self, name: str) -> int | None:
        process = self._running.get(name)
        return process.pid if process is not None and process.returncode is None else None

    async def _keep(self, component: Component) -> None:
        retry = Retry(_BACKOFF)
        clock = asyncio.get_running_loop().time
        while not self._stopping:
            while component.prerequisite and not os.path.exists(component.prerequisite):  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # a file of another process: there is no event to wait for
            started = clock()
            code = await self._run_once(component)
            self._health.exited(component.reported_as)
            if clock() - started > _HEALTHY_AFTER:
                retry.reset()
            delay = 0.0 if code == RESTART_ME else retry.wait()
            _log.log(
                logging.INFO if code == RESTART_ME else logging.ERROR,
                "%s ended (%s); starting it again in %.1f s", component.name, _describe(code), delay,
            )  # fmt: skip
            await asyncio.sleep(delay)

    async def _run_once(self, component: Component) -> int:
        try:
            process = await asyncio.create_subprocess_exec(
                *component.argv,
                env={**os.environ, **component.env},
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to act on, once
                preexec_fn=_die_with_parent,
            )
        except OSError as err:
            _log.error("%s cannot be started: %s", component.name, err)
            return 127
        self._running[component.name] = process
        _log.info("%s started, pid %d", component.name, process.pid)
        try:
            return await process.wait()
        finally:
            if process.returncode is not None:
                self._running.pop(component.name, None)

    async def _stop(self, component: Component) -> None:
        name = component.name
        process = self._running.get(name)
        if process is None or process.returncode is not None:
            return
        deadline = asyncio.get_running_loop().time() + _STOP_TIMEOUT
        ended = asyncio.create_task(process.wait())
        while process.returncode is None and asyncio.get_running_loop().time() < deadline:
            # Repeated, because ExaBGP forgets a signal that arrives while it handles another.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(component.stop)
            # No asyncio.timeout(): Python 3.11 ends a task that is being cancelled with it.
            await asyncio.wait([ended], timeout=1.0)
        if process.returncode is None:
            _log.warning("%s did not stop within %.0f s, killing it", name, _STOP_TIMEOUT)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await ended
        self._running.pop(name, None)


def _describe(code: int) -> str:
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}  # not of all there are
        return f"signal {names.get(-code, -code)}"
    return f"exit code {code}"


_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child: a supervisor killed with SIGKILL must not leave a second set of processes behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
