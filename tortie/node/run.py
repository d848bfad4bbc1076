"""A whole node in one command: start-up, then its processes under supervision, until told to stop.

Stopping ends the processes and nothing else: routes, rules and sets stay in the kernel, pods keep
talking, and the next start adopts what it finds.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from tortie.core import tasks
from tortie.core.duration import parse_duration
from tortie.core.errors import ConfigError
from tortie.core.paths import Paths
from tortie.datastore import nodename
from tortie.node import condition, metricsport, orphans, shutdown
from tortie.node.addresswatch import AddressWatch
from tortie.node.components import components, role
from tortie.node.health import Health, HealthServer
from tortie.node.supervisor import Supervisor

_log = logging.getLogger(__name__)

_PATIENCE = 300.0  # seconds until Kubernetes is told that the network is there, ready or not; Calico's
_POLL_INTERVAL = 60.0  # seconds, Calico's default

_steps: set[int] = set()  # pids of start-up steps under way: asyncio collects them, the reaper must not


def run(env: Mapping[str, str] = os.environ) -> int:
    """Exit code: 0 after a clean stop, 1 if the node could not start."""
    if os.geteuid() != 0:
        print("calico-node needs root: it programs routes, rules and interfaces", file=sys.stderr)
        return 1
    try:
        return asyncio.run(_run(env))
    except ConfigError as err:
        _log.critical("%s", err)
        return 1


async def _run(env: Mapping[str, str]) -> int:
    paths = Paths.from_env(env)
    paths.create()
    orphans.adopt()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if not await _start_up(stop, "-startup"):
        return 0 if stop.is_set() else 1
    parts = components(env, paths, nodename.read(env)[0])
    health = Health({part.reported_as: None for part in parts})
    supervisor = Supervisor(parts, health)
    server = HealthServer(health, paths.health_socket, paths.probe_socket)
    loops: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        ("supervisor", supervisor.run),
        ("reaper", partial(orphans.reap, lambda: supervisor.pids() | _steps)),
        ("health server", server.run),
        ("end of the start", partial(_finish_start, health, env)),
    ]
    if env.get("FELIX_HEALTHENABLED", "true").lower() not in ("false", "0", "no"):
        loops.append(("health port", partial(server.serve_port, *_address(env))))
    if port := metricsport.wanted(env):
        host = env.get("TORTIE_BGP_METRICS_HOST", "")
        loops.append(("BGP metrics", partial(metricsport.serve, host, port)))
    if env.get("CALICO_NETWORKING_BACKEND") != "none":
        loops.append(("address watch", AddressWatch(partial(_refresh, stop), _poll_interval(env)).run))
    running = [asyncio.create_task(tasks.supervise(name, loop), name=name) for name, loop in loops]
    print("Calico node started successfully", flush=True)
    await stop.wait()
    _log.info("stopping; the dataplane stays as it is")
    await tasks.cancel(running)
    await orphans.end()
    return 0


async def _finish_start(health: Health, env: Mapping[str, str]) -> None:
    """What is to be done once, when everything is ready."""
    began, told = time.monotonic(), False
    while not (ready := health.judge("readiness")[0]) or not told:
        # A node whose BGP peers are all away serves its own pods: Kubernetes may have it after a while.
        if not told and (ready or time.monotonic() > began + _PATIENCE):
            told = True
            await condition.tell(env, up=True)
        if not ready:
            await asyncio.sleep(1.0)  # reports come and grow old, there is no event
    shutdown.remove_note(env)


async def _start_up(stop: asyncio.Event, step: str) -> bool:
    """Run one start-up step as a process of its own, so that its memory is gone afterwards."""
    process = await asyncio.create_subprocess_exec(*role(step))
    _steps.add(process.pid)
    waiting = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(process.wait())
    try:
        await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not ended.done():
            process.terminate()
        ended.add_done_callback(lambda _: _steps.discard(process.pid))
    return await ended == 0


async def _refresh(stop: asyncio.Event) -> None:
    if not await _start_up(stop, "-monitor-addresses") and not stop.is_set():
        raise ConfigError("IP", "", "the node's addresses could not be brought up to date, see above")


def _address(env: Mapping[str, str]) -> tuple[str, int]:
    """Host and port to serve health on. Raises ConfigError."""
    text = env.get("FELIX_HEALTHPORT") or "9099"
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) < 65536:
        raise ConfigError("FELIX_HEALTHPORT", text, "must be a port number")
    return env.get("FELIX_HEALTHHOST") or "localhost", int(text)


def _poll_interval(env: Mapping[str, str]) -> float:
    text = env.get("AUTODETECT_POLL_INTERVAL", "")
    if not text:
        return _POLL_INTERVAL
    try:
        return max(1.0, parse_duration(text))
    except ValueError as err:
        _log.error("error parsing node IP auto-detect polling interval %s: %s", text, err)
        return _POLL_INTERVAL
