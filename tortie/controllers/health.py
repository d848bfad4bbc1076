"""Whether the controllers are well: in a file, as Calico's probes read it, and in words.

The file says for each condition whether it holds, and why not. `check_status` is the probe: without a
reason it prints `Ready`. (Reference: Calico command line and Kubernetes, 5.2; kube-controllers/pkg/status.)
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tortie import __version__
from tortie.core.errors import DatastoreError
from tortie.core.files import write_atomic

_log = logging.getLogger(__name__)

STATUS_FILE = "/status/status.json"  # Calico's
STARTUP, DATASTORE, API = "Startup", "CalicoDatastore", "KubeAPIServer"  # the conditions, Calico's names
LEASE = "LeaderElection"  # and ours: without the right to the Lease nobody would ever work
_EVERY, _AGAIN = 10.0, 2.0  # seconds between looks, and after one that found something wrong; Calico's
_TIMEOUTS = (4.0, 8.0, 16.0)  # seconds for an answer, more after each failure; Calico's


@dataclass(frozen=True, slots=True)
class Condition:
    """The file's names."""

    Ready: bool
    Reason: str = ""


class Health:
    def __init__(self, path: str) -> None:
        self._path = path
        self.conditions: dict[str, Condition] = {}  # name -> as it is
        self._complained = False

    def set(self, name: str, reason: str = "") -> None:
        """The condition holds, unless a reason is given why it does not."""
        condition = Condition(not reason, reason)
        if self.conditions.get(name) == condition:
            return
        self.conditions[name] = condition
        self._write()

    def forget(self, names: Collection[str]) -> None:
        """Conditions that nobody looks at any more."""
        self.conditions = {name: one for name, one in self.conditions.items() if name not in names}
        self._write()

    def _write(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
            write_atomic(self._path, render(self.conditions))
        except OSError as err:
            if not self._complained:
                _log.warning("cannot write the status file %s: %s", self._path, err.strerror or err)
            self._complained = True

    @property
    def ready(self) -> bool:
        return is_ready(self.conditions)

    async def watch(self, checks: Mapping[str, Callable[[], Awaitable[object]]]) -> None:
        """Make each check from time to time; one that raises DatastoreError, or hangs, does not hold."""
        failures = 0
        for name in checks:
            self.set(name, "initialized to false")
        while True:
            timeout = _TIMEOUTS[min(failures, len(_TIMEOUTS) - 1)]
            for name, check in checks.items():
                self.set(name, await _why_not(check, timeout))
            failures = 0 if self.ready else failures + 1
            await asyncio.sleep(_AGAIN if failures else _EVERY)


async def _why_not(check: Callable[[], Awaitable[object]], timeout: float) -> str:
    try:
        async with asyncio.timeout(timeout):
            await check()
    except DatastoreError as err:
        return str(err)
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    return ""


def is_ready(conditions: Mapping[str, Condition]) -> bool:
    return bool(conditions) and all(one.Ready for one in conditions.values())


def reasons(conditions: Mapping[str, Condition]) -> str:
    return "; ".join(one.Reason for one in conditions.values() if not one.Ready)


def render(conditions: Mapping[str, Condition]) -> bytes:
    return msgspec.json.encode({"Readiness": conditions})


class _File(msgspec.Struct):
    Readiness: dict[str, Condition] = {}


def check_status(words: Sequence[str]) -> int:
    """The probe: `-r` or `-l`, `-f FILE`, `-v`. Exit code 0 if all is well."""
    path, check, left = STATUS_FILE, False, list(words)
    while left:
        word = left.pop(0)
        name, _, value = word.partition("=")
        if word in ("-v", "--version"):
            print(__version__)
            return 0
        if word in ("-r", "--ready", "-l", "--live"):
            check = True
        elif name in ("-f", "--file") and (value or left):
            path = value or left.pop(0)
        else:
            print("Failed to parse flags")
            return 1
    if not check:
        print("No command specified to check-status")
        return 1
    try:
        with open(path, "rb") as source:
            found = msgspec.json.decode(source.read(), type=_File).Readiness
    except (OSError, msgspec.DecodeError) as err:
        print(f"Failed to read status file {path}: {err}")
        return 1
    print("Ready" if is_ready(found) else reasons(found))
    return 0 if is_ready(found) else 1
