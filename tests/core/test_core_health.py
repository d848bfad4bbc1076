"""Reports of health: taken if somebody listens, harmless if nobody does."""

import json
import socket
from pathlib import Path

import pytest

from tortie.core.health import VARIABLE, HealthSender

pytestmark = pytest.mark.unit


def test_a_report_is_one_json_line(tmp_path: Path) -> None:
    path = str(tmp_path / "health.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        sender = HealthSender("felix", {VARIABLE: path})
        assert sender.report(live=True, ready=False, reason='waiting for "it"\n')
        data = listener.recv(4096)
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    assert json.loads(data) == {"name": "felix", "live": True, "ready": False, "reason": 'waiting for "it"\n'}


def test_nobody_listening_is_no_failure(tmp_path: Path) -> None:
    assert not HealthSender("felix", {}).report(live=True, ready=True)
    assert not HealthSender("felix", {VARIABLE: str(tmp_path / "no")}).report(live=True, ready=True)


def test_a_listener_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    path = str(tmp_path / "health.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        sender = HealthSender("felix", {VARIABLE: path})
        assert not all(sender.report(live=True, ready=True, reason="x" * 1000) for _ in range(5000))
