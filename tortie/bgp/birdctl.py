"""One question to BIRD on its control socket, as birdcl asks it. Thin edge, blocking.

BIRD answers in lines of a four-digit code and text; `-` after the code says that more follows, a blank in
the code's place that the code is that of the line before. Codes from 8000 on are refusals.
"""

import re
import socket
import struct
from typing import BinaryIO

from tortie.core.errors import PeerError

_PATIENCE = 10.0  # seconds; BIRD answers between two looks at its sockets, and a large table takes a second
_REFUSED = 8000
_LINE = re.compile(rb"(\d{4})([- ])")


def ask(path: str, command: str) -> list[str]:
    """The lines of the answer. Raises PeerError if nobody answers there, or BIRD refuses."""
    try:
        with _connected(path) as connection, connection.makefile("rb") as lines:
            _answer(lines)
            connection.sendall(command.encode("ascii") + b"\n")
            code, answer = _answer(lines)
    except OSError as err:
        raise PeerError(f"BIRD does not answer on {path}: {err.strerror or err}") from err
    if code >= _REFUSED:
        raise PeerError(f"BIRD on {path} refuses {command!r}: {' '.join(answer)}")
    return answer


def pid(path: str) -> int | None:
    """The process that listens there, None if there is none."""
    try:
        with _connected(path) as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return None
    found: int = struct.unpack("3i", credentials)[0]
    return found


def _connected(path: str) -> socket.socket:
    """Raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _answer(lines: BinaryIO) -> tuple[int, list[str]]:
    """(last code, texts). Raises OSError if it ends too early."""
    texts: list[str] = []
    while line := lines.readline():
        match = _LINE.match(line)
        text = line[5:] if match else line[1:]
        texts.append(text.rstrip(b"\n").decode("utf-8", "replace"))
        if match and match[2] == b" ":
            return int(match[1]), texts
    raise ConnectionResetError("it hung up")


def there(path: str) -> bool:
    """Whether somebody listens; a socket file that was left behind does not count."""
    return pid(path) is not None
