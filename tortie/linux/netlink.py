"""One rtnetlink socket: batches with one result per message, dumps, events.

Owns sequence numbers, acknowledgements, lost answers and interrupted dumps; it knows no kind of
object. rtnetlink is synchronous: when sendmsg() returns, the work is done and every answer lies in
the receive queue, so nothing here waits and nothing needs a thread. A batch of 256 routes holds the
caller for about 3 ms; callers with more yield to their loop between batches.

A socket belongs for life to the network namespace its creating thread was in (see netns.socket_in).
It must not be used by two threads at once.
"""

import errno
import os
import select
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from tortie.core.errors import KernelError
from tortie.linux.codec import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    Frame,
    Message,
    acknowledgement,
    frame,
    frames,
    refusal,
)

_SOL_NETLINK = 270
_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 10, 11, 12  # options of that level
_SO_RCVBUFFORCE = 33

BATCH = 256  # messages per sendmsg: if all are refused, the answers (768 bytes each) fit any receive buffer
_BATCH_BYTES = 64 * 1024  # well under the default send buffer of 208 KiB
_RECEIVE_BUFFER = 4 * 1024 * 1024  # bytes; a burst of some 5,000 events is kept while a reader is busy
_DATAGRAM = 64 * 1024  # bytes; the kernel fills at most 32 KiB of a dump into one datagram
_DUMP_TRIES = 5  # an interrupted dump is repeated so often, as Felix does
_LOST_AFTER_MS = 1000  # how long to wait for an answer that should have been there already


