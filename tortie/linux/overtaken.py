"""Tells whether a write of our own overtook a reading of the same objects, which is worthless then.

Who reads while others may write asks for a mark before, and gives it back before it believes what it read.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tortie.core.errors import KernelError


class Writes:
    def __init__(self) -> None:
        self._count = 0  # of beginnings and ends: odd while a write is under way

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around a write; there is never more than one at a time."""
        self._count += 1
        try:
            yield
        finally:
            self._count += 1

    def mark(self) -> int:
        return self._count

    def check(self, mark: int, what: str) -> None:
        """Raises KernelError if something was written since the mark, or was under way then."""
        if mark != self._count or mark % 2:
            raise KernelError("read", what, text="overtaken by a write of our own")
