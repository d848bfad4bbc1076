"""Network namespaces: open, compare, create, name, and run code inside one.

A thread, not a process, is in a network namespace. Code for another namespace therefore runs on a
thread of its own that is born, enters, works and dies: no thread that anything else uses is ever in
the wrong place, whatever goes wrong. Such a thread costs about 0.2 ms.

What is created inside keeps its namespace: sockets (socket_in), and child processes.
`/proc/sys/net` is the calling thread's; `/proc/net` and `/sys/class/net` are not, they stay outside.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from tortie.core.errors import KernelError
from tortie.linux.netlink import NetlinkSocket

P = ParamSpec("P")
T = TypeVar("T")

DIRECTORY = "/run/netns"  # where `ip netns` keeps names (also seen as /var/run/netns)
_MINE = "/proc/thread-self/ns/net"
_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # ioctl of nsfs, Linux 4.11
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare came with Python 3.12, mount never


def open(path: str) -> int:
    """An open file descriptor (close-on-exec) of the network namespace at `path`.

    Such as `/run/netns/blue` or `/proc/4711/ns/net`. Raises KernelError: ENOENT if there is none,
    EINVAL if the file is something else (a name whose namespace was never mounted, a text file).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise _failure("open", path, err) from err
    except ValueError as err:  # a NUL, or what no file system can spell
        raise KernelError("open", repr(path), errno.EINVAL, "not a path") from err
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:  # not an nsfs file at all
        kind = 0
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise KernelError("open", path, errno.EINVAL, "not a network namespace")
    return fd


def current() -> int:
    """An open file descriptor of the calling thread's own namespace."""
    return open(_MINE)


def identity(fd: int) -> tuple[int, int]:
    """(device, inode): equal for the same namespace however it was reached. Unique while it is open."""
    try:
        found = os.fstat(fd)
    except OSError as err:
        raise _failure("stat", "network namespace", err) from err
    return found.st_dev, found.st_ino


def same(one: int, other: int) -> bool:
    return identity(one) == identity(other)


# --- working inside -----------------------------------------------------------------------------


def call_in(namespace: int, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """`function(*args, **kwargs)` run inside the namespace of the open fd; its result or exception.

    Blocks the caller meanwhile: from a coroutine use it for work of a few milliseconds, else wrap it in
    asyncio.to_thread(). Raises KernelError if the namespace cannot be entered; `function` has not run
    then.
    """

    def inside() -> T:
        _check(_libc.setns(namespace, _CLONE_NEWNET), "enter", "network namespace")
        return function(*args, **kwargs)

    return _on_own_thread(inside)


def socket_in(namespace: int, groups: int = 0) -> NetlinkSocket:
    """A netlink socket of that namespace, usable from here for as long as it is open."""
    return call_in(namespace, NetlinkSocket, groups)


def create() -> int:
    """A new, nameless namespace as an open fd; it lives as long as something refers to it.

    Its loopback is down, as in every new namespace.
    """

    def inside() -> int:
        _check(_libc.unshare(_CLONE_NEWNET), "create", "network namespace")
        return current()

    return _on_own_thread(inside)


def _on_own_thread(function: Callable[[], T]) -> T:
    """On a thread that does nothing else before or after."""
    with ThreadPoolExecutor(1, "netns") as thread:
        return thread.submit(function).result()


# --- named namespaces, as `ip netns` keeps them ----------------------------------------------------


def add(name: str) -> str:
    """Create a namespace under a name that `ip netns` shows; returns its path. EEXIST if it is taken."""
    path = _path(name)
    _prepare_directory()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except OSError as err:
        raise _failure("create", f"network namespace {name}", err) from err

    def inside() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "create", f"network namespace {name}")
        _mount(_MINE, path, _MS_BIND)

    try:
        _on_own_thread(inside)
    except KernelError:
        os.unlink(path)
        raise
    return path


def remove(name: str) -> None:
    """Take the name away; the namespace ends with its last process, socket or open fd.

    Removing what is not there succeeds.
    """
    path = _path(name)
    try:
        _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), "unmount", path)
    except KernelError as err:
        if err.errno not in (errno.EINVAL, errno.ENOENT):  # EINVAL: a left-over file, never mounted
            raise
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as err:
        raise _failure("remove", path, err) from err


def names() -> list[str]:
    """The names `ip netns` would list, sorted."""
    try:
        return sorted(os.listdir(DIRECTORY))
    except FileNotFoundError:
        return []


def _path(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise KernelError("name", "network namespace", errno.EINVAL, f"{name!r} is not a file name")
    return f"{DIRECTORY}/{name}"


def _prepare_directory() -> None:
    """Mounts below must reach every mount namespace, else a name removed here stays alive there."""
    try:
        os.makedirs(DIRECTORY, 0o755, exist_ok=True)
    except OSError as err:
        raise _failure("create", DIRECTORY, err) from err
    try:
        _mount("", DIRECTORY, _MS_SHARED | _MS_REC)
    except KernelError as err:
        if err.errno != errno.EINVAL:  # EINVAL: not a mount point yet
            raise
        _mount(DIRECTORY, DIRECTORY, _MS_BIND | _MS_REC)
        _mount("", DIRECTORY, _MS_SHARED | _MS_REC)


def _mount(source: str, target: str, flags: int) -> None:
    done = _libc.mount(os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(flags), None)
    _check(done, "mount", target)


def _check(result: int, operation: str, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise KernelError(operation, what, number, os.strerror(number))


def _failure(operation: str, what: str, err: OSError) -> KernelError:
    return KernelError(operation, what, err.errno or 0, os.strerror(err.errno or 0))
