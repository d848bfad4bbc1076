"""Network namespaces: entering, opening, comparing, naming."""

import asyncio
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.linux import links, netns

pytestmark = pytest.mark.kernel


def here() -> tuple[int, int]:
    found = os.stat("/proc/thread-self/ns/net")
    return found.st_dev, found.st_ino


def open_files() -> set[tuple[str, str]]:
    """Descriptor and what it leads to. Threads of gRPC may close some of theirs at any moment."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the folder itself
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return found


def test_code_runs_inside_and_the_caller_stays_outside(make_netns: Callable[[], Namespace]) -> None:
    one, two = make_netns(), make_netns()
    before = here()
    assert netns.call_in(one.fd, here) == netns.identity(one.fd) != before
    assert netns.call_in(one.fd, lambda: netns.call_in(two.fd, here)) == netns.identity(two.fd), "nested"
    assert here() == before


def test_results_arguments_and_errors_come_back(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    assert netns.call_in(ns.fd, divmod, 7, 3) == (2, 1)
    assert netns.call_in(ns.fd, int, "ff", base=16) == 255
    with pytest.raises(ZeroDivisionError):
        netns.call_in(ns.fd, divmod, 7, 0)
    assert netns.call_in(ns.fd, here) == netns.identity(ns.fd), "an error leaves nothing broken"


def test_other_threads_and_a_running_loop_are_not_moved(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    seen: set[tuple[int, int]] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(here())

    async def many() -> None:
        results = await asyncio.gather(*(asyncio.to_thread(netns.call_in, ns.fd, here) for _ in range(50)))
        assert set(results) == {netns.identity(ns.fd)}
        seen.add(await asyncio.to_thread(here))  # a pool thread that just waited for a visit
        seen.add(here())

    thread = threading.Thread(target=look)
    thread.start()
    asyncio.run(many())
    stop.set()
    thread.join()
    assert seen == {here()}


def test_what_cannot_be_entered_is_an_error_and_nothing_runs(tmp_path: Path) -> None:
    ran: list[bool] = []
    (tmp_path / "file").write_text("")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(KernelError, match="enter network namespace") as caught:
            netns.call_in(fd, ran.append, True)
    finally:
        os.close(fd)
    assert caught.value.errno == errno.EINVAL and not ran
    with pytest.raises(KernelError):
        netns.call_in(fd, ran.append, True)
    assert not ran


def test_sockets_made_inside_stay_inside(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    ns.netlink.execute(links.create_bridge("inside"))
    with netns.socket_in(ns.fd) as netlink:
        assert {link.name for link in links.dump(netlink)} == {"lo", "inside"}


def test_opening_by_path(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    fd = netns.open(f"/proc/self/fd/{ns.fd}")
    try:
        assert netns.same(fd, ns.fd) and not os.get_inheritable(fd)
    finally:
        os.close(fd)
    own = netns.current()
    try:
        assert netns.identity(own) == here() and not netns.same(own, ns.fd)
    finally:
        os.close(own)


def test_what_is_no_namespace_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, number in [
        (str(tmp_path / "none"), errno.ENOENT),
        (str(tmp_path / "file"), errno.EINVAL),
        (str(tmp_path), errno.EINVAL),
        ("/proc/self/ns/pid", errno.EINVAL),
        ("/dev/null", errno.EINVAL),
        ("a\0b", errno.EINVAL),
        ("", errno.ENOENT),
    ]:
        before = open_files()
        with pytest.raises(KernelError) as caught:
            netns.open(path)
        assert caught.value.errno == number, path
        assert open_files() <= before, "nothing is left open"


def test_nothing_is_left_of_a_nameless_namespace() -> None:
    before, threads = open_files(), set(threading.enumerate())
    fd = netns.create()
    inode = netns.identity(fd)[1]
    os.close(fd)
    assert open_files() <= before and set(threading.enumerate()) <= threads
    assert (
        str(inode)
        not in subprocess.run(["lsns", "-t", "net"], capture_output=True, check=True).stdout.decode()
    )
    with pytest.raises(KernelError):
        netns.identity(fd)


@pytest.fixture
def name() -> Iterator[str]:
    """A name of our own under /run/netns, gone afterwards."""
    chosen = f"tortie-test-{os.getpid()}"
    yield chosen
    netns.remove(chosen)


def ip_netns() -> list[str]:
    out = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in out.splitlines()]


def test_named_namespaces_are_those_of_ip(name: str) -> None:
    path = netns.add(name)
    assert path == f"/run/netns/{name}" and name in netns.names() and name in ip_netns()
    fd = netns.open(path)
    netns.call_in(fd, subprocess.run, ["ip", "link", "add", "name", "br0", "type", "bridge"], check=True)
    shown = subprocess.run(["ip", "-n", name, "link"], capture_output=True, text=True, check=True).stdout
    assert " br0: " in shown
    with pytest.raises(KernelError) as caught:
        netns.add(name)
    assert caught.value.errno == errno.EEXIST
    netns.remove(name)
    assert name not in netns.names() and name not in ip_netns() and not os.path.exists(path)
    assert netns.call_in(fd, socket.if_nametoindex, "br0") > 1, "alive while it is open"
    os.close(fd)
    netns.remove(name)


def test_a_name_made_by_ip_can_be_opened_and_removed(name: str) -> None:
    subprocess.run(["ip", "netns", "add", name], check=True)
    os.close(netns.open(f"/var/run/netns/{name}"))
    netns.remove(name)
    assert name not in ip_netns()


def test_a_left_over_file_can_be_removed(name: str) -> None:
    Path(f"/run/netns/{name}").touch()
    with pytest.raises(KernelError, match="not a network namespace"):
        netns.open(f"/run/netns/{name}")
    netns.remove(name)
    assert name not in netns.names()


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "../x", "a\0b", "a\nb", "\ud800"])
def test_names_that_leave_the_directory_are_refused(bad: str) -> None:
    for function in (netns.add, netns.remove):
        with pytest.raises(KernelError, match="is not a file name"):
            function(bad)


def test_a_failed_mount_leaves_no_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, _target: str, _flags: int) -> None:
        if source:
            raise KernelError("mount", "x", errno.EPERM)

    monkeypatch.setattr(netns, "_mount", refuse)
    with pytest.raises(KernelError):
        netns.add(name)
    assert name not in netns.names()
