"""Throw-away network namespaces for the kernel tier: nameless, so they end with the test whatever happens.

Use the fixtures `netns` (one namespace) and `make_netns` (as many as you like) of conftest.py.
"""

import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from tortie.linux import links, netns
from tortie.linux.netlink import NetlinkSocket

P = ParamSpec("P")
T = TypeVar("T")


class Namespace:
    """A fresh network namespace with loopback up, and ways to look into it and change it."""

    def __init__(self) -> None:
        self.fd = netns.create()
        self._sockets: list[NetlinkSocket] = []
        self.netlink = self.socket()
        self.netlink.execute(links.change("lo", up=True))

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
        os.close(self.fd)

    def socket(self, groups: int = 0) -> NetlinkSocket:
        """A netlink socket of this namespace; closed with it."""
        socket = netns.socket_in(self.fd, groups)
        self._sockets.append(socket)
        return socket

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return netns.call_in(self.fd, function, *args, **kwargs)

    def run(self, *command: str, stdin: str | None = None, check: bool = True) -> str:
        """Standard output of a program run inside; its failure fails the test with its words."""
        done = self.call(subprocess.run, command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return str(done.stdout)

    def sh(self, line: str) -> str:
        """run() of one command line, split as a shell would; no shell is involved."""
        return self.run(*shlex.split(line))

    def ip(self, *arguments: str) -> Any:
        """What `ip -j …` prints, parsed; [] where it prints nothing. `ns.ip("-6", "route")`."""
        text = self.run("ip", "-j", *arguments)
        return json.loads(text) if text.strip() else []

    def veth(self, name: str, peer: str, other: "Namespace | None" = None) -> tuple[int, int]:
        """An up and running pair, the peer in `other`; returns both indices."""
        far = other or self
        pair = links.create_veth(links.VethEnd(name), links.VethEnd(peer, far.fd))
        self.netlink.execute(pair, links.change(name, up=True))
        far.netlink.execute(links.change(peer, up=True))
        eventually(lambda: self.running(name) and far.running(peer))
        return self.ifindex(name), far.ifindex(peer)

    def running(self, name: str) -> bool:
        link = links.get(self.netlink, name)
        return link is not None and link.running

    def ifindex(self, name: str) -> int:
        link = links.get(self.netlink, name)
        assert link is not None, f"no interface {name}"
        return link.ifindex


def eventually(condition: Callable[[], T], seconds: float = 15.0) -> T:
    """The first true value of `condition()`; the test fails if there is none in time."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        pause.wait(0.01)
    return value
