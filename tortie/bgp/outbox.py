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

from collections.abc import Iterator, Mapping

from tortie.bgp.commands import Change
from tortie.bgp.route import Announcement, Received

_OVERDUE = 10.0  # seconds without a report until everything is sent again; a full table takes two


class Outbox:
    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.up = False
        self._desired: dict[str, Announcement] = {}
        self._held: dict[str, Announcement] = {}
        self._sent: dict[str, Announcement] = {}
        self._in_flight: dict[str, Announcement | None] = {}  # None: a withdrawal
        self._dirty: set[str] = set()  # prefixes where desired may differ from sent
        self._waiting_since = 0.0  # last report, or first flight after a rest

    # --- what should be -------------------------------------------------------------------------

    def want(self, prefix: str, announcement: Announcement | None) -> None:
        """The peer should know this of the prefix; None: nothing."""
        if announcement is None:
            self._desired.pop(prefix, None)
        else:
            self._desired[prefix] = announcement
        self._dirty.add(prefix)

    def want_nothing(self) -> None:
        """Withdraw everything, as before the session is removed."""
        self._dirty.update(self._desired)
        self._desired.clear()

    @property
    def desired(self) -> Mapping[str, Announcement]:
        return self._desired

    # --- what is --------------------------------------------------------------------------------

    def adopt(self, held: Mapping[str, Announcement]) -> None:
        """The session is up, and ExaBGP holds and has sent these: found after our own restart."""
        self._held, self._sent = dict(held), dict(held)
        self._in_flight.clear()
        self.up = True
        self._dirty = self._desired.keys() | held.keys()

    def session_up(self, now: float) -> None:
        """ExaBGP now sends what it holds, unasked."""
        self.up = True
        self._sent.clear()
        self._in_flight = dict(self._held)
        self._waiting_since = now
        self._dirty = self._desired.keys() | self._held.keys()

    def session_down(self) -> None:
        self.up = False
        self._sent.clear()
        self._in_flight.clear()

    def reported(self, told: Mapping[str, Received | None], now: float) -> None:
        """ExaBGP sent an UPDATE."""
        self._waiting_since = now
        for prefix, path in told.items():
            announcement = None if path is None else Announcement(*path)
            if announcement is None:
                self._sent.pop(prefix, None)
            else:
                self._sent[prefix] = announcement
            if prefix in self._in_flight and self._in_flight[prefix] == announcement:
                del self._in_flight[prefix]
            if announcement != self._desired.get(prefix):
                self._dirty.add(prefix)

    # --- the difference -------------------------------------------------------------------------

    def changes(self, now: float, limit: int) -> Iterator[Change]:
        """What to write now, at most `limit`; each counts as in flight from here on."""
        if not self.up:
            return
        if not self._in_flight:
            self._waiting_since = now
        blocked = []
        while self._dirty and limit:
            prefix = self._dirty.pop()
            wanted = self._desired.get(prefix)
            if prefix in self._in_flight:
                if self._in_flight[prefix] != wanted:
                    blocked.append(prefix)
                continue
            if wanted == self._sent.get(prefix):
                continue
            self._write(prefix, wanted)
            limit -= 1
            yield Change(self.peer, prefix, wanted)
        self._dirty.update(blocked)

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
        for prefix in lost:
            self._in_flight.pop(prefix, None)
            self._sent.pop(prefix, None)
            self._dirty.add(prefix)
        self._waiting_since = now
