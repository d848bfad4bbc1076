"""What is done and the datastore has not heard of yet: one file for each thing.

They need not survive a reboot, which no container survives, so they are not forced to disk.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from tortie.core.files import write_atomic

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Notes(Generic[T]):
    """Values of one type by name; a name must do as a file's, and not begin with a dot."""

    def __init__(self, folder: str, kind: type[T]) -> None:
        self._folder = folder
        self._kind = kind

    def write(self, name: str, value: T) -> None:
        """Raises OSError; nothing is noted then."""
        os.makedirs(self._folder, 0o700, exist_ok=True)
        write_atomic(self._path(name), msgspec.json.encode(value), 0o600)

    def remove(self, name: str) -> None:
        """What cannot be removed is carried out again at the next start, and finds nothing to do."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name))
        except OSError as err:
            _log.warning("cannot remove the note %s: %s", self._path(name), err)

    def read(self) -> Iterator[tuple[str, T | None]]:
        """Names and what is noted; None for a note that cannot be read."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for name in names:
            if not name.startswith("."):  # else half a file of a write that was cut off
                yield name, self._read(name)

    def _read(self, name: str) -> T | None:
        try:
            with open(self._path(name), "rb") as source:
                return msgspec.json.decode(source.read(), type=self._kind)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as err:
            _log.warning("the note %s cannot be read: %s", self._path(name), err)
            return None

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)
