"""The outbox against a model of ExaBGP that has its bad habits."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tortie.bgp.commands import Change
from tortie.bgp.outbox import Outbox, next_changes
from tortie.bgp.route import Announcement, Attributes, Received

pytestmark = pytest.mark.unit

_PEER = "10.0.0.1"
_PREFIXES = [f"192.168.{number}.0/24" for number in range(3)]
_ANNOUNCEMENTS = [Announcement(Attributes(med=med), "10.0.0.9") for med in range(3)]
_prefixes = st.sampled_from(_PREFIXES)
_announcements = st.sampled_from(_ANNOUNCEMENTS)


class ModelExaBGP:
    """One neighbour of ExaBGP 5.0: rib/outgoing.py and the loop of reactor/peer.py, in a few lines."""

    def __init__(self) -> None:
        self.up = False
        self.cache: dict[str, Announcement] = {}  # adj-rib-out
        self.queues: dict[Announcement | None, dict[str, Announcement | None]] = {}  # by attributes
        self.wire: dict[str, Announcement] = {}  # what the peer has
        self.first_flush = True

    def command(self, change: Change) -> None:
        if change.announcement is None:
            self.cache.pop(change.prefix, None)
        elif self.cache.get(change.prefix) == change.announcement:
            return  # "already sent"
        else:
            self.cache[change.prefix] = change.announcement
        # Older entries of the prefix in other queues stay where they are: they may be sent later.
        self.queues.setdefault(change.announcement, {})[change.prefix] = change.announcement

    def session_up(self) -> None:
        self.up, self.first_flush, self.wire = True, True, {}
        for prefix, announcement in self.cache.items():
            self.queues.setdefault(announcement, {})[prefix] = announcement

    def session_down(self) -> None:
        self.up, self.wire = False, {}
        self.queues = {}

    def resend(self) -> None:
        for prefix, announcement in self.cache.items():
            self.queues.setdefault(announcement, {})[prefix] = announcement

    def flush(self) -> list[dict[str, Received | None]]:
        """Send everything; what the helper is told of it."""
        told: list[dict[str, Received | None]] = []
        queues, self.queues = self.queues, {}
        for queue in queues.values():
            for prefix, announcement in queue.items():
                if announcement is None:
                    if self.first_flush:
                        continue  # include_withdraw is false
                    self.wire.pop(prefix, None)
                    told.append({prefix: None})
                else:
                    self.wire[prefix] = announcement
                    told.append({prefix: Received(*announcement)})
        if queues:
            self.first_flush = False
        return told


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(_PEER)
        self.exabgp = ModelExaBGP()
        self.commands: list[Change] = []  # in the pipe to ExaBGP
        self.reports: list[dict[str, Received | None]] = []  # in the pipe from it
        self.desired: dict[str, Announcement] = {}
        self.now = 0.0

    @rule(prefix=_prefixes, announcement=st.none() | _announcements)
    def want(self, prefix: str, announcement: Announcement | None) -> None:
        self.outbox.want(prefix, announcement)
        if announcement is None:
            self.desired.pop(prefix, None)
        else:
            self.desired[prefix] = announcement

    @rule()
    def want_nothing(self) -> None:
        self.outbox.want_nothing()
        self.desired.clear()

    @precondition(lambda self: not self.exabgp.up)
    @rule()
    def up(self) -> None:
        self.exabgp.session_up()
        self.outbox.session_up(self.now)

    @precondition(lambda self: self.exabgp.up)
    @rule(commands_arrive=st.booleans())
    def down(self, commands_arrive: bool) -> None:
        """Commands in the pipe are carried out after the session is down, or were before."""
        if commands_arrive:
            self.carry_out()
        self.exabgp.session_down()
        self.reports.clear()  # they come before the word that the session is down
        self.outbox.session_down()

    @rule(limit=st.integers(1, 3))
    def write(self, limit: int) -> None:
        self.commands.extend(self.outbox.changes(self.outbox.first(limit), self.now))

    @rule()
    def carry_out(self) -> None:
        for change in self.commands:
            self.exabgp.command(change)
        self.commands.clear()

    @precondition(lambda self: self.exabgp.up)
    @rule()
    def flush(self) -> None:
        self.reports.extend(self.exabgp.flush())

    @rule()
    def report(self) -> None:
        for told in self.reports:
            self.outbox.reported(told, self.now)
        self.reports.clear()

    @rule()
    def time_passes(self) -> None:
        self.now += 60
        if self.outbox.overdue(self.now):
            self.outbox.resend(self.now)
            self.carry_out()
            self.exabgp.resend()

    def teardown(self) -> None:
        """Left alone with a session, the peer comes to know exactly what it should."""
        if not self.exabgp.up:
            self.up()
        for _ in range(8):
            self.write(10)
            self.carry_out()
            self.flush()
            self.report()
            self.time_passes()
        assert self.exabgp.wire == self.desired
        assert self.outbox.settled and self.outbox.sent_count == len(self.desired)
        assert next_changes([self.outbox], self.now, 100) in (None, [])


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def _one(prefix: str, announcement: Announcement | None) -> Change:
    return Change(_PEER, prefix, announcement)


def _changes(outbox: Outbox, now: float) -> list[Change]:
    return outbox.changes(outbox.first(10), now)


def test_nothing_is_written_while_the_session_is_down() -> None:
    outbox = Outbox(_PEER)
    outbox.want(_PREFIXES[0], _ANNOUNCEMENTS[0])
    assert _changes(outbox, 0) == []
    outbox.session_up(0)
    assert _changes(outbox, 0) == [_one(_PREFIXES[0], _ANNOUNCEMENTS[0])]
    assert _changes(outbox, 0) == []
    outbox.want(_PREFIXES[0], _ANNOUNCEMENTS[1])
    assert _changes(outbox, 0) == [], "the first change has not been reported"
    outbox.reported({_PREFIXES[0]: Received(*_ANNOUNCEMENTS[0])}, 0)
    assert _changes(outbox, 0) == [_one(_PREFIXES[0], _ANNOUNCEMENTS[1])]


def test_what_exabgp_holds_is_withdrawn_only_when_all_is_known() -> None:
    outbox = Outbox(_PEER)
    outbox.adopt({_PREFIXES[0]: _ANNOUNCEMENTS[0], _PREFIXES[1]: _ANNOUNCEMENTS[0]})
    outbox.want(_PREFIXES[0], _ANNOUNCEMENTS[0])
    outbox.want(_PREFIXES[2], _ANNOUNCEMENTS[0])
    assert _changes(outbox, 0) == [_one(_PREFIXES[2], _ANNOUNCEMENTS[0])]
    outbox.release()
    assert _changes(outbox, 0) == [_one(_PREFIXES[1], None)]


def test_what_was_desired_since_the_start_is_withdrawn_at_once() -> None:
    """One peer that never ends its table must not keep what others withdraw alive."""
    outbox = Outbox(_PEER)
    outbox.adopt({_PREFIXES[0]: _ANNOUNCEMENTS[0], _PREFIXES[1]: _ANNOUNCEMENTS[0]})
    outbox.want(_PREFIXES[0], _ANNOUNCEMENTS[0])
    outbox.want(_PREFIXES[0], None)
    assert _changes(outbox, 0) == [_one(_PREFIXES[0], None)]


def test_what_exabgp_sends_by_itself_is_waited_for() -> None:
    outbox = Outbox(_PEER)
    outbox.adopt({_PREFIXES[0]: _ANNOUNCEMENTS[0], _PREFIXES[1]: _ANNOUNCEMENTS[0]})
    outbox.release()
    outbox.want(_PREFIXES[0], _ANNOUNCEMENTS[1])
    outbox.session_down()
    outbox.session_up(0)
    assert _changes(outbox, 0) == []
    outbox.reported({prefix: Received(*_ANNOUNCEMENTS[0]) for prefix in _PREFIXES[:2]}, 0)
    changes = {_one(_PREFIXES[0], _ANNOUNCEMENTS[1]), _one(_PREFIXES[1], None)}
    assert set(_changes(outbox, 0)) == changes


def test_a_missing_report_is_noticed() -> None:
    outbox = Outbox(_PEER)
    outbox.session_up(0)
    outbox.want(_PREFIXES[0], _ANNOUNCEMENTS[0])
    _changes(outbox, 5)
    assert not outbox.overdue(14) and outbox.overdue(16)
    outbox.resend(16)
    assert not outbox.overdue(17)
    assert _changes(outbox, 17) == [_one(_PREFIXES[0], _ANNOUNCEMENTS[0])]


def test_a_lost_withdrawal_is_repeated() -> None:
    """ExaBGP's `flush adj-rib out` sends announcements only."""
    outbox = Outbox(_PEER)
    outbox.adopt({_PREFIXES[0]: _ANNOUNCEMENTS[0]})
    outbox.release()
    assert _changes(outbox, 5) == [_one(_PREFIXES[0], None)]
    outbox.resend(16)
    assert not outbox.settled
    assert _changes(outbox, 17) == [_one(_PREFIXES[0], None)]


