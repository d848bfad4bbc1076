"""Which role a command line asks for, in the spellings of Calico's generations."""

import asyncio
import os
import signal
import sys

import pytest

from tortie.cni import install
from tortie.node import main, run

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/opt/cni/bin/install"], []),
        (["/opt/cni/bin/install", "uninstall"], ["uninstall"]),
        (["calico", "component", "cni", "install"], []),
        (["calico-node", "-install-cni", "uninstall"], ["uninstall"]),
    ],
)
def test_installing_cni_is_a_role_of_the_one_program(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: list[str]
) -> None:
    asked: list[list[str]] = []

    def note(words: list[str]) -> int:
        asked.append(words)
        return 7

    monkeypatch.setattr(install, "main", note)  # the real one writes to the host's folders
    monkeypatch.setattr(sys, "argv", argv)
    assert main.main() == 7
    assert asked == [expected]


def test_a_stop_is_heard_while_the_node_is_still_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel spares a container's first process every signal that it has no handler for."""
    heard: list[object] = []

    def started() -> int:
        heard.append(signal.getsignal(signal.SIGTERM))
        return 0

    monkeypatch.setattr(run, "run", started)
    monkeypatch.setattr(main, "_set_up_logging", lambda: None)  # that of the tests stays
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main.main([]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert callable(heard[0])


def test_the_reaper_knows_of_a_start_up_step_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio collects it; who took its exit code away would make a failure of it."""
    seen: list[int] = []

    async def scenario() -> None:
        step = asyncio.create_task(run._start_up(asyncio.Event(), "-startup"))
        while not run._steps and not step.done():
            await asyncio.sleep(0.01)
        seen.extend(run._steps)
        os.kill(seen[0], signal.SIGKILL)
        assert not await step

    monkeypatch.setattr(run, "role", lambda _step: [sys.executable, "-c", "import time; time.sleep(600)"])
    asyncio.run(scenario())
    assert len(seen) == 1 and not run._steps
