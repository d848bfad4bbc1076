"""Kernel parameters under /proc/sys: read and write, by slash-separated keys.

Keys look like `net/ipv4/conf/eth0.100/forwarding`: interface names may contain dots, so the dotted
form would be ambiguous. The network parameters are those of the calling thread's namespace; use
netns.call_in() for another's. Files are opened for writing only and never created.
"""

import errno
import os
from collections.abc import Mapping

from tortie.core.errors import KernelError
from tortie.linux.links import valid_name

_ROOT = "/proc/sys/"
_LONGEST = 4096  # bytes; /proc/sys values are a number or a short list


def interface_key(family: str, group: str, interface: str, name: str) -> str:
    """The key of one interface's parameter: ("ipv4", "conf", "cali1", "forwarding").

    `family` is ipv4 or ipv6, `group` conf or neigh; `interface` may also be `all` or `default`.
    Raises KernelError (EINVAL) if it is no interface name: it may come from a file or a peer.
    """
    if not valid_name(interface):
        raise KernelError("sysctl", f"interface {interface!r}", errno.EINVAL, "not an interface name")
    return f"net/{family}/{group}/{interface}/{name}"


def read(key: str) -> str:
    """The value without its line end. Raises KernelError, with ENOENT if there is no such parameter."""
    path = _path(key)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return os.read(fd, _LONGEST).decode("utf-8", "replace").strip()
        finally:
            os.close(fd)
    except OSError as err:
        raise KernelError("read", f"sysctl {key}", err.errno or 0, os.strerror(err.errno or 0)) from err


def write(key: str, value: str | int) -> None:
    """Set one parameter. Raises KernelError: ENOENT if it does not exist, EINVAL for a bad value."""
    path = _path(key)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as err:
        raise KernelError("write", f"sysctl {key}", err.errno or 0, os.strerror(err.errno or 0)) from err


def apply(values: Mapping[str, str | int]) -> dict[str, KernelError]:
    """Set all of them in order; returns the error of each that failed, the others are set."""
    failures: dict[str, KernelError] = {}
    for key, value in values.items():
        try:
            write(key, value)
        except KernelError as err:
            failures[key] = err
    return failures


def _path(key: str) -> str:
    """The file of a key; a key that could leave /proc/sys is refused."""
    if not key.isprintable() or any(part in ("", ".", "..") for part in key.split("/")):
        raise KernelError("sysctl", repr(key), errno.EINVAL, "not a parameter name")
    return _ROOT + key
