"""The two pipes to ExaBGP: a thread that never stops reading, and a writer that never waits.

ExaBGP is single-threaded and blocks when it cannot write to its helper: then its keep-alives stop and
all sessions die. So a thread of its own reads the events, whatever the rest of the agent does, and puts
them into an Inbox, where what is said twice about a prefix is kept once: the memory is bounded by the
size of the peers' tables, not by their speed.

Commands are written without blocking, and only made when the pipe has room (`room`): the decision what
to tell ExaBGP is taken as late as possible, and nothing queues up here.
"""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable

from tortie.bgp import commands, events
from tortie.bgp.events import Event
from tortie.core.errors import PeerError

_log = logging.getLogger(__name__)

_READ = 1 << 18  # bytes per read, four times the pipe
_ROOM = 1 << 16  # bytes waiting to be written below which more may be made, one pipe

Answer = events.Listed | events.Neighbours | events.Described | events.Ready


class Inbox:
    """Events of sessions, and answers to questions, between the reading thread and the loop.

    Updates of one peer and direction that follow each other without another event of that peer are one.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake()` is called when there are events, or answers, after there were none."""
        self._lock = threading.Lock()
        self._wake = wake
        self._events: list[Event] = []
        self._answers: list[Answer] = []
        self._open: dict[str, dict[bool, events.Update]] = {}  # peer -> sent? -> update that may still grow

    def put(self, event: Event) -> None:
        with self._lock:
            quiet = not (self._answers if isinstance(event, Answer) else self._events)
            if isinstance(event, Answer):
                self._answers.append(event)
            elif isinstance(event, events.Update):
                self._put_update(event)
            else:
                if not isinstance(event, events.Shutdown):
                    self._open.pop(event.peer, None)
                self._events.append(event)
        if quiet:
            self._wake()

    def _put_update(self, update: events.Update) -> None:
        open_updates = self._open.setdefault(update.peer, {})
        if (growing := open_updates.get(update.sent)) is not None:
            growing.told.update(update.told)
        else:
            open_updates[update.sent] = update
            self._events.append(update)

    def take_events(self) -> list[Event]:
        with self._lock:
            taken, self._events = self._events, []
            self._open.clear()
        return taken

    def take_answers(self) -> list[Answer]:
        with self._lock:
            taken, self._answers = self._answers, []
        return taken


class Speaker:
    """ExaBGP at the other end of two file descriptors; call start() inside the loop."""

    def __init__(self, source: int = 0, target: int = 1) -> None:
        self._source, self._target = source, target
        self._arrived = asyncio.Event()
        self._answered = asyncio.Event()
        self._answers: deque[Answer] = deque()  # taken from the inbox, not yet asked for
        self._waiting: deque[bytes] = deque()  # to be written
        self._waiting_bytes = 0
        self.on_room: Callable[[], None] = lambda: None  # called when commands may be made again
        self.closed = False
        self.inbox = Inbox(self._wake)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        os.set_blocking(self._target, False)
        threading.Thread(target=self._read_for_ever, name="exabgp", daemon=True).start()

    async def arrival(self) -> None:
        """Return when there may be events in the inbox, or ExaBGP is gone (`closed`)."""
        await self._arrived.wait()
        self._arrived.clear()

    # --- questions ------------------------------------------------------------------------------

    async def fence(self) -> None:
        """Drop what an earlier helper asked for, and what was answered to it. Raises PeerError."""
        self.write(commands.FENCE)
        while not isinstance(await self._next_answer(), events.Ready):
            pass

    async def ask(self, question: bytes = b"") -> tuple[list[Answer], events.Neighbours]:
        """What ExaBGP answers, and its sessions. Ask one thing at a time. Raises PeerError if it is gone."""
        self.write(question + commands.SESSIONS)
        answers: list[Answer] = []
        while True:
            answer = await self._next_answer()
            if isinstance(answer, events.Neighbours):
                return answers, answer
            answers.append(answer)

    async def _next_answer(self) -> Answer:
        while not self._answers:
            if self.closed:
                raise PeerError("ExaBGP has gone away")
            self._answers.extend(self.inbox.take_answers())
            if not self._answers:
                await self._answered.wait()
                self._answered.clear()
        return self._answers.popleft()

    # --- reading: in a thread -------------------------------------------------------------------

    def _read_for_ever(self) -> None:
        rest = b""
        while chunk := self._read():
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                self._take(line)
        self.closed = True
        self._wake()

    def _read(self) -> bytes:
        try:
            return os.read(self._source, _READ)
        except OSError as err:
            _log.warning("reading from ExaBGP failed: %s", err)
            return b""

    def _take(self, line: bytes) -> None:
        try:
            event = events.parse(line)
        except PeerError as err:
            _log.warning("%s", err)
            return
        if event is not None:
            self.inbox.put(event)

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._set_arrived)

    def _set_arrived(self) -> None:
        self._arrived.set()
        self._answered.set()

    # --- writing: in the loop -------------------------------------------------------------------

    @property
    def room(self) -> bool:
        return self._waiting_bytes < _ROOM and not self.closed

    def write(self, line: bytes) -> None:
        """Hand one or more lines to ExaBGP; they are kept here until the pipe takes them."""
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        if len(self._waiting) == 1:
            self._write_some()

    def _write_some(self) -> None:
        while self._waiting:
            line = self._waiting[0]
            try:
                written = os.write(self._target, line)
            except BlockingIOError:
                written = 0
            except OSError as err:  # ExaBGP is gone; the reader sees the same and ends us
                _log.info("writing to ExaBGP failed: %s", err)
                self.closed = True
                self._waiting.clear()
                self._set_arrived()
                break
            self._waiting_bytes -= written
            if written < len(line):
                self._waiting[0] = line[written:]
                self._loop.add_writer(self._target, self._writable)
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._target)

    def _writable(self) -> None:
        had_room = self.room
        self._write_some()
        if self.room and not had_room:
            self.on_room()
