"""Orphans: adopted, reaped, and ended with the node, whatever they do about it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

# Leaves a child behind that ignores SIGTERM and does what the argument says; prints the child's pid.
PARENT = """
import subprocess, sys
code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); " + sys.argv[1]
child = subprocess.Popen([sys.executable, "-ISc", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid)
"""

# Runs the parent, lets the orphan end by itself if it wants to, then waits for it to be reaped or ends it.
NODE = """
import asyncio, json, logging, os, subprocess, sys
from pathlib import Path
from tortie.node import orphans

async def main(parent, child, what, patience):
    orphans._TIMEOUT = float(patience)
    orphans.adopt()
    reaper = asyncio.create_task(orphans.reap(set))
    argv = [sys.executable, "-ISc", parent, child]
    held, hold = os.pipe()
    process = await asyncio.create_subprocess_exec(*argv, stdin=held, stdout=subprocess.PIPE)
    orphan = Path("/proc") / (await process.communicate())[0].decode().strip()
    adopted = f"PPid:\\t{os.getpid()}\\n" in (orphan / "status").read_text()
    os.close(hold)
    while what == "reap" and orphan.exists():
        await asyncio.sleep(0.01)
    reaper.cancel()
    await orphans.end()
    print(json.dumps([adopted, orphan.exists()]))

logging.basicConfig()
asyncio.run(main(*sys.argv[1:]))
"""


WHEN_LET = "os.read(0, 1)"  # ends when nobody holds its input any more


def run(child: str, what: str, patience: float = 120.0) -> tuple[list[bool], str]:
    """([it was adopted, it is still there], what was logged); `patience` with orphans, in seconds."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", NODE, PARENT, child, what, str(patience)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_an_orphan_that_ends_is_reaped() -> None:
    assert run(WHEN_LET, "reap") == ([True, False], "")


def test_an_orphan_that_ends_in_time_is_let() -> None:
    assert run(WHEN_LET, "end") == ([True, False], "")


def test_an_orphan_that_does_not_end_is_killed() -> None:
    found, log = run("time.sleep(600)", "end", 0.5)
    assert found == [True, False] and "killing what components left behind" in log
