"""Running many commands for a diagnostics bundle: what each prints becomes a file of the bundle.

A command that fails is told and passed over; a bundle with a gap is worth more than none.
"""

import asyncio
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tortie.calicoctl.errors import CommandError, printable
from tortie.core import children, tasks

# Seconds one command may take. Listing a conntrack table of a million entries takes some ten.
_DEADLINE = 60.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Collected:
    """`path` is below the bundle, '' for a command that is run for its effect; `info` is told before."""

    command: tuple[str, ...]
    path: str = ""
    info: str = ""
    link: str = ""  # a second name of the file


async def collect(what: Iterable[Collected], directory: str, tell: Tell, at_once: int = 1) -> None:
    """Run all, `at_once` at a time, and write their output below the directory."""
    limit = asyncio.Semaphore(max(1, at_once))

    async def one(item: Collected) -> None:
        async with limit:
            if item.info:
                tell(item.info)
            await _run(item, directory, tell)

    await tasks.together(*(one(item) for item in what))


async def _run(item: Collected, directory: str, tell: Tell) -> None:
    output, failed = await output_of(item.command)
    if failed:
        shown = printable(output.decode("utf-8", "replace"), keep="\n\t")
        tell(f"Failed to run command: {' '.join(item.command)}\nError: {shown}")
    if not item.path or (failed and not output):
        return
    path = os.path.join(directory, item.path)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path, "wb") as out:
        out.write(output)
    if item.link:
        link = os.path.join(directory, item.link)
        os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
        os.symlink(os.path.relpath(path, os.path.dirname(link)), link)


async def output_of(command: tuple[str, ...], deadline: float = _DEADLINE) -> tuple[bytes, bool]:
    """What a command prints on both streams, and whether it failed; never raises for what it does."""
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=null, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as err:
        return (err.strerror or str(err)).encode(), True
    try:
        async with asyncio.timeout(deadline):
            output, _ = await process.communicate()
    except TimeoutError:
        return f"no answer within {deadline:g} s".encode(), True
    finally:
        await children.end(process)  # it may be late, or our caller was cancelled
    return output, process.returncode != 0


def found(program: str) -> bool:
    return shutil.which(program) is not None


def pack(directory: str, name: str, archive: str) -> None:
    """`name` below `directory` as a compressed archive. Raises CommandError."""
    try:
        with tarfile.open(archive, "w:gz") as out:
            out.add(os.path.join(directory, name), name)
    except OSError as err:
        raise CommandError(f"could not create {archive}: {err.strerror or err}") from err
