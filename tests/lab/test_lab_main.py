"""The demo's command: what ends it."""

import signal

import pytest

from tortie.lab.main import _Interrupt

pytestmark = pytest.mark.unit


def test_a_second_signal_disturbs_nothing_however_soon_it_comes() -> None:
    interrupt = _Interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)
    interrupt(signal.SIGINT, None)
    interrupt(signal.SIGTERM, None)