class NetlinkSocket:
    """A socket of rtnetlink, or another `protocol`, in the caller's current network namespace.

    `groups`: bit mask of multicast groups whose events receive() returns; request(), get() and
    dump() belong on a socket without groups. Raises KernelError if the kernel lacks strict checking
    (Linux before 5.0).
    """

    def __init__(self, groups: int = 0, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._sequence = 0
        self._lost = False  # whether the kernel had to drop answers to the last request
        self._buffer = bytearray(_DATAGRAM)
        self._view = memoryview(self._buffer)
        try:
            flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, flags, protocol)
        except OSError as err:
            raise _failure("open", "netlink socket", err) from err
        try:
            self._prepare(groups)
        except OSError as err:
            self._socket.close()
            raise _failure("prepare", "netlink socket", err) from err

    def _prepare(self, groups: int) -> None:
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:  # without CAP_NET_ADMIN as much as the system allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.bind((0, groups))
        self._port: int = self._socket.getsockname()[0]

    @property
    def port(self) -> int:
        """What the kernel calls this socket: the sender of requests, also in events that they cause."""
        return self._port

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- requests -------------------------------------------------------------------------------

    def request(self, messages: Sequence[Message]) -> list[KernelError | None]:
        """Carry out `messages` in order; one result for each, None for success.

        A refused message does not stop those after it. An answer that got lost is the error
        ENOBUFS: that message may or may not have been carried out.
        """
        results: list[KernelError | None] = []
        for batch in _batches(messages):
            results.extend(self._request(batch))
        return results

    def execute(self, *messages: Message) -> None:
        """As request(), and raise the first error there was (all messages were tried)."""
        for error in self.request(messages):
            if error is not None:
                raise error

    def get(self, message: Message) -> Frame:
        """Ask for one object. Raises KernelError, with errno as the kernel says (often ENODEV)."""
        first = self._next_sequence(1)
        self._send(frame(message, first, NLM_F_ACK), message)
        answer: Frame | None = None
        for reply in self._answers(first, 1):
            if reply.kind != NLMSG_ERROR:
                answer = reply
                continue
            number, told = acknowledgement(reply)
            if number:
                raise refusal(message, number, told)
            if answer is not None:
                return answer
        raise refusal(message, errno.ENOBUFS, "the answer was lost")

    def _request(self, batch: Sequence[Message]) -> list[KernelError | None]:
        """The kernel answers what it refuses, and the last message in any case: then the others are done."""
        first = self._next_sequence(len(batch))
        last = len(batch) - 1
        wire = b"".join(
            [frame(message, first + i, NLM_F_ACK if i == last else 0) for i, message in enumerate(batch)]
        )
        try:
            self._send(wire, batch[0])
        except KernelError as err:
            return [KernelError(message.operation, message.what, err.errno, err.text) for message in batch]
        results: list[KernelError | None] = [None] * len(batch)
        answered: set[int] = set()  # indices
        for reply in self._answers(first, len(batch)):
            if reply.kind != NLMSG_ERROR:
                continue
            index = reply.sequence - first
            answered.add(index)
            number, told = acknowledgement(reply)
            if number:
                results[index] = refusal(batch[index], number, told)
            if index == last and not self._lost:
                return results
        for index in set(range(len(batch))) - answered:
            results[index] = refusal(batch[index], errno.ENOBUFS, "the answer was lost")
        return results

    # --- dumps ----------------------------------------------------------------------------------

    def dump(self, message: Message) -> list[Frame]:
        """All objects the message's filter matches, as one consistent list.

        A list that changed while it was read is read again, up to 5 times. Raises KernelError then
        (EINTR), and for any refusal.
        """
        for _ in range(_DUMP_TRIES):
            found = self._dump(message)
            if found is not None:
                return found
        raise refusal(message, errno.EINTR, f"the list kept changing, {_DUMP_TRIES} tries")

    def _dump(self, message: Message) -> list[Frame] | None:
        """One try; None if it was interrupted. Reads to the end in any case: the socket stays usable."""
        first = self._next_sequence(1)
        self._send(frame(message, first, NLM_F_DUMP), message)
        found: list[Frame] = []
        interrupted = False
        for reply in self._answers(first, 1):
            interrupted = interrupted or bool(reply.flags & NLM_F_DUMP_INTR)
            if reply.kind not in (NLMSG_DONE, NLMSG_ERROR):
                found.append(reply)
                continue
            number, told = acknowledgement(reply)
            if number == errno.EBUSY:  # an earlier dump was left in the middle (KeyboardInterrupt)
                self._drain()
                return None
            if number and number != errno.EINTR:
                raise refusal(message, number, told)
            return None if interrupted or number else found
        return None  # ENOBUFS or silence: the list is not whole

    # --- events ---------------------------------------------------------------------------------

    def receive(self) -> list[Frame]:
        """The next datagram of events; BlockingIOError if there is none.

        Raises KernelError with ENOBUFS if the kernel had to drop events: what is known is stale.
        """
        datagram = self._receive()
        return [] if datagram is None else list(frames(datagram))

    # --- plumbing -------------------------------------------------------------------------------

    def _next_sequence(self, count: int) -> int:
        if self._sequence + count > 0xFFFFFFFF:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    def _send(self, wire: bytes, first: Message) -> None:
        try:
            self._socket.sendto(wire, (0, 0))
        except OSError as err:
            raise _failure(first.operation, first.what, err) from err

    def _answers(self, first: int, count: int) -> Iterator[Frame]:
        """Frames that answer the sequence numbers from `first`; ends when no more come.

        Anything else is left over from a request that was broken off and is skipped.
        """
        self._lost = False
        while True:
            try:
                datagram = self._receive()
            except BlockingIOError:
                if self._lost or not self._more():
                    return
                continue
            except KernelError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                self._lost = True  # some answers are lost, others still queued
                continue
            if datagram is None:
                continue
            for reply in frames(datagram):
                if reply.port == self._port and first <= reply.sequence < first + count:
                    yield reply

    def _more(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(_LOST_AFTER_MS))

    def _receive(self) -> bytes | None:
        """One datagram; None if it did not come from the kernel."""
        try:
            size, sender = self._socket.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            raise
        except OSError as err:
            raise _failure("receive", "netlink answer", err) from err
        if sender[0] != 0:
            return None
        if size > len(self._buffer):
            raise KernelError("receive", "netlink answer", errno.EMSGSIZE, f"{size} bytes do not fit")
        return bytes(self._view[:size])

    def _drain(self) -> None:
        """Throw away everything in the queue, which also lets an abandoned dump run to its end."""
        while True:
            try:
                self._receive()
            except BlockingIOError:
                return
            except KernelError as err:
                if err.errno not in (errno.ENOBUFS, errno.EMSGSIZE):
                    raise


def _batches(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    start = size = 0
    for index, message in enumerate(messages):
        length = HEADER.size + len(message.body)
        if index > start and (index - start == BATCH or size + length > _BATCH_BYTES):
            yield messages[start:index]
            start, size = index, 0
        size += length
    if start < len(messages):
        yield messages[start:]


def gone(error: KernelError) -> bool:
    """Whether a deletion was refused only because its object, or the interface it was on, is gone."""
    return error.errno in (errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL)


def _failure(operation: str, what: str, err: OSError) -> KernelError:
    return KernelError(operation, what, err.errno or 0, os.strerror(err.errno or 0))
