"""The frames between the shim and the server, as bytes. Pure; shim.c is the other half.

A frame is one type byte, a 32-bit length in network order, and a payload. A payload that is made of
texts has each text behind a 32-bit length; what it holds is arbitrary bytes, decoded here like file
names, because the environment and other programs' output need not be UTF-8.

The shim sends one REQUEST (the descriptor of CNI_NETNS travels with its first bytes), then a DONE
for each EXECUTE. The server sends any number of OUTPUT, ERRORS and EXECUTE, and ends with QUIT.
Either side may vanish at any moment; the other then sees the end of the stream.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct

from tortie.core.errors import PeerError

VERSION = "1"  # of these frames; the server refuses a shim of another one, naming both
MAX_BYTES = 16 * 1024 * 1024  # of one payload; a GC that names 10,000 containers takes 1.2 MB

REQUEST, DONE = b"R", b"D"  # from the shim
OUTPUT, ERRORS, EXECUTE, QUIT = b"O", b"E", b"X", b"Q"  # from the server

HEADER = Struct(">cI")
_LENGTH = Struct(">I")


@dataclass(frozen=True, slots=True)
class Request:
    """What the shim was started with.

    `netns_errno` is why CNI_NETNS could not be opened, 0 if it could or was not set. `environment`
    holds CNI_* and PATH only.
    """

    name: str  # calico | calico-ipam: the file name it was started by
    arguments: tuple[str, ...]
    environment: dict[str, str]
    stdin: bytes
    netns_errno: int = 0


def frame(kind: bytes, payload: bytes) -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def header(data: bytes) -> tuple[bytes, int]:
    """(type, payload length) of five bytes. Raises PeerError if the length is beyond reason."""
    kind, length = HEADER.unpack(data)
    if length > MAX_BYTES:
        raise PeerError(f"CNI shim announced a frame of {length} bytes, more than {MAX_BYTES}")
    return kind, length


def encode_request(request: Request) -> bytes:
    """What shim.c's send_request() writes, for tests and for tools that talk to the server directly."""
    environment = [f"{name}={value}" for name, value in request.environment.items()]
    return frame(
        REQUEST,
        _texts([VERSION, str(request.netns_errno), request.name])
        + _counted(request.arguments)
        + _counted(environment)
        + _text(request.stdin),
    )


def decode_request(payload: bytes) -> Request:
    """Raises PeerError if the payload is not what a shim of our version sends."""
    reader = _Reader(payload)
    if (version := reader.text()) != VERSION:
        raise PeerError(
            f"CNI shim speaks version {version!r} of the protocol, the server {VERSION!r}:"
            " install the plugin binaries of this release"
        )
    netns_errno, name = reader.number(), reader.text()
    arguments = tuple(reader.text() for _ in range(reader.count()))
    pairs = [reader.text().partition("=") for _ in range(reader.count())]
    environment = {key: value for key, _, value in pairs}
    request = Request(name, arguments, environment, reader.bytes(), netns_errno)
    reader.finish()
    return request


def encode_execute(name: str, environment: dict[str, str], stdin: bytes) -> bytes:
    """Ask the shim to run plugin `name` of its CNI_PATH; `environment` changes its own."""
    settings = [f"{key}={value}" for key, value in environment.items()]
    return frame(EXECUTE, _text(os.fsencode(name)) + _counted(settings) + _text(stdin))


def decode_done(payload: bytes) -> tuple[int, bytes]:
    """(exit status, standard output) of the plugin; -1: it was not found, 128 + n: ended by signal n."""
    reader = _Reader(payload)
    status, output = reader.number(), reader.bytes()
    reader.finish()
    return status, output


def _text(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _texts(texts: Iterable[str]) -> bytes:
    return b"".join([_text(os.fsencode(text)) for text in texts])


def _counted(texts: Sequence[str]) -> bytes:
    return _texts([str(len(texts)), *texts])


class _Reader:
    """Takes one text after the other; every length is checked against what is there."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._offset = 0

    def bytes(self) -> bytes:
        start = self._offset + _LENGTH.size
        if start > len(self._payload):
            raise PeerError("CNI shim sent a request that ends in the middle")
        (length,) = _LENGTH.unpack_from(self._payload, self._offset)
        if start + length > len(self._payload):
            raise PeerError("CNI shim sent a request that ends in the middle")
        self._offset = start + length
        return self._payload[start : start + length]

    def text(self) -> str:
        return os.fsdecode(self.bytes())

    def number(self) -> int:
        text = self.text()
        if len(text) > 9 or not text.removeprefix("-").isascii() or not text.removeprefix("-").isdecimal():
            raise PeerError(f"CNI shim sent {text[:20]!r} for a number")
        return int(text)

    def count(self) -> int:
        """A number of texts that follow; more than could fit are refused before a list is made."""
        if not 0 <= (count := self.number()) <= len(self._payload) // _LENGTH.size:
            raise PeerError(f"CNI shim announced {count} texts")
        return count

    def finish(self) -> None:
        if self._offset != len(self._payload):
            raise PeerError("CNI shim sent more than a request")
