"""Running traffic between two pods, counted packet by packet, while other things happen.

A Flow sends numbered UDP packets at a fixed rate to a lab echo server and notes which answers came; a
Stream keeps one TCP connection busy and notes what had to be sent again. Both run in a thread of their own
until stopped.
"""

import contextlib
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Self

from tortie.lab import echo
from tortie.lab.pods import Pod
from tortie.linux import netns

_QUIET = 5.0  # seconds without any answer after which no more are waited for
_LOOK = 0.01  # seconds between two looks for answers
_TOTAL_RETRANS = slice(100, 104)  # bytes of struct tcp_info, linux/tcp.h: tcpi_total_retrans


class Running:
    """A thread that runs `_loop` until the `with` block ends."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _loop(self) -> None:
        """The traffic; ends soon after `_stop` is set."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


class Flow(Running):
    """Numbered UDP packets from one pod to another; `lost` after the `with` block."""

    def __init__(self, client: Pod, server: Pod, *, version: int = 4, interval: float = 0.005) -> None:
        super().__init__()
        self.sent = 0
        self.answered: set[int] = set()
        self._interval = interval
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self._socket = netns.call_in(client.netns_fd, socket.socket, family, socket.SOCK_DGRAM)
        self._socket.connect((server.address(version), 80))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, echo.SO_RCVBUFFORCE, echo.BUFFER)

    @property
    def lost(self) -> list[int]:
        """Numbers of the packets that were not answered."""
        return sorted(set(range(self.sent)) - self.answered)

    def _loop(self) -> None:
        following = time.monotonic()
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # no route, refused: it counts as lost
                self._socket.send(b"%d" % self.sent)
            self.sent += 1
            self._collect()
            # What a busy machine did not let us send in time is left out: a burst would lose some itself.
            following = max(following + self._interval, time.monotonic())
            time.sleep(max(0.0, following - time.monotonic()))
        self._await_answers()
        self._socket.close()

    def _await_answers(self) -> None:
        """Those on their way. Looks are counted: the clock runs on while a busy machine lets nobody look."""
        quiet, known = 0, len(self.answered)
        while len(self.answered) < self.sent and quiet < _QUIET / _LOOK:
            time.sleep(_LOOK)
            self._collect()
            quiet = quiet + 1 if len(self.answered) == known else 0
            known = len(self.answered)

    def _collect(self) -> None:
        while True:
            try:
                answer = self._socket.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error for an earlier packet
            self.answered.add(int(answer.rpartition(b"\n")[2]))


class Stream(Running):
    """One TCP connection, always with a small message on its way; `retransmitted`, and `failure` after.

    An answer carries the acknowledgement of its question, so a loss either way has the kernel repeat the
    question: `retransmitted` counts that, whereas the clock would count a busy machine as well. Without an
    answer for `patience` seconds it is given up, which the kernel would do much later.
    """

    def __init__(
        self,
        client: Pod,
        server: Pod,
        *,
        version: int = 4,
        patience: float = 120.0,
        interval: float = 0.002,
    ) -> None:
        super().__init__()
        self._interval = interval  # seconds between an answer and the next question
        self.exchanged = 0
        self._retransmitted = 0
        self.failure = ""
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self._socket = netns.call_in(client.netns_fd, socket.socket, family, socket.SOCK_STREAM)
        self._socket.settimeout(patience)
        self._socket.connect((server.address(version), 80))
        self._socket.recv(4096)  # the greeting

    @property
    def retransmitted(self) -> int:
        """So far."""
        with contextlib.suppress(OSError):  # closed: it was asked just before
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS.stop)
            self._retransmitted = int.from_bytes(info[_TOTAL_RETRANS], sys.byteorder)
        return self._retransmitted

    def _loop(self) -> None:
        try:
            while not self._stop.is_set():
                message = b"%016d" % self.exchanged
                self._socket.sendall(message)
                answer = b""
                while len(answer) < len(message):
                    part = self._socket.recv(4096)
                    if not part:
                        raise OSError("closed by the server")
                    answer += part
                if answer != message:
                    raise OSError(f"sent {message!r}, got {answer!r}")
                self.exchanged += 1
                time.sleep(self._interval)
        except OSError as err:
            self.failure = str(err)
        finally:
            self._retransmitted = self.retransmitted
            self._socket.close()
