"""ExaBGP's helper: `python -m tortie.bgp.agent`. Ties router, kernel and the pipes to ExaBGP together.

Life: have ExaBGP forget what an earlier helper asked, learn what sessions it has (nothing is replayed
to a restarted helper: their routes come from its listings), then follow its reports. When ExaBGP goes,
the agent goes, and leaves the kernel's routes as they are.

It is started often and in a hurry: nothing here imports the datastore or templates.
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable

import msgspec

from tortie.bgp import birdctl, commands, config, events, exabgp, leftovers, status, table, tablerows
from tortie.bgp.kernel import Kernel
from tortie.bgp.outbox import next_changes
from tortie.bgp.prefix import canonical
from tortie.bgp.reload import Reload
from tortie.bgp.report import report
from tortie.bgp.router import Router
from tortie.bgp.speaker import Answer, Speaker
from tortie.core import log, tasks
from tortie.core.errors import ConfigError, KernelError, PeerError
from tortie.core.files import write_atomic
from tortie.core.health import INTERVAL, UNREADY_INTERVAL, HealthSender
from tortie.core.paths import Paths
from tortie.linux.routes import PROTOCOL_BIRD

_log = logging.getLogger("tortie.bgp.agent")  # not __name__: it runs as __main__

_REST = 0.02  # seconds from news to a look at the table: a burst of updates becomes one
_REST_SHARE = 0.2  # a look that took long is followed by a rest in proportion …
_LONGEST_REST = 0.2  # … but no longer than this
_TICK = 1.0  # seconds between looks at the clock: restart times are whole seconds
_PER_TURN = 20_000  # changes made into commands at a time: half a MB, if no two neighbours are told the same
_POLL_CONFIG = 5.0  # seconds between looks at bgp.json, should a nudge get lost
_SWITCH = 0.0005  # seconds the reading thread waits for its turn; ExaBGP stands still while the pipe is full
_STATUS_REST = 1.0  # seconds between two status files at least


class Agent:
    """Implements reload.Edge."""

    def __init__(self, speaker: Speaker, kernel: Kernel) -> None:
        self._speaker = speaker
        self._kernel = kernel
        self._router = Router(kernel.resolver, kernel.interfaces)
        self._reload = Reload(self)
        self._paths = Paths.from_env()
        self._started = self._configured = time.time()
        self._config_seen: tuple[int, int] | None = None  # of bgp.json: inode, time of change
        self._config_error = ""
        self._news_at: float | None = None  # when the first report came that was not decided about
        self._convergence = 0.0
        self._work = asyncio.Event()  # something may have to be decided
        self._progress = asyncio.Event()  # ExaBGP reported something
        self._resync_at: float | None = None  # when the kernel's routes are due again, None: all is well
        self._reported = b""  # last status written, without its time

    async def run(self) -> None:
        """Until ExaBGP goes. Raises PeerError if that is before we know what it has."""
        self._speaker.start()
        self._kernel.list_all()
        self._read_config()
        await self._take_over()
        self._speaker.on_room = self._fill_pipe
        self._report()  # before our socket says that what the file tells is true
        loops = [
            ("watching the kernel", lambda: self._kernel.watch(self._kernel_changed, self._resync)),
            ("listing the kernel", lambda: self._kernel.relist(self._kernel_changed, self._resync)),
            ("watching the configuration", self._watch_config),
            ("deciding", self._decide_for_ever),
            ("reloading", lambda: self._reload.run(self._reloaded)),
            ("writing status", self._report_for_ever),
            ("telling routes", self._tell_routes),
            ("reporting health", self._report_health),
        ]
        running = [asyncio.create_task(tasks.supervise(name, loop), name=name) for name, loop in loops]
        try:
            await self._follow()
        finally:
            await tasks.cancel(running)

    async def _take_over(self) -> None:
        """Learn what sessions there are and what was said on them; their reports wait in the inbox."""
        await self._speaker.fence()
        _, neighbours = await self._speaker.ask()
        established = sum(one.established for one in neighbours.all)
        if not established:
            return
        incoming = _routes((await self._speaker.ask(commands.ROUTES_IN))[0])
        outgoing = _routes((await self._speaker.ask(commands.ROUTES_OUT))[0])
        self._router.found(neighbours.all, incoming, outgoing, time.monotonic(), time.time())
        _log.info("took over %d sessions, %d prefixes received", established, len(incoming))

    # --- what ExaBGP reports --------------------------------------------------------------------

    async def _follow(self) -> None:
        while not self._speaker.closed:
            await self._speaker.arrival()
            now, wall = time.monotonic(), time.time()
            for event in self._speaker.inbox.take_events():
                self._router.handle(event, now, wall)
            self._news_at = self._news_at or now
            self._progress.set()
            self._work.set()

    # --- deciding -------------------------------------------------------------------------------

    async def _decide_for_ever(self) -> None:
        took = 0.0
        while True:
            await _within(_TICK, self._work.wait())
            await asyncio.sleep(min(max(_REST, took * _REST_SHARE), _LONGEST_REST))
            self._work.clear()
            began = time.monotonic()
            await self._decide(began)
            took = time.monotonic() - began

    async def _decide(self, now: float) -> None:
        """Withdrawals leave first, then the kernel's routes change, then peers hear of new ones."""
        decision = self._router.decide()
        news_at, self._news_at = self._news_at, None
        self._kernel.want(decision.routes)
        self._fill_pipe()
        if decision.routes or (self._resync_at is not None and now >= self._resync_at):
            self._resync_at = None
            outcome = await self._kernel.sync()
            if self._resync_at is None:  # else it was asked for meanwhile
                self._resync_at = outcome.retry_at
        if decision.routes and news_at is not None:
            self._convergence = time.monotonic() - news_at
        self._router.announce(decision)
        self._fill_pipe()
        self._end_ribs()
        self._ask_again()
        self._resend_overdue()
        if self._router.tick(now):  # not before what we know was decided: the rest goes now
            _log.info("start-up is over: what is left of the last run goes")
            self._kernel.release()
            self._resync()
            await self._clear_bird_away()

    async def _clear_bird_away(self) -> None:
        """Routes of a BIRD that was this node's speaker before us, Calico's or the BIRD back-end's."""
        if self._router.config is None or birdctl.there(self._paths.bird_ctl):
            return
        try:
            count = await leftovers.remove(PROTOCOL_BIRD, [one.cidr for one in self._router.config.pools])
        except KernelError as err:
            _log.error("routes that BIRD left stay: %s", err)
        else:
            _log.log(logging.INFO if count else logging.DEBUG, "removed %d routes that BIRD left", count)

    def _kernel_changed(self) -> None:
        self._router.kernel_changed()
        self._work.set()

    def _resync(self) -> None:
        self._resync_at = 0.0
        self._work.set()

    # --- telling ExaBGP -------------------------------------------------------------------------

    def _fill_pipe(self) -> None:
        """Make changes into commands while the pipe has room; called again when it has."""
        everybody = not self._reload.pausing  # else only those that are about to be removed
        told = [s.outbox for s in self._router.sessions.values() if everybody or s.peer is None]
        while self._speaker.room and (changes := next_changes(told, time.monotonic(), _PER_TURN)) is not None:
            for line in commands.tell(changes):
                self._speaker.write(line)

    def _end_ribs(self) -> None:
        for peer in self._router.ends_of_rib(time.monotonic()):
            self._speaker.write(commands.end_of_rib(peer))

    def _ask_again(self) -> None:
        """Peers some of whose prefixes had no room, and have now."""
        for peer in self._router.rib.take_room():
            _log.info("%s: there is room for more prefixes, asking for all of them", peer)
            self._speaker.write(commands.refresh(peer))

    def _resend_overdue(self) -> None:
        now = time.monotonic()
        for session in self._router.sessions.values():
            if session.outbox.overdue(now):
                _log.warning(
                    "%s: ExaBGP has not reported %d changes as sent; repeating them",
                    session.address, session.outbox.in_flight,
                )  # fmt: skip
                session.outbox.resend(now)
                self._speaker.write(commands.resend(session.address))

    # --- configuration --------------------------------------------------------------------------

    async def _watch_config(self) -> None:
        """Read bgp.json when nudged, and every few seconds."""
        path = self._paths.bgp_nudge
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as nudges:
            nudges.bind(path)
            os.chmod(path, 0o600)
            while True:
                self._read_config()
                await _within(_POLL_CONFIG, asyncio.get_running_loop().sock_recv(nudges, 64))

    def _read_config(self) -> None:
        path = self._paths.bgp_json
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return
        if (found.st_ino, found.st_mtime_ns) == self._config_seen:
            return
        self._config_seen = (found.st_ino, found.st_mtime_ns)
        try:
            new = config.load(path)
        except ConfigError as err:
            _log.error("keeping the configuration we have: %s", err)
            self._config_error = str(err)
            return
        self._config_error = ""
        if new is not None and new != self._router.config:
            self._configure(new)

    def _configure(self, new: config.Config) -> None:
        logging.getLogger().setLevel(log.level(new.log_severity))
        self._kernel.gateways = frozenset(canonical(p.address) for p in new.peers if p.gateway)
        if self._router.config is not None:
            self._change_hands(self._router.config, new)
        self._router.configure(new, time.monotonic(), time.time())
        self._reload.want(new.sessions)
        self._configured = time.time()
        self._work.set()

    def _change_hands(self, before: config.Config, after: config.Config) -> None:
        if lost := config.handed_over(before, after):
            _log.info("felix is to program %s from now on", ", ".join(lost))
            self._kernel.hand_over(lost)
        if gained := config.handed_over(after, before):
            self._kernel.take_back(gained)

    def _reloaded(self) -> None:
        _log.info("ExaBGP runs with the present configuration")
        self._router.reloaded()
        self._work.set()

    # --- reload.Edge ----------------------------------------------------------------------------

    async def digest(self) -> str | None:
        peers = self._router.config.peers if self._router.config else ()
        question = commands.description(peers[0].address) if peers else b""
        answers, neighbours = await self._speaker.ask(question)
        found = {one.text.rpartition(" ")[2] for one in answers if isinstance(one, events.Described)}
        if not neighbours.all:
            return ""
        return found.pop() if len(found) == 1 else None

    async def drain(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._drained() and (left := deadline - time.monotonic()) > 0:
            self._progress.clear()
            await _within(left, self._progress.wait())

    def _drained(self) -> bool:
        up = [session for session in self._router.sessions.values() if session.outbox.up]
        return all(one.outbox.settled if one.peer is None else not one.outbox.in_flight for one in up)

    def order_reload(self) -> None:
        self._speaker.write(commands.RELOAD)

    async def restart(self) -> None:
        """ExaBGP that met a bad file once takes no file any more; its supervisor starts it again."""
        check = await asyncio.create_subprocess_exec(
            *exabgp.validation_argv(self._paths.exabgp_conf),
            env=exabgp.environment(os.environ),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        if await check.wait() == 0:
            self._speaker.write(commands.SHUTDOWN)
        else:
            _log.error("%s is not valid: ExaBGP goes on with what it has", self._paths.exabgp_conf)

    # --- status ---------------------------------------------------------------------------------

    async def _report_for_ever(self) -> None:
        while True:
            self._report()
            await asyncio.sleep(_STATUS_REST)

    async def _tell_routes(self) -> None:
        """The whole table, to whoever connects."""
        path = self._paths.bgp_routes
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        mask = os.umask(0o177)  # root alone, from the first moment
        try:
            server = await asyncio.start_unix_server(self._tell_table, path)
        finally:
            os.umask(mask)
        async with server:
            await server.serve_forever()

    async def _tell_table(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names = {index: name for name, index in self._kernel.interfaces.by_name.items()}
        with contextlib.suppress(ConnectionError):  # he has heard enough
            await table.write(writer, list(tablerows.rows(self._router, self._kernel.routes.desired, names)))
        writer.close()

    async def _report_health(self) -> None:
        health = HealthSender("bgp")
        while True:
            ready = self._router.config is not None and self._reload.state == "loaded"
            health.report(live=True, ready=ready, reason="" if ready else self._reload.state)
            await asyncio.sleep(INTERVAL if ready else UNREADY_INTERVAL)

    def _report(self) -> None:
        found = report(
            self._router, self._kernel.routes, self._reload, self._started, time.time(), self._config_error
        )
        found = msgspec.structs.replace(
            found, configured=self._configured, convergence=round(self._convergence, 3)
        )
        without_time = status.encode(status.at(found, 0.0))
        if without_time != self._reported:
            write_atomic(self._paths.bgp_status, status.encode(found))
            self._reported = without_time


async def _within(seconds: float, something: Awaitable[object]) -> None:
    """Wait for it, but no longer. (asyncio.wait_for loses a cancellation that comes with the result.)"""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await something


def _routes(answers: list[Answer]) -> list[events.Listed]:
    return [answer for answer in answers if isinstance(answer, events.Listed)]


def main() -> None:
    gc.set_threshold(100_000, 20, 100)  # tables of many small objects and no cycles: looking costs a tenth
    sys.setswitchinterval(_SWITCH)
    log.setup()
    os.makedirs(Paths.from_env().run, exist_ok=True)
    kernel = Kernel()

    async def run() -> None:
        with contextlib.suppress(PeerError):  # ExaBGP went while we were starting
            await Agent(Speaker(), kernel).run()

    asyncio.run(run())
    _log.info("ExaBGP has gone; the kernel keeps its routes")
    kernel.close()


if __name__ == "__main__":
    main()
