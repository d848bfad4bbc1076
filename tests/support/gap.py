"""The control of every test that counts packets: a gap of known size, which it must notice."""

from collections.abc import Callable
from typing import NamedTuple

from tortie.lab.box import Box
from tortie.lab.cluster import wait_until
from tortie.lab.traffic import Flow

_SIZE = 20  # packets: 100 ms at a Flow's pace
_PATIENCE = 120.0  # seconds: a busy machine


class Gap(NamedTuple):
    """Numbers of a Flow's packets: those that must be lost, and those that may."""

    certain: set[int]
    possible: set[int]


def cut(machine: Box, flow: Flow, target: str, until: Callable[[], bool] = lambda: True) -> Gap:
    """Take the way from a machine to an address from under a Flow for a moment, and `until` others notice."""
    _pass(flow)
    wait_until(lambda: len(flow.answered) >= flow.sent - 1, "what is under way to arrive", _PATIENCE)
    earliest = min(set(range(flow.sent)) - flow.answered, default=flow.sent)  # one may be on its way
    machine.run("ip", "route", "add", "blackhole", target)
    began = flow.sent + 1  # one may be on its way
    _pass(flow)
    wait_until(until, "the gap to be noticed", _PATIENCE)
    ended = flow.sent
    machine.run("ip", "route", "del", "blackhole", target)
    latest = flow.sent + 1
    _pass(flow)
    return Gap(set(range(began, ended)), set(range(earliest, latest)))


def _pass(flow: Flow) -> None:
    following = flow.sent + _SIZE
    wait_until(lambda: flow.sent >= following, "packets to be sent", _PATIENCE)
