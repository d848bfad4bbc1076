"""Namespaces, sysctls and tracked connections: entering, naming, comparing, writing, forgetting."""

import asyncio
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns_lab import Namespace, eventually
from tortie.core.errors import KernelError
from tortie.linux import conntrack, links, netns, sysctl

pytestmark = pytest.mark.kernel


# --- namespaces ---------------------------------------------------------------------------------


def here() -> tuple[int, int]:
    found = os.stat("/proc/thread-self/ns/net")
    return found.st_dev, found.st_ino


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
        open_fds = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KernelError) as caught:
            netns.open(path)
        assert caught.value.errno == number, path
        assert len(os.listdir("/proc/self/fd")) == open_fds, "nothing is left open"


def test_nothing_is_left_of_a_nameless_namespace() -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    fd = netns.create()
    inode = netns.identity(fd)[1]
    os.close(fd)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
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


# --- sysctls ------------------------------------------------------------------------------------


def conf(interface: str, parameter: str = "forwarding", family: str = "ipv4") -> str:
    return sysctl.interface_key(family, "conf", interface, parameter)


def test_values_are_written_in_the_right_namespace(make_netns: Callable[[], Namespace]) -> None:
    one, two = make_netns(), make_netns()
    for ns in (one, two):
        ns.veth("eth0.100", "b")
    key = conf("eth0.100")
    one.call(sysctl.write, key, 1)
    two.call(sysctl.write, key, "0")
    assert (one.call(sysctl.read, key), two.call(sysctl.read, key)) == ("1", "0")
    assert one.sh("cat /proc/sys/net/ipv4/conf/eth0.100/forwarding").strip() == "1"
    with pytest.raises(KernelError):
        sysctl.read(key)


def test_a_batch_names_what_failed_and_sets_the_rest(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    ns.veth("a", "b")
    values: dict[str, str | int] = {
        conf("a", "proxy_arp"): 1,
        conf("gone", "proxy_arp"): 1,
        conf("a", "accept_dad", "ipv6"): 0,
        "net/ipv4/neigh/a/proxy_delay": 0,
        conf("a", "nonsense"): 1,
        conf("a", "rp_filter"): "many",
        "../../etc/passwd": "x",
    }
    failures = ns.call(sysctl.apply, values)
    assert {key: error.errno for key, error in failures.items()} == {
        conf("gone", "proxy_arp"): errno.ENOENT,
        conf("a", "nonsense"): errno.ENOENT,
        conf("a", "rp_filter"): errno.EINVAL,
        "../../etc/passwd": errno.EINVAL,
    }
    assert ns.call(sysctl.read, conf("a", "proxy_arp")) == "1"
    assert ns.call(sysctl.read, conf("a", "accept_dad", "ipv6")) == "0"
    assert str(failures[conf("gone", "proxy_arp")]) == (
        "write sysctl net/ipv4/conf/gone/proxy_arp: No such file or directory"
    )


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "../etc/passwd",
        "net/../../etc/passwd",
        "/etc/passwd",
        "net//ipv4",
        "net/./x",
        "net/a\0b",
        "\ud800",
    ],
)
def test_keys_that_leave_proc_sys_are_refused(key: str) -> None:
    for function in (sysctl.read, lambda key: sysctl.write(key, "1")):
        with pytest.raises(KernelError, match="not a parameter name"):
            function(key)


@pytest.mark.parametrize("interface", ["", "..", "a/b", "x" * 16, "../all", "a b", "\ud800"])
def test_interface_keys_refuse_what_is_no_interface_name(interface: str) -> None:
    with pytest.raises(KernelError, match="not an interface name"):
        conf(interface)


