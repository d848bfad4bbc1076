"""What one peer should know, what ExaBGP was told, and what went out: the difference becomes changes.

ExaBGP queues announcements by attribute set and sends the queues one after the other: two changes of
one prefix in its hands at once may leave in the wrong order, and the wrong one stays. So there is
never more than one: a change is *in flight* from the moment it is written until ExaBGP reports the
UPDATE it sent. That report, not an acknowledgement, is also what we believe.

Four pictures, each prefix -> announcement:
- desired: what the peer should know (set by the agent, the whole of it).
- held: what ExaBGP was last told. It keeps this when the session is down, and sends it by itself when
  the session comes up; those prefixes count as in flight until reported.
- sent: what was reported sent in this session.
- in flight: what was written, or is being sent again, and not reported yet.

Nothing is written for a session that is down: a withdrawal would be lost, and ExaBGP would announce
the prefix again later.

Pure: the clock's reading is an argument.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from tortie.bgp.commands import Change
from tortie.bgp.route import Announcement, Received

_OVERDUE = 10.0  # seconds without a report until everything is sent again; a full table takes two
_NOTHING = object()  # no value of any of the pictures


def next_changes(outboxes: Sequence["Outbox"], now: float, limit: int) -> list[Change] | None:
    """About `limit` changes, the same prefixes for all that have them to tell; None if nobody has any.

    What many neighbours are told alike becomes one command, if it is told them at the same time.
    """
    fullest = max(outboxes, key=lambda one: one.dirty_count, default=None)
    if fullest is None or not fullest.dirty_count:
        return None
    prefixes = fullest.first(max(1, limit // len(outboxes)))
    return [change for one in outboxes for change in one.changes(prefixes, now)]


class Outbox:
    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.up = False
        self._desired: dict[str, Announcement] = {}
        self._held: dict[str, Announcement] = {}
        self._sent: dict[str, Announcement] = {}
        self._in_flight: dict[str, Announcement | None] = {}  # None: a withdrawal
        self._dirty: dict[str, None] = {}  # prefixes where desired may differ from sent, oldest first
        self._kept: set[str] = set()  # adopted and not desired since: not withdrawn until all is known
        self._waiting_since = 0.0  # last report, or first flight after a rest

    # --- what should be -------------------------------------------------------------------------

    def want(self, prefix: str, announcement: Announcement | None) -> None:
        """The peer should know this of the prefix; None: nothing."""
        if announcement is None:
            self._desired.pop(prefix, None)
        else:
            self._desired[prefix] = announcement
            self._kept.discard(prefix)
        if self.up:  # session_up() and adopt() look at all
            self._dirty[prefix] = None

    def want_none(self, prefixes: Iterable[str]) -> None:
        """The peer should know nothing of these."""
        for prefix in self._desired.keys() & prefixes if self._desired else ():
            self.want(prefix, None)

    def want_nothing(self) -> None:
        """Withdraw everything, as before the session is removed."""
        if self.up:
            self._dirty |= dict.fromkeys(self._desired)
        self._desired.clear()

    @property
    def desired(self) -> Mapping[str, Announcement]:
        return self._desired

    # --- what is --------------------------------------------------------------------------------

    def adopt(self, held: Mapping[str, Announcement]) -> None:
        """The session is up, and ExaBGP holds and has sent these: found after our own restart.

        What of it was not desired since is not withdrawn until release(): its origin may not have spoken yet.
        """
        self._kept = held.keys() - self._desired.keys()
        self._held, self._sent = dict(held), dict(held)
        self._in_flight.clear()
        self.up = True
        self._look_at_all()

    def release(self) -> None:
        """All routes are known: what is not desired is to be withdrawn."""
        self._dirty |= dict.fromkeys(self._kept)
        self._kept.clear()

    def session_up(self, now: float) -> None:
        """ExaBGP now sends what it holds, unasked."""
        self.up = True
        self._sent.clear()
        self._in_flight = dict(self._held)
        self._waiting_since = now
        self._look_at_all()

    def _look_at_all(self) -> None:
        """In the order in which it was desired: neighbours that are told the same are told together."""
        self._dirty = dict.fromkeys(self._desired) | dict.fromkeys(self._held)

    def session_down(self) -> None:
        self.up = False
        self._sent.clear()
        self._in_flight.clear()
        self._dirty.clear()

    def reported(self, told: Mapping[str, Received | None], now: float) -> None:
        """ExaBGP sent an UPDATE."""
        self._waiting_since = now
        path, announcement = None, None
        for prefix, told_path in told.items():
            written = self._in_flight.get(prefix, _NOTHING)
            if told_path is not path or announcement is None:
                path = told_path
                announcement = None if path is None else Announcement(*path)
                if announcement == written:
                    announcement = written  # the very object: many are compared with it
            if announcement is None:
                self._sent.pop(prefix, None)
            else:
                self._sent[prefix] = announcement
            if announcement == written:
                del self._in_flight[prefix]
            if announcement != self._desired.get(prefix):
                self._dirty[prefix] = None

    # --- the difference -------------------------------------------------------------------------

    def first(self, limit: int) -> list[str]:
        """Prefixes that are to be looked at next, at most `limit`."""
        return list(islice(self._dirty, limit)) if self.up else []

    @property
    def dirty_count(self) -> int:
        return len(self._dirty) if self.up else 0

    def changes(self, prefixes: Iterable[str], now: float) -> list[Change]:
        """What to write now about these; each counts as in flight from here on.

        A prefix in flight is looked at again when it is reported, and one that is kept when all is known.
        """
        made: list[Change] = []
        if not self.up:
            return made
        if not self._in_flight:
            self._waiting_since = now
        for prefix in prefixes:
            if self._dirty.pop(prefix, _NOTHING) is _NOTHING or prefix in self._in_flight:
                continue
            wanted = self._desired.get(prefix)
            if wanted == self._sent.get(prefix) or (wanted is None and prefix in self._kept):
                continue
            self._write(prefix, wanted)
            made.append(Change(self.peer, prefix, wanted))
        return made

    def _write(self, prefix: str, wanted: Announcement | None) -> None:
        self._in_flight[prefix] = wanted
        if wanted is None:
            self._held.pop(prefix, None)
        else:
            self._held[prefix] = wanted

    @property
    def settled(self) -> bool:
        """Everything that should be known was reported sent, and nothing else."""
        return self.up and not self._in_flight and self._sent == self._desired

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def sent_count(self) -> int:
        return len(self._sent)

    def overdue(self, now: float) -> bool:
        """Reports are missing: have ExaBGP send all again (commands.resend), then call resend()."""
        return self.up and bool(self._in_flight) and now - self._waiting_since > _OVERDUE

    def resend(self, now: float) -> None:
        """ExaBGP sends what it holds once more; what it does not hold, or never took, is written anew."""
        lost = self._in_flight
        self._in_flight = dict(self._held)
        for prefix, written in lost.items():
            self._in_flight.pop(prefix, None)
            if written is not None or prefix in self._desired:
                self._sent.pop(prefix, None)  # else it is withdrawn again: the peer may still have it
            self._dirty[prefix] = None
        self._waiting_since = now
