"""Notes of addresses that containers have got and the datastore has not heard of yet: one file for each.

They need not survive a reboot, which no container survives, so they are not forced to disk.
"""

import contextlib
import ipaddress
import logging
import os
from collections.abc import Iterator

import msgspec

from tortie.core.files import write_atomic
from tortie.ipam.transfer import Transfer

_log = logging.getLogger(__name__)


class _Note(msgspec.Struct, frozen=True):
    block: str
    handle: str
    attributes: dict[str, str]


class Notes:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def write(self, transfer: Transfer) -> None:
        """Raises OSError; nothing is noted then."""
        os.makedirs(self._folder, 0o700, exist_ok=True)
        note = _Note(transfer.block, transfer.handle, dict(transfer.attributes))
        write_atomic(self._path(transfer.address), msgspec.json.encode(note), 0o600)

    def remove(self, address: str) -> None:
        """Raises OSError; there being none is success."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(address))

    def read(self) -> Iterator[tuple[str, Transfer | None]]:
        """Addresses and what is noted of them; None for a note that cannot be read."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for name in names:
            if _is_address(name):  # else half a file of a write that was cut off
                yield name, self._read(name)

    def _read(self, address: str) -> Transfer | None:
        try:
            with open(self._path(address), "rb") as source:
                note = msgspec.json.decode(source.read(), type=_Note)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as err:
            _log.warning("the note of %s cannot be read, it is given to nobody: %s", address, err)
            return None
        return Transfer(address, note.block, note.handle, note.attributes)

    def _path(self, address: str) -> str:
        return os.path.join(self._folder, address)


def _is_address(name: str) -> bool:
    try:
        return str(ipaddress.ip_address(name)) == name
    except ValueError:
        return False
