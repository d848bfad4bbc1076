"""Where the log lines of one call go: to the plugin's standard error, and to the file it is configured with.

Whatever is logged while a call is carried out, also on threads it waits for, reaches both, at the call's
own level. Files are rotated as Calico rotates them (size, age, count; reference: CNI plugin, 4.1), but
old ones are compressed with gzip: Python has no zstd before 3.14.
"""

import contextlib
import contextvars
import gzip
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tortie.core.log import LineFormatter, level

_log = logging.getLogger(__name__)

_DEFAULT_SIZE, _DEFAULT_AGE, _DEFAULT_COUNT = 100, 30, 10  # MB, days, files
_MEGABYTE = 1024 * 1024
_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Limits:
    """0 in a configuration means Calico's default."""

    size: int = _DEFAULT_SIZE * _MEGABYTE  # bytes of one file
    age: float = _DEFAULT_AGE * _DAY  # seconds an old file is kept
    count: int = _DEFAULT_COUNT  # old files

    @classmethod
    def configured(cls, megabytes: int, days: int, count: int) -> "Limits":
        return cls(
            (megabytes or _DEFAULT_SIZE) * _MEGABYTE, (days or _DEFAULT_AGE) * _DAY, count or _DEFAULT_COUNT
        )


def expired(old: Sequence[tuple[str, float]], limits: Limits, now: float) -> list[str]:
    """Which of the old files (path, time of last change) are to be deleted. Pure.

    The paths tell the order: they are compressed beside each other, so that a younger may be ready first.
    """
    return [
        path
        for index, (path, changed) in enumerate(sorted(old, reverse=True))
        if index >= limits.count or now - changed > limits.age
    ]


class LogFile:
    """Appends lines to a file, which starts anew when it is full. Trouble with it never hurts a call."""

    def __init__(self, path: str, limits: Limits) -> None:
        self._path = path
        self.limits = limits
        self._fd: int | None = None
        self._size = 0
        self._stamp = 0  # milliseconds, in the name of the last file that was put away
        self._complained = False

    def write(self, line: str) -> None:
        data = line.encode("utf-8", "replace")
        try:
            if self._fd is not None and self._is_another(self._fd):
                self.close()
            if self._fd is not None and self._size and self._size + len(data) > self.limits.size:
                self._rotate()
            if self._fd is None:
                self._open()
            assert self._fd is not None
            self._size += os.write(self._fd, data)
            self._complained = False
        except OSError as err:
            self.close()
            if not self._complained:
                self._complained = True
                _log.warning("cannot write the log file %s: %s", self._path, err.strerror)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _is_another(self, opened: int) -> bool:
        """Whether the path is not the open file any more: somebody has moved or deleted it."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(opened))
        except FileNotFoundError:
            return True

    def _open(self) -> None:
        os.makedirs(os.path.dirname(self._path) or ".", 0o755, exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        stem, extension = os.path.splitext(self._path)
        # The names tell the order, also within a millisecond and when the clock is set back.
        now = self._stamp = max(time.time_ns() // 1_000_000, self._stamp + 1)
        stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(now // 1000)) + f".{now % 1000:03d}"
        old = f"{stem}-{stamp}{extension}"
        os.rename(self._path, old)
        # 100 MB take a second or two to compress: not while a pod waits.
        threading.Thread(target=self._compress, args=(old,), name="compress log", daemon=True).start()

    def _compress(self, old: str) -> None:
        try:
            with open(old, "rb") as source, gzip.open(f"{old}.gz", "wb") as target:
                shutil.copyfileobj(source, target)
            os.unlink(old)
            for path in expired(self._old_files(), self.limits, time.time()):
                Path(path).unlink(missing_ok=True)  # another thread was faster
        except OSError as err:
            _log.warning("cannot compress or delete old log files of %s: %s", self._path, err.strerror)

    def _old_files(self) -> list[tuple[str, float]]:
        folder, name = os.path.split(self._path)
        stem, extension = os.path.splitext(name)
        with os.scandir(folder or ".") as entries:
            return [
                (entry.path, entry.stat().st_mtime)
                for entry in entries
                if entry.name.startswith(f"{stem}-") and entry.name.endswith(f"{extension}.gz")
            ]


@dataclass(frozen=True, slots=True)
class Journal:
    """The destinations of one call. `complain` takes a line for the plugin's standard error."""

    level: int
    complain: Callable[[str], None]
    file: LogFile | None = None


_current: contextvars.ContextVar[Journal | None] = contextvars.ContextVar("journal", default=None)


class JournalHandler(logging.Handler):
    """Install once, on the root logger: passes each record on to the call in which it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._files: dict[str, LogFile] = {}  # path -> file; a node has one or two

    def emit(self, record: logging.LogRecord) -> None:
        journal = _current.get()
        if journal is None or record.levelno < journal.level:
            return
        line = self.format(record) + "\n"
        journal.complain(line)
        if journal.file is not None:
            journal.file.write(line)

    @contextlib.contextmanager
    def during(
        self, severity: str, path: str, limits: Limits, complain: Callable[[str], None]
    ) -> Iterator[None]:
        """Log lines of this task go to `complain` and to the file at `path` ('': none)."""
        file = None
        if path:
            file = self._files.setdefault(path, LogFile(path, limits))
            file.limits = limits
        journal = Journal(severity_level(severity), complain, file)
        if journal.level < logging.INFO:  # make such records at all; the process's own handler has its level
            logging.getLogger("tortie").setLevel(journal.level)
        token = _current.set(journal)
        try:
            yield
        finally:
            _current.reset(token)


def severity_level(severity: str) -> int:
    """Calico's plugin knows debug, info and error, in any case; anything else is info."""
    return level(severity) if severity.lower() in ("debug", "info", "error") else logging.INFO
