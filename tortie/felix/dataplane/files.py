"""Files that others read: written whole or not at all, and again when somebody changes or deletes them."""

import os
from collections.abc import Collection, Mapping

from tortie.core.errors import KernelError
from tortie.core.files import read_or_none, write_atomic


class FileTarget:
    """reconcile.Target[str, str]: path -> content of the files that were written. None is ever deleted."""

    def __init__(self) -> None:
        self._written: set[str] = set()

    async def read(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for path in self._written:
            try:
                content = read_or_none(path)
            except OSError as err:
                raise KernelError("read", path, err.errno or 0, os.strerror(err.errno or 0)) from err
            if content is not None:
                found[path] = content.decode("utf-8", "replace")
        return found

    async def apply(self, update: Mapping[str, str], delete: Collection[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        for path, content in update.items():
            self._written.add(path)
            try:
                write_atomic(path, content)
            except OSError as err:
                failed[path] = f"cannot write {path}: {os.strerror(err.errno or 0)}"
        return failed

    def same(self, desired: str, actual: str) -> bool:
        return desired == actual
