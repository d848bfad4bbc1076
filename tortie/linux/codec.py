"""The wire format of rtnetlink: messages, attributes and the kernel's answers. Pure.

Numbers are in the machine's own byte order and everything is aligned to four bytes
(linux/netlink.h, `man 7 netlink`). Buffers come from the kernel, yet a truncated or nonsensical one
must never raise anything but KernelError: every read checks its length first.
"""

import os
from collections.abc import Callable, Iterator
from errno import EINVAL
from functools import wraps
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct
from struct import error as StructError
from typing import NamedTuple, ParamSpec, TypeVar

from tortie.core.errors import KernelError

# Message kinds of the protocol itself, and header flags (linux/netlink.h).
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_DUMP_INTR = 0x10  # in an answer: the list changed while it was read
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200  # in an acknowledgement
_NLMSGERR_ATTR_MSG = 1  # extended acknowledgement: a sentence for people

# rtnetlink's message kinds (linux/rtnetlink.h).
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

HEADER = Struct("=IHHII")  # length, kind, flags, sequence, port
_ATTRIBUTE = Struct("=HH")  # length with this header, type
_ATTRIBUTE_U8 = Struct("=HHBxxx")
_ATTRIBUTE_U32 = Struct("=HHI")
_INT = Struct("=i")
_U32 = Struct("=I")
_U16 = Struct("=H")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4
_NESTED = 0x8000  # NLA_F_NESTED
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

P = ParamSpec("P")
T = TypeVar("T")


class Message(NamedTuple):
    """One request, without its header; `operation` and `what` name it if it fails."""

    kind: int
    flags: int  # beyond NLM_F_REQUEST and NLM_F_ACK
    body: bytes  # the family's fixed part and attributes
    operation: str
    what: str


class Frame(NamedTuple):
    """One message that was received."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


def frame(message: Message, sequence: int, flags: int) -> bytes:
    """The message as it goes on the wire; port 0, the kernel knows who sent it."""
    body = message.body
    size = HEADER.size + len(body)
    header = HEADER.pack(size, message.kind, message.flags | flags | NLM_F_REQUEST, sequence, 0)
    return header + body + _PADDING[size & 3]


def frames(datagram: bytes) -> Iterator[Frame]:
    """The messages of one datagram. Raises KernelError if one claims more bytes than there are."""
    offset, end = 0, len(datagram)
    while offset + HEADER.size <= end:
        size, kind, flags, sequence, port = HEADER.unpack_from(datagram, offset)
        if size < HEADER.size or offset + size > end:
            raise KernelError(
                "decode", "netlink message", EINVAL, f"length {size} at {offset} of {end} bytes"
            )
        yield Frame(kind, flags, sequence, port, datagram[offset + HEADER.size : offset + size])
        offset += (size + 3) & ~3


# --- attributes ---------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(size, kind) + data + _PADDING[size & 3]


def attribute_head(kind: int, size: int) -> bytes:
    """What comes before a payload of `size` bytes, a multiple of four."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + size, kind)


def attribute_u8(kind: int, value: int) -> bytes:
    return _ATTRIBUTE_U8.pack(5, kind, value)


def attribute_u32(kind: int, value: int) -> bytes:
    return _ATTRIBUTE_U32.pack(8, kind, value)


def attribute_text(kind: int, value: str) -> bytes:
    """A NUL-terminated string; interface names may hold any byte, hence the file-system encoding."""
    return attribute(kind, os.fsencode(value) + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """type -> payload; of a repeated type the last. Raises KernelError for a wrong length."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            raise KernelError("decode", "attribute", EINVAL, f"length {size} at {offset} of {end} bytes")
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def read_u8(data: bytes) -> int:
    return data[0]


def read_u16(data: bytes) -> int:
    return int(_U16.unpack_from(data)[0])


def read_u32(data: bytes) -> int:
    return int(_U32.unpack_from(data)[0])


def read_int(data: bytes) -> int:
    return int(_INT.unpack_from(data)[0])


def read_text(data: bytes) -> str:
    return os.fsdecode(data.split(b"\0", 1)[0])


def decoder(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Relabels what reading a malformed body raises as KernelError("decode", what)."""
    return _relabel("decode", what)


def encoder(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Relabels a number too large for its field as KernelError("encode", what)."""
    return _relabel("encode", what)


def _relabel(operation: str, what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def at_the_border(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except (StructError, ValueError, IndexError) as err:
                raise KernelError(operation, what, EINVAL, str(err)) from err

        return at_the_border

    return wrap


# --- addresses ----------------------------------------------------------------------------------


def pack_address(text: str) -> bytes:
    """4 or 16 bytes. Raises KernelError if `text` is no address."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError) as err:  # ValueError: an embedded NUL
        raise KernelError("encode", "address", EINVAL, f"{text!r} is not an IP address") from err


def unpack_address(data: bytes) -> str:
    """The canonical text of 4 or 16 bytes; ValueError for another length."""
    return inet_ntop(AF_INET if len(data) == 4 else AF_INET6, data)


def family_of(address: str) -> int:
    return AF_INET6 if ":" in address else AF_INET


def pack_mac(text: str) -> bytes:
    """Six bytes from `aa:bb:cc:dd:ee:ff`. Raises KernelError."""
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 for part in parts):
        raise KernelError("encode", "MAC address", EINVAL, f"{text!r} is not a MAC address")
    try:
        return bytes.fromhex("".join(parts))
    except ValueError as err:
        raise KernelError("encode", "MAC address", EINVAL, f"{text!r} is not a MAC address") from err


def unpack_mac(data: bytes) -> str:
    """Colon-separated lower-case hex, whatever the length: tunnels carry 4 or 16 bytes here."""
    return data.hex(":")


# --- acknowledgements ---------------------------------------------------------------------------


def acknowledgement(answer: Frame) -> tuple[int, str]:
    """(errno, the kernel's explanation) of an NLMSG_ERROR or NLMSG_DONE; errno 0 is success."""
    if len(answer.body) < _INT.size:
        return 0, ""  # a bare NLMSG_DONE, as older kernels send
    number = -_INT.unpack_from(answer.body)[0]
    if not answer.flags & NLM_F_ACK_TLVS:
        return number, ""
    offset = _INT.size
    if answer.kind == NLMSG_ERROR:  # the request's header follows, and its body unless capped
        if len(answer.body) < offset + HEADER.size:
            return number, ""
        request_size = HEADER.unpack_from(answer.body, offset)[0]
        capped = answer.flags & NLM_F_CAPPED
        offset += HEADER.size if capped else (request_size + 3) & ~3
    told = attributes(answer.body, offset).get(_NLMSGERR_ATTR_MSG, b"")
    return number, told.split(b"\0", 1)[0].decode("utf-8", "replace")


def refusal(message: Message, number: int, told: str) -> KernelError:
    """The error of one message: the errno's own words and the kernel's explanation."""
    text = os.strerror(number) + (f" ({told.rstrip('.')})" if told else "")
    return KernelError(message.operation, message.what, number, text)
