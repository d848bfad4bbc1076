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
from socket import AF_INET6
from typing import Any, ParamSpec, TypeVar

from tortie.linux import addresses, links, netns, sysctl
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
        text = self.run("ip", "-j", *arguments).replace(
            "fan-map ", ""
        )  # that is no JSON, but Ubuntu's ip says it
        return json.loads(text) if text.strip() else []

    def veth(self, name: str, peer: str, other: "Namespace | None" = None) -> tuple[int, int]:
        """An up and running pair, the peer in `other`; returns both indices.

        Nothing comes to it by itself any more: with a search for duplicates its link-local addresses and
        their routes would a second or two later, amid a test that a busy machine lets wait.
        """
        far = other or self
        self.netlink.execute(links.create_veth(links.VethEnd(name), links.VethEnd(peer, far.fd)))
        for ns, end in ((self, name), (far, peer)):
            ns.call(sysctl.write, sysctl.interface_key("ipv6", "conf", end, "accept_dad"), 0)
        self.netlink.execute(links.change(name, up=True))
        far.netlink.execute(links.change(peer, up=True))
        eventually(lambda: self.settled(name) and far.settled(peer))
        return self.ifindex(name), far.ifindex(peer)

    def running(self, name: str) -> bool:
        link = links.get(self.netlink, name)
        return link is not None and link.running

    def settled(self, name: str) -> bool:
        """Whether an interface runs and has a link-local address, and the kernel is sure of all of IPv6."""
        found = addresses.dump(self.netlink, AF_INET6, self.ifindex(name))
        local = [one for one in found if one.address.startswith("fe80:")]
        unsure = any(one.flags & addresses.FLAG_TENTATIVE for one in found)
        return self.running(name) and bool(local) and not unsure

    def ifindex(self, name: str) -> int:
        link = links.get(self.netlink, name)
        assert link is not None, f"no interface {name}"
        return link.ifindex


def eventually(condition: Callable[[], T], seconds: float = 120.0) -> T:
    """The first true value of `condition()`; the test fails if there is none in time.

    It pauses for as long as asking takes: what is waited for needs the machine more.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        assert now < deadline, f"not true within {seconds} s"
        pause.wait(min(max(0.01, now - asked), 0.5))
