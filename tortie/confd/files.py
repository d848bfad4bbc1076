"""Putting the rendered files in place: checked by the daemon itself, replaced in one step, the agent told.

One bad file would end ExaBGP, or make it deaf to all later ones; so a new exabgp.conf is first parsed
by ExaBGP's own code in a process of its own. It is replaced before bgp.json, whose digest makes the
agent ask ExaBGP to reload: a change of bgp.json alone reloads nothing.
"""

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Sequence

from tortie.bgp import exabgp
from tortie.confd import render
from tortie.confd.context import Context
from tortie.core import children
from tortie.core.errors import ConfigError
from tortie.core.files import read_or_none, write_atomic
from tortie.core.paths import Paths

SECRET_MODE = 0o600  # exabgp.conf holds passwords
_CHECK_TIMEOUT = 120.0  # seconds; a check takes half a second of CPU time, which a busy node gives late


class ExaBgp:
    """Implements daemon.Speaker."""

    async def install(self, made: Context) -> tuple[bool, Sequence[str]]:
        """Whether a file changed, and what could not be said: nothing. Raises ConfigError, OSError."""
        conf, digest = render.exabgp_conf(made)
        return await install(conf, render.bgp_json(made, digest)), ()

    async def look_after(self) -> None:
        """The agent reports by itself."""
        await asyncio.Event().wait()


async def install(exabgp_conf: str, bgp_json: bytes) -> bool:
    """Make the two files be these; whether anything changed. Raises ConfigError, OSError."""
    paths = Paths.from_env()
    conf_path, json_path = paths.exabgp_conf, paths.bgp_json
    new_conf = read_or_none(conf_path) != exabgp_conf.encode()
    new_json = read_or_none(json_path) != bgp_json
    if new_conf:
        await replace_checked(conf_path, exabgp_conf.encode("ascii"), exabgp.validation_argv, "ExaBGP")
    if new_json:
        write_atomic(json_path, bgp_json, SECRET_MODE)
    if new_conf or new_json:
        nudge()
    return new_conf or new_json


async def replace_checked(
    path: str, content: bytes, argv: Callable[[str], Sequence[str]], judge: str
) -> None:
    """`argv(file)`: the command that says whether `judge` accepts it. Raises ConfigError, OSError."""
    folder, name = os.path.split(path)
    fd, staged = tempfile.mkstemp(prefix=f".{name}.", dir=folder)  # readable by us alone
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(content)
        await check(staged, argv, judge)
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)
        raise


async def check(
    path: str,
    argv: Callable[[str], Sequence[str]] = exabgp.validation_argv,
    judge: str = "ExaBGP",
) -> None:
    """Raises ConfigError with the daemon's reason unless it accepts the file, OSError if there is none."""
    checker = await asyncio.create_subprocess_exec(
        *argv(path),
        env=exabgp.environment(os.environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    where = f"{judge}'s configuration"
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT):
            said, _ = await checker.communicate()
    except TimeoutError as err:
        raise ConfigError(where, "", f"{judge}'s check took over {_CHECK_TIMEOUT:.0f} s") from err
    finally:
        await children.end(checker)
    if checker.returncode:
        reason = said.decode("utf-8", "replace").rpartition("error: ")[2]
        raise ConfigError(where, "", f"{judge} refuses it: {' '.join(reason.split())}")


def nudge() -> None:
    """Have the agent look at its file now; if it is not there, it will read it when it starts."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
        contextlib.suppress(FileNotFoundError, ConnectionRefusedError, BlockingIOError),
    ):
        sender.sendto(b"!", Paths.from_env().bgp_nudge)