def test_what_is_wanted_again_while_its_withdrawal_is_lost_is_announced() -> None:
    """The withdrawal was sent, only not reported; ExaBGP has nothing left to flush."""
    outbox = Outbox(_PEER)
    outbox.adopt({_PREFIXES[0]: _ANNOUNCEMENTS[0]})
    outbox.release()
    assert _changes(outbox, 5) == [_one(_PREFIXES[0], None)]
    outbox.want(_PREFIXES[0], _ANNOUNCEMENTS[0])
    outbox.resend(16)
    assert not outbox.settled
    assert _changes(outbox, 17) == [_one(_PREFIXES[0], _ANNOUNCEMENTS[0])]


def test_neighbours_are_told_the_same_at_the_same_time() -> None:
    """One has something of its own to tell, another is down, a third still waits for a report."""
    one, two, three, down = (Outbox(f"10.0.0.{number}") for number in range(1, 5))
    for outbox in (one, two, three):
        outbox.session_up(0)
    three.want(_PREFIXES[1], _ANNOUNCEMENTS[2])
    assert len(_changes(three, 0)) == 1
    two.want(_PREFIXES[2], _ANNOUNCEMENTS[1])
    for prefix in _PREFIXES[:2]:
        for outbox in (one, two, three, down):
            outbox.want(prefix, _ANNOUNCEMENTS[0])
    outboxes = [one, two, three, down]
    told: list[set[tuple[str, str]]] = []
    while (changes := next_changes(outboxes, 0, 4)) is not None:
        told.append({(change.peer[-1], change.prefix) for change in changes})
    mine, first, second = _PREFIXES[2], _PREFIXES[0], _PREFIXES[1]
    assert told == [{("2", mine)}, {("1", first), ("2", first), ("3", first)}, {("1", second), ("2", second)}]
    three.reported({second: Received(*_ANNOUNCEMENTS[2])}, 0)
    assert next_changes(outboxes, 0, 4) == [Change("10.0.0.3", second, _ANNOUNCEMENTS[0])]
    assert next_changes(outboxes, 0, 4) is None and next_changes([], 0, 4) is None
