"""A BGP agent as the other processes of its host see it."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from tortie.bgp.status import Status, encode
from tortie.core.paths import Paths


@contextlib.contextmanager
def agent(run: Path, said: Status) -> Iterator[Path]:
    """The file that it writes; that one stays when the agent has gone."""
    paths = Paths(run=str(run))
    file = Path(paths.bgp_status)
    file.write_bytes(encode(said))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as nudges:
        nudges.bind(paths.bgp_nudge)
        yield file
        with contextlib.suppress(BlockingIOError):
            raise AssertionError(f"somebody sent {nudges.recv(1)!r}")
