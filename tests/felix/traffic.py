"""A packet generator: many flows at once without end, every packet the first of a connection of its own."""

import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from tests.felix.packets import Ear, Mouth
from tests.netns_lab import Namespace, eventually
from tortie.felix.rules.evaluate import Packet

_PAUSE = 0.001  # seconds between bursts
_BURST = 2  # packets
_PORTS = range(1024, 65000)  # each packet's own; again after half a minute at the earliest
# Forwarding here takes microseconds, but what is left to the kernel's own threads takes its turn, after
# each that is as ready to run: on a busy machine a hundred, for 3 ms each.
_LATE = 0.3
_SILENCE = 3.0  # seconds after which nothing more comes
_UDP = 17


@dataclass(frozen=True)
class Flow:
    """One kind of packet. `source` and `target` name namespaces, the interfaces are the node's."""

    source: str
    target: str
    src: str
    dst: str
    dport: int
    in_interface: str = ""
    out_interface: str = ""

    @property
    def version(self) -> int:
        return 6 if ":" in self.src else 4

    def packet(self, sport: int) -> Packet:
        return Packet(
            self.src, self.dst, _UDP, sport, self.dport, None, self.in_interface, self.out_interface
        )


class Sent(NamedTuple):
    """`began` and `ended`: between these, by the monotonic clock, the packet was on its way."""

    began: float
    ended: float
    flow: Flow
    arrived: bool


class Traffic:
    """Sends packets of all flows in turn until end(), and notes which of them arrive where."""

    def __init__(self, namespaces: Mapping[str, Namespace], flows: Sequence[Flow]) -> None:
        self._flows = flows
        self._sent: list[tuple[float, float, Flow]] = []  # the packets, by number
        self._arrived: set[tuple[str, int]] = set()  # (namespace, number)
        self._stop = threading.Event()
        used = {name for flow in flows for name in (flow.source, flow.target)}
        self._mouths = {name: Mouth(namespaces[name]) for name in used}
        self._ears = {name: Ear(namespaces[name], _UDP) for name in used}
        for flow in flows:  # neighbours know each other before it counts
            self._mouths[flow.source].send(flow.packet(_PORTS[0] - 1), 0xFFFFFFFF)
        self._sender, self._hearer = (
            threading.Thread(target=run, daemon=True) for run in (self._send, self._hear)
        )
        self._sender.start()
        self._hearer.start()

    def _send(self) -> None:
        for number in count():
            if number % _BURST == 0 and self._stop.wait(_PAUSE):
                return
            flow = self._flows[number % len(self._flows)]
            began = time.monotonic()
            self._mouths[flow.source].send(flow.packet(_PORTS[number % len(_PORTS)]), number)
            self._sent.append((began, time.monotonic() + _LATE, flow))

    def _hear(self) -> None:
        owners = {one: name for name, ear in self._ears.items() for one in ear.sockets}
        while True:
            last = not self._sender.is_alive()  # before we listen: a sender may be kept waiting amid a burst
            ready = select.select(list(owners), (), (), _SILENCE if last else _LATE)[0]
            for one in ready:
                name = owners[one]
                self._arrived.update((name, number) for number in self._ears[name].numbers(one))
            if last and not ready:
                return

    def more(self, packets: int) -> None:
        """Let so many more packets go."""
        target = len(self._sent) + packets
        eventually(lambda: len(self._sent) >= target)

    def round(self) -> None:
        """Let every flow send, and what was on its way before arrive."""
        at = time.monotonic() + _LATE
        eventually(lambda: self._sent and self._sent[-1][0] > at)
        self.more(len(self._flows))

    def during(self, change: Callable[[], object]) -> tuple[float, float]:
        """When `change` began and was done."""
        began = time.monotonic()
        change()
        return began, time.monotonic()

    def end(self) -> list[Sent]:
        """No more packets; what became of each."""
        self._stop.set()
        self._sender.join(60)
        self._hearer.join(60)
        return [
            Sent(began, ended, flow, (flow.target, number) in self._arrived)
            for number, (began, ended, flow) in enumerate(self._sent)
        ]

    def close(self) -> None:
        self.end()
        for mouth in self._mouths.values():
            mouth.close()
        for ear in self._ears.values():
            ear.close()
