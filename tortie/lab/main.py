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
from collections.abc import Callable, Iterator
from pathlib import Path

from tortie.core.errors import TortieError
from tortie.lab import cgroups, isolation

STATE = Path("/run/tortie-demo")  # of the machine: keeper's pid file and the logs
_UP = "up"  # written by the keeper when the demo has been shown
_DOWN_TIMEOUT = 60.0  # seconds at most; a Kubernetes has hundreds of processes to end


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev", description="the demo cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="bring the cluster up, or remove it")
    demo.add_argument(
        "--nodes", type=int, default=3, choices=range(1, 17), metavar="N", help="1-16, default 3"
    )
    demo.add_argument("--kubernetes", action="store_true", help="a real Kubernetes instead of etcd alone")
    demo.add_argument("--down", action="store_true", help="remove the running demo")
    shell = commands.add_parser("shell", help="a shell or a command inside a node, a pod or the lab")
    shell.add_argument("where", metavar="NODE|POD|lab")
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    keeper = commands.add_parser("_keeper")
    keeper.add_argument("nodes", type=int)
    keeper.add_argument("sort", choices=("etcd", "kubernetes"))
    args = parser.parse_args(argv)
    try:
        if args.command == "demo":
            sort = "kubernetes" if args.kubernetes else "etcd"
            return _remove() if args.down else _demo(args.nodes, sort)
        if args.command == "shell":
            return _shell(args.where, args.words)
        return _keep(args.nodes, args.sort)
    except TortieError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1


# --- outside ----------------------------------------------------------------------------------------


def _demo(nodes: int, sort: str) -> int:
    """Show the demo; stay until Ctrl-C on a terminal, else leave the cluster running and return."""
    interrupt = _Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    keeper = None
    try:
        with _alone():
            if _keeper_pid() is not None:
                print("removing the demo that is up", flush=True)
            _down()
            keeper = _start_keeper(nodes, sort)
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # for what removes it, too
        print("\nremoving the cluster", flush=True)
        _end(keeper)
        return 130


def _start_keeper(nodes: int, sort: str) -> subprocess.Popen[bytes]:
    STATE.mkdir(mode=0o700, exist_ok=True)
    keeping = [sys.executable, "-m", "tortie.lab.main", "_keeper", str(nodes), sort]
    command = isolation.isolated(keeping)
    # The keeper outlives a command whose output is piped, so it writes to a file and we copy.
    with (STATE / "story").open("wb") as story:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=story, stderr=story, start_new_session=True
        )
    _write_down(keeper.pid)
    while not (first := _first_process(keeper.pid)) and keeper.poll() is None:
        time.sleep(0.01)
    _write_down(keeper.pid, first)
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


class _Interrupt:
    """Has the cluster removed at the first signal; no later one disturbs that, however soon it comes."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, _number: int, _frame: object) -> None:
        if not self._told:
            self._told = True
            raise KeyboardInterrupt


def _remove() -> int:
    with _alone():
        print("removed" if _down() else "no demo is running")
    return 0


def _down() -> bool:
    """Whether there was one. The caller is alone."""
    there = _running()
    if there:
        first = _first_process(there[0])  # not written down, if the command was killed just then
        with contextlib.suppress(ProcessLookupError):
            # unshare ignores SIGTERM; its --kill-child ends PID 1, and that ends everything.
            os.kill(there[0], signal.SIGKILL)
        deadline = time.monotonic() + _DOWN_TIMEOUT
        # PID 1 is gone when all others of its namespace are.
        while (_running() or _started(first)) and time.monotonic() < deadline:
            time.sleep(0.02)
        cgroups.clear()  # of containers, if it had any: these groups are the machine's
    shutil.rmtree(STATE, ignore_errors=True)
    return bool(there)


def _first_process(keeper: int) -> int:
    """PID 1 of the demo's namespaces, as seen from here; 0 if there is none (yet)."""
    try:
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    except OSError:
        return 0
    return int(children[0]) if children else 0


def _write_down(*pids: int) -> None:
    (STATE / "keeper").write_text("".join(f"{pid} {_started(pid) or '-'}\n" for pid in pids))


def _written_down() -> list[tuple[int, bool]]:
    """The keeper, and PID 1 of its namespaces: each with whether it runs."""
    try:
        words = (STATE / "keeper").read_text().split()
    except OSError:
        return []
    pairs = zip(words[::2], words[1::2], strict=False)
    return [(int(pid), _started(int(pid)) == started) for pid, started in pairs]


def _running() -> list[int]:
    return [pid for pid, runs in _written_down() if runs]


def _keeper_pid() -> int | None:
    """The running demo's keeper, if there is one."""
    return next((pid for pid, runs in _written_down()[:1] if runs), None)


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
    settings = ["env", path, *environment, f"PS1={where}# "]  # the environment may have a PATH of its own
    return subprocess.call([*enter, *places[where].split(), *settings, *command])


# --- inside -----------------------------------------------------------------------------------------


def _keep(nodes: int, sort: str) -> int:
    """PID 1 of the demo's namespaces."""
    # /run is about to become the demo's own: hold on to the machine's state folder.
    state = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY)
    outside = Path(f"/proc/self/fd/{state}")
    isolation.prepare()
    interrupt = _Interrupt()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    down: Callable[[], None] = lambda: None  # noqa: E731 - until there is a lab
    try:
        places, to_try, down = _run_demo(nodes, sort)
        (outside / "places").write_text("\n".join(places) + "\n")
        print(to_try, flush=True)
        (outside / _UP).touch()
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        down()


def _run_demo(nodes: int, sort: str) -> tuple[list[str], str, Callable[[], None]]:
    """Where a shell can be, as lines of `places`; what to try; what ends the lab."""
    folder = Path("/run/lab")
    if sort == "kubernetes":
        from tortie.lab import kubedemo
        from tortie.lab.controlplane import find_program

        cluster = kubedemo.run(folder, nodes)
        programs = f"{find_program('kubectl').parent}:{Path(sys.executable).parent}"
        path = f"PATH={programs}:{os.environ['PATH']}"
        settings = f"{path} DATASTORE_TYPE=kubernetes KUBECONFIG={kubedemo.KUBECONFIG}"
        places = [f"_environment {settings}", "lab "]
        places += [f"{name} {' '.join(node.box.command([]))}" for name, node in cluster.nodes.items()]
        return places, kubedemo.things_to_try(cluster), cluster.down
    from tortie.lab import demo

    lab = demo.run(folder, nodes)
    places = ["_environment ETCD_ENDPOINTS=" + lab.etcd.endpoint, "lab "]  # lab: etcd and the logs
    places += [f"{name} {' '.join(node.box.command([]))}" for name, node in lab.nodes.items()]
    places += [f"{name} {' '.join(pod.command())}" for name, pod in lab.pods.items()]
    return places, demo.things_to_try(lab), lab.down


if __name__ == "__main__":
    sys.exit(main())
