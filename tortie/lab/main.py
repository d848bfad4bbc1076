"""`./dev demo` and `./dev shell`: start, enter and remove the demo cluster.

The cluster lives in namespaces whose first process is the "keeper"; its pid (and start time, so that
a reused pid is never mistaken for it) stands in a state file. Ending the keeper ends everything.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tortie.core.errors import TortieError
from tortie.lab import isolation

STATE = Path("/run/tortie-demo")  # of the machine: keeper's pid file and the logs
_UP = "up"  # written by the keeper when the demo has been shown
_DOWN_TIMEOUT = 10.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev", description="the demo cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="bring the cluster up, or remove it")
    demo.add_argument(
        "--nodes", type=int, default=3, choices=range(1, 17), metavar="N", help="1-16, default 3"
    )
    demo.add_argument("--down", action="store_true", help="remove the running demo")
    shell = commands.add_parser("shell", help="a shell or a command inside a node, a pod or the lab")
    shell.add_argument("where", metavar="NODE|POD|lab")
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    keeper = commands.add_parser("_keeper")
    keeper.add_argument("nodes", type=int)
    args = parser.parse_args(argv)
    try:
        if args.command == "demo":
            return _remove() if args.down else _demo(args.nodes)
        if args.command == "shell":
            return _shell(args.where, args.words)
        return _keep(args.nodes)
    except TortieError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1


# --- outside ----------------------------------------------------------------------------------------


def _demo(nodes: int) -> int:
    """Show the demo; stay until Ctrl-C on a terminal, else leave the cluster running and return."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    keeper = None
    try:
        with _alone():
            if _keeper_pid() is not None:
                print("removing the demo that is up", flush=True)
            _down()
            keeper = _start_keeper(nodes)
        if not _follow(keeper):
            print("error: the cluster did not come up", file=sys.stderr)
            _end(keeper)
            return 1
        if not sys.stdin.isatty():
            print("The cluster stays up; remove it with: sudo ./dev demo --down")
            return 0
        print("The cluster stays up until Ctrl-C.", flush=True)
        keeper.wait()
        _end(keeper)
        print("the cluster was removed")
        return 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        print("\nremoving the cluster", flush=True)
        _end(keeper)
        return 130


def _start_keeper(nodes: int) -> subprocess.Popen[bytes]:
    STATE.mkdir(mode=0o700, exist_ok=True)
    command = isolation.isolated([sys.executable, "-m", "tortie.lab.main", "_keeper", str(nodes)])
    # The keeper outlives a command whose output is piped, so it writes to a file and we copy.
    with (STATE / "story").open("wb") as story:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=story, stderr=story, start_new_session=True
        )
    (STATE / "keeper").write_text(f"{keeper.pid} {_started(keeper.pid)}")
    return keeper


def _end(keeper: subprocess.Popen[bytes] | None) -> None:
    """Remove our own cluster, but none that took its place meanwhile."""
    with _alone():
        if keeper is None or _keeper_pid() in (keeper.pid, None):
            _down()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """No other demo of this machine changes STATE meanwhile. The lock is of the folder that it is in."""
    folder = os.open(STATE.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _follow(keeper: subprocess.Popen[bytes]) -> bool:
    """Print what the keeper tells until the cluster is up; False if it ended instead."""
    with (STATE / "story").open() as story:
        while True:
            ended, up = keeper.poll() is not None, (STATE / _UP).exists()
            print(story.read(), end="", flush=True)
            if ended or up:
                return not ended
            time.sleep(0.1)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _remove() -> int:
    with _alone():
        print("removed" if _down() else "no demo is running")
    return 0


def _down() -> bool:
    """Whether there was one. The caller is alone."""
    keeper = _keeper_pid()
    if keeper is not None:
        first = _first_process(keeper)
        with contextlib.suppress(ProcessLookupError):
            # unshare ignores SIGTERM; its --kill-child ends PID 1, and that ends everything.
            os.kill(keeper, signal.SIGKILL)
        deadline = time.monotonic() + _DOWN_TIMEOUT
        # PID 1 is gone when all others of its namespace are.
        while (_started(keeper) or _started(first)) and time.monotonic() < deadline:
            time.sleep(0.02)
    shutil.rmtree(STATE, ignore_errors=True)
    return keeper is not None


def _first_process(keeper: int) -> int:
    """PID 1 of the demo's namespaces, as seen from here; 0 if there is none (yet)."""
    try:
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    except OSError:
        return 0
    return int(children[0]) if children else 0


def _keeper_pid() -> int | None:
    """The running keeper, if there is one."""
    try:
        pid, started = (STATE / "keeper").read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if _started(int(pid)) == started else None


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot, '' if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _shell(where: str, words: list[str]) -> int:
    keeper = _keeper_pid()
    if keeper is None:
        print("no demo is running; start one with: sudo ./dev demo", file=sys.stderr)
        return 1
    if not (STATE / _UP).exists():
        print("the demo is still coming up", file=sys.stderr)
        return 1
    places = dict(line.split(" ", 1) for line in (STATE / "places").read_text().splitlines())
    environment = places.pop("_environment").split()
    if where not in places:
        print(f"there is no {where!r}; there are: {', '.join(places)}", file=sys.stderr)
        return 1
    enter = ["nsenter", "-t", str(_first_process(keeper)), "-n", "-m", "-p", "-u", "--"]
    command = words or ["bash", "--norc"]  # start-up files would change the prompt, which says where one is
    scripts = str(Path(sys.executable).parent)
    path = f"PATH={scripts}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}:/usr/sbin:/sbin"
    settings = ["env", path, *environment, f"PS1={where}# "]
    return subprocess.call([*enter, *places[where].split(), *settings, *command])


# --- inside -----------------------------------------------------------------------------------------


def _keep(nodes: int) -> int:
    """PID 1 of the demo's namespaces."""
    from tortie.lab import demo

    # /run is about to become the demo's own: hold on to the machine's state folder.
    state = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY)
    outside = Path(f"/proc/self/fd/{state}")
    isolation.prepare()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    lab = None
    try:
        lab = demo.run(Path("/run/lab"), nodes)
        places = ["_environment ETCD_ENDPOINTS=" + lab.etcd.endpoint, "lab "]  # lab: etcd and the logs
        places += [f"{name} {' '.join(node.box.command([]))}" for name, node in lab.nodes.items()]
        places += [f"{name} {' '.join(pod.command())}" for name, pod in lab.pods.items()]
        (outside / "places").write_text("\n".join(places) + "\n")
        print(demo.things_to_try(lab), flush=True)
        (outside / _UP).touch()
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        if lab is not None:
            lab.down()


if __name__ == "__main__":
    sys.exit(main())
