"""A whole node in one command: start-up, then its processes under supervision, until told to stop.

Stopping ends the processes and nothing else: routes, rules and sets stay in the kernel, pods keep
talking, and the next start adopts what it finds.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping

from tortie.core import tasks
from tortie.core.duration import parse_duration
from tortie.core.errors import ConfigError
from tortie.node import nodename
from tortie.node.addresswatch import AddressWatch
from tortie.node.components import components, role
from tortie.node.health import Health, HealthServer
from tortie.node.paths import Paths
from tortie.node.supervisor import Supervisor

_log = logging.getLogger(__name__)

_POLL_INTERVAL = 60.0  # seconds, Calico's default


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
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if not await _start_up(stop, "-startup"):
        return 0 if stop.is_set() else 1
    parts = components(env, paths, nodename.read(env)[0])
    health = Health([part.name for part in parts])
    supervisor = Supervisor(parts, health)
    loops = [asyncio.create_task(supervisor.run(), name="supervisor")]
    if env.get("FELIX_HEALTHENABLED", "true").lower() not in ("false", "0", "no"):
        host, port = env.get("FELIX_HEALTHHOST", "localhost"), _port(env)
        server = HealthServer(health, paths.health_socket, host, port)
        loops.append(asyncio.create_task(tasks.supervise("health server", server.run)))
    if env.get("CALICO_NETWORKING_BACKEND") != "none":
        watch = AddressWatch(lambda: _refresh(stop), _poll_interval(env))
        loops.append(asyncio.create_task(tasks.supervise("address watch", watch.run)))
    print("Calico node started successfully", flush=True)
    await stop.wait()
    _log.info("stopping; the dataplane stays as it is")
    await tasks.cancel(loops)
    return 0


async def _start_up(stop: asyncio.Event, step: str) -> bool:
    """Run one start-up step as a process of its own, so that its memory is gone afterwards."""
    process = await asyncio.create_subprocess_exec(*role(step))
    waiting = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(process.wait())
    await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not ended.done():
        process.terminate()
    return await ended == 0


async def _refresh(stop: asyncio.Event) -> None:
    if not await _start_up(stop, "-monitor-addresses") and not stop.is_set():
        raise ConfigError("IP", "", "the node's addresses could not be brought up to date, see above")


def _port(env: Mapping[str, str]) -> int:
    text = env.get("FELIX_HEALTHPORT", "9099")
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) < 65536:
        raise ConfigError("FELIX_HEALTHPORT", text, "must be a port number")
    return int(text)


def _poll_interval(env: Mapping[str, str]) -> float:
    text = env.get("AUTODETECT_POLL_INTERVAL", "")
    if not text:
        return _POLL_INTERVAL
    try:
        return max(1.0, parse_duration(text))
    except ValueError as err:
        _log.error("error parsing node IP auto-detect polling interval %s: %s", text, err)
        return _POLL_INTERVAL
