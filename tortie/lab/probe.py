"""Packets from one pod to another, and what came of them."""

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tortie.linux import netns

_PATIENCE = 60.0  # seconds for an answer that must come; it takes milliseconds on an idle machine


@dataclass(frozen=True, slots=True)
class Answer:
    """`server` is who answered and `source` the address it saw; or `failure` says why nobody did."""

    server: str = ""
    source: str = ""
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt to reach a lab echo server from inside a network namespace (an open fd)."""

    namespace: int
    address: str
    port: int
    protocol: str = "tcp"  # or udp


def run(probes: Sequence[Probe], timeout: float = 2.0, expected: Sequence[bool] = ()) -> list[Answer]:
    """All probes at the same time, one answer each, in order; `timeout` in seconds for all together.

    `expected` says which of them are to be answered, if that is known: those are waited for with patience.
    """
    patience = [max(timeout, _PATIENCE) if one else timeout for one in expected or [False] * len(probes)]
    answers = [Answer(failure="timed out")] * len(probes)
    waiting: dict[int, tuple[int, socket.socket]] = {}  # fd -> (index of its probe, its socket)
    for index, probe in enumerate(probes):
        connection = netns.call_in(probe.namespace, _send, probe)
        waiting[connection.fileno()] = (index, connection)
    poller = select.poll()
    for fd in waiting:
        poller.register(fd, select.POLLIN)
    began, left = time.monotonic(), 1.0
    while waiting and left > 0:
        left = began + max(patience[index] for index, _ in waiting.values()) - time.monotonic()
        for fd, _ in poller.poll(max(0.0, left) * 1000):  # also when we were not let run for as long
            index, connection = waiting.pop(fd)
            poller.unregister(fd)
            answers[index] = _receive(connection)
    for _, connection in waiting.values():
        connection.close()
    return answers


def _send(probe: Probe) -> socket.socket:
    family = socket.AF_INET6 if ":" in probe.address else socket.AF_INET
    kind = socket.SOCK_STREAM if probe.protocol == "tcp" else socket.SOCK_DGRAM
    connection = socket.socket(family, kind)
    connection.setblocking(False)
    connection.connect_ex((probe.address, probe.port))  # a refusal shows when it is read
    if probe.protocol == "udp":
        with contextlib.suppress(OSError):  # no route: the same, the poll reports it
            connection.send(b"?")
    return connection


def _receive(connection: socket.socket) -> Answer:
    with connection:
        try:
            server, _, source = connection.recv(4096).split(b"\n")[0].decode().partition(" ")
        except OSError as err:
            return Answer(failure=err.strerror or str(err))
        return Answer(server, source) if server else Answer(failure="closed without an answer")
