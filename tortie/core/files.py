"""Atomic file writes: a reader, also after a crash, sees the old content or the new, never half."""

import contextlib
import os
import tempfile


def write_atomic(path: str, content: str | bytes, mode: int = 0o644, *, sync: bool = False) -> None:
    """Replace `path` by `content` in one step; the folder must exist.

    `sync` also forces the data to disk before the rename, for files that must survive a power cut
    (the nodename file); files rendered anew at each start do not need it.
    Raises OSError; the temporary file is removed then and the old content stays.
    """
    data = content.encode() if isinstance(content, str) else content
    folder, name = os.path.split(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder or ".")
    try:
        with os.fdopen(fd, "wb") as out:
            os.fchmod(out.fileno(), mode)
            out.write(data)
            if sync:
                out.flush()
                os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_or_none(path: str) -> bytes | None:
    """The file's content, or None if there is no such file."""
    try:
        with open(path, "rb") as source:
            return source.read()
    except FileNotFoundError:
        return None
