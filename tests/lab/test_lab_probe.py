"""Who is known to answer is waited for; all others have the time that was said."""

import os
import socket
import threading

import pytest

from tortie.lab.probe import Answer, Probe, run
from tortie.linux import netns

pytestmark = pytest.mark.kernel

_TIMEOUT, _LATER = 0.05, 0.5  # seconds
_NOTHING = Answer(failure="timed out")


@pytest.mark.parametrize("expected", [(), (False, True)])
def test_what_is_expected_may_come_late(expected: tuple[bool, ...]) -> None:
    silent, slow = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    here = netns.current()
    with silent, slow:
        answering = threading.Timer(_LATER, _answer, [slow])
        if expected:
            answering.start()
        answers = run([Probe(here, *one.getsockname()) for one in (silent, slow)], _TIMEOUT, expected)
    os.close(here)
    assert answers == [_NOTHING, Answer("b", "127.0.0.1") if expected else _NOTHING]


def _answer(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"b 127.0.0.1\n")
