"""The two pipes: never stop reading, never wait for writing, never grow without bound."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tortie.bgp import commands, events
from tortie.bgp.route import Attributes, Received
from tortie.bgp.speaker import Inbox, Speaker
from tortie.core.errors import PeerError

pytestmark = pytest.mark.unit

_PATHS = [Received(Attributes(med=med), "10.0.0.9") for med in range(3)]


def _update(prefix: str, med: int | None, sent: bool = False, peer: str = "10.0.0.2") -> events.Update:
    return events.Update(peer, sent, {prefix: None if med is None else _PATHS[med]})


# --- the inbox ----------------------------------------------------------------------------------


def test_what_is_said_twice_is_kept_once() -> None:
    woken = []
    inbox = Inbox(lambda: woken.append(1))
    for round_number in range(10_000):
        inbox.put(_update(f"10.{round_number % 5}.0.0/16", round_number % 3))
    (only,) = inbox.take_events()
    assert isinstance(only, events.Update) and len(only.told) == 5
    assert woken == [1]
    assert inbox.take_events() == []
    inbox.put(_update("10.0.0.0/16", 1))
    assert woken == [1, 1]


def test_the_last_word_counts() -> None:
    inbox = Inbox(lambda: None)
    for med in (0, None, 2):
        inbox.put(_update("10.0.0.0/16", med))
    assert inbox.take_events() == [_update("10.0.0.0/16", 2)]


def test_nothing_moves_past_another_event_of_its_peer() -> None:
    inbox = Inbox(lambda: None)
    first, up, second = _update("10.0.0.0/16", 0), events.Up("10.0.0.2"), _update("10.0.0.0/16", 1)
    other = _update("10.0.0.0/16", 2, peer="10.0.0.3")
    for event in (first, other, up, second, _update("10.1.0.0/16", 2, peer="10.0.0.3"), events.Shutdown()):
        inbox.put(event)
    taken = inbox.take_events()
    assert taken[0] == _update("10.0.0.0/16", 0) and taken[2:4] == [up, _update("10.0.0.0/16", 1)]
    assert isinstance(taken[1], events.Update) and len(taken[1].told) == 2
    assert taken[4] == events.Shutdown()


def test_sent_and_received_are_two_things() -> None:
    inbox = Inbox(lambda: None)
    inbox.put(_update("10.0.0.0/16", 0))
    inbox.put(_update("10.0.0.0/16", None, sent=True))
    assert len(inbox.take_events()) == 2


def test_answers_wait_apart() -> None:
    woken = []
    inbox = Inbox(lambda: woken.append(1))
    inbox.put(events.Up("10.0.0.2"))
    inbox.put(events.Neighbours(()))
    assert woken == [1, 1], "whoever waits for an answer is woken though events lie there"
    assert inbox.take_answers() == [events.Neighbours(())] and len(inbox.take_events()) == 1


# --- the pipes ----------------------------------------------------------------------------------


class Pipes:
    """A Speaker, and the ends that ExaBGP holds."""

    def __init__(self) -> None:
        self.source, self.to_agent = os.pipe()
        self.from_agent, self.target = os.pipe()

    def run(self, act: Callable[[Speaker], Awaitable[None]]) -> None:
        async def main() -> None:
            speaker = Speaker(self.source, self.target)
            speaker.start()
            async with asyncio.timeout(180):
                await act(speaker)

        asyncio.run(main())

    def close(self, *ends: int) -> None:
        """Of all ends the source last, when its reader has seen the end: the number will be used again."""
        for end in ends or (self.to_agent, self.from_agent, self.target):
            with contextlib.suppress(OSError):
                os.close(end)
        if not ends:
            for thread in threading.enumerate():
                if thread.name == "exabgp":
                    thread.join()
            os.close(self.source)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    made.close()


def _line(number: int) -> bytes:
    return (
        '{ "exabgp": "5.0.0", "type": "update", "neighbor": { "address": { "peer": "10.0.0.2" }, '
        '"direction": "receive", "message": { "update": { "attribute": { "origin": "igp" }, '
        f'"announce": {{ "ipv4 unicast": {{ "10.0.0.9": [ "10.{number % 50}.0.0/16" ] }} }} }} }} }} }}\n'
    ).encode()


def test_exabgp_is_read_while_the_agent_is_busy_and_its_own_pipe_is_full(pipes: Pipes) -> None:
    """Both pipes full at once is how two programs wait for each other for ever."""
    written = threading.Event()

    def exabgp() -> None:
        """Writes fifty times what the pipe holds, and reads no command."""
        for number in range(20_000):
            os.write(pipes.to_agent, _line(number))
        written.set()

    async def act(speaker: Speaker) -> None:
        thread = threading.Thread(target=exabgp)
        thread.start()
        while speaker.room:
            speaker.write(b"announce something\n" * 100)
        assert written.wait(120), "the loop stands still here, and all the same everything is read"
        thread.join()
        while sum(len(e.told) for e in speaker.inbox.take_events() if isinstance(e, events.Update)) < 50:
            await speaker.arrival()

    pipes.run(act)


def test_commands_go_out_whole_and_in_order_however_slowly_they_are_read(pipes: Pipes) -> None:
    lines = [f"command {number} {'x' * (number % 700)}\n".encode() for number in range(2000)]
    told_of_room = []

    async def act(speaker: Speaker) -> None:
        speaker.on_room = lambda: told_of_room.append(1)
        for line in lines:
            speaker.write(line)
        assert not speaker.room
        received = b""
        while len(received) < sum(map(len, lines)):
            received += await asyncio.to_thread(os.read, pipes.from_agent, 5000)
        assert received == b"".join(lines)
        assert told_of_room

    pipes.run(act)


def test_an_event_in_pieces_and_one_that_makes_no_sense(
    pipes: Pipes, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(speaker: Speaker) -> None:
        line = _line(1)
        os.write(pipes.to_agent, b'{ "exabgp" nonsense }\n' * 50 + line[:40])
        os.write(pipes.to_agent, line[40:])
        while not (taken := speaker.inbox.take_events()):
            await speaker.arrival()
        assert len(taken) == 1

    pipes.run(act)
    assert len(caplog.records) == 2, "once, and once more when there were ten"


def test_questions_are_answered_in_turn_past_events_and_leftovers(pipes: Pipes) -> None:
    async def act(speaker: Speaker) -> None:
        listed = (
            b'{"peer": {"address": "10.0.0.2"}, "route": {"nlri": {"prefix": "10.1.0.0/26", '
            b'"nexthop": "10.0.0.9", "family": {"afi": "ipv4", "safi": "unicast"}}, "attributes": {}}}\n'
        )
        fenced = asyncio.create_task(speaker.fence())
        os.write(pipes.to_agent, listed + b"[]\n" + _line(1) + b"exabgp 5.0.15\n")
        await fenced
        question = asyncio.create_task(speaker.ask(b"show adj-rib in json\n"))
        os.write(pipes.to_agent, _line(2) + listed + b"[]\n")
        answers, neighbours = await question
        assert [type(answer) for answer in answers] == [events.Listed] and neighbours.all == ()
        assert len(speaker.inbox.take_events()) == 1
        sent = os.read(pipes.from_agent, 4096)
        assert sent == b"reset\nversion\nshow adj-rib in json\nshow neighbor json\n"

    pipes.run(act)


def test_a_question_asked_again_is_answered_anew(pipes: Pipes) -> None:
    """An answer left over from one question would be taken for that to the next, and so on for ever."""
    neighbor = b'{"peer": {"address": "10.0.0.2", "id": "", "hold": 0, "capabilities": {}}'
    sessions = b"[" + neighbor + b', "fsm": "IDLE", "duration": 0}]\n'

    def exabgp() -> None:
        """Its configuration is another one each time it is asked for it."""
        asked, answered = b"", 0
        while chunk := os.read(pipes.from_agent, 4096):
            *lines, asked = (asked + chunk).split(b"\n")
            for line in lines:
                if line == b"show neighbor json":
                    os.write(pipes.to_agent, sessions)
                else:
                    os.write(pipes.to_agent, b'  description "Mesh %d";\n' % answered)
                    answered += 1

    async def act(speaker: Speaker) -> None:
        other_end = threading.Thread(target=exabgp, daemon=True)
        other_end.start()
        for number in range(5):
            answers, _ = await speaker.ask(commands.description("10.0.0.2"))
            assert answers == [events.Described(f"Mesh {number}")]
        pipes.close(pipes.target)  # ends the thread
        other_end.join()  # before the numbers of its ends are used again

    pipes.run(act)


def test_exabgp_goes_away(pipes: Pipes) -> None:
    async def act(speaker: Speaker) -> None:
        waiting = asyncio.create_task(speaker.ask())
        await asyncio.sleep(0)
        pipes.close(pipes.to_agent, pipes.from_agent)
        with pytest.raises(PeerError, match="gone away"):
            await waiting
        await speaker.arrival()
        assert speaker.closed and not speaker.room
        speaker.write(b"into nothing\n")

    pipes.run(act)
