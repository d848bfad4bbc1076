"""Tells the supervisor how a process is: one small datagram, for whoever may be listening.

The supervisor names its socket in CALICO_HEALTH_SOCKET and takes a long silence for being stuck.
Without the variable, or with nobody at the other end, nothing is sent and nothing fails: a process must
work the same when started by hand.
"""

import json
import os
import socket
from collections.abc import Mapping

VARIABLE = "CALICO_HEALTH_SOCKET"
INTERVAL = 5.0  # seconds between reports; the supervisor's patience is many times that
UNREADY_INTERVAL = 0.5  # the same until all is well: a start is not to look longer than it is


class HealthSender:
    """`name` is the component's: felix, confd, bgp, cni."""

    def __init__(self, name: str, environment: Mapping[str, str] = os.environ) -> None:
        self._name = name
        self._path = environment.get(VARIABLE, "")

    def report(self, *, live: bool, ready: bool, reason: str = "") -> bool:
        """Whether the report was taken. Never blocks, never raises."""
        if not self._path:
            return False
        text = json.dumps({"name": self._name, "live": live, "ready": ready, "reason": reason})
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
                out.sendto(text.encode() + b"\n", self._path)
        except OSError:  # the supervisor is not there (yet), or too busy to read: the next report will do
            return False
        return True