def test_nothing_is_ever_created(
    make_netns: Callable[[], Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctl, "_ROOT", f"{tmp_path}/")
    with pytest.raises(KernelError):
        sysctl.write("new", "1")
    (tmp_path / "target").write_text("untouched")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(KernelError):
        sysctl.write("link", "1")
    assert (tmp_path / "target").read_text() == "untouched" and not (tmp_path / "new").exists()


def test_all_and_default_and_long_values(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    for interface in ("all", "default", "lo"):
        ns.call(sysctl.write, conf(interface, "disable_ipv6", "ipv6"), 1)
        assert ns.call(sysctl.read, conf(interface, "disable_ipv6", "ipv6")) == "1"
    assert len(ns.call(sysctl.read, "net/ipv4/ip_local_port_range").split()) == 2


# --- tracked connections ---------------------------------------------------------------------------

TUPLE = "conntrack -I -p udp --timeout 100 --sport 1000 --dport 53 --src {} --dst {}"


SERVICE = (  # a connection to a service address whose answers come from 10.2.0.5
    "conntrack -I -p tcp --state ESTABLISHED --timeout 100 -s 10.9.9.7 -d 10.96.0.1 --sport 1 --dport 2 "
    "--reply-src 10.2.0.5 --reply-dst 10.9.9.7 --reply-port-src 2 --reply-port-dst 1"
)


@pytest.fixture
def tracked(make_netns: Callable[[], Namespace]) -> Namespace:
    """One connection opened by, one answered by, and one that does not concern 10.2.0.5; v6 alike."""
    ns = make_netns()
    for source, destination in [
        ("10.2.0.5", "10.9.9.9"),
        ("10.9.9.8", "10.2.0.5"),
        ("10.9.9.8", "10.2.0.50"),
        ("fd02::5", "fd09::9"),
        ("fd09::8", "fd02::5"),
        ("fd09::8", "fd02::50"),
    ]:
        ns.sh(TUPLE.format(source, destination))
    ns.sh(SERVICE)
    return ns


def entries(ns: Namespace) -> int:
    both = ns.sh("conntrack -L -f ipv4") + ns.sh("conntrack -L -f ipv6")
    return len([line for line in both.splitlines() if "src=" in line])


def flush(ns: Namespace, address: str) -> None:
    ns.call(asyncio.run, conntrack.flush(address))


def test_connections_opened_and_answered_are_forgotten(tracked: Namespace) -> None:
    assert entries(tracked) == 7
    flush(tracked, "10.2.0.5")
    assert entries(tracked) == 4, "also the one behind a service address"
    flush(tracked, "fd02:0::5")
    assert entries(tracked) == 2
    flush(tracked, "10.2.0.5")
    flush(tracked, "fd02::5")
    assert entries(tracked) == 2, "nothing found is success, others are untouched"


@pytest.mark.parametrize(
    "address", ["", "10.2.0.5/32", "--help", "10.2.0.5; reboot", "a.example", "10.2.0.05"]
)
def test_only_addresses_reach_the_command_line(address: str) -> None:
    with pytest.raises(KernelError, match="not an IP address"):
        asyncio.run(conntrack.flush(address))


def shadow(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Put a `conntrack` of our own first on PATH; returns the file it may log its calls in."""
    program = folder / "conntrack"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "calls"


def test_a_random_failure_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"[ $(wc -l < {tmp_path}/calls) -ge 4 ] || {{ echo oops >&2; exit 2; }}"
    calls = shadow(monkeypatch, tmp_path, script)
    asyncio.run(conntrack.flush("10.2.0.5"))
    assert calls.read_text().splitlines() == [
        *["--family ipv4 --delete --orig-src 10.2.0.5"] * 4,
        "--family ipv4 --delete --reply-src 10.2.0.5",
    ]


def test_a_lasting_failure_is_an_error_with_the_programs_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = shadow(monkeypatch, tmp_path, "echo Operation failed: no luck >&2; exit 1")
    with pytest.raises(KernelError, match=r"flush connections of fd02::5 .*no luck"):
        asyncio.run(conntrack.flush("fd02::5"))
    assert len(calls.read_text().splitlines()) == 4


def test_a_failure_without_words_says_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow(monkeypatch, tmp_path, "exit 3")
    with pytest.raises(KernelError, match="exit status 3"):
        asyncio.run(conntrack.flush("10.2.0.5"))


def test_a_program_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_DEADLINE", 0.05)
    calls = shadow(monkeypatch, tmp_path, f"echo $$ >> {tmp_path}/pids; exec sleep 1000")
    with pytest.raises(KernelError, match="no answer within"):
        asyncio.run(conntrack.flush("10.2.0.5"))
    assert len(calls.read_text().splitlines()) == 4
    for pid in (tmp_path / "pids").read_text().split():
        assert not os.path.exists(f"/proc/{pid}"), "killed and reaped"


def test_a_cancelled_flush_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow(monkeypatch, tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000")

    async def cancelled() -> None:
        task = asyncio.create_task(conntrack.flush("10.2.0.5"))
        await asyncio.to_thread(eventually, (tmp_path / "pid").exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")


def test_a_missing_program_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="run conntrack: No such file"):
        asyncio.run(conntrack.flush("10.2.0.5"))
