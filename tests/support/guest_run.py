"""Tests marked `vm` run in a guest (tortie.lab.guest), and are results of the outer run like all others.

`vm` is QEMU; `vm(user_mode=True)` is user-mode Linux, several times faster, for what needs no more than IPIP.

The first of them boots the guest, which runs all that were chosen with the same pytest and checkout, in the
same order. What it reports of a test, output and traceback included, comes out as that test's own report.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tortie.lab.box import LabError
from tortie.lab.guest import MARK, Guest, machine

_USER_MODE, _QEMU = "1 user mode", "2 QEMU"  # kinds of guests, in the order of their runs
_REPORTS = "TORTIE_GUEST_REPORTS"  # environment: the file that the inner run writes its reports to
_UP = 300.0  # seconds for a boot and for pytest's collection in there, on a busy machine
_SLACK = 60.0  # seconds for the inner run to notice and tell that a test is over its own time
_DEFAULT_TIMEOUT = 1200.0  # seconds for a test that does not say, as in pyproject.toml


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Inside(config) if os.environ.get(MARK) else Outside(config))


class Inside:
    """In the guest: every report also goes to the outer run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._path = os.environ.get(_REPORTS, os.devnull)  # none, where a person runs pytest in a guest

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._path, "a") as file:
            file.write(json.dumps(data) + "\n")


class Outside:
    """The outer run: has guests run them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._runs: dict[str, _Run] = {}  # kind of guest -> its run

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Last of all, and those of one guest together: it computes all the time, so nothing else should."""
        items.sort(key=_kind)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not _kind(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item) -> bool | None:
        """A test's time is what it takes in there, where the same plugin looks after it."""
        return True if _kind(item) else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> bool | None:
        return True if _kind(item) else None

    def _reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        kind = _kind(item)
        if kind not in self._runs:
            self.pytest_unconfigure()  # the one before has no more to say
            self._runs[kind] = _Run(self._config, item.session, kind)
        try:
            return self._runs[kind].reports(item)
        except LabError as err:
            return [pytest.TestReport(item.nodeid, item.location, {}, "failed", str(err), "setup")]

    def pytest_unconfigure(self) -> None:
        for run in self._runs.values():
            run.end()


class _Run:
    """One boot, for all tests of a session in one kind of guest."""

    def __init__(self, config: pytest.Config, session: pytest.Session, kind: str) -> None:
        self._config = config
        self._reports: dict[str, list[pytest.TestReport]] = {}  # node id -> those that came so far
        self._told = time.monotonic() + _UP  # when the guest last said anything, or can be expected to
        self._dead = ""  # why nothing more will come
        folder: Path = config._tmp_path_factory.mktemp("guest")  # type: ignore[attr-defined]
        self._file = folder / "reports"
        self._file.touch()
        self._read = 0  # bytes
        chosen = [item.nodeid for item in session.items if _kind(item) == kind]
        options = ["-p", "no:cacheprovider", "-v", "--color=no", "--speaker", config.getoption("--speaker")]
        argv = [sys.executable, "-m", "pytest", *options, *chosen]
        environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
        environment[_REPORTS] = str(self._file)
        self._guest = Guest(machine(kind == _USER_MODE), argv, folder, environment=environment)
        try:
            self._guest.__enter__()
        except LabError as err:
            self._dead = str(err)

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """All of a test, when it has ended. Raises LabError with what the guest said if it cannot end."""
        marker = item.get_closest_marker("timeout")
        patience = float(marker.args[0] if marker else _DEFAULT_TIMEOUT) + _SLACK
        while not self._complete(item.nodeid):
            if self._dead:
                raise LabError(self._dead)
            running = self._guest.running()
            self._collect()
            if self._complete(item.nodeid):
                break
            if not running:
                self._give_up("the guest ended")
            elif time.monotonic() > self._told + patience:
                self._give_up(f"nothing came from the guest for {patience:.0f} s")
            time.sleep(0.05)
        return self._reports.pop(item.nodeid)

    def _complete(self, nodeid: str) -> bool:
        return any(report.when == "teardown" for report in self._reports.get(nodeid, ()))

    def _collect(self) -> None:
        with self._file.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            data: dict[str, Any] = json.loads(line)
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            if isinstance(report.longrepr, list):  # a skip's place and reason: JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            self._reports.setdefault(report.nodeid, []).append(report)
            self._told = max(self._told, time.monotonic())

    def _give_up(self, why: str) -> None:
        """The test that was waited for tells all; those after it, that it was."""
        evidence = self._guest.evidence()
        self.end()
        self._dead = f"{why} before, in another test"
        raise LabError(f"{why} before this test did\n{evidence}")

    def end(self) -> None:
        self._guest.power_off()


def _kind(item: pytest.Item) -> str:
    """Of the guest that a test is for, '' if it is for none. Sorts those last that take longest."""
    marker = item.get_closest_marker("vm")
    if marker is None:
        return ""
    return _USER_MODE if marker.kwargs.get("user_mode") else _QEMU
